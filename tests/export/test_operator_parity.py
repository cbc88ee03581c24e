"""Each operator of a file against its layer: on sound files, and on files with one fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras
from int8_files import Int8Model, file_tensors, int8_family, quantize_to_file
from small_models import INCEPTION, SIZE, file_inputs, pixels, toy

from mobilenet import metrics
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs.conversion import VerificationLimits
from mobilenet.export import freeze, tflite_converter
from mobilenet.export.verification import error_diagnosis, operator_parity, verify
from mobilenet.runtime import interpreter
from mobilenet.tflite import kernels
from mobilenet.tflite import model as tflite_model

L = tf_keras.layers
IMAGES = pixels(4, seed=9)
SPARSE = ("a", "c", "d")  # layers of the toy whose kernels get zeros


@pytest.fixture(scope="module")
def converted() -> Int8Model:
    model = toy(bias=True)
    for name in SPARSE:
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel))
    model.get_layer("d").bias.assign(np.random.default_rng(1).normal(0, 0.2, 16))
    return quantize_to_file(model)


def compare(
    converted: Int8Model, data: bytes | None = None, simulated: Any = None
) -> tuple[dict[str, operator_parity.OperatorParity], list[str]]:
    content = tflite_model.read(converted.data if data is None else data)
    rows, faults = operator_parity.compare_operators(
        content, simulated or converted.wrapped, converted.plain, file_inputs(IMAGES)
    )
    return {row.layer: row for row in rows}, faults


def edited(data: bytes, layer: str, operand: int, change: Callable[[np.ndarray], None]) -> bytes:
    """The file with one constant of a layer's operator changed."""
    content = tflite_model.read(data)
    names = [content.tensors[op.outputs[0]].name for op in content.operators]
    (folder,) = [i for i, name in enumerate(names) if name.split(";")[0].split("/")[1] == layer]
    tensor = content.tensors[content.operators[folder].inputs[operand]]
    values = tensor.data.copy()
    change(values)
    old = bytes(tensor.buffer)
    assert data.count(old) == 1
    return data.replace(old, values.tobytes())


def test_every_rounded_tensor_has_a_row_in_order(converted: Int8Model) -> None:
    rows, faults = compare(converted)
    assert faults == []
    assert list(rows) == ["a_act", "b_act", "c_norm", "sum", "d_act", "pool", "e"]
    assert [row.operator for row in rows.values()] == [
        "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "CONV_2D", "MEAN", "CONV_2D",
    ]  # fmt: skip
    for row in rows.values():
        assert row.max_steps <= 1
        assert row.differing < 0.03
        assert (row.differing > 0) == (row.max_steps > 0)


def test_kernel_zeros_are_counted_in_the_file(converted: Int8Model) -> None:
    rows, _ = compare(converted)
    for layer, row in {"a": "a_act", "c": "c_norm", "d": "d_act"}.items():
        kernel = converted.plain.get_layer(layer).kernel.numpy()
        share = rows[row].kernel_zeros
        assert share is not None
        assert 0.45 < np.mean(kernel == 0) <= share < 0.6  # small weights round to zero as well
    assert rows["sum"].kernel_zeros is None


@pytest.mark.parametrize("factor", [1.01, 0.3])
def test_a_wrong_range_is_reported_at_its_layer_alone(converted: Int8Model, factor: float) -> None:
    """Values of a scale that is 1 % off never differ by a step: the scale itself is compared."""
    wrapped = scheme.wrap(converted.plain, INCEPTION)
    span = converted.ranges["b_act"] * np.float32(factor)
    scheme.set_ranges(wrapped, {**converted.ranges, "b_act": span})
    int8_saving.prepare_export(wrapped)
    rows, (fault,) = compare(converted, simulated=wrapped)
    content = tflite_model.read(converted.data)
    (depthwise,) = [op for op in content.operators if op.name == "DEPTHWISE_CONV_2D"]
    scale = content.tensors[depthwise.outputs[0]].scales[0]
    assert fault.startswith(f"b_act: scale {scale:.6g} and zero point -128 instead of ")
    assert all(p.max_steps <= 1 for name, p in rows.items() if name != "b_act")
    if factor < 1:
        (fault,) = operator_parity.step_faults(rows.values(), 1)
        assert fault.startswith("b_act (DEPTHWISE_CONV_2D): ")
    assert operator_parity.step_faults(rows.values(), None) == []


