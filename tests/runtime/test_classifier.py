"""The runtime's classifier against Keras, the bare interpreter and TensorFlow's decoder."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import tflite_files
from packaging import requirements, utils
from PIL import Image

from mobilenet import runtime
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.data.sources import digits, image_folder
from mobilenet.errors import UsageError
from mobilenet.export import tflite_metadata
from mobilenet.runtime import interpreter
from mobilenet.runtime.classifier import Classifier, rank_classes
from mobilenet.tflite import metadata as tflite_reader
from mobilenet.tflite import model as tflite_model

pytest.importorskip("tensorflow", reason="TensorFlow's converter makes the files")

LABELS = tuple(f"class {index}" for index in range(small_models.TINY_V1_CLASSES))
SIDE = small_models.TINY_V1_SIZE


def export(folder: Path, kind: str = "float", softmax: bool = False, **fields: Any) -> Path:
    """An export folder: the file and its card."""
    folder.mkdir(exist_ok=True)
    (folder / "model.tflite").write_bytes(tflite_files.flatbuffer(kind, softmax))
    card = Card(input_shape=(SIDE, SIDE, 3), labels=LABELS).replace(**fields)
    (folder / "card.json").write_text(json.dumps(card.to_json()))
    return folder


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """Images of 8 x 8 patches: unlike pixel noise, a model distinguishes them."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return patches.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)


def test_float_outputs_are_those_of_keras(tmp_path: Path) -> None:
    batch = pixels(7)
    expected = np.concatenate(
        [small_models.tiny_v1()((image[None] / 127.5 - 1).astype(np.float32)) for image in batch]
    )
    ours = Classifier(export(tmp_path)).logits(batch)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_quantized_outputs_and_their_real_values(kind: str, tmp_path: Path) -> None:
    """Inputs are quantized here by hand and fed to the bare interpreter."""
    runner = interpreter.make_interpreter(tflite_files.flatbuffer(kind))
    source, target = runner.get_input_details()[0], runner.get_output_details()[0]
    (scale, zero), (step, origin) = source["quantization"], target["quantization"]
    low, high = (-128, 127) if kind == "int8" else (0, 255)
    card = Preprocessing("x", mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))
    batch = pixels(5)
    expected = []
    for image in batch:
        x = (image.astype(np.float64) - [100, 120, 140]) / [50, 60, 70]  # partly out of range
        values = np.clip(np.round(x / scale) + zero, low, high).astype(kind)
        runner.set_tensor(source["index"], values[None])
        runner.invoke()
        expected.append(step * (runner.get_tensor(target["index"])[0].astype(np.float64) - origin))
    ours = Classifier(export(tmp_path, kind, preprocessing=card)).logits(batch)
    np.testing.assert_allclose(
        ours, expected, atol=1.01 * step
    )  # one code may fall on the other side of a half
    assert np.mean(np.abs(ours - np.array(expected)) > step / 2) < 0.05


def test_threads_and_order_do_not_matter(tmp_path: Path) -> None:
    batch = pixels(40)
    one, many = Classifier(export(tmp_path), threads=1), Classifier(tmp_path, threads=5)
    expected = np.concatenate([one.logits(batch[i : i + 1]) for i in range(40)])
    np.testing.assert_array_equal(many.logits(batch), expected)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images differ, so a mix-up would show
    assert one.logits(batch[:0]).shape == (0, 10)


def test_top_k_is_softmax_of_logits(tmp_path: Path) -> None:
    classifier = Classifier(export(tmp_path))
    logits = classifier.logits(pixels(1))[0].astype(float)
    shares = np.exp(logits) / np.exp(logits).sum()
    actual = classifier.top_k(pixels(1)[0], k=10)
    whole = Classifier(export(tmp_path, preprocessing=Preprocessing(crop="none"))).top_k(
        pixels(1)[0], 10
    )
    assert [label for label, _ in whole] == [LABELS[i] for i in np.argsort(-shares)]
    np.testing.assert_allclose([share for _, share in whole], np.sort(shares)[::-1], rtol=1e-4)
    assert actual != whole  # the crop took part


