"""Tensors and their JSON state in one file, so that one rename changes both."""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene.errors import InputError
from scene.files import replacing
from scene.untrusted import MAX_FILE_BYTES, looks_pickled, map_bytes, parse_json

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
_DTYPES = {name: dtype for dtype, name in _TENSOR_TYPES.items()}
_MAX_HEADER_BYTES = 100 << 20  # as the format's own library
_AGAIN = "start again in a new --out"
FORMAT = 1


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], generation: int) -> None:
    """Replace `path` by a safetensors file with these tensors, and the state in its header.

    Written straight from the tensors' memory: the library's own writer copies every tensor first and hides a full disk
    inside its own error type. Raises ValueError for a state that JSON cannot hold (NaN, infinities), OSError.
    """
    stored = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    checks = {name: zlib.crc32(_bytes_of(tensor)) for name, tensor in stored.items()}
    state_text = json.dumps(state, allow_nan=False)
    meta = {"format": str(FORMAT), "generation": str(generation), "crc32": json.dumps(checks), "state": state_text}
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
    data = map_bytes(path, MAX_FILE_BYTES)
    try:
        tensors, checks, state, generation = _parsed(data, path)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, struct.error) as error:
        if looks_pickled(data):
            raise InputError(
                f"{path} is a pickle (.pt), which could run any code and is never read; {_AGAIN}"
            ) from error
        raise InputError(f"{path} is no complete checkpoint ({error}); {_AGAIN}") from error
    if not isinstance(state, dict) or not isinstance(checks, dict) or set(checks) != set(tensors):
        raise InputError(f"{path} was not written by a run of Maquette; {_AGAIN}")
    for name, tensor in tensors.items():
        if zlib.crc32(_bytes_of(tensor)) != checks[name]:
            raise InputError(f"{path} is damaged: '{name}' differs from what was saved; {_AGAIN}")
    return tensors, state, generation


def _parsed(data: mmap.mmap | bytes, path: Path) -> tuple[dict[str, Tensor], Any, Any, int]:
    """Tensors, their checksums, state and generation. Raises what Python does for a header of another shape."""
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"its header of {length} bytes is not all there")
    header = parse_json(data[8 : 8 + length], path, unique=True)
    meta = header.pop("__metadata__")
    version, generation = int(meta.get("format", 1)), int(meta["generation"])
    if version > FORMAT:
        raise InputError(f"{path} was written by a newer version of Maquette (format {version}); update this one")
    tensors = {name: _tensor(entry, data, 8 + length) for name, entry in header.items()}
    return tensors, parse_json(meta["crc32"], path), parse_json(meta["state"], path), generation


def _tensor(entry: Any, data: mmap.mmap | bytes, start: int) -> Tensor:
    """A tensor from the bytes after the header. Raises ValueError when it reaches beyond them."""
    dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    numbers = (*shape, first, last)
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers) or len(shape) > 8:
        raise ValueError(f"a tensor of shape {str(shape)[:60]} from {first} to {last}")
    if last - first != math.prod(shape) * dtype.itemsize or start + last > len(data):
        raise ValueError(f"a tensor reaches to byte {last} of {len(data) - start}")
    if first == last:
        return torch.empty(shape, dtype=dtype)
    content = np.frombuffer(data, np.uint8, last - first, start + first).copy()  # aligned, and free of the file
    return torch.from_numpy(content).view(dtype).reshape(shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
