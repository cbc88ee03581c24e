"""`python -m mobilenet.evaluator` where the model's classes and the data's differ, and on lists.

The models are one matrix on the mean color, the images one color each, so that every figure is
worked out here from the colors.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import run_command
from PIL import Image

from mobilenet import evaluator, metrics
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.runtime import evaluation
from mobilenet.runtime.classifier import Classifier

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("tf_keras")

SIDE, CLASSES = 8, 8
NAMES = tuple("abcdefgh")
WEIGHTS = np.random.default_rng(5).normal(scale=2, size=(3, CLASSES)).astype(np.float32)
FORMS = ("keras", "tflite")


@functools.cache
def built(softmax: bool) -> tuple[Any, bytes]:
    """The model and its float file."""

    def model(batch: int | None) -> Any:
        source = keras.Input((SIDE, SIDE, 3), batch_size=batch)
        x = keras.layers.GlobalAveragePooling2D()(source)
        x = keras.layers.Dense(CLASSES, use_bias=False)(x)
        built_model = keras.Model(source, keras.layers.Softmax()(x) if softmax else x)
        built_model.set_weights([WEIGHTS])
        return built_model

    return model(None), tf.lite.TFLiteConverter.from_keras_model(model(1)).convert()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves the model in one form, with names of its classes or without."""

    def save(form: str, labels: tuple[str, ...] = (), softmax: bool = False) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        model, data = built(softmax)
        if form == "keras":
            model.save(folder / "model.keras")
        else:
            (folder / "model.tflite").write_bytes(data)
        outputs = "probabilities" if softmax else "logits"
        card = Card(input_shape=(SIDE, SIDE, 3), labels=labels, outputs=outputs)
        (folder / "card.json").write_text(json.dumps(card.to_json()))
        return folder

    return save


def colors(names: tuple[str, ...], each: int = 5) -> list[tuple[str, np.ndarray]]:
    noise = np.random.default_rng(11)
    return [(name, noise.integers(0, 256, 3, np.uint8)) for name in names for _ in range(each)]


def paint(path: Path, color: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(color, (12, 12, 1))).save(path)


def folders(root: Path, names: tuple[str, ...]) -> Path:
    for number, (name, color) in enumerate(colors(names)):
        paint(root / "test" / name / f"{number:03d}.png", color)
    return root


def expected(
    names: tuple[str, ...], columns: list[int], outputs: slice = slice(None)
) -> tuple[float, float, float, int]:
    """Figures where class n of `names` is column n of `columns`, among the model's `outputs`."""
    shown = [(columns[names.index(name)], color) for name, color in colors(names)]
    ranks, losses = [], []
    for column, color in shown:
        logits = (color.astype(np.float64) / 127.5 - 1) @ WEIGHTS
        scored = logits[outputs]
        losses.append(math.log(np.exp(scored).sum()) - logits[column])
        ranks.append(np.sum(scored > logits[column]))
    top1, top5 = (100 * float(np.mean(np.array(ranks) < k)) for k in (1, 5))
    return top1, top5, float(np.mean(losses)), len(shown)


def metrics_of(
    capfd: pytest.CaptureFixture[str], *args: object
) -> tuple[tuple[float, float, float, int], str]:
    """What was printed: top-1, top-5, loss and images, and the lines before the title."""
    capfd.readouterr()
    evaluator.run([*map(str, args)])
    out, err = capfd.readouterr()
    assert err == ""
    before, _, table = out.partition(f"{str(args[0]).removeprefix('--model=')} on ")
    top1, top5, loss, images, _ = table.strip().splitlines()[-1].split()
    return (float(top1), float(top5), float(loss), int(images)), before


def assert_close(result: tuple[float, ...], reference: tuple[float, ...]) -> None:
    assert result[:2] == pytest.approx(reference[:2], abs=0.006)
    assert result[2] == pytest.approx(reference[2], abs=2e-4)
    assert result[3] == reference[3]


