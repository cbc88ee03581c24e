"""Kills training at random moments, continues it by the same command, and compares the results.

    python benchmarks/kill_resume.py --kills 60
    python benchmarks/kill_resume.py --kills 20 --signal TERM

Each chain of stages (float training, a way to prune, a way to quantize, conversion) runs once
without interruption. Then processes of the same command in another folder are killed, several in
one folder and equally many in each stage: some after a random time in the stage, some while a file
is being written; the last one ends by itself. Its weights, activation ranges and file are compared
with those of the uninterrupted run: bit by bit with `--deterministic` (the default), else by top-1
on the test images.

Everything lies in `--work`, where another call with a larger `--kills` goes on. The processes are
forked from one that has imported TensorFlow and not used it, which saves ten seconds each.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import random
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

STAGES = ("train", "prune", "quantize", "convert")
CHAINS = {
    "magnitude, qat": ("--pruning=magnitude", "--quantization=qat"),
    "channel, ptq": ("--pruning=channel", "--channel_ratio=0.5", "--quantization=ptq"),
    "dns, codebook": ("--pruning=dns", "--quantization=codebook"),
}
TINY = ("--width_multiplier=0.25", "--image_size=32", "--checkpoint_minutes=0.02")
COLUMNS = ("chain", "folder", "stage", "in_write", "status", "seconds", "state", "ended")
STATUS = {"KILL": -signal.SIGKILL, "TERM": 143, "INT": 130}
_POLL_SECONDS = 0.002


@dataclasses.dataclass
class Kill:
    """What happened to one process.

    Attributes:
        chain: of `CHAINS`.
        folder: name of the run folder.
        stage: that was not finished yet.
        in_write: a temporary file or folder was there when the process was killed.
        status: exit status.
        seconds: from the first work of the process in the stage that was chosen to the signal.
        state: newest resume state of the stage; empty without one.
        ended: what the process had printed on stderr.
    """

    chain: str
    folder: str
    stage: str
    in_write: bool
    status: int
    seconds: float
    state: str = ""
    ended: str = ""


class Process:
    """The trainer command in a process of its own, forked from this one."""

    def __init__(self, chain: str, folder: Path, flags: Sequence[str]) -> None:
        args = [*TINY, *CHAINS[chain], *flags, f"--model_dir={folder}"]
        self.errors = folder.with_suffix(".stderr")
        self.returncode: int | None = None
        sys.stdout.flush()
        self.number = os.fork()
        if not self.number:
            self._run(args)

    def _run(self, args: list[str]) -> NoReturn:
        from mobilenet import cli, trainer

        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            cli.main(trainer.run, args)
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            if number:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.number, number)

    def finish(self) -> None:
        """Runs to its end, which must be a success."""
        if self.wait():
            sys.exit(f"{self.errors}: status {self.returncode}\n{self.errors.read_text()}")


def is_writing(folder: Path) -> bool:
    """Whether a file is being written at the top of the run folder or among its states."""
    places = [folder, *(folder / "checkpoints").glob("*")]
    for place in places:
        try:
            with os.scandir(place) as entries:
                if any(entry.name.startswith(".writing-") for entry in entries):
                    return True
        except OSError:  # has just been renamed or removed
            continue
    return False


def unfinished(folder: Path) -> str:
    """The stage that runs in a folder, by its report."""
    report = folder / "report.json"
    entries = json.loads(report.read_text())["stages"] if report.exists() else []
    done = {entry["stage"] for entry in entries}
    return next((stage for stage in STAGES if stage not in done), "")


def is_before(stage: str, other: str) -> bool:
    """Whether a stage, or "" after the last one, comes before another."""
    return (*STAGES, "").index(stage) < STAGES.index(other)


def stage_seconds(whole: Path) -> dict[str, float]:
    """How long each stage took in the run in a folder."""
    stages = json.loads((whole / "report.json").read_text())["stages"]
    return {entry["stage"]: 60 * entry["minutes"] for entry in stages}


def wait_for_work(process: Process, folder: Path, lines: int) -> bool:
    """Waits until the log of the run has more than some lines; False if the process has ended."""
    log = folder / "log.txt"
    while process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") > lines:
            return True
        time.sleep(0.05)
    return False


def run_until_killed(
    chain: str,
    folder: Path,
    flags: Sequence[str],
    number: int,
    stage: str,
    delay: float,
    in_write: bool,
) -> Kill | None:
    """Starts the command and kills it `delay` seconds after its first work in `stage`, or at the
    first write after that; None if it ended before."""
    log = folder / "log.txt"
    lines = log.read_bytes().count(b"\n") if log.exists() else 0
    process, started = Process(chain, folder, flags), time.monotonic()
    try:
        if wait_for_work(process, folder, lines):
            while process.poll() is None and is_before(unfinished(folder), stage):
                time.sleep(0.05)
            started = time.monotonic()
        while process.poll() is None:
            late = time.monotonic() - started >= delay
            if late and (not in_write or is_writing(folder)):
                break
            time.sleep(_POLL_SECONDS)
        seconds, writing = time.monotonic() - started, is_writing(folder)
        process.signal(number)
        status = process.wait()
    finally:
        process.signal(signal.SIGKILL)
    if status == 0:
        return None
    err = process.errors.read_text().strip()
    if status not in STATUS.values():
        sys.exit(f"{chain}: status {status}\n{err}")
    stage = unfinished(folder) or STAGES[-1]
    states = sorted((folder / "checkpoints").glob(f"{stage}*/state-*"))
    name = states[-1].name if states else ""
    return Kill(chain, folder.name, stage, writing, status, round(seconds, 1), name, err)


def weights_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every array of all stages, and of the file."""
    import h5py
    import numpy as np

    for path in sorted(folder.glob("*/model.keras")):
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
        found: dict[str, bytes] = {}

        def read(name: str, item: Any, found: dict[str, bytes] = found) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()].tobytes()

        with h5py.File(weights) as file:
            file.visititems(read)
        yield from ((f"{path.parent.name}/{name}", value) for name, value in found.items())
    for path in sorted(folder.glob("*/ranges.npz")):
        with np.load(path) as ranges:
            yield from ((f"{path.parent.name}/{name}", ranges[name].tobytes()) for name in ranges)
    for path in sorted(folder.glob("export/*.tflite")):
        yield f"export/{path.name}", path.read_bytes()


