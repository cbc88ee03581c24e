"""timm's weights: golden outputs of PyTorch, what a name decides, and a forward pass in numpy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from timm_files import hub_config, v1_state, write

from mobilenet.configs import timm_models
from mobilenet.configs.dataset import ANTIALIASED_BICUBIC, ANTIALIASED_BILINEAR, PREPROCESSING
from mobilenet.errors import UsageError
from mobilenet.models import layer_plan
from mobilenet.weights import timm_architecture, timm_tensors

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models.builder import build  # noqa: E402
from mobilenet.weights import timm  # noqa: E402

CASES = {  # golden case: name in timm, width, explicit padding, epsilon
    "mobilenetv1_w025": ("mobilenetv1_100", 0.25, True, 1e-5),
    "mobilenetv2_035": (None, 0.35, True, 1e-5),
    "mobilenetv3_small_050": (None, 0.5, True, 1e-5),
    "tf_mobilenetv3_large_minimal_w025": ("tf_mobilenetv3_large_minimal_100", 0.25, False, 1e-3),
    "mobilenet_edgetpu_w025": ("mobilenet_edgetpu_100", 0.25, True, 1e-5),
    "mobilenetv4_conv_small_035": (None, 0.35, True, 1e-5),
    "mobilenetv4_conv_medium_w025": ("mobilenetv4_conv_medium", 0.25, True, 1e-5),
}
QUICK = ("mobilenetv3_small_050", "mobilenetv4_conv_small_035")
COUNTS = {  # with moving statistics, 1000 classes
    "mobilenet_edgetpu_100": 4_130_312,
    "mobilenet_edgetpu_v2_l": 10_992_872,
    "mobilenet_edgetpu_v2_m": 8_524_648,
    "mobilenet_edgetpu_v2_s": 6_036_744,
    "mobilenet_edgetpu_v2_xs": 4_501_576,
    "mobilenetv1_100": 4_253_864,
    "mobilenetv1_125": 6_298_200,
    "mobilenetv2_035": 1_691_208,
    "mobilenetv2_050": 1_987_224,
    "mobilenetv2_075": 2_663_064,
    "mobilenetv2_100": 3_538_984,
    "mobilenetv2_140": 6_156_712,
    "mobilenetv3_large_075": 4_012_616,
    "mobilenetv3_large_100": 5_507_432,
    "mobilenetv3_small_050": 1_599_720,
    "mobilenetv3_small_075": 2_051_552,
    "mobilenetv3_small_100": 2_554_968,
    "mobilenetv4_conv_large": 32_740_416,
    "mobilenetv4_conv_medium": 9_783_416,
    "mobilenetv4_conv_small": 3_799_112,
    "mobilenetv4_conv_small_035": 1_916_072,
    "mobilenetv4_conv_small_050": 2_252_808,
    "tf_mobilenetv3_large_075": 4_012_616,
    "tf_mobilenetv3_large_100": 5_507_432,
    "tf_mobilenetv3_large_minimal_100": 3_948_688,
    "tf_mobilenetv3_small_075": 2_051_552,
    "tf_mobilenetv3_small_100": 2_554_968,
    "tf_mobilenetv3_small_minimal_100": 2_056_848,
}


def golden(shared_data: Path, case: str) -> Path:
    return shared_data / "timm_golden" / f"{case}.safetensors"


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_outputs_are_those_of_pytorch(case: str, shared_data: Path) -> None:
    name, width, explicit, epsilon = CASES[case]
    path = golden(shared_data, case)
    loaded = timm.load(path, name, (64, 64, 3))
    expected, config = np.load(path.with_suffix(".npz")), loaded.config
    features = loaded.model.get_layer("global_pool").input
    both = tf_keras.Model(loaded.model.input, [loaded.model.output, features])
    logits, maps = (values.numpy() for values in both(expected["input"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    np.testing.assert_allclose(maps[:1], expected["features"], atol=1e-4, rtol=1e-4)
    assert (config.width_multiplier, config.num_classes) == (width, 10)
    assert (config.use_explicit_padding, config.batch_norm_epsilon) == (explicit, epsilon)
    used = {*loaded.report.loaded.values(), *sum(loaded.report.left_aside.values(), ())}
    assert used == set(timm_architecture.safetensors_file.read_shapes(path))
    weights = sum(len(layer.weights) for layer in loaded.model.layers)
    assert len(loaded.report.loaded) == weights and not loaded.report.new
    assert loaded.card.outputs == "logits"
    assert loaded.card.preprocessing == loaded.model.mobilenet_preprocessing


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_under_keras_3(case: str, shared_data: Path) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    path = golden(shared_data, case)
    loaded = timm.load(path, CASES[case][0], (64, 64, 3))
    theirs = build(loaded.config, (64, 64, 3), keras)
    theirs.set_weights(loaded.model.get_weights())
    expected = np.load(path.with_suffix(".npz"))
    logits = np.asarray(theirs(expected["input"], training=False))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_timms(name: str) -> None:
    (model, *_) = timm_models.find(name)
    assert layer_plan.count_parameters(model.config()) == COUNTS[name]


def test_every_released_name_has_a_count() -> None:
    assert set(COUNTS) == set(timm_models.BY_NAME)


@pytest.fixture(scope="module")
def v1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("timm") / "weights.safetensors", v1_state())


def test_a_small_model_against_numpy(v1_file: Path) -> None:
    """The whole of MobileNetV1 0.25 at 32 px, computed from the tensors as timm has them."""
    state, image = v1_state(), np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3))

    def layer(x: np.ndarray, name: str, norm: str, stride: int, depthwise: bool) -> np.ndarray:
        kernel = state[f"{name}.weight"].astype(np.float64)
        side = kernel.shape[-1]
        padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
        windows = windows[:, ::stride, ::stride]
        if depthwise:
            x = np.einsum("bhwcij,cij->bhwc", windows, kernel[:, 0])
        else:
            x = np.einsum("bhwcij,ocij->bhwo", windows, kernel)
        mean, var, weight, bias = (
            state[f"{norm}.{part}"].astype(np.float64)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.clip((x - mean) / np.sqrt(var + 1e-5) * weight + bias, 0, 6)

    x = layer(image, "conv_stem", "bn1", 2, False)
    for stage, count in enumerate((1, 2, 2, 6, 2)):
        for number in range(count):
            block = f"blocks.{stage}.{number}"
            stride = 2 if stage and not number else 1
            x = layer(x, f"{block}.conv_dw", f"{block}.bn1", stride, True)
            x = layer(x, f"{block}.conv_pw", f"{block}.bn2", 1, False)
    expected = x.mean((1, 2)) @ state["classifier.weight"].T + state["classifier.bias"]
    loaded = timm.load(v1_file, "mobilenetv1_100", 32)
    ours = loaded.model(image.astype(np.float32)).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert loaded.config.divisor == 8 and loaded.config.num_classes == 3
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert {k: {*v} for k, v in loaded.report.left_aside.items()} == {
        "counters of batch norms": counters
    }


def test_grouped_convolutions() -> None:
    """A group of outputs reads a group of inputs, in the same order in both frameworks."""
    config = timm_models.find("mobilenet_edgetpu_v2_xs")[0].config()
    blocks = [f"blocks.{n}.0" for n in range(len(config.blocks) - 2)]
    tensors = timm_tensors.tensors_of(config, blocks)
    assert tensors is not None
    (kernel,) = (t for t in tensors if t.name == "blocks.2.0.conv_exp.weight")
    assert kernel.shape == (128, 16, 3, 3)  # 128 = 4 * 32 in groups of 64: two of 16 inputs
    random = np.random.default_rng(0)
    stored = random.normal(size=kernel.shape).astype(np.float32)
    image = random.normal(size=(1, 5, 5, 32)).astype(np.float32)
    layer = tf_keras.layers.Conv2D(128, 3, groups=2, use_bias=False)
    layer.build(image.shape)
    layer.set_weights([kernel.value(stored)])
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
    parts = [
        np.einsum("bhwcij,ocij->bhwo", windows[:, :, :, 16 * g : 16 * g + 16], half)
        for g, half in enumerate(np.split(stored, 2))
    ]
    np.testing.assert_allclose(layer(image), np.concatenate(parts, -1), atol=1e-4)


def refusal(path: Path, architecture: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        timm_architecture.detect(path, architecture)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


def test_several_models_fit_and_a_name_decides(v1_file: Path, tmp_path: Path) -> None:
    line = refusal(v1_file)
    assert "mobilenetv1_100, mobilenetv1_125 fit" in line and "`architecture`" in line
    detected = timm_architecture.detect(v1_file, "timm/mobilenetv1_125.ra4_e3600_r224_in1k")
    assert (detected.config.width_multiplier, detected.preprocessing.crop_fraction) == (0.25, 0.9)
    named = tmp_path / "mobilenetv1_100-flowers.safetensors"
    shutil.copy(v1_file, named)
    assert timm_architecture.detect(named).preprocessing.crop_fraction == 0.875


def test_padding_and_epsilon_of_equal_shapes(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    shutil.copy(golden(shared_data, "mobilenetv3_small_050"), path)
    line = refusal(path)
    assert "mobilenetv3_small_050, tf_mobilenetv3_small_075, tf_mobilenetv3_small_100 fit" in line
    ours = timm_architecture.detect(path, "mobilenetv3_small_100")
    google = timm_architecture.detect(path, "tf_mobilenetv3_small_100")
    for detected, explicit, epsilon, interpolation in (
        (ours, True, 1e-5, ANTIALIASED_BICUBIC),
        (google, False, 1e-3, ANTIALIASED_BILINEAR),
    ):
        config = detected.config
        assert (config.use_explicit_padding, config.batch_norm_epsilon) == (explicit, epsilon)
        assert detected.preprocessing.interpolation == interpolation
    assert ours.preprocessing.mean == PREPROCESSING["imagenet"].mean
    assert google.preprocessing.mean == (127.5,)
    assert "mobilenet_v3_small" in refusal(path, "mobilenetv2_100")


def test_the_config_next_to_the_file(v1_file: Path) -> None:
    stored = v1_file.parent / "config.json"
    try:
        stored.write_text(json.dumps(hub_config()))
        detected = timm_architecture.detect(v1_file)
        how = detected.preprocessing
        assert (how.mean, how.std) == ((127.5, 63.75, 127.5), (127.5,))
        assert (how.crop, how.crop_fraction) == ("center", 0.92)
        assert how.interpolation == ANTIALIASED_BILINEAR
        assert (detected.size, detected.notes) == ((96, 128), ())
        named = timm_architecture.detect(v1_file, "mobilenetv1_125")  # what is given wins
        assert named.preprocessing.crop_fraction == 0.9
        for changes, part in (
            ({"mean": ["x", 1, 2]}, "mean"),
            ({"mean": [[1], [2], [3]]}, "mean"),
            ({"crop_pct": 7}, "crop_pct"),
            ({"crop_pct": [0.9]}, "crop_pct"),
            ({"crop_mode": "squash"}, "crop_mode"),
            ({"interpolation": "lanczos"}, "interpolation"),
            ({"input_size": [3, -1, 4]}, "input_size"),
        ):
            stored.write_text(json.dumps(hub_config(**changes)))
            assert part in refusal(v1_file)
        stored.write_text(json.dumps(hub_config() | {"architecture": "mobilenetv3_rw"}))
        assert "mobilenetv3_rw" in refusal(v1_file)
        stored.write_text(json.dumps({"model_type": "bert"}))  # another program's
        assert "fit" in refusal(v1_file)
    finally:
        stored.unlink()


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenetv1_100h", "mobilenetv2_110d", "mobilenetv3_large_150d", "mobilenetv3_rw"),
        *("mobilenetv4_conv_aa_large", "mobilenetv4_conv_blur_medium"),
        "mobilenetv4_hybrid_medium",
    ],
)
def test_variants_that_are_not_built(name: str, v1_file: Path, tmp_path: Path) -> None:
    assert f"'{name}'" in refusal(v1_file, f"timm/{name}.ra_in1k")
    path = tmp_path / f"{name}.ra_in1k.safetensors"
    shutil.copy(v1_file, path)
    assert f"'{name}'" in refusal(path) and "is not built here" in refusal(path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path, name = tmp_path / "x.safetensors", "mobilenetv1_100"
    state = v1_state()
    stem = state.pop("conv_stem.weight")
    assert "a state dict of timm" in refusal(write(path, state), name)
    state["conv_stem.weight"] = stem
    state["blocks.0.0.attention.weight"] = stem
    assert "blocks.0.0.attention.weight is left over" in refusal(write(path, state), name)
    del state["blocks.0.0.attention.weight"], state["bn1.bias"]
    assert "bn1.bias is missing" in refusal(write(path, state), name)
    state = v1_state()
    state["bn1.bias"] = np.zeros(9, np.float32)
    assert "bn1.bias is [9], not [8]" in refusal(write(path, state), name)
    assert "mobilenet_v1" in refusal(write(path, v1_state()), "mobilenetv2_100")
    assert "architecture" in refusal(path, "resnet50")


def test_a_body_without_a_classifier(tmp_path: Path) -> None:
    path = write(tmp_path / "mobilenetv1_100.safetensors", v1_state(classes=0))
    loaded = timm.load(path, input_shape=(32, 32))
    assert loaded.config.num_classes == 0 and loaded.card.outputs == "features"
    with pytest.raises(UsageError, match="input_shape"):
        timm.load(path, input_shape=(32, 32, 1))
