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

import mobilenet  # noqa: E402
from mobilenet import data, trainer  # noqa: E402
from mobilenet.configs import archs, recipes  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing  # noqa: E402
from mobilenet.configs.distillation import Distillation  # noqa: E402
from mobilenet.configs.quantization import PostTraining  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models import builder, saving  # noqa: E402
from mobilenet.training import engine, losses, resolve_config  # noqa: E402
from mobilenet.training.distillation import loading  # noqa: E402
from mobilenet.training.distillation.teacher_model import TeacherModel  # noqa: E402
from mobilenet.training.distillation.teachers import Teachers  # noqa: E402
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
    teacher = TeacherModel(model, INCEPTION, "wide").teacher(Distillation(), INCEPTION)
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
    teacher = TeacherModel(model, raw, "wide").teacher(Distillation(), INCEPTION)
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


@pytest.mark.parametrize(
    "taught_by",
    [Distillation(), Distillation(features=2.0, feature_layers=("Conv=Wide",))],
)
def test_a_killed_run_goes_on_to_the_same_weights_and_its_best_epoch(
    taught_by: Distillation, tmp_path: Path
) -> None:
    teacher = TeacherModel(wide_model(), INCEPTION, "wide")
    config = CONFIG.replace(keep_best=True, lr=0.2)
    models, rows = [], []
    for stop, folder in ((None, "whole"), (3, "cut"), (None, "cut")):
        models.append(two_layer_model())
        watch = Recorder(stop)
        job = make_job(tmp_path / folder, config, watch)
        job = dataclasses.replace(job, teacher=teacher.teacher(taught_by, INCEPTION))
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


def load(
    path: str,
    info: data.DatasetInfo = INFO,
    preprocessing: Preprocessing = INCEPTION,
    given: str | None = None,
    image_size: int | None = None,
) -> TeacherModel:
    config = Distillation(path, preprocessing=given, image_size=image_size)
    return loading.load(config, info, (32, 32, 3), preprocessing)


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
        teacher = load(source, preprocessing=PREPROCESSING["raw"])
        assert (teacher.preprocessing, teacher.name) == (preprocessing, source)
        np.testing.assert_allclose(softmax(teacher.model(images).numpy()), probabilities, rtol=1e-4)


def test_the_inputs_of_a_teacher_are_read_or_given(model: Any, tmp_path: Path) -> None:
    source = tf_keras.layers.Input((32, 32, 3))
    scaled = tf_keras.Model(source, model(tf_keras.layers.Rescaling(1 / 127.5, -1)(source)))
    scaled.save(tmp_path / "scaled.keras")
    path = str(tmp_path / "scaled.keras")
    teacher = load(path)
    assert (teacher.preprocessing.mean, teacher.preprocessing.std) == ((0.0,), (1.0,))
    given = load(path, given="0,255").preprocessing
    assert (given.mean, given.std) == ((0.0,), (255.0,))
    with pytest.raises(UsageError, match=r"^distillation\.preprocessing: got 'rwa'"):
        load(path, given="rwa")


def test_a_tf1_checkpoint_teaches(tmp_path: Path) -> None:
    _, path = slim.written(tmp_path, slim.Slim("mobilenet_v1", width=0.125))
    teacher = load(str(path), preprocessing=PREPROCESSING["raw"])
    assert teacher.model.output_shape == (None, 5)
    assert teacher.preprocessing.mean == (127.5,)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    expected = slim.loaded(path, input_shape=(32, 32, 3), classifier_activation=None).model(images)
    np.testing.assert_allclose(teacher.model(images), expected, rtol=1e-5, atol=1e-5)


def test_an_unsuitable_teacher_is_refused_with_the_reason(model: Any, tmp_path: Path) -> None:
    def refused(path: str, info: data.DatasetInfo = INFO, **changes: Any) -> str:
        with pytest.raises(UsageError) as caught:
            load(path, info, **changes)
        assert str(caught.value).startswith("`teacher`: ") or str(caught.value).startswith(
            "teacher: "
        )
        return str(caught.value)

    path = save_teacher(model, tmp_path)
    seven = dataclasses.replace(INFO, num_classes=7, labels=())
    assert (
        "expected a teacher of 7 classes, or with labels among which they are; this one gives 5"
        in refused(path, seven)
    )
    others = dataclasses.replace(INFO, labels=("e", "d", "c", "b", "z"))
    assert "of the classes e, d, c, ...; this one has a, b, c, ..." in refused(path, others)
    assert "there is nothing there" in refused(str(tmp_path / "none.keras"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "tf2"))
    assert "a model with its architecture" in refused(str(tmp_path / "tf2-1"))


def recorder(shape: tuple[int | None, int | None, int]) -> TeacherModel:
    """A teacher whose logits are its inputs."""
    source = tf_keras.layers.Input(shape)
    model = tf_keras.Model(source, tf_keras.layers.Reshape((-1,))(source))
    return TeacherModel(model, PREPROCESSING["unit"], "recorder")


