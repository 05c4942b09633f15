"""Tensors and their JSON state in one file, so that one rename changes both."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene.errors import InputError
from scene.files import replacing

_TENSOR_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], generation: int) -> None:
    """Replace `path` by a safetensors file with these tensors, and the state in its header.

    Written straight from the tensors' memory: the library's own writer copies every tensor first and hides a full disk
    inside its own error type. Raises ValueError for a state that JSON cannot hold (NaN, infinities), OSError.
    """
    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    checks = {name: zlib.crc32(_bytes_of(tensor)) for name, tensor in stored.items()}
    state_text = json.dumps(state, allow_nan=False)
    meta = {"generation": str(generation), "crc32": json.dumps(checks), "state": state_text}
    header: dict[str, Any] = {"__metadata__": meta}
    offset = 0
    for name, tensor in stored.items():
        if tensor.dtype not in _TENSOR_TYPES:
            raise ValueError(f"checkpoint tensor '{name}' has type {tensor.dtype}, which safetensors cannot store")
        end = offset + tensor.numel() * tensor.element_size()
        kind = _TENSOR_TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in stored.values():
            file.write(_bytes_of(tensor))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Tensors, state and generation of a checkpoint. Raises InputError when it is damaged or not one of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            meta = file.metadata() or {}
            checks, state = json.loads(meta["crc32"]), json.loads(meta["state"])
            generation = int(meta["generation"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no complete checkpoint ({error}); start again in a new --out") from error
    if not isinstance(state, dict) or not isinstance(checks, dict) or set(checks) != set(tensors):
        raise InputError(f"{path} was not written by a run of Maquette; start again in a new --out")
    for name, tensor in tensors.items():
        if zlib.crc32(_bytes_of(tensor)) != checks[name]:
            raise InputError(f"{path} is damaged: '{name}' differs from what was saved; start again in a new --out")
    return tensors, state, generation


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
