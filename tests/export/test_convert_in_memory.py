"""`quantize`, `convert` and `verify` on models in memory: what the commands write, and no file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_models import L, inputs, model_outputs, pixels, randomize_batch_norm

from mobilenet import converter
from mobilenet.api import build, convert, quantize, verify
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.configs import dataset as datasets
from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.data import arrays
from mobilenet.errors import UsageError, VerificationError
from mobilenet.export.converted_file import ConvertedFile
from mobilenet.loading import load_model
from mobilenet.models import saving
from mobilenet.runtime import make_interpreter
from mobilenet.runtime.classifier import Classifier
from mobilenet.runtime.quantized_io import run
from mobilenet.tflite import model as tflite_model

SIZE, CLASSES = 32, 10
LABELS = [f"class {index}" for index in range(CLASSES)]
IMAGES = inputs(24, SIZE)


def cnn(seed: int = 1, size: int | None = SIZE, activation: str = "softmax") -> Any:
    """Convolution, batch norm, ReLU, pooling and a dense layer, with names of Keras."""
    tf_keras.utils.set_random_seed(seed)
    pool = L.GlobalAveragePooling2D() if size is None else L.Flatten()
    model = tf_keras.Sequential(
        [
            L.Input((size, size, 3)),
            L.Conv2D(8, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            pool,
            L.Dense(CLASSES, activation=activation),
        ]
    )
    return randomize_batch_norm(model, seed) if size else model


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Outputs up to the softmax, from those after it; the same up to a constant for each image."""
    values = np.log(model_outputs(model, images))
    return values - values.mean(axis=1, keepdims=True)


def file_outputs(file: ConvertedFile, images: np.ndarray) -> np.ndarray:
    """Outputs of a file on its own inputs, dequantized."""
    return run(make_interpreter(tflite_model.read(file.content)), images)


@pytest.fixture(scope="module")
def model() -> Any:
    return cnn()


@pytest.fixture(scope="module")
def quantized(model: Any) -> QuantizedModel:
    return quantize(model, IMAGES, labels=LABELS)


@pytest.fixture(scope="module")
def file(quantized: QuantizedModel) -> ConvertedFile:
    return convert(quantized, images=IMAGES)


@pytest.fixture(scope="module")
def float_file(model: Any) -> ConvertedFile:
    return convert(model, images=IMAGES)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which nothing may be written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plain_cnn_becomes_an_int8_file_of_its_outputs(model: Any, file: ConvertedFile) -> None:
    verified = file.verification
    assert (verified.contents, verified.float_tensors, verified.partitions) == ("int8", 0, 1)
    assert [layer.operator for layer in verified.layers] == ["CONV_2D", "FULLY_CONNECTED"]
    assert file.card.outputs == "logits" and file.card.labels == tuple(LABELS)
    shown = pixels(40, SIZE, seed=5)
    actual = file.classifier(threads=1).logits(shown)
    actual -= actual.mean(axis=1, keepdims=True)
    expected = logits(model, (shown.astype(np.float32) - 127.5) / 127.5)
    assert np.sum(np.square(actual - expected)) < 0.001 * np.sum(np.square(expected))


def test_the_model_with_quantizers_computes_as_the_file(
    quantized: QuantizedModel, file: ConvertedFile
) -> None:
    images = inputs(16, SIZE, seed=6)
    simulated = model_outputs(quantized.model, images)
    step = file.verification.output.scale
    actual = file_outputs(file, images + np.float32(-0.5 / 127.5))
    assert np.abs(actual - simulated).max() < 1.01 * step


