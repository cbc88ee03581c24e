"""A saved model is loaded bit-equal; whatever is not a model is refused in one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import families

from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models import saving  # noqa: E402
from mobilenet.models.builder import build  # noqa: E402

PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def outputs(model: Any) -> Any:
    return model(PIXELS, training=False).numpy()


@pytest.mark.parametrize("name", families())
def test_a_folder_loads_bit_equal(
    name: str, small_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = small_model(name)
    config = archs.get(name, width_multiplier=0.25, num_classes=10)
    card = Card(
        architecture=config.to_json(),
        input_shape=(32, 32, 3),
        labels=("a", "b"),
        metrics={"top1": 91.5},
        history=({"loss": 1.0},),
    )
    assert saving.save(model, tmp_path / "model", card) == tmp_path / "model"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "card.json",
        "model.keras",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = saving.load(tmp_path / "model")
    assert loaded.card == card
    assert archs.MobileNetConfig.from_json(loaded.card.architecture) == config
    np.testing.assert_array_equal(outputs(loaded.model), outputs(model))
    plain = tf_keras.models.load_model(
        tmp_path / "model" / "model.keras", safe_mode=True
    )  # by Keras alone
    np.testing.assert_array_equal(outputs(plain), outputs(model))


def test_saved_model_and_h5_load_bit_equal(small_model: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("mobilenet_v1", short=True)
    check_saved_model(model, tmp_path)
    model.save(tmp_path / "x.h5")
    np.testing.assert_array_equal(outputs(saving.load(tmp_path / "x.h5").model), outputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(archs.ALL) - {"mobilenet_v1"}))
def test_saved_model_of_the_others(
    name: str, small_model: Callable[..., Any], tmp_path: Path
) -> None:
    check_saved_model(small_model(name), tmp_path)


def check_saved_model(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "saved", save_format="tf")
    loaded = saving.load(tmp_path / "saved")
    np.testing.assert_array_equal(outputs(loaded.model), outputs(model))
    assert loaded.card.input_shape == (32, 32, 3) and loaded.card.outputs == "logits"


def test_a_lone_file_gets_a_card_from_its_shapes(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    small_model("mobilenet_v1", short=True).save(tmp_path / "x.keras")
    expected = Card(input_shape=(32, 32, 3), outputs="logits", assumed=("scaling", "crop"))
    assert saving.load(tmp_path / "x.keras").card == expected
    assert saving.card_of(small_model("mobilenet_v1", num_classes=0)).outputs == "features"
    assert (
        saving.card_of(small_model("mobilenet_v1", classifier_activation="softmax")).outputs
        == "probabilities"
    )


def test_the_optimizer_is_left_out(tmp_path: Path) -> None:
    model = build(archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=10), (32, 32, 3))
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(PIXELS, np.array([1, 2]))
    saving.save(model, tmp_path / "model", Card())
    assert (
        tmp_path / "model" / "model.keras"
    ).stat().st_size < 2 * 4 * model.count_params()  # with Adam's two slots three times
    assert model.optimizer is not None
    np.testing.assert_array_equal(outputs(saving.load(tmp_path / "model").model), outputs(model))


def test_saving_again_replaces_the_model(small_model: Callable[..., Any], tmp_path: Path) -> None:
    saving.save(small_model("mobilenet_v1", short=True), tmp_path / "model", Card(stage="train"))
    saving.save(small_model("mobilenet_v2", short=True), tmp_path / "model", Card(stage="prune"))
    model = saving.load(tmp_path / "model")
    assert model.card.stage == "prune" and model.model.name == "MobileNetV2"


def test_a_failed_save_leaves_the_old_model(
    small_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving.save(small_model("mobilenet_v1", short=True), tmp_path / "model", Card(stage="train"))

    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(saving.files, "write_json", fail)
    with pytest.raises(RuntimeError):
        saving.save(
            small_model("mobilenet_v2", short=True), tmp_path / "model", Card(stage="prune")
        )
    assert saving.load(tmp_path / "model").card.stage == "train"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_other_things_is_not_replaced(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UsageError, match="new folder"):
        saving.save(small_model("mobilenet_v1", short=True), tmp_path, Card())
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def refused(path: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        saving.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_is_not_a_model_is_refused(small_model: Callable[..., Any], tmp_path: Path) -> None:
    refused(tmp_path / "absent", "nothing there")
    refused(tmp_path, "holds no model.keras")
    (tmp_path / "x.txt").write_text("text")
    refused(tmp_path / "x.txt", "a model folder, a .keras")
    (tmp_path / "x.keras").write_text("text")
    refused(tmp_path / "x.keras", "zip archive")
    (tmp_path / "x.h5").write_text("text")
    refused(tmp_path / "x.h5", "whole Keras model")
    small_model("mobilenet_v1", short=True).save_weights(tmp_path / "weights.h5")
    refused(tmp_path / "weights.h5", "weights alone")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"text")
    refused(tmp_path / "saved", "Keras 2 wrote")


def test_damaged_files_are_refused(small_model: Callable[..., Any], tmp_path: Path) -> None:
    saving.save(small_model("mobilenet_v1", short=True), tmp_path / "model", Card())
    data = (tmp_path / "model" / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.keras", "cut short")
    flipped = bytearray(data)
    middle = len(data) // 2
    flipped[middle : middle + 64] = bytes(64)
    (tmp_path / "flipped.keras").write_bytes(bytes(flipped))
    refused(tmp_path / "flipped.keras", "whole Keras model")
    (tmp_path / "model" / "card.json").write_text("{")
    refused(tmp_path / "model", "JSON")
    (tmp_path / "model" / "card.json").write_text('{"type": "Card", "lables": []}')
    refused(tmp_path / "model", "did you mean labels")


def test_a_model_of_keras_3_is_loaded_from_its_file_alone(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=10)
    model = build(config, (32, 32, 3), keras=keras)
    model.save(tmp_path / "x.keras")
    loaded = saving.load(tmp_path / "x.keras").model
    assert isinstance(loaded, tf_keras.Model)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UsageError, match="tf_keras model"):
        saving.save(model, tmp_path / "model", Card())


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_model_that_tfmot_has_wrapped_is_named(tmp_path: Path, ending: str) -> None:
    """As tfmot's own users save it; Keras knows these classes in a scope alone."""
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    image = tf_keras.layers.Input((4, 4, 1))
    plain = tf_keras.Model(image, tf_keras.layers.Conv2D(2, 1)(image))
    pruned = tfmot.sparsity.keras.prune_low_magnitude(plain)
    quantized = tfmot.quantization.keras.quantize_model(plain)
    for name, model, message in (
        ("pruned", pruned, "PruneLowMagnitude.*strip_pruning"),
        ("quantized", quantized, "Quantize.*the float model from before"),
    ):
        model.save(tmp_path / f"{name}{ending}")
        refused(tmp_path / f"{name}{ending}", message)