def test_probabilities_get_no_second_softmax(tmp_path: Path) -> None:
    whole = Preprocessing(crop="none")
    classifier = Classifier(
        export(tmp_path, softmax=True, outputs="probabilities", preprocessing=whole)
    )
    expected = small_models.tiny_v1(True)((pixels(1) / 127.5 - 1).astype(np.float32)).numpy()[0]
    actual = dict(classifier.top_k(pixels(1)[0], 10))
    np.testing.assert_allclose([actual[label] for label in LABELS], expected, atol=1e-4)


def test_bare_file_has_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(tflite_files.flatbuffer("float", True))
    classifier = Classifier(tmp_path / "a.tflite")
    assert classifier.input_shape == (SIDE, SIDE, 3)
    assert classifier.labels == tuple("0123456789")
    assert classifier.card.outputs == "probabilities"  # its last operator is SOFTMAX
    assert "no card.json" in classifier.card.notes[0]


def test_labels_txt_serves_where_there_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(tflite_files.flatbuffer("float"))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    assert Classifier(tmp_path).labels == LABELS
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"labels\.txt.*got 2"):
        Classifier(tmp_path)


PHOTOS = Preprocessing("photos", (10.0, 20.5, 30.1), (40.0, 50.0, 60.7), crop="none")
OWN_ENTRY = b"MOBILENET_PREPROCESSING"


def with_metadata(kind: str = "float", softmax: bool = False, **fields: Any) -> bytes:
    """A file with metadata, without a card."""
    card = Card(input_shape=(SIDE, SIDE, 3), labels=LABELS).replace(**fields)
    return tflite_metadata.attach(tflite_files.flatbuffer(kind, softmax), card)


@pytest.mark.parametrize(
    "preprocessing",
    [
        *PREPROCESSING.values(),
        PREPROCESSING["inception_whole"].replace(mean=(128.0,)),
        PHOTOS,
    ],
)
def test_metadata_serve_where_there_is_no_card(
    preprocessing: Preprocessing, tmp_path: Path
) -> None:
    labels = tuple(f"Käfer {index}" for index in range(10))
    data = with_metadata(preprocessing=preprocessing, labels=labels)
    (tmp_path / "b.tflite").write_bytes(data)
    classifier = Classifier(tmp_path / "b.tflite")
    assert classifier.card.preprocessing == preprocessing
    assert classifier.labels == labels and not classifier.is_bare
    folder = export(tmp_path / "folder", preprocessing=preprocessing, labels=labels)
    image = pixels(1)[0]
    assert classifier.top_k(image, 10) == Classifier(folder).top_k(image, 10)


def test_metadata_name_the_outputs() -> None:
    outputs = [
        Classifier(with_metadata(softmax=softmax, outputs=outputs)).card.outputs
        for softmax, outputs in ((False, "probabilities"), (True, "probabilities"))
    ]
    assert outputs == ["probabilities"] * 2
    foreign = with_metadata(outputs="probabilities").replace(OWN_ENTRY, b"?" * len(OWN_ENTRY))
    assert Classifier(foreign).card.outputs == "logits"  # writers name every output so


