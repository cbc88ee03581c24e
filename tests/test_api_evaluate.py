"""`mobilenet.evaluate` on models and files: figures against those of numpy, and bad input.

Outputs come from Keras' own `predict`; ranks and losses are computed here.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as reference

import mobilenet
from mobilenet import api
from mobilenet.configs import dataset as datasets
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.evaluation import confusion
from mobilenet.runtime import interpreter
from mobilenet.runtime.classifier import Classifier

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("tf_keras")
L = keras.layers

SIDE, CLASSES, COUNT = 8, 6, 23
IMAGES = np.random.default_rng(1).uniform(-1, 1, (COUNT, SIDE, SIDE, 3)).astype(np.float32)
LABELS = np.random.default_rng(2).integers(0, CLASSES, COUNT)


def cnn(last: str | None = None, units: int = CLASSES) -> Any:
    """A Sequential model of convolution, batch norm, ReLU, pool and a dense layer."""
    return keras.Sequential(
        [
            L.Input((SIDE, SIDE, 3)),
            L.Conv2D(8, 3, name="conv"),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dense(units, activation=last, kernel_initializer="random_normal"),
        ]
    )


def nested(last: str) -> Any:
    """A functional model that calls another one, with augmentation before it."""
    inner = keras.Sequential([L.Input((SIDE, SIDE, 3)), L.Conv2D(4, 3), L.ReLU()])
    source = keras.Input((SIDE, SIDE, 3))
    x = L.Dense(CLASSES)(L.Flatten()(inner(L.RandomFlip()(source))))
    return keras.Model(source, L.Activation(last)(x))


def figures(outputs: np.ndarray, labels: np.ndarray, is_probabilities: bool) -> list[float]:
    """top-1, top-5 in percent, and the loss."""
    scores = outputs.astype(np.float64)
    if not is_probabilities:
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)
    hits = order == labels[:, None]
    loss = -np.log(scores[np.arange(len(labels)), labels]).mean()
    return [100 * hits[:, :1].sum() / len(labels), 100 * hits[:, :5].sum() / len(labels), loss]


def assert_figures(found: Any, expected: list[float], images: int = COUNT) -> None:
    assert [found.top1, found.top5, found.loss] == pytest.approx(expected, rel=1e-4)
    assert found.images == images


MODELS: dict[str, Callable[[], Any]] = {
    "logits": cnn,
    "softmax": lambda: cnn("softmax"),
    "sigmoid": lambda: cnn("sigmoid"),
    "nested softmax": lambda: nested("softmax"),
}


@pytest.mark.parametrize("name", MODELS)
def test_arrays_and_batches_give_the_figures_of_keras(name: str) -> None:
    model = MODELS[name]()
    expected = figures(model.predict(IMAGES, verbose=0), LABELS, name != "logits")
    found = api.evaluate(model, (IMAGES, LABELS), batch_size=10)
    assert_figures(found, expected)
    assert (found.model, found.data, found.split) == (model.name, "arrays", "")
    one_hot = np.eye(CLASSES)[LABELS]
    assert_figures(api.evaluate(model, [IMAGES, one_hot]), expected)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS[:, None])).batch(7)
    assert_figures(api.evaluate(model, batches), expected)


@pytest.mark.parametrize("last", [None, "sigmoid"])
def test_one_output_is_that_of_the_second_of_two_classes(last: str | None) -> None:
    model = cnn(last, units=1)
    labels = LABELS % 2
    outputs = model.predict(IMAGES, verbose=0)[:, 0].astype(np.float64)
    share = outputs if last else 1 / (1 + np.exp(-outputs))
    expected = figures(np.stack([1 - share, share], 1), labels, True)
    assert_figures(api.evaluate(model, (IMAGES, labels.astype(np.float32))), expected)


def test_a_limit_spreads_over_arrays_and_ends_a_data_set() -> None:
    model = cnn()
    outputs = model.predict(IMAGES, verbose=0)
    spread = [0, 6, 11, 16, 22]  # as near as whole numbers come to quarters of 22
    found = api.evaluate(model, (IMAGES, LABELS), limit=5)
    assert_figures(found, figures(outputs[spread], LABELS[spread], False), 5)
    endless = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4).repeat()
    found = api.evaluate(model, endless, limit=10)
    assert_figures(found, figures(outputs[:10], LABELS[:10], False), 10)


def test_the_text_is_a_table() -> None:
    model = cnn()
    found = api.evaluate(model, (IMAGES, LABELS))
    title, heads, rule, row = str(found).splitlines()
    assert title == f"{model.name} on arrays"
    assert heads.split() == ["top-1", "%", "top-5", "%", "loss", "images", "seconds"]
    assert set(rule) == {"-"}
    assert row.split()[:4] == [
        *(f"{found.top1:.2f}", f"{found.top5:.2f}", f"{found.loss:.4f}", str(COUNT)),
    ]


def scaled(mean: float, std: float) -> Preprocessing:
    return Preprocessing("mine", (mean,), (std,), crop="none")


def painted(root: Path, classes: tuple[str, ...]) -> tuple[Path, np.ndarray, np.ndarray]:
    """Class folders of images of noise, and their pixels and labels in the folders' order."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (len(classes), 4, SIDE, SIDE, 3), np.uint8)
    for name, images in zip(classes, pixels, strict=True):
        (root / "test" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / "test" / name / f"{number}.png")
    return root, pixels.reshape(-1, SIDE, SIDE, 3), np.repeat(np.arange(len(classes)), 4)