def test_a_lambda_is_never_read(tmp_path: Path) -> None:
    image = tf_keras.layers.Input((4,))
    marker = tmp_path / "ran"
    path = str(marker)
    model = tf_keras.Model(
        image, tf_keras.layers.Lambda(lambda x: [x, open(path, "w").close()][0])(image)
    )
    assert marker.exists(), "the code runs when it is called"
    model.save(tmp_path / "x.keras")
    model.save(tmp_path / "x.h5")
    model.save(tmp_path / "saved", save_format="tf")
    marker.unlink()
    for name in ("x.keras", "x.h5", "saved"):
        refused(tmp_path / name, "Lambda")
    assert not marker.exists()


def test_a_class_of_another_module_is_never_imported(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    saving.save(small_model("mobilenet_v1", short=True), tmp_path / "model", Card())
    with zipfile.ZipFile(tmp_path / "model" / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1]["module"] = "os"
    config["config"]["layers"][1]["class_name"] = "system"
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    refused(tmp_path / "bad.keras", "os.system")


def test_a_card_of_another_size_gets_that_of_the_model(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    saving.save(
        small_model("mobilenet_v1", short=True), tmp_path / "model", Card(input_shape=(224, 224, 3))
    )
    assert saving.load(tmp_path / "model").card.input_shape == (32, 32, 3)
