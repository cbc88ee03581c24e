"""`load_model` opens every form of saved model, with the outputs of the model that was saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet.configs.card import Card
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")
import tensorflow as tf  # noqa: E402
from slim_checkpoints import Slim, loaded, written  # noqa: E402

from mobilenet import load_model, loading  # noqa: E402
from mobilenet.compression.quantization.int8 import saving as int8_saving  # noqa: E402
from mobilenet.compression.quantization.int8 import scheme  # noqa: E402
from mobilenet.export import frozen_graph as export_frozen_graph  # noqa: E402
from mobilenet.models import frozen_graph, saving  # noqa: E402
from mobilenet.packing import model as packed_model  # noqa: E402

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
CARD = Card(input_shape=(32, 32, 3), labels=tuple("abcdefghij"))
KERAS_FORMS = ("folder", "folder/model.keras", "x.h5", "saved_model", "x.packed")


def outputs(model: Any) -> np.ndarray:
    return np.asarray(model(tf.constant(IMAGES), training=False))


@pytest.fixture(scope="module")
def model() -> Any:
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    image = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu", name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(10, name="Logits")(x))


@pytest.fixture(scope="module")
def forms(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every form that holds its layers or graph, and a quantized one."""
    folder = tmp_path_factory.mktemp("forms")
    saving.save(model, folder / "folder", CARD)
    model.save(folder / "x.h5")
    model.save(folder / "saved_model", save_format="tf")
    card = saving.LoadedModel(model, CARD)
    (folder / "x.packed").write_bytes(packed_model.pack(card))
    (folder / "x.pb").write_bytes(export_frozen_graph.serialize_graph(model))
    (folder / "graph").mkdir()
    (folder / "graph" / frozen_graph.GRAPH).write_bytes((folder / "x.pb").read_bytes())
    saving.save(model, folder / "int8", CARD)
    wrapped = scheme.wrap(model, CARD.preprocessing)
    ranges = {name: np.float32([-0.5, 0.5]) for name in scheme.get_ranges(wrapped)}
    int8_saving.save_ranges(folder / "int8", ranges)
    (folder / "int8.packed").write_bytes(packed_model.pack(card, ranges))
    return folder


@pytest.mark.parametrize("form", KERAS_FORMS)
def test_every_form_of_a_keras_model_gives_its_outputs(form: str, forms: Path, model: Any) -> None:
    for load in (load_model, loading.load_keras_model):
        again = load(forms / form)
        np.testing.assert_array_equal(outputs(again.model), outputs(model))
        assert again.card.input_shape == (32, 32, 3)
        assert again.card.labels == (CARD.labels if "folder" in form or "packed" in form else ())


@pytest.mark.parametrize("form", ["x.pb", "graph"])
def test_a_frozen_graph_runs_and_has_no_layers(form: str, forms: Path, model: Any) -> None:
    assert loading.detect_form(forms / form) == loading.FROZEN_GRAPH
    np.testing.assert_allclose(outputs(load_model(forms / form).model), outputs(model), atol=1e-5)
    with pytest.raises(UsageError, match="a frozen graph has none"):
        loading.load_keras_model(forms / form)


@pytest.mark.parametrize("form", ["int8", "int8.packed"])
def test_a_quantized_model_comes_with_its_quantizers_or_without(
    form: str, forms: Path, model: Any
) -> None:
    quantized = load_model(forms / form).model
    assert all(
        np.array_equal(span, np.float32([-0.5, 0.5]))
        for span in scheme.get_ranges(quantized).values()
    )
    assert not np.allclose(outputs(quantized), outputs(model), atol=1e-4)
    for plain in (
        load_model(forms / form, quantizers=False),
        loading.load_keras_model(forms / form),
    ):
        np.testing.assert_array_equal(outputs(plain.model), outputs(model))


def test_a_tf1_checkpoint_is_found_by_its_prefix_index_or_folder(tmp_path: Path) -> None:
    _, prefix = written(tmp_path, Slim("mobilenet_v1"))
    expected = loaded(prefix)
    for path in (prefix, Path(f"{prefix}.index"), prefix.parent):
        assert loading.detect_form(path) == loading.CHECKPOINT
    again = loading.load_model(prefix)
    assert again.card.stage == "tf1" and again.card.outputs == "probabilities"
    for ours, theirs in zip(again.model.get_weights(), expected.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_tf2_checkpoint_has_no_architecture(model: Any, tmp_path: Path) -> None:
    tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    assert loading.detect_form(tmp_path) == loading.CHECKPOINT
    with pytest.raises(UsageError, match="a TF2 checkpoint has none"):
        load_model(tmp_path)


def test_what_is_no_saved_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"")
    (tmp_path / "x.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "x.tflite": "a flatbuffer has none; mobilenet.runtime.Classifier runs it",
        "x.txt": "expected a model folder, a .keras or .h5 file, a SavedModel",
        "empty": "expected a model folder, a .keras or .h5 file, a SavedModel",
        "pipe": "not a pipe or device",
        "absent": "there is nothing there",
        "absent.keras": "there is nothing there",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_model(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and reason in str(caught.value)
