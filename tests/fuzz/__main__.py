"""`scripts/fuzz.sh [TARGET ...] [--cases N]`: many cases a target, in processes that may die.

A child works on a batch of cases and writes the number of each before it begins, so that a crash or
a hang has a number; the batch then goes on after it. A table is printed and written, and the input
of every failure is saved. `--case NUMBER` runs one case of one target and shows what comes of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 250  # cases of one process: TensorFlow keeps memory of every model
PATIENCE = 15.0  # seconds of one case after which its process is killed
START = 120.0  # more of them for TensorFlow and the seed files
_STEP = 0.1  # seconds between two looks at a process


@dataclasses.dataclass
class Tally:
    """What became of a target's cases.

    Attributes:
        name: of the target.
        counts: cases by kind of outcome.
        peak: most memory of a process and its children, in MiB.
        failures: number, kind and text of each failure.
        seconds: that all of them took.
    """

    name: str
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    peak: int = 0
    failures: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, number: int, kind: str, text: str) -> None:
        from fuzz import outcome

        self.counts[kind] += 1
        if kind in outcome.FAILURES:
            self.failures.append((number, kind, text))


def main(argv: Sequence[str]) -> int:
    options = _parsed(argv)
    if options.child:
        return _work(options)
    folder = Path(options.output or tempfile.mkdtemp(prefix="fuzz-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.case is not None:
        return _show(options, folder)
    tallies = []
    for name in options.targets:
        tallies.append(_run(name, options, folder))
        print(row_of(tallies[-1]) if tallies[1:] else table(tallies), flush=True)
        (folder / "table.txt").write_text(table(tallies) + "\n")
        failures = [failure for tally in tallies for failure in _reports(tally)]
        (folder / "failures.txt").write_text("\n".join(failures))
    print(f"\ntable.txt, failures.txt and the input of {len(failures)} failures: {folder}")
    return 1 if failures else 0


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="scripts/fuzz.sh", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=2000, help="of each target (2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--case", type=int, help="this one alone, of one target, with its outcome")
    parser.add_argument("--memory", type=int, default=4096, help="MiB that a case may take (4096)")
    parser.add_argument("--output", help="folder for table and failures; a new one by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]}: expected one of {', '.join(TARGETS)}")
    options.targets = options.targets or list(TARGETS)
    return options


def _run(name: str, options: argparse.Namespace, folder: Path) -> Tally:
    """All cases of a target, by one process after another."""
    tally, started = Tally(name), time.monotonic()
    first, end = options.first, options.first + options.cases
    while first < end:
        first = _batch(tally, (first, min(first + BATCH, end)), options, folder)
    shutil.rmtree(folder / "work", ignore_errors=True)
    tally.seconds = time.monotonic() - started
    return tally


def _batch(
    tally: Tally, numbers: tuple[int, int], options: argparse.Namespace, folder: Path
) -> int:
    """One process; returns the number of the case that comes next."""
    results, log = folder / "results.jsonl", folder / "log.txt"
    results.write_text("")
    args = [*map(str, (tally.name, "--first", numbers[0], "--cases", numbers[1] - numbers[0]))]
    args += ["--memory", str(options.memory), "--output", str(folder), "--child", str(results)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzz", *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        killed = hangs(process, results)
    return counted(tally, numbers, results, folder, "hangs" if killed else process.returncode)


def hangs(process: subprocess.Popen[bytes], results: Path) -> bool:
    """Waits for a process; kills it, and its children, when one case takes too long."""
    size, since = 0, time.monotonic() + START
    while process.poll() is None:
        time.sleep(_STEP)
        if results.stat().st_size != size:
            size, since = results.stat().st_size, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    return False


def counted(
    tally: Tally, numbers: tuple[int, int], results: Path, folder: Path, end: int | str
) -> int:
    """Adds what a process wrote to the tally; returns the number of the next case."""
    begun: int | None = None
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        if "begins" in entry:
            begun = entry["begins"]
            continue
        tally.add(entry["number"], entry["kind"], entry["text"])
        tally.peak = max(tally.peak, entry["peak"])
        begun = None
    if end == 0 and begun is None:
        return numbers[1]
    tail = (folder / "log.txt").read_text(errors="replace")[-3000:]
    if begun is None:
        raise SystemExit(f"{tally.name}: a process ended with {end} outside a case\n{tail}")
    kind = "hangs" if end == "hangs" else "crashes"
    tally.add(begun, kind, f"ended by {end}\n{tail}")
    _keep(folder, tally.name, begun, "")
    return int(begun) + 1


def _keep(folder: Path, name: str, number: int, text: str) -> None:
    """Saves the input of a failure."""
    target = folder / "failures" / f"{name}-{number}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "work/case/in", target, symlinks=True)
    if text:
        (target / "outcome.txt").write_text(text, "utf-8", "backslashreplace")


def _seeds(name: str, folder: Path) -> Path:
    """The sound files of a target, created once in a folder."""
    from fuzz.targets import TARGETS

    seeds = folder / "seeds" / name
    if not seeds.exists():
        half = folder / "seeds" / f".{name}"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        TARGETS[name].make(half)
        half.rename(seeds)
    return seeds


def _work(options: argparse.Namespace) -> int:
    """The cases of a batch, in this process."""
    import tf_keras  # noqa: F401 - loading TensorFlow is no case's time

    from fuzz import outcome
    from fuzz.targets import TARGETS

    folder, target = Path(options.output), TARGETS[options.targets[0]]
    seeds = _seeds(target.name, folder)
    _limit_memory(options.memory)
    with open(options.child, "a", buffering=1) as results:
        for number in range(options.first, options.first + options.cases):
            outcome.prepared(target, number, seeds, folder / "work/case")
            results.write(json.dumps({"begins": number}) + "\n")
            ended = outcome.tried(target, folder / "work/case")
            if ended.kind in outcome.FAILURES:
                outcome.prepared(target, number, seeds, folder / "work/case")
                _keep(folder, target.name, number, ended.text)
            entry: dict[str, Any] = {"number": number, "kind": ended.kind, "peak": _peak()}
            results.write(json.dumps({**entry, "text": ended.text[-5000:]}) + "\n")
    return 0


def _limit_memory(mebibytes: int) -> None:
    """What asks for more than this, on top of what TensorFlow has, fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _peak() -> int:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in whose) >> 10