def test_class_folders_are_matched_to_labels_by_name(tmp_path: Path) -> None:
    model, names = cnn("softmax"), tuple("abcdef")
    root, pixels, labels = painted(tmp_path, names)
    inputs = pixels.astype(np.float32) / 255
    outputs = model.predict(inputs, verbose=0)
    scaling = scaled(0.0, 255.0)
    found = api.evaluate(model, root, preprocessing=scaling)
    assert_figures(found, figures(outputs, labels, True), 24)
    assert (found.data, found.split) == (str(root), "test")
    found = api.evaluate(model, str(root), labels=names[::-1], preprocessing=scaling)
    assert_figures(found, figures(outputs, CLASSES - 1 - labels, True), 24)
    assert "matched by name" in found.notes[0]


def rescaled() -> Any:
    """A model that takes pixels."""
    model = cnn()
    layers = [L.Input((SIDE, SIDE, 3)), L.Rescaling(1 / 255), *model.layers]
    return keras.Sequential(layers)


def test_what_the_first_layers_say_decides_how_files_are_read(tmp_path: Path) -> None:
    root, _, labels = painted(tmp_path / "photos", tuple("abcdef"))
    model, pixels = rescaled(), repainted(root)
    expected = figures(model.predict(pixels, verbose=0), labels, False)
    model.save(tmp_path / "lone.keras")
    for source in (model, tmp_path / "lone.keras"):
        assert_figures(api.evaluate(source, root), expected, 24)


def repainted(root: Path) -> np.ndarray:
    """Paints the images again, one color each, which no crop changes; their pixels."""
    paths = sorted((root / "test").glob("*/*.png"))
    rng = np.random.default_rng(6)
    pixels = np.tile(rng.integers(0, 256, (len(paths), 1, 1, 3), np.uint8), (1, SIDE, SIDE, 1))
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return pixels.astype(np.float32)


def test_mean_and_deviation_may_be_given(tmp_path: Path) -> None:
    root, _, labels = painted(tmp_path, tuple("abcdef"))
    model, pixels = cnn(), repainted(root)
    expected = figures(model.predict(pixels / 255, verbose=0), labels, False)
    assert_figures(api.evaluate(model, root, preprocessing=(0, 255)), expected, 24)
    mean, std = [123.0, 117.0, 104.0], [58.0, 57.0, 56.0]
    inputs = (pixels - np.float32(mean)) / np.float32(std)
    expected = figures(model.predict(inputs, verbose=0), labels, False)
    assert_figures(api.evaluate(model, root, preprocessing=(mean, std)), expected, 24)


def test_a_list_of_images(tmp_path: Path) -> None:
    model = cnn()
    root, pixels, labels = painted(tmp_path, tuple("abcdef"))
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        for number, label in enumerate(labels):
            writer.writerow([f"test/{'abcdef'[label]}/{number % 4}.png", label])
    outputs = model.predict(pixels.astype(np.float32), verbose=0)
    found = api.evaluate(model, tmp_path / "list.csv", preprocessing=scaled(0.0, 1.0))
    assert_figures(found, figures(outputs, labels, False), len(labels))


