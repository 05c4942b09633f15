"""The data set of the trained prior: procedural objects, their captions and their pictures, made from a seed.

It comes in parts of a few hundred objects, each a file that depends on nothing but the seed and its number; so making
it can stop anywhere, and parts can be made in any order. An object has two sets of views at equal steps of azimuth: one
to learn, one to take a reference picture from. No training object settles a held-out combination of colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from generation.captions import PAD, PLAIN, Caption, sample_caption, tokenize
from generation.networks import camera_numbers
from generation.object_render import render_objects
from generation.objects import make_object
from generation.shapes import ObjectModel
from generation.views import VIEW_WORDS, azimuth_of, elevation_of, sample_orthogonal, view_words
from scene.cameras import Camera
from scene.checkpoints import read_checkpoint, write_checkpoint
from scene.errors import InputError

SETS, VIEWS = 2, 4
PART = 256  # objects of one file
TENSORS = ("rgba", "depth", "cameras", "view", "words")
RAYS = 2  # along a pixel's side, so that edges are as soft as a rendered field's
HELD_OUT_PART = 1 << 19  # numbers of parts from here on hold held-out combinations


@dataclass(frozen=True)
class PriorData:
    """N objects; on any device.

    rgba: [N, SETS, VIEWS, 4, h, w] uint8, straight colours.  depth: [N, SETS, VIEWS, h, w] float16, z in the camera of
    what is hit, 0 where nothing is.  cameras: [N, SETS, VIEWS, 16] by `camera_numbers`.
    view: [N, SETS, VIEWS] int64, index into VIEW_WORDS.  words: [N, SETS, TOKENS] int64.  meanings: what the captions
    say, without prefix and synonyms; ids [N] int64 number them, kinds name the first thing of each.
    """

    rgba: Tensor
    depth: Tensor
    cameras: Tensor
    view: Tensor
    words: Tensor
    texts: tuple[str, ...]
    meanings: tuple[str, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rgba)

    @property
    def ids(self) -> Tensor:
        """[N] int64: the same for captions of one meaning."""
        known = {meaning: i for i, meaning in enumerate(sorted(set(self.meanings)))}
        return torch.tensor([known[meaning] for meaning in self.meanings], device=self.rgba.device)

    def to(self, device: torch.device) -> PriorData:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def select(self, rows: Sequence[int]) -> PriorData:
        """Some of the objects."""
        index = torch.tensor(list(rows), device=self.rgba.device)
        texts, meanings, kinds = (tuple(names[i] for i in rows) for names in (self.texts, self.meanings, self.kinds))
        tensors = {name: getattr(self, name)[index] for name in TENSORS}
        return replace(self, **tensors, texts=texts, meanings=meanings, kinds=kinds)


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two disjoint halves of `count` objects: for the network that guides and for the one that scores."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2], order[count // 2 :]


def make_part(number: int, size: int, seed: int, count: int = PART, device: torch.device | str = "cpu") -> PriorData:
    """Part `number` of the data set of `seed`, at `size` pixels; from HELD_OUT_PART on of held-out combinations.

    device: where pictures are made; all that comes back is on the CPU.
    """
    drawn = draw_part(number, size, seed, count)
    captions, cameras = drawn.captions, drawn.cameras
    pictures = render_objects([model.to(device) for model in drawn.objects], cameras, samples=RAYS)
    rgba = torch.cat([pictures.rgb, pictures.alpha], dim=2).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    shape = (count, SETS, VIEWS)
    return PriorData(
        rgba.unflatten(1, (SETS, VIEWS)),
        pictures.depth[:, :, 0].half().cpu().unflatten(1, (SETS, VIEWS)),
        torch.stack([camera_numbers(camera) for each in cameras for camera in each]).view(*shape, -1),
        torch.tensor([_view(camera) for each in cameras for camera in each]).view(shape),
        torch.tensor([tokenize(text) for text in drawn.texts]).view(count, SETS, -1),
        drawn.texts[::SETS],
        tuple(replace(caption, prefix=None).text() for caption in captions),
        tuple(caption.phrase.noun for caption in captions),
    )


@dataclass(frozen=True)
class DrawnPart:
    """What the pictures of a part are made of: captions, SETS texts of each, objects, SETS x VIEWS cameras of each."""

    captions: tuple[Caption, ...]
    texts: tuple[str, ...]
    objects: tuple[ObjectModel, ...]
    cameras: tuple[tuple[Camera, ...], ...]


def draw_part(number: int, size: int, seed: int, count: int) -> DrawnPart:
    """The first `count` objects of part `number`, on the CPU, the same whenever they are drawn."""
    generator = torch.Generator().manual_seed((seed << 20) + number)
    captions: list[Caption] = []
    texts: list[str] = []
    objects: list[ObjectModel] = []
    cameras: list[tuple[Camera, ...]] = []
    for _ in range(count):
        if number >= HELD_OUT_PART:
            caption = sample_caption(generator, True, PLAIN)
        else:
            caption = sample_caption(generator, False)
        captions.append(caption)
        texts += [caption.text(generator) for _ in range(SETS)]
        objects.append(make_object(caption, generator))
        sets = [sample_orthogonal(generator, size, count=VIEWS) for _ in range(SETS)]
        cameras.append(tuple(camera for each in sets for camera in each))
    return DrawnPart(tuple(captions), tuple(texts), tuple(objects), tuple(cameras))


def _view(camera: Camera) -> int:
    return VIEW_WORDS.index(view_words(azimuth_of(camera), elevation_of(camera)))


def view_tokens(words: Tensor, view: Tensor) -> Tensor:
    """words [N, TOKENS] with ", front view" and the like at their ends, where there is room. view: [N] int64."""
    added = torch.tensor([tokenize(f"{word} view", 2) for word in VIEW_WORDS], device=words.device)[view]  # [N, 2]
    length = (words != PAD).sum(1, keepdim=True)
    at = (length + torch.arange(2, device=words.device)).clamp(max=words.shape[1] - 1)
    return torch.where(length + 2 <= words.shape[1], words.scatter(1, at, added), words)


def part_file(folder: Path, number: int) -> Path:
    """Where part `number` is kept."""
    return folder / f"part-{number:06d}.safetensors"


def parts_to_make(folder: Path, objects: int, held_out: int) -> Iterator[int]:
    """Numbers of the parts that are not there yet; held-out ones first, they are few."""
    wanted = [*range(HELD_OUT_PART, HELD_OUT_PART + -(-held_out // PART)), *range(-(-objects // PART))]
    return (number for number in wanted if not part_file(folder, number).is_file())


def objects_of(number: int, objects: int, held_out: int) -> int:
    """How many objects part `number` has of a data set of so many; a shorter part has the first of a longer one."""
    total, index = (held_out, number - HELD_OUT_PART) if number >= HELD_OUT_PART else (objects, number)
    return min(PART, total - index * PART)


def write_part(folder: Path, number: int, data: PriorData, size: int, seed: int) -> None:
    """Keep a part."""
    tensors = {name: getattr(data, name) for name in TENSORS}
    state = {"size": size, "seed": seed, "texts": data.texts, "meanings": data.meanings, "kinds": data.kinds}
    folder.mkdir(exist_ok=True)
    write_checkpoint(part_file(folder, number), tensors, state, 0)


def read_parts(folder: Path, count: int, size: int, seed: int, *, held_out: bool) -> PriorData:
    """The first `count` objects of the parts that were made. Raises InputError where they are another data set's."""
    first = HELD_OUT_PART if held_out else 0
    parts: list[PriorData] = []
    for number in range(first, first + -(-count // PART)):
        path = part_file(folder, number)
        if not path.is_file():
            break
        tensors, state, _ = read_checkpoint(path)
        if state.get("size") != size or state.get("seed") != seed:
            raise InputError(f"{path} is of another data set (size {state.get('size')}, seed {state.get('seed')})")
        texts, meanings, kinds = (tuple(state[name]) for name in ("texts", "meanings", "kinds"))
        if set(tensors) != set(TENSORS):
            raise InputError(f"{path} was made by another version; start again in a new --out")
        parts.append(PriorData(**tensors, texts=texts, meanings=meanings, kinds=kinds))
    if not parts:
        raise InputError(f"{folder} holds no part of the data set; make it first")
    data = _joined(parts)
    return data if len(data) <= count else data.select(range(count))


def _joined(parts: Sequence[PriorData]) -> PriorData:
    return PriorData(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS},
        texts=tuple(text for part in parts for text in part.texts),
        meanings=tuple(meaning for part in parts for meaning in part.meanings),
        kinds=tuple(kind for part in parts for kind in part.kinds),
    )


def over_background(rgba: Tensor, background: Tensor) -> Tensor:
    """Colours of -1..1, [..., 3, h, w], of uint8 pictures [..., 4, h, w] over `background` in 0..1."""
    values = rgba.float() / 255
    rgb, alpha = values.split([3, 1], dim=-3)
    return 2 * (rgb * alpha + (1 - alpha) * background) - 1