def test_metadata_of_other_tools() -> None:
    """They have no name and no crop."""
    numbers = PHOTOS.replace(crop="central")
    for preprocessing, expected in (
        (PREPROCESSING["inception_whole"], PREPROCESSING["inception"]),
        (PREPROCESSING["raw"], PREPROCESSING["raw"]),
        (PREPROCESSING["inception"].replace(mean=(128.0,)),) * 2,
        (PHOTOS, numbers),
    ):
        data = with_metadata(preprocessing=preprocessing)
        found = Classifier(data.replace(OWN_ENTRY, b"?" * len(OWN_ENTRY))).card
        assert found.labels == LABELS
        assert found.preprocessing.crop == expected.crop
        np.testing.assert_allclose(found.preprocessing.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(found.preprocessing.std, expected.std, rtol=1e-6)
        assert found.preprocessing.name == (
            expected.name if expected is not numbers else "metadata"
        )


def test_a_uint8_input_is_fed_pixels_whatever_its_normalization() -> None:
    """As the Task Library does."""
    data = with_metadata("uint8", preprocessing=PREPROCESSING["raw"])
    data = data.replace(OWN_ENTRY, b"?" * len(OWN_ENTRY))
    runner = interpreter.make_interpreter(data)
    source, target = runner.get_input_details()[0], runner.get_output_details()[0]
    (image,), (step, origin) = pixels(1), target["quantization"]
    runner.set_tensor(source["index"], image[None])
    runner.invoke()
    expected = step * (runner.get_tensor(target["index"]).astype(np.float64) - origin)
    np.testing.assert_allclose(Classifier(data).logits(image[None]), expected, rtol=1e-5)


def zip_of(name: str, text: bytes) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return output.getvalue()


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"PK\5\6" + b"\xff" * 18,
        zip_of("labels.txt", b"a\n" * 9),
        zip_of("labels.txt", b"a\n" * (1 << 25)),
        zip_of("labels.txt", b"\xff\n" * 10)[:-40],
        zip_of("names.txt", b"a\n" * 10),
    ],
    ids=["none", "no directory", "nine", "too large", "cut", "another name"],
)
def test_labels_that_do_not_fit_are_ignored(tail: bytes) -> None:
    data = with_metadata(preprocessing=PHOTOS)
    model = data[: data.rindex(b"PK\3\4")]
    classifier = Classifier(model + tail)
    assert classifier.labels == tuple("0123456789")
    assert classifier.card.preprocessing == PHOTOS
    assert Classifier(model + zip_of("labels.txt", b"a\r\n" * 10)).labels == ("a",) * 10


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((np.nan,), (1.0,)),
        ((0.0,), (0.0,)),
        ((0.0,), (-1.0,)),
        ((0.0, 1.0), (1.0,)),
        ((0.0,), ()),
        ((1e30,), (1.0,)),
        ((0.0,), (1e-30,)),
    ],
)
def test_numbers_that_cannot_be_are_ignored(mean: tuple[float], std: tuple[float]) -> None:
    graph = tflite_model.read(with_metadata())

    class Fields:
        """A card with a preprocessing that is not checked."""

        preprocessing = types.SimpleNamespace(mean=mean, std=std)
        labels, outputs, dataset, title = LABELS, "logits", "", "model"
        activation = None

    with np.errstate(all="ignore"):
        blob = tflite_metadata.model_metadata(Fields(), (1, SIDE, SIDE, 3))
    damaged = dataclasses.replace(graph, metadata={"TFLITE_METADATA": memoryview(blob)})
    found = tflite_reader.read(damaged, 3, 10)
    assert found.preprocessing is None and found.labels == LABELS


def test_damaged_metadata_are_no_traceback() -> None:
    graph = tflite_model.read(with_metadata(preprocessing=PHOTOS))
    rng, different = np.random.default_rng(0), 0
    start = graph.content.rindex(b"PK\3\4")
    whole = tflite_reader.read(graph, 3, 10)
    for _ in range(600):
        blobs = {name: bytearray(blob) for name, blob in graph.metadata.items()}
        tail = bytearray(graph.content[start:])
        for part in (*blobs.values(), tail):
            for _ in range(rng.integers(0, 4)):
                part[rng.integers(len(part))] = rng.integers(256)
        found = tflite_reader.read(
            dataclasses.replace(
                graph,
                metadata={name: memoryview(bytes(blob)) for name, blob in blobs.items()},
                content=graph.content[:start] + bytes(tail),
            ),
            3,
            10,
        )
        assert len(found.labels) in (0, 10)
        different += found != whole
    assert different > 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a", "b")}, "labels: got 2, expected 10"),
        ({"input_shape": (64, 64, 3)}, "input_shape"),
        ({"outputs": "features"}, "classifier"),
    ],
)
def test_card_that_does_not_fit_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        Classifier(export(tmp_path, **fields))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"input_shape": 5}', '{"color": 1}', '{"preprocessing": 7}']
)
def test_card_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (export(tmp_path) / "card.json").write_text(text)
    with pytest.raises(UsageError, match=r"card\.json"):
        Classifier(tmp_path)


def test_folder_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.tflite"):
        Classifier(tmp_path)


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    classifier = Classifier(export(tmp_path))
    with pytest.raises(UsageError, match="batch"):
        classifier.logits(np.zeros((1, 16, 16, 3)))
    with pytest.raises(UsageError, match="image"):
        classifier.top_k(np.zeros((16, 16), np.uint8))
    with pytest.raises(UsageError, match="^k: got 0"):
        classifier.top_k(pixels(1)[0], 0)