def float_file(model: Any, folder: Path, card: Card | None = None) -> Path:
    """A float file with a card, by TensorFlow's own converter."""
    traced = tf.function(model).get_concrete_function(tf.TensorSpec((1, SIDE, SIDE, 3)))
    data = tf.lite.TFLiteConverter.from_concrete_functions([traced], model).convert()
    (folder / "model.tflite").write_bytes(data)
    if card is not None:
        (folder / "card.json").write_text(json.dumps(card.to_json()))
    return folder / "model.tflite"


def test_a_file_takes_what_its_model_takes(tmp_path: Path) -> None:
    model = cnn("softmax")
    path = float_file(model, tmp_path, Card(input_shape=(SIDE, SIDE, 3), outputs="probabilities"))
    expected = figures(model.predict(IMAGES, verbose=0), LABELS, True)
    for file in (path, str(path), tmp_path, Classifier(path)):
        assert_figures(api.evaluate(file, (IMAGES, LABELS)), expected)
    pixels = np.random.default_rng(4).integers(0, 256, IMAGES.shape, np.uint8)
    expected = figures(model.predict(pixels / 127.5 - 1, verbose=0), LABELS, True)
    assert_figures(api.evaluate(path, (pixels, LABELS)), expected)


def test_an_int8_file_takes_the_inputs_of_its_float_model(tmp_path: Path) -> None:
    """Its card has a mean of 128: the value of a pixel is the pixel minus 128, without rounding."""
    pixels = np.random.default_rng(5).integers(0, 256, IMAGES.shape, np.uint8)
    model = cnn()
    path = float_file(model, tmp_path)
    int8 = Card(input_shape=(SIDE, SIDE, 3), labels=tuple("abcdef"))
    int8 = int8.replace(preprocessing=int8.preprocessing.replace(mean=(128.0,)))
    (tmp_path / "card.json").write_text(json.dumps(int8.to_json()))
    inputs = pixels.astype(np.float32) / 127.5 - 1
    expected = figures(model.predict((pixels - np.float32(128)) / 127.5, verbose=0), LABELS, False)
    assert_figures(api.evaluate(path, (inputs, LABELS)), expected)
    assert_figures(api.evaluate(path, (pixels, LABELS)), expected)
    unknown = int8.replace(preprocessing=int8.preprocessing.replace(name="mine"))
    (tmp_path / "card.json").write_text(json.dumps(unknown.to_json()))
    with pytest.raises(UsageError, match="preprocessing: expected that of the float model"):
        api.evaluate(path, (inputs, LABELS))
    assert_figures(api.evaluate(path, (inputs, LABELS), preprocessing="inception"), expected)


def of_file(content: bytes, pixels: np.ndarray) -> np.ndarray:
    """Outputs of an int8 file: a pixel is the pixel minus 128."""
    runner = interpreter.make_interpreter(content)
    source, target = runner.get_input_details()[0], runner.get_output_details()[0]
    outputs = []
    for image in pixels:
        runner.set_tensor(source["index"], (image.astype(np.int16) - 128).astype(np.int8)[None])
        runner.invoke()
        outputs.append(runner.get_tensor(target["index"])[0].astype(np.float64))
    scale, zero_point = target["quantization"]
    return scale * (np.array(outputs) - zero_point)