def test_a_zero_point_halfway_may_be_rounded_up_or_down(converted: Int8Model) -> None:
    """-3..15, a range of hard-swish equalization, has its zero at -85.5; TensorFlow rounds it
    up.
    """
    wrapped = scheme.wrap(converted.plain, INCEPTION)
    scheme.set_ranges(wrapped, {**converted.ranges, "c_norm": np.float32((-3, 15))})
    int8_saving.prepare_export(wrapped)
    data = tflite_converter.int8_flatbuffer(wrapped)
    grids = [actual[1:] for actual in file_tensors(data, IMAGES[:1]).values()]
    assert [zero for scale, zero in grids if scale == pytest.approx(18 / 255)] == [-85]
    _, faults = compare(converted, data, wrapped)
    assert faults == []


def test_a_wrong_bias_is_reported_at_its_layer_alone(converted: Int8Model) -> None:
    def shift(bias: np.ndarray) -> None:
        bias += 40 * np.abs(bias).max()

    rows, faults = compare(converted, edited(converted.data, "quant_d_act", 2, shift))
    assert faults == []
    assert rows["d_act"].max_steps > 1
    assert all(p.max_steps <= 1 for name, p in rows.items() if name != "d_act")


def test_a_zero_that_is_lost_is_a_fault(converted: Int8Model) -> None:
    def grow(values: np.ndarray) -> None:
        values[values == 0] = 1

    _, faults = compare(converted, edited(converted.data, "quant_c", 1, grow))
    (lost,) = [fault for fault in faults if "zeros" in fault]
    zeros = np.count_nonzero(converted.plain.get_layer("c").kernel.numpy() == 0)
    assert lost == f"c: {zeros} zeros of the kernel are not zero in the file"
    assert any("kernel values differ from the simulation" in fault for fault in faults)


def test_another_model_of_the_same_shape_is_reported(converted: Int8Model) -> None:
    other = toy(bias=True)
    other.set_weights([w[..., ::-1] for w in converted.plain.get_weights()])
    rows, faults = compare(quantize_to_file(other), converted.data)
    assert max(row.max_steps for row in rows.values()) > 10
    assert len(faults) >= 5


def test_operators_and_layers_without_counterpart_are_reported(converted: Int8Model) -> None:
    renamed = converted.data.replace(b"quant_sum", b"quant_xxx")
    _, faults = compare(converted, renamed)
    assert any("1 operators belong to no layer of the model, the first ADD" in f for f in faults)
    renamed = converted.data.replace(b"quant_e/", b"quant_x/")
    _, faults = compare(converted, renamed)
    assert any(fault == "no operator of the file computes e" for fault in faults)


def test_signal_to_noise_is_that_of_the_stored_values(converted: Int8Model) -> None:
    """Against tensors read without a delegate; single steps apart move it by little."""
    rows, _ = compare(converted)
    tensors = file_tensors(converted.data, IMAGES)
    for row, own in {"a_act": "a", "c_norm": "c", "d_act": "d_act"}.items():
        (name,) = [n for n in tensors if n.split("/")[1] == f"quant_{own}"]
        values, scale, zero = tensors[name]
        model = tf_keras.Model(converted.plain.inputs, converted.plain.get_layer(row).output)
        real = model(file_inputs(IMAGES), training=False).numpy().astype(np.float64)
        noise = real - (values.astype(np.float64) - zero).reshape(real.shape) * scale
        expected = 10 * np.log10(np.sum(real**2) / np.sum(noise**2))
        assert rows[row].signal_to_noise == pytest.approx(expected, abs=0.3)


def test_worst_layers_are_those_that_add_most_noise(converted: Int8Model) -> None:
    rows, _ = compare(converted)
    first = rows["a_act"]
    assert first.signal_to_noise is not None
    share = 10 ** (-first.signal_to_noise / 10)
    assert first.added_noise == pytest.approx(share, rel=0.01)  # the input is exact
    assert first.input_signal_to_noise == metrics.MAX_SIGNAL_TO_NOISE
    worst = operator_parity.noisiest(list(rows.values()), 3)
    assert [p.added_noise for p in worst] == sorted(
        (p.added_noise for p in rows.values()), reverse=True
    )[:3]


