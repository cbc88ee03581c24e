"""Reconstruction after channel pruning, against least squares written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from small_models import families, inputs, randomize_batch_norm, short_blocks, toy

from mobilenet.compression.pruning.channel import reconstruction, surgery
from mobilenet.configs import archs
from mobilenet.errors import UsageError
from mobilenet.models import builder
from mobilenet.models.builder import config_of
from mobilenet.models.graph.roles import Graph

REMAINING = {"a": np.arange(0, 8, 2), "d": np.arange(10)}


def outputs(model: Any, layer: str, images: Any) -> np.ndarray:
    part = tf_keras.Model(model.input, model.get_layer(layer).output)
    return np.asarray(part(images, training=False), np.float64)


def fitted(model: Any, images: Any) -> tuple[Any, dict[str, float]]:
    masked = surgery.mask_channels(model, REMAINING)
    return masked, reconstruction.reconstruct_consumers(Graph(model), Graph(masked), images)


def ridge(reads: np.ndarray, target: np.ndarray, kernel: np.ndarray) -> tuple[Any, Any]:
    """The kernel and offset nearest to `target`; the rows below the samples are the ridge."""
    count, width = reads.shape
    middle, level = reads.mean(0), target.mean(0)
    weight = np.sqrt(width * (reads - middle).var(0).mean())  # width / count of each sample's
    rows = np.concatenate([reads - middle, weight * np.eye(width)])
    aims = np.concatenate([target - level, weight * kernel])
    solution = np.linalg.lstsq(rows, aims, rcond=None)[0]
    return solution, level - middle @ solution


def test_a_layer_is_the_least_squares_solution() -> None:
    """`d`, a convolution with a bias, after four pruned channels."""
    model, images = randomize_batch_norm(toy()), inputs(60)
    masked, errors = fitted(model, images)
    reads = outputs(masked, "sum", images).reshape(-1, 8)[:, ::2]
    target = outputs(model, "d", images).reshape(-1, 16)[:, :10]
    start = np.asarray(model.get_layer("d").kernel, np.float64)[0, 0][::2, :10]
    kernel, offset = ridge(reads, target, start)
    got = masked.get_layer("d")
    np.testing.assert_allclose(got.kernel.numpy()[0, 0][::2, :10], kernel, atol=2e-5)
    np.testing.assert_allclose(got.bias.numpy()[:10], offset, atol=2e-5)
    assert not got.kernel.numpy()[..., 10:].any() and not got.bias.numpy()[10:].any()
    distance = np.square(reads @ kernel + offset - target).sum()
    bias = model.get_layer("d").bias.numpy()[:10]
    before = np.square(reads @ start + bias - target).sum()
    assert errors["d"] == pytest.approx(distance / before, rel=1e-3) and 0 < errors["d"] < 0.9


def test_a_batch_norm_is_fitted_through() -> None:
    """One follows `c`: its output is the target, its statistics become those of `c`."""
    model, images = randomize_batch_norm(toy(bias=True)), inputs(60)
    masked, errors = fitted(model, images)
    norm = model.get_layer("c_norm")
    gain = (norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)).numpy()
    reads = outputs(masked, "b_act", images).reshape(-1, 8)[:, ::2]
    target = outputs(model, "c_norm", images).reshape(-1, 8)[:, ::2]
    start = (model.get_layer("c").kernel.numpy()[0, 0] * gain)[::2, ::2]
    kernel, offset = ridge(reads, target, start)
    got = outputs(masked, "c_norm", images).reshape(-1, 8)[:, ::2]
    np.testing.assert_allclose(got, reads @ kernel + offset, atol=1e-4)
    conv_outputs = outputs(masked, "c", images).reshape(-1, 8)[:, ::2]
    norm = masked.get_layer("c_norm")
    np.testing.assert_allclose(norm.moving_mean.numpy()[::2], conv_outputs.mean(0), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance.numpy()[::2], conv_outputs.var(0), rtol=1e-3)
    assert set(errors) == {"c", "d", "e"}  # the stem's input is unchanged


def test_training_starts_from_the_fitted_model() -> None:
    """Batch statistics of all images are the moving ones, or a first step would undo the fit."""
    model, images = randomize_batch_norm(toy()), inputs(60)

    def distance(x: Any) -> float:
        target = x(images, training=False)
        return float(np.abs(x(images, training=True) - target).max())

    masked, _ = fitted(model, images)
    assert distance(masked) < 0.3 * distance(surgery.mask_channels(model, REMAINING))


def test_a_duplicate_channel_takes_over_completely() -> None:
    model = randomize_batch_norm(toy())
    kernel, bias = model.get_layer("d").get_weights()
    kernel[..., 1::2], bias[1::2] = kernel[..., ::2], bias[::2]
    model.get_layer("d").set_weights([kernel, bias])
    images = inputs(200)
    remaining = {"a": np.arange(8), "d": np.arange(0, 16, 2)}
    masked = surgery.mask_channels(model, remaining)
    before = np.abs(masked(images) - model(images)).max()
    errors = reconstruction.reconstruct_consumers(Graph(model), Graph(masked), images)
    assert set(errors) == {"e"} and errors["e"] < 0.01
    assert np.abs(masked(images) - model(images)).max() < 0.15 * before


def test_a_tensor_too_large_for_memory_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = randomize_batch_norm(toy()), inputs(30)
    remaining, _ = fitted(model, images)
    monkeypatch.setattr(reconstruction, "_MAX_BYTES", 1 << 16)
    anew, _ = fitted(model, images)
    for one, other in zip(remaining.get_weights(), anew.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", families())
def test_every_family_comes_closer_to_the_original_model(name: str) -> None:
    tf_keras.utils.set_random_seed(0)
    fields = {"width_multiplier": 0.25, "num_classes": 4, "classifier_activation": None}
    config = archs.get(name, blocks=short_blocks(name), **fields)
    model = randomize_batch_norm(builder.build(config, (32, 32, 3)))
    images = inputs(64, 32)
    thinned = surgery.thin(model, 0.25, round_to=1)
    better = surgery.reconstruct(model, thinned, images)
    target = model.predict(images, verbose=0)
    distance = [
        np.square(x.model.predict(images, verbose=0) - target).mean() for x in (thinned, better)
    ]
    assert distance[1] < 0.5 * distance[0]
    assert better.config == thinned.config == config_of(better.model)
    assert better.verify(images[:8]) <= surgery.TOLERANCE


def test_a_model_without_a_config() -> None:
    model = randomize_batch_norm(toy())
    thinned = surgery.thin(model, {"d": 0.5}, round_to=1)
    better = surgery.reconstruct(model, thinned, inputs(60))
    assert better.config is None
    assert better.model.get_layer("d").filters == 8
    better.verify(inputs(8))


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (4, 8, 8, 3), (16, 16, 3)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = toy()
    thinned = surgery.thin(model, {"d": 0.5}, round_to=1)
    with pytest.raises(UsageError, match=r"images: got .* expected \[n, 16, 16, 3\], n above 0"):
        surgery.reconstruct(model, thinned, np.zeros(shape, np.float32))
