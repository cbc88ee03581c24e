"""What TensorBoard shows of a stage: curves, sparsity, weights, training images, the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tensorboard.plugins.hparams import api as hparams

from mobilenet.configs import base
from mobilenet.models.graph import variables

_SHOWN = (
    *("loss", "top1", "val_loss", "val_top1", "val_auc", "val_f1"),
    *("sparsity", "target_sparsity"),
)
_IMAGES = 16

Images = Callable[[], npt.NDArray[np.uint8]]


class Board(tf_keras.callbacks.TensorBoard):
    """Keras' TensorBoard callback, for the model in the learner.

    Under `train/` and `validation/`, so that both are curves of one plot: `epoch_loss`,
    `epoch_top1` (percent), `epoch_learning_rate`, and, if asked for, a histogram of each weight;
    where a stage compresses, `sparsity/LAYER`, the share of zeros in each kernel, and of pruning
    `epoch_sparsity` and `epoch_target_sparsity`; in the first stage the model's graph and `training
    images`, as the model sees them; and the config for the HParams page.

    Args:
        folder: of the event files of this stage.
        histogram_epochs: epochs from one histogram of each weight to the next; 0 for none.
        shows_sparsity: of each kernel.
        images: gives some training images, pixels `[n, height, width, channels]`; at most 16 are
            shown. They and the graph are written before the first epoch; without them neither is.
        config: the values of the HParams page, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        histogram_epochs: int = 0,
        shows_sparsity: bool = False,
        images: Images | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(str(folder), histogram_freq=histogram_epochs, write_graph=False)
        self.shows_sparsity, self.images, self.config = shows_sparsity, images, config

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if int(self.model.step):  # the stage continues
            return
        with self._train_writer.as_default(step=0):
            if self.config:
                hparams.hparams(dict(self.config))
            if self.images is not None:
                tf.summary.image("training images", self.images(), max_outputs=_IMAGES)
                tf.summary.graph(_graph(self.model.model))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        shown = {name: value for name, value in (logs or {}).items() if name in _SHOWN}
        super().on_epoch_end(epoch, shown)
        if self.shows_sparsity:
            with self._train_writer.as_default(step=epoch):
                for name, share in sparsity(self.model.model).items():
                    tf.summary.scalar(f"sparsity/{name}", share)
        for writer in self._writers.values():
            writer.flush()


def _graph(model: Any) -> tf.Graph:
    """The graph of a model in inference mode."""
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    image = tf.TensorSpec([1, *model.input_shape[1:]])
    return function.get_concrete_function(image).graph


def sparsity(model: Any) -> dict[str, float]:
    """The share of zeros in the kernel of each layer that has one."""
    kernels = ((layer.name, variables.kernel(layer)) for layer in model.layers)
    return {
        name: 1 - float(np.count_nonzero(kernel)) / kernel.shape.num_elements()
        for name, kernel in kernels
        if kernel is not None
    }


def flat(config: Mapping[str, Any]) -> dict[str, str | float | int | bool]:
    """The values of nested JSON by dotted names, as HParams and experiment trackers take them."""
    return {
        name: value if isinstance(value, str | float | int) else ",".join(map(str, value))
        for name, value in base.flat(config).items()
        if value is not None and not isinstance(value, Mapping)
    }
