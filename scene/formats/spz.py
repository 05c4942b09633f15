"""SPZ of Niantic: splats in fixed-point bytes, packed by gzip (versions 1 to 3) or zstd (version 4, read).

A header of 16 bytes (32 in version 4), then each attribute for all splats in turn: positions (3 x 24 bits fixed point),
alphas, colours, scales (1 byte each), rotations (3 bytes xyz; from version 3 the three smallest components in 32 bits),
spherical harmonics (1 byte each, colour channels innermost). Its axes are RUB: +X right, +Y up, +Z back.
"""

from __future__ import annotations

import itertools
import logging
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scene import untrusted
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats import quantised
from scene.gaussians import Gaussians

log = logging.getLogger(__name__)

MAGIC = 0x5053474E  # "NGSP"
HEADER = struct.Struct("<IIIBBBB")  # magic, version, splats, SH degree, fraction bits, flags, streams (version 4)
HAS_EXTENSIONS = 2
COEFFICIENTS = (0, 3, 8, 15, 24)  # beyond the first, by degree; degree 4 is read and cut off
COLOR_SCALE = 0.15  # wider than sh.C0: base colours may leave 0 to 1 where the higher bands bring them back
MOST_FRACTION_BITS = 24
COORDINATES = (
    "",
    "LDB",
    "RDB",
    "LUB",
    "RUB",
    "LDF",
    "RDF",
    "LUF",
    "RUF",
    "LFD",
    "RFD",
    "LFU",
    "RFU",
    "LBD",
    "RBD",
    "LBU",
    "RBU",
)
COORDINATE_EXTENSION = 0xADBE0003
TOWARDS = {"R": (1, 0, 0), "L": (-1, 0, 0), "U": (0, 1, 0), "D": (0, -1, 0), "B": (0, 0, 1), "F": (0, 0, -1)}


def write_spz(path: Path, gaussians: Gaussians) -> None:
    """Write version 3, which all readers take. Splats keep their order.

    SH coefficients beyond -1 to 1, base colours beyond +-3.3 and logs of scales beyond -10 to 5.9 are cut to that.
    Raises InputError when a position does not fit 24 bits.
    """
    g, count = gaussians, len(gaussians)
    bits = fraction_bits(g)
    fixed = np.round(g.means.double().numpy() * (1 << bits)).astype(np.int32)
    rest = g.sh_rest.numpy().reshape(count, -1)  # coefficients outside, channels inside, as in the file
    body = [
        fixed.astype("<i4").view(np.uint8).reshape(count, 3, 4)[:, :, :3],
        quantised.to_bytes(255 * quantised.opacities(g)),
        quantised.to_bytes(255 * (COLOR_SCALE * g.sh_dc.double().numpy() + 0.5)),
        quantised.to_bytes(16 * (g.log_scales.double().numpy() + 10)),
        _pack_quats(quantised.unit_quats(g)),
        quantised.to_bytes(128 * rest.astype(np.float64) + 128),
    ]
    cut = float((np.abs(rest) > 1).mean()) if rest.size else 0.0
    if cut > 0.001:
        log.warning("%s: %.1f %% of the SH coefficients lie beyond -1 to 1 and were cut", path.name, 100 * cut)
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    with write_errors(path, "write the splats"), replacing(path) as file:
        file.write(packer.compress(HEADER.pack(MAGIC, 3, count, g.sh_degree, bits, 0, 0)))
        for block in body:
            file.write(packer.compress(np.ascontiguousarray(block).data))
        file.write(packer.flush())


def fraction_bits(gaussians: Gaussians) -> int:
    """Bits after the point: a step is at most 1/8 of the size of a small splat, where 24 bits reach that far.

    At least Niantic's 12 (a quarter of a millimetre, were the unit a metre), fewer only for scenes beyond +-2048.
    """
    if not len(gaussians):
        return 12
    far = float(gaussians.means.abs().max())
    fits = math.floor(math.log2((2**23 - 1) / max(far, 1e-6)))
    if not math.isfinite(far) or fits < 0:
        raise InputError(f"SPZ holds positions up to 8,388,607, got {far:.4g}; scale the scene down or crop it")
    small = float(gaussians.log_scales.double().mean(dim=1).quantile(0.1)) if len(gaussians) < 1 << 24 else -7.0
    return min(fits, MOST_FRACTION_BITS, max(12, math.ceil((math.log(8) - small) / math.log(2))))


