"""The export folder: whole or absent, a correct card, and a README whose program runs as
printed.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import CLASSES, SIZE, fake_quant_model, file_inputs, hard_swish_model, pixels
from tflite_files import invoke, io_details

from mobilenet.configs.card import Card
from mobilenet.configs.conversion import VerificationLimits
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.errors import UsageError
from mobilenet.export import bundle, tflite_converter, tflite_metadata
from mobilenet.export.verification import verify
from mobilenet.runtime.classifier import Classifier

LABELS = ("ant", "bee", "cat", "dog")
CARD = Card(
    architecture={"type": "MobileNetV1Config"},
    preprocessing=PREPROCESSING["inception"],
    labels=LABELS,
    dataset="digits",
    stage="quantize",
    metrics={"top1": 98.5},
)


@dataclasses.dataclass(frozen=True)
class Exported:
    data: bytes
    verification: verify.Verification


@pytest.fixture(scope="module")
def files() -> dict[str, Exported]:
    """A file per input type; `float` is a float model, the others are int8 inside."""
    actual = {}
    for name in ("int8", "uint8", "float32", "float"):
        model = hard_swish_model(softmax=True) if name == "float" else fake_quant_model()
        data = (
            tflite_converter.float_flatbuffer(model)
            if name == "float"
            else tflite_converter.int8_flatbuffer(model, name)
        )
        data = tflite_metadata.attach(data, bundle.file_card(CARD, CLASSES, name != "float"))
        io = "float32" if name == "float" else name
        logits = (
            np.zeros((8, CLASSES)) if name == "float" else model(file_inputs(pixels(8))).numpy()
        )
        limits = VerificationLimits()
        actual[name] = Exported(
            data,
            verify.verify(
                data,
                logits,
                file_inputs(pixels(8)),
                expect_int8=name != "float",
                io=io,
                limits=limits,
            ),
        )
    return actual


def bilinear(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Bilinear resize of a box (left, top, width, height), half-pixel centers, no antialiasing."""
    left, top, width, height = box
    cut = image[int(top) : int(top + height), int(left) : int(left + width)].astype(np.float64)

    def weights(length: int) -> np.ndarray:
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((size, length))
        matrix[np.arange(size), low] += 1 - (at - low)
        matrix[np.arange(size), np.minimum(low + 1, length - 1)] += at - low
        return matrix

    return np.einsum("yh,hwc,xw->yxc", weights(cut.shape[0]), cut, weights(cut.shape[1]))