@pytest.mark.parametrize("name", ["cnn", pytest.param("mobilenet_v1", marks=pytest.mark.slow)])
def test_the_bytes_are_those_that_the_converter_writes(name: str, tmp_path: Path) -> None:
    digits, shape = datasets.get("digits"), (SIZE, SIZE, 3)
    if name == "cnn":
        model, preprocessing, architecture = cnn(), digits.preprocessing, {}
    else:
        tf_keras.utils.set_random_seed(2)
        model = build(name, shape, width_multiplier=0.25, num_classes=CLASSES)
        model, preprocessing = randomize_batch_norm(model), "inception"
        architecture = model.mobilenet_config.to_json()
    calibration, held_out = (
        arrays.load_images(digits, split, shape, PREPROCESSING[preprocessing], 20)
        for split in ("train", "test")
    )
    quantized = quantize(model, calibration, preprocessing=preprocessing)
    file = convert(quantized, images=held_out)
    card = saving.card_of(model).replace(
        architecture=architecture, preprocessing=PREPROCESSING[preprocessing], assumed=()
    )
    saving.save(model, tmp_path / "model", card)
    words = ["--model", str(tmp_path / "model"), "--number_format=int8", "--calibration_images=20"]
    converter.run([*words, "--verify_images=20", "--fitted", str(tmp_path / "fitted")])
    written = tmp_path / "export"
    assert file.content == (written / "model.tflite").read_bytes()
    own = file.save(tmp_path / "own").parent
    assert (own / "labels.txt").read_bytes() == (written / "labels.txt").read_bytes()
    cards = [json.loads((folder / "card.json").read_text()) for folder in (own, written)]
    for differing in ("notes", "quantization_steps", "calibration"):
        assert [card.pop(differing) for card in cards]
    assert cards[0] == cards[1]
    again = load_model(tmp_path / "fitted")
    assert isinstance(again, QuantizedModel)
    for layer, limits in quantized.ranges.items():
        np.testing.assert_array_equal(again.ranges[layer], limits)


def test_what_was_quantized_can_be_converted_again(
    quantized: QuantizedModel, file: ConvertedFile, tmp_path: Path
) -> None:
    before = model_outputs(quantized.model, IMAGES)
    without = convert(quantized)
    assert without.content == file.content
    assert without.notes == ("verified on 16 images of noise",)
    np.testing.assert_array_equal(model_outputs(quantized.model, IMAGES), before)
    loaded = load_model(quantized.save(tmp_path / "model"))
    assert convert(loaded, images=IMAGES).content == file.content


def test_a_file_is_written_alone_or_with_its_card(file: ConvertedFile, tmp_path: Path) -> None:
    path = file.save(tmp_path / "a.tflite")
    assert path.read_bytes() == file.content
    folder = file.save(tmp_path / "export").parent
    assert sorted(x.name for x in folder.iterdir()) == [
        "README.md",
        "card.json",
        "labels.txt",
        "model.tflite",
    ]
    shown = pixels(8, SIZE)
    expected = Classifier(folder, threads=1).logits(shown)
    np.testing.assert_array_equal(file.classifier(threads=1).logits(shown), expected)
    for target in (path, folder):
        with pytest.raises(UsageError, match="^path: got .*overwrite"):
            file.save(target)
        file.save(target, overwrite=True)
    (tmp_path / "b.tflite").mkdir()
    with pytest.raises(UsageError, match="^path: got .*a folder has that name"):
        file.save(tmp_path / "b.tflite", overwrite=True)


def test_a_classifier_of_bytes_alone_has_what_the_metadata_say(file: ConvertedFile) -> None:
    classifier = Classifier(file.content, threads=1)
    assert classifier.path is None and not classifier.is_bare
    assert classifier.card.preprocessing == file.card.preprocessing
    assert classifier.labels == file.card.labels
    assert "the normalization of its metadata" in classifier.card.notes[0]


def test_the_text_of_a_file_does_not_have_its_bytes(file: ConvertedFile) -> None:
    assert "TFL3" not in repr(file) and len(repr(file)) < len(file.content)


def test_inputs_and_outputs_are_chosen(quantized: QuantizedModel) -> None:
    config = ConversionConfig(io="float32", batch=2, output_activation="softmax")
    file = convert(quantized, images=IMAGES, config=config)
    content = tflite_model.read(file.content)
    source, target = content.tensors[content.inputs[0]], content.tensors[content.outputs[0]]
    assert (source.dtype, target.dtype) == ("float32", "float32")
    assert list(source.shape) == [2, SIZE, SIZE, 3]
    assert file.card.outputs == "probabilities"
    verify(file, quantized, IMAGES)


