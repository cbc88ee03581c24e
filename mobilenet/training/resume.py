"""Resume state: all that a stage needs to continue after it was killed, written atomically."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from mobilenet import strict_json
from mobilenet.errors import UsageError

Row = dict[str, float]


class Checkpoints:
    """The newest states of one stage; TensorFlow lists a state only when it is complete.

    Args:
        folder: `checkpoints/<stage>` of the run.
        keep: number of states that are kept.
        objects: what is saved, by name.
    """

    def __init__(self, folder: Path, keep: int = 2, **objects: Any) -> None:
        self.folder = folder
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.rows = tf.Variable("[]", dtype=tf.string, trainable=False)
        checkpoint = tf.train.Checkpoint(epoch=self.epoch, rows=self.rows, **objects)
        self.manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=keep)

    def restore(self) -> tuple[int, list[Row]]:
        """Loads the newest state; returns the epochs done and their history (0, none without one).

        Raises:
            UsageError: the state belongs to another model or is damaged.
        """
        latest = self.manager.latest_checkpoint
        if latest is None:
            return 0, []
        status = None
        try:
            status = self.manager.checkpoint.restore(latest)
            status.assert_existing_objects_matched()
            rows = list(strict_json.loads(self.rows.numpy()))
        except (AssertionError, IndexError, TypeError, ValueError, tf.errors.OpError) as error:
            if status is not None:
                status.expect_partial()  # or TensorFlow lists every weight on the terminal
            reason = str(error).splitlines()[0]
            raise UsageError(
                latest, None, f"the state of this stage ({reason})", "start again with `overwrite`"
            ) from None
        return int(self.epoch.numpy()), rows

    def save(self, epoch: int, rows: list[Row]) -> None:
        """Saves the state after `epoch` epochs."""
        self.epoch.assign(epoch)
        self.rows.assign(json.dumps(rows))
        self.manager.save(checkpoint_number=epoch)

    def clear(self) -> None:
        """Removes the states of a finished stage."""
        shutil.rmtree(self.folder, ignore_errors=True)
