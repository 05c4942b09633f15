"""Runs bad files against a reader in processes of their own, and judges each: fine, or a failure whose input is kept.

Fine: it returns, or raises an error written for users. A failure: any other exception, more than 2 s of processor time,
more than 256 MiB of address space on top of what the process had (so memory that was asked for counts, touched or not),
a MemoryError that was swallowed, the end of the process, or a halt. Executions are numbered and each is made from its
number alone, so any of them can be made again:  python -m tests.hostile.fuzzing READER --from 4711 --executions 1
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from scene.errors import InputError, ResourceError
from tests.hostile.mutations import mutated
from tests.hostile.readers import READERS, Reader

MOST_SECONDS = 2.0  # of processor time: others may be using the machine
MOST_BYTES = 256 << 20
HALTED_SECONDS = 60.0  # without a single execution coming to its end
STOP_BYTES = 4 << 30  # where the system ends the attempt
CHUNK = 5000  # executions of one process


@dataclass
class Verdict:
    """What came of the executions of one reader."""

    reader: str
    executions: int = 0
    accepted: int = 0  # read without complaint
    seconds: float = 0.0  # in the reader
    slowest_ms: float = 0.0
    failures: list[dict[str, object]] = field(default_factory=list)


def scratch() -> str | None:
    """A folder in memory where there is one: the disk is not what is tested."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def peak_bytes(name: bytes = b"VmPeak:") -> int:
    """Most address space that this process ever had, or VmSize: what it has; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    at = text.find(name)
    return int(text[at + len(name) : text.find(b"kB", at)]) << 10 if at >= 0 else 0


def without_slack() -> mmap.mmap | None:
    """Takes, untouched, what the process that this one was forked from gave back: it would hide what is asked for."""
    slack = peak_bytes() - peak_bytes(b"VmSize:")
    return mmap.mmap(-1, slack, flags=mmap.MAP_PRIVATE) if slack > 0 else None


def executions(reader: Reader, folder: Path, first: int, count: int) -> Iterator[tuple[int, str, bytes]]:
    """Number, file and content of each bad file of a reader; the others in `folder` are good meanwhile."""
    files = reader.seeds(folder)
    good = {
        file: (folder / file).read_bytes() if (folder / file).is_file() else forms[0].pack(forms[0].content)
        for file, forms in files.items()
    }
    for file, content in good.items():
        (folder / file).write_bytes(content)
    names, before = sorted(files), None
    for number in range(first, first + count):
        random = Random(f"{reader.name} {number}")
        file = random.choice(names)
        if before not in (None, file):
            (folder / before).write_bytes(good[before])
        before = file
        yield number, file, mutated(files[file], random)


def work(reader: Reader, first: int, count: int, folder: Path, told: Connection) -> None:
    """The body of a worker: sends the number of each execution before it, then what came of it."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # libraries remark on each bad file
    call, send, base = reader.call, told.send, 0
    for number, file, content in executions(reader, folder, first, count):
        if not base:
            _warm(call, folder)
            kept = without_slack()  # noqa: F841 as long as this runs
            base = peak_bytes()
            resource.setrlimit(resource.RLIMIT_AS, (base + STOP_BYTES, resource.RLIM_INFINITY))
        (folder / file).write_bytes(content)
        send((number, None, 0.0))
        began, wall, fault, accepted = time.process_time(), time.perf_counter(), "", False
        signal.setitimer(signal.ITIMER_PROF, 5 * MOST_SECONDS)  # its signal ends the process, also inside C
        try:
            call(folder)
            accepted = True
        except (InputError, ResourceError) as error:
            if _swallowed(error):
                fault = "MemoryError swallowed: " + str(error)[:200]
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:200]} | " + " < ".join(
                f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[:-6:-1]
            )
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.perf_counter() - wall
        if not fault and (busy := time.process_time() - began) > MOST_SECONDS:
            fault = f"took {busy:.1f} s"
        peak = peak_bytes()
        if peak > base + MOST_BYTES:
            fault = fault or f"asked for {(peak - base) >> 20} MiB more than before"
            send((number, fault, seconds))
            return  # the peak of a process never falls: a fresh one goes on
        send((number, fault or ("ok" if accepted else "refused"), seconds))


