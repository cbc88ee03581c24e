"""Layers that compute in float inside an int8 file: what stays float, the file, and its
verification.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from small_models import (
    INCEPTION,
    SIZE,
    L,
    file_inputs,
    hard_swish_model,
    inputs,
    pixels,
    randomize_batch_norm,
    toy,
)

from mobilenet.compression.quantization.int8 import float_layers, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.int8.quantizer_placement import place_quantizers
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import operator_parity, verify
from mobilenet.reporting import int8_comparison
from mobilenet.tflite import model as tflite_model

IMAGES = pixels(6, seed=9)


class PartlyFloat:
    """An int8 model with some layers in float."""

    def __init__(self, plain: Any, *patterns: str, io: str = "int8", restored: bool = True) -> None:
        self.plain, self.io = plain, io
        self.wrapped = scheme.wrap(plain, INCEPTION, keep_float=patterns)
        calibrate(self.wrapped, inputs(24))
        self.outputs = self.wrapped(inputs(6, seed=9), training=False).numpy()
        int8_saving.prepare_export(self.wrapped)
        self.floats = float_fallback.FloatLayers(
            float_layers.folded_kernels(self.wrapped),
            float_layers.find_all_float_layers(self.wrapped),
        )
        floats = self.floats if restored else float_fallback.NO_FLOAT_LAYERS
        self.data = tflite_converter.int8_flatbuffer(self.wrapped, io, float_layers=floats)

    def verified(
        self, data: bytes | None = None, floats: float_fallback.FloatLayers | None = None
    ) -> Any:
        return verify.verify(
            data or self.data,
            self.outputs,
            file_inputs(IMAGES),
            expect_int8=True,
            io=self.io,
            simulated=self.wrapped,
            plain=self.plain,
            float_layers=self.floats if floats is None else floats,
        )

    def kernels(self) -> dict[str, str]:
        """Type of each kernel by the layer that its operator is named after."""
        content = tflite_model.read(self.data)
        types = {}
        for op in content.operators:
            names = float_fallback.layers_of(content.tensors[op.outputs[0]])
            if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                (name,) = names & {"first", "middle", "last", "dense", *"abcde"}
                types[name] = content.tensors[op.inputs[1]].dtype
        return types


@pytest.fixture(scope="module")
def model() -> Any:
    """Do not change it."""
    return hard_swish_model()


@pytest.fixture(scope="module")
def single() -> PartlyFloat:
    """A single 1x1 convolution in float between int8 layers."""
    return PartlyFloat(randomize_batch_norm(toy()), "c")


def quantized_outputs(model: Any, *patterns: str) -> list[str]:
    return [name for name, p in place_quantizers(model, keep_float=patterns).items() if p.output]


def test_nothing_is_quantized_between_float_layers(model: Any) -> None:
    every = ["norm", "six", "scale", "swish", "relu", "sum", "last", "pool", "dense"]
    assert quantized_outputs(model) == every
    # A hard-swish is part of the layer before it; an int8 layer's input is quantized once.
    assert quantized_outputs(model, "first") == ["swish", "relu", "sum", "last", "pool", "dense"]
    # All inputs of the sum are float, so it is float too.
    assert quantized_outputs(model, "first", "middle") == ["sum", "last", "pool", "dense"]
    assert quantized_outputs(model, "middle") == every
    assert quantized_outputs(model, "last") == [x for x in every if x != "last"]
    assert quantized_outputs(model, ".*") == ["dense"]
    assert quantized_outputs(model, "dense") == every


def test_a_float_layer_between_int8_layers_computes_as_numpy_does(single: PartlyFloat) -> None:
    content = tflite_model.read(single.data)
    values = operator_parity.tensor_values(content, file_inputs(IMAGES))
    (end, region), *others = float_fallback.find_float_regions(content).items()
    assert not others and [op.name for op in region.operators] == [
        "DEQUANTIZE",
        "CONV_2D",
        "QUANTIZE",
    ]
    source = content.tensors[region.sources[0]]
    real = (values[source.index].astype(np.float64) - source.zero_points[0]) * source.scales[0]
    convolution, norm = (single.plain.get_layer(name) for name in ("c", "c_norm"))
    gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
    kernel = convolution.kernel.numpy()[0, 0].astype(np.float64)
    value = (real @ kernel - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    output = content.tensors[end]
    expected = np.clip(np.round(value / output.scales[0]) + output.zero_points[0], -128, 127)
    assert np.mean(values[end] != expected) < 1e-3  # a tie is rounded up or down in float32
    folded = content.tensors[region.operators[1].inputs[1]].data
    scaled = kernel * gamma / np.sqrt(variance + norm.epsilon)
    np.testing.assert_allclose(folded[:, 0, 0].T, scaled, rtol=1e-5)


def test_a_file_with_float_layers_is_verified_and_runs_in_one_partition(
    single: PartlyFloat,
) -> None:
    verification = single.verified()
    assert verification.faults == () and verification.partitions == 1
    assert verification.contents == "int8, 1 layer in float"
    assert {p.layer: p.operator for p in verification.layers}["c_norm"] == "CONV_2D in float"
    assert max(p.max_steps for p in verification.layers) <= 1
    assert verification.float_tensors == 4  # its input, output, kernel and bias
    assert {name for name, dtype in single.kernels().items() if dtype == "float32"} == {"c"}


@pytest.mark.parametrize("io", ["int8", "float32"])
@pytest.mark.parametrize(
    ("patterns", "floats"),
    [
        (("first",), {"first"}),
        (("first", "middle"), {"first", "middle"}),
        (("dense",), {"dense"}),
        (("last|middle",), {"last", "middle"}),
        ((".*",), {"first", "middle", "last", "dense"}),
    ],
)
def test_any_layer_can_stay_float(
    model: Any, patterns: tuple[str, ...], floats: set[str], io: str
) -> None:
    quantized = PartlyFloat(model, *patterns, io=io)
    verification = quantized.verified()
    assert verification.faults == () and verification.partitions == 1
    assert {name for name, dtype in quantized.kernels().items() if dtype == "float32"} == floats


def test_float_elsewhere_is_a_fault(model: Any, single: PartlyFloat) -> None:
    two = PartlyFloat(model, "middle", "last")
    few = float_fallback.FloatLayers({"middle": two.floats.kernels["middle"]}, {"middle", "relu"})
    faults = two.verified(floats=few).faults
    assert any(fault.startswith("float operators: DEQUANTIZE, CONV_2D") for fault in faults)
    assert any("float tensors inside" in fault and "last" in fault for fault in faults)
    none = single.verified(floats=float_fallback.NO_FLOAT_LAYERS).faults
    assert "float operators: DEQUANTIZE, CONV_2D, QUANTIZE" in none


def test_int8_instead_of_float_is_a_fault() -> None:
    quantized = PartlyFloat(randomize_batch_norm(toy()), "c", restored=False)
    assert "c does not compute in float" in quantized.verified().faults


def test_a_wrong_float_kernel_is_a_fault_of_its_layer(single: PartlyFloat) -> None:
    content = tflite_model.read(single.data)
    (region,) = float_fallback.find_float_regions(content).values()
    kernel = content.tensors[region.operators[1].inputs[1]]
    old = bytes(kernel.buffer)
    assert single.data.count(old) == 1
    spoilt = single.data.replace(old, (1.3 * kernel.data).astype(np.float32).tobytes())
    faults = single.verified(spoilt).faults
    assert [fault.split(" (")[0] for fault in faults] == ["c_norm"]


def test_the_profiler_shows_float_layers(single: PartlyFloat) -> None:
    content = tflite_model.read(single.data)
    comparison = int8_comparison.compare(
        content, single.plain, inputs(6, seed=9), file_inputs(IMAGES)
    )
    lines = {line.layer: line for line in comparison}
    assert lines["c_norm"].operator == "CONV_2D in float"
    assert lines["b_act"].operator == "DEPTHWISE_CONV_2D"
    before, own = lines["b_act"].accumulated, lines["c_norm"].accumulated
    assert before is not None and own is not None and abs(own - before) < 6


def test_constants_that_int8_layers_share_stay_int8() -> None:
    """Two convolutions of the same kernel and bias share them in the file."""
    tf_keras.utils.set_random_seed(2)
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.Conv2D(4, 3, name="first")(source))
    for name in ("middle", "last"):
        x = L.ReLU(6.0)(L.Conv2D(4, 1, name=name)(x))
    model = tf_keras.Model(source, L.GlobalAveragePooling2D()(x))
    rng = np.random.default_rng(0)
    first = model.get_layer("middle")
    first.set_weights([rng.normal(size=(1, 1, 4, 4)), rng.normal(size=4)])
    model.get_layer("last").set_weights(first.get_weights())
    quantized = PartlyFloat(model, "middle")
    assert quantized.kernels() == {"first": "int8", "middle": "float32", "last": "int8"}
    assert quantized.verified().faults == ()


def test_post_training_int8_keeps_layers_float(model: Any) -> None:
    steps = ("equalize", "hard_swish", "percentile", "clip", "bias", "repair")
    config = PostTraining(steps=steps, keep_float=("first", "mid.*"))
    result = post_training_pipeline.quantize(model, INCEPTION, inputs(24), config)
    assert float_layers.find_float_layers(result.wrapped) == ("first", "middle")
    assert "swish" not in scheme.get_ranges(result.wrapped)
    assert result.notes[-1] == "in float, with the layers between them: first, middle"
    assert not any(step.name == "hard_swish" for step in result.steps)  # none is of int8


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("frist", "did you mean first?"),
        ("swish", "expected the name of a layer with a kernel: first, middle, last, dense"),
        ("mid(", "expected a regular expression"),
    ],
)
def test_layers_that_cannot_stay_float(model: Any, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match="^keep_float: got ") as raised:
        post_training_pipeline.quantize(
            model, INCEPTION, inputs(24), PostTraining(keep_float=(pattern,))
        )
    assert message in str(raised.value)