@pytest.mark.parametrize("name", [None, "float16", "dynamic_range", "int16x8"])
def test_a_float_model_has_other_number_formats(name: str | None, model: Any) -> None:
    file = convert(model, number_format=name, images=IMAGES)
    expected = logits(model, IMAGES)
    actual = file_outputs(file, IMAGES)
    actual -= actual.mean(axis=1, keepdims=True)
    error = {None: 1e-10, "float16": 1e-5}.get(name, 1e-3)
    assert np.sum(np.square(actual - expected)) < error * np.sum(np.square(expected))
    assert verify(file.content, model, IMAGES).contents == file.verification.contents


def test_the_float_model_of_a_quantized_one(quantized: QuantizedModel) -> None:
    file = convert(quantized, number_format="float32", images=IMAGES)
    expected = model_outputs(quantized.float_model, IMAGES)
    np.testing.assert_allclose(file_outputs(file, IMAGES), expected, atol=1e-4)
    assert file.notes == ("the float model; its ranges are left out",)
    assert verify(file, quantized, IMAGES).contents == "float32"


def test_a_model_of_open_size_takes_that_of_the_images() -> None:
    model = cnn(size=None)
    file = convert(model, images=inputs(8, 24))
    assert file.verification.input_shape == (1, 24, 24, 3)
    wide = convert(model, images=inputs(8, 24)[:, 4:20])
    assert wide.verification.input_shape == (1, 16, 24, 3)
    with pytest.raises(UsageError, match="^image_size"):
        convert(model)
    quantized = quantize(model, inputs(8, 24))
    assert convert(quantized, images=inputs(8, 24)).verification.input_shape == (1, 24, 24, 3)


def test_gray_images_with_a_preprocessing_of_their_own() -> None:
    tf_keras.utils.set_random_seed(1)
    source = L.Input((16, 16, 1))
    x = L.GlobalAveragePooling2D()(L.ReLU(6.0)(L.Conv2D(8, 3)(source)))
    model = tf_keras.Model(source, L.Dense(3)(x))
    given = Preprocessing("own", mean=(0.0,), std=(255.0,), crop="none")
    shown = pixels(16, 16)[..., :1].astype(np.float32)
    quantized = quantize(model, shown / 255, preprocessing=given)
    file = convert(quantized, images=shown / 255)
    assert file.card.preprocessing.std == (255.0,) and file.card.preprocessing.crop == "none"
    actual = file.classifier(threads=1).logits(shown)
    expected = model_outputs(model, shown / 255)
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    with pytest.raises(UsageError, match="^preprocessing: got 'inception', expected own"):
        convert(quantized, preprocessing="inception")


def test_verify_takes_every_form_of_a_file(
    model: Any, quantized: QuantizedModel, file: ConvertedFile, tmp_path: Path
) -> None:
    path = file.save(tmp_path / "export")
    for form in (file, file.content, path, path.parent, str(path)):
        verified = verify(form, quantized, IMAGES)
        assert len(verified.layers) == 2 and verified.ok
    verified = verify(path, model, IMAGES)
    assert verified.layers == () and verified.contents == "int8" and verified.agreement == 1.0
    # Compared on the grid of the file's inputs, a pixel minus 128, which is half a pixel away.
    dense = model.layers[-1]
    features = tf_keras.Model(model.inputs, dense.input)
    expected = model_outputs(features, IMAGES) @ dense.kernel.numpy() + dense.bias.numpy()
    noise = expected - file_outputs(file, IMAGES - np.float32(0.5 / 127.5))
    ratio = 10 * np.log10(np.sum(np.square(expected)) / np.sum(np.square(noise)))
    assert verified.signal_to_noise == pytest.approx(ratio, abs=1e-3)


def test_verify_refuses_the_file_of_another_model(
    file: ConvertedFile, float_file: ConvertedFile, empty: Path
) -> None:
    other = cnn(seed=9)
    for form in (file, float_file):
        with pytest.raises(VerificationError, match="^file: expected a file that equals its model"):
            verify(form, other, IMAGES)
    with pytest.raises(VerificationError, match="^file: expected a file that equals its model"):
        verify(file, quantize(other, IMAGES), IMAGES)
    assert list(empty.iterdir()) == []


def test_one_changed_weight_is_seen(
    quantized: QuantizedModel, file: ConvertedFile, model: Any
) -> None:
    content = tflite_model.read(file.content)
    kernel = next(op.inputs[1] for op in content.operators if op.name == "CONV_2D")
    data = content.tensors[kernel].data
    assert data is not None
    start = file.content.index(data.tobytes())
    changed = bytearray(file.content)
    changed[start] ^= 0x60
    assert verify(bytes(changed), model, IMAGES).agreement > 0.9  # outputs alone hide it
    with pytest.raises(VerificationError, match="steps from the simulated layer"):
        verify(bytes(changed), quantized, IMAGES)


