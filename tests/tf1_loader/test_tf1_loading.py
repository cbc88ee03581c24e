"""Checkpoints under slim's names load exactly, whatever else is in them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from slim_checkpoints import AVERAGE, FAMILIES, LOSSES, STEP, Slim
from small_models import families

from mobilenet import tf1_loader
from mobilenet.configs import archs
from mobilenet.tf1_loader import architecture_detection

pytest.importorskip("tensorflow")

PIXELS = (32, 32, 3)
# Published counts: parameters with moving statistics, 1001 classes, at these widths.
PARAMETERS = {
    ("mobilenet_v1", 0.75): 2602745,
    ("mobilenet_v2", 1.4): 6158505,
    ("mobilenet_v2", 0.35): 1692489,
    ("mobilenet_v3_small", 0.75): 2052577,
    ("mobilenet_v3_large", 0.75): 4013897,
    ("mobilenet_v3_small_minimalistic", 1.0): 2057873,
    ("mobilenet_v3_large_minimalistic", 0.75): 3070681,
    ("mobilenet_edgetpu", 0.75): 3019569,
}
COMMON = (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
ODD = (0.1, 0.125, 0.15, 0.6)

Load = Callable[..., Any]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tf1_loading")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """`plain(family)`: a narrow model with `global_step` and nothing else: model, values,
    prefix.
    """

    def write(family: str) -> tuple[Slim, slim.Values, Path]:
        model = Slim(family)
        return model, *slim.written(tmp_path_factory.getbasetemp(), model)

    return write


def counted(report: Any, variables: slim.Values) -> None:
    """Every variable of the file is in the report, once."""
    assert sorted([*report.loaded.values(), *sum(report.left_aside.values(), ())]) == sorted(
        variables
    )


@pytest.mark.parametrize(("family", "width"), PARAMETERS)
def test_shapes_written_for_these_tests_have_the_published_count(family: str, width: float) -> None:
    shapes = slim.shapes(Slim(family, width, 1001, finegrain=True))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == PARAMETERS[family, width]


@pytest.mark.parametrize("family", families(names=list(archs.ALL)[:7]))
def test_every_weight_is_what_was_written(family: str, plain: Load) -> None:
    model, raw, prefix = plain(family)
    loaded = slim.loaded(prefix)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    report = loaded.report
    assert report.loaded == {slim.weight_name(model, name): name for name in raw}
    assert report.left_aside == {"step": ("global_step",)}
    assert (report.averaged, report.ranges, report.unnamed_ranges) == (0, {}, {})
    assert report.prefix == str(prefix)
    assert type(loaded.config) is archs.ALL[family]
    assert loaded.config.num_classes == 5
    assert str(loaded.config.width_multiplier) in report.description
    probabilities = loaded.model(np.zeros((2, *slim.PIXELS), np.float32), training=False).numpy()
    np.testing.assert_allclose(probabilities.sum(1), [1, 1], rtol=1e-5)


@pytest.fixture(scope="session")
def trained(folder: Path) -> Callable[[str], tuple[Slim, slim.Values, slim.Values, Path]]:
    """`trained(family)`: a file of a training run: model, values, other variables, prefix.

    V1 has no shadows of moving statistics and none of the logits' biases.
    """

    @functools.cache
    def write(family: str) -> tuple[Slim, slim.Values, slim.Values, Path]:
        model = Slim(family)
        raw = slim.values(model)
        shadows = slim.averages(raw, moving=family != "mobilenet_v1")
        if family == "mobilenet_v1":
            del shadows[f"{model.scope}Logits/Conv2d_1c_1x1/biases{AVERAGE}"]
        kinds = ("Momentum",) if "v3" in family else ("RMSProp", "RMSProp_1")
        others = shadows | slim.slots(raw, *kinds) | STEP | LOSSES
        prefix = folder / f"{family}_trained" / "model.ckpt-7"
        return model, raw, others, slim.write_checkpoint(prefix, raw | others)

    return write


TRAINED = ("mobilenet_v1", "mobilenet_v3_small_minimalistic")


@pytest.mark.parametrize("family", TRAINED)
def test_averages_are_taken_variable_by_variable(family: str, trained: Load) -> None:
    model, raw, others, prefix = trained(family)
    loaded = slim.loaded(prefix)
    chosen = {name: name + AVERAGE if name + AVERAGE in others else name for name in raw}
    slim.same(
        loaded.model,
        {slim.weight_name(model, name): (raw | others)[chosen[name]] for name in raw},
    )
    report = loaded.report
    assert report.loaded == {slim.weight_name(model, name): taken for name, taken in chosen.items()}
    shadows = {name for name in others if name.endswith(AVERAGE)}
    assert report.averaged == len(shadows)
    assert (len(shadows) < len(raw)) == (family == "mobilenet_v1")
    assert set(report.left_aside["raw"]) == {name.removesuffix(AVERAGE) for name in shadows}
    assert "average" not in report.left_aside
    counted(report, raw | others)


@pytest.mark.parametrize("family", TRAINED)
def test_raw_values_are_taken_when_asked(family: str, trained: Load) -> None:
    model, raw, others, prefix = trained(family)
    loaded = slim.loaded(prefix, use_ema=False)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    report = loaded.report
    assert report.averaged == 0
    shadows = {name for name in others if name.endswith(AVERAGE)}
    assert set(report.left_aside["average"]) == shadows
    assert "raw" not in report.left_aside
    counted(report, raw | others)


@pytest.mark.parametrize("family", TRAINED)
def test_what_training_adds_is_left_aside_by_reason(family: str, trained: Load) -> None:
    _, raw, others, prefix = trained(family)
    aside = slim.loaded(prefix).report.left_aside
    slots = {name for name in others if name.rpartition("/")[2].startswith(("RMS", "Mom"))}
    assert set(aside["slot"]) == slots
    assert set(aside["step"]) == set(STEP)
    assert set(aside["loss"]) == set(LOSSES)
    assert set(aside) == {"raw", "slot", "step", "loss"}


def test_adam_and_a_loss_with_a_shadow_are_left_aside(folder: Path) -> None:
    model = Slim("mobilenet_v3_small_minimalistic")
    raw = slim.values(model)
    others = slim.slots(raw, "Adam", "Adam_1") | {
        "beta1_power": np.asarray(0.5, np.float32),
        "beta2_power": np.asarray(0.25, np.float32),
        "total_loss/ExponentialMovingAverage": np.asarray(2.0, np.float32),
    }
    prefix = slim.write_checkpoint(folder / "adam/model.ckpt", raw | others)
    loaded = slim.loaded(prefix)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    counted(loaded.report, raw | others)
    assert loaded.report.averaged == 0
    assert {name for name in others if "/Adam" in name} <= set(loaded.report.left_aside["slot"])


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2"])
def test_a_quantized_model_loads_as_float_and_reports_its_ranges(family: str, folder: Path) -> None:
    model = Slim(family)
    raw = slim.values(model)
    others, expected = slim.ranges(model)
    prefix = slim.write_checkpoint(folder / f"{family}_quant/model.ckpt", raw | others | STEP)
    loaded = slim.loaded(prefix)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    report = loaded.report
    assert set(report.ranges) == set(expected)
    for key, pair in expected.items():
        assert report.ranges[key] == pytest.approx(pair, abs=1e-6), key
    layers = {layer.name for layer in loaded.model.layers}
    assert {key.removesuffix("/kernel") for key in report.ranges} <= layers
    assert report.unnamed_ranges == {}
    assert set(report.left_aside["quantization"]) == set(others)
    assert "quantiz" in report.description
    counted(report, raw | others | STEP)


def test_ranges_without_a_layer_are_reported_by_scope(folder: Path) -> None:
    model = Slim("mobilenet_v3_small")
    raw = slim.values(model)
    scopes = {
        f"MobilenetV3/{scope}": (-1.0 - at, 2.0 + at)
        for at, scope in enumerate((
            "Conv/weights_quant",
            "expanded_conv/squeeze_excite/Conv/weights_quant",
            "expanded_conv/squeeze_excite/somewhere/activation_Mul_quant",
            "expanded_conv_4/elsewhere/post_activation_bypass_quant",
        ))
    }  # fmt: skip
    others = {
        f"{scope}/{end}": np.asarray(value, np.float32)
        for scope, pair in scopes.items()
        for end, value in zip(("min", "max"), pair, strict=True)
    }
    report = slim.loaded(slim.write_npz(folder / "v3_quant.npz", raw | others)).report
    assert report.ranges["Conv/kernel"] == scopes["MobilenetV3/Conv/weights_quant"]
    second = "expanded_conv_squeeze_excite_squeeze/kernel"
    assert report.ranges[second] == tuple(scopes["MobilenetV3/expanded_conv/squeeze_excite/Conv/weights_quant"])  # fmt: skip  # noqa: E501
    assert len(report.ranges) + len(report.unnamed_ranges) == len(scopes)
    assert any("bypass" in scope for scope in report.unnamed_ranges)
    counted(report, raw | others)


def test_a_model_without_its_root_scope_loads(folder: Path) -> None:
    model = Slim("mobilenet_edgetpu", width=0.125, channels=1, finegrain=True, root="")
    raw = slim.values(model)
    loaded = slim.loaded(slim.write_npz(folder / "no_root.npz", raw), input_shape=(32, 32, 1))
    assert type(loaded.config) is archs.ALL["mobilenet_edgetpu"]
    slim.same(loaded.model, slim.by_weight_name(model, raw))


def test_leading_scopes_and_a_missing_head_load(folder: Path) -> None:
    model = Slim("mobilenet_v2", classes=0, root="FeatureExtractor/MobilenetV2/")
    raw = slim.values(model)
    loaded = slim.loaded(slim.write_npz(folder / "headless.npz", raw))
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert loaded.config.num_classes in (0, None)
    assert loaded.model.output_shape == (None, 128)


def test_the_size_is_in_the_files_name_or_the_usual_one(folder: Path) -> None:
    small = Slim("mobilenet_v3_small_minimalistic")
    quarter = Slim("mobilenet_v1", 0.25)
    for name, model, side in (
        ("mobilenet_v1_0.25_128.ckpt", quarter, 128),
        ("model.ckpt-540000", small, 224),
    ):
        path = slim.write_checkpoint(folder / name, slim.values(model))
        loaded = slim.loaded(path, input_shape=None)
        assert loaded.model.input_shape == (None, side, side, 3), name


def test_any_size_runs(plain: Load) -> None:
    loaded = slim.loaded(plain("mobilenet_v3_small")[2], input_shape=(33, 47, 3))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 33, 47, 3)).astype(np.float32)
    assert np.isfinite(loaded.model(image, training=False).numpy()).all()


@pytest.mark.parametrize("finegrain", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_width_is_detected_from_names_and_shapes(family: str, finegrain: bool) -> None:
    roots = (None, "", "backbone/", "FeatureExtractor/" + Slim(family).scope)
    for width in (*COMMON, *ODD):
        for root in roots if width in (0.1, 0.75) else roots[:1]:
            model = Slim(family, width, 17, 1, finegrain, root)
            loaded = architecture_detection.detect(slim.shapes(model))
            detected(loaded.config, model)
            assert loaded.channels == 1


def detected(config: Any, model: Slim) -> None:
    """This config builds that model."""
    assert type(config) is archs.ALL[model.family]
    assert config.num_classes == model.classes
    width = config.width_multiplier
    if model.width in COMMON or model.family == "mobilenet_v1":
        assert width == model.width
    # Two odd widths may round to one model.
    assert slim.shapes(dataclasses.replace(model, width=width)) == slim.shapes(model)
    if model.width < 1 and model.family != "mobilenet_v1":
        assert config.finegrain_classification_mode == model.finegrain


RELEASED = {
    "mobilenet_v1": (0.25, 0.5, 0.75, 1.0),
    "mobilenet_v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    **dict.fromkeys(FAMILIES[2:], (0.75, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "width"), [(family, width) for family in FAMILIES for width in RELEASED[family]]
)
def test_every_released_width_loads_and_runs(family: str, width: float, tmp_path: Path) -> None:
    model = Slim(family, width, 2, finegrain=True)
    raw = slim.values(model)
    loaded = tf1_loader.load_tf1_checkpoint(
        slim.write_npz(tmp_path / "model.npz", raw), input_shape=slim.PIXELS
    )
    detected(loaded.config, model)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert np.isfinite(loaded.model(np.ones((1, *slim.PIXELS), np.float32)).numpy()).all()
