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
        made = keras.Model(source, keras.layers.Softmax()(x) if softmax else x)
        made.set_weights([WEIGHTS])
        return made

    return model(None), tf.lite.TFLiteConverter.from_keras_model(model(1)).convert()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves the model in one form, with names of its classes or without."""

    def save(form: str, labels: tuple[str, ...] = (), softmax: bool = False) -> Path:
        place = tmp_path / "net"
        place.mkdir()
        model, data = built(softmax)
        if form == "keras":
            model.save(place / "model.keras")
        else:
            (place / "model.tflite").write_bytes(data)
        outputs = "probabilities" if softmax else "logits"
        card = Card(input_shape=(SIDE, SIDE, 3), labels=labels, outputs=outputs)
        (place / "card.json").write_text(json.dumps(card.to_json()))
        return place

    return save


def colours(names: tuple[str, ...], each: int = 5) -> list[tuple[str, np.ndarray]]:
    noise = np.random.default_rng(11)
    return [(name, noise.integers(0, 256, 3, np.uint8)) for name in names for _ in range(each)]


def paint(path: Path, colour: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(colour, (12, 12, 1))).save(path)


def folders(root: Path, names: tuple[str, ...]) -> Path:
    for number, (name, colour) in enumerate(colours(names)):
        paint(root / "val" / name / f"{number:03d}.png", colour)
    return root


def expected(
    names: tuple[str, ...], columns: list[int], outputs: slice = slice(None)
) -> tuple[float, float, float, int]:
    """Figures where class n of `names` is column n of `columns`, among the model's `outputs`."""
    shown = [(columns[names.index(name)], colour) for name, colour in colours(names)]
    ranks, losses = [], []
    for column, colour in shown:
        logits = (colour.astype(np.float64) / 127.5 - 1) @ WEIGHTS
        kept = logits[outputs]
        losses.append(math.log(np.exp(kept).sum()) - logits[column])
        ranks.append(np.sum(kept > logits[column]))
    top1, top5 = (100 * float(np.mean(np.array(ranks) < k)) for k in (1, 5))
    return top1, top5, float(np.mean(losses)), len(shown)


def figures(
    capfd: pytest.CaptureFixture[str], *words: object
) -> tuple[tuple[float, float, float, int], str]:
    """What was printed: top-1, top-5, loss and images, and the lines before the title."""
    capfd.readouterr()
    evaluator.run([*map(str, words)])
    out, err = capfd.readouterr()
    assert err == ""
    before, _, table = out.partition(str(words[0]).removeprefix("--model="))
    top1, top5, loss, images, _ = table.strip().splitlines()[-1].split()
    return (float(top1), float(top5), float(loss), int(images)), before


