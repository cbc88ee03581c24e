"""The known traps of slim's checkpoints, one test each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from slim_checkpoints import AVERAGE, PIXELS, STEP, Slim

from mobilenet import tf1_loader
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")

Written = Callable[..., tuple[Slim, slim.Values, Path]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tf1_traps")


def images(count: int = 2, shape: tuple[int, ...] = PIXELS) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, *shape)).astype(np.float32)


def run(model: Any, *tensors: Any) -> list[np.ndarray]:
    """What these tensors (or layers, by name) hold for two random images."""
    outputs = [model.get_layer(t).output if isinstance(t, str) else t for t in tensors]
    values = tf_keras.Model(model.input, outputs)(images(shape=model.input_shape[1:]))
    return [part.numpy() for part in (values if len(outputs) > 1 else [values])]


def activate(name: str, x: np.ndarray) -> np.ndarray:
    if name == "hard_swish":
        return x * np.clip(x + 3, 0, 6) / 6
    return np.clip(x, 0, 6 if name == "relu6" else None)


def close(actual: np.ndarray, expected: np.ndarray, off: float = 2e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=off, atol=off)


def normalized(x: np.ndarray, raw: slim.Values, scope: str) -> np.ndarray:
    """Batch normalization by slim's epsilon."""
    gamma, beta, mean, variance = (
        raw[f"{scope}/BatchNorm/{part}"].astype(np.float64)
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) / np.sqrt(variance + 0.001) * gamma + beta


@pytest.mark.parametrize(
    ("width", "finegrain", "channels"),
    [
        (0.1, True, 1280),
        (0.1, False, 128),
        pytest.param(1.3, True, 1664, marks=pytest.mark.slow),
        pytest.param(1.4, False, 1792, marks=pytest.mark.slow),
    ],
)
def test_t01_the_last_convolution_of_v2_keeps_1280_below_width_1_and_grows_above(
    width: float, finegrain: bool, channels: int, written: Written
) -> None:
    model, raw, path = written("mobilenet_v2", width=width, finegrain=finegrain)
    loaded = slim.loaded(path)
    assert loaded.config.width_multiplier == width
    if width < 1:
        assert loaded.config.finegrain_classification_mode == finegrain
    kernel = loaded.model.get_layer("Conv_1").kernel.numpy()
    assert kernel.shape[3] == channels
    np.testing.assert_array_equal(kernel, raw[f"{model.scope}Conv_1/weights"])


def test_t02_the_gates_conv_and_conv_1_are_not_the_stem_and_the_last(written: Written) -> None:
    _, raw, path = written("mobilenet_v3_small")
    gate = "MobilenetV3/expanded_conv/squeeze_excite"
    assert raw[f"{gate}/Conv/weights"].shape == raw[f"{gate}/Conv_1/weights"].shape
    weights = slim.weights(slim.loaded(path).model)
    for weight, name in {
        "Conv/kernel": "Conv/weights",
        "Conv_1/kernel": "Conv_1/weights",
        "Conv_2/kernel": "Conv_2/weights",
        "expanded_conv_squeeze_excite_squeeze/kernel": "expanded_conv/squeeze_excite/Conv/weights",
        "expanded_conv_squeeze_excite_squeeze/bias": "expanded_conv/squeeze_excite/Conv/biases",
        "expanded_conv_squeeze_excite_excite/kernel": "expanded_conv/squeeze_excite/Conv_1/weights",
        "expanded_conv_squeeze_excite_excite/bias": "expanded_conv/squeeze_excite/Conv_1/biases",
        "expanded_conv_10_squeeze_excite_excite/kernel": (
            "expanded_conv_10/squeeze_excite/Conv_1/weights"
        ),
    }.items():
        np.testing.assert_array_equal(weights[weight], raw[f"MobilenetV3/{name}"], err_msg=weight)


