"""Commands as processes, some at a time; a signal to this process ends all of them cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mobilenet.errors import UsageError

_POLL_SECONDS = 0.1
_HUNG_UP = 128 + 1
_TAIL_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: of it.
        command: the words.
        output: the file of what it writes, which is replaced.
    """

    name: str
    command: Sequence[str]
    output: Path


def execute(
    next_job: Callable[[], Job | None], ended: Callable[[Job, str | None], None], jobs: int
) -> None:
    """Runs jobs until there is none.

    Where an exception ends it, as Ctrl-C and SIGTERM do, the running processes get SIGTERM and time
    to save their states; a further signal ends them at once.

    Args:
        next_job: gives the next one; `None` where there is none before another one has ended.
        ended: called after each, with the error in one line if it failed.
        jobs: how many run at once.
    """
    environment = dict(os.environ)
    if jobs > 1:  # of one GPU a process takes all memory otherwise
        environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    running: dict[subprocess.Popen[bytes], Job] = {}
    with _hangup_as_exit():
        try:
            while True:
                while len(running) < jobs and (job := next_job()) is not None:
                    running[_started(job, environment)] = job
                if not running:
                    return
                time.sleep(_POLL_SECONDS)
                for process in [one for one in running if one.poll() is not None]:
                    job = running.pop(process)
                    ended(job, _error_of(process.returncode, job.output))
        except BaseException:
            _stop(list(running))
            raise


def _started(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("wb") as output:
            # In a session of its own: Ctrl-C in the terminal would reach it a second time.
            return subprocess.Popen(
                list(job.command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        expected = f"a command that can be started ({error.strerror})"
        raise UsageError(job.name, None, expected) from None


def _error_of(status: int, output: Path) -> str | None:
    """Why a process failed; `None` if it did not."""
    if status == 0:
        return None
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    written = [" ".join(line.split()) for line in lines if line.strip()]
    return written[-1] if written else f"exit status {status}"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.send_signal(number)  # nothing to one that has ended
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # a further signal
            for process in processes:
                process.wait()
            return


@contextlib.contextmanager
def _hangup_as_exit() -> Iterator[None]:
    """A terminal that is closed ends the block by an exception, unless that is ignored."""
    is_default = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(_HUNG_UP)

    signal.signal(signal.SIGHUP, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
