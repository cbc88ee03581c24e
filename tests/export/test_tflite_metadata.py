"""TFLite Metadata in the file and labels after it, read by independent means."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import flatbuffers.number_types as numbers
import numpy as np
import pytest
from flatbuffers.table import Table
from small_models import SIZE, fake_quant_model, file_inputs, pixels
from tflite_files import invoke

from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.export import tflite_converter, tflite_metadata
from mobilenet.runtime import interpreter
from mobilenet.runtime.classifier import Classifier
from mobilenet.tflite import model as tflite_model

LABELS = ("ant", "bee", "cat", "Käfer")
CARD = Card(
    architecture={"type": "MobileNetV1Config"},
    input_shape=(SIZE, SIZE, 3),
    preprocessing=PREPROCESSING["inception"].replace(mean=(128.0,)),
    labels=LABELS,
    dataset="digits",
)


@pytest.fixture(scope="module")
def bare() -> bytes:
    return tflite_converter.int8_flatbuffer(fake_quant_model())


@pytest.fixture(scope="module")
def attached(bare: bytes) -> bytes:
    return tflite_metadata.attach(bare, CARD)


class Read:
    """A table by slot numbers of metadata_schema.fbs, with FlatBuffers' own accessors."""

    def __init__(self, table: Table) -> None:
        self.table = table

    @classmethod
    def root(cls, data: bytes) -> Read:
        start = flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)
        return cls(Table(data, start))

    def _at(self, slot: int) -> int:
        offset = self.table.Offset(4 + 2 * slot)
        assert offset, f"slot {slot} is not there"
        return self.table.Pos + offset

    def text(self, slot: int) -> str:
        return self.table.String(self._at(slot)).decode()

    def number(self, slot: int, kind: Any) -> int:
        return self.table.Get(kind, self._at(slot))

    def floats(self, slot: int) -> list[float]:
        return self.table.GetVectorAsNumpy(numbers.Float32Flags, self.table.Offset(4 + 2 * slot))

    def inner(self, slot: int) -> Read:
        return Read(Table(self.table.Bytes, self.table.Indirect(self._at(slot))))

    def first(self, slot: int) -> Read:
        offset = self.table.Offset(4 + 2 * slot)
        assert self.table.VectorLen(offset) == 1
        return Read(Table(self.table.Bytes, self.table.Indirect(self.table.Vector(offset))))


def metadata(data: bytes) -> Read:
    blob = bytes(tflite_model.read(data).metadata["TFLITE_METADATA"])
    assert blob[4:8] == b"M001"
    return Read.root(blob)


def test_the_input_describes_how_pixels_are_quantized(attached: bytes) -> None:
    root = metadata(attached)
    assert (root.text(0), root.text(7)) == ("MobileNetV1", "1.0.0")
    source = root.first(3).first(2)
    content = source.inner(3)
    assert content.number(0, numbers.Uint8Flags) == 2  # ImageProperties
    assert content.inner(1).number(0, numbers.Int8Flags) == 1  # RGB
    size = content.inner(1).inner(1)
    assert [size.number(slot, numbers.Uint32Flags) for slot in (0, 1)] == [SIZE, SIZE]
    unit = source.first(4)
    assert unit.number(0, numbers.Uint8Flags) == 1  # NormalizationOptions
    mean, std = (float(unit.inner(1).floats(slot)[0]) for slot in (0, 1))
    detail = interpreter.make_interpreter(attached).get_input_details()[0]
    scale, zero = detail["quantization"]
    values = np.round((np.arange(256) - mean) / std / scale) + zero
    np.testing.assert_array_equal(values, np.arange(256) - 128)
    most, least = (source.inner(5).floats(slot)[0] for slot in (0, 1))
    np.testing.assert_allclose([least, most], [-128 / 127.5, 127 / 127.5], rtol=1e-6)


def test_the_output_names_its_labels(attached: bytes) -> None:
    sink = metadata(attached).first(3).first(3)
    assert sink.text(0) == "logits"
    file = sink.first(6)
    assert (file.text(0), file.number(2, numbers.Int8Flags)) == ("labels.txt", 2)
    with zipfile.ZipFile(io.BytesIO(attached)) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)


def test_probabilities_and_gray_images_are_named() -> None:
    card = CARD.replace(outputs="probabilities")
    root = Read.root(tflite_metadata.model_metadata(card, (1, 8, 6, 1)))
    graph = root.first(3)
    assert graph.first(3).text(0) == "probability"
    image = graph.first(2).inner(3).inner(1)
    assert image.number(0, numbers.Int8Flags) == 2  # GRAYSCALE
    assert [image.inner(1).number(i, numbers.Uint32Flags) for i in (0, 1)] == [6, 8]
    card = CARD.replace(preprocessing=PREPROCESSING["imagenet"])
    options = Read.root(tflite_metadata.model_metadata(card, (1, 8, 8, 3)))
    unit = options.first(3).first(2).first(4).inner(1)
    np.testing.assert_allclose(unit.floats(0), PREPROCESSING["imagenet"].mean, rtol=1e-6)
    np.testing.assert_allclose(unit.floats(1), PREPROCESSING["imagenet"].std, rtol=1e-6)


def test_the_model_is_the_same_and_its_constants_are_aligned(bare: bytes, attached: bytes) -> None:
    values = (pixels(8).astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(invoke(attached, values), invoke(bare, values))
    content, before = tflite_model.read(attached), tflite_model.read(bare)
    assert [op.name for op in content.operators] == [op.name for op in before.operators]
    assert set(before.metadata) < set(content.metadata)
    start = np.frombuffer(content.content, np.uint8).ctypes.data
    constants = [tensor for tensor in content.tensors if tensor.is_constant]
    assert len(constants) > 8
    for tensor in constants:
        assert (np.frombuffer(tensor.buffer, np.uint8).ctypes.data - start) % 16 == 0
    assert len(attached) - len(bare) < 2000


def test_the_file_depends_on_the_model_alone(bare: bytes, attached: bytes) -> None:
    assert tflite_metadata.attach(bare, CARD) == attached


FUZZ = """
import random, shutil, sys
from pathlib import Path
import numpy as np
from mobilenet.errors import UsageError
from mobilenet.runtime.classifier import Classifier

folder = Path(sys.argv[1])
whole = (folder / "model.tflite").read_bytes()
counts = {"refused": 0, "ran": 0}
for seed in range(100):
    chance = random.Random(seed)
    data = bytearray(whole)
    if seed % 4 == 0:
        del data[chance.randrange(len(data)):]
    elif seed % 4 == 1:  # where the structure is
        data[chance.randrange(2000)] ^= 1 << chance.randrange(8)
    else:
        for _ in range(chance.choice([1, 2, 8])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (folder / "model.tflite").write_bytes(bytes(data))
    try:
        Classifier(folder, threads=1).logits(np.zeros((1, 16, 16, 3), np.uint8))
        counts["ran"] += 1
    except (UsageError, ValueError, RuntimeError):  # the last two: from a kernel in invoke
        counts["refused"] += 1
print(counts["refused"], counts["ran"])
"""


def test_a_damaged_export_does_not_end_the_process(attached: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(attached)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    refusals, ran = map(int, done.stdout.split())
    assert refusals > 20 and ran > 20 and refusals + ran == 100


def test_a_bare_file_with_metadata_is_classified_by_its_labels(
    attached: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.tflite").write_bytes(attached)
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        archive.extract("labels.txt", tmp_path)
    model = Classifier(tmp_path, threads=1)
    assert model.labels == LABELS
    assert model.logits(pixels(2)).shape == file_inputs(pixels(2)).shape[:1] + (len(LABELS),)