def _pack_quats(quats: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[N, 4] bytes: 2 bits for the largest component (xyzw), then sign and 9 bits for each other, first on top."""
    largest, three = quantised.smallest_three(quats[:, [1, 2, 3, 0]])
    words = largest.astype(np.uint32)
    for i in range(3):
        size = np.minimum(np.round(511 * math.sqrt(2) * np.abs(three[:, i])), 511).astype(np.uint32)
        words = words << 10 | (three[:, i] < 0).astype(np.uint32) << 9 | size
    return words.astype("<u4").view(np.uint8).reshape(-1, 4)


def read_spz(path: Path) -> Gaussians:
    """Read versions 1 to 4 in RUB axes; version 4 needs the package zstandard. Degree 4 is cut to 3.

    Raises InputError for other versions, sizes that do not fit the header's counts, and damaged data.
    """
    data = untrusted.read_bytes(path)
    if data[:4] == struct.pack("<I", MAGIC):
        version, degree, bits, blocks, rub_from_file = _read_streams(data, path)
    else:
        version, degree, bits, blocks = _read_gzip(data, path)
        rub_from_file = None
    positions, alphas, colours, scales, rotations, rest = blocks
    count = len(alphas)
    if version == 1:
        means = positions.view("<f2").reshape(count, 3).astype(np.float32)
    else:
        fixed = np.zeros((count, 3, 4), np.uint8)
        fixed[:, :, 1:] = positions.reshape(count, 3, 3)  # in the upper bytes, so that the shift down brings the sign
        means = (fixed.view("<i4")[:, :, 0] >> 8) / float(1 << bits)
    if degree > 3:
        log.warning("%s has spherical harmonics of degree %d; those beyond 3 are left out", path.name, degree)
    coefficients = COEFFICIENTS[min(degree, 3)]
    gaussians = quantised.gaussians_from(
        str(path),
        means=means,
        quats=_unpack_xyz(rotations.reshape(count, 3)) if version < 3 else _unpack_quats(rotations),
        log_scales=scales.reshape(count, 3) / 16.0 - 10,
        opacity_logits=quantised.logits_from_bytes(alphas),
        sh_dc=(colours.reshape(count, 3) / 255.0 - 0.5) / COLOR_SCALE,
        sh_rest=rest.reshape(count, COEFFICIENTS[degree], 3)[:, :coefficients] / np.float32(128) - np.float32(1),
    )
    return gaussians if rub_from_file is None else gaussians.turned(rub_from_file)


def _unpack_xyz(xyz: NDArray[np.uint8]) -> NDArray[np.float64]:
    vector = xyz / 127.5 - 1
    return np.column_stack([np.sqrt(np.maximum(0, 1 - (vector**2).sum(axis=1))), vector])


def _unpack_quats(rotations: NDArray[np.uint8]) -> NDArray[np.float32]:
    words = rotations.view("<u4")
    fields = np.stack([words >> shift & 1023 for shift in (20, 10, 0)], axis=1)
    three = (fields & 511) / (511 * math.sqrt(2)) * np.where(fields & 512, -1, 1)
    return quantised.from_smallest_three(words >> 30, three)[:, [3, 0, 1, 2]]


def _sizes(head: tuple[int, ...], file_bytes: int, path: Path) -> list[int]:
    """Bytes of each attribute that a header asks for. Raises InputError for headers that cannot be."""
    magic, version, count, degree, bits, _, _ = head
    if magic != MAGIC:
        raise InputError(f"{path} is not an SPZ file: it does not begin with NGSP")
    if not 1 <= version <= 4:
        raise InputError(f"{path} is SPZ version {version}; versions 1 to 4 are read, save it as one of them")
    if degree >= len(COEFFICIENTS) or bits > MOST_FRACTION_BITS:
        raise InputError(f"{path} announces SH degree {degree} and {bits} fraction bits; it is damaged")
    quantised.check_count(count, file_bytes, str(path))
    rows = (6 if version == 1 else 9, 1, 3, 3, 3 if version < 3 else 4, 3 * COEFFICIENTS[degree])
    return [count * row for row in rows]


def _read_gzip(data: bytes, path: Path) -> tuple[int, int, int, list[NDArray[np.uint8]]]:
    """Version, degree, fraction bits and attributes of versions 1 to 3."""
    try:
        start = zlib.decompressobj(31).decompress(data, HEADER.size)
    except zlib.error as error:
        raise InputError(f"{path} is not an SPZ file: neither gzip nor NGSP ({error})") from error
    if len(start) < HEADER.size:
        raise InputError(f"{path} is cut short: it has no whole SPZ header")
    head = HEADER.unpack(start)
    sizes = _sizes(head, len(data), path)
    if head[1] == 4:
        raise InputError(f"{path} says version 4 but is packed as version 3; it is damaged")
    whole = untrusted.inflate(data, HEADER.size + sum(sizes), str(path))
    if len(whole) != HEADER.size + sum(sizes):
        raise InputError(
            f"{path} unpacks to {len(whole):,} bytes, its header asks for {HEADER.size + sum(sizes):,}; it is cut short"
        )
    ends = np.cumsum([HEADER.size, *sizes])
    body = np.frombuffer(whole, np.uint8)
    return head[1], head[3], head[4], [body[a:b] for a, b in itertools.pairwise(ends)]


def _read_streams(data: bytes, path: Path) -> tuple[int, int, int, list[NDArray[np.uint8]], torch.Tensor | None]:
    """The same of version 4, and the turn to RUB where an extension says that the data stand otherwise."""
    if len(data) < 32:
        raise InputError(f"{path} is cut short: it has no whole SPZ header")
    head = HEADER.unpack(data[: HEADER.size])
    sizes = _sizes(head, len(data), path)
    if head[1] < 4:
        raise InputError(f"{path} says version {head[1]} but is not packed by gzip; it is damaged")
    streams, table = head[6], struct.unpack_from("<I", data, 16)[0]
    wanted = sizes if sizes[5] else sizes[:5]
    start = table + 16 * streams
    if streams != len(wanted) or table < 32 or start > len(data):
        raise InputError(f"{path} has {streams} streams from byte {table}, expected {len(wanted)}; it is damaged")
    blocks = [np.zeros(0, np.uint8)] * 6
    for i, size in enumerate(wanted):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * i)
        if unpacked != size or start + packed > len(data):
            raise InputError(
                f"{path}: stream {i} announces {packed:,} bytes for {unpacked:,}, expected {size:,}; it is damaged"
            )
        blocks[i] = np.frombuffer(_unpack_zstd(data[start : start + packed], size, str(path)), np.uint8)
        start += packed
    return head[1], head[3], head[4], blocks, _rub_from_file(data[32:table], path) if head[5] & HAS_EXTENSIONS else None


def _unpack_zstd(data: bytes, size: int, name: str) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"{name} is SPZ version 4, which needs `pip install zstandard`; or save it as version 3"
        ) from error
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
            out = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise InputError(f"{name} is damaged: its packed data cannot be read ({error})") from error
    if len(out) != size:
        raise InputError(f"{name} is damaged: a stream unpacks to {len(out):,} bytes, expected {size:,}")
    return out


def _rub_from_file(extensions: bytes, path: Path) -> torch.Tensor | None:
    """[3, 3] of Adobe's extension that names the axes of the data, None where there is none; others are passed over."""
    at = 0
    while at + 8 <= len(extensions):
        kind, size = struct.unpack_from("<II", extensions, at)
        payload = extensions[at + 8 : at + 8 + size]
        at += 8 + size
        if kind == COORDINATE_EXTENSION and len(payload) >= 4:
            code = struct.unpack_from("<I", payload)[0]
            if code >= len(COORDINATES):
                raise InputError(f"{path} names axes by the unknown code {code}; it is damaged or too new")
            if code:
                return torch.tensor([TOWARDS[letter] for letter in COORDINATES[code]], dtype=torch.float64).T
    return None
