"""Twenty steps of each method on digits, on one device or by a strategy, for comparison.

Batch norms are synchronized: those of a MirroredStrategy normalize the images of one replica.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from short_training import stage_context
from small_models import CLASSES, SIZE, toy

from mobilenet import data
from mobilenet.compression import method as methods
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.configs.training import TrainConfig
from mobilenet.configs.weight_sharing import CodebookQuantization
from mobilenet.training import engine
from mobilenet.training.optimization.ema import Average

STEPS, BATCH = 20, 32
CONFIG = TrainConfig(
    epochs=1, batch_size=BATCH, optimizer_name="rmsprop", lr=0.005, ma_decay_rate=0.5
)
METHODS = {
    "float": None,
    "magnitude": MagnitudePruning(frequency=4, final_sparsity={"pointwise": 0.75}),
    "channel": ChannelPruning(ratio={"all": 0.5}, round_to=1, frequency=4),
    "surgery": DnsPruning(frequency=4, probabilities=(0.6,), boundaries=()),
    "qat": QuantizationAwareTraining(calibration_images=32),
    "codebook": CodebookQuantization(pointwise=4),
}


def synchronize(model: Any) -> None:
    """Lets batch norms normalize over the images of all replicas."""
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.fused, layer.synchronized = False, True


class Curve(tf_keras.callbacks.Callback):
    """The loss of each step, from the running mean, and how far apart the replicas end."""

    def __init__(self, local_values: Any, method: Any) -> None:
        super().__init__()
        self.sums: list[float] = [0.0]
        self.local_values, self.method = local_values, method
        self.apart = -1.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.sums.append(logs["loss"] * (batch + 1))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        state = [*self.model.model.weights, *self.model.optimizer.variables]
        owners = [cell.cell_contents for cell in self.model.after_update.__closure__]
        owners += vars(self.method).values() if self.method else ()
        assert any(isinstance(owner, Average) for owner in owners)
        state += [v for owner in owners if isinstance(owner, tf.Module) for v in owner.variables]
        values = [[np.asarray(v, float) for v in self.local_values(item)] for item in state]
        self.apart = max(float(np.abs(c - own[0]).max(initial=0)) for own in values for c in own)

    @property
    def losses(self) -> list[float]:
        return np.diff(self.sums).tolist()


def batches(start: int, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    loaded = data.load(
        "digits", "train", image_size=SIZE, batch_size=BATCH, training=True, seed=3,
        start_step=start, input_context=context,
    )  # fmt: skip
    return loaded.map(lambda images, labels: (images, labels % CLASSES))


def curve(name: str, strategy: Any, folder: Path) -> dict[str, Any]:
    """The losses of a method's steps, and the largest difference between replicas at the end."""
    with strategy.scope():
        of_method = METHODS[name]
        method = None if of_method is None else methods.create(of_method, stage_context(STEPS))
        model = toy() if method is None else method.apply(toy())
        synchronize(model)
        watch = Curve(strategy.experimental_local_results, method)
        validation = batches(0).take(1)
        # Rounding makes a jump of a last bit, which a high learning rate amplifies.
        config = CONFIG.replace(lr=0.2 * CONFIG.lr) if name == "qat" else CONFIG
        job = engine.Job(
            "train", config, STEPS, batches, validation, CLASSES, folder / name, (watch,)
        )
        engine.fit(model, method, job)
    return {"losses": watch.losses, "apart": watch.apart}