@pytest.mark.parametrize("family", ["mobilenet_v3_small", "mobilenet_v3_small_minimalistic"])
def test_t03_conv_2_has_biases_no_normalization_and_the_heads_activation(
    family: str, written: Written
) -> None:
    spec, raw, path = written(family)
    model = slim.loaded(path).model
    layers = {layer.name for layer in model.layers}
    for unit in slim.units(spec):
        layer = slim.layer_of(unit.scope)
        assert model.get_layer(layer).use_bias == unit.biases
        assert (f"{layer}_batch_norm" in layers) != unit.biases
    points = tf1_loader.end_points(model)
    pooled, after = run(model, points["layer_14"], points["layer_15"])
    weights = raw["MobilenetV3/Conv_2/weights"][0, 0]
    before = pooled.reshape(2, -1) @ weights + raw["MobilenetV3/Conv_2/biases"]
    assert before.min() < -0.05  # where relu and hard-swish differ
    close(after.reshape(2, -1), activate(slim.head_activation(spec), before))


@pytest.mark.parametrize("slope", [1 / 6, 0.16667])
def test_t04_the_gate_is_relu6_of_x_plus_3_times_the_slope(slope: float, written: Written) -> None:
    _, raw, path = written("mobilenet_v3_small")
    gate = "MobilenetV3/expanded_conv/squeeze_excite"
    options = {"hard_sigmoid_slope": slope} if slope != 0.16667 else {}  # the default
    model = slim.loaded(path, **options).model
    before, after = run(
        model, "expanded_conv_depthwise_relu", "expanded_conv_squeeze_excite_multiply"
    )
    pooled = before.mean((1, 2), dtype=np.float64)
    inner = pooled @ raw[f"{gate}/Conv/weights"][0, 0] + raw[f"{gate}/Conv/biases"]
    outer = (
        np.maximum(inner, 0) @ raw[f"{gate}/Conv_1/weights"][0, 0] + raw[f"{gate}/Conv_1/biases"]
    )
    factor = np.clip(outer + 3, 0, 6) * slope
    assert np.abs(outer).max() > 0.2  # where other hard sigmoids differ by more than 1e-3
    np.testing.assert_allclose(after, before * factor[:, None, None, :], rtol=3e-6, atol=1e-6)


def strided(x: np.ndarray, kernel: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    """A 3 x 3 convolution of stride 2 after this padding of both axes, in plain sums."""
    x = np.pad(x.astype(np.float64), ((0, 0), pads, pads, (0, 0)))
    side = (x.shape[1] - 3) // 2 + 1
    output = np.zeros((x.shape[0], side, side, kernel.shape[3]))
    for row in range(3):
        for column in range(3):
            window = x[:, row : row + 2 * side : 2, column : column + 2 * side : 2][:, :side, :side]
            output += window @ kernel[row, column]
    return output


@pytest.mark.parametrize(("side", "pads"), [(32, (0, 1)), (33, (1, 1))])
def test_t05_strides_of_2_pad_bottom_and_right_of_even_inputs(
    side: int, pads: tuple[int, int], written: Written
) -> None:
    _, raw, path = written("mobilenet_v1")
    options = {"input_shape": (side, side, 3)} if side != 32 else {}
    model = slim.loaded(path, **options).model
    expected = strided(
        images(shape=(side, side, 3)), raw["MobilenetV1/Conv2d_0/weights"].astype(np.float64), pads
    )
    close(run(model, "Conv2d_0")[0], expected)


def test_t06_depthwise_kernels_are_not_transposed(written: Written) -> None:
    _, raw, path = written("mobilenet_v1")
    kernel = raw["MobilenetV1/Conv2d_1_depthwise/depthwise_weights"]
    assert kernel.shape == (3, 3, 8, 1)
    model = slim.loaded(path).model
    layer = model.get_layer("Conv2d_1_depthwise")
    np.testing.assert_array_equal(layer.depthwise_kernel.numpy(), kernel)
    before, after = run(model, "Conv2d_0_relu6", "Conv2d_1_depthwise")
    padded = np.pad(before.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, row : row + 16, column : column + 16] * kernel[row, column, :, 0]
        for row in range(3)
        for column in range(3)
    )
    close(after, np.asarray(expected))


def test_t07_the_first_scope_has_no_number(written: Written, folder: Path) -> None:
    spec, raw, path = written("mobilenet_v2")
    a, b = (raw[f"MobilenetV2/expanded_conv_{index}/project/weights"] for index in (4, 5))
    assert a.shape == b.shape
    assert not np.array_equal(a, b)
    model = slim.loaded(path).model
    slim.same(model, slim.by_weight_name(spec, raw))
    np.testing.assert_array_equal(model.get_layer("expanded_conv_4_project").kernel.numpy(), a)
    numbered = {name.replace("expanded_conv/", "expanded_conv_0/"): raw[name] for name in raw}
    with pytest.raises(UsageError, match="expanded_conv_0/"):
        slim.loaded(slim.write_npz(folder / "numbered.npz", numbered))