def test_digits_are_scored(tmp_path: Path) -> None:
    """The figures computed again from Keras' outputs, one digit at a time."""
    data = digits.load()
    chosen = np.flatnonzero(data.split == 2)
    right = among = loss = 0.0
    for index in chosen:
        x = digits.enlarge(data.images[index : index + 1], SIDE) / np.float32(127.5) - 1
        out = small_models.tiny_v1()(x.astype(np.float32)).numpy()[0].astype(float)
        label = int(data.labels[index])
        right += out.argmax() == label
        among += label in np.argsort(-out)[:5]
        loss += np.log(np.exp(out - out.max()).sum()) + out.max() - out[label]
    classifier = Classifier(export(tmp_path))
    figures = runtime.evaluate(classifier, "digits")
    assert (figures.images, figures.top1) == (360, pytest.approx(100 * right / 360))
    assert figures.top5 == pytest.approx(100 * among / 360)
    assert figures.loss == pytest.approx(loss / 360, rel=1e-4)
    assert runtime.evaluate(classifier, "digits", limit=60).images == 60


def test_photos_score_as_through_tensorflows_decoder(shared_data: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    root = shared_data / "photos10"
    classifier = Classifier(export(tmp_path))
    items = image_folder.list_images(root).splits["validation"]
    right, best = 0, []
    for path, label in items:
        image = tf.io.decode_jpeg(path.read_bytes(), channels=3)
        image = tf.image.resize(tf.image.central_crop(image, 0.875), (SIDE, SIDE))
        out = small_models.tiny_v1()(image[None] / 127.5 - 1).numpy()[0]
        best.append(out.argmax())
        right += best[-1] == label
    figures = runtime.evaluate(classifier, "image_folder", root, "validation")
    assert figures.images == len(items) == 250
    assert (
        len(set(best)) > 2
    )  # the model distinguishes photos, or the comparison would be meaningless
    assert abs(figures.top1 / 100 * 250 - right) <= 250 / 200


def folders(root: Path, names: tuple[str, ...] = LABELS) -> Path:
    for number, name in enumerate(names):
        (root / "val" / name).mkdir(parents=True)
        for index, image in enumerate(pixels(2, seed=number)):
            Image.fromarray(image).save(root / "val" / name / f"{index}.png")
    return root


def test_corrupt_image_stops_or_is_counted(tmp_path: Path) -> None:
    classifier = Classifier(export(tmp_path / "model"))
    root = folders(tmp_path / "data")
    broken = root / "val" / LABELS[3] / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"class 3.*1\.png"):
        runtime.evaluate(classifier, "image_folder", root)
    faults: list[UsageError] = []
    assert runtime.evaluate(classifier, "image_folder", root, on_corrupt=faults.append).images == 19
    assert [fault.what for fault in faults] == [str(broken)]


