"""Progress of a stage: a bar on a terminal, one line an epoch, and TensorBoard."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras
import tqdm

log = logging.getLogger("mobilenet")
_PLOTTED = ("loss", "top1", "val_loss", "val_top1", "val_auc", "val_f1", "lr")


class Progress(tf_keras.callbacks.Callback):
    """One bar a stage (on a terminal only), and one line an epoch, also in the log.

    Args:
        stage: its name.
        epochs: of the stage.
        steps_per_epoch: of the stage.
        has_bar: show the bar.
    """

    def __init__(self, stage: str, epochs: int, steps_per_epoch: int, has_bar: bool = True) -> None:
        super().__init__()
        self.has_bar = has_bar
        self.stage, self.epochs, self.steps_per_epoch = stage, epochs, steps_per_epoch
        self.done = 0  # steps before this epoch
        self.bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.done = epoch * self.steps_per_epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if self.bar is None and self.has_bar and sys.stderr.isatty():
            self.bar = tqdm.tqdm(
                total=self.epochs * self.steps_per_epoch,
                initial=self.done + batch,
                desc=self.stage,
                unit="step",
                leave=False,
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del batch
        if self.bar is not None:
            if self.bar.n % 20 == 0 and logs:
                self.bar.set_postfix(
                    loss=f"{logs['loss']:.3f}", top1=f"{100 * logs['top1']:.1f}%", refresh=False
                )
            self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert logs is not None
        name = "accuracy" if "val_f1" in logs else "top-1"
        auc = f"  AUC {logs['val_auc']:.4f}" if "val_auc" in logs else ""
        line = (
            f"{self.stage:<8} epoch {epoch + 1:>3}/{self.epochs}"
            f"  loss {logs['loss']:.4f}  {name} {logs['top1']:5.1f} %"
            f"  validation {logs['val_top1']:6.2f} %{auc}  {logs['seconds']:.1f} s"
        )
        if self.bar is not None:
            self.bar.clear()
        log.info(line)
        if self.bar is not None:
            self.bar.refresh()

    def on_train_end(self, logs: Any = None) -> None:
        del logs
        if self.bar is not None:
            self.bar.close()


class Board(tf_keras.callbacks.Callback):
    """The metrics of each epoch for TensorBoard.

    Args:
        folder: of the event files of this stage.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert logs is not None
        with self.writer.as_default(step=epoch + 1):
            for name in (name for name in _PLOTTED if name in logs):
                tf.summary.scalar(name, logs[name])
        self.writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        del logs
        self.writer.close()