@pytest.mark.parametrize("takes_pixels", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_a_file_alone_is_evaluated_as_in_memory_and_as_a_folder(
    takes_pixels: bool, int8: bool, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, IMAGES.shape).astype(np.float32)
    model = rescaled() if takes_pixels else cnn()
    images, others = (pixels, pixels / 127.5 - 1)[:: 1 if takes_pixels else -1]
    names = tuple(f"class {name}" for name in "abcdef")
    source: Any = model
    if int8:
        config = PostTraining(steps=("maximum", "repair"))
        source = mobilenet.quantize(model, images, config=config)
    file = mobilenet.convert(source, images=images, labels=names)
    outputs = of_file(file.content, pixels) if int8 else model.predict(images, verbose=0)
    expected = figures(outputs, LABELS, False)
    alone, folder = file.save(tmp_path / "b.tflite"), file.save(tmp_path / "export")
    assert Classifier(alone).card.preprocessing == file.card.preprocessing
    assert Classifier(alone).labels == file.card.labels == names
    for form in (file, alone, str(alone), folder):
        assert_figures(api.evaluate(form, (images, LABELS)), expected)
        assert_figures(api.evaluate(form, (pixels.astype(np.uint8), LABELS)), expected)
    if not takes_pixels:
        with pytest.raises(UsageError, match="^data: got 'values from"):
            api.evaluate(alone, (others, LABELS))
    own, another = ("raw", "inception")[:: 1 if takes_pixels else -1]
    assert_figures(api.evaluate(alone, (images, LABELS), preprocessing=own), expected)
    if not int8:
        expected = figures(model.predict(others, verbose=0), LABELS, False)
        found = api.evaluate(alone, (others, LABELS), preprocessing=another)
        assert_figures(found, expected)


def test_a_file_on_arrays_and_digits_needs_no_tensorflow(tmp_path: Path) -> None:
    path = float_file(cnn(units=10), tmp_path)
    code = f"""
import sys, numpy as np
from mobilenet import api
api.evaluate({str(path)!r}, (np.zeros((2, {SIDE}, {SIDE}, 3), np.uint8), [0, 9]))
print(api.evaluate({str(path)!r}, "digits", limit=20).images)
print(sorted({{"tensorflow", "tf_keras"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["20", "[]"]


def test_each_class_confusions_and_calibration_are_those_of_scikit_learn() -> None:
    model = cnn("softmax")
    shares = model.predict(IMAGES, verbose=0).astype(np.float64)
    predicted = shares.argmax(axis=1)
    found = api.evaluate(model, (IMAGES, LABELS), labels=tuple("abcdef"), batch_size=5)
    expected = reference.precision_recall_fscore_support(
        LABELS, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    values = [(own.precision, own.recall, own.f1, own.count) for own in found.per_class]
    filled = np.array([[np.nan if v is None else v for v in row] for row in values])
    np.testing.assert_allclose(filled, np.transpose(expected))
    matrix = reference.confusion_matrix(LABELS, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion, matrix)
    present = np.unique(LABELS)
    f1 = reference.f1_score(LABELS, predicted, labels=present, average="macro")
    assert found.macro_f1 == pytest.approx(f1)
    assert found.balanced_accuracy == pytest.approx(
        reference.recall_score(LABELS, predicted, labels=present, average="macro")
    )
    off_diagonal = matrix - np.diag(np.diag(matrix))
    assert found.confusions[0].images == off_diagonal.max()
    assert sum(pair.images for pair in found.confusions) == off_diagonal.sum()
    sure, right = shares.max(axis=1), predicted == LABELS
    bins = np.clip(np.ceil(sure * 15) - 1, 0, 14)
    gaps = [(sure[bins == n] - right[bins == n]).sum() for n in range(15)]
    assert found.calibration_error == pytest.approx(np.abs(gaps).sum() / COUNT, rel=1e-4)
    assert [item.prediction for item in found.predictions] == ["abcdef"[n] for n in predicted]
    assert found.images_per_second is not None and found.images_per_second > 0
    assert 0 < found.startup_seconds < found.seconds
    assert api.evaluate(model, (IMAGES, LABELS)).images_per_second is None  # one call
    limited = api.evaluate(model, (IMAGES, LABELS), limit=5).predictions
    assert [item.path for item in limited] == ["0", "6", "11", "16", "22"]


def test_several_labels_have_figures_over_all_thresholds() -> None:
    model, vectors = cnn("sigmoid"), np.random.default_rng(9).integers(0, 2, (COUNT, CLASSES))
    vectors[:, 4] = 0  # no image has this label
    shares = model.predict(IMAGES, verbose=0).astype(np.float64)
    found = api.evaluate(model, (IMAGES, vectors))
    decided = shares > 0.5
    expected = reference.precision_recall_fscore_support(vectors, decided, zero_division=np.nan)
    for index, own in enumerate(found.per_class):
        values = [np.nan if v is None else v for v in (own.precision, own.recall, own.f1)]
        np.testing.assert_allclose(values, [figure[index] for figure in expected[:3]])
        if index == 4:
            assert (own.count, own.auc, own.average_precision) == (0, None, None)
            continue
        targets, scores = vectors[:, index], shares[:, index]
        assert own.auc == pytest.approx(reference.roc_auc_score(targets, scores))
        average = reference.average_precision_score(targets, scores)
        assert own.average_precision == pytest.approx(average)
    matrices = reference.multilabel_confusion_matrix(vectors, decided)
    np.testing.assert_array_equal(found.confusion, matrices)
    assert found.confusions == ()
    assert found.calibration.right == pytest.approx(vectors.mean())
    assert "average precision" in found.classification_report()


def test_one_output_has_figures_of_both_classes() -> None:
    model, labels = cnn("sigmoid", units=1), LABELS % 2
    shares = model.predict(IMAGES, verbose=0)[:, 0].astype(np.float64)
    found = api.evaluate(model, (IMAGES, labels), labels=("no", "yes"))
    matrix = reference.confusion_matrix(labels, shares > 0.5)
    np.testing.assert_array_equal(found.confusion, matrix)
    average = reference.average_precision_score(labels, shares)
    no, yes = found.per_class
    assert (no.average_precision, yes.average_precision) == (None, pytest.approx(average))
    sure = np.maximum(shares, 1 - shares)
    np.testing.assert_allclose(found.predictions.probabilities[:, 0], sure, rtol=1e-5)


AWKWARD = ('a, "b"', "line\nbreak", "=1+1", "$d_", "猫", "f")


def test_a_saved_evaluation_is_read_by_the_standard_library(tmp_path: Path) -> None:
    model = cnn()
    found = api.evaluate(model, (IMAGES, LABELS), labels=AWKWARD)
    folder = found.save(tmp_path / "new/evaluation")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("calibration.csv", "confusion.csv", "confusion.png", "confusions.csv"),
        *("evaluation.json", "per_class.csv", "predictions.csv", "predictions.jsonl"),
    ]
    rows = {path.stem: table(path) for path in folder.glob("*.csv")}
    assert [row["name"] for row in rows["per_class"]] == list(AWKWARD)
    counts = [[int(row[name]) for name in AWKWARD] for row in rows["confusion"]]
    np.testing.assert_array_equal(counts, found.confusion)
    assert sum(int(row["images"]) for row in rows["confusions"]) == COUNT - np.trace(counts)
    assert sum(int(row["count"]) for row in rows["calibration"]) == COUNT
    outputs = model.predict(IMAGES, verbose=0).astype(np.float64)
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    order = np.argsort(-shares, axis=1)
    for number, (row, line) in enumerate(zip(rows["predictions"], lines, strict=True)):
        value = json.loads(line)
        assert row["path"] == value["path"] == str(number)
        assert row["label"] == value["label"] == AWKWARD[LABELS[number]]
        assert row["prediction"] == value["prediction"] == AWKWARD[order[number, 0]]
        assert row["prediction_5"] == value["top"][4]["label"] == AWKWARD[order[number, 4]]
        probability = pytest.approx(shares[number, order[number, 0]], abs=1e-5)
        assert (float(row["probability"]), value["probability"]) == (probability, probability)
    summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert (summary["top1"], summary["images"]) == (found.top1, COUNT)
    with pytest.raises(UsageError, match="^folder: .*overwrite"):
        found.save(folder)
    found.save(folder, overwrite=True)
    with pytest.raises(UsageError, match="^folder: "):
        found.save(tmp_path, overwrite=True)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_have_their_paths_whichever_are_left_out(tmp_path: Path) -> None:
    """By Keras and by a file: the same report of the same images."""
    root, _, _ = painted(tmp_path / "photos", tuple("abcdef"))
    (root / "test/b/1.png").write_bytes(b"broken")
    model = cnn("softmax")
    card = Card(input_shape=(SIDE, SIDE, 3), outputs="probabilities")
    file = float_file(model, tmp_path, card)
    data = datasets.FOLDER.replace(data_dir=str(root), skip_corrupt=True)
    kept = sorted(str(path) for path in root.glob("test/*/*.png") if path.parent.name != "b")
    kept += sorted(str(root / f"test/b/{n}.png") for n in (0, 2, 3))
    reports = [api.evaluate(source, data, preprocessing=(0, 255)) for source in (model, file)]
    for found in reports:
        assert sorted(item.path for item in found.predictions) == sorted(kept)
        for item in found.predictions:
            assert Path(item.path).parent.name == item.label  # of a model without names
    by_keras, by_file = (
        {item.path: item.prediction for item in found.predictions} for found in reports
    )
    assert sum(by_keras[path] != by_file[path] for path in kept) <= 1  # rounding
    limited = api.evaluate(model, data, limit=4, preprocessing=(0, 255))
    assert len(limited.predictions) == 4
    assert all(Path(item.path).parent.name == item.label for item in limited.predictions)


def test_figures_of_labels_have_the_names_of_the_data(tmp_path: Path) -> None:
    """The model has them in another order."""
    root, pixels, _ = painted(tmp_path, ("all",))
    vectors = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]])
    rows = [f"test/all/{n}.png,{','.join(map(str, row))}" for n, row in enumerate(vectors)]
    (tmp_path / "list.csv").write_text("\n".join(["file,x,y,z", *rows]))
    model = cnn("sigmoid", units=3)
    found = api.evaluate(
        model, tmp_path / "list.csv", labels=("z", "y", "x"), preprocessing=scaled(0.0, 255.0)
    )
    assert {name: own.positives for name, own in found.labels.items()} == {"x": 4, "y": 1, "z": 2}
    assert [(own.name, own.count) for own in found.per_class] == [("x", 4), ("y", 1), ("z", 2)]
    outputs = model.predict(pixels.astype(np.float32) / 255, verbose=0)[:, ::-1] > 0.5
    for item, likely, own in zip(found.predictions, outputs, vectors, strict=True):
        assert item.prediction == tuple(n for n, flag in zip("xyz", likely, strict=True) if flag)
        assert item.label == tuple(n for n, flag in zip("xyz", own, strict=True) if flag)


def test_of_many_classes_the_worst_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    units = 300
    names = [f"class {number}, which has a longer name" for number in range(units)]
    labels = np.random.default_rng(2).integers(0, units, COUNT)
    found = api.evaluate(cnn(units=units), (IMAGES, labels), labels=names)
    text = found.classification_report()
    assert max(map(len, text.splitlines())) <= 80
    shown = {own.name for own in confusion.worst_first(found.per_class)[:20]}
    assert f"{units - len(shown)} of {units} classes are left out" in text
    rows = text.partition("----\n")[2].partition("are left out")[0]
    assert all(name.split(",")[0] in rows for name in shown)
    assert text.endswith(str(found).partition("\n")[2])
    assert len(found.predictions.top[0]) == 5  # and no more of 300


def test_a_packed_model_gives_the_same_report(tmp_path: Path) -> None:
    model = cnn()
    mobilenet.pack(model, tmp_path / "model.packed", preprocessing="inception")
    again = api.evaluate(tmp_path / "model.packed", (IMAGES, LABELS))
    found = api.evaluate(model, (IMAGES, LABELS))
    assert again.per_class == found.per_class
    assert again.confusions == found.confusions
    assert again.calibration == found.calibration


def broken() -> Any:
    model = cnn()
    model.layers[-1].bias.assign([np.nan] * CLASSES)
    return model


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((IMAGES, LABELS + 3), ["data: got 'labels from", "class indices 0 to 5"]),
        ((IMAGES, LABELS - 1), ["data: got 'labels from -1"]),
        ((IMAGES, LABELS + 0.5), ["data: got", "no whole numbers"]),
        ((IMAGES, np.full((COUNT, CLASSES), 0.5)), ["data: got", "0 or 1 for each label"]),
        ((IMAGES, np.ones((COUNT, 4))), ["data: got 'labels of shape [23, 4]'"]),
        ((IMAGES, ["a"] * COUNT), ["data: got 'labels of type"]),
        ((IMAGES, LABELS[:-1]), ["data: got '23 images, 22 labels'"]),
        ((IMAGES[:, 1:], LABELS), ["data: got 'images of shape [23, 7, 8, 3]'", "[n, 8, 8, 3]"]),
        ((IMAGES[..., :1], LABELS), ["data: got 'images of shape"]),
        ((IMAGES[0], LABELS), ["data: got 'images of shape [8, 8, 3]'"]),
        ((np.full_like(IMAGES, np.nan), LABELS), ["data: got 'NaN or infinity'"]),
        ((IMAGES.astype(str), LABELS), ["data: got 'images of type"]),
        ((IMAGES, 3), ["data: got '23 images, no list of labels'"]),
        ((3, LABELS), ["data: got 'images of shape []'"]),
        ((IMAGES[:0], LABELS[:0]), ["data: got 'no images'", "at least one image"]),
        (([[1, 2], [3]], LABELS), ["data: expected images of one shape"]),
        ((IMAGES,), ["data: got 'tuple of 1'", "(images, labels)"]),
        (IMAGES, ["data: got 'ndarray'"]),
        (None, ["data: got 'NoneType'"]),
        ("no/such/folder", ["data: got 'no/such/folder'", "there is no such path"]),
        (Path("nowhere"), ["data: got 'nowhere'", "there is no such path"]),
        ("photos.csv", ["there is no such path"]),
        ("digts", ["data: got 'digts'", "did you mean digits?"]),
    ],
)
def test_data_that_cannot_be_used_is_named(data: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        api.evaluate(cnn(), data)
    for part in words:
        assert part in str(caught.value)


def test_several_labels_an_image_are_refused_for_a_softmax() -> None:
    with pytest.raises(UsageError, match="not one-hot"):
        api.evaluate(cnn("softmax"), (IMAGES, np.ones((COUNT, CLASSES))))


def test_batches_that_cannot_be_used_are_named() -> None:
    model, data = cnn(), tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    for wrong, words in (
        (data, "expected batches of images; call its batch"),
        (data.batch(4).repeat(), "without an end"),
        (data.batch(4).take(0), "no images"),
        (data.batch(4).map(lambda images, labels: images), "batches of \\(images, labels\\)"),
        (data.batch(4).map(lambda images, labels: (images, labels + 6)), "class indices 0 to 5"),
    ):
        with pytest.raises(UsageError, match=f"^data: .*{words}"):
            api.evaluate(model, wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "tset"}, "split: got 'tset'.*did you mean test"),
        ({"split": "train"}, "split: got 'train'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"limit": 0}, "limit: got 0"),
        ({"data_dir": "x"}, "data_dir: got 'x'"),
        ({"labels": ["a", "b"]}, "labels: got '2 names', expected 6 names"),
        ({"labels": "abcdef"}, "labels: got 'abcdef'"),
        ({"preprocessing": 127.5}, "preprocessing: got 127.5, expected one of"),
        ({"preprocessing": ([1, 2], 1)}, "preprocessing: got .*3 channels"),
        ({"preprocessing": (0, 0)}, "preprocessing: got"),
        ({"preprocessing": "inceptoin"}, "preprocessing: got 'inceptoin'.*did you mean inception"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        api.evaluate(cnn(), (IMAGES, LABELS), **settings)


def test_pixels_where_the_model_takes_another_range_are_refused() -> None:
    with pytest.raises(
        UsageError, match="^data: got 'values from 0 to 255', expected values from -1"
    ):
        api.evaluate(cnn(), (255 * np.float32(IMAGES > 0), LABELS), preprocessing="inception")


def several_outputs() -> Any:
    source = keras.Input((SIDE, SIDE, 3))
    x = L.Flatten()(source)
    return keras.Model(source, [L.Dense(2)(x), L.Dense(3)(x)])


class Subclassed(keras.Model):
    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: keras.Sequential([L.Dense(2)]), "model: got .*without an input shape"),
        (Subclassed, "model: got .*subclass"),
        (several_outputs, "model: got 'outputs"),
        (
            lambda: keras.Sequential([L.Input((8,)), L.Dense(2)]),
            r"model: got \[\[8\]\], expected one input",
        ),
        (lambda: keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(2, 3)]), "model: got 'outputs"),
        (lambda: 3, "model: got .*int"),
        (lambda: "nowhere/model.keras", "nowhere/model.keras: expected"),
        (lambda: "nowhere.tflite", "nowhere.tflite: expected"),
        (lambda: __file__, f"{__file__}: expected"),
        (broken, "model: got 'outputs with NaN'"),
    ],
)
def test_models_that_cannot_be_evaluated_are_named(model: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{words}"):
        api.evaluate(model(), (IMAGES, LABELS))


def test_a_model_of_keras_3_is_named() -> None:
    keras3 = pytest.importorskip("keras")
    model = keras3.Sequential([keras3.Input((SIDE, SIDE, 3)), keras3.layers.Flatten()])
    with pytest.raises(UsageError, match="^model: got 'keras"):
        api.evaluate(model, (IMAGES, LABELS))
