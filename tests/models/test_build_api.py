"""`mobilenet.api.build`: names, configs, shapes, weights, and what it refuses in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf_keras = pytest.importorskip("tf_keras")

from mobilenet import api  # noqa: E402
from mobilenet.configs import archs  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models import saving  # noqa: E402
from mobilenet.models.builder import config_of  # noqa: E402

ROOT = Path(__file__).parents[2]
NARROW: dict[str, Any] = {"width_multiplier": 0.25, "classifier_activation": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A narrow model of five classes, every weight its own, and its `.keras` file."""
    model = api.build("mobilenet_v1", 32, num_classes=5, **NARROW)
    draw = np.random.default_rng(1)
    model.set_weights([draw.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    path = tmp_path_factory.mktemp("weights") / "model.keras"
    model.save(path)
    return model, path


def error_of(*arguments: Any, **fields: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        api.build(*arguments, **fields)
    return caught.value


def test_a_name_and_fields_build_the_published_model() -> None:
    """Sizes of keras.applications: its MobileNetV2 of alpha 0.35 has 410,208 without the head."""
    model = api.build("mobilenet_v2", (96, 96, 3), width_multiplier=0.35, num_classes=10)
    assert model.input_shape == (None, 96, 96, 3)
    assert model.output_shape == (None, 10)
    theirs = tf_keras.applications.MobileNetV2((96, 96, 3), 0.35, weights=None, classes=10)
    assert model.count_params() == theirs.count_params()


def test_a_config_builds_the_model_that_it_describes() -> None:
    config = archs.get("mobilenet_v1", width_multiplier=0.25)
    assert config_of(api.build(config, 32, num_classes=4)) == config.replace(num_classes=4)
    assert config.num_classes == 1001


def test_the_side_is_224_when_no_shape_is_given() -> None:
    assert api.build("mobilenet_v1", **NARROW).input_shape == (None, 224, 224, 3)


def test_a_number_is_the_side_of_a_square_rgb_image() -> None:
    assert api.build("mobilenet_v1", 64, **NARROW).input_shape == (None, 64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "fields", "what", "texts"),
    [
        (("mobilenet_v5",), {}, "name_or_config", ["did you mean mobilenet_v"]),
        ((None,), {}, "name_or_config", ["NoneType", "a config"]),
        (
            ("mobilenet_v1",),
            {"width_multiplyer": 1},
            "MobileNetV1Config field",
            ["did you mean width_multiplier?"],
        ),
        (("mobilenet_v1",), {"width_multiplier": 0}, "width_multiplier", ["above 0"]),
        (("mobilenet_v1",), {"num_classes": "ten"}, "num_classes", ["'ten'"]),
        (("mobilenet_v1",), {"global_pool": "no"}, "global_pool", ["a value of type bool"]),
        (("mobilenet_v1", 16), {}, "input_shape", ["at least 32"]),
        (("mobilenet_v1", (96, 96)), {}, "input_shape", ["[height, width, channels]"]),
        (("mobilenet_v1", 96.5), {}, "input_shape", ["96.5", "[height, width, channels]"]),
        (("mobilenet_v1", "96"), {}, "input_shape", ["'96'", "[height, width, channels]"]),
    ],
)
def test_bad_input_names_the_parameter(
    arguments: tuple[Any, ...], fields: dict[str, Any], what: str, texts: list[str]
) -> None:
    error = error_of(*arguments, **fields)
    assert error.what == what
    assert "\n" not in str(error)
    for text in texts:
        assert text in str(error)


def test_weights_are_those_of_the_file_with_a_new_head(trained: tuple[Any, Path]) -> None:
    model, path = trained
    same = api.build("mobilenet_v1", 32, weights=path, num_classes=5, **NARROW)
    for ours, theirs in zip(same.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = api.build("mobilenet_v1", 32, weights=str(path), num_classes=3, **NARROW)
    assert other.output_shape == (None, 3)
    assert other.get_layer("Logits").get_weights()[0].min() < 0.5
    assert other.get_layer("Conv2d_0").get_weights()[0].min() >= 0.5


def test_the_momentum_is_shorter_for_loaded_weights_unless_it_is_given(
    trained: tuple[Any, Path],
) -> None:
    """0.99 for random weights and 0.9 for loaded ones, which are fine-tuned for few steps."""

    def momenta(**values: Any) -> set[float]:
        model = api.build("mobilenet_v1", 32, num_classes=5, **NARROW, **values)
        return {layer.momentum for layer in model.layers if hasattr(layer, "momentum")}

    weights = trained[1]
    assert momenta() == {0.99}
    assert momenta(weights=weights) == {0.9}
    assert momenta(batch_norm_decay=0.97) == {0.97}
    assert momenta(batch_norm_decay=0.99, weights=weights) == {0.99}


def test_weights_of_a_thinned_model_set_the_channels(tmp_path: Path) -> None:
    config = archs.get("mobilenet_v1", num_classes=5, channels={"Conv2d_0": 16}, **NARROW)
    thinned = api.build(config, 32)
    card = Card(architecture=config.to_json(), input_shape=(32, 32, 3))
    folder = saving.save(thinned, tmp_path / "thinned", card)
    again = api.build("mobilenet_v1", 32, weights=folder, num_classes=5, **NARROW)
    for ours, theirs in zip(again.get_weights(), thinned.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_keras_3_takes_the_weights_too(trained: tuple[Any, Path]) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    model, path = trained
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    built = api.build("mobilenet_v1", 32, weights=path, keras=keras, num_classes=5, **NARROW)
    assert isinstance(built, keras.Model)
    expected = model(images, training=False).numpy()
    np.testing.assert_allclose(np.asarray(built(images, training=False)), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weights", "texts"),
    [
        ("absent", ["'absent'", "a model folder", "there is nothing there"]),
        (Path("absent.keras"), ["absent.keras", "there is no"]),
        (3, ["'int'", "a path"]),
    ],
)
def test_weights_that_are_not_there(weights: Any, texts: list[str]) -> None:
    error = error_of("mobilenet_v1", 32, weights=weights, **NARROW)
    assert error.what == "weights"
    for text in texts:
        assert text in str(error)


def test_weights_of_another_model_name_the_parameters(trained: tuple[Any, Path]) -> None:
    error = error_of("mobilenet_v1", 32, weights=trained[1], width_multiplier=0.5, num_classes=5)
    assert error.what == "weights"
    assert "layers do not fit" in error.expected
    assert error.remedy.startswith("give the `name_or_config` and `width_multiplier`")


def test_type_checkers_see_a_keras_model(tmp_path: Path) -> None:
    """In a user's own file, under mypy --strict; only our own two modules are followed."""
    user = tmp_path / "user.py"
    user.write_text(
        "from mobilenet.api import build\n"
        "model = build('mobilenet_v2', (96, 96, 3), num_classes=10)\n"
        "reveal_type(model)\n"
        "reveal_type(model.count_params())\n"
    )
    modules = [str(ROOT / "mobilenet" / name) for name in ("api.py", "typing.py")]
    options = ["--strict", "--follow-imports=skip", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *modules, str(user)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == 2, done.stdout + done.stderr
    assert '"mobilenet.typing.KerasModel"' in revealed[0]
    assert '"int"' in revealed[1] or '"builtins.int"' in revealed[1]
