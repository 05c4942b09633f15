"""The part of a report that only runs of `maquette generate` have: words, prior, judgement, and how the scene grew."""

from __future__ import annotations

from html import escape

from apps.generate_options import GENERATORS
from apps.generate_stages import PREVIEWS, REFERENCE_FILE
from apps.report_page import data_uri, section, table
from scene.runs import Run
from scene.untrusted import read_bytes

MAX_PICTURE_BYTES = 2 << 20  # of one preview
MAX_PREVIEWS = 8


def is_generation(run: Run) -> bool:
    """Whether words came into a run, not photos."""
    return run.config.get("method") in GENERATORS


def generated_sections(run: Run) -> str:
    """The sections; nothing for a run of photos."""
    return "".join((_prior(run), _judgement(run), _growth(run))) if is_generation(run) else ""


def _prior(run: Run) -> str:
    facts = run.finished("prior") or {}
    rows = [("Seed", str(run.config.get("seed", "")))]
    rows += [(str(name).replace("_", " "), _said(value)) for name, value in facts.items()]
    body = table(rows)
    picture = run.folder / REFERENCE_FILE
    if picture.is_file():
        source = data_uri(read_bytes(picture, MAX_PICTURE_BYTES), "image/png")
        body += (
            f'<figure class="plot"><img src="{source}" alt="the picture that came with the words" width="192"></figure>'
        )
    return section("Words and prior", body, escape(f"“{run.config.get('source', '')}”"))


def _judgement(run: Run) -> str:
    record = run.finished("judge")
    if record is None:
        return ""
    rows = []
    score = record.get("scorer")
    if isinstance(score, dict):
        rows.append(("Held-out scorer", f"place {score.get('rank')} of {score.get('among')} captions"))
        rows.append(("Likeness to the prompt", f"{_said(score.get('similarity'))} (cosine)"))
    if isinstance(record.get("nearest_psnr"), float):
        rows.append(("Nearest object of these words", f"{record['nearest_psnr']:.1f} dB"))
    if "fronts" in record:
        rows.append(("Janus check", f"front seen in {record['fronts']} of 4 views"))
    return section("How well it fits the words", table(rows)) if rows else ""


def _growth(run: Run) -> str:
    pictures = sorted((run.folder / PREVIEWS).glob("step_*.png"))[:MAX_PREVIEWS]
    blocks = ""
    for path in pictures:
        source = data_uri(read_bytes(path, MAX_PICTURE_BYTES), "image/png")
        step = int("".join(c for c in path.stem if c.isdigit()) or 0)
        picture = f'<img src="{source}" alt="step {step}" width="100%">'
        blocks += f'<figure class="plot"><figcaption>Step {step:,}</figcaption>{picture}</figure>'
    note = "Views of the step above, what the prior takes them for below."
    return section("How it grew", f'<div class="grid2">{blocks}</div>' if blocks else "", note)


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
