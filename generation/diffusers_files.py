"""Folders of diffusion models as diffusers saves them: found, judged and described before anything of them is loaded.

A folder is a stranger's. Only JSON, plain text and safetensors are read from it, sizes are checked before memory is
taken, no code from it runs, and nothing is fetched from the Hugging Face hub unless the caller allows it. Each refusal
is one InputError that says what was expected, what came and what to do.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scene.errors import InputError
from scene.untrusted import open_regular, parse_json, read_bytes, size_of

log = logging.getLogger(__name__)

Kind = Literal["stable-diffusion", "deepfloyd-if", "stable-diffusion-3", "mvdream"]

# By kind: component -> classes that may fill it. One in OPTIONAL may be absent.
_CLIP = {"tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "text_encoder": ("CLIPTextModel",)}
_LATENT = {"vae": ("AutoencoderKL",), "scheduler": ()}
_CLIP_2 = ("CLIPTextModelWithProjection",)
_T5 = {"tokenizer": ("T5Tokenizer", "T5TokenizerFast"), "text_encoder": ("T5EncoderModel",)}
PARTS: dict[Kind, dict[str, tuple[str, ...]]] = {
    "stable-diffusion": {"unet": ("UNet2DConditionModel",), **_CLIP, **_LATENT},
    "deepfloyd-if": {"unet": ("UNet2DConditionModel",), **_T5, "scheduler": ()},
    "stable-diffusion-3": {
        "transformer": ("SD3Transformer2DModel",),
        **_LATENT,
        "tokenizer": _CLIP["tokenizer"],
        "tokenizer_2": _CLIP["tokenizer"],
        "tokenizer_3": _T5["tokenizer"],
        "text_encoder": _CLIP_2,
        "text_encoder_2": _CLIP_2,
        "text_encoder_3": _T5["text_encoder"],
    },
    "mvdream": {
        "unet": ("UNet2DConditionModel", "MultiViewUNetModel"),
        "camera_proj": ("CameraMatrixEmbedding",),
        **_CLIP,
        **_LATENT,
    },
}
OPTIONAL = ("camera_proj", "text_encoder_3", "tokenizer_3")  # Stable Diffusion 3 also works without its T5
# Classes that Maquette has its own form of, so that their author's code is not needed.
_OURS = ("MultiViewUNetModel", "CameraMatrixEmbedding")
_LIBRARIES = ("diffusers", "transformers")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack")
_STEMS = ("diffusion_pytorch_model", "model")
_POINTER = b"version https://git-lfs"
_MAX_CONFIG_BYTES = 4 << 20
_MAX_HEADER_BYTES = 64 << 20
_MAX_LAYERS = 512  # of one kind in a config.json; the largest text encoders have 80
CAMERA_NUMBERS = 16  # of MVDream: a 4x4 matrix

_EXPECTED = "expected a folder as diffusers saves it: model_index.json, and a folder for each of its components"
# Bytes of U-Net, VAE and text encoder as their repositories hold them (float32; float16), counted on the architectures.
_KNOWN_BYTES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 4_265_000_000,
    "ashawkey/mvdream-sd2.1-diffusers": 2_583_000_000,
}


@dataclass(frozen=True)
class Component:
    """One part of a pipeline. files: its safetensors. variant: what their names carry, such as "fp16"."""

    name: str
    class_name: str
    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...] = ()
    variant: str | None = None


@dataclass(frozen=True)
class ModelFolder:
    """A folder that can be loaded. revision, licence: as the folder states them. size: bytes of its weights."""

    name: str
    path: Path
    kind: Kind
    revision: str
    licence: str
    size: int
    parts: dict[str, Component]


def find_model(name: str, *, allow_download: bool = False, half: bool = False) -> ModelFolder:
    """The model of a local folder or hub id ("owner/name", or "owner/name@revision"), checked but not loaded.

    half: of a hub's files, those of half precision where there are any.  Raises InputError when it is missing, unsafe,
    damaged or of a kind that Maquette does not know; and for a hub id that is not in the local cache, unless
    allow_download.
    """
    if not name.strip() or "\0" in name or len(name) > 4096:
        raise InputError("a prior is named by a model's folder or hub id (owner/name); got an empty or unusable name")
    folder = Path(name).expanduser()
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", name)
    if folder.is_file():
        pickled = " (and a pickle, which could run any code)" if folder.suffix in _PICKLES else ""
        raise InputError(f"{folder} is a single file{pickled}; {_EXPECTED}")
    if not folder.is_dir():
        if hub is None:
            raise InputError(f"there is no folder {folder}, and it is no hub id (owner/name) either; {_EXPECTED}")
        folder = _from_hub(hub.group(1), hub.group(2), allow_download, half)
    return check_folder(folder, name)


def check_folder(path: Path, name: str) -> ModelFolder:
    """The model in a folder. Raises InputError as `find_model`."""
    if not (path / "model_index.json").is_file():
        loose = sorted(file.name for file in path.iterdir() if file.suffix in (*_PICKLES, ".safetensors"))
        raise InputError(f"{path} has no model_index.json{f', only {loose[0]}' if loose else ''}; {_EXPECTED}")
    stated = read_config(path / "model_index.json")
    index = {
        key: (str(value[0]), str(value[1]))
        for key, value in stated.items()
        if isinstance(value, list) and len(value) == 2 and None not in value
    }
    kind = _kind(index, path, str(stated.get("_class_name")))
    parts = {}
    for part, classes in PARTS[kind].items():
        if part not in index:
            if part not in OPTIONAL:
                raise InputError(f"{path}: model_index.json names no '{part}', which a {kind} model needs")
            continue
        parts[part] = _component(path / part, part, *index[part], classes)
    size = sum(file.stat().st_size for part in parts.values() for file in part.files)
    return ModelFolder(name, path, kind, _revision(path), _licence(path), size, parts)


def read_config(path: Path) -> dict[str, Any]:
    """The object of a small JSON file. Raises InputError when it is not one, or asks for code or code-like options."""
    data = read_bytes(path, _MAX_CONFIG_BYTES)
    _refuse_pointer(data, path)
    config = parse_json(data, path, finite=True)
    if not isinstance(config, dict):
        raise InputError(f"{path} should hold a JSON object, but holds {type(config).__name__}")
    if "auto_map" in config:
        raise InputError(f"{path} asks to run its author's code (auto_map); Maquette runs no code of model folders")
    if "quantization_config" in config:
        raise InputError(f"{path} describes quantised weights; expected float32, float16 or bfloat16")
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        deep = any(isinstance(count, int) and count > _MAX_LAYERS for count in counts)
        if deep and re.search(r"layers|depth|num_res_blocks", key):
            raise InputError(f"{path}: {key} is {str(value)[:60]}; at most {_MAX_LAYERS} are built")
    return config


def check_safetensors(path: Path) -> None:
    """Raises InputError when a safetensors file is not all there, or its header describes other bytes than it has."""
    with open_regular(path) as file:
        size = size_of(file)
        start = file.read(64)
        _refuse_pointer(start, path)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path} is cut short or no safetensors file ({size:,} bytes); fetch it again")
        file.seek(8)
        header = parse_json(file.read(length), path, unique=True)
    end = 0
    try:
        for tensor in (value for key, value in header.items() if key != "__metadata__"):
            first, last = tensor["data_offsets"]
            if not 0 <= first <= last or any(not 0 <= n < 1 << 40 for n in tensor["shape"]):
                raise InputError(f"{path} is damaged: a tensor of shape {str(tensor['shape'])[:60]}; fetch it again")
            if math.prod(tensor["shape"]) and first == last:
                raise InputError(f"{path} is damaged: a tensor without its numbers; fetch it again")
            end = max(end, last)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no safetensors file: its header cannot be read; fetch it again") from error
    if end != size - 8 - length:
        there = size - 8 - length
        raise InputError(f"{path} is cut short or damaged: {end:,} bytes of weights announced, {there:,} there")


def _kind(index: Mapping[str, tuple[str, str]], path: Path, pipeline: str) -> Kind:
    network = index.get("transformer", index.get("unet", ("", "")))[1]
    encoder = index.get("text_encoder", ("", ""))[1]
    if network == "SD3Transformer2DModel":
        return "stable-diffusion-3"
    if network == "MultiViewUNetModel" or "camera_proj" in index:
        return "mvdream"
    if network == "UNet2DConditionModel" and encoder == "T5EncoderModel" and "vae" not in index:
        return "deepfloyd-if"
    if network == "UNet2DConditionModel" and encoder == "CLIPTextModel" and "text_encoder_2" not in index:
        config = read_config(path / "unet" / "config.json")
        cameras = config.get("projection_class_embeddings_input_dim") == CAMERA_NUMBERS
        return "mvdream" if cameras and config.get("class_embed_type") == "projection" else "stable-diffusion"
    for part, (library, class_name) in index.items():
        if library not in _LIBRARIES and part in ("unet", "transformer", "vae", "text_encoder", "scheduler"):
            raise _foreign(path / part, library, class_name)
    raise InputError(
        f"{path} is a {pipeline[:80]} with network {network[:80] or 'none'} and text encoder {encoder[:80] or 'none'}; "
        "known are Stable Diffusion 1 and 2, DeepFloyd-IF stage I, Stable Diffusion 3 and MVDream"
    )


def _foreign(folder: Path, library: str, class_name: str) -> InputError:
    return InputError(
        f"{folder} needs class {class_name[:80]} from its author's code '{library[:80]}'; Maquette runs no code of "
        "model folders"
    )


def _component(folder: Path, part: str, library: str, class_name: str, classes: tuple[str, ...]) -> Component:
    """A part of a pipeline, its files checked."""
    if class_name not in _OURS and library not in _LIBRARIES:
        raise _foreign(folder, library, class_name)
    if classes and class_name not in classes:
        raise InputError(f"{folder} is of class {class_name[:80]}; expected {' or '.join(classes)}")
    if not folder.is_dir():
        raise InputError(f"{folder} is missing, though model_index.json names it; fetch the whole model again")
    if part.startswith("tokenizer"):
        names = {file.name for file in folder.iterdir() if file.is_file()}
        for name in names:
            with open_regular(folder / name) as file:
                _refuse_pointer(file.read(64), folder / name)
        words = ("vocab.json", "merges.txt") if class_name.startswith("CLIP") else ("spiece.model",)
        if "tokenizer.json" not in names and not names.issuperset(words):
            raise InputError(f"{folder} holds no words; expected tokenizer.json or {' and '.join(words)}")
        if (folder / "tokenizer_config.json").is_file():
            read_config(folder / "tokenizer_config.json")
        return Component(part, class_name, folder, {})
    if part == "scheduler":
        return Component(part, class_name, folder, read_config(folder / "scheduler_config.json"))
    config = read_config(folder / "config.json")
    files, variant = _weights(folder)
    for file in files:
        check_safetensors(file)
    return Component(part, class_name, folder, config, files, variant)


def _weights(folder: Path) -> tuple[tuple[Path, ...], str | None]:
    """Safetensors of a component, and the variant of their names; half precision only where there is nothing else."""
    for variant in (None, "fp16"):
        for stem in _STEMS:
            mark = f".{variant}" if variant else ""
            whole, shards = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
            if whole.is_file():
                return (whole,), variant
            if shards.is_file():
                return tuple(_shards(shards)), variant
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder} holds its weights only as pickles ({pickles[0]}), which could run any code; get the model's "
            "safetensors files, or let its author save it with safe_serialization=True"
        )
    raise InputError(f"{folder} holds no weights; expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors")


def _shards(index: Path) -> Iterator[Path]:
    """The files that an index names."""
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} names no files of weights; fetch it again")
    for name in sorted({str(name) for name in names.values()}):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name) or not (index.parent / name).is_file():
            raise InputError(f"{index} names {name[:80]!r}, which is no safetensors file beside it; fetch it again")
        yield index.parent / name


def _refuse_pointer(data: bytes, path: Path) -> None:
    if data.startswith(_POINTER):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in the model's folder")


def _revision(path: Path) -> str:
    """The commit that a folder is of: a snapshot of the hub's cache, `hf download --local-dir`, or a git clone."""
    head = path / ".git" / "HEAD"
    if path.parent.name == "snapshots":
        return path.name
    for file in (path / ".cache" / "huggingface" / "download" / "model_index.json.metadata", head):
        if file.is_file():
            words = read_bytes(file, 1 << 16).decode("utf-8", "replace").split()
            branch = words[-1] if words and file == head and words[0] == "ref:" else ""
            if re.fullmatch(r"refs/heads/[\w-][\w.-]*", branch) and (path / ".git" / branch).is_file():
                words = read_bytes(path / ".git" / branch, 1 << 16).decode("utf-8", "replace").split()
            if words and re.fullmatch(r"[0-9a-f]{40}", words[0]):
                return words[0]
    return "not stated (local folder)"