@pytest.mark.parametrize(
    ("labels", "softmax"),
    [
        ((), False),
        (("background", *"tuvwxyz"), True),
        (("x", *NAMES[:7]), False),
        pytest.param((), True, marks=pytest.mark.slow),
        pytest.param(("background", *"tuvwxyz"), False, marks=pytest.mark.slow),
        pytest.param(("x", *NAMES[:7]), True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_background_class_is_left_out(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    labels: tuple[str, ...],
    softmax: bool,
) -> None:
    names = NAMES[:7]
    data = folders(tmp_path / "data", names)
    model = saved(form, labels, softmax)
    args = f"--model={model}", "--dataset_name=image_folder", f"--data_dir={data}"
    result, note = metrics_of(capfd, *args)
    reference = expected(names, list(range(1, 8)), slice(1, None))
    assert_close(result, reference)
    assert abs(reference[2] - expected(names, list(range(1, 8)))[2]) > 0.01  # the class would count
    assert note.count("\n") == 1
    assert "8 classes" in note and "first output, background, is not scored" in note


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", [("c", "e", "h"), NAMES[1:], NAMES])
def test_folders_are_found_by_name(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    names: tuple[str, ...],
) -> None:
    labels = NAMES[::-1]
    data = folders(tmp_path / "data", names)
    args = "--dataset_name=image_folder", f"--data_dir={data}"
    result, note = metrics_of(capfd, f"--model={saved(form, labels)}", *args)
    assert_close(result, expected(names, [labels.index(name) for name in names]))
    assert note == (
        f"the {len(names)} classes of the data are matched by name to the 8 of the model\n"
    )


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_folders_of_a_model_without_names_are_matched_by_number(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    card: bool,
) -> None:
    data = folders(tmp_path / "data", ("3", "5"))
    model = saved(form)
    if not card:
        (model / "card.json").unlink()
    lone = model / ("model.keras" if form == "keras" else "model.tflite")
    args = "--dataset_name=image_folder", f"--data_dir={data}"
    result, note = metrics_of(capfd, f"--model={lone}", *args)
    assert_close(result, expected(("3", "5"), [3, 5]))
    assert "the 2 classes of the data are matched by name" in note


def test_folders_of_numbers_are_taken_by_index_where_classes_have_no_names() -> None:
    """Folders come in the order 0, 1, 10, 2: so did those that a nameless model was trained on."""
    numbers = tuple(map(str, range(11)))
    matching = metrics.match_classes(11, (), 11, tuple(sorted(numbers)), "image_folder")
    assert matching.indices == tuple(range(11)) and "matched by index" in matching.note
    named = metrics.match_classes(11, numbers, 11, tuple(sorted(numbers)), "image_folder")
    assert named.indices == (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9) and "by name" in named.note


def test_a_bare_file_has_no_names(saved: Callable[..., Path]) -> None:
    folder = saved("tflite", NAMES)
    assert evaluation.names(Classifier(folder)) == NAMES
    (folder / "card.json").unlink()
    assert evaluation.names(Classifier(folder)) == ()
    (folder / "labels.txt").write_text("\n".join(NAMES))
    assert evaluation.names(Classifier(folder)) == NAMES


@pytest.mark.parametrize("softmax", [False, True])
def test_batches_through_a_file(saved: Callable[..., Path], softmax: bool) -> None:
    """As for records, which need TensorFlow to be read."""
    from mobilenet.evaluation import scoring

    names = NAMES[:7]
    shown = colors(names)
    images = np.stack([np.tile(color, (SIDE, SIDE, 1)) for _, color in shown]) / 127.5 - 1
    labels = np.array([names.index(name) for name, _ in shown], np.int32)
    data = tf.data.Dataset.from_tensor_slices((images.astype(np.float32), labels)).batch(8)
    model = Classifier(saved("tflite", (), softmax))
    matching = metrics.match_classes(8, (), 7, names, "tfrecord")
    scores = scoring.score_flatbuffer(model, data, model.card.preprocessing, matching)
    reference = expected(names, list(range(1, 8)), slice(1, None))
    assert_close((scores.top1, scores.top5, scores.loss, scores.images), reference)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "reported"), [(NAMES, False), (("a", *"tuvwxyz"), True), (tuple("01234567"), True)]
)
def test_as_many_classes_are_taken_by_index(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    labels: tuple[str, ...],
    reported: bool,
) -> None:
    data = folders(tmp_path / "data", NAMES)
    args = "--dataset_name=image_folder", f"--data_dir={data}"
    result, note = metrics_of(capfd, f"--model={saved(form, labels)}", *args)
    assert_close(result, expected(NAMES, list(range(8))))
    assert (
        note.count("\n") == reported
        and ("differ: classes are matched by index" in note) == reported
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (NAMES, ("a", "b", "stranger")),
        (NAMES, ("a", "b", "c", "d", "e", "f", "stranger")),  # one less, but no background
        (tuple("tuvwxyzs"), NAMES[:7]),  # as before, by names that share nothing
        (("a", "a", *"cdefgh"), ("a", "c")),  # which of the two?
        (tuple("01234567"), (*"012345", "stranger")),
        ((), NAMES[:6]),
        ((), (*NAMES, "i")),
    ],
)
def test_other_classes_are_refused(
    saved: Callable[..., Path],
    tmp_path: Path,
    form: str,
    labels: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    data = folders(tmp_path / "data", names)
    model = saved(form, labels)
    with pytest.raises(UsageError, match=f"8 classes.*the {len(names)} classes that image_folder"):
        evaluator.run([f"--model={model}", "--dataset_name=image_folder", f"--data_dir={data}"])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_eleven_classes_on_the_digits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    """The digits are bright strokes: a model whose output is 3 for all is right on the threes."""
    from mobilenet.data.sources import digits

    source = keras.Input((SIDE, SIDE, 3), batch_size=1 if form == "tflite" else None)
    x = keras.layers.GlobalAveragePooling2D()(source)
    model = keras.Model(source, keras.layers.Dense(11)(x))
    bias = np.full(11, -2, np.float32)
    bias[[0, 4]] = 9, 5  # background, then the digit 3
    model.set_weights([np.zeros((3, 11), np.float32), bias])
    path = tmp_path / f"model.{form}"
    if form == "keras":
        model.save(path)
    else:
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    result, note = metrics_of(capfd, f"--model={path}", "--dataset_name=digits")
    data = digits.load()
    share = np.mean(data.labels[data.indices("test")] == 3)
    z = math.log(math.exp(5) + 9 * math.exp(-2))
    loss = share * (z - 5) + (1 - share) * (z + 2)
    assert result[0] == pytest.approx(100 * share, abs=0.006)
    assert result[2] == pytest.approx(loss, abs=2e-4)
    assert "11 classes" in note and note.count("\n") == 2  # the other is on the inputs


def listed(folder: Path, names: tuple[str, ...], offset: int = 0, **more: str) -> Path:
    """A list of the images of `folders`, classes by their position in the alphabet."""
    folder.mkdir()
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "file", *more])
        for number, (name, color) in enumerate(colors(names)):
            paint(folder / f"images/{number}.png", color)
            label = NAMES.index(name) + offset
            writer.writerow([label, f"images/{number}.png", *more.values()])
    return folder / "list.csv"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("names", "offset"),
    [
        (NAMES, 0),
        (("a", "c", "d"), 1),
        (NAMES[:7], 0),
        pytest.param(NAMES, 1, marks=pytest.mark.slow),
        pytest.param(("a", "c", "d"), 0, marks=pytest.mark.slow),
        pytest.param(NAMES[:7], 1, marks=pytest.mark.slow),
    ],
)
def test_a_list_of_images(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    names: tuple[str, ...],
    offset: int,
) -> None:
    data = listed(tmp_path / "photos", names, offset)
    args = "--dataset_name=image_list", f"--data_dir={data}", f"--label_offset={offset}"
    for split in ("test", "validation"):
        path = saved(form, NAMES) if split == "test" else tmp_path / "model"
        result, note = metrics_of(capfd, f"--model={path}", *args, f"--split={split}")
        assert_close(result, expected(names, [NAMES.index(name) for name in names]))
        assert note == ""