def photo(path: Path, height: int, width: int) -> np.ndarray:
    """A smooth image, written as a JPEG; returns what its decoder gives."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [128 + 120 * np.sin(rows / a + columns / b) for a, b in ((7, 11), (13, 5), (9, 17))]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(path, quality=95)
    return np.asarray(Image.open(path))


def test_folder_holds_all_files(files: dict[str, Exported], tmp_path: Path) -> None:
    converted = files["int8"]
    path = bundle.write_export(
        tmp_path / "run" / "export", converted.data, CARD, converted.verification
    )
    assert path == tmp_path / "run" / "export" / "model.tflite"
    assert path.read_bytes() == converted.data
    names = {item.name for item in path.parent.iterdir()}
    assert names == {"model.tflite", "card.json", "labels.txt", "README.md"}
    assert (path.parent / "labels.txt").read_text().splitlines() == list(LABELS)
    text = (path.parent / "README.md").read_text()
    assert (
        f"{len(converted.data):,} ({len(gzip.compress(converted.data, 9, mtime=0)):,} under gzip)"
        in text
    )
    assert "98.50" in text
    assert [item.name for item in path.parent.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("name", ["int8", "uint8", "float32", "float"])
def test_card_is_that_of_the_file(files: dict[str, Exported], tmp_path: Path, name: str) -> None:
    converted = files[name]
    path = bundle.write_export(tmp_path / "export", converted.data, CARD, converted.verification)
    card = Card.from_json(json.loads((path.parent / "card.json").read_text()))
    for tensor, detail in zip((card.input, card.output), io_details(converted.data), strict=True):
        assert tensor is not None
        assert np.dtype(tensor.dtype) == detail["dtype"]
        assert (tensor.scale, tensor.zero_point) == detail["quantization"]
    assert card.input_shape == (SIZE, SIZE, 3)
    assert (card.stage, card.outputs, card.labels) == ("convert", "logits", LABELS)
    assert card.preprocessing.mean == ((127.5,) if name == "float" else (128.0,))
    assert (card.preprocessing.std, card.preprocessing.crop) == ((127.5,), "central")


def test_other_normalizations_are_left_alone(files: dict[str, Exported]) -> None:
    card = CARD.replace(preprocessing=PREPROCESSING["imagenet"])
    actual = bundle.export_card(card, files["int8"].verification)
    assert actual.preprocessing == PREPROCESSING["imagenet"]


def test_labels_fit_the_classes(files: dict[str, Exported]) -> None:
    actual = bundle.export_card(CARD.replace(labels=()), files["int8"].verification)
    assert actual.labels == ("0", "1", "2", "3")
    odd = CARD.replace(labels=("a\nb", *LABELS[1:]))
    assert bundle.export_card(odd, files["int8"].verification).labels[0] == "a b"
    with pytest.raises(UsageError, match="labels: got 3, expected 4"):
        bundle.export_card(CARD.replace(labels=LABELS[:3]), files["int8"].verification)


def test_folder_is_replaced_as_a_whole_or_not_at_all(
    files: dict[str, Exported], tmp_path: Path
) -> None:
    converted = files["int8"]
    folder = tmp_path / "export"
    bundle.write_export(folder, converted.data, CARD, converted.verification)
    (folder / "old").write_text("left by someone")
    broken = CARD.replace(metrics={"top1": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        bundle.write_export(folder, b"", broken, converted.verification)
    assert (folder / "model.tflite").read_bytes() == converted.data
    assert [item.name for item in tmp_path.iterdir()] == ["export"]
    bundle.write_export(folder, converted.data, CARD, converted.verification)
    assert not (folder / "old").exists()


def test_folder_that_cannot_be_written_is_named(files: dict[str, Exported], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="can be written"):
        bundle.write_export(tmp_path / "file" / "export", b"", CARD, files["int8"].verification)


@pytest.mark.parametrize(
    ("name", "preprocessing", "size", "box"),
    [
        # int(83 / 16), int(61 / 16) and their mirror images
        ("int8", PREPROCESSING["inception"], (61, 83), (5, 3, 73, 55)),
        ("uint8", PREPROCESSING["inception_whole"], (61, 83), (0, 0, 83, 61)),
        ("float32", PREPROCESSING["inception_whole"], (61, 83), (0, 0, 83, 61)),
        # sides int(16 / 48 * 61) and int(16 / 48 * 31); the second crop is enlarged
        ("float", PREPROCESSING["imagenet"], (61, 83), (32, 21, 20, 20)),
        ("float", PREPROCESSING["imagenet"], (31, 40), (15, 11, 10, 10)),
        ("float", PREPROCESSING["inception_whole"], (9, 7), (0, 0, 7, 9)),
    ],
)
def test_program_in_the_readme_runs(
    files: dict[str, Exported],
    tmp_path: Path,
    name: str,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
) -> None:
    converted = files[name]
    card = CARD.replace(preprocessing=preprocessing)
    folder = bundle.write_export(
        tmp_path / "export", converted.data, card, converted.verification
    ).parent
    pixels = bilinear(photo(folder / "photo.jpg", *size), box, SIZE)
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    keep = "import sys; assert 'tensorflow' not in sys.modules; np.save('logits.npy', logits)"
    (folder / "program.py").write_text(f"{program}\n{keep}\n")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    mean, std = (
        (np.array(preprocessing.mean), np.array(preprocessing.std))
        if name == "float"
        else (128, 127.5)
    )
    batch = ((pixels - mean) / std)[None].astype(np.float32)
    if name == "int8":
        batch = (np.round(pixels) - 128).astype(np.int8)[None]
    if name == "uint8":
        batch = np.round(pixels).astype(np.uint8)[None]
    outputs = invoke(converted.data, batch)[0]
    scale, zero = io_details(converted.data)[1]["quantization"]
    logits = (outputs.astype(np.float64) - zero) * scale if scale else outputs
    np.testing.assert_allclose(np.load(folder / "logits.npy"), logits, atol=1e-4)
    assert done.stdout.strip() == LABELS[logits.argmax()]
    classifier = Classifier(folder, threads=1)
    own = classifier.run(classifier.pixels(folder / "photo.jpg"))
    np.testing.assert_allclose(own, logits, atol=1e-4)
