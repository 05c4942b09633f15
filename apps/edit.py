"""`maquette edit`: clean, crop, turn and scale a run's scene. What is done is kept as a list, so it can be undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from apps.console import Watcher
from apps.methods import SPLAT_METHODS, words_of
from apps.options import parse
from apps.run_cameras import edited_cameras
from apps.run_scene import cuts, edited_splats, splats_antialias
from recon.sfm_frame import up_direction
from scene import edits
from scene.edits import Crop, Edit, Edits, Measure, RemoveFloaters, Scale, Up, Vector
from scene.errors import InputError
from scene.floaters import floater_score
from scene.gaussians import Gaussians
from scene.runs import Run
from scene.up_axis import level_with_ground

AXES: dict[str, Vector] = {
    "x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1), "-x": (-1, 0, 0), "-y": (0, -1, 0), "-z": (0, 0, -1),
}  # fmt: skip
SOLID = 0.5  # opacity of the splats that show where the ground is


@dataclass(frozen=True)
class EditRun:
    """Clean, crop, turn and scale a run: exports, films and views follow, the trained files stay.

    Several in one call are done in the order of this list; coordinates are those that the edits before have left.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    floaters: bool = False
    """remove the splats that float in free space"""
    up: Annotated[str | None, tyro.conf.arg(metavar="x|y|z|-x|-y|-z|X,Y,Z|auto")] = None
    """turn this direction to +Z; auto takes the cameras' and levels the ground"""
    scale: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """make everything so many times as large; lengths are then metres"""
    measure: Annotated[str | None, tyro.conf.arg(metavar="X,Y,Z:X,Y,Z:LENGTH")] = None
    """two points and how many metres lie between them"""
    crop: Annotated[str | None, tyro.conf.arg(metavar="X,Y,Z:X,Y,Z")] = None
    """keep the box between two corners"""
    undo: bool = False
    """take the last edit back, before anything else"""
    list: bool = False
    """say what was edited"""
    debug: bool = False
    """show tracebacks"""


def main(arguments: Sequence[str]) -> None:
    """The `maquette edit` command."""
    request = parse(EditRun, "edit", joined(arguments))
    wanted = [request.floaters, request.up, request.scale is not None, request.measure, request.crop]
    with Run.open(request.run) as run, Watcher() as watcher:
        if request.undo:
            watcher.say(undone(run))
        for what, edit in zip(wanted, (_floaters, _up, _scale, _measure, _crop), strict=True):
            if what:
                watcher.say(edited(run, edit, request))
        method = run.config.get("method")
        if method not in SPLAT_METHODS and any(wanted) and cuts(edits.load(run.folder)):
            watcher.say(
                f"The {words_of(method).scene} itself stays whole: what was cut is gone from the mesh and from the "
                "splats made of it, which films then show."
            )
        if request.list or not (request.undo or any(wanted)):
            for sentence in listed(edits.load(run.folder)):
                watcher.say(sentence)


def joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with values such as -1,0,0 tied to their flag, or they would be read as flags."""
    result: list[str] = []
    for word in arguments:
        if result and result[-1] in ("--crop", "--measure", "--up", "--scale") and word[:1] == "-" and word[:2] != "--":
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


def edited(run: Run, edit: Callable[[Run, EditRun], tuple[Edit | None, str]], request: EditRun) -> str:
    """Add one edit to the run's list, after trying it on the scene. Returns what was done."""
    made, sentence = edit(run, request)
    if made is not None:
        before = edits.load(run.folder)
        after = before.then(made)
        Edits((after.items[-1],)).of_gaussians(edited_splats(run))  # an edit that leaves nothing is not kept
        edits.save(run.folder, after)
    return sentence


def undone(run: Run) -> str:
    """Take the last edit back. Raises InputError when there is none."""
    items = edits.load(run.folder).items
    if not items:
        raise InputError(f"{run.folder} has no edits to undo")
    edits.save(run.folder, Edits(items[:-1]))
    return f"undone: {edits.describe(items[-1])}"


