"""Learning from a teacher: the loss of the paper, a frozen teacher, which models are accepted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import slim_checkpoints as slim  # noqa: E402
import tf_keras  # noqa: E402
from command_runs import TINY  # noqa: E402
from short_training import BATCH, CONFIG, Recorder, batches, make_job  # noqa: E402
from small_models import CLASSES, two_layer_model  # noqa: E402

from mobilenet import data, trainer  # noqa: E402
from mobilenet.configs import archs, recipes  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.configs.dataset import PREPROCESSING  # noqa: E402
from mobilenet.configs.distillation import Distillation  # noqa: E402
from mobilenet.configs.quantization import PostTraining  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models import builder, saving  # noqa: E402
from mobilenet.training import distillation, engine, losses, resolve_config  # noqa: E402
from mobilenet.training.resolve_config import Explicit  # noqa: E402

INCEPTION = PREPROCESSING["inception"]
LABELS = ("a", "b", "c", "d", "e")
INFO = data.DatasetInfo(5, LABELS, {"train": 90, "validation": 9, "test": 9}, ("train",))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("weight", "temperature", "smoothing"),
    [(0.9, 4.0, 0.0), (0.5, 0.5, 0.2), (0.0, 2.0, 0.1), (1.0, 1.0, 0.0)],
)
def test_the_loss_is_the_papers(weight: float, temperature: float, smoothing: float) -> None:
    draw = np.random.default_rng(0)
    taught, logits = draw.normal(0, 3, (2, 7, 4))
    labels = draw.integers(0, 4, 7)
    targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    p, q = softmax(taught / temperature), softmax(logits / temperature)
    divergence = np.sum(p * np.log(p / q), axis=1)
    expected = -(1 - weight) * np.sum(targets * np.log(softmax(logits)), axis=1)
    expected += weight * temperature**2 * divergence

    teacher = losses.Teacher(lambda x: tf.constant(taught, tf.float32), weight, temperature)
    loss = losses.distillation_loss(losses.cross_entropy(4, smoothing), teacher)
    result = loss(teacher.append_targets(labels, None), tf.constant(logits, tf.float32))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def wide_model() -> Any:
    """Another model for the same images; no weight of `make_model` has its 7 channels."""
    tf_keras.utils.set_random_seed(3)
    layers = tf_keras.layers
    source = layers.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(7, 3, name="Wide")(source))
    return tf_keras.Model(source, layers.Dense(CLASSES)(layers.Flatten()(x)))


def test_a_teacher_gets_no_gradient_and_keeps_its_statistics() -> None:
    model = wide_model()
    teacher = distillation.TeacherModel(model, INCEPTION, "wide").teacher(Distillation(), INCEPTION)
    images = tf.random.normal((BATCH, 6, 6, 2))
    first = model(images, training=False)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        target = teacher.append_targets(tf.zeros(BATCH, tf.int64), images)
    variables = tape.watched_variables()
    assert any(v.shape == (3, 3, 2, 7) for v in variables)
    assert tape.gradient(target, [images, *variables]) == [None] * (1 + len(variables))
    np.testing.assert_array_equal(teacher.predict(images), first)
    np.testing.assert_array_equal(target[:, 1:], first)


def test_a_teacher_sees_pixels_as_it_was_trained_on_them() -> None:
    model = wide_model()
    model.get_layer("Wide").set_weights([np.full((3, 3, 2, 7), 0.01, np.float32), np.ones(7)])
    raw = dataclasses.replace(INCEPTION, name="own", mean=(10.0, 20.0), std=(2.0, 4.0))
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 6, 6, 2)).astype(np.float32)
    teacher = distillation.TeacherModel(model, raw, "wide").teacher(Distillation(), INCEPTION)
    expected = model((pixels - np.float32([10, 20])) / np.float32([2, 4]), training=False)
    result = teacher.predict(tf.constant((pixels - 127.5) / 127.5))
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def contrary(images: Any) -> Any:
    """Logits of the class after the label's: a batch's images are its labels and noise."""
    value = tf.reduce_mean(images, axis=(1, 2, 3))[:, None]
    classes = tf.range(CLASSES, dtype=tf.float32)[None]
    return -9.0 * tf.square(tf.math.floormod(value + 1.5, float(CLASSES)) - 0.5 - classes)


def test_a_student_comes_to_agree_with_its_teacher_against_the_labels(tmp_path: Path) -> None:
    student = two_layer_model()
    teacher = losses.Teacher(contrary, 1.0, 1.0)
    job = dataclasses.replace(make_job(tmp_path, CONFIG.replace(epochs=20)), teacher=teacher)
    rows = engine.fit(student, None, job)
    images = np.concatenate([x for x, _ in batches(100).take(2).as_numpy_iterator()])
    agreed = np.mean(student(images).numpy().argmax(1) == contrary(images).numpy().argmax(1))
    assert agreed > 0.8
    assert rows[-1]["val_top1"] < 20
    assert rows[-1]["top1"] < 40  # that of training is by the labels, too
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_killed_run_goes_on_to_the_same_weights_and_its_best_epoch(tmp_path: Path) -> None:
    teacher = distillation.TeacherModel(wide_model(), INCEPTION, "wide")
    config = CONFIG.replace(keep_best=True, lr=0.2)
    models, rows = [], []
    for stop, folder in ((None, "whole"), (3, "cut"), (None, "cut")):
        models.append(two_layer_model())
        watch = Recorder(stop)
        job = make_job(tmp_path / folder, config, watch)
        job = dataclasses.replace(job, teacher=teacher.teacher(Distillation(), INCEPTION))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                engine.fit(models[-1], None, job)
        else:
            rows.append(engine.fit(models[-1], None, job))
        trained = {id(v) for v in watch.model.trainable_variables}
        assert trained == {id(v) for v in models[-1].trainable_variables}
    for key in ("loss", "val_loss", "val_top1", "kept"):
        assert [r[key] for r in rows[1]] == pytest.approx([r[key] for r in rows[0]], abs=1e-4)
    for one, other in zip(models[2].get_weights(), models[0].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    state = max((tmp_path / "cut").glob("state-*"))
    saved = tf.train.list_variables(str(state / "variables"))
    assert not [name for name, shape in saved if 7 in shape]  # nothing of the teacher


@pytest.fixture(scope="module")
def model() -> Any:
    tf_keras.utils.set_random_seed(0)
    config = archs.get("mobilenet_v1", width_multiplier=0.125, num_classes=5)
    return builder.build(config, (32, 32, 3))


def save_teacher(model: Any, folder: Path, **changes: Any) -> str:
    card = Card(input_shape=(32, 32, 3), labels=LABELS).replace(**changes)
    return str(saving.save(model, folder / "teacher", card))


def test_a_folder_and_a_file_teach_their_logits(model: Any, tmp_path: Path) -> None:
    own = PREPROCESSING["imagenet"]
    path = save_teacher(model, tmp_path, preprocessing=own)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    probabilities = model(images).numpy()  # the model ends with a softmax
    model.save(tmp_path / "alone.keras")
    alone = str(tmp_path / "alone.keras")
    for source, preprocessing in ((path, own), (alone, PREPROCESSING["raw"])):
        teacher = distillation.load(source, INFO, (32, 32, 3), PREPROCESSING["raw"])
        assert (teacher.preprocessing, teacher.name) == (preprocessing, source)
        np.testing.assert_allclose(softmax(teacher.model(images).numpy()), probabilities, rtol=1e-4)


def test_the_inputs_of_a_teacher_are_read_or_given(model: Any, tmp_path: Path) -> None:
    source = tf_keras.layers.Input((32, 32, 3))
    scaled = tf_keras.Model(source, model(tf_keras.layers.Rescaling(1 / 127.5, -1)(source)))
    scaled.save(tmp_path / "scaled.keras")
    path = str(tmp_path / "scaled.keras")
    teacher = distillation.load(path, INFO, (32, 32, 3), INCEPTION)
    assert (teacher.preprocessing.mean, teacher.preprocessing.std) == ((0.0,), (1.0,))
    given = distillation.load(path, INFO, (32, 32, 3), INCEPTION, "0,255").preprocessing
    assert (given.mean, given.std) == ((0.0,), (255.0,))
    with pytest.raises(UsageError, match=r"^distillation\.preprocessing: got 'rwa'"):
        distillation.load(path, INFO, (32, 32, 3), INCEPTION, "rwa")


def test_a_tf1_checkpoint_teaches(tmp_path: Path) -> None:
    _, path = slim.written(tmp_path, slim.Slim("mobilenet_v1", width=0.125))
    teacher = distillation.load(str(path), INFO, (32, 32, 3), PREPROCESSING["raw"])
    assert teacher.model.output_shape == (None, 5)
    assert teacher.preprocessing.mean == (127.5,)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    expected = slim.loaded(path, input_shape=(32, 32, 3), classifier_activation=None).model(images)
    np.testing.assert_allclose(teacher.model(images), expected, rtol=1e-5, atol=1e-5)


def test_an_unsuitable_teacher_is_refused_with_the_reason(model: Any, tmp_path: Path) -> None:
    def refused(path: str, info: data.DatasetInfo = INFO, size: int = 32) -> str:
        with pytest.raises(UsageError) as caught:
            distillation.load(path, info, (size, size, 3), INCEPTION)
        assert str(caught.value).startswith("`teacher`: ") or str(caught.value).startswith(
            "teacher: "
        )
        return str(caught.value)

    path = save_teacher(model, tmp_path)
    seven = dataclasses.replace(INFO, num_classes=7, labels=())
    assert "expected a teacher of 7 classes; this one gives 5" in refused(path, seven)
    others = dataclasses.replace(INFO, labels=("e", "d", "c", "b", "a"))
    assert "of the classes e, d, c, ...; this one has a, b, c, ..." in refused(path, others)
    assert "images of 64x64x3; this one takes 32x32x3" in refused(path, size=64)
    assert "there is nothing there" in refused(str(tmp_path / "none.keras"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "tf2"))
    assert "a model with its architecture" in refused(str(tmp_path / "tf2-1"))


def run_of(**changes: Any) -> RunConfig:
    return recipes.get("mobilenet_v1", "digits").replace(**changes)


def test_a_stage_learns_from_its_initial_model_where_that_is_trained(model: Any) -> None:
    teachers = distillation.Teachers(run_of(distillation=Distillation("start")), INFO)
    teacher = teachers.of("prune", model, "train")
    assert teacher is not None
    assert teacher.note(Distillation("start", 0.5, 3.0)) == (
        "distilled from train, weight 0.5, temperature 3"
    )
    assert teachers.of("quantize", model, None) is None  # some weights are new
    assert teachers.of("train", model, "a checkpoint") is None
    nobody = distillation.Teachers(run_of(distillation=Distillation("none")), INFO)
    assert nobody.of("prune", model, "train") is None


def test_another_model_teaches_every_stage(model: Any, tmp_path: Path) -> None:
    config = run_of(image_size=32, distillation=Distillation(save_teacher(model, tmp_path)))
    config = config.replace(model=config.model.replace(num_classes=INFO.num_classes))
    teachers = distillation.Teachers(config, INFO)
    assert teachers.of("train", model, None) is not None
    assert teachers.of("quantize", model, None) is teachers.of("train", model, None)  # loaded once


@pytest.mark.parametrize(("images", "teacher"), [(999, "start"), (1000, "none")])
def test_few_images_of_a_class_are_distilled(
    images: int, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = data.DatasetInfo(10, (), {"train": images}, ("train",))
    monkeypatch.setattr(data, "describe", lambda dataset: info)
    config, _ = resolve_config.resolve(run_of())
    assert config.distillation == Distillation(teacher)
    asked = run_of(distillation=Distillation("none", 0.3))
    assert resolve_config.resolve(asked)[0].distillation == asked.distillation


@pytest.mark.parametrize(
    ("teacher", "changes", "expected"),
    [
        ("start", {"stages": ("train", "convert")}, "prune, or quantize with training; leave"),
        ("start", {"stages": ("quantize",), "quantization": PostTraining()}, "prune, or quant"),
        ("a.keras", {"stages": ("quantize",), "quantization": PostTraining()}, "or train; leave"),
    ],
)
def test_a_teacher_without_a_stage_is_refused(
    teacher: str, changes: dict[str, Any], expected: str
) -> None:
    config = run_of(distillation=Distillation(teacher), **changes)
    with pytest.raises(UsageError, match=f"^teacher: got '{teacher}', .*{expected}"):
        resolve_config.resolve(config, Explicit(teacher=True))
    assert resolve_config.resolve(config)[0] is not None  # one of a file replays


@pytest.mark.slow
def test_a_card_names_the_teacher_and_the_best_epoch(tmp_path: Path) -> None:
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=10)
    start = save_teacher(builder.build(config, (32, 32, 3)), tmp_path, labels=())
    args = [
        *TINY,
        "--prune_epochs=1",
        "--batch_size=400",
        "--prune_keep_best",
        f"--init_checkpoint={start}",
    ]
    args += ["--stages=prune", "--distill=start", "--distill_weight=0.5"]
    trainer.run([*args, f"--model_dir={tmp_path / 'run'}"])
    notes = json.loads((tmp_path / "run/prune/card.json").read_text())["notes"]
    assert notes[-2:] == [
        f"distilled from {start}, weight 0.5, temperature 2",
        "weights of epoch 1 of 1, the best on validation images",
    ]
    decided = json.loads((tmp_path / "run/config.json").read_text())["distillation"]
    assert (decided["teacher"], decided["weight"]) == ("start", 0.5)
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[0].endswith(",kept")
