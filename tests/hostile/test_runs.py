"""Run folders that were damaged, tampered with, or come from a newer version."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps import cli
from scene.checkpoints import read_checkpoint
from scene.errors import InputError
from scene.runs import Run
from tests.apps.tiny import write_tiny
from tests.hostile.doors import calls, refused
from tests.hostile.readers import checkpoint_seeds, colmap_model

FAST = ("--steps", "4", "--max-splats", "150", "--initial-splats", "100", "--coarse-levels", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training was begun and checkpointed, then stopped."""
    folder = tmp_path_factory.mktemp("hostile")
    ball = write_tiny(folder / "ball", train=4, held_out=1, size=16)
    code = cli.run(["recon", str(ball), "--out", str(folder / "run"), *FAST])
    assert code in (0, 2)
    for name in ("scene.ply", "mesh.glb", "turntable.mp4"):
        (folder / "run" / name).unlink(missing_ok=True)
    with Run.open(folder / "run") as opened:
        for stage in ("train", "evaluate", "mesh", "turntable"):
            opened.reopen_stage(stage)
    assert (folder / "run/checkpoint/latest.safetensors").is_file()
    return folder / "run"


def torch_zip() -> bytes:
    """The shape of a .pt file: a zip with a pickle, which would call os.system."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch /tmp/maquette-was-here'\ntR.")
    return buffer.getvalue()


def flipped(file: bytes) -> bytes:
    at = len(file) - 100
    return file[:at] + bytes([file[at] ^ 4]) + file[at + 1 :]


def other_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(file: bytes) -> bytes:
        (length,) = struct.unpack("<Q", file[:8])
        header = json.loads(file[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + file[8 + length :]

    return changed


CHECKPOINTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda file: b"", "no complete checkpoint"),
    "cut": (lambda file: file[:-50], "no complete checkpoint"),
    "head": (lambda file: file[:30], "no complete checkpoint"),
    "flipped": (flipped, "is damaged"),
    "length": (lambda file: b"\xff" * 8 + file[8:], "no complete checkpoint"),
    "pickle": (lambda file: b"\x80\x04\x95" + b"\0" * 90, "pickle"),
    "torch": (lambda file: torch_zip(), "pickle"),
    "newer": (other_header(lambda header: header["__metadata__"].update(format="2")), "newer version"),
    "foreign": (other_header(lambda header: header.pop("__metadata__")), "no complete checkpoint"),
    "offsets": (other_header(lambda header: header["queue"].update(data_offsets=[0, 2**40])), "no complete checkpoint"),
    "shape": (other_header(lambda header: header["queue"].update(shape=[2**40, 2**40])), "no complete checkpoint"),
    "lacking": (other_header(lambda header: header["__metadata__"].update(crc32="{}")), "was not written by"),
}


def test_damaged_checkpoints_are_told_and_never_run(run: Path, tmp_path: Path) -> None:
    jobs = []
    for name, (change, _) in CHECKPOINTS.items():
        shutil.copytree(run, tmp_path / name)
        path = tmp_path / name / "checkpoint/latest.safetensors"
        path.write_bytes(change(path.read_bytes()))
        jobs.append(["recon", tmp_path / name, "--resume"])
    for (_, reason), outcome in zip(CHECKPOINTS.values(), calls(jobs, memory=1 << 30), strict=True):
        refused(outcome, "latest.safetensors", reason)
    assert not Path("/tmp/maquette-was-here").exists()


def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_harmless(tmp_path: Path) -> None:
    checkpoint_seeds(tmp_path)
    path = tmp_path / "latest.safetensors"
    good, state, _ = read_checkpoint(path)
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            tensors, changed, _ = read_checkpoint(path)
        except InputError:
            continue
        for name, tensor in tensors.items():  # what is not covered by a checksum: names, spaces, the generation
            assert any(tensor.equal(other) for other in good.values() if other.shape == tensor.shape), (at, name)
        assert changed.keys() == state.keys() or len(changed) == len(state)


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "typo": (lambda c: c["options"].update(stepps=c["options"].pop("steps")), "did you mean 'steps'"),
    "type": (lambda c: c["options"].update(steps="many"), "steps"),
    "negative": (lambda c: c["options"].update(steps=-5), "--steps must lie between"),
    "huge": (lambda c: c["options"].update(max_splats=10**12), "--max-splats must lie between"),
    "seed": (lambda c: c.update(seed=-1), "--seed"),
    "newer": (lambda c: c.update(format=2), "newer version"),
    "lacking": (lambda c: c.pop("options"), "config.json"),
    "method": (lambda c: c.update(method="magic"), "magic"),
}
TEXTS = {
    "text": b"{",
    "empty": b"",
    "list": b"[]",
    "deep": b"[" * 99_999,
    "nan": b'{"format": 1, "method": NaN}',
    "bytes": b"\xff",
}


def test_configs_that_were_tampered_with_are_told(run: Path, tmp_path: Path) -> None:
    jobs, reasons = [], []
    for name, (change, reason) in CONFIGS.items():
        shutil.copytree(run, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        jobs.append(["render", tmp_path / name, "--path", "train", "--frames", "2", "--out", tmp_path / f"{name}.mp4"])
        reasons.append(reason)
        shutil.copy(run / "config.json", tmp_path / name / "before.json")
    for name, text in TEXTS.items():
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "config.json").write_bytes(text)
        jobs.append(["eval", tmp_path / name])
        reasons.append("config.json")
    os.mkfifo(tmp_path / "pipe")
    jobs += [["eval", tmp_path / "pipe"], ["eval", tmp_path / "nothing"]]
    reasons += ["not a run folder", "not a run folder"]
    for (word, *_), reason, outcome in zip(jobs, reasons, calls(jobs, memory=1 << 30), strict=True):
        needs_scene = "scene.ply" in outcome.err  # told first: it lacks a scene
        if needs_scene and word == "render":
            continue
        refused(outcome, reason)


def test_options_of_a_tampered_config_are_refused_by_resume(run: Path, tmp_path: Path) -> None:
    jobs = []
    for name, (change, _) in CONFIGS.items():
        shutil.copytree(run, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        jobs.append(["recon", tmp_path / name, "--resume"])
    for (name, (_, reason)), outcome in zip(CONFIGS.items(), calls(jobs, memory=1 << 30), strict=True):
        if name != "method":  # then it is no run of ours, but photos to reconstruct
            refused(outcome, reason)
        assert outcome.code == 2


@pytest.mark.parametrize(
    "name", ["progress.json", "metrics.json", "cameras.json", "events.jsonl", "checkpoint/state.json"]
)
def test_other_files_of_a_run_never_end_in_a_traceback(name: str, run: Path, tmp_path: Path) -> None:
    texts = [
        b"",
        b"[]",
        b"7",
        b'{"stages": 7, "decisions": {}}',
        b"\xff\xfe",
        b'{"stages": {"train": 1}}',
        b"[" * 99_999,
    ]
    jobs = []
    for i, text in enumerate(texts):
        shutil.copytree(run, tmp_path / str(i))
        (tmp_path / str(i) / name).write_bytes(text)
        jobs.append(["eval", tmp_path / str(i)])
    for outcome in calls(jobs, memory=1 << 30):
        refused(outcome)


def test_a_camera_model_over_which_colmap_never_ends_is_told(tmp_path: Path) -> None:
    """77 bytes of images.bin in RUN/sfm, which is read again on --resume: pycolmap's reader would loop for ever."""
    from data.captures import open_capture
    from recon.sfm_model import load_result
    from tests.data.pictures import noise, save

    model = colmap_model(tmp_path / "made", binary=True)
    facts = {"made_for": {}, "total": 3, "seconds": 1.0, "mean_reprojection_px": 0.5, "metric": False, "decisions": []}
    (model / "result.json").write_text(json.dumps(facts))
    for i in range(3):
        save(tmp_path / f"photos/{i}.png", noise(24, 16, seed=i))
    with open_capture(tmp_path / "photos") as capture:
        found = load_result(capture, model, {})
        assert found is not None and found.registered == 3 and found.capture.points is not None
        (model / "images.bin").write_bytes(struct.pack("<Qi7di", 1, 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a" * 5)
        with pytest.raises(InputError, match=r"images\.bin"):
            load_result(capture, model, {})
        (model / "result.json").write_text('{"made_for": {}}')
        assert load_result(capture, model, {}) is None


def test_a_damaged_database_is_made_again(tmp_path: Path) -> None:
    import pycolmap

    from recon.sfm_matching import is_database

    pycolmap.Database.open(tmp_path / "a.db").close()
    assert is_database(tmp_path / "a.db")
    content = (tmp_path / "a.db").read_bytes()
    for name, damaged in (
        ("cut", content[:3000]),
        ("text", b"no database " * 200),
        ("zeros", content[:100] + b"\0" * 5000),
    ):
        (tmp_path / f"{name}.db").write_bytes(damaged)
        assert not is_database(tmp_path / f"{name}.db")
