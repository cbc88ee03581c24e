"""`--number_format`: every format through the converter, verified; and each invalid request."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import tf_keras
from data_sets import jpeg, smooth_image, write_class_folders
from PIL import Image

from mobilenet import converter, evaluator, predict
from mobilenet.compression.quantization.int8 import calibration
from mobilenet.configs import dataset as datasets
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.configs.number_formats import FORMATS
from mobilenet.errors import UsageError, VerificationError
from mobilenet.export import calibration_data, number_formats, tflite_converter
from mobilenet.export import pipeline as export_pipeline
from mobilenet.export.rewrites import ai_edge, dynamic_range, int16x8
from mobilenet.export.source import Source, open_source
from mobilenet.export.verification import structure
from mobilenet.models import saving
from mobilenet.packing import model as packed_model
from mobilenet.runtime.classifier import Classifier
from mobilenet.tflite import model as tflite_model

INCEPTION = small_models.INCEPTION
needs_edge = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_quantizer") is None,
    reason="ai-edge-quantizer (extra `edge`) is not installed",
)
NAMES = [
    pytest.param(name, marks=needs_edge if kind.package else ())
    for name, kind in FORMATS.items()
    if not kind.mixed  # `edge_int4` is for kernels on a grid: test_four_bits.py
]


@pytest.fixture(scope="module")
def v3_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3-small of a quarter of its width, 32 px, 10 classes, in a folder of its own."""
    from mobilenet.configs import archs
    from mobilenet.models.builder import build

    tf_keras.utils.set_random_seed(3)
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    model = build(archs.get("mobilenet_v3_small", **fields), (32, 32, 3))
    path = tmp_path_factory.mktemp("v3") / "model"
    card = Card(input_shape=(32, 32, 3), dataset="digits", preprocessing=INCEPTION)
    saving.save(small_models.randomize_batch_norm(model), path, card)
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model"
    model = small_models.randomize_batch_norm(small_models.toy(), 4)
    saving.save(model, path, Card(input_shape=(16, 16, 3), preprocessing=INCEPTION))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without classes."""
    folder = tmp_path_factory.mktemp("photos")
    for n, pixels in enumerate(small_models.pixels(12)):
        Image.fromarray(pixels).save(folder / f"{n:02d}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_packed_model_is_unpacked_before_it_is_converted(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "model.packed").write_bytes(packed_model.pack(saving.load(toy)))
    with pytest.raises(UsageError, match="not packed; python -m mobilenet.packer unpack"):
        converter.run([f"--model={tmp_path / 'model.packed'}", f"--output={tmp_path / 'out'}"])


def stored_types(data: bytes) -> dict[str, set[str]]:
    """Types of the kernels as they lie in the file, by operator; before a DEQUANTIZE too."""
    content = tflite_model.read(data)
    dequantized = {
        op.outputs[0]: op.inputs[0] for op in content.operators if op.name == "DEQUANTIZE"
    }
    types: dict[str, set[str]] = {}
    for op in content.operators:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            index = dequantized.get(op.inputs[1], op.inputs[1])
            types.setdefault(op.name, set()).add(content.tensors[index].dtype)
    return types


# The types of the kernels, of the depthwise ones, of what is computed, and the delegate's parts
# (11 depthwise convolutions are outside of `edge_dynamic`; XNNPACK takes nothing of 16 bits).
EXPECTED = {
    "int8": ("int8", "int8", "int8", 1),
    "dynamic_range": ("int8", "float32", "float32", 1),
    "float16": ("float16", "float16", "float32", 1),
    "int16x8": ("int8", "int8", "int16", 0),
    "float32": ("float32", "float32", "float32", 1),
    "edge_dynamic": ("int8", "int8", "float32", 12),
    "edge_weights": ("int8", "int8", "float32", 1),
    "edge_static": ("int8", "int8", "int8", 1),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_becomes_a_verified_file_of_each_format(
    name: str, toy: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--verify_images=40", f"--number_format={name}"]
    if FORMATS[name].calibrated:
        args.append(f"--calibration_dir={photos}")
    converter.run([f"--model={toy}", f"--output={tmp_path / 'out'}", *args])
    out, err = capfd.readouterr()
    assert err == ""
    assert FORMATS[name].contents in out
    assert (f"calibrated on 12 images of {photos}" in out) == FORMATS[name].calibrated
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "card.json", "labels.txt", "model.tflite",
    ]  # fmt: skip
    data = (tmp_path / "out/model.tflite").read_bytes()
    kernel, depthwise, computed, _ = EXPECTED[name]
    types = stored_types(data)
    assert types["CONV_2D"] == {kernel} and types["DEPTHWISE_CONV_2D"] == {depthwise}
    content = tflite_model.read(data)
    inputs_and_outputs = {*content.inputs, *content.outputs}
    inner = {
        i for op in content.operators if op.name != "DEQUANTIZE" for i in op.outputs
    } - inputs_and_outputs
    assert {content.tensors[index].dtype for index in inner} == {computed}
    with zipfile.ZipFile(tmp_path / "out/model.tflite") as archive:
        assert archive.namelist() == ["labels.txt"]
    assert FORMATS[name].contents in (tmp_path / "out/README.md").read_text()
    plain = saving.load(toy).model
    images = small_models.pixels(20, 16, seed=3)
    expected = plain(images / np.float32(127.5) - 1, training=False).numpy()
    outputs = Classifier(tmp_path / "out").logits(images)
    # A few of these images leave the ranges of the twelve; a wrong scale leaves no decibel.
    noise = np.square(outputs - expected).sum() / np.square(expected).sum()
    assert -10 * np.log10(noise) > 12


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_hard_swish_and_squeeze_excite_have_each_format(
    name: str, v3_small: Path, tmp_path: Path
) -> None:
    opened = open_source(v3_small)
    images = small_models.inputs(24, 32, seed=2)
    seen = calibration_data.Calibration(images, "here") if FORMATS[name].calibrated else None
    form = ConversionConfig(number_format=name)
    exported = export_pipeline.export(opened, tmp_path / "out", images, form, calibration=seen)
    assert exported.file.verification.ok
    # The recipe leaves HARD_SWISH as it is, and no delegate takes it in int8.
    assert exported.file.verification.partitions == {"edge_static": 20}.get(name, EXPECTED[name][3])
    assert exported.file.verification.signal_to_noise is not None
    # Int8 hard-swish leaves little of the signal of random kernels: 0.2 to 1.9 dB in eight models.
    least = {"float16": 40, "float32": 60, "int16x8": 15, "edge_static": 1}.get(name, 3)
    assert exported.file.verification.signal_to_noise > least


def test_evaluator_and_predict_take_the_file(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    converter.run(
        [f"--model={toy}", f"--output={tmp_path / 'out'}", "--number_format=dynamic_range",
         "--verify_images=10"]
    )  # fmt: skip
    root = write_class_folders(tmp_path / "photos", train=2, val=3, classes="abcd")
    args = ["--dataset_name=image_folder", f"--data_dir={root}"]
    capfd.readouterr()
    for model in (toy, tmp_path / "out"):
        evaluator.run([f"--model={model}", *args])
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if " 12 " in line]
    assert len(rows) == 2 and abs(float(rows[0][2]) - float(rows[1][2])) < 0.1  # the losses
    predict.run([f"--model={tmp_path / 'out'}", str(root / "val/a/00.jpg")])
    assert "probability" in capfd.readouterr().out
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert any("no calibration data" in note for note in card["notes"])
    assert card["input"]["dtype"] == "float32"


def test_softmax_and_batches_have_a_format_too(toy: Path, photos: Path, tmp_path: Path) -> None:
    args = ["--number_format=int16x8", "--batch=3", "--output_activation=softmax"]
    converter.run(
        [f"--model={toy}", f"--output={tmp_path / 'out'}", f"--calibration_dataset={photos}",
         *args, "--verify_images=8"]
    )  # fmt: skip
    classifier = Classifier(tmp_path / "out")
    assert classifier.card.outputs == "probabilities" and classifier.batch == 3
    images = small_models.pixels(4, 16)
    logits = saving.load(toy).model(images / np.float32(127.5) - 1).numpy().astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.logits(images), expected, atol=0.02)


def test_a_file_that_lost_weights_is_not_written(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding that takes half of a kernel away."""
    honest = dynamic_range.round_kernel

    def lossy(weights: Any) -> Any:
        values, scales = honest(weights)
        return values // 2, scales

    monkeypatch.setattr(dynamic_range, "round_kernel", lossy)
    with pytest.raises(
        VerificationError, match=r"weights are more than a step.*it was not written"
    ):
        converter.run(
            [f"--model={toy}", f"--output={tmp_path / 'out'}", "--number_format=dynamic_range"]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_format_is_not_written(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tflite_converter, "float16_flatbuffer", tflite_converter.float_flatbuffer)
    with pytest.raises(VerificationError, match=r"lacks a DEQUANTIZE.*it was not written"):
        converter.run([f"--model={toy}", f"--output={tmp_path / 'out'}", "--number_format=float16"])


def test_a_file_that_does_not_run_is_not_written(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ai_edge, "apply_recipe", lambda data, name, images: data[: len(data) // 2])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(
        VerificationError, match=r"edge_dynamic that can be run.*it was not written"
    ):
        converter.run(
            [f"--model={toy}", f"--output={tmp_path / 'out'}", "--number_format=edge_dynamic"]
        )
    assert list(tmp_path.iterdir()) == []


def few(folder: Path) -> list[str]:
    for n in range(5):
        (folder / f"{n}.png").write_bytes(jpeg(n))
    return [f"--calibration_dir={folder}"]


def corrupt(folder: Path) -> list[str]:
    few(folder)
    (folder / "3.png").write_bytes(jpeg(3)[:200])
    return [f"--calibration_dir={folder}"]


def empty(folder: Path) -> list[str]:
    (folder / "notes.txt").touch()
    return [f"--calibration_dir={folder}"]


def constant(folder: Path) -> list[str]:
    for n in range(9):
        smooth_image(0).resize((1, 1)).resize((20, 20)).save(folder / f"{n}.png")
    return [f"--calibration_dir={folder}"]


def held_out(folder: Path) -> list[str]:
    few(folder)
    rows = "".join(f"{n}.png,{n % 4}\n" for n in range(5))
    (folder / "list.csv").write_text("file,label\n" + rows)
    return ["--dataset_name=image_list", f"--data_dir={folder / 'list.csv'}"]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (few, ["--calibration_images: got '5 images'", "at least 8"]),
        (corrupt, ["3.png: expected an image that can be decoded"]),
        (empty, ["--calibration_dir: got", "a folder with images", "there is none"]),
        (constant, ["calibration images: got 'one color in each image', expected photos"]),
        (held_out, ["--calibration_dir", "image_list has no training split", "folder of photos"]),
        (lambda folder: [f"--calibration_dir={folder / 'none'}"], ["a folder that exists"]),
        (lambda folder: ["--calibration_dataset=digit"], ["'digit'", "did you mean digits?"]),
        (lambda folder: ["--calibration_dataset=image_folder"], ["--data_dir", "class folders"]),
        (lambda folder: ["--calibration_images=0"], ["--calibration_images: got 0", "at least 8"]),
    ],
)
def test_unusable_calibration_images_cost_one_line(
    toy: Path, tmp_path: Path, make: Callable[[Path], list[str]], parts: list[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    args = [f"--model={toy}", f"--output={tmp_path / 'out'}", "--number_format=int16x8"]
    with pytest.raises(UsageError) as caught:
        converter.run([*args, *make(data), "--verify_images=4"])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (
            ["--number_format=dynamic"],
            ["--number_format: got 'dynamic'", "did you mean edge_dynamic?"],
        ),
        (["--number_format=dynamic_range", "--io=int8"], ["--io: got 'int8', expected float32"]),
        (["--number_format=int16x8", "--io=int8"], ["--io: got 'int8'", "type of int16x8"]),
        (
            ["--number_format=dynamic_range", "--calibration_dir=photos"],
            [
                "--calibration_dir: got 'photos'",
                "a float model and --number_format int8 or int16x8 or edge_static",
            ],
        ),
        (["--calibration_images=100"], ["--calibration_images: got 100", "--number_format int8"]),
        (
            ["--quantization=ptq", "--number_format=float16"],
            ["--quantization: got 'ptq'", "--number_format int8"],
        ),
        (["--quantization=qat"], ["--quantization: got 'qat', expected ptq"]),
    ],
)
def test_invalid_flags_leave_no_file(
    toy: Path, tmp_path: Path, args: list[str], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={toy}", f"--output={tmp_path / 'out'}", *args])
    for part in parts:
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_keeps_the_format_it_was_trained_for() -> None:
    with pytest.raises(UsageError, match=r"number_format: got 'dynamic_range'.*earlier stage"):
        ConversionConfig(number_format="dynamic_range").resolve(True)


@pytest.mark.parametrize(
    ("former", "name"),
    [("weights", "dynamic_range"), ("float16", "float16"), ("edge_static", "edge_static")],
)
def test_former_names_of_formats_are_refused_with_the_current_flag(
    toy: Path, tmp_path: Path, former: str, name: str
) -> None:
    with pytest.raises(UsageError) as caught:
        converter.run(
            [f"--model={toy}", f"--output={tmp_path / 'out'}", f"--quantization={former}"]
        )
    assert str(caught.value) == (
        f"--quantization: got '{former}', expected ptq, the method of int8; --number_format {name}"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_message_names_the_package(toy: Path, tmp_path: Path) -> None:
    """As a process that cannot see the package."""
    code = (
        "import sys; sys.modules['ai_edge_quantizer'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'ai_edge_quantizer' else find(name, *a)\n"
        "from mobilenet import converter; sys.argv = ['converter', *sys.argv[1:]]\n"
        "converter.main()"
    )
    args = [f"--model={toy}", "--number_format=edge_static", f"--output={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "--number_format: got 'edge_static', expected ai_edge_quantizer, which is not installed; "
        "pip install ai-edge-quantizer\n"
    )


def test_a_model_without_sixteen_bit_kernels_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    layers = tf_keras.layers
    source = layers.Input((16, 16, 3))
    x = layers.Activation("softsign")(layers.Conv2D(4, 3)(source))
    model = tf_keras.Model(source, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    images = small_models.inputs(8)
    source_model = Source(saving.LoadedModel(model, Card(input_shape=(16, 16, 3))))
    form = ConversionConfig(number_format="int16x8")
    with pytest.raises(UsageError, match="calibration images: expected images"):
        export_pipeline.export(source_model, tmp_path / "out", images, form)
    seen = calibration_data.Calibration(images, "here")
    with pytest.raises(UsageError, match=r"number_format: got 'int16x8'.*16-bit kernels"):
        export_pipeline.export(source_model, tmp_path / "out", images, form, calibration=seen)
    assert tf.executing_eagerly() and list(tmp_path.iterdir()) == []


def test_a_squeeze_that_is_always_zero_has_a_range_in_sixteen_bits(tmp_path: Path) -> None:
    """Layers whose biases are equal keep each its own; hard-swish is written out: the stock
    converter fails on all three."""
    import tf_keras

    layers = tf_keras.layers

    def hard_sigmoid(x: Any) -> Any:
        return layers.Rescaling(1 / 6)(layers.ReLU(6.0)(layers.Rescaling(1, 3)(x)))

    tf_keras.utils.set_random_seed(0)
    source = layers.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, bias_initializer="normal")(source)
    x = layers.Multiply()([x, hard_sigmoid(x)])
    for _ in range(2):
        squeeze = layers.Conv2D(4, 1, bias_initializer=tf_keras.initializers.Constant(-9.0))
        y = layers.ReLU()(squeeze(layers.GlobalAveragePooling2D(keepdims=True)(x)))
        x = layers.Conv2D(8, 1)(layers.Multiply()([x, hard_sigmoid(layers.Conv2D(8, 1)(y))]))
    model = tf_keras.Model(source, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    images = small_models.inputs(16)
    opened = Source(saving.LoadedModel(model, Card(input_shape=(16, 16, 3))))
    seen = calibration_data.Calibration(images, "here")
    form = ConversionConfig(number_format="int16x8")
    exported = export_pipeline.export(opened, tmp_path / "out", images, form, calibration=seen)
    assert exported.file.verification.signal_to_noise is not None
    assert exported.file.verification.signal_to_noise > 30


def test_shared_biases_are_detected_by_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `prepare_model` the converter keeps one constant for both, with the scales of one."""
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    ones: dict[str, Any] = {"bias_initializer": "ones", "activation": "relu"}
    source = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, **ones)(layers.Conv2D(4, 3, **ones)(source))
    model = tf_keras.Model(source, layers.Dense(4, bias_initializer="ones")(layers.Flatten()(x)))
    images = small_models.inputs(16, 8)

    def faults() -> list[str]:
        content = tflite_model.read(tflite_converter.int16x8_flatbuffer(model, images))
        return structure.format_faults(content, FORMATS["int16x8"])

    assert faults() == []
    monkeypatch.setattr(int16x8, "prepare_model", lambda prepared, seen: prepared)
    assert [fault for fault in faults() if "its bias has other scales" in fault]


def test_calibration_reads_every_kind_of_path(tmp_path: Path, photos: Path) -> None:
    """A plain folder, class folders, a list; pixels are those of the data's own pipeline."""
    shape = (16, 16, 3)
    inside = calibration_data.load_calibration(
        None, str(photos), datasets.DIGITS, shape, INCEPTION, 8
    )
    assert inside.images.shape == (8, *shape)
    whole = calibration_data.load_calibration(None, str(photos), datasets.DIGITS, shape, INCEPTION)
    assert whole.summary == f"12 images of {photos}"
    indices = [int(np.argmin(np.abs(whole.images - one).sum((1, 2, 3)))) for one in inside.images]
    assert indices == [0, 2, 3, 5, 6, 8, 9, 11]
    root = write_class_folders(tmp_path / "classes", train=6, val=2)
    sorted_ = calibration_data.load_calibration(None, str(root), datasets.DIGITS, shape, INCEPTION)
    assert len(sorted_.images) == 12
    rows = "".join(f"{photos / f'{n:02d}.png'},{n},{'train' if n else 'test'}\n" for n in range(12))
    (tmp_path / "list.csv").write_text("file,label,split\n" + rows)
    listed = calibration_data.load_calibration(
        None, str(tmp_path / "list.csv"), datasets.DIGITS, shape, INCEPTION
    )
    np.testing.assert_array_equal(listed.images, whole.images[1:])
    own = calibration_data.load_calibration(None, None, datasets.DIGITS, shape, INCEPTION, 16)
    assert own.summary == "16 images of digits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * np.where(np.arange(len(x)) == 3, np.nan, 1)[:, None, None, None], "NaN"),
        (lambda x: (x + 1) * 127.5, r"values from .* to .*, expected values from -1 to 1"),
        (lambda x: x * 0 + np.linspace(-1, 1, len(x))[:, None, None, None], "one color"),
    ],
)
def test_images_that_are_no_inputs_of_the_model_are_refused(change: Any, message: str) -> None:
    images = small_models.inputs(8)
    calibration.check_images(images, INCEPTION)
    with pytest.raises(UsageError, match=message):
        calibration.check_images(change(images).astype(np.float32), INCEPTION)
    calibration.check_images((images + 1) * 127.5, PREPROCESSING["raw"])


def test_every_format_has_a_converter() -> None:
    assert set(number_formats.CONVERTERS) == set(FORMATS)
    for kind in FORMATS.values():
        assert dataclasses.asdict(kind)["io_types"][0] in ("float32", "int8")
