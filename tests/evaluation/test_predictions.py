"""Figures and predictions collected batch by batch, against the outputs of all images at once."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from mobilenet import metrics
from mobilenet.configs.card import SIGMOID
from mobilenet.evaluation.predictions import Collector
from mobilenet.runtime import predictions as formats
from mobilenet.runtime.predictions import Prediction

NOISE = np.random.default_rng(8)
COUNT, CLASSES = 90, 12
LOGITS = NOISE.normal(scale=2, size=(COUNT, CLASSES)).astype(np.float32)
LABELS = NOISE.integers(0, CLASSES, COUNT)
NAMES = tuple(f"class {number}" for number in range(CLASSES))


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def collected(collector: Collector, outputs: np.ndarray, labels: np.ndarray) -> Collector:
    for start in range(0, len(outputs), 32):
        collector.add(outputs[start : start + 32], labels[start : start + 32])
    return collector


@pytest.mark.parametrize("probabilities", [False, True])
def test_batches_give_the_figures_and_top_classes_of_all_outputs(probabilities: bool) -> None:
    shares = softmax(LOGITS)
    outputs = shares.astype(np.float32) if probabilities else LOGITS
    matching = metrics.identity_mapping(CLASSES)
    collector = collected(Collector(matching, probabilities), outputs, LABELS)
    assert collector.metrics() == matching.score(outputs, LABELS, probabilities)
    found = collector.predictions([f"{n}.png" for n in range(COUNT)], NAMES)
    order = np.argsort(-shares, axis=1)[:, :5]
    np.testing.assert_array_equal(found.top, order)
    expected = np.take_along_axis(shares, order, axis=1)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    losses = -np.log(shares[np.arange(COUNT), LABELS])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    np.testing.assert_array_equal(found.right, shares.argmax(axis=1) == LABELS)
    item = found[-1]
    assert (item.path, item.label) == ("89.png", NAMES[LABELS[-1]])
    assert item.prediction == item.ranking[0][0] == NAMES[shares[-1].argmax()]
    assert len(list(found)) == COUNT


def test_of_equal_outputs_the_lower_class_comes_first() -> None:
    """int8 outputs tie often, across the fifth place too."""
    outputs = NOISE.integers(-2, 3, (60, CLASSES)).astype(np.float32)
    expected = np.argsort(-outputs, axis=1, kind="stable")
    np.testing.assert_array_equal(metrics.top_classes(outputs, 5), expected[:, :5])
    np.testing.assert_array_equal(metrics.top_classes(outputs, 50), expected)


def test_background_is_no_class() -> None:
    matching = metrics.match_classes(CLASSES, (), CLASSES - 1, (), "imagenet2012")
    labels = LABELS % (CLASSES - 1)
    collector = collected(Collector(matching), LOGITS, labels)
    assert collector.metrics() == matching.score(LOGITS, labels)
    found = collector.predictions(range(COUNT), NAMES[1:])
    np.testing.assert_array_equal(found.predicted, LOGITS[:, 1:].argmax(axis=1))
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_one_output_for_two_classes(probabilities: bool, is_reversed: bool) -> None:
    model = ("no", "yes")
    data = model[::-1] if is_reversed else model
    matching = metrics.match_classes(1, model, 2, data, "image_folder")
    shares, labels = sigmoid(LOGITS[:, :1]), LABELS % 2
    outputs = shares.astype(np.float32) if probabilities else LOGITS[:, :1]
    collector = collected(Collector(matching, probabilities, SIGMOID), outputs, labels)
    assert collector.metrics() == matching.score(outputs, labels, probabilities, SIGMOID)
    found = collector.predictions(range(COUNT), model)
    second = shares[:, 0]
    np.testing.assert_array_equal(found.predicted, second > 0.5)
    np.testing.assert_allclose(found.probabilities[:, 0], np.maximum(second, 1 - second), rtol=1e-5)
    assert [item.label for item in found] == [data[label] for label in labels]
    assert found.label_probabilities is not None
    np.testing.assert_allclose(found.label_probabilities[:, 0], second, rtol=1e-5)


@pytest.mark.parametrize("labels_of_data", [1, 4])
def test_several_labels_an_image(labels_of_data: int) -> None:
    names = NAMES[:labels_of_data]
    matching = metrics.match_labels(labels_of_data, names[::-1], names, SIGMOID)
    outputs = LOGITS[:, :labels_of_data]
    vectors = NOISE.integers(0, 2, outputs.shape)
    collector = collected(Collector(matching, activation=SIGMOID), outputs, vectors)
    assert collector.metrics() == matching.score(outputs, vectors)
    found = collector.predictions(range(COUNT), names)
    shares = sigmoid(outputs[:, ::-1])
    assert found.label_probabilities is not None
    np.testing.assert_allclose(found.label_probabilities, shares, rtol=1e-5)
    np.testing.assert_array_equal(found.right, ((shares > 0.5) == vectors).all(axis=1))
    crossed = -np.log(np.where(vectors, shares, 1 - shares))
    np.testing.assert_allclose(found.losses, crossed.mean(axis=1), rtol=1e-4)
    item = found[3]
    assert item.label == tuple(np.array(names)[vectors[3] == 1])
    assert item.prediction == tuple(np.array(names)[shares[3] > 0.5])
    assert item.ranking[0][0] == names[shares[3].argmax()]


def test_one_label_of_each_image_is_its_class() -> None:
    one_hot = np.eye(CLASSES, dtype=np.int64)[LABELS]
    matching = metrics.identity_mapping(CLASSES)
    collector = collected(Collector(matching, activation=SIGMOID), LOGITS, one_hot)
    expected = matching.score(LOGITS, LABELS, activation=SIGMOID)
    assert collector.with_one_class_each().metrics() == expected
    one_hot[0, :2] = 1
    several = collected(Collector(matching, activation=SIGMOID), LOGITS, one_hot)
    assert several.with_one_class_each() is several


AWKWARD = ('a,"b"', "line\nbreak\rx", "=1+1", "猫")


def test_csv_is_read_by_the_standard_library_as_it_was_written() -> None:
    ranking = [(name, share) for name, share in zip(AWKWARD, (0.5, 0.3, 0.1, 0.1), strict=True)]
    items = [Prediction('x,"1".png', ranking, label=name) for name in AWKWARD]
    text = "\n".join(formats.lines(items, "csv")) + "\n"
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["label"] for row in rows] == list(AWKWARD)
    assert rows[0]["path"] == 'x,"1".png'
    assert (rows[0]["prediction"], float(rows[0]["probability"])) == (AWKWARD[0], 0.5)
    further = [(rows[0][f"prediction_{n}"], float(rows[0][f"probability_{n}"])) for n in (2, 3, 4)]
    assert further == ranking[1:]
    for item, line in zip(items, map(formats.json_line, items), strict=True):
        assert "\n" not in line
        value = json.loads(line)
        assert value["label"] == item.label
        assert [(top["label"], top["probability"]) for top in value["top"]] == ranking


def test_several_labels_are_one_cell_of_csv_and_a_list_in_json() -> None:
    item = Prediction("1.png", [("b", 0.9), ("a", 0.8), ("c", 0.1)], ("a", "b"), ())
    row = next(csv.DictReader(formats.lines([item], "csv")))
    assert (row["label"], row["prediction"], row["prediction_1"]) == ("", "a|b", "b")
    value = json.loads(formats.json_line(item))
    assert (value["label"], value["prediction"], "probability" in value) == ([], ["a", "b"], False)