def test_a_file_below_the_limits_is_refused(quantized: QuantizedModel, empty: Path) -> None:
    limits = VerificationLimits(max_mean_steps=1e-9)
    with pytest.raises(VerificationError, match="^file: .*output steps on average, above 1e-09"):
        convert(quantized, images=IMAGES, limits=limits)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"number_format": "int8"}, ["number_format: got 'int8'", "mobilenet.quantize(model"]),
        ({"number_format": "int4"}, ["number_format: got 'int4'"]),
        ({"number_format": "int16x8"}, ["images: expected images, as int16x8 takes ranges"]),
        (
            {"number_format": "float16", "config": ConversionConfig("float32")},
            ["number_format: got 'float16'", "expected float32, as in `config`"],
        ),
        ({"calibration": IMAGES}, ["calibration: got 'images'", "takes ranges from images"]),
        ({"images": IMAGES[:, :16]}, ["images: got 'images of shape [24, 16, 32, 3]'"]),
        ({"images": pixels(8, SIZE)}, ["images: got 'images of type uint8'", "cast them"]),
        ({"images": 127.5 * IMAGES + 127.5}, ["images: got 'values from 0", "from -1 to 1"]),
        ({"images": IMAGES * np.float32(np.nan)}, ["images: got", "NaN"]),
        ({"labels": ["a", "b"]}, ["labels: got '2 names', expected 10 names"]),
        ({"config": ConversionConfig(image_size=64)}, ["image_size: got 64"]),
    ],
)
def test_bad_arguments_of_convert(
    arguments: dict[str, Any], words: list[str], model: Any, empty: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        convert(model, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert list(empty.iterdir()) == []


def test_a_quantized_model_has_two_number_formats(quantized: QuantizedModel) -> None:
    with pytest.raises(UsageError, match=r"^number_format: got 'float16'.*`float_model`"):
        convert(quantized, number_format="float16")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"TFL", "a whole TensorFlow Lite file"),
        ("nothing.tflite", "there is none"),
        (3, "file: got 'int'"),
    ],
)
def test_bad_files_of_verify(form: Any, words: str, model: Any) -> None:
    with pytest.raises(UsageError) as caught:
        verify(form, model, IMAGES)
    assert words in str(caught.value)


def test_the_file_of_a_model_of_another_shape(model: Any, float_file: ConvertedFile) -> None:
    with pytest.raises(VerificationError, match=r"file: got \[32, 32, 3\], expected the input of"):
        verify(float_file, build("mobilenet_v1", 64, width_multiplier=0.25), inputs(8, 64))


