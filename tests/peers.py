"""Independent programs that read and write our formats: oracles for tests and benchmarks, never part of the product.

Packages of node (tests/peer_packages/package.json) lie in `$MAQUETTE_PEERS/node_modules` or, as `make peers` puts them,
in `.venv/peers/node_modules`; Blender and Chromium are found on the PATH; Open3D is used where it can be imported.
Where one is missing the test skips and says which. Each call has a time limit, so that a peer that hangs fails one test
and not the suite.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120.0  # a shared two-core machine takes a tenth of it for the slowest call

_REPORT = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])), {maxIssues: 1000, writeTimestamp: false})
  .then(report => console.log(JSON.stringify(report)), error => { console.error(String(error)); process.exit(1); });
"""


class PeerError(Exception):
    """A peer refused what it was given, or took too long."""


def program(name: str) -> str:
    """Path of a program on the PATH; the test skips where it is absent."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it is an independent reader that this test compares with")
    return found


def packages(name: str) -> Path:
    """The folder whose node_modules holds the package `name`; the test skips where it is absent."""
    folder = Path(os.environ.get("MAQUETTE_PEERS") or ROOT / ".venv" / "peers")
    if not (folder / "node_modules" / name).is_dir():
        pytest.skip(f"the node package {name} is not in {folder / 'node_modules'}; install it with `make peers`")
    return folder


def open3d() -> Any:
    """Open3D; the test skips where it is absent or cannot be loaded: its wheel needs libGL, libX11 and libusb-1.0."""
    why = "Open3D cannot be loaded (pip install open3d; it needs libGL, libX11 and libusb-1.0 of the system)"
    return pytest.importorskip("open3d", reason=why, exc_type=ImportError)


def run_node(package: str, script: str, *arguments: str | Path, module: bool = False) -> str:
    """What a script that uses `package` prints; it finds `arguments` in process.argv from 1 on.

    module: the script has `import` instead of `require`.  Raises PeerError with its last words when it fails.
    """
    command = [program("node"), "--input-type=module" if module else "--input-type=commonjs", "--eval", script, "--"]
    return _run([*command, *map(_absolute, arguments)], folder=packages(package))


def splat_transform(*arguments: str | Path) -> str:
    """Run PlayCanvas' splat-transform (files in, a file out) and return what it prints; name files by Path."""
    folder = packages("@playcanvas/splat-transform")
    cli = folder / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    return _run([program("node"), str(cli), *map(_absolute, arguments)], folder=folder)


def gltf_report(path: Path) -> dict[str, Any]:
    """Report of Khronos' glTF validator: `issues` with numErrors, numWarnings and messages, `info` with counts."""
    return json.loads(run_node("gltf-validator", _REPORT, path))


def run_blender(script: Path, *arguments: str | Path) -> dict[str, Any]:
    """The JSON object that a Python script inside Blender (headless, factory settings) writes.

    The script finds after `--` in sys.argv the file to write to, then `arguments`. Raises PeerError when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        command = [program("blender"), "--background", "--factory-startup", "--python-exit-code", "1"]
        # Debian's Blender runs on the system's Python, which may lack the numpy that its glTF importer needs.
        command += ["--python-expr", f"import sys; sys.path.append({str(Path(np.__file__).parents[1])!r})"]
        words = _run(
            [*command, "--python", str(script), "--", str(out), *map(_absolute, arguments)], folder=Path(folder)
        )
        if not out.is_file():
            raise PeerError(f"{script.name} left no answer in Blender:\n{words[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def _absolute(argument: str | Path) -> str:
    return str(argument.absolute()) if isinstance(argument, Path) else argument


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{Path(command[0]).name} took more than {SECONDS:.0f} s") from error
    out = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        words = (out + done.stderr.decode("utf-8", "replace"))[-2000:]
        raise PeerError(f"{Path(command[0]).name} ended with code {done.returncode}:\n{words}")
    return out
