"""Int8 kernels in a float file: against numpy's own rounding, and where constants are shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras
from small_models import CLASSES, SIZE, L, families, file_inputs, hard_swish_model, pixels
from tflite_files import invoke

from mobilenet.configs.number_formats import FORMATS
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.rewrites import dynamic_range
from mobilenet.export.verification import structure
from mobilenet.runtime import interpreter
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.tensors import layer_name

NAMES = families()
QUANTIZED = ("CONV_2D", "FULLY_CONNECTED")


def kernels(data: bytes) -> list[tuple[str, Any]]:
    """Operator and kernel tensor, in execution order."""
    content = tflite_model.read(data)
    named = (*QUANTIZED, "DEPTHWISE_CONV_2D")
    return [
        (op.name, content.tensors[op.inputs[1]]) for op in content.operators if op.name in named
    ]


def biases(data: bytes) -> list[np.ndarray]:
    """Of the operators whose kernels become int8; one that has none adds 0."""
    content = tflite_model.read(data)
    actual = []
    for op in content.operators:
        if op.name in QUANTIZED:
            none = len(op.inputs) < 3 or op.inputs[2] < 0
            actual.append(np.zeros(1) if none else content.tensors[op.inputs[2]].data)
    return actual


def mixed_model() -> Any:
    """A convolution, a depthwise one, a pointwise one, a dense layer; positive inputs inside."""
    tf_keras.utils.set_random_seed(5)
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.Conv2D(8, 3, strides=2, padding="same", bias_initializer="normal")(source))
    depthwise = L.DepthwiseConv2D(3, padding="same")
    x = L.ReLU(6.0)(depthwise(x))
    depthwise.bias.assign(np.linspace(0, 5, 8))
    x = L.ReLU(6.0)(L.Conv2D(48, 1, name="point", bias_initializer="normal")(x))
    return tf_keras.Model(source, L.Dense(CLASSES, name="out")(L.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def original() -> bytes:
    return tflite_converter.float_flatbuffer(mixed_model())


@pytest.fixture(scope="module")
def converted(original: bytes) -> bytes:
    return dynamic_range.quantize_kernels(original, file_inputs(pixels(8)), narrow=0)


def test_kernels_are_the_rounded_ones_operator_by_operator(
    original: bytes, converted: bytes
) -> None:
    pairs = list(zip(kernels(original), kernels(converted), strict=True))
    assert [name for (name, _), _ in pairs] == [
        "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "FULLY_CONNECTED",
    ]  # fmt: skip
    for (name, before), (_, after) in pairs:
        if name == "DEPTHWISE_CONV_2D":
            assert after.dtype == "float32" and bytes(after.buffer) == bytes(before.buffer)
            continue
        rows = before.data.reshape(len(before.data), -1).astype(np.float64)
        scales = np.abs(rows).max(axis=1) / 127
        assert after.dtype == "int8" and after.quantized_dimension == 0
        np.testing.assert_allclose(after.scales, scales, rtol=1e-6)
        assert not after.zero_points.any()
        values = after.data.reshape(rows.shape)
        assert np.abs(values).max() == 127
        steps = values - rows / scales[:, None]
        assert np.abs(steps).max() <= 0.7501  # a quarter past the tie at most
        assert np.mean(np.abs(steps) > 0.5) < 0.1
        nearest = np.round(rows / scales[:, None]) - rows / scales[:, None]
        assert np.abs(steps.sum(axis=1)).mean() < 0.6 * np.abs(nearest.sum(axis=1)).mean()
    assert (
        dynamic_range.find_faults(
            tflite_model.read(original), tflite_model.read(converted), narrow=0
        )
        == []
    )
    assert structure.format_faults(tflite_model.read(converted), FORMATS["dynamic_range"]) == []


def layer_inputs(model: Any, images: np.ndarray) -> list[np.ndarray]:
    """The float model's inputs of `point` and `out`, `[positions, channels]`."""
    expected = [model.get_layer(name).input for name in ("point", "out")]
    actual = tf_keras.Model(model.inputs, expected)(images, training=False)
    return [values.numpy().reshape(-1, values.shape[-1]) for values in actual]


