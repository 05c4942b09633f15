"""Reads the sources: files of strangers are opened in scene/untrusted.py and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READERS = sorted(
    path
    for pattern in (
        "data/*.py",
        "scene/formats/*.py",
        "scene/checkpoints.py",
        "scene/camera_paths.py",
        "scene/edits.py",
    )
    for path in ROOT.glob(pattern)
)
OPENERS = {
    *(
        "open",
        "io.open",
        "os.open",
        "codecs.open",
        "gzip.open",
        "zipfile.ZipFile",
        "Image.open",
        "av.open",
        "mmap.mmap",
    ),
    *("np.load", "np.fromfile", "np.memmap", "np.loadtxt", "np.genfromtxt", "np.lib.format.read_array", "json.load"),
    *("torch.load", "safe_open", "load_file", "zlib.decompress", "gzip.decompress", "lzma.decompress", "trimesh.load"),
    *("pycolmap.Reconstruction", "cv2.imread", "cv2.VideoCapture", "o3d.io.read_triangle_mesh", "Usd.Stage.Open"),
}
METHODS = {"open", "read_bytes", "read_text"}  # of Path
# Who may, and why.
ALLOWED = {
    ("data/video.py", "av.open"): "gets a file that was opened here, no protocols, and a limit of pixels",
    ("data/archive.py", "file.open"): "an entry of an archive that was opened and bounded here",
    ("data/sample.py", "(_FOLDER / 'truth_cameras.json').read_text"): "a file of this package",
    ("scene/formats/usd.py", "done.read_bytes"): "what our own writer made",
    ("scene/formats/usd.py", "np.load"): "what the limited process hands back",
    ("scene/formats/usd_child.py", "Usd.Stage.Open"): "runs in that process, and nothing of ours with it",
    ("scene/formats/usd_child.py", "zipfile.ZipFile"): "runs in that process, and nothing of ours with it",
}


def opens(source: str) -> list[str]:
    """Calls in a source text that open a file or unpack data without limits."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            writes = any(isinstance(arg, ast.Constant) and arg.value in ("wb", "w", "ab") for arg in node.args)
            if (name in OPENERS or method in METHODS) and not name.startswith("untrusted.") and not writes:
                found.append(name)
    return found


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_readers_open_files_through_the_one_door(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    assert [name for name in opens(path.read_text(encoding="utf-8")) if (where, name) not in ALLOWED] == []


def test_the_rule_sees_what_it_is_for() -> None:
    bad = "path.open('rb')\nopen(path)\nnp.load(path)\nPath(x).read_bytes()\nImage.open(file)\ncv2.imread(str(path))\n"
    assert len(opens(bad)) == 6
    good = (
        "untrusted.read_bytes(path)\nread_bytes(path)\npath.open('wb')\nopen_regular(path)\nread_array(file, t, 3, n)\n"
    )
    assert opens(good) == []


def test_exceptions_are_still_needed() -> None:
    for where, name in ALLOWED:
        path = ROOT / where
        assert not path.is_file() or name in opens(path.read_text(encoding="utf-8")), f"{where} calls {name} no more"


@pytest.mark.parametrize("package", ["apps", "recon", "scene", "data"])
def test_libraries_that_crash_on_names_are_given_none(package: str) -> None:
    """OpenCV ends the process over a name that is not UTF-8; COLMAP's model reader loops over a name without an end."""
    for path in (ROOT / package).rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        forbidden = {"cv2.imread", "cv2.imwrite", "cv2.VideoCapture", "pycolmap.Reconstruction", "pycolmap.read_model"}
        assert "assets" in path.parts or not forbidden & set(calls), path
