"""Learning from feature maps: the distance of the paper, and every place where a model trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import CONFIG, make_job, stage_context  # noqa: E402
from small_models import INCEPTION, SIZE, inputs, toy  # noqa: E402

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs import pruning, quantization, weight_sharing  # noqa: E402
from mobilenet.configs.distillation import Distillation  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.distillation import features  # noqa: E402
from mobilenet.training.distillation.teacher_model import TeacherModel  # noqa: E402

L = tf_keras.layers
METHODS = {
    "magnitude": pruning.MagnitudePruning(final_sparsity={"pointwise": 0.5}),
    "dns": pruning.DnsPruning(),
    "channel": pruning.ChannelPruning(),
    "tfmot": pruning.TfmotPruning(),
    "quantize_aware": quantization.QuantizationAwareTraining(),
    "codebook": weight_sharing.CodebookQuantization(),
    "linear": weight_sharing.LinearQuantization(),
    "cluster": weight_sharing.TfmotClustering(),
}
QUICK = ("channel", "quantize_aware")
TAUGHT = Distillation("start", weight=0.0, features=2.0)
IMAGES = inputs(8, SIZE, seed=5)
LABELS = (IMAGES[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)


def teacher_model(size: int = SIZE, seed: int = 9) -> TeacherModel:
    """A teacher of other weights, whose last map has 3 channels and half the sides."""
    tf_keras.utils.set_random_seed(seed)
    source = L.Input((size, size, 3))
    x = L.ReLU(name="maps")(L.Conv2D(3, 3, 2, name="conv")(source))
    x = L.ReLU(name="last")(L.Conv2D(3, 3, 2)(x))
    x = L.Dense(4)(L.GlobalAveragePooling2D()(x))
    return TeacherModel(tf_keras.Model(source, x), INCEPTION, "other")


def train(
    folder: Path,
    model: Any,
    config: Distillation,
    method: methods.Method | None = None,
    **changes: Any,
) -> float:
    """The loss of the first steps with a rate of almost 0."""
    own = CONFIG.replace(epochs=1, lr=1e-12, label_smoothing=0.0, ma_decay_rate=0.0)
    batch = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat()
    steps = 1 if method is None else 4  # enough for the schedule of a method
    job = dataclasses.replace(
        make_job(folder, own),
        steps_per_epoch=steps,
        training=lambda step, context=None: batch,
        validation=batch.take(1),
        teacher=teacher_model().teacher(config, INCEPTION),
        **changes,
    )
    return float(engine.fit(model, method, job)[0]["loss"])


def expected_loss(model: Any, student: str, teacher: str, weight: float) -> float:
    """Of the labels, and the distance of two layers' maps."""
    maps = tf_keras.Model(model.input, [model.output, model.get_layer(student).output])
    logits, own = (value.numpy() for value in maps(IMAGES, training=True))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    chosen = powers[np.arange(8), LABELS] / powers.sum(1)
    other = teacher_model().model
    taught = tf_keras.Model(other.input, other.get_layer(teacher).output)(IMAGES).numpy()
    difference = similarities(own) - similarities(taught)
    return float(np.mean(-np.log(chosen)) + weight * np.sum(difference**2) / 8)


def similarities(maps: np.ndarray) -> np.ndarray:
    rows = maps.reshape(len(maps), -1).astype(np.float64)
    products = rows @ rows.T
    return np.asarray(products / np.sqrt((products**2).sum(1, keepdims=True)))


def test_the_distance_is_the_papers_times_the_images() -> None:
    draw = np.random.default_rng(0)
    student = draw.normal(size=(5, 3, 3, 4)).astype(np.float32)
    teacher = draw.normal(size=(5, 6, 6, 7)).astype(np.float32)
    published = ((similarities(student) - similarities(teacher)) ** 2).sum() / 25
    found = features.similarity_distance(tf.constant(student), tf.constant(teacher))
    assert found.shape == (5,)
    assert np.mean(found) == pytest.approx(5 * published, rel=1e-5)
    np.testing.assert_allclose(
        features.similarity_distance(tf.constant(student), tf.constant(-3 * student)), 0, atol=1e-6
    )


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_adds_the_distance_of_the_last_maps(tmp_path: Path, jit_compile: bool) -> None:
    expected = expected_loss(toy(), "d_act", "last", 2.0)
    found = train(tmp_path, toy(), TAUGHT, jit_compile=jit_compile)
    assert found == pytest.approx(expected, rel=1e-4)


def test_layers_are_chosen_by_stride_or_name(tmp_path: Path) -> None:
    pairs = TAUGHT.replace(feature_layers=("b_act=maps",))
    assert train(tmp_path / "pairs", toy(), pairs) == pytest.approx(
        expected_loss(toy(), "b_act", "maps", 2.0), rel=1e-4
    )
    strides = [tensor.shape[1] for tensor in features.of_teacher(teacher_model().model, ("2", "4"))]
    assert strides == [7, 3]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS]
)
def test_every_method_trains_with_features(name: str, tmp_path: Path) -> None:
    method = methods.create(METHODS[name], stage_context(4))
    model = method.apply(toy())
    loss = train(tmp_path, model, TAUGHT.replace(features=1000.0), method)
    assert method.finalize(model).output_shape == (None, 4)
    assert 10 < loss < 4000 + 10  # next to the loss of the labels, of about 1.4


def test_maps_that_do_not_exist_are_refused() -> None:
    def refused(config: Distillation, model: Any) -> str:
        with pytest.raises(UsageError) as caught:
            features.of_student(model, config.feature_layers)
        return str(caught.value)

    flat = tf_keras.Sequential([L.Input((4, 4, 3)), L.Flatten(), L.Dense(4)])
    flat = tf_keras.Model(flat.inputs, flat.outputs)
    assert "distillation.features: expected 0: the model has no feature map" in refused(
        TAUGHT, flat
    )
    layers = TAUGHT.replace(feature_layers=("16",))
    assert "feature_layers: got '16', expected a stride of the model: 2" in refused(layers, toy())
    named = TAUGHT.replace(feature_layers=("nope=last",))
    assert "feature_layers: got 'nope', expected a layer of the model" in refused(named, toy())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teacher": "none", "features": 1.0}, r"features: got 1.0, expected 0, as there is no"),
        ({"feature_layers": ("16",)}, r"features: got 0.0, expected a weight above 0"),
        ({"features": 1.0, "feature_layers": ("a=b=c",)}, r"feature_layers: got 'a=b=c'"),
        ({"features": -1.0}, r"features: got -1.0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        Distillation(**changes)