def _life(reader: Reader, first: int, count: int, folder: Path, told: Connection) -> None:
    """A worker from start to end, which comes at once: forked from a thread, it must not wait for the others."""
    heard = os.dup(2)
    try:
        work(reader, first, count, folder, told)
    except BaseException:
        os.write(heard, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def _warm(call: Callable[[Path], object], folder: Path) -> None:
    """Read the good files once, so that what libraries take for themselves is not counted."""
    for _ in range(2):
        try:
            call(folder)
        except Exception as error:
            raise RuntimeError(f"the good files in {folder} are refused: {error}") from error


def _swallowed(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def fuzz(reader: Reader, count: int, *, first: int = 0, keep: Path | None = None, most_failures: int = 20) -> Verdict:
    """Run `count` executions of a reader, in a new process after each failure that ends one."""
    verdict, at = Verdict(reader.name), first
    while at < first + count and len(verdict.failures) < most_failures:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch()) as place:
            folder = Path(place)
            at = _chunk(verdict, reader, at, min(CHUNK, first + count - at), folder, keep)
    return verdict


def _chunk(verdict: Verdict, reader: Reader, first: int, count: int, folder: Path, keep: Path | None) -> int:
    """One worker's life; returns the number of the next execution."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_life, args=(reader, first, count, folder, sender), daemon=True)
    process.start()
    sender.close()
    current, done, why = first, first, ""
    try:
        while True:
            if not receiver.poll(HALTED_SECONDS):
                why = f"halted for {HALTED_SECONDS:.0f} s"
                process.kill()
                break
            number, outcome, seconds = receiver.recv()
            if outcome is None:
                current = number
                continue
            done = number + 1
            _count(verdict, reader, number, outcome, seconds, keep)
    except EOFError:
        pass
    process.join()
    if process.exitcode != 0 or why:
        code = process.exitcode or 0
        signalled = signal.Signals(-code).name if code < 0 else f"exit {code}"
        _fail(verdict, reader, current, why or f"the process ended by {signalled}", keep)
        verdict.executions += 1
        return current + 1
    return done


def _count(verdict: Verdict, reader: Reader, number: int, outcome: str, seconds: float, keep: Path | None) -> None:
    verdict.executions += 1
    verdict.seconds += seconds
    verdict.slowest_ms = max(verdict.slowest_ms, round(1e3 * seconds, 1))
    verdict.accepted += outcome == "ok"
    if outcome not in ("ok", "refused"):
        _fail(verdict, reader, number, outcome, keep)


def _fail(verdict: Verdict, reader: Reader, number: int, why: str, keep: Path | None) -> None:
    verdict.failures.append({"number": number, "why": why})
    if keep is not None:  # made again from its number: the worker may have gone on
        keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch()) as place:
            for _, file, content in executions(reader, Path(place), number, 1):
                (keep / f"{verdict.reader}-{number}-{Path(file).name}").write_bytes(content)


def parse(arguments: Sequence[str], executions_each: int = 10_000) -> argparse.Namespace:
    """The command line of the fuzzing and of its benchmark."""
    parser = argparse.ArgumentParser(description="Fuzz the readers; prints JSON.")
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--executions", type=int, default=executions_each, help="of each reader")
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first execution")
    parser.add_argument("--shares", action="store_true", help="slow readers get their share only, as in the tests")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of failures")
    options = parser.parse_args(arguments)
    names = [reader.name for reader in READERS]
    if unknown := set(options.readers) - set(names):
        parser.error(f"unknown: {', '.join(unknown)}; readers are {', '.join(names)}")
    options.readers = options.readers or names
    return options


def run(options: argparse.Namespace) -> list[Verdict]:
    """All chosen readers, `jobs` at a time; as each comes to its end it is told on stderr."""
    from concurrent.futures import ThreadPoolExecutor

    def one(reader: Reader) -> Verdict:
        share = reader.share if options.shares else 1.0
        verdict = fuzz(reader, max(1, round(share * options.executions)), first=options.first, keep=options.keep)
        sys.stderr.write(f"{reader.name}: {verdict.executions} executions, {len(verdict.failures)} failures\n")
        return verdict

    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(one, [reader for reader in READERS if reader.name in options.readers]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the verdicts; returns 1 when there is a failure."""
    preload()
    verdicts = run(parse(sys.argv[1:] if arguments is None else arguments))
    sys.stdout.write(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    return int(any(verdict.failures for verdict in verdicts))


def preload() -> None:
    """Import in the parent what every worker needs, which then starts in milliseconds; with one thread, to fork."""
    import torch

    torch.set_num_threads(1)
    for module in ("apps.run_cameras", "recon.dot"):
        importlib.import_module(module)


if __name__ == "__main__":
    sys.exit(main())