@pytest.mark.parametrize("size", [(12, 10), (4, 4)])
def test_images_are_resized_to_what_a_teacher_takes(size: tuple[int, int]) -> None:
    """Against Keras' own layer; the teacher takes pixels from 0 to 1."""
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 6, 8, 3)).astype(np.float32)
    teacher = recorder((*size, 3)).teacher(Distillation(), INCEPTION)
    expected = tf_keras.layers.Resizing(*size)(pixels) / 255
    found = teacher.predict(tf.constant((pixels - 127.5) / 127.5))
    np.testing.assert_allclose(found, np.reshape(expected, (2, -1)), rtol=1e-4, atol=1e-4)


def test_a_teacher_of_any_size_takes_the_size_that_is_set() -> None:
    images = tf.ones((1, 6, 6, 3))
    teacher = recorder((None, None, 3))
    assert teacher.teacher(Distillation(), INCEPTION).predict(images).shape == (1, 108)
    larger = dataclasses.replace(teacher, image_size=9).teacher(Distillation(), INCEPTION)
    assert larger.predict(images).shape == (1, 243)


def test_gray_and_color_images_are_converted() -> None:
    gray = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 1)).astype(np.float32)
    teacher = recorder((4, 4, 3)).teacher(Distillation(), INCEPTION, channels=1)
    found = teacher.predict(tf.constant(gray / 127.5 - 1)).numpy().reshape(2, 4, 4, 3)
    np.testing.assert_allclose(found, np.repeat(gray, 3, axis=-1) / 255, atol=1e-5)
    color = np.random.default_rng(1).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    own = PREPROCESSING["imagenet"]
    teacher = recorder((4, 4, 1)).teacher(Distillation(), own, channels=3)
    found = teacher.predict(tf.constant((color - own.mean) / own.std, tf.float32))
    luma = color @ [0.2989, 0.587, 0.114] / 255  # of ITU-R BT.601
    np.testing.assert_allclose(found.numpy().reshape(2, 4, 4), luma, atol=1e-5)


def test_classes_of_a_teacher_of_more_are_chosen_by_label(model: Any, tmp_path: Path) -> None:
    path = save_teacher(model, tmp_path)
    info = dataclasses.replace(INFO, num_classes=2, labels=("d", "b"))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    logits = load(path, info).teacher(Distillation(), INCEPTION).predict(images)
    every = load(path).model(images).numpy()
    np.testing.assert_allclose(logits, every[:, [3, 1]], rtol=1e-5)
    unlabeled = save_teacher(model, tmp_path / "unlabeled", labels=())
    with pytest.raises(UsageError, match="a teacher of 2 classes, or with labels among which"):
        load(unlabeled, info)


def test_a_teacher_of_another_size_is_refused_where_a_size_is_set(
    model: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"image_size: got 64, expected the size of .* 32x32x3"):
        load(save_teacher(model, tmp_path), image_size=64)


def test_a_file_of_timm_teaches_what_timm_gives(shared_data: Path) -> None:
    """Its logits of its own inputs; those of smaller images are of the enlarged ones."""
    folder = shared_data / "timm_golden"
    golden = np.load(folder / "mobilenetv2_035.npz")
    info = dataclasses.replace(INFO, num_classes=10, labels=())
    taught = load(str(folder / "mobilenetv2_035.safetensors"), info, image_size=64)
    assert taught.preprocessing.mean == PREPROCESSING["imagenet"].mean
    images = golden["input"]
    teacher = taught.teacher(Distillation(), taught.preprocessing)
    logits = teacher.predict(tf.constant(images))
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-3, atol=1e-3)
    smaller = tf.image.resize(images, (32, 32))
    resized = tf_keras.layers.Resizing(64, 64)(smaller)
    np.testing.assert_allclose(teacher.predict(smaller), taught.model(resized), atol=1e-4)


def test_a_teacher_that_is_not_in_the_cache_is_refused_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOBILENET_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UsageError) as caught:
        mobilenet.train(
            "digits",
            model_dir=tmp_path / "run",
            distill="mobilenet_v1_0.25_128",
            stages=("train",),
            offline=True,
        )
    assert "mobilenet_v1_0.25_128" in str(caught.value)
    assert not (tmp_path / "run").exists()


def run_of(**changes: Any) -> RunConfig:
    return recipes.get("mobilenet_v1", "digits").replace(**changes)


def test_a_stage_learns_from_its_initial_model_where_that_is_trained(model: Any) -> None:
    teachers = Teachers(run_of(distillation=Distillation("start")), INFO)
    teacher = teachers.of("prune", model, "train")
    assert teacher is not None
    assert teacher.note(Distillation("start", 0.5, 3.0)) == (
        "distilled from train, weight 0.5, temperature 3"
    )
    assert teachers.of("quantize", model, None) is None  # some weights are new
    assert teachers.of("train", model, "a checkpoint") is None
    nobody = Teachers(run_of(distillation=Distillation("none")), INFO)
    assert nobody.of("prune", model, "train") is None


def test_another_model_teaches_every_stage(model: Any, tmp_path: Path) -> None:
    config = run_of(image_size=32, distillation=Distillation(save_teacher(model, tmp_path)))
    config = config.replace(model=config.model.replace(num_classes=INFO.num_classes))
    teachers = Teachers(config, INFO)
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