@pytest.mark.parametrize("what", ["config", "steps"])
def test_quantize_takes_its_config(what: str, model: Any) -> None:
    if what == "steps":
        found = quantize(model, IMAGES, config=PostTraining(steps=("maximum",)))
        assert [step.name for step in found.steps] == ["maximum"] and not found.repair
        return
    with pytest.raises(UsageError, match="^config: got 'ConversionConfig'"):
        quantize(model, IMAGES, config=cast(Any, ConversionConfig()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": IMAGES[:4]}, ["images: got 4, expected at least 8"]),
        ({"images": IMAGES[0]}, ["images: got 'images of shape [32, 32, 3]'"]),
        ({"images": IMAGES[:, :16]}, ["images: got 'images of shape [24, 16, 32, 3]'"]),
        ({"images": pixels(16, SIZE)}, ["images: got 'images of type uint8'", "cast them"]),
        ({"images": 127.5 * IMAGES + 127.5}, ["images: got 'values from 0", "from -1 to 1"]),
        ({"images": np.where(IMAGES > 0.5, np.float32(np.nan), IMAGES)}, ["images: got", "NaN"]),
        ({"images": "photos"}, ["images: got 'str'"]),
        ({"images": np.zeros_like(IMAGES)}, ["images: got 'one color in each image'"]),
        ({"preprocessing": "slim"}, ["preprocessing: got 'slim'"]),
        ({"labels": ["a", "b"]}, ["labels: got '2 names', expected 10 names"]),
        ({"labels": "abcdefghij"}, ["labels: got 'abcdefghij', expected a list of class names"]),
    ],
)
def test_bad_arguments_of_quantize(
    arguments: dict[str, Any], words: list[str], model: Any, empty: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(model, **{"images": IMAGES, **arguments})
    assert all(word in str(caught.value) for word in words), caught.value
    assert list(empty.iterdir()) == []


def test_models_that_cannot_be_quantized(quantized: QuantizedModel, empty: Path) -> None:
    source = L.Input((SIZE, SIZE, 3))
    swish = L.PReLU(name="slope")(L.Conv2D(4, 3)(source))
    layer = tf_keras.Model(source, L.Dense(3)(L.GlobalAveragePooling2D()(swish)))
    unbuilt = tf_keras.Sequential([L.Conv2D(4, 3)])
    gelu = tf_keras.Sequential([L.Input((SIZE, SIZE, 3))])
    for number in range(7):
        gelu.add(L.Conv2D(2, 1, activation="gelu", name=f"conv{number}"))
    broken = cnn()
    broken.layers[-1].kernel.assign(broken.layers[-1].kernel * np.nan)
    for bad, words in (
        (
            layer,
            [
                "layer slope: got 'PReLU'",
                "a layer with a known int8 form (Conv2D",
                "number_format=dynamic_range",
            ],
        ),
        (unbuilt, ["model: got"]),
        (quantized, ["model: got 'a QuantizedModel'", "`.float_model`"]),
        (quantized.model, ["model: got 'wrapped layers"]),
        (gelu, ["layers conv0, conv1,", "(7): got 'gelu', expected no activation, relu"]),
        ("m.keras", ["model: got 'm.keras', expected a model", "load_model(path).model"]),
        (broken, ["NaN"]),
    ):
        with pytest.raises(UsageError) as caught:
            quantize(bad, IMAGES)
        assert all(word in str(caught.value) for word in words), caught.value
    assert list(empty.iterdir()) == []


def test_a_float_file_of_a_float_model_is_said(
    model: Any, quantized: QuantizedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mobilenet"):
        convert(model, images=IMAGES[:2])
    assert "the file of a float model is float32; that of quantize(model" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "mobilenet"):
        convert(model, number_format="float32", images=IMAGES[:2])
        convert(quantized, images=IMAGES)
    assert "is float32" not in caplog.text


def test_batches_with_labels_give_the_ranges_of_their_images(model: Any) -> None:
    config = PostTraining(steps=("maximum",), calibration_images=12)
    expected = quantize(model, IMAGES[:12], config=config).ranges
    pairs = tf.data.Dataset.from_tensor_slices((IMAGES, np.arange(24))).batch(5).repeat()
    actual = quantize(model, pairs, config=config).ranges
    assert set(actual) == set(expected)
    for name, limits in expected.items():
        np.testing.assert_array_equal(actual[name], limits)


def test_a_loaded_model_brings_its_card(model: Any, tmp_path: Path) -> None:
    given = Preprocessing("own", mean=(127.5,), std=(127.5,), crop="none")
    card = saving.card_of(model).replace(preprocessing=given, labels=tuple(LABELS))
    saving.save(model, tmp_path / "model", card)
    file = convert(load_model(tmp_path / "model"), images=IMAGES)
    assert file.card.preprocessing == given and file.card.labels == tuple(LABELS)


def test_results_print_as_short_text(
    quantized: QuantizedModel, file: ConvertedFile, float_file: ConvertedFile
) -> None:
    shown = str(file).splitlines()
    assert shown[0].split() == ["what", "value"] and max(map(len, shown)) <= 80
    assert any(line.split()[:2] == ["contents", "int8"] for line in shown)
    assert str(file.verification).startswith(f"int8; {len(file.content):,} bytes; 1 delegate part")
    assert "; 2 operators verified, " in str(file.verification)
    assert "operators verified" not in str(float_file.verification)
    first, *steps = str(quantized).splitlines()
    assert first.endswith(f"ranges of {len(quantized.ranges)} activations")
    assert [line.partition(":")[0] for line in steps] == [step.name for step in quantized.steps]
