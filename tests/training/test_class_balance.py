"""Balanced sampling and class weights in every stage: they resume to the same bits, and act."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import CONFIG, Signal, make_job, stage_context  # noqa: E402
from small_models import inputs, randomize_batch_norm, toy  # noqa: E402

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs import dataset, recipes  # noqa: E402
from mobilenet.configs.base import Config  # noqa: E402
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning  # noqa: E402
from mobilenet.configs.quantization import QuantizationAwareTraining  # noqa: E402
from mobilenet.configs.weight_sharing import CodebookQuantization  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.run_data import RunData  # noqa: E402

DIGITS, SIDE, BATCH = 10, 8, 400
BATCH_40 = "batch_size=40"
STEPS = 1257 // BATCH  # an epoch of the embedded digits
METHODS = {
    "magnitude": MagnitudePruning({"pointwise": 0.5}, frequency=2),
    "channel": ChannelPruning(round_to=1, frequency=2, reconstruct=0),
    "dns": DnsPruning(frequency=2, probabilities=(1.0,), boundaries=()),
    "qat": QuantizationAwareTraining(calibration_images=8),
    "codebook": CodebookQuantization(depthwise=5, pointwise=4),
}


def digits_model() -> Any:
    tf_keras.utils.set_random_seed(1)
    source = tf_keras.layers.Input((SIDE, SIDE, 3))
    x = tf_keras.layers.Conv2D(4, 3, strides=2, activation="relu")(source)
    x = tf_keras.layers.Dropout(0.2)(tf_keras.layers.Flatten()(x))
    return tf_keras.Model(source, tf_keras.layers.Dense(DIGITS)(x))


@pytest.mark.parametrize(
    "settings",
    [{"mixup": 0.4, "accumulation_steps": 2}, pytest.param({}, marks=pytest.mark.slow)],
)
def test_a_killed_run_with_balanced_sampling_ends_with_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """It is killed in the second epoch, whose order is another than that of the first."""
    images = dataset.DIGITS.replace(sampling="balanced")
    run = recipes.get("mobilenet_v1", "digits").replace(dataset=images, image_size=SIDE)
    data = RunData(run, run.preprocessing)
    parts = settings.get("accumulation_steps", 1)
    config = CONFIG.replace(epochs=2, batch_size=BATCH // parts, **settings)

    def fit(name: str, *callbacks: Any) -> list[Any]:
        job = dataclasses.replace(
            make_job(tmp_path / name, config, *callbacks),
            steps_per_epoch=STEPS,
            training=lambda start: data.dataset("train", BATCH, start),
            validation=data.dataset("train", BATCH, 0).take(1),
            classes=DIGITS,
            seed=3,
        )
        model = digits_model()
        engine.fit(model, None, job)
        return list(model.get_weights())

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", Signal(STEPS + 2))
    for one, other in zip(fit("killed"), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_class_weights_multiply_the_loss_of_every_method(name: str, tmp_path: Path) -> None:
    config: Config = METHODS[name]
    start = randomize_batch_norm(toy())
    images = inputs(8, seed=5)
    batch = tf.data.Dataset.from_tensors((images, np.arange(8, dtype=np.int32) % 4))

    def loss(folder: str, weights: list[float] | None) -> float:
        method = methods.create(config, stage_context(2))
        job = dataclasses.replace(
            make_job(tmp_path / folder, CONFIG.replace(epochs=1, lr=1e-9)),
            steps_per_epoch=2,
            training=lambda step: batch.repeat(),
            validation=batch,
            class_weights=weights,
        )
        return float(engine.fit(method.apply(start), method, job)[0]["loss"])

    assert loss("weighted", [3.0] * 4) == pytest.approx(3 * loss("plain", None), rel=1e-3)
