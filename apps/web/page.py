"""The page: gradio's tabs and forms over `service`, and the public endpoints. Nothing is decided here.

What a job shows while it works and when it is done is a page of our own (`static/job.html`), put into a frame: a
thousand people who watch then cost a small file a second each, not an event of gradio's queue.

Gradio is imported in the functions that use it: it takes seconds, and only `maquette web` needs it. It finds out what a
handler wants by its annotations, which therefore are no strings here.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from apps.generate_options import EMBEDDED
from apps.options import METHODS
from apps.web import forms
from apps.web.guard import visitor_of
from apps.web.limits import size_words
from apps.web.routes import PREFIX
from apps.web.service import SIZES, Service
from scene.errors import MaquetteError

TITLE = "Maquette"
PRESETS = ("draft", "standard", "high")
WORDS = (
    "a red chair with blue legs",
    "a snowman with white body and black hat",
    "a wooden table",
    "a yellow car with black wheels",
    "a green cactus in a red pot",
    "a blue mug",
    "a tall lamp",
    "a red rocket",
)
FRAME = '<iframe class="maquette-frame" title="{title}" src="{address}"></iframe>'
STYLE = """
.maquette-frame { width:100%; height:120px; border:0; display:block; background:transparent; color-scheme:normal }
.maquette-sheet { max-width:100%; border-radius:10px; display:block; margin:8px 0 }
.finding-bad b { color:#b3261e } .finding-warn b { color:#b4541f } .finding-good b { color:#2c7a4b }
input[type=radio]:checked:focus, input[type=checkbox]:checked:focus {
  background-color:var(--checkbox-background-color-selected)!important }
footer { display:none!important }
"""
# Frames of our own pages get the height of what they hold.
HEAD = """<script>
addEventListener('message', ({ source, origin, data }) => {
  if (origin !== location.origin || data?.maquette !== 'height') return;
  for (const frame of document.querySelectorAll('.maquette-frame'))
    if (frame.contentWindow === source) frame.style.height = `${Math.min(6000, Math.max(80, data.height + 6))}px`;
});
</script>"""


def blocks(service: Service) -> Any:
    """The whole page, a `gradio.Blocks`."""
    import gradio as gr

    limits = service.limits
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# Maquette\nPhotos or words in; 3D scenes and meshes out.")
        with gr.Tabs():
            with gr.Tab("Photos to 3D", id="photos"):
                _photos(service, page)
            with gr.Tab("Words to 3D", id="words"):
                _words(service, page)
            with gr.Tab("My jobs", id="jobs"):
                gr.HTML(FRAME.format(title="My jobs", address=f"{PREFIX}/page/jobs"))
            with gr.Tab("Compare", id="compare"):
                gr.HTML(FRAME.format(title="Compare two results", address=f"{PREFIX}/page/compare"))
        hours, most = limits.keep_seconds / 3600, size_words(limits.upload_bytes)
        gr.Markdown(
            f"At most {limits.files} files and {most} at once, {limits.active} jobs at work and {limits.kept} kept for "
            f"each visitor, {limits.minutes:g} minutes a job. All is removed {hours:g} hours after its job ended."
        )
        _endpoints(service)
    page.queue(default_concurrency_limit=8, max_size=64, api_open=False)
    return page


def theme() -> Any:
    """Gradio's plain theme in the viewer's colours, with the fonts of the system: nothing is fetched from elsewhere."""
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]
    return gr.themes.Base(
        primary_hue="orange", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "monospace"]
    )


def _photos(service: Service, page: Any) -> None:
    import gradio as gr

    job = gr.Textbox(visible="hidden")  # the draft's key; nothing of a visitor is kept in gradio's sessions
    with gr.Row():
        with gr.Column(scale=1):
            files = gr.File(label="Photos, a .zip or a video", file_count="multiple", height=190, elem_id="files")
            sample = gr.Button("Use the sample photos", size="sm")
            method = gr.Dropdown(["auto", *METHODS], value="auto", label="Method")
            preset = gr.Radio(PRESETS, value="standard", label="Preset")
            minutes = _minutes(service, 10)
            with gr.Accordion("More", open=False):
                downscale = gr.Slider(1, 8, value=1, step=0.5, label="Make photos smaller by")
                mesh = gr.Radio(SIZES, value="game", label="Mesh: 20k, 50k or 200k faces")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            groups = {name: _options(name, visible=name == "gaussians") for name in METHODS}
        with gr.Column(scale=2):
            check = gr.HTML("<p>Drop photos to see whether they will do. Nothing runs before you start it.</p>")
            start = gr.Button("Reconstruct", variant="primary", interactive=False, elem_id="reconstruct")
            shown = gr.HTML()
    checked = [job, check, start]

    def look(uploaded: list[str] | None, request: gr.Request) -> Any:
        if not uploaded:
            return "", gr.skip(), gr.Button(interactive=False)
        return _checked(lambda: service.check(_visitor(request), [Path(name) for name in uploaded]))

    def look_at_sample(request: gr.Request) -> Any:
        return _checked(lambda: service.check_sample(_visitor(request)))

    def begin(values: dict[Any, Any], request: gr.Request) -> Any:
        own = "gaussians" if values[method] == "auto" else values[method]
        return _started(
            lambda: service.reconstruct(
                _visitor(request),
                values[job],
                method=values[method],
                preset=values[preset],
                minutes=values[minutes],
                downscale=values[downscale],
                mesh=values[mesh],
                seed=values[seed],
                options=_options_of(groups[own], values),
            ),
            gr.Button(interactive=False),
        )

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    files.upload(look, files, checked, concurrency_limit=4, **private)
    files.clear(lambda: ("", "<p>Drop photos first.</p>", gr.Button(interactive=False)), None, checked, **private)
    sample.click(look_at_sample, None, checked, concurrency_limit=4, **private)
    everything = {job, method, preset, minutes, downscale, mesh, seed} | {
        w for _, ws in groups.values() for w in ws.values()
    }
    start.click(begin, everything, [shown, start], queue=False, **private)
    method.change(
        lambda name: [gr.Accordion(visible=m == ("gaussians" if name == "auto" else name)) for m in groups],
        method,
        [group for group, _ in groups.values()],
        queue=False,
        **private,
    )

    def arrive(request: gr.Request) -> Any:
        if "sample" in request.query_params:
            return *look_at_sample(request), gr.skip()
        return "", gr.skip(), gr.skip(), _latest(service, _visitor(request), "recon")

    page.load(arrive, None, [*checked, shown], queue=False, **private)


def _words(service: Service, page: Any) -> None:
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=1):
            prompt = gr.Textbox(label="What to make", placeholder=WORDS[0], max_length=2000, lines=2, elem_id="prompt")
            gr.Examples(
                [[words] for words in WORDS], prompt, label="What the embedded prior knows", api_visibility="private"
            )
            prior = gr.Dropdown([*EMBEDDED, *service.models], value="embedded", label="Prior")
            preset = gr.Radio(PRESETS, value="standard", label="Preset")
            minutes = _minutes(service, 5)
            with gr.Accordion("More", open=False):
                mesh = gr.Radio(SIZES, value="web", label="Mesh: 20k, 50k or 200k faces")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            group = _options("sds", visible=True)
        with gr.Column(scale=2):
            start = gr.Button("Generate", variant="primary", elem_id="generate")
            shown = gr.HTML()

    def begin(values: dict[Any, Any], request: gr.Request) -> Any:
        return _started(
            lambda: service.generate(
                _visitor(request),
                values[prompt] or "",
                prior=values[prior],
                preset=values[preset],
                minutes=values[minutes],
                mesh=values[mesh],
                seed=values[seed],
                options=_options_of(group, values),
            ),
            gr.skip(),
        )

    def arrive(request: gr.Request) -> Any:
        return _latest(service, _visitor(request), "generate")

    everything = {prompt, prior, preset, minutes, mesh, seed, *group[1].values()}
    page.load(arrive, None, shown, queue=False, api_visibility="private", show_progress="hidden")
    start.click(begin, everything, [shown, start], queue=False, api_visibility="private", show_progress="minimal")


def _endpoints(service: Service) -> None:
    """What programs call; their schema is at /gradio_api/info. Errors are answered as {"error": ...}."""
    import gradio as gr

    def answered(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except MaquetteError as error:
            return {"error": str(error)}

    def check_photos(files: list[str] | None, request: gr.Request) -> Any:
        """Check photos, a .zip or a video. The answer's "job" is the draft that `reconstruct` takes."""
        return answered(lambda: service.check(_visitor(request), [Path(name) for name in files or []]))

    def reconstruct(
        request: gr.Request,
        job: str,
        method: str = "auto",
        preset: str = "standard",
        minutes: float = 10.0,
        downscale: float = 1.0,
        mesh: str = "game",
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Reconstruct a checked draft. options: of the method, by name, as `maquette recon --help` lists them."""
        chosen: dict[str, Any] = {"method": method, "preset": preset, "minutes": minutes, "downscale": downscale}
        return answered(
            lambda: service.reconstruct(_visitor(request), job, mesh=mesh, seed=seed, options=options, **chosen)
        )

    def generate(
        request: gr.Request,
        prompt: str,
        prior: str = "embedded",
        preset: str = "standard",
        minutes: float = 5.0,
        mesh: str = "web",
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make a scene of words. options: as `maquette generate --help` lists them."""
        chosen: dict[str, Any] = {"prior": prior, "preset": preset, "minutes": minutes, "mesh": mesh, "seed": seed}
        return answered(lambda: service.generate(_visitor(request), prompt, options=options, **chosen))

    def status(request: gr.Request, job: str) -> dict[str, Any]:
        """How far a job is: state, position, stage, step, steps, eta_s, curves, downloads and figures."""
        return answered(lambda: service.status(_visitor(request), job))

    def jobs(request: gr.Request) -> list[dict[str, Any]]:
        """All your jobs, newest first."""
        return service.jobs(_visitor(request))

    def cancel(request: gr.Request, job: str) -> dict[str, Any]:
        """Stop a job; it saves first and can be resumed."""
        return answered(lambda: service.cancel(_visitor(request), job))

    def resume(request: gr.Request, job: str) -> dict[str, Any]:
        """Let a stopped job go on."""
        return answered(lambda: service.resume(_visitor(request), job))

    def delete(request: gr.Request, job: str) -> dict[str, Any]:
        """Remove a job and all its files."""
        return answered(lambda: service.delete(_visitor(request), job))

    def export(request: gr.Request, job: str, file: str) -> dict[str, Any]:
        """Make a download, such as mesh.usdz; fetch it from /maquette/job/JOB/file/FILE."""
        return answered(lambda: service.export(_visitor(request), job, file))

    # A real file component: gradio then lets in what was uploaded to it, and no other path.
    came, found = gr.File(file_count="multiple", visible=False), gr.JSON(visible=False)
    gr.Button(visible=False).click(check_photos, came, found, api_name="check_photos", concurrency_limit=4)
    for function in (reconstruct, generate, status, jobs, cancel, resume, delete):
        gr.api(function, queue=False)
    gr.api(export, concurrency_limit=4)


Group = tuple[Any, dict[str, Any]]  # an accordion, and its fields by name


def _minutes(service: Service, usual: float) -> Any:
    import gradio as gr

    return gr.Slider(0.5, service.limits.minutes, value=min(usual, service.limits.minutes), step=0.5, label="Minutes")


def _options(method: str, *, visible: bool) -> Group:
    """A form of a method's Config; what is left open is the preset's."""
    import gradio as gr

    with gr.Accordion(f"Options of {method}", open=False, visible=visible) as group:
        widgets = {field.name: _widget(field) for field in forms.fields_of(method)}
    return group, widgets


def _widget(field: forms.Field) -> Any:
    import gradio as gr

    usual = f"{field.default}" if field.default not in (None, "") else ""
    facts: dict[str, Any] = {"label": field.label, "info": field.help}
    if field.kind == "choice":
        return gr.Dropdown([("as the preset has it", ""), *field.choices], value="", **facts)
    if field.kind == "bool":
        return gr.Checkbox(bool(field.default), **facts)
    if field.kind == "str":
        return gr.Textbox(max_length=forms.MAX_WORDS, **facts)
    return gr.Number(None, placeholder=usual, precision=0 if field.kind == "int" else None, **facts)


def _options_of(group: Group, values: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: values[widget] for name, widget in group[1].items() if values[widget] not in (None, "")}


# What handlers answer.


def _visitor(request: Any) -> str:
    headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
    return visitor_of(headers)


def _said(error: MaquetteError) -> str:
    return f'<p role="alert"><b>{escape(str(error))}</b></p>'


def _checked(work: Callable[[], dict[str, Any]]) -> Any:
    """(draft's key, what is shown, the button) of a capture check."""
    import gradio as gr

    try:
        found = work()
    except MaquetteError as error:
        return "", _said(error), gr.Button(interactive=False)
    return found["job"], check_html(found), gr.Button(interactive=True)


def check_html(found: Mapping[str, Any]) -> str:
    """What a capture check found, for people."""
    facts = f"{found['views']} photos of up to {found['width']} x {found['height']} ({found['kind']}); "
    facts += "their cameras are known" if found["cameras"] else "cameras will be estimated"
    signs = {"good": "Good", "warn": "Mind", "bad": "Bad"}
    rows = [
        f'<li class="finding-{escape(each["level"])}"><b>{signs[each["level"]]}:</b> {escape(each["sentence"])}</li>'
        for each in found["findings"]
    ]
    said = [f"<li>{escape(sentence)}</li>" for sentence in found["decisions"]]
    sheet = f"{PREFIX}/job/{found['job']}/file/sheet"
    return (
        f'<img class="maquette-sheet" alt="Some of the photos" src="{sheet}"><p>{escape(facts)}.</p>'
        f"<ul>{''.join(rows)}</ul><details><summary>How it was read</summary><ul>{''.join(said)}</ul></details>"
    )


def _started(work: Callable[[], dict[str, Any]], button: Any) -> Any:
    """(the job's frame, the button) of a job that was started, or why it was not."""
    import gradio as gr

    try:
        return _frame(work()["job"]), button
    except MaquetteError as error:
        return _said(error), gr.skip()


def _frame(key: str) -> str:
    return FRAME.format(title="The job", address=f"{PREFIX}/page/job?job={key}")


def _latest(service: Service, visitor: str, kind: str) -> Any:
    """A visitor who comes back sees the job that is at work, or the newest."""
    import gradio as gr

    jobs = [job for job in service.jobs(visitor) if job["kind"] == kind]
    at_work = [job for job in jobs if job["state"] in ("running", "stopping", "queued")]
    return _frame((at_work or jobs)[0]["job"]) if jobs else gr.skip()
