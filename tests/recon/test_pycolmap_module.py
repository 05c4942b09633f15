"""pycolmap's import leaves signals alone."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal
from recon.pycolmap_module import load_pycolmap
signal.signal(signal.SIGTERM, lambda number, frame: print("saved"))
load_pycolmap().Reconstruction()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_still_reaches_the_run_that_saves() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "saved"), done.stderr