def test_t08_the_background_is_column_0(written: Written) -> None:
    model, raw, path = written("mobilenet_v3_small_minimalistic", classes=1001)
    whole = slim.loaded(path)
    loaded = slim.loaded(path, num_classes=1000)
    points = [tf1_loader.end_points(each.model)["Logits"] for each in (whole, loaded)]
    close(run(loaded.model, points[1])[0], run(whole.model, points[0])[0][..., 1:])
    kernel = loaded.model.get_layer("Logits").kernel.numpy()
    weights = raw[f"{model.scope}Logits/Conv2d_1c_1x1/weights"]
    np.testing.assert_array_equal(kernel, weights[..., 1:])


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_t09_every_normalization_has_epsilon_0001_and_its_gamma(
    family: str, written: Written
) -> None:
    spec, raw, path = written(family)
    model = slim.loaded(path).model
    norms = [layer for layer in model.layers if layer.name.endswith("_batch_norm")]
    assert len(norms) == sum(name.endswith("gamma") for name in raw)
    assert {layer.epsilon for layer in norms} == {0.001}
    first = slim.units(spec)[0].scope
    before, after = run(model, first, f"{first}_batch_norm")
    close(after, normalized(before, raw, spec.scope + first))
    for layer in norms:
        assert layer.gamma.numpy().std() > 0.1


def test_t10_normalizations_are_not_in_alphabetical_order(written: Written) -> None:
    _, raw, path = written("mobilenet_v3_large_minimalistic")
    layer = slim.loaded(path).model.get_layer("expanded_conv_7_expand_batch_norm")
    for array, name in zip(
        layer.get_weights(), ("gamma", "beta", "moving_mean", "moving_variance"), strict=True
    ):
        np.testing.assert_array_equal(
            array, raw[f"MobilenetV3/expanded_conv_7/expand/BatchNorm/{name}"]
        )


@pytest.mark.parametrize("moving", [True, False])
def test_t11_some_files_hold_no_shadow_of_moving_statistics(
    moving: bool, written: Written, folder: Path
) -> None:
    model, raw, _ = written("mobilenet_v1")
    shadows = slim.averages(raw, moving)
    loaded = slim.loaded(slim.write_npz(folder / f"moving_{moving}.npz", raw | shadows))
    weights = slim.weights(loaded.model)
    for part in ("moving_mean", "moving_variance"):
        name = f"{model.scope}Conv2d_3_pointwise/BatchNorm/{part}"
        expected = shadows[name + AVERAGE] if moving else raw[name]
        np.testing.assert_array_equal(weights[f"Conv2d_3_pointwise_batch_norm/{part}"], expected)
    gamma = f"{model.scope}Conv2d_3_pointwise/BatchNorm/gamma{AVERAGE}"
    np.testing.assert_array_equal(weights["Conv2d_3_pointwise_batch_norm/gamma"], shadows[gamma])
    assert loaded.report.averaged == len(shadows)


def test_t12_helpers_of_the_ranges_are_not_ranges(written: Written, folder: Path) -> None:
    model, raw, _ = written("mobilenet_v1")
    others, expected = slim.ranges(model)
    helpers = {name for name in others if name.endswith(("/biased", "/local_step"))}
    assert len(helpers) == 4 * 28
    loaded = slim.loaded(slim.write_npz(folder / "helpers.npz", raw | others))
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert loaded.report.ranges.keys() == expected.keys()
    for key, pair in expected.items():
        assert loaded.report.ranges[key] == pytest.approx(pair, abs=1e-6), key
    assert helpers <= set(loaded.report.left_aside["quantization"])
    assert loaded.report.unnamed_ranges == {}


