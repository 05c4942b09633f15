"""Files of weights of the embedded networks, and what is kept with them.

Weights are safetensors in half precision whose header says what they are: architecture, hash of the vocabulary, seed of
the data, commit, scores. Files are strangers': names and shapes are compared with the architecture before anything is
loaded, and pickles are never opened.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from generation.captions import VOCABULARY, vocabulary_hash
from generation.clip import Clip, ClipLayout
from generation.lgm import LgmLayout, LgmNetwork
from generation.networks import Layout, MultiViewUNet
from scene.errors import InputError
from scene.files import replacing
from scene.untrusted import looks_pickled, map_bytes, parse_json

PRIOR_FILE, GUIDE_FILE, SCORER_FILE = "prior.safetensors", "clip_guide.safetensors", "clip_scorer.safetensors"
LGM_FILE = "lgm.safetensors"
MAX_BYTES = 512 << 20
MAX_HEADER_BYTES = 4 << 20
MAX_NUMBER, MAX_LEVELS = 4096, 8  # of a layout; larger ones are no networks of ours
Kind = Literal["prior", "clip_guide", "clip_scorer", "lgm"]
AnyLayout = Layout | ClipLayout | LgmLayout
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class About:
    """What is kept with weights. metrics: scores by name; numbers only."""

    kind: Kind
    layout: AnyLayout
    data_seed: int
    commit: str
    metrics: Mapping[str, float]
    vocabulary: str = dataclasses.field(default_factory=vocabulary_hash)


def save_weights(path: Path, network: nn.Module, about: About) -> None:
    """Write a network's weights in half precision, with what they are, in one rename. Same weights, same bytes.

    The format's own library writes the description in an order of its own each time.
    """
    meta = {
        "maquette": about.kind,
        "architecture": json.dumps(dataclasses.asdict(about.layout)),
        "vocabulary": about.vocabulary,
        "data_seed": str(about.data_seed),
        "commit": about.commit,
        "metrics": json.dumps(dict(about.metrics), allow_nan=False),
    }
    header: dict[str, Any] = {"__metadata__": meta}
    data, offset = [], 0
    for name, tensor in network.state_dict().items():
        data.append(tensor.detach().half().cpu().contiguous().numpy().tobytes())
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data[-1])]}
        offset += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def load_prior_network(path: Path) -> tuple[MultiViewUNet, About]:
    """The denoiser of a prior's file, frozen. Raises InputError where the file does not hold exactly that."""
    network, about = _loaded(path, "prior", Layout)
    assert isinstance(network, MultiViewUNet)
    return network, about


def load_clip(path: Path, kind: Literal["clip_guide", "clip_scorer"]) -> tuple[Clip, About]:
    """A CLIP network of a file, frozen; the one that scores is never taken for the one that guides."""
    network, about = _loaded(path, kind, ClipLayout)
    assert isinstance(network, Clip)
    return network, about


def load_lgm(path: Path) -> tuple[LgmNetwork, About]:
    """LGM-tiny of a file, frozen."""
    network, about = _loaded(path, "lgm", LgmLayout)
    assert isinstance(network, LgmNetwork)
    return network, about


def network_of(layout: AnyLayout) -> nn.Module:
    """The network of a layout, with torch's own random numbers for weights."""
    if isinstance(layout, Layout):
        return MultiViewUNet(layout)
    return Clip(layout) if isinstance(layout, ClipLayout) else LgmNetwork(layout)


def _loaded(path: Path, kind: Kind, layout: type[AnyLayout]) -> tuple[nn.Module, About]:
    data, header, about = _opened(path, kind, layout)
    with torch.device("meta"):
        network = network_of(about.layout)
    return _filled(network, data, header, path), about


