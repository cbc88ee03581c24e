"""`mobilenet.profile` of models and files: counts against those of a hand, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet import api
from mobilenet.errors import UsageError

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("tf_keras")
L = keras.layers

LAYERS = ("conv", "pool", "head")
# 10 x 10 x 3 to 8 x 8 x 4 by 3 x 3 kernels; pooled to 4 x 4 x 4; 64 values to 5 classes.
PARAMS = (3 * 3 * 3 * 4 + 4 + 4 * 4, 0, 64 * 5 + 5)
MACS = (8 * 8 * 3 * 3 * 3 * 4, 0, 64 * 5)
SIDE = 10


def feature_layers() -> list[Any]:
    return [
        L.Conv2D(4, 3, name="conv"),
        L.BatchNormalization(name="norm"),
        L.ReLU(name="relu"),
        L.MaxPooling2D(name="pool"),
    ]


def sequential() -> Any:
    layers = [L.Input((SIDE, SIDE, 3)), *feature_layers(), L.Flatten(), L.Dense(5, name="head")]
    return keras.Sequential(layers)


def nested() -> Any:
    """The same, the convolution inside a model that is called as a layer, with a softmax."""
    base = keras.Sequential([L.Input((SIDE, SIDE, 3)), *feature_layers()])
    source = keras.Input((SIDE, SIDE, 3))
    x = L.Flatten()(base(L.RandomFlip()(source)))
    return keras.Model(source, L.Dense(5, activation="softmax", name="head")(x))


@pytest.mark.parametrize("build", [sequential, nested])
def test_layers_are_counted_as_by_hand(build: Any) -> None:
    model = build()
    kernel = model.get_layer("head").get_weights()[0]
    kernel[:, 3] = kernel[7] = 0  # an output, and an input of 5
    model.get_layer("head").set_weights([kernel, np.zeros(5)])
    found = api.profile(model, latency=False, packed=False)
    layers = [layer for layer in found.layers if layer.params or layer.role == "MaxPooling2D"]
    assert tuple(layer.layer for layer in layers) == LAYERS
    assert tuple(layer.params for layer in layers) == PARAMS
    assert tuple(layer.macs for layer in layers) == MACS
    assert (layers[0].role, layers[0].shape) == ("stem", (8, 8, 4))
    assert layers[2].zeros == 64 + 4 and layers[2].sparsity == pytest.approx(68 / 320)
    assert (found.total().params, found.total().macs) == (model.count_params(), sum(MACS))
    head = next(line for line in found.zeros if line.layer == "head")
    assert (head.zero_outputs, head.outputs, head.zero_inputs, head.inputs) == (1, 5, 1, 64)
    assert [group.channels for group in found.groups] == [4, 5]


def test_sizes_are_those_of_the_packed_file_and_the_flatbuffer() -> None:
    model = sequential()
    found = api.profile(model, latency=False)
    # The packed file's card has a note on what is assumed of the inputs.
    assert 0 <= len(api.pack(model).content) - found.sizes["packed"] <= 200
    assert found.sizes["bytes of float flatbuffer"] > 4 * model.count_params() - 3 * 4 * 4
    assert found.total().packed < found.sizes["packed"]


def test_the_text_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = api.profile(sequential(), latency=False, packed=False)
    monkeypatch.setenv("COLUMNS", "60")
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 60
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert f"{sum(PARAMS):,}" in {cell for line in lines for cell in line.split()}
    assert set(LAYERS) <= set(rows)


def test_a_model_of_open_size_takes_one() -> None:
    model = keras.Sequential(
        [L.Input((None, None, 3)), L.Conv2D(4, 1), L.GlobalAveragePooling2D(), L.Dense(2)]
    )
    with pytest.raises(UsageError, match="^image_size: "):
        api.profile(model, latency=False, packed=False)
    found = api.profile(model, latency=False, packed=False, image_size=6)
    assert found.total().macs == 6 * 6 * 3 * 4 + 4 * 2


def test_a_layer_that_no_file_has_is_counted_and_noted() -> None:
    source = keras.Input((8, 8, 3))
    x = L.Conv2D(2, 3)(L.UpSampling2D(interpolation="lanczos3")(source))
    model = keras.Model(source, L.Dense(3)(L.Flatten()(x)))
    found = api.profile(model)
    assert found.total().params == model.count_params()
    assert found.whole is None and found.total().seconds is None
    assert any("converter refused" in note for note in found.notes)
    assert set(found.sizes) == {"packed"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = sequential()
    traced = tf.function(model).get_concrete_function(tf.TensorSpec((1, SIDE, SIDE, 3)))
    data = tf.lite.TFLiteConverter.from_concrete_functions([traced], model).convert()
    (tmp_path / "model.tflite").write_bytes(data)
    return tmp_path / "model.tflite"


def test_a_file_is_shown_by_operator(file: Path) -> None:
    found = api.profile(file)
    names = [line.operator for line in found.operators]
    assert [names[0], names[-1]] == ["CONV_2D", "FULLY_CONNECTED"]
    assert found.operators[0].weights == 4 * 3 * 3 * 3
    assert found.bytes == file.stat().st_size
    assert found.seconds > 0
    assert f"{file.stat().st_size:,} bytes; 1 CONV_2D" in str(found)
    assert str(found).endswith("ms on one thread")
    assert api.profile(file, latency=False).seconds is None


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (sequential, {"micro": True}, "micro: got True, expected a file"),
        (sequential, {"isolated": True}, "isolated: got True, expected a file"),
        (lambda: 3, {}, "model: got .*int"),
        (lambda: "nowhere", {}, "nowhere: expected a model folder"),
        (lambda: "nowhere.tflite", {}, "nowhere.tflite: expected"),
        (lambda: keras.Sequential([L.Dense(2)]), {}, "model: got .*without an input shape"),
    ],
)
def test_what_cannot_be_is_named(model: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        api.profile(model(), **options)


def test_the_size_of_a_file_is_fixed(file: Path) -> None:
    with pytest.raises(UsageError, match="^image_size: got 32, expected a model"):
        api.profile(file, image_size=32)
