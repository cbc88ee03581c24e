"""`mobilenet.pack` and `unpack` of a user's own models: bits, outputs, sizes and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet import api
from mobilenet.errors import UsageError

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("tf_keras")
L = keras.layers

SIDE = 12


def sequential() -> Any:
    return keras.Sequential(
        [
            L.Input((SIDE, SIDE, 3)),
            L.Conv2D(8, 3, name="conv"),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dense(40, name="head"),
        ]
    )


def nested() -> Any:
    """A model inside a model, with augmentation, an operator on tensors and a softmax."""
    base = keras.Sequential([L.Input((SIDE, SIDE, 3)), L.Conv2D(4, 3), L.BatchNormalization()])
    source = keras.Input((SIDE, SIDE, 3))
    x = base(L.RandomFlip()(source) / 2.0)
    x = L.GlobalAveragePooling2D()(x * tf.nn.relu6(x + 3.0))
    return keras.Model(source, L.Dense(5, activation="softmax")(x))


def trained(build: Callable[[], Any]) -> Any:
    """A compiled model after a step, so that it has an optimizer and statistics."""
    model = build()
    model.compile("adam", "mse")
    images = np.random.default_rng(0).normal(size=(4, SIDE, SIDE, 3)).astype(np.float32)
    model.fit(images, np.zeros((4, model.output_shape[-1])), verbose=0)
    return model


def outputs(model: Any) -> np.ndarray:
    images = np.random.default_rng(1).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    return np.asarray(model.predict(images, verbose=0))


@pytest.mark.parametrize(("build", "kind"), [(sequential, "logits"), (nested, "probabilities")])
def test_own_models_come_out_bit_by_bit(
    build: Callable[[], Any], kind: str, tmp_path: Path
) -> None:
    model, path = trained(build), tmp_path / "mine"
    packed = api.pack(model, path)
    assert path.read_bytes() == packed.content
    assert packed.weights == model.count_params()
    assert packed.ratio == pytest.approx(4 * model.count_params() / path.stat().st_size)
    again = api.unpack(path)
    for before, after in zip(model.get_weights(), again.model.get_weights(), strict=True):
        assert before.tobytes() == after.tobytes()
    np.testing.assert_array_equal(outputs(model), outputs(again.model))
    assert (again.card.outputs, again.card.input_shape) == (kind, (SIDE, SIDE, 3))


def test_what_is_known_of_the_model_is_packed_with_it(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(40)]
    path = tmp_path / "mine"
    api.pack(sequential(), path, labels=labels, preprocessing=(0, 255))
    card = api.unpack(path).card
    assert card.labels == tuple(labels)
    assert (card.preprocessing.mean, card.preprocessing.std) == ((0.0,), (255.0,))
    pixels = keras.Sequential([L.Input((4, 4, 3)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(2)])
    api.pack(pixels, path, overwrite=True)
    card = api.unpack(path).card
    assert (card.preprocessing.mean, card.preprocessing.std) == ((0.0,), (1.0,))
    for settings in ({"labels": ["a"]}, {"preprocessing": "inceptoin"}):
        with pytest.raises(UsageError, match=f"^{next(iter(settings))}: got"):
            api.pack(pixels, path, overwrite=True, **settings)


def test_zeros_cost_next_to_nothing() -> None:
    model = sequential()
    whole = api.pack(model)
    head = model.get_layer("head")
    kernel, bias = head.get_weights()
    kernel[np.random.default_rng(0).random(kernel.shape) < 0.9] = 0
    head.set_weights([kernel, bias])
    assert len(api.pack(model).content) < 0.25 * len(whole.content)


def test_a_saved_model_and_a_loaded_one_are_packed_alike(tmp_path: Path) -> None:
    model = sequential()
    model.save(tmp_path / "mine.keras")
    packed = api.pack(tmp_path / "mine.keras")
    packed.save(tmp_path / "mine.packed")
    assert api.pack(api.unpack(tmp_path / "mine.packed")).content == packed.content


def test_folded_batch_norms_have_sixteen_bits_and_the_model_is_left_as_it_is(
    tmp_path: Path,
) -> None:
    model = trained(sequential)
    before = outputs(model)
    api.pack(model, tmp_path / "mine", fold_batch_norm=True)
    again = api.unpack(tmp_path / "mine")
    gamma, beta, mean, _ = again.model.layers[2].get_weights()
    for values in (gamma, beta):
        np.testing.assert_array_equal(values, values.astype(np.float16))
    assert not mean.any() and "float16" in again.card.notes[-1]
    np.testing.assert_array_equal(outputs(model), before)
    difference = np.abs(outputs(again.model) - before).max()
    assert 0 < difference < 0.01 * np.abs(before).max()


def test_files_are_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    packed = api.pack(sequential())
    path = packed.save(tmp_path / "mine")
    with pytest.raises(UsageError, match="^path: .*expected a new file"):
        packed.save(path)
    with pytest.raises(UsageError, match="^path: .*expected a new file"):
        api.pack(sequential(), path)
    assert api.pack(sequential(), path, overwrite=True).save(path, overwrite=True) == path
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for wrong in (other, tmp_path):
        with pytest.raises(UsageError, match="^path: "):
            api.pack(sequential(), wrong, overwrite=True)
    assert other.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


class Scaled(L.Layer):
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


def own_layer() -> Any:
    return keras.Sequential([L.Input((SIDE, SIDE, 3)), Scaled(), L.Flatten(), L.Dense(2)])


def not_finite() -> Any:
    model = sequential()
    model.get_layer("head").bias.assign([np.inf] * 40)
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (own_layer, "Scaled"),
        (not_finite, "finite"),
        (lambda: keras.Sequential([L.Dense(2)]), "model: got .*without an input shape"),
        (lambda: 3, "model: got .*int"),
        (lambda: "nowhere", "nowhere: expected"),
    ],
)
def test_models_that_cannot_be_packed_are_named(
    model: Callable[[], Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        api.pack(model(), tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_only_whole_packed_files_are_unpacked(tmp_path: Path) -> None:
    path = api.pack(sequential()).save(tmp_path / "mine")
    content = path.read_bytes()
    for wrong, words in (
        (b"mine", "another kind of file"),
        (content[:-1], "a whole packed model"),
        (content[:90] + b"\0" + content[91:], "a whole packed model"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match=f"mine: expected .*{words}"):
            api.unpack(path)
    with pytest.raises(UsageError, match="there is no such file"):
        api.unpack(tmp_path / "absent")