def test_the_mean_of_one_position_is_left_out_and_the_rest_is_verified() -> None:
    source = L.Input((SIZE, SIZE, 3), name="input")
    x = L.ReLU(6.0, name="a_act")(L.Conv2D(8, SIZE, strides=SIZE, name="a")(source))
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Flatten(name="flat")(L.Conv2D(4, 1, name="e")(x))
    rows, faults = compare(quantize_to_file(tf_keras.Model(source, x, name="single")))
    assert faults == []
    assert list(rows) == ["a_act", "e"]


def test_average_pooling_and_softmax_are_verified() -> None:
    source = L.Input((SIZE, SIZE, 3), name="input")
    x = L.ReLU(6.0, name="a_act")(L.Conv2D(8, 3, strides=2, name="a")(source))
    x = L.AveragePooling2D(7, name="pool")(x)
    x = L.Flatten(name="flat")(L.Conv2D(4, 1, name="e")(x))
    converted = quantize_to_file(tf_keras.Model(source, x, name="windows"))
    both = freeze.with_activation(converted.wrapped, "softmax")
    data = tflite_converter.int8_flatbuffer(both)
    rows, faults = compare(converted, data, both)
    assert faults == []
    assert {name: p.operator for name, p in rows.items()} == {
        "a_act": "CONV_2D", "pool": "AVERAGE_POOL_2D", "e": "CONV_2D", "probabilities": "SOFTMAX",
    }  # fmt: skip
    assert all(row.max_steps <= 1 for row in rows.values())


@pytest.mark.xdist_group("compression/int8")  # whose tests take the same files
@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", pytest.param("mobilenet_v3_large", marks=pytest.mark.slow)]
)
def test_generic_keeps_one_hard_swish_each_and_is_verified(name: str) -> None:
    """Quantizers are on both sides of a hard-swish and none inside; nothing stays float."""
    converted = int8_family(name)
    wrapped = scheme.wrap(converted.plain, INCEPTION, "generic")
    left = {n for n, q in scheme.quantizers(wrapped).items() if n in converted.ranges}
    inside = set(converted.ranges) - left
    swish = {x.name for x in converted.plain.layers if x.name.endswith("_hard_swish")}
    assert inside == {f"{n}_{part}" for n in swish for part in ("relu6", "scale")}
    scheme.set_ranges(wrapped, {n: converted.ranges[n] for n in left})
    int8_saving.prepare_export(wrapped)
    content = tflite_model.read(tflite_converter.int8_flatbuffer(wrapped))
    assert verify.structure_faults(content, True, "int8") == []
    assert sum(op.name == "HARD_SWISH" for op in content.operators) == len(swish)
    assert interpreter.partitions(interpreter.make_interpreter(content)) > len(swish)
    images = file_inputs(pixels(2, 64, seed=9))
    rows, faults = operator_parity.compare_operators(content, wrapped, converted.plain, images)
    assert faults == []
    assert {row.layer for row in rows} == left
    assert max(row.max_steps for row in rows) <= 1


def test_a_file_is_verified_with_its_operators(converted: Int8Model) -> None:
    limits = VerificationLimits()
    outputs = converted.wrapped(file_inputs(pixels(12)), training=False).numpy()

    def check(limits: VerificationLimits, data: bytes = converted.data) -> verify.Verification:
        return verify.verify(
            data,
            outputs,
            file_inputs(pixels(12)),
            expect_int8=True,
            io="int8",
            limits=limits,
            simulated=converted.wrapped,
            plain=converted.plain,
        )

    actual = check(limits)
    assert actual.ok, actual.faults
    strict = check(VerificationLimits(max_operator_steps=0))
    apart = [row.layer for row in strict.layers if row.max_steps]
    assert [fault.split()[0] for fault in strict.faults] == apart
    assert [row["layer"] for row in actual.to_json()["layers"]][:2] == ["a_act", "b_act"]
    other = converted.data.replace(b"quant_sum", b"quant_xxx")
    wrong = check(limits, other)
    assert any("belong to no layer" in fault for fault in wrong.faults)