@pytest.mark.parametrize("form", FORMS)
def test_a_list_has_the_splits_that_it_names(
    saved: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    model = saved(form)
    args = f"--model={model}", "--dataset_name=image_list", "--split=train"
    with pytest.raises(UsageError, match="split: got 'train', expected one of validation, test"):
        evaluator.run([*args, f"--data_dir={listed(tmp_path / 'a', NAMES)}"])
    result, _ = metrics_of(
        capfd, *args, f"--data_dir={listed(tmp_path / 'b', NAMES, split='train')}"
    )
    assert_close(result, expected(NAMES, list(range(8))))


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_more_classes_than_the_model_has(
    saved: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    data = listed(tmp_path / "photos", NAMES, offset=1)  # indices 1 to 8
    with pytest.raises(UsageError, match="8 classes.*the 9 classes that image_list"):
        evaluator.run([f"--model={saved(form)}", "--dataset_name=image_list", f"--data_dir={data}"])


def test_a_corrupt_image_of_a_list(
    saved: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = listed(tmp_path / "photos", NAMES)
    (tmp_path / "photos/images/7.png").write_bytes(b"no image")
    model = saved("keras")
    args = [f"--model={model}", "--dataset_name=image_list", f"--data_dir={data}"]
    with pytest.raises(UsageError, match="7.png.*can be decoded"):
        evaluator.run(args)
    assert metrics_of(capfd, *args, "--skip_corrupt")[0][3] == 39


def test_a_list_without_training_images_cannot_be_trained_on(tmp_path: Path) -> None:
    data = listed(tmp_path / "photos", NAMES)
    args = ("--dataset_name=image_list", f"--data_dir={data}", "--image_size=32", "--epochs=1")
    done = run_command("trainer", *args, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "expected images to train on" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