def test_folders_with_some_of_the_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Images score the same whether or not other classes are there."""
    classifier = Classifier(export(tmp_path / "model"))
    root = folders(tmp_path / "data")
    for name in LABELS[:7]:
        shutil.rmtree(root / "val" / name)
    images = np.concatenate([pixels(2, seed=number) for number in (7, 8, 9)])
    whole = Classifier(export(tmp_path / "whole", preprocessing=Preprocessing(crop="none")))
    expected = np.mean(whole.logits(images).argmax(axis=1) == np.repeat([7, 8, 9], 2))
    assert runtime.evaluate(whole, "image_folder", root).top1 == pytest.approx(100 * expected)
    (root / "val" / LABELS[7]).rename(root / "val" / "stranger")
    with pytest.raises(UsageError, match="stranger"):
        runtime.evaluate(classifier, "image_folder", root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "digit"}, "did you mean digits"),
        ({"dataset_name": "digits", "split": "tests"}, "did you mean test"),
        ({"dataset_name": "digits", "limit": 0}, "limit"),
        ({"dataset_name": "image_folder"}, "data_dir"),
    ],
)
def test_bad_requests(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        runtime.evaluate(Classifier(export(tmp_path)), **arguments)


ON_A_DEVICE = ("ai-edge-litert", "numpy", "pillow", "absl-py", "rich")


@functools.cache
def absent() -> list[str]:
    """What is imported of packages that neither these five nor what they require bring."""
    there: set[str] = set()
    expected = list(ON_A_DEVICE)
    while expected:
        name = utils.canonicalize_name(expected.pop())
        if name not in there:
            there.add(name)
            actual = [requirements.Requirement(x) for x in metadata.requires(name) or ()]
            expected += [x.name for x in actual if not x.marker or x.marker.evaluate({"extra": ""})]
    there |= {"mobilenet", "setuptools"}
    brought: dict[bool, set[str]] = {True: set(), False: set()}
    for distribution in metadata.distributions():
        is_there = utils.canonicalize_name(distribution.metadata["Name"]) in there
        for file in distribution.files or ():
            if file.suffix in (".py", ".so"):
                brought[is_there].add(file.parts[0].partition(".")[0])
    return sorted(name for name in brought[False] - brought[True] if name.isidentifier())


def on_a_device(command: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A command where only what `docs/tflite.md` names for a device is installed."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent()})); "
        f"sys.argv = {['mobilenet', *args]}; "
        f"runpy.run_module('mobilenet.{command}', run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_on_a_device_a_file_needs_five_packages(tmp_path: Path) -> None:
    assert {"tensorflow", "tf_keras", "sklearn", "constriction", "matplotlib"} <= set(absent())
    folder, photo = export(tmp_path, "int8"), tmp_path / "photo.png"
    Image.fromarray(pixels(1)[0]).save(photo)
    for command, args in (
        ("predict", (f"--model={folder}", str(photo))),
        ("evaluator", (f"--model={folder}", "--dataset_name=digits", "--limit=10")),
        ("profiler", (str(folder),)),
    ):
        done = on_a_device(command, *args)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout
    refused = on_a_device("trainer")
    assert refused.returncode == 2
    assert refused.stderr.startswith("tensorflow: expected an installed package")
    assert len(refused.stderr.splitlines()) == 1


def test_partitions() -> None:
    one = interpreter.make_interpreter(tflite_files.flatbuffer("int8"))
    assert (interpreter.partitions(one), interpreter.outside(one)) == (1, [])
    softmax = interpreter.make_interpreter(tflite_files.flatbuffer("int8", True))
    assert interpreter.partitions(softmax) == 1
    assert interpreter.outside(softmax) == ["SOFTMAX"]  # XNNPACK has no int8 softmax


def test_partitions_need_the_runtimes_listing() -> None:
    with pytest.raises(UsageError, match="partitions"):
        interpreter.partitions(object())


def test_latency_orders_models_by_work() -> None:
    import tensorflow as tf
    import tf_keras as keras

    source = keras.layers.Input((64, 64, 32), batch_size=1)
    heavy = keras.Model(source, keras.layers.Conv2D(64, 3, padding="same")(source))
    data = tf.lite.TFLiteConverter.from_keras_model(heavy).convert()
    light = tflite_files.flatbuffer("int8")
    times = interpreter.latency({"light": light, "heavy": data}, rounds=5, invokes=2)
    assert list(times) == ["light", "heavy"]
    assert 0 < 5 * times["light"] < times["heavy"] < 1  # 0.2 against 75 million multiplications
    with pytest.raises(UsageError, match="rounds"):
        interpreter.latency({"light": light}, rounds=0)


def test_no_runtime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    converted = interpreter.make_interpreter(tflite_files.flatbuffer("float"))
    assert type(converted).__module__.startswith("tensorflow")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UsageError, match="pip install ai-edge-litert"):
        interpreter.make_interpreter(tflite_files.flatbuffer("float"))


def test_evaluating_loads_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys, time; from mobilenet import runtime;"
        f"m = runtime.evaluate(runtime.Classifier({str(export(tmp_path))!r}), 'digits', limit=10);"
        "assert m.images == 10;"
        "heavy = {'tensorflow', 'tf_keras', 'keras', 'sklearn'} & set(sys.modules);"
        "print(time.process_time(), *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 1  # CPU time, so that a busy machine does not matter; 0.25 measured
    assert done.stderr == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_outputs_that_are_no_numbers_rank_nothing(value: float, kind: str) -> None:
    outputs = np.array([0.5, value, 1.0], np.float32)
    with pytest.raises(UsageError, match="outputs: got 'NaN or infinity', expected finite"):
        rank_classes(outputs, ["a", "b", "c"], 2, kind)