def test_lost_zeros_and_clusters_are_reported() -> None:
    model = np.array([[0.5, 0.0], [0.25, 0.0], [0.5, 1.0]])
    values = np.array([[127, 0], [64, 0], [127, 127]], np.int16)
    assert kernels.kernel_faults("a", model, values, values.astype(np.int8)) == []
    turned = values * np.array([1, -1])  # a batch norm of negative gamma
    assert kernels.kernel_faults("a", model, values, turned.astype(np.int8)) == []
    spread = values.copy()
    spread[0, 0] = 126  # two weights of one cluster come apart
    faults = kernels.kernel_faults("a", model, spread, spread.astype(np.int8))
    assert faults == ["a: 1 channels have more distinct weights than in the model"]
    (fault,) = kernels.kernel_faults("a", model, values, values[:2])
    assert "a kernel of [2, 2] instead of [3, 2]" in fault


def test_distinct_values_are_counted_by_column() -> None:
    matrix = np.random.default_rng(0).integers(-3, 4, (50, 6))
    assert kernels.distinct(matrix).tolist() == [len(set(column)) for column in matrix.T]
    assert kernels.distinct(matrix[:0]).tolist() == [0] * 6


def signal(real: np.ndarray, low: float, high: float, layer: str = "x") -> error_diagnosis.Signal:
    """A tensor as int8 stores it in the range low..high."""
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    values = np.clip(np.round(real / scale) + zero, -128, 127)
    return error_diagnosis.Signal(
        layer, real, scale, zero, metrics.signal_to_noise(real, (values - zero) * scale)
    )


def cause_of(own: error_diagnosis.Signal, inputs: list[error_diagnosis.Signal], kind: str) -> str:
    return error_diagnosis.diagnose(own, inputs, kind).text


def test_each_cause_of_noise_has_its_message() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(-1, 1, (4, 5, 5, 16))
    large = even.copy()
    large[..., 3] *= 40
    assert cause_of(signal(0 * even, 0, 1), [], "kernel") == "always zero"
    assert cause_of(signal(np.round(even), -128, 127), [], "kernel") == "exact"
    moved = cause_of(signal(np.abs(even), 0, 1e-3), [], "kernel")
    assert moved.startswith("range never moved")
    actual = cause_of(signal(large, -40, 40), [], "depthwise")
    times = np.abs(large).max((0, 1, 2)).max() / np.median(np.abs(large).max((0, 1, 2)))
    assert actual == f"depthwise range {times:.0f} times the median channel (channel 3)"
    actual = cause_of(signal(large, -40, 40), [], "kernel")
    assert actual.startswith("one channel sets the range: channel 3, 4")
    actual = cause_of(signal(even, -12, 12), [], "kernel")
    assert actual == "range 12 times that of the values"
    actual = cause_of(signal(even, -0.5, 0.5), [], "kernel")
    assert "of the values are clipped: the range ends at" in actual
    assert float(actual.split("%")[0]) == pytest.approx(50, abs=3)
    assert cause_of(signal(even, -1, 1), [], "other") == "its own rounding, evenly spread"


def test_noise_of_the_inputs_names_their_layer() -> None:
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (4, 5, 5, 16))
    noisy = error_diagnosis.Signal("before", real, 2 / 255, 0, 10.0)
    own = error_diagnosis.Signal("x", real, 2 / 255, 0, 9.5)
    assert cause_of(own, [noisy], "kernel") == "noise of its input, before"
    clean = error_diagnosis.Signal("before", real, 2 / 255, 0, 40.0)
    assert cause_of(own, [clean], "kernel") == "rounding of its kernel and of its inputs"
    assert cause_of(own, [clean], "other") == "it amplifies the noise of its inputs"
    large = real.copy()
    large[..., 7] *= 30
    unequal = error_diagnosis.Signal("before", large, 60 / 255, 0, 25.0)
    actual = cause_of(own, [unequal], "depthwise")
    assert actual.startswith("one channel sets the range of its input before: channel 7, ")


def test_signal_to_noise_is_bounded() -> None:
    real = np.array([3.0, -4.0])
    assert metrics.signal_to_noise(real, real + 0.5) == pytest.approx(10 * np.log10(25 / 0.5))
    assert metrics.signal_to_noise(real, real) == metrics.MAX_SIGNAL_TO_NOISE
    assert metrics.signal_to_noise(0 * real, real) is None
    assert metrics.signal_to_noise(real, np.array([np.nan, 0])) is None