def listed(done: Edits) -> list[str]:
    """The edits, numbered."""
    return [f"{i}. {sentence}" for i, sentence in enumerate(done.sentences(), 1)] or ["nothing was edited"]


def _floaters(run: Run, request: EditRun) -> tuple[Edit | None, str]:
    scene, seen = edited_splats(run), edited_cameras(run)
    antialias = splats_antialias(run)
    report = floater_score(scene, seen.train, antialias=antialias)
    if not len(report.ids):
        return None, report.sentence
    edit = RemoveFloaters(len(scene), tuple(report.ids.tolist()))
    left = floater_score(Edits((edit,)).of_gaussians(scene), seen.train, antialias=antialias)
    return edit, f"{report.sentence}; removed. Floaters now send {left.score:.3%} of the light"


def _up(run: Run, request: EditRun) -> tuple[Edit | None, str]:
    assert request.up is not None
    word = request.up.lower().removeprefix("+")
    if word == "auto":
        direction, sentence = _automatic_up(run, edited_splats(run))
    else:
        direction = AXES[word] if word in AXES else _numbers(word, 3, "--up")
        sentence = f"{word} is +Z now"
    return Up(direction), sentence


def _automatic_up(run: Run, scene: Gaussians) -> tuple[Vector, str]:
    """Up by the source, else by the cameras' horizontal axes, made exact by the ground where one is seen."""
    seen = edited_cameras(run)
    if seen.up is not None:
        first, how = seen.up.double().numpy(), "what the source calls up"
    else:
        rotations = torch.stack([camera.c2w[:3, :3] for camera in seen.cameras]).double().numpy()
        first, how = up_direction(rotations)
    ground = level_with_ground(scene.means[scene.opacities > SOLID].double().numpy(), first)
    if ground is None:
        x, y, z = first.tolist()
        return (x, y, z), f"up is {how}; no ground was found to level"
    angle = math.degrees(math.acos(float(np.clip(ground @ first / np.linalg.norm(first), -1, 1))))
    x, y, z = ground.tolist()
    return (x, y, z), f"up is the ground's normal, {angle:.1f} degrees from {how}"


def _scale(run: Run, request: EditRun) -> tuple[Edit | None, str]:
    assert request.scale is not None
    edit = Scale(request.scale)
    return edit, edits.describe(edit)


def _measure(run: Run, request: EditRun) -> tuple[Edit | None, str]:
    a, b, length = _parts(request.measure or "", 3, "--measure", "X,Y,Z:X,Y,Z:LENGTH")
    edit = Measure(_numbers(a, 3, "--measure"), _numbers(b, 3, "--measure"), _number(length, "--measure"))
    Edits().then(edit)
    return edit, edits.describe(edit)


def _crop(run: Run, request: EditRun) -> tuple[Edit | None, str]:
    a, b = _parts(request.crop or "", 2, "--crop", "X,Y,Z:X,Y,Z")
    first, second = _numbers(a, 3, "--crop"), _numbers(b, 3, "--crop")
    low, high = (tuple(pick(pair) for pair in zip(first, second, strict=True)) for pick in (min, max))
    edit = Crop(low, high)  # type: ignore[arg-type]
    Edits().then(edit)
    scene = edited_splats(run)
    left = len(Edits((edit,)).of_gaussians(scene))
    return edit, f"{edits.describe(edit)}; {left:,} of {len(scene):,} splats are left"


def _parts(text: str, count: int, flag: str, form: str) -> list[str]:
    parts = text.split(":")
    if len(parts) != count:
        raise InputError(f"{flag} must look like {form}, got {text[:80]!r}")
    return parts


def _numbers(text: str, count: int, flag: str) -> Vector:
    values = [_number(part, flag) for part in text.split(",")]
    if len(values) != count:
        raise InputError(f"{flag}: expected {count} numbers with commas between them, got {text[:80]!r}")
    x, y, z = values
    return (x, y, z)


def _number(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{flag}: expected a number, got {text[:80]!r}") from None
    if not math.isfinite(value):
        raise InputError(f"{flag}: expected a finite number, got {text[:80]!r}")
    return value
