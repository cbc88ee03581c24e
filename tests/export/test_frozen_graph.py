"""`--format frozen_graph`: a GraphDef with the model's outputs, or one line and no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet import converter, evaluator
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError, VerificationError
from mobilenet.models import saving

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

from mobilenet.export import frozen_graph as export_frozen_graph  # noqa: E402
from mobilenet.models import frozen_graph  # noqa: E402

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def trained_like(small_model: Callable[..., Any]) -> Callable[[str], Any]:
    """A model whose outputs are as large as a trained one's: about 10."""

    def make(name: str) -> Any:
        model = tf_keras.models.clone_model(small_model(name, short=True))
        model.set_weights(small_model(name, short=True).get_weights())
        kernel, bias = model.get_layer("Logits").get_weights()
        model.get_layer("Logits").set_weights(
            [kernel * 10 / np.abs(model(sample_images()).numpy()).max(), bias + 0.5]
        )
        return model

    return make


@pytest.fixture(scope="module")
def saved(trained_like: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "model"
    card = Card(input_shape=(32, 32, 3), labels=LABELS, dataset="digits")
    saving.save(trained_like("mobilenet_v3_small"), folder, card)
    return folder


def sample_images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)


def run_graph(path: Path, images: np.ndarray) -> np.ndarray:
    """By TensorFlow's own session, as a program of TF1 would."""
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        assert not [op for op in graph.get_operations() if "Variable" in op.type]
        return np.asarray(session.run("output:0", {"input:0": images}))


@pytest.mark.parametrize("batch", [1, 0])
def test_the_graph_has_the_outputs_of_the_model(
    batch: int, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [f"--batch={batch}", "--verify_images=8", f"--output={tmp_path / 'out'}"]
    converter.run([f"--model={saved}", "--format=frozen_graph", *args])
    out = capsys.readouterr().out
    assert "input:0, float32" in out and "output:0, float32" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.json", "frozen_graph.pb", "labels.txt",
    ]  # fmt: skip
    expected = saving.load(saved).model(sample_images()).numpy()
    blocks = [sample_images()] if batch == 0 else np.split(sample_images(), 5)
    actual = [run_graph(tmp_path / "out/frozen_graph.pb", block) for block in blocks]
    assert 5 < np.abs(expected).max() < 20
    np.testing.assert_allclose(np.concatenate(actual), expected, atol=1e-4)  # 1e-5 of the largest
    model = frozen_graph.load(tmp_path / "out")
    np.testing.assert_allclose(model.model(sample_images()).numpy(), expected, atol=1e-4)
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["notes"][-1] == "frozen graph: input input:0, output output:0"
    assert (tmp_path / "out/labels.txt").read_text().split() == list(LABELS)


def test_a_graph_of_two_a_call_takes_any_number(
    small_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = small_model("mobilenet_v1", short=True)
    (tmp_path / "two.pb").write_bytes(
        export_frozen_graph.serialize_graph(model, 2, activation="softmax")
    )
    runner = frozen_graph.load(tmp_path / "two.pb").model
    assert (runner.input_shape, runner.output_shape) == ((2, 32, 32, 3), (2, 10))
    expected = tf.nn.softmax(model(sample_images())).numpy()
    np.testing.assert_allclose(runner(sample_images()).numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_the_evaluator_takes_it(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--format=frozen_graph", "--verify_images=2", f"--output={tmp_path / 'out'}"]
    converter.run([f"--model={saved}", "--batch=0", *args])
    figures = []
    for model in (saved, tmp_path / "out", tmp_path / "out/frozen_graph.pb"):
        capsys.readouterr()
        evaluator.run([f"--model={model}", "--dataset_name=digits", "--limit=60"])
        figures.append(capsys.readouterr().out.splitlines()[-1].split()[:4])
    assert figures[0] == figures[1] == figures[2]


def test_another_model_is_refused(trained_like: Callable[[str], Any], tmp_path: Path) -> None:
    model = trained_like("mobilenet_v1")
    data = export_frozen_graph.serialize_graph(model)
    layer = model.get_layer("Conv2d_2_pointwise")
    layer.set_weights([weight * 1.001 for weight in layer.get_weights()])
    other = export_frozen_graph.reference_model(model)
    with pytest.raises(VerificationError, match="outputs within 1e-05"):
        export_frozen_graph.write_frozen_graph(
            tmp_path / "out", data, Card(), other, sample_images()
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--number_format=dynamic_range"],
            "--number_format: got 'dynamic_range', expected --format",
        ),
        (["--io=int8"], "--io: got 'int8', expected --format tflite"),
        (["--target=generic"], "--target: got 'generic', expected --format tflite"),
        (["--max_partitions=1"], "--max_partitions: got 1, expected --format tflite"),
        (
            ["--calibration_dir=x"],
            "--calibration_dir: got 'x', expected a float model",
        ),
        (["--batch=-1"], "--batch: got -1"),
        (["--output_activation=relu"], "--output_activation: got 'relu'"),
        (["--format=pb"], "--format: got 'pb', expected one of tflite, c_array, frozen_graph"),
        (["--format=tflite", "--batch=0"], "--batch: got 0"),
        (["--image_size=64"], "--image_size: got 64"),
        (["--output={full}"], "expected a new folder or one that holds a frozen graph"),
    ],
)
def test_flags_that_make_no_sense(
    args: list[str], message: str, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    args = [f"--output={tmp_path / 'out'}", *(w.format(full=tmp_path / "full") for w in args)]
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={saved}", "--format=frozen_graph", *args])
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full/mine").read_text() == "mine"


def graph_of(*operators: str) -> bytes:
    graph = tf.compat.v1.GraphDef()
    for operator in operators:
        graph.node.add(name=operator.lower(), op=operator)
    return bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no graph at all", "no GraphDef"),
        (b"", "no node input and none output"),
        (graph_of("ReadFile"), "operators ReadFile"),
        (graph_of("Placeholder"), "no node input"),
    ],
)
def test_a_strange_file_costs_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.pb").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        frozen_graph.load(tmp_path / "x.pb")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot|can be read"):
        frozen_graph.load(tmp_path / "y.pb")


def test_a_constant_of_one_repeated_value_has_a_bound(tmp_path: Path) -> None:
    """A few bytes may declare gigabytes; only headers are looked at, so this takes no memory."""
    graph = tf.compat.v1.GraphDef()
    node = graph.node.add(name="input", op="Const")
    value = node.attr["value"].tensor
    value.dtype = tf.float32.as_datatype_enum
    value.float_val.append(1.0)
    for side in (1 << 16, 1 << 16):
        value.tensor_shape.dim.add(size=side)
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    graph.node.add(name="output", op="Identity").input.append("input")
    (tmp_path / "x.pb").write_bytes(graph.SerializeToString())
    with pytest.raises(UsageError, match=f"constants of {1 << 32} values"):
        frozen_graph.load(tmp_path / "x.pb")


def test_an_output_has_a_bound(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], "input")
        padded = tf.pad(image, [[0, 0], [0, 1 << 16], [0, 1 << 16], [0, 0]])
        tf.identity(tf.reduce_max(padded, [1, 2]), "output")
    (tmp_path / "x.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UsageError, match=r"an output of \[65544, 65544, 3\]"):
        frozen_graph.load(tmp_path / "x.pb")
