"""Splat formats judged: size, speed, and how far each attribute is from the source, by our reader and by others'.

    python -m benchmarks.formats runs/lego/scene.ply --json formats.json
    MAQUETTE_PEERS=FOLDER python -m benchmarks.formats runs/lego/scene.ply --count 20000     (first 20,000 splats)

Each scene is written by us and read back by us and by every independent program that reads the format, and written by
splat-transform where it can and read by us. Extreme random scenes of each SH degree come with them. A row is the
median and the largest error of an attribute: positions in scene units, logs of scales, rotations in radians,
opacities, SH coefficients. Seconds are processor time for a million splats, the best of three, of scenes of 20,000.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import HostLoad, record, table, write_json
from scene.formats import FILE_UP, load_splats, quantised, save_splats
from scene.formats.splat import importance_order
from scene.formats.splat_files import file_from_scene
from scene.gaussians import Gaussians
from tests import peers
from tests.scene.formats.splat_errors import ATTRIBUTES, errors, extreme_gaussians, matched
from tests.scene.formats.test_splat_peers import ADOBE_UNPACK, from_columns

ENDINGS = (".ply", ".splat", ".spz", ".sog", ".glb", ".usdz")
BY_SPLAT_TRANSFORM = ("p.compressed.ply", "p.spz", "p.sog", "p.glb")
MOST_FOR_ITS_SOG = 5_000  # splats; without a GPU its k-means takes minutes for more
LEAST_TO_TIME = 20_000  # splats; below, opening files is most of it
TRIALS = 3


def main() -> None:
    """Print the table; write everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenes", nargs="*", type=Path, help="3DGS PLY files")
    parser.add_argument("--count", type=int, help="only so many splats of each")
    parser.add_argument("--extremes", type=int, default=2000, help="splats of the random scenes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    load, rows = HostLoad(), []
    for path in arguments.scenes:
        scene = load_splats(path)
        rows += list(
            judge(path.parent.name, scene.select(torch.arange(min(len(scene), arguments.count or len(scene)))))
        )
    for degree in range(4):
        rows += list(judge(f"extremes, degree {degree}", extreme_gaussians(arguments.extremes, degree)))
    print(as_table(rows))
    write_json(arguments.json, {**record(load), "rows": rows})


def judge(name: str, scene: Gaussians) -> Iterator[dict[str, Any]]:
    """One row for each way through a file."""
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        for ending in ENDINGS:
            path = folder / f"ours{ending}"
            write = best_seconds(lambda path=path: save_splats(path, scene))
            read = best_seconds(lambda path=path: load_splats(path))
            cost: dict[str, float] = {"bytes": path.stat().st_size / len(scene)}
            if len(scene) >= LEAST_TO_TIME:
                cost |= {"write_s": 1e6 * write / len(scene), "read_s": 1e6 * read / len(scene)}
            ours = scene.select(file_order(scene, ending))
            row = {"scene": name, "splats": len(scene), "format": ending, "writer": "maquette"}
            yield row | cost | {"reader": "maquette", "errors": summary(ours, load_splats(path))}
            in_file = ours.turned(torch.from_numpy(file_from_scene(ending, (0.0, 0.0, 1.0))))
            for reader, call in peer_readers(ending, folder).items():
                found = attempt(lambda call=call, path=path, in_file=in_file: summary(in_file, call(path)))
                yield row | {"reader": reader, "errors": found}
        save_splats(folder / "source.ply", scene)
        for file_name in BY_SPLAT_TRANSFORM:
            if file_name != "p.sog" or len(scene) <= MOST_FOR_ITS_SOG:
                yield from judge_foreign(name, scene, folder, file_name)


def judge_foreign(name: str, scene: Gaussians, folder: Path, file_name: str) -> Iterator[dict[str, Any]]:
    """A file that splat-transform writes of the scene, read by us: against the scene, and against its own reading."""
    path = folder / file_name
    ending = file_name[1:]
    row = {"scene": name, "splats": len(scene), "format": ending, "writer": "splat-transform", "reader": "maquette"}
    options = ["-g", "cpu"] if ending == ".sog" else []
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])) if ending == ".glb" else torch.eye(3)  # it turns glTF half round
    up = FILE_UP.get(path.suffix, (0.0, 0.0, 1.0))

    def against_source() -> dict[str, list[float]]:
        peers.splat_transform("-q", "-w", *options, folder / "source.ply", path)
        return summary(scene, matched(scene, load_splats(path, up=up).turned(turn)))

    found = attempt(against_source)
    yield row | {"bytes": path.stat().st_size / len(scene) if path.is_file() else None, "errors": found}
    if ending != ".glb":  # which it does not read
        same = attempt(lambda: summary(by_splat_transform(path, folder), load_splats(path, up=up)))
        yield row | {"writer": "splat-transform, against its own reading", "errors": same}