def same(found: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    assert found[:2] == pytest.approx(wanted[:2], abs=0.006)
    assert found[2] == pytest.approx(wanted[2], abs=2e-4)
    assert found[3] == wanted[3]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [(), ("background", *"tuvwxyz"), ("x", *NAMES[:7])])
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
    words = f"--model={model}", "--dataset_name=image_folder", f"--data_dir={data}"
    found, note = figures(capfd, *words)
    wanted = expected(names, list(range(1, 8)), slice(1, None))
    same(found, wanted)
    assert abs(wanted[2] - expected(names, list(range(1, 8)))[2]) > 0.01  # the class would count
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
    words = "--dataset_name=image_folder", f"--data_dir={data}"
    found, note = figures(capfd, f"--model={saved(form, labels)}", *words)
    same(found, expected(names, [labels.index(name) for name in names]))
    assert note == (
        f"the {len(names)} classes of the data are matched by name to the 8 of the model\n"
    )


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_net_without_names_finds_some_folders_by_number(
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
    words = "--dataset_name=image_folder", f"--data_dir={data}"
    found, note = figures(capfd, f"--model={lone}", *words)
    same(found, expected(("3", "5"), [3, 5]))
    assert "the 2 classes of the data are matched by name" in note


def test_folders_of_numbers_are_taken_by_index_where_nobody_named_the_classes() -> None:
    """Folders come in the order 0, 1, 10, 2: so did those that a nameless model was trained on."""
    numbers = tuple(map(str, range(11)))
    matching = metrics.match_classes(11, (), 11, tuple(sorted(numbers)), "image_folder")
    assert matching.indices == tuple(range(11)) and "matched by index" in matching.note
    named = metrics.match_classes(11, numbers, 11, tuple(sorted(numbers)), "image_folder")
    assert named.indices == (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9) and "by name" in named.note


def test_a_bare_file_has_no_names(saved: Callable[..., Path]) -> None:
    place = saved("tflite", NAMES)
    assert evaluation.names(Classifier(place)) == NAMES
    (place / "card.json").unlink()
    assert evaluation.names(Classifier(place)) == ()
    (place / "labels.txt").write_text("\n".join(NAMES))
    assert evaluation.names(Classifier(place)) == NAMES


@pytest.mark.parametrize("softmax", [False, True])
def test_batches_through_a_file(saved: Callable[..., Path], softmax: bool) -> None:
    """As for records, which need TensorFlow to be read."""
    from mobilenet.evaluation import scoring

    names = NAMES[:7]
    shown = colours(names)
    images = np.stack([np.tile(colour, (SIDE, SIDE, 1)) for _, colour in shown]) / 127.5 - 1
    labels = np.array([names.index(name) for name, _ in shown], np.int32)
    data = tf.data.Dataset.from_tensor_slices((images.astype(np.float32), labels)).batch(8)
    model = Classifier(saved("tflite", (), softmax))
    matching = metrics.match_classes(8, (), 7, names, "tfrecord")
    found = scoring.score_flatbuffer(model, data, model.card.preprocessing, matching)
    wanted = expected(names, list(range(1, 8)), slice(1, None))
    same((found.top1, found.top5, found.loss, found.images), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("labels", "told"), [(NAMES, False), (("a", *"tuvwxyz"), True), (tuple("01234567"), True)]
)
def test_as_many_classes_are_taken_by_index(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    labels: tuple[str, ...],
    told: bool,
) -> None:
    data = folders(tmp_path / "data", NAMES)
    words = "--dataset_name=image_folder", f"--data_dir={data}"
    found, note = figures(capfd, f"--model={saved(form, labels)}", *words)
    same(found, expected(NAMES, list(range(8))))
    assert note.count("\n") == told and ("differ: classes are matched by index" in note) == told


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
def test_a_net_of_eleven_classes_on_the_digits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    """The digits are bright strokes: a model that answers 3 for all finds the threes."""
    from mobilenet.data.sources import digits

    source = keras.Input((SIDE, SIDE, 3), batch_size=1 if form == "tflite" else None)
    x = keras.layers.GlobalAveragePooling2D()(source)
    model = keras.Model(source, keras.layers.Dense(11)(x))
    bias = np.full(11, -2, np.float32)
    bias[[0, 4]] = 9, 5  # background, then the digit 3
    model.set_weights([np.zeros((3, 11), np.float32), bias])
    place = tmp_path / f"net.{form}"
    if form == "keras":
        model.save(place)
    else:
        place.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    found, note = figures(capfd, f"--model={place}", "--dataset_name=digits")
    held = digits.load()
    share = np.mean(held.labels[held.indices("test")] == 3)
    z = math.log(math.exp(5) + 9 * math.exp(-2))
    loss = share * (z - 5) + (1 - share) * (z + 2)
    assert found[0] == pytest.approx(100 * share, abs=0.006)
    assert found[2] == pytest.approx(loss, abs=2e-4)
    assert "11 classes" in note and note.count("\n") == 1


def listed(place: Path, names: tuple[str, ...], offset: int = 0, **more: str) -> Path:
    """A list of the images of `folders`, classes by their place in the alphabet."""
    place.mkdir()
    with open(place / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "file", *more])
        for number, (name, colour) in enumerate(colours(names)):
            paint(place / f"images/{number}.png", colour)
            label = NAMES.index(name) + offset
            writer.writerow([label, f"images/{number}.png", *more.values()])
    return place / "list.csv"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", [NAMES, ("a", "c", "d"), NAMES[:7]])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_list_of_images(
    saved: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    form: str,
    names: tuple[str, ...],
    offset: int,
) -> None:
    data = listed(tmp_path / "photos", names, offset)
    words = "--dataset_name=image_list", f"--data_dir={data}", f"--label_offset={offset}"
    for split in ("test", "validation"):
        place = saved(form, NAMES) if split == "test" else tmp_path / "net"
        found, note = figures(capfd, f"--model={place}", *words, f"--split={split}")
        same(found, expected(names, [NAMES.index(name) for name in names]))
        assert note == ""


@pytest.mark.parametrize("form", FORMS)
def test_a_list_has_the_splits_that_it_names(
    saved: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    model = saved(form)
    words = f"--model={model}", "--dataset_name=image_list", "--split=train"
    with pytest.raises(UsageError, match="split: got 'train', expected one of validation, test"):
        evaluator.run([*words, f"--data_dir={listed(tmp_path / 'a', NAMES)}"])
    found, _ = figures(capfd, *words, f"--data_dir={listed(tmp_path / 'b', NAMES, split='train')}")
    same(found, expected(NAMES, list(range(8))))


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_more_classes_than_the_net_has(
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
    words = [f"--model={model}", "--dataset_name=image_list", f"--data_dir={data}"]
    with pytest.raises(UsageError, match="7.png.*can be decoded"):
        evaluator.run(words)
    assert figures(capfd, *words, "--skip_corrupt")[0][3] == 39


def test_a_list_without_training_images_cannot_be_trained_on(tmp_path: Path) -> None:
    data = listed(tmp_path / "photos", NAMES)
    words = ("--dataset_name=image_list", f"--data_dir={data}", "--image_size=32", "--epochs=1")
    done = run_command("trainer", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "expected images to train on" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
