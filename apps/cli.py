"""The `maquette` command: finds the command's module, runs it, and turns every outcome into the contract's exit code.

Help is written here and nothing heavy is imported before a command is known: `maquette --help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from scene.errors import Interrupted, MaquetteError, ResourceError, did_you_mean, is_out_of_memory

COMMANDS = {
    "recon": ("apps.pipeline", "photos, a video or posed images -> 3D scene, mesh, film and report"),
    "generate": ("apps.generate", "words -> 3D scene, mesh, film and report, offline"),
    "view": ("apps.view", "look at a run, splats or a mesh in the browser; live while a run trains"),
    "web": ("apps.web.command", "all of this in the browser, for many people: upload, watch, look, compare, download"),
    "edit": ("apps.edit", "remove floaters, crop, set up and scale; replayable, the trained scene stays as it is"),
    "export": ("apps.export", "write a run, or any splat or mesh file, in every format of the field"),
    "render": ("apps.film", "film a run's scene along a camera path"),
    "eval": ("apps.judge", "judge a run on its held-out photos again"),
    "train-prior": ("apps.train_prior", "train the networks that generate takes its pictures from"),
    "demo": ("apps.demo", "reconstruct the embedded sample and state the true error"),
    "bench": ("apps.bench", "measure speed and quality on this machine"),
    "doctor": ("apps.doctor", "say what this installation computes with, and test it"),
}
"""Command -> module with `main(arguments)`, and what it is for."""

HELP = """maquette: photos or words in; 3D scenes and meshes out

usage: maquette COMMAND ...        (maquette COMMAND --help says more)

{commands}

Start with:  maquette demo
             maquette recon my_photos/
             maquette generate "a red chair with blue legs"
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the contract's exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    # torch's OpenMP threads must not spin against our kernel threads; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        (sys.stdout if arguments else sys.stderr).write(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from scene.environment import version

        sys.stdout.write(f"maquette {version()}\n")
        return 0
    if arguments[0] not in COMMANDS:
        sys.stderr.write(f"maquette: there is no command '{arguments[0]}'{did_you_mean(arguments[0], COMMANDS)}\n\n")
        sys.stderr.write(help_text())
        return 2
    debug = "--debug" in arguments
    try:
        importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    except SystemExit as leaving:  # help, or flags that the parser could not read
        return leaving.code if isinstance(leaving.code, int) else (2 if leaving.code else 0)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug=debug)
    return 0


def help_text() -> str:
    """What `maquette --help` prints."""
    return HELP.format(commands="\n".join(f"  {name:11} {about}" for name, (_, about) in COMMANDS.items()))


def explain(error: BaseException, *, debug: bool) -> int:
    """Tell the user what went wrong, and return the exit code."""
    known = as_user_error(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if known is not None:
        sys.stderr.write(f"maquette: {known}\n")
        return known.exit_code
    log = write_error_log(error)
    sys.stderr.write(
        f"maquette: this is a fault of Maquette, not of yours: {type(error).__name__}: {error}\n"
        f"Please report it as a bug, with the file {log}; `maquette doctor` helps to rule out the installation.\n"
    )
    return 1


def as_user_error(error: BaseException) -> MaquetteError | None:
    """The error as one written for users, or None when it is a fault of ours."""
    if isinstance(error, MaquetteError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped at once")
    if is_out_of_memory(error):
        advice = "close other programs, or start a new run with --downscale or --preset draft"
        return ResourceError(f"out of memory; what was saved can be resumed with --resume; {advice}")
    if isinstance(error, OSError):
        from scene.files import disk_error

        path = Path(str(error.filename)) if error.filename else Path("a file")
        known = disk_error(error, path, "write")
        return known if isinstance(known, ResourceError) else None
    return None


def write_error_log(error: BaseException) -> str:
    """Write the traceback and the versions to a file; returns its name."""
    from scene.environment import commit, library_versions, system_facts, version

    lines = [f"maquette {version()} {commit()}", " ".join(map(repr, sys.argv)), str(system_facts())]
    lines += [str(library_versions()), "", *traceback.format_exception(error)]
    try:
        descriptor, name = tempfile.mkstemp(prefix="maquette-error-", suffix=".log")
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines))
    except OSError:
        return "(the log could not be written; run again with --debug)"
    return name


if __name__ == "__main__":
    main()
