"""What the inputs of a model without a card mean to the commands: read from its first layers, given
by `--preprocessing` and `--crop`, or assumed with one line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_runs import run_command
from PIL import Image

from mobilenet.configs.card import Card
from mobilenet.packing import model as packed_model

tf_keras = pytest.importorskip("tf_keras")
L = tf_keras.layers
SIZE = 16
CROP_LINE = "does not state its crop: the central 87.5 % of each side is taken"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of two classes, dark and bright, and photos of both.

    The logits are -2 s + 3 and 2 s - 3 with the sum s of the three channels of pixel / 255, so that
    white and black have the probability 1 / (1 + exp(-6)), 99.75 %.
    """
    folder = tmp_path_factory.mktemp("brightness")
    for name, first in (("pixels", [L.Rescaling(1 / 255)]), ("scaled", [])):
        dense = L.Dense(2)
        layers = [L.Input((SIZE, SIZE, 3)), *first, L.GlobalAveragePooling2D(), dense]
        model = tf_keras.Sequential(layers)
        dense.set_weights([np.tile(np.float32([[-2, 2]]), (3, 1)), np.float32([3, -3])])
        model.save(folder / f"{name}.keras")
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, level in enumerate(np.linspace(0, 253, 24)):
            path = folder / "photos" / split / str(int(level > 127)) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.uint8(level + noise.integers(0, 3, (SIZE, SIZE, 3)))
            Image.fromarray(pixels).save(path)
    for value in (0, 255):
        Image.new("RGB", (SIZE, SIZE), (value,) * 3).save(folder / f"{value}.png")
    return folder


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Gives the lines that were logged since the last call; a process prints them to stderr."""

    def lines() -> list[str]:
        own = [r.getMessage() for r in caplog.records if r.name == "mobilenet"]
        caplog.clear()
        return own

    return lines


Log = Callable[[], list[str]]
DARK_AND_BRIGHT = [["0", "99.75"], ["1", "99.75"]]


def predicted(folder: Path, model: Path, *flags: object) -> list[list[str]]:
    """Label and percent of the best class of black and of white."""
    images = folder / "0.png", folder / "255.png"
    done = run_command("predict", "--model", model, *images, "--top_k", 1, *flags)
    assert done.returncode == 0, done.stderr
    assert "pixels" not in done.stderr  # the notes are of its outputs
    return [line.split()[:2] for line in done.stdout.splitlines() if line.endswith("%")]


def test_predict_reads_the_first_layer(files: Path, log: Log) -> None:
    assert predicted(files, files / "pixels.keras") == DARK_AND_BRIGHT
    (line,) = log()
    assert CROP_LINE in line
    assert predicted(files, files / "pixels.keras", "--crop", "none") == DARK_AND_BRIGHT
    assert log() == []


def test_predict_takes_what_is_given(files: Path, log: Log) -> None:
    scaled = files / "scaled.keras"
    for flags in (["unit"], ["0,255", "--crop=0.5"]):
        assert predicted(files, scaled, "--preprocessing", *flags) == DARK_AND_BRIGHT
        assert log() == []
    rows = predicted(files, scaled)  # black is -1, so that its logits are 9 and -9
    assert rows == [["0", "100.00"], ["1", "99.75"]]
    (line,) = log()
    assert "taken to be pixels of the central 87.5 % of each side scaled to [-1, 1]" in line


def test_the_evaluator_reads_the_first_layer_or_takes_what_is_given(files: Path) -> None:
    data = "--dataset_name", "image_folder", "--data_dir", files / "photos"
    for words, line in (
        (["pixels.keras"], CROP_LINE),
        (["scaled.keras", "--preprocessing", "unit"], ""),
        (["scaled.keras"], "scaled to [-1, 1]"),
    ):
        done = run_command("evaluator", "--model", files / words[0], *words[1:], *data)
        assert done.returncode == 0, done.stderr
        notes, _, _ = done.stdout.partition(f"{files / words[0]} on ")
        said = [text for text in notes.splitlines() if "taken" in text]
        assert len(said) == bool(line) and all(line in text for text in said)
        top1 = float(done.stdout.splitlines()[-1].split()[0])
        assert top1 == 100.0 if "scaled to" not in line else top1 < 100  # p / 127.5 - 1 is too low


def convert(model: Path, target: Path, files: Path, *flags: str) -> str:
    """What the converter prints on the way from a model to a folder, with the photos as data."""
    data = "--dataset_name", "image_folder", "--data_dir", files / "photos"
    done = run_command("converter", "--model", model, "--output", target, *flags, *data)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_int8_file_of_such_a_model_takes_pixels(files: Path, log: Log) -> None:
    target = files / "int8"
    convert(files / "pixels.keras", target, files, "--number_format", "int8")
    assert len([line for line in log() if "does not state its crop" in line]) == 1
    card = Card.from_file(target / "card.json")
    assert card.input is not None
    assert (card.preprocessing.name, card.input.zero_point) == ("raw", -128)
    assert card.input.scale == pytest.approx(1 / 255)  # the value of a pixel is the pixel - 128
    assert any(CROP_LINE in note for note in card.notes)
    rows = predicted(files, target)
    assert log() == []
    assert [label for label, _ in rows] == ["0", "1"]
    np.testing.assert_allclose([float(percent) for _, percent in rows], 99.75, atol=0.15)


def test_one_class_for_all_images_is_no_agreement(files: Path, log: Log) -> None:
    """The model without its scaling: pixels 0 to 255 have the second class, whatever they show."""
    target = files / "degenerate"
    printed = convert(files / "scaled.keras", target, files, "--preprocessing", "raw")
    line = "the model decides alike on 24 of 24 images"
    (said,) = log()
    assert f"{line}, so there is no agreement to state" in said
    assert f"not comparable: {line}" in " ".join(printed.split())
    assert "100.00%" not in printed + (target / "README.md").read_text()
    assert any(line in note for note in Card.from_file(target / "card.json").notes)


def test_the_packer_stores_it(files: Path, log: Log) -> None:
    packed = files / "packed"
    done = run_command("packer", "pack", files / "pixels.keras", packed)
    assert (done.returncode, done.stderr) == (0, "")
    assert packed_model.unpack(packed).loaded.card.preprocessing.name == "raw"
    flags = "--preprocessing", "imagenet", "--crop", "none"
    done = run_command("packer", "pack", files / "scaled.keras", packed, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    found = packed_model.unpack(packed).loaded.card.preprocessing
    assert (found.mean, found.crop) == ((123.675, 116.28, 103.53), "none")
    assert log() == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--preprocessing", "rwa"], "--preprocessing: got 'rwa', expected one of inception"),
        (["--preprocessing", "1,2,3"], "--preprocessing: got '1,2,3', expected one of inception"),
        (["--preprocessing", "0.5,0.5"], "these are of pixels from 0 to 1"),
        (
            ["--crop", "middle"],
            "--crop: got 'middle', expected one of central, square, center, none",
        ),
    ],
)
def test_bad_flags_cost_one_line(files: Path, flags: list[str], text: str) -> None:
    words = "--model", files / "pixels.keras", *flags
    data = "--dataset_name", "image_folder", "--data_dir", files / "photos"
    commands: list[tuple[object, ...]] = [
        ("predict", *words, files / "0.png"),
        ("evaluator", *words, *data),
        ("converter", *words, *data),
        ("packer", "pack", files / "pixels.keras", files / "none", *flags),
    ]
    for command, *rest in commands:
        done = run_command(str(command), *rest)
        assert done.returncode == 2
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