def _licence(path: Path) -> str:
    """What the model card states, else the first line of a licence file."""
    card = path / "README.md"
    if card.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", read_bytes(card, 8 << 20).decode("utf-8", "replace"), re.DOTALL)
        stated = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", front.group(1) if front else "", re.M))
        if stated:
            named = stated.get("license_name") if stated.get("license", "other") == "other" else stated["license"]
            return (named or "other").strip("'\"")[:80]
    for file in sorted(path.glob("LICEN[SC]E*")):
        lines = read_bytes(file, 8 << 20).decode("utf-8", "replace").split("\n") if file.is_file() else []
        for line in filter(None, map(str.strip, lines)):
            return line[:80]
    return "not stated in its folder"


# The hub.


def wanted_files(files: Mapping[str, int], half: bool) -> dict[str, int]:
    """Of a hub repository's files, with their bytes, those that loading needs: no pickles, one variant, no checkers.

    Raises InputError when a component has weights, but none as safetensors.
    """
    wanted = {name: size for name, size in files.items() if re.fullmatch(r"model_index\.json|README\.md|LICEN.*", name)}
    for part in sorted({part for parts in PARTS.values() for part in parts}):
        inside = {name: size for name, size in files.items() if re.fullmatch(rf"{part}/[^/]+", name)}
        weights = [name for name in inside if name.endswith(".safetensors") or ".safetensors.index" in name]
        halves = [name for name in weights if ".fp16" in name]
        plain = [
            name for name in weights if re.fullmatch(r"\w+(-\d+-of-\d+)?\.safetensors(\.index\.json)?", _leaf(name))
        ]
        if not weights and any(Path(name).suffix in _PICKLES for name in inside):
            raise InputError(f"the model offers {part} only as pickles, which could run any code; choose another")
        chosen = halves if halves and (half or not plain) else plain
        small = [name for name in inside if re.search(r"(?<!\.index)\.json$|\.txt$|spiece\.model$", name)]
        wanted |= {name: inside[name] for name in (*chosen, *small) if ".index." not in name or name in chosen}
    return wanted


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _from_hub(model: str, revision: str | None, allow_download: bool, half: bool) -> Path:
    """The folder of a hub id in the local cache, fetched first if that is allowed."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not allow_download:
        try:
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            size = f" ({_KNOWN_BYTES[model] / 1e9:.1f} GB)" if model in _KNOWN_BYTES else ""
            raise InputError(
                f"'{model}' is neither a folder here nor in the local cache of the Hugging Face hub, and nothing is "
                f"fetched unasked; add --allow-download (in Python allow_download=True) to fetch it{size}"
            ) from error
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        wanted = wanted_files({file.rfilename: file.size or 0 for file in info.siblings or []}, half)
        card = info.card_data.get("license") if info.card_data else None
        gigabytes = sum(wanted.values()) / 1e9
        log.info("fetching %s at %s: %.2f GB, licence %s", model, info.sha, gigabytes, card or "not stated")
        return Path(snapshot_download(model, revision=info.sha, allow_patterns=list(wanted)))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(
            f"'{model}' could not be fetched from the hub: {reason}; check the name and the network, and for a gated "
            f"model accept its licence at https://huggingface.co/{model} and run `hf auth login`"
        ) from error