def _opened(path: Path, kind: Kind, layout: type[AnyLayout]) -> tuple[bytes, dict[str, Any], About]:
    """Bytes, tensors' entries and description of a file of weights."""
    data = bytes(map_bytes(path, MAX_BYTES)[:])
    if looks_pickled(data):
        raise InputError(f"{path} is a pickle, which could run any code and is never read; expected safetensors")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull")
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(len(data) - 8, MAX_HEADER_BYTES):
        raise InputError(f"{path} is cut short or no safetensors file ({len(data):,} bytes); fetch it again")
    header = parse_json(data[8 : 8 + length], path, unique=True)
    meta = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(meta, dict) or meta.get("maquette") not in get_args(Kind):
        raise InputError(f"{path} holds no weights of Maquette's own prior; expected what maquette train-prior wrote")
    if meta["maquette"] != kind:
        raise InputError(f"{path} holds the weights of a {meta['maquette']}; expected those of a {kind}")
    if meta.get("vocabulary") != vocabulary_hash():
        raise InputError(
            f"{path} was trained on another vocabulary ({meta.get('vocabulary')!s:.40}; this version has "
            f"{vocabulary_hash()}); train it again with maquette train-prior, or use the version that made it"
        )
    try:
        return data, header, _about(meta, kind, layout, path)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} does not describe its weights as this version does ({error!s:.80})") from error


def _about(meta: Mapping[str, Any], kind: Kind, layout: type[AnyLayout], path: Path) -> About:
    values = parse_json(meta["architecture"], path, finite=True, unique=True)
    fields = {field.name: type(field.default) for field in dataclasses.fields(layout)}
    if set(values) != set(fields):
        raise ValueError(f"architecture with {', '.join(sorted(set(values) ^ set(fields)))}")
    for name, value in values.items():
        each = value if isinstance(value, list) else [value]
        if fields[name] is not (tuple if isinstance(value, list) else int) or not 0 < len(each) <= MAX_LEVELS:
            raise ValueError(f"architecture with {name} {value!s:.40}")
        if any(type(n) not in (int, bool) or not 0 <= n <= MAX_NUMBER for n in each):
            raise ValueError(f"architecture with {name} {value!s:.40}")
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    built = layout(**arguments)
    _check_layout(built)
    scores = parse_json(meta["metrics"], path, finite=True)
    metrics = {str(name): float(value) for name, value in scores.items()}
    return About(kind, built, int(meta["data_seed"]), str(meta["commit"]), metrics)


def _check_layout(layout: AnyLayout) -> None:
    """Raise ValueError for numbers that no network can be made with."""
    if min(*layout.channels, layout.head, layout.size) < 1:
        raise ValueError("an architecture with a size of 0")
    if not isinstance(layout, LgmLayout) and (layout.words < len(VOCABULARY) or layout.text_layers > MAX_LEVELS):
        raise ValueError("an architecture with fewer words than there are, or too many layers of text")
    if isinstance(layout, Layout) and min(layout.context, layout.image) < 1:
        raise ValueError("an architecture with a size of 0")
    if not isinstance(layout, ClipLayout):
        coarsest = layout.patch << (len(layout.channels) - 1)
        if len(layout.attention) != len(layout.channels) or not layout.patch > 0 or layout.size % coarsest:
            raise ValueError("an architecture whose levels do not fit its size")
        if min(layout.views, layout.blocks) < 1 or layout.blocks > MAX_LEVELS:
            raise ValueError("an architecture with a size of 0, or too many blocks")


def _filled(network: N, data: bytes, header: Mapping[str, Any], path: Path) -> N:
    """The network, made on the meta device, with the file's tensors as float32; frozen."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: entry.get("shape") if isinstance(entry, dict) else None for name, entry in header.items()}
    for name in sorted(set(wanted) | set(found)):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{path}: {name[:80]} should be {wanted.get(name, 'absent')}, got {found.get(name, 'nothing')!s:.60}; "
                "the file does not hold the architecture that it names"
            )
    try:
        tensors = {name: tensor.float() for name, tensor in load(data).items()}
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error!s:.100}); fetch it again") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{path} is damaged: {name} holds values that are not finite; fetch it again")
    network.load_state_dict(tensors, assign=True)
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