def errors(data: bytes, model: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of the same layers: the rounding error of the kernel `[inputs, channels]`, and the bias."""
    actual = []
    for (_, tensor), bias, name in zip(
        kernels(data)[2:], biases(data)[1:], ("point", "out"), strict=True
    ):
        kernel = model.get_layer(name).kernel.numpy()
        kernel = kernel.reshape(-1, kernel.shape[-1])
        actual.append((tensor.data.reshape(len(tensor.data), -1).T * tensor.scales - kernel, bias))
    return actual


def test_biases_are_corrected_for_the_mean_shift(original: bytes) -> None:
    """By numpy; the dense layer's bias is 0, and the converter has left it out."""
    model, images = mixed_model(), file_inputs(pixels(8))
    mended = errors(dynamic_range.quantize_kernels(original, images, narrow=0), model)
    plain = errors(dynamic_range.quantize_kernels(original, narrow=0), model)
    for values, (error, bias), (_, old) in zip(
        layer_inputs(model, images), mended, plain, strict=True
    ):
        np.testing.assert_allclose(bias, old - values.mean(axis=0) @ error, atol=1e-5)
    assert (
        dynamic_range.find_faults(
            tflite_model.read(original),
            tflite_model.read(dynamic_range.quantize_kernels(original, images, narrow=0)),
            narrow=0,
        )
        == []
    )


def test_correction_on_noise_helps_other_images(original: bytes) -> None:
    model = mixed_model()
    noise = dynamic_range.noise_images(8, (SIZE, SIZE, 3)) / 127.5 - 1
    values = layer_inputs(model, file_inputs(pixels(40)))[0].mean(axis=0)
    (error, old), (_, bias) = (
        errors(dynamic_range.quantize_kernels(original, images, narrow=0), model)[0]
        for images in (None, noise)
    )
    before, after = values @ error, values @ error + bias - old
    assert np.abs(after).mean() < 0.3 * np.abs(before).mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_looks_like_photos_in_its_figures(channels: int) -> None:
    images = dynamic_range.noise_images(16, (48, 64, channels), seed=1)
    assert images.shape == (16, 48, 64, channels)
    assert images.min() >= 0 and images.max() <= 255
    assert 95 < images.mean() < 135 and 40 < images.std() < 75
    neighbor_correlation = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    assert neighbor_correlation > 0.7  # white noise has 0
    np.testing.assert_array_equal(
        images, dynamic_range.noise_images(16, (48, 64, channels), seed=1)
    )


def test_zeros_clusters_and_dead_channels_stay() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=6)
    weights = rng.choice([0.0, *values], size=(12, 3, 3, 10)).astype(np.float32)
    weights[3] = 0
    weights[4] = 1e-42  # no scale of normal size reaches it
    quantized, scales = dynamic_range.round_kernel(weights)
    assert quantized.dtype == np.int8 and quantized.shape == weights.shape
    assert np.all(quantized[weights == 0] == 0)
    assert scales[3] == scales[4] == 1 and not quantized[3].any() and not quantized[4].any()
    assert np.all(scales >= np.finfo(np.float32).tiny)
    for channel, (stored, real) in enumerate(zip(quantized, weights, strict=True)):
        pairs = set(zip(stored.ravel().tolist(), real.ravel().tolist(), strict=True))
        assert len(pairs) == len(np.unique(real)), f"channel {channel} splits equal weights"


def test_a_weight_that_is_not_finite_is_named(original: bytes) -> None:
    model = editor.open_flatbuffer(original)
    tensor = next(t for t in model.subgraphs[0].tensors if b"point" in t.name and len(t.shape) == 4)
    values = np.frombuffer(model.buffers[tensor.buffer].data.tobytes(), np.float32).copy()
    values[7] = np.nan
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    with pytest.raises(UsageError, match=r"kernel .*point.*: got 'NaN or infinity'"):
        dynamic_range.quantize_kernels(editor.pack_flatbuffer(model))


