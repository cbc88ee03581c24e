"""Resume states: all that a stage needs to continue after it was killed, written atomically."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from mobilenet import files, strict_json
from mobilenet.errors import UsageError
from mobilenet.training import strategy

log = logging.getLogger("mobilenet")
Row = dict[str, float]
_PREFIX, _VARIABLES, _POSITION = "state-", "variables", "position.json"
_CHECKSUMS = "checksums.json"
_OLD_MARKER = "checkpoint"  # of version 0.1


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a stage has come.

    Attributes:
        step: updates so far.
        rows: one for each finished epoch.
        seconds: that the unfinished epoch has taken.
    """

    step: int = 0
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Of its state; names sort in the order of training."""
        return f"{_PREFIX}{len(self.rows):05}-{self.step:010}"


class Checkpoints:
    """The newest states of one stage, each a folder with the checksums of its files.

    Args:
        folder: `checkpoints/<stage>` of the run.
        keep: number of states that are kept.
        is_written: other workers than the chief take part in saving, and keep nothing.
        objects: what is saved, by name.
    """

    def __init__(
        self, folder: Path, keep: int = 2, is_written: bool = True, **objects: Any
    ) -> None:
        self.folder, self.keep, self.is_written = folder, keep, is_written
        self.checkpoint = tf.train.Checkpoint(**objects)

    def restore(self) -> Position:
        """Loads the newest state that is not damaged; without any state, the start.

        Raises:
            UsageError: all states are damaged, or one is of another model.
        """
        states = _states(self.folder)
        for path in reversed(states):
            try:
                position = _read_position(path)
            except ValueError as damage:
                log.warning("%s is damaged (%s); looking for the state before it", path, damage)
                continue
            self._load(path)
            return position
        if states:
            expected = "the resume state of this stage; every one is damaged"
        elif (self.folder / _OLD_MARKER).exists():
            expected = "a resume state of this version of the package"
        else:
            return Position()
        raise UsageError(
            str(self.folder), None, expected, "remove this folder to start the stage again"
        )

    def save(self, position: Position) -> None:
        """Saves the state at a position, then removes damaged and old ones.

        Raises:
            UsageError: it cannot be written; the states before it are untouched.
        """
        if not self.is_written:
            with tempfile.TemporaryDirectory() as aside:
                self.checkpoint.write(f"{aside}/{_VARIABLES}")
            return
        path = self.folder / position.name
        try:
            with files.replacing(path) as temporary:
                temporary.mkdir()
                with strategy.ended_workers(tf.distribute.get_strategy()):
                    self.checkpoint.write(str(temporary / _VARIABLES))
                files.write_json(temporary / _POSITION, dataclasses.asdict(position))
                _write_checksums(temporary)
        except tf.errors.OpError as error:
            reason = (error.message or str(error)).splitlines()[0].rpartition("; ")[2]
            reason = reason.partition(" [Op:")[0]
            expected = f"a path that can be written ({reason})"
            remedy = "free space; the same run then continues from the state before"
            raise UsageError(str(path), None, expected, remedy) from None
        states = _states(self.folder)
        damaged = [state for state in states if state.name > path.name]  # or it had been loaded
        states = states[: len(states) - len(damaged)]
        for old in (*damaged, *states[: -self.keep]):
            shutil.rmtree(old, ignore_errors=True)

    def clear(self) -> None:
        """Removes the states of a finished stage."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self, path: Path) -> None:
        status = None
        try:
            status = self.checkpoint.read(str(path / _VARIABLES))
            status.assert_existing_objects_matched()
        except (AssertionError, IndexError, TypeError, ValueError, tf.errors.OpError) as error:
            if status is not None:
                status.expect_partial()  # or TensorFlow lists every weight on the terminal
            reason = str(error).splitlines()[0]
            raise UsageError(
                str(path),
                None,
                f"the state of this stage ({reason})",
                "start again with `overwrite`",
            ) from None


def newest_state(folder: Path) -> Path | None:
    """The newest state of a stage, by the folder of its states."""
    return next(reversed(_states(folder)), None)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))


def _write_checksums(folder: Path) -> None:
    digests = {path.name: files.sha256(path).hex() for path in sorted(folder.iterdir())}
    files.write_json(folder / _CHECKSUMS, digests)


def _read_position(folder: Path) -> Position:
    """The position of a state, whose files are checked.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        digests = strict_json.loads((folder / _CHECKSUMS).read_bytes())
        if not {_POSITION, f"{_VARIABLES}.index"} <= set(digests):
            raise ValueError(f"{_CHECKSUMS} has changed")
        for name, digest in digests.items():
            if files.sha256(folder / name).hex() != digest:
                raise ValueError(f"{name} has changed")
        content = strict_json.loads((folder / _POSITION).read_bytes())
        return Position(content["step"], tuple(content["rows"]), content["seconds"])
    except OSError as error:
        name = Path(error.filename or folder).name
        raise ValueError(f"{name}: {error.strerror}") from None
    except (AttributeError, TypeError, KeyError):
        raise ValueError(f"{_CHECKSUMS} has changed") from None