def file_order(scene: Gaussians, ending: str) -> torch.Tensor:
    """[N] the order in which our writers lay the splats down."""
    if ending == ".splat":
        return importance_order(scene)
    if ending == ".sog":
        turn = torch.from_numpy(file_from_scene(ending, (0.0, 0.0, 1.0)))
        return torch.from_numpy(quantised.morton_order(scene.turned(turn).means.numpy()))
    return torch.arange(len(scene))


def peer_readers(ending: str, folder: Path) -> dict[str, Callable[[Path], Gaussians]]:
    """Independent programs that read a format, each giving the splats in the axes of the file."""
    readers: dict[str, Callable[[Path], Gaussians]] = {}
    if ending in (".ply", ".splat", ".spz", ".sog"):
        readers["splat-transform"] = lambda path: by_splat_transform(path, folder)
    if ending == ".spz":
        readers["@adobe/spz"] = by_adobe
    if ending in (".ply", ".spz"):
        readers["gsply"] = by_gsply
    return readers


def by_splat_transform(path: Path, folder: Path) -> Gaussians:
    """What splat-transform makes of a file, handed over as 3DGS PLY."""
    peers.splat_transform("-q", "-w", path, folder / "peer.ply")
    return load_splats(folder / "peer.ply")


def by_adobe(path: Path) -> Gaussians:
    """What Niantic's and Adobe's library makes of an SPZ file."""
    count, _, *parts = json.loads(peers.run_node("@adobe/spz", ADOBE_UNPACK, path, module=True).splitlines()[-1])
    means, quats, log_scales, logits, dc, rest = (np.array(part) for part in parts)
    return from_columns(
        *(means.reshape(-1, 3), quats.reshape(-1, 4)[:, [3, 0, 1, 2]], log_scales.reshape(-1, 3)),
        *(np.clip(logits, -30, 30), dc.reshape(-1, 3), rest.reshape(count, -1, 3)),
    )


def by_gsply(path: Path) -> Gaussians:
    """What gsply makes of a PLY or SPZ file."""
    gsply = pytest.importorskip("gsply")
    data = (gsply.read_spz if path.suffix == ".spz" else gsply.plyread)(str(path))
    rest = data.shN if data.shN is not None and data.shN.size else np.zeros((len(data.means), 0, 3))
    return from_columns(data.means, data.quats, data.scales, data.opacities, data.sh0, rest)


def summary(source: Gaussians, other: Gaussians) -> dict[str, list[float]]:
    """Median and largest error by attribute."""
    return {name: [float(np.median(v)), float(v.max())] for name, v in errors(source, other).items()}


def attempt(call: Callable[[], dict[str, list[float]]]) -> dict[str, list[float]] | str:
    """The figures, or why there are none: a program that is not installed, or one that refuses."""
    try:
        return call()
    except (pytest.skip.Exception, peers.PeerError, AssertionError) as error:
        return str(error)[:300]


def best_seconds(call: Callable[[], object]) -> float:
    """Processor time, also of child processes, of the best of some trials: it hardly depends on who else is busy."""
    seconds = []
    for _ in range(TRIALS):
        began = sum(os.times()[:4])
        call()
        seconds.append(sum(os.times()[:4]) - began)
    return min(seconds)


def as_table(rows: list[dict[str, Any]]) -> str:
    """One line a row, errors as median/largest."""
    head = ("scene", "format", "writer", "reader", "bytes", "write_s", "read_s", *ATTRIBUTES)
    lines = []
    for row in rows:
        found = row["errors"]
        cells = [f"{found[a][0]:.2g}/{found[a][1]:.2g}" if a in found else None for a in ATTRIBUTES]
        if isinstance(found, str):
            cells = [found.splitlines()[0][:40], *[None] * (len(ATTRIBUTES) - 1)]
        lines.append([*(row.get(key) for key in head[:7]), *cells])
    return table(head, lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