def twin_model() -> Any:
    """The same pointwise layer twice, and two convolutions with one bias and one kernel."""
    tf_keras.utils.set_random_seed(6)
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.Conv2D(8, 3, bias_initializer="normal")(source))
    twice = L.Conv2D(8, 1, bias_initializer="normal")
    first, second = L.Conv2D(8, 1), L.Conv2D(8, 1)
    x = first(L.ReLU(6.0)(twice(L.ReLU(6.0)(twice(x)))))
    x = second(L.ReLU(6.0)(x))
    second.set_weights(first.get_weights())
    return tf_keras.Model(source, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def test_shared_constants_are_left_to_those_that_share_them() -> None:
    model = twin_model()
    original = tflite_converter.float_flatbuffer(model)
    content = tflite_model.read(original)
    used = [op.inputs[1:3] for op in content.operators if op.name in QUANTIZED]
    assert len(set(used)) < len(used), "the converter merges no equal constants any more"
    converted = dynamic_range.quantize_kernels(original, file_inputs(pixels(8)), narrow=0)
    assert dynamic_range.find_faults(content, tflite_model.read(converted), narrow=0) == []
    expected, outputs = (
        invoke(original, file_inputs(pixels(20))),
        invoke(converted, file_inputs(pixels(20))),
    )
    np.testing.assert_allclose(outputs, expected, atol=0.03 * np.abs(expected).max())
    shared = [
        index for index, t in enumerate(tflite_model.read(converted).tensors) if t.dtype == "int8"
    ]
    assert len(shared) == len({kernel for kernel, _ in used})


def test_a_bias_that_a_depthwise_layer_reads_is_left_to_it(original: bytes) -> None:
    model = editor.open_flatbuffer(original)
    stem, depthwise = model.subgraphs[0].operators[:2]
    stem.inputs = np.array([*stem.inputs[:2], depthwise.inputs[2]], np.int32)
    shared = editor.pack_flatbuffer(model)
    converted = dynamic_range.quantize_kernels(shared, file_inputs(pixels(8)), narrow=0)
    assert (
        dynamic_range.find_faults(tflite_model.read(shared), tflite_model.read(converted), narrow=0)
        == []
    )
    assert np.abs(biases(converted)[0] - biases(shared)[0]).max() > 0
    content = tflite_model.read(converted)
    first, second = content.operators[:2]
    assert content.tensors[second.inputs[2]].data is not None
    assert first.inputs[2] != second.inputs[2]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_one_partition_with_equal_outputs(
    name: str, float_file: Callable[..., bytes]
) -> None:
    original = float_file(name, short=True)
    noise = dynamic_range.noise_images(2, (32, 32, 3)) / 127.5 - 1
    converted = dynamic_range.quantize_kernels(original, noise)
    content = tflite_model.read(converted)
    assert dynamic_range.find_faults(tflite_model.read(original), content) == []
    assert structure.format_faults(content, FORMATS["dynamic_range"]) == []
    assert interpreter.partitions(interpreter.make_interpreter(content)) == 1
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    expected, outputs = invoke(original, images), invoke(converted, images)
    # Measured: up to 0.03 of the largest logit; a wrong scale moves them by all of it.
    np.testing.assert_allclose(outputs, expected, atol=0.1 * np.abs(expected).max())


def formats(data: bytes) -> dict[str, str]:
    """Type of each kernel by the name of its layer."""
    return {
        layer_name(tensor).split("/")[1]: tensor.dtype
        for name, tensor in kernels(data)
        if name in QUANTIZED
    }


def wide_model() -> Any:
    """Kernels of 27 values to 32 channels, 32 to 31, 31 to 32, 32 to 32; then of single
    positions.
    """
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(32, 3, name="stem")(source)
    for channels, name in ((31, "few_out"), (32, "few_in"), (32, "wide")):
        x = L.ReLU(6.0)(L.Conv2D(channels, 1, name=name, use_bias=False)(x))
    x = L.GlobalAveragePooling2D(keepdims=True)(x)
    x = L.ReLU(6.0)(L.Conv2D(8, 1, name="squeeze")(x))
    return tf_keras.Model(source, L.Dense(CLASSES, name="out")(L.Flatten()(x)))


def test_narrow_kernels_stay_float_on_feature_maps() -> None:
    original = tflite_converter.float_flatbuffer(wide_model())
    content = tflite_model.read(dynamic_range.quantize_kernels(original, file_inputs(pixels(8))))
    actual = formats(content.content)
    narrow = ("stem", "few_out", "few_in")
    assert {name for name, kind in actual.items() if kind == "float32"} == set(narrow)
    assert set(actual.values()) == {"float32", "int8"} and len(actual) == 6
    assert structure.format_faults(content, FORMATS["dynamic_range"]) == []
    assert dynamic_range.find_faults(tflite_model.read(original), content) == []
    assert set(formats(dynamic_range.quantize_kernels(original, narrow=0)).values()) == {"int8"}
    for other in (31, 33):  # another rule than the one that is verified
        file = tflite_model.read(dynamic_range.quantize_kernels(original, narrow=other))
        assert len(dynamic_range.find_faults(tflite_model.read(original), file)) == (
            1 if other == 33 else 2
        )
    for slot in (1, 2):  # of the stem, which was to stay as it was
        file = broken(content.content, changed(slot, 0, 3))
        faults = dynamic_range.find_faults(tflite_model.read(original), file)
        assert faults and all("another constant than in the float" in x for x in faults)


def test_a_model_of_narrow_kernels_is_rounded_entirely() -> None:
    source = L.Input((SIZE, SIZE, 3))
    model = tf_keras.Model(
        source, L.Conv2D(4, 3, name="second")(L.Conv2D(4, 3, name="first")(source))
    )
    actual = formats(dynamic_range.quantize_kernels(tflite_converter.float_flatbuffer(model)))
    assert actual == {"first": "int8", "second": "int8"}


def test_a_float_file_is_not_of_the_format(original: bytes) -> None:
    faults = structure.format_faults(tflite_model.read(original), FORMATS["dynamic_range"])
    assert faults == ["no kernel is int8"]


def test_a_kernel_that_a_narrow_operator_shares_stays_float_there() -> None:
    """The same layer on a map and on a single position; only on the latter int8 is faster."""
    tf_keras.utils.set_random_seed(8)
    source = L.Input((SIZE, SIZE, 8))
    twice = L.Conv2D(8, 1, bias_initializer="normal")
    x = L.GlobalAveragePooling2D(keepdims=True)(L.ReLU(6.0)(twice(source)))
    original = tflite_converter.float_flatbuffer(tf_keras.Model(source, L.Flatten()(twice(x))))
    converted = dynamic_range.quantize_kernels(original)
    assert [tensor.dtype for _, tensor in kernels(converted)] == ["float32", "int8"]
    assert (
        dynamic_range.find_faults(tflite_model.read(original), tflite_model.read(converted)) == []
    )
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 8)).astype(np.float32)
    expected = invoke(original, images)
    np.testing.assert_allclose(
        invoke(converted, images), expected, atol=0.03 * np.abs(expected).max()
    )


