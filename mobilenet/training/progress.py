"""Progress of a stage: a bar on a terminal, and one line an epoch."""

from __future__ import annotations

import logging
import sys
from typing import Any

import tf_keras
import tqdm

log = logging.getLogger("mobilenet")
_STEPS_PER_FIGURES = 20  # of the bar


class Progress(tf_keras.callbacks.Callback):
    """One bar a stage (on a terminal only), and one line an epoch, also in the log.

    The bar counts images, and has images a second and the time that is left of the stage.

    Args:
        stage: its name.
        epochs: of the stage.
        steps_per_epoch: of the stage.
        batch_size: images a step, on all replicas together.
        has_bar: show the bar.
    """

    def __init__(
        self, stage: str, epochs: int, steps_per_epoch: int, batch_size: int, has_bar: bool = True
    ) -> None:
        super().__init__()
        self.has_bar = has_bar
        self.stage, self.epochs, self.steps_per_epoch = stage, epochs, steps_per_epoch
        self.batch_size = batch_size
        self.done = 0  # steps before this epoch
        self.bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.done = epoch * self.steps_per_epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if self.bar is None and self.has_bar and sys.stderr.isatty():
            self.bar = tqdm.tqdm(
                total=self.epochs * self.steps_per_epoch * self.batch_size,
                initial=(self.done + batch) * self.batch_size,
                desc=self.stage,
                unit=" images",
                unit_scale=True,
                leave=False,
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.bar is None:
            return
        step = self.done + batch + 1
        if (
            logs
            and step // _STEPS_PER_FIGURES > self.bar.n // self.batch_size // _STEPS_PER_FIGURES
        ):
            self.bar.set_postfix(
                loss=f"{logs['loss']:.3f}",
                top1=f"{100 * logs['top1']:.1f}%",
                lr=f"{float(self.model.optimizer.learning_rate):.2g}",
                refresh=False,
            )
        self.bar.update(step * self.batch_size - self.bar.n)

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
