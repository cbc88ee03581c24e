"""int4 files of kernels on a 4-bit grid: the grid is recovered, stored exactly, and used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

from mobilenet import converter
from mobilenet.compression.quantization.weight_sharing.uniform import SignedMinMax
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.export.rewrites import ai_edge
from mobilenet.models import saving
from mobilenet.models.graph.roles import kind
from mobilenet.tflite import model as tflite_model

needs_edge = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_quantizer") is None,
    reason="ai-edge-quantizer (extra `edge`) is not installed",
)


def unpacked(stored: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """The values of an int4 tensor."""
    halves = np.frombuffer(stored, np.uint8)
    both = np.stack([halves & 15, halves >> 4], axis=1).ravel()[: int(np.prod(shape))]
    return ((both.astype(np.int8) ^ 8) - 8).reshape(shape)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose 1x1 kernels have the values of `--quantization linear`, 4 bits."""
    folder = tmp_path_factory.mktemp("four") / "model"
    model = small_models.randomize_batch_norm(small_models.toy(), 4)
    for layer in model.layers:
        if kind(layer) == "Conv2D" and layer.kernel.shape[0] == 1:
            kernel = layer.kernel.numpy()
            code = SignedMinMax(kernel, 4)
            layer.kernel.assign(code.weights(kernel, code.parameters))
    saving.save(model, folder, Card(input_shape=(16, 16, 3), preprocessing=small_models.INCEPTION))
    return folder


@given(st.integers(0, 1 << 32), st.integers(1, 6), st.integers(1, 9))
def test_the_step_of_each_channel_is_recovered(seed: int, channels: int, weights: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-7, 8, (channels, 1, 1, weights))
    gains = np.exp(rng.normal(size=(channels, 1, 1, 1)) * 3)
    kernel = (np.float32(0.37) * values.astype(np.float32)) * gains.astype(np.float32)
    actual = ai_edge.channel_steps(kernel)
    assert actual is not None and actual.shape == (channels,)
    multiples = kernel / actual.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-4)
    assert np.abs(multiples).max() < 7.001


def test_a_channel_may_skip_steps_or_be_zero() -> None:
    kernel = np.array([[0.0, 3.0, -5.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.5]], np.float32)
    np.testing.assert_allclose(ai_edge.channel_steps(kernel), [1.0, 1.0, 0.5])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kernel",
    [[[1.0, 8.0]], [[1.0, 2.0], [1.0, 6.501]], [[1.0, 2.0, 6.99]]],
    ids=["more than 7 steps", "one channel is off", "between two steps"],
)
def test_other_kernels_lie_on_no_grid(kernel: list[list[float]]) -> None:
    assert ai_edge.channel_steps(np.array(kernel, np.float32)) is None


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_values_are_packed_without_loss(numbers: list[int]) -> None:
    values = np.array(numbers, np.int8)
    stored = ai_edge.pack_int4(values)
    assert len(stored) == (len(numbers) + 1) // 2
    assert stored[0] & 15 == numbers[0] & 15  # the first in the lower half, as the runtime reads it
    np.testing.assert_array_equal(unpacked(memoryview(stored), (len(numbers),)), values)


@needs_edge
def test_a_4_bit_model_becomes_an_int4_file(
    saved_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    converter.run([f"--model={saved_model}", f"--output={out}", "--number_format=edge_int4"])
    outputs, err = capfd.readouterr()
    assert err == "" and "int4 kernels" in outputs
    assert "not comparable: the model decides alike" in " ".join(outputs.split())  # random weights
    content = tflite_model.read((out / "model.tflite").read_bytes())
    stored = [tensor for tensor in content.tensors if tensor.dtype == "int4"]
    model = saving.load(saved_model).model
    layers = [x for x in model.layers if kind(x) == "Conv2D" and x.kernel.shape[0] == 1]
    assert len(stored) == len(layers) > 0
    by_shape = {tuple(t.shape): t for t in stored}
    for layer in layers:
        kernel = layer.kernel.numpy()[0, 0].T  # [channels, inputs]; the norm's gain is not in it
        tensor = by_shape[len(kernel), 1, 1, kernel.shape[1]]
        values = unpacked(tensor.buffer, tensor.shape)[:, 0, 0]
        # The file's steps hold the norm's gain, which may turn a channel's sign.
        ratio = (values * kernel).sum(1) / np.maximum(np.square(kernel).sum(1), 1e-12)
        np.testing.assert_allclose(values, ratio[:, None] * kernel, atol=1e-3)
        assert np.array_equal(values == 0, kernel == 0)


@needs_edge
def test_the_packages_own_scales_leave_the_grid(saved_model: Path) -> None:
    """What `set_grid_values` corrects: most channels' largest weight is no multiple of 7."""
    from mobilenet.export import freeze, tflite_converter
    from mobilenet.export.rewrites import ai_edge

    data = tflite_converter.float_flatbuffer(freeze.float32_copy(saving.load(saved_model).model))
    mended = ai_edge.apply_recipe(data, "edge_int4")
    plain, converted = tflite_model.read(data), tflite_model.read(mended)
    grid = ai_edge.grid_scales(plain)
    off = []
    for index, scale in grid.items():
        kernel = plain.tensors[index].data
        assert kernel is not None
        steps = kernel / (np.abs(kernel).max((1, 2, 3), keepdims=True) / 7)
        off.append(np.abs(steps - np.rint(steps)) > 0.01)
        np.testing.assert_allclose(converted.tensors[index].scales, scale)
    assert np.concatenate([x.ravel() for x in off]).mean() > 0.2


@needs_edge
def test_a_model_without_a_grid_is_refused(tmp_path: Path) -> None:
    model = small_models.randomize_batch_norm(small_models.toy(), 4)
    folder = tmp_path / "model"
    saving.save(model, folder, Card(input_shape=(16, 16, 3), preprocessing=small_models.INCEPTION))
    args = [f"--model={folder}", f"--output={tmp_path / 'out'}", "--number_format=edge_int4"]
    with pytest.raises(UsageError, match="kernels on a 4-bit grid") as caught:
        converter.run(args)
    assert len(str(caught.value).splitlines()) == 1