def test_hard_swish_and_residuals_keep_their_outputs() -> None:
    original = tflite_converter.float_flatbuffer(hard_swish_model(softmax=True))
    converted = dynamic_range.quantize_kernels(original, file_inputs(pixels(8)), narrow=0)
    expected = invoke(original, file_inputs(pixels(40)))
    np.testing.assert_allclose(
        invoke(converted, file_inputs(pixels(40))), expected, atol=0.02 * np.abs(expected).max()
    )


def broken(converted: bytes, change: Callable[[Any], None]) -> tflite_model.Flatbuffer:
    model = editor.open_flatbuffer(converted)
    change(model)
    return tflite_model.read(editor.pack_flatbuffer(model))


def changed(slot: int, operator: int, folder: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        buffer = model.buffers[graph.tensors[graph.operators[operator].inputs[slot]].buffer]
        buffer.data = np.array(buffer.data)
        buffer.data[folder] ^= 0x40

    return change


def test_what_a_file_lost_is_reported(original: bytes, converted: bytes) -> None:
    before = tflite_model.read(original)
    (fault,) = dynamic_range.find_faults(before, broken(converted, changed(1, 0, 5)), narrow=0)
    assert "1 weights are more than a step" in fault
    (fault,) = dynamic_range.find_faults(before, broken(converted, changed(1, 1, 3)), narrow=0)
    assert "another constant than in the float file" in fault
    assert dynamic_range.find_faults(
        before, tflite_model.read(tflite_converter.float_flatbuffer(hard_swish_model(softmax=True)))
    ) == ["the operators are not those of the float file"]
    half = np.where(np.arange(27) % 2, 0.5, 0).astype(np.float32)
    actual = dynamic_range._kernel_faults("k", half[None], _kernel(np.ones((1, 27)), [0.5]))
    assert actual == ["k: 14 zeros of the kernel are not zero in the file"]
    actual = dynamic_range._kernel_faults("k", half[None], _kernel(np.arange(27)[None], [0.5]))
    assert "1 channels have more distinct weights" in actual[-1]
    (fault,) = dynamic_range._kernel_faults("k", half[None], _kernel(np.ones((2, 27)), [1, 1]))
    assert "another shape" in fault


def _kernel(values: np.ndarray, scales: list[float]) -> Any:
    class Stored:
        data = values.astype(np.int8)
        dtype = "int8"

    Stored.scales = np.array(scales, np.float32)  # type: ignore[attr-defined]
    return Stored


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("float16", ["lacks a DEQUANTIZE", "is int8 instead of float16"]),
        ("edge_dynamic", ["is float32 instead of int8"]),
        ("int16x8", ["is float32 instead of int8", "tensors are not int16"]),
    ],
)
def test_a_file_of_another_format_is_reported(
    converted: bytes, name: str, parts: list[str]
) -> None:
    faults = "; ".join(structure.format_faults(tflite_model.read(converted), FORMATS[name]))
    for part in parts:
        assert part in faults


def test_one_scale_for_all_channels_is_reported(converted: bytes) -> None:
    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        stored = graph.tensors[graph.operators[2].inputs[1]].quantization
        stored.scale, stored.zeroPoint = stored.scale[:1], np.ones(1, np.int64)

    faults = structure.format_faults(broken(converted, change), FORMATS["dynamic_range"])
    assert len(faults) == 2
    assert "1 scales for 48 channels" in faults[0] and "zero points other than 0" in faults[1]