def _show(options: argparse.Namespace, folder: Path) -> int:
    from fuzz import outcome
    from fuzz.targets import TARGETS

    target = TARGETS[options.targets[0]]
    seeds = _seeds(target.name, folder)
    _limit_memory(options.memory)
    print(outcome.prepared(target, options.case, seeds, folder / "work/case"), flush=True)
    ended = outcome.tried(target, folder / "work/case")
    print(f"{ended.kind} after {ended.seconds:.1f} s: {ended.text}")
    return 1 if ended.kind in outcome.FAILURES else 0


_COLUMNS = (  # heading, kind of outcome
    ("accepted", "accepted"),
    ("1 line", "clean lines"),
    ("other", "other lines"),
    ("traces", "tracebacks"),
    ("crash", "crashes"),
    ("hang", "hangs"),
    ("left", "files left"),
)


def table(tallies: Sequence[Tally]) -> str:
    heads = "".join(f"{head:>{_width(head)}}" for head, _ in _COLUMNS)
    return "\n".join([f"{'target':15}{'cases':>6}{heads}{'MiB':>6}{'s':>6}", *map(row_of, tallies)])


def _width(head: str) -> int:
    return max(len(head) + 1, 6)


def row_of(tally: Tally) -> str:
    cells = "".join(f"{tally.counts[kind]:>{_width(head)}}" for head, kind in _COLUMNS)
    total = sum(tally.counts.values())
    return f"{tally.name:15}{total:>6}{cells}{tally.peak:>6}{tally.seconds:>6.0f}"


def _reports(tally: Tally) -> Iterator[str]:
    for number, kind, text in tally.failures:
        yield f"{tally.name} --case {number}: {kind}\n{text.strip()}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