@pytest.mark.parametrize(
    "family",
    ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v3_large_minimalistic"],
)
def test_t13_every_block_has_the_activation_of_its_table(family: str, written: Written) -> None:
    spec, _, path = written(family)
    model = slim.loaded(path).model
    points = tf1_loader.end_points(model)
    tensors, expected = [], []
    for unit in slim.units(spec):
        block, _, part = unit.scope.partition("/")
        if not block.startswith("expanded") or part not in ("expand", "depthwise"):
            continue
        index = int(block.removeprefix("expanded_conv").strip("_") or 0)
        if part == "depthwise" and "s" in slim.rows(spec)[index][3]:
            continue  # the gate lies between
        ending = "expansion" if part == "expand" else part
        layer = slim.layer_of(unit.scope)
        tensors += [f"{layer}_batch_norm", points[f"layer_{index + 2}/{ending}_output"]]
        expected.append((layer, unit.activation))
    values = run(model, *tensors)
    for (layer, activation), before, after in zip(expected, values[::2], values[1::2], strict=True):
        assert before.min() < -0.05, layer  # where relu and hard-swish differ
        np.testing.assert_allclose(after, activate(activation, before), atol=1e-5, err_msg=layer)
    assert len(expected) > 10


def test_t14_a_checkpoint_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    model = Slim("mobilenet_v1", 0.25)
    raw = slim.values(model)
    name = "mobilenet_v1_0.25_160"
    folder = tmp_path / name
    prefix = slim.write_checkpoint(folder / f"{name}.ckpt", raw | STEP)
    for other in ("_eval.pbtxt", "_frozen.pb", "_info.txt", ".tflite", ".ckpt.meta"):
        (folder / (name + other)).write_bytes(b"something else")
    members: Any = {f"./{path.name}": path for path in sorted(folder.iterdir())}
    archive = slim.write_archive(tmp_path / f"{name}.tgz", members)
    for path in (
        prefix.with_name(prefix.name + ".index"),
        prefix.with_name(prefix.name + ".data-00000-of-00001"),
        folder,
        archive,
    ):
        loaded = slim.loaded(path, input_shape=None)
        assert loaded.model.input_shape == (None, 160, 160, 3)
        slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert loaded.report.path == str(archive)
    assert f"{name}.ckpt" in loaded.report.prefix


def test_t15_shapes_are_trusted_not_published_counts(written: Written) -> None:
    for finegrain, channels in ((True, 1024), (False, 104)):
        model, raw, path = written("mobilenet_v3_small", finegrain=finegrain)
        loaded = slim.loaded(path)
        assert loaded.config.finegrain_classification_mode == finegrain
        assert loaded.model.get_layer("Conv_2").kernel.shape[3] == channels
        slim.same(loaded.model, slim.by_weight_name(model, raw))


def test_t16_training_under_fake_quantization_is_reported(written: Written, folder: Path) -> None:
    model, raw, path = written("mobilenet_v1")
    assert "quantiz" not in slim.loaded(path).report.description
    others = slim.ranges(model)[0]
    report = slim.loaded(slim.write_npz(folder / "quantized.npz", raw | others)).report
    assert "quantiz" in report.description
    assert report.ranges["Conv2d_0_relu6"][1] > 2


def test_t17_averaged_values_under_plain_names_load(written: Written, tmp_path: Path) -> None:
    model, raw, _ = written("mobilenet_v3_small_minimalistic")
    shadows = slim.averages(raw)
    averaged = {name.removesuffix(AVERAGE): array for name, array in shadows.items()}
    ema = slim.write_checkpoint(tmp_path / "ema/model-388500", averaged)
    pristine = slim.write_checkpoint(tmp_path / "pristine/model.ckpt-388500", raw | shadows | STEP)
    loaded = slim.loaded(ema)
    slim.same(loaded.model, slim.by_weight_name(model, averaged))
    assert loaded.report.averaged == 0
    both = slim.parts(ema, "v3/ema/") | slim.parts(pristine, "v3/pristine/")
    archive = slim.write_archive(tmp_path / "v3-small-minimalistic_224_0.1_float.tgz", both)
    loaded = slim.loaded(archive)
    slim.same(loaded.model, slim.by_weight_name(model, averaged))
    assert set(loaded.report.loaded.values()) == set(averaged)
    loaded = slim.loaded(archive, use_ema=False)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert len(loaded.report.left_aside["average"]) == len(raw)