def top1(folder: Path) -> dict[str, float]:
    """Top-1 on the test images by stage, in percent."""
    stages = json.loads((folder / "report.json").read_text())["stages"]
    return {entry["stage"]: entry["top1"] for entry in stages}


def compare(whole: Path, folder: Path) -> tuple[int, int, float]:
    """Arrays, arrays that differ, and the largest difference of top-1 in points."""
    one, other = dict(weights_of(whole)), dict(weights_of(folder))
    different = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    first, second = top1(whole), top1(folder)
    assert first.keys() == second.keys()
    return len(one), len(different), max(abs(first[s] - second[s]) for s in first)


class Campaign:
    """The kills of one call and of those before it in the same folder."""

    def __init__(self, work: Path, flags: Sequence[str], seed: int, per_folder: int) -> None:
        self.work, self.flags, self.seed, self.per_folder = work, flags, seed, per_folder
        self.kills_path, self.ends_path = work / "kills.csv", work / "ends.csv"
        self.kills = list(self._read())

    def _read(self) -> Iterator[Kill]:
        if self.kills_path.exists():
            with self.kills_path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    fields: dict[str, Any] = dict(row)
                    fields |= {"in_write": row["in_write"] == "True", "status": int(row["status"])}
                    yield Kill(**{**fields, "seconds": float(row["seconds"])})

    def _append(self, path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([*([columns] if is_new else []), row])

    def whole(self, chain: str) -> Path:
        """The uninterrupted run of a chain."""
        folder = self.work / f"{slug(chain)}_whole"
        Process(chain, folder, self.flags).finish()
        return folder

    def run(self, count: int, number: int) -> None:
        """Kills until there are `count` kills; each folder is then finished and compared."""
        chains = list(CHAINS)
        while len(self.kills) < count:
            folders = sum(path.is_dir() for path in self.work.glob("*_killed_*"))
            chain = chains[folders % len(chains)]
            whole = self.whole(chain)
            seconds = stage_seconds(whole)
            folder = self.work / f"{slug(chain)}_killed_{folders}"
            rng = random.Random(f"{self.seed} {folder.name}")
            left = min(self.per_folder, count - len(self.kills))
            for index in range(left):
                stage = list(seconds)[index * len(seconds) // left]
                delay, in_write = rng.uniform(0, 0.7 * seconds[stage]), rng.random() < 0.4
                kill = run_until_killed(chain, folder, self.flags, number, stage, delay, in_write)
                if kill is None:
                    break
                self.kills.append(kill)
                self._append(self.kills_path, COLUMNS, dataclasses.astuple(kill))
                print(f"{len(self.kills):>3}", *dataclasses.astuple(kill)[:-1], flush=True)
            self.finish(chain, whole, folder)

    def finish(self, chain: str, whole: Path, folder: Path) -> None:
        """Runs the command to its end and compares what is there."""
        Process(chain, folder, self.flags).finish()
        arrays, different, points = compare(whole, folder)
        row = (chain, folder.name, arrays, different, f"{points:.2f}")
        self._append(self.ends_path, ("chain", "folder", "arrays", "different", "points"), row)
        print(*row, flush=True)

    def table(self) -> list[tuple[object, ...]]:
        """A row for each chain and stage: kills, those in a write, and the chain's comparison."""
        with self.ends_path.open(newline="", encoding="utf-8") as file:
            ends = list(csv.DictReader(file))
        rows: list[tuple[object, ...]] = []
        for chain in CHAINS:
            runs = [end for end in ends if end["chain"] == chain]
            for stage in STAGES:
                kills = [k for k in self.kills if (k.chain, k.stage) == (chain, stage)]
                if kills:
                    writes = sum(kill.in_write for kill in kills)
                    rows.append((chain, stage, len(kills), writes, "", "", ""))
            if runs:
                equal = sum(int(run["different"]) == 0 for run in runs)
                points = max(float(run["points"]) for run in runs)
                total = sum(k.chain == chain for k in self.kills)
                writes = sum(k.in_write for k in self.kills if k.chain == chain)
                rows.append(
                    (chain, "all", total, writes, len(runs), f"{equal} of {len(runs)}", points)
                )
        return rows


def slug(chain: str) -> str:
    return chain.replace(", ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="processes to kill in all")
    parser.add_argument("--per_folder", type=int, default=10, help="kills in one run folder")
    parser.add_argument("--signal", choices=STATUS, default="KILL")
    parser.add_argument("--work", type=Path, default=Path("kill_resume"), help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=4, help="of each stage")
    parser.add_argument("--stages", default=",".join(STAGES), help="of each chain")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--csv", type=Path, help="write the table there too")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    flags = [f"--{stage}epochs={args.epochs}" for stage in ("", "prune_", "quantize_")]
    flags += [f"--stages={args.stages}", *(["--deterministic"] if args.deterministic else [])]
    from mobilenet import console

    with console.quiet():
        import mobilenet.training.pipeline  # noqa: F401 - before the first fork
    campaign = Campaign(args.work, flags, args.seed, args.per_folder)
    number = signal.Signals[f"SIG{args.signal}"]
    campaign.run(args.kills, number)
    import tables

    right = sum(kill.status == STATUS[args.signal] for kill in campaign.kills)
    heads = ("chain", "stage", "kills", "in a write", "runs", "bit-equal", "top-1 apart")
    tables.show(heads, campaign.table(), os.cpu_count() or 1, args.csv)
    print(f"{right} of {len(campaign.kills)} processes ended with status {STATUS[args.signal]}")


if __name__ == "__main__":
    main()
