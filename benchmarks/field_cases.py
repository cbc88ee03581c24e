"""Cases of real users: what a model's inputs and outputs mean, from a saved model to its file.

    python benchmarks/field_cases.py [--cases WORD ...] [--list]

Every case builds what it needs (models, images) in a folder of its own and downloads nothing. A row
is a function with the decorator `case`: it takes the folder and returns what is seen, as text that
equals what is wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenet import converter, errors, predict, text_tables

CASES: list[Case] = []


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: unique; what is tried.
        wanted: the right result.
        run: takes an empty folder, returns the result that is seen.
    """

    name: str
    wanted: str
    run: Callable[[Path], str]


def case(name: str, wanted: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Adds a function to the table."""

    def add(run: Callable[[Path], str]) -> Callable[[Path], str]:
        CASES.append(Case(name, wanted, run))
        return run

    return add


# What cases are made of


def output_of(command: Callable[[list[str]], object], *words: object) -> str:
    """What a command prints to both streams; of one that refuses its input, the line."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            command([str(word) for word in words])
        except errors.UsageError as error:
            print(error)
    return written.getvalue()


def plain_image(path: Path, value: int, size: int = 32) -> Path:
    """An image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path)
    return path


def save_keras(model: Any, path: Path) -> Path:
    """A model in one `.keras` file, without anything that this library stores with a model."""
    model.save(path)
    return path


def best(text: str) -> str:
    """The first label and its probability of each table that `predict` printed."""
    lines = text.splitlines()
    rows = [lines[index + 1] for index, line in enumerate(lines) if line and set(line) == {"-"}]
    return ", ".join(" ".join(row.split()) for row in rows) or text.strip().rpartition("\n")[2]


# What a model's inputs mean


def brightness_model(*first: Any) -> Any:
    """Two classes, dark and bright, by the mean of `first(pixels)`, which is in [0, 1]."""
    import tf_keras

    layers = tf_keras.layers
    pool, dense = layers.GlobalAveragePooling2D(), layers.Dense(2)
    model = tf_keras.Sequential([layers.Input((32, 32, 3)), *first, pool, dense])
    dense.set_weights([np.tile(np.float32([[-2, 2]]), (3, 1)), np.float32([3, -3])])
    return model


@case("Rescaling(1/255) first: white, black", "1 99.75 %, 0 99.75 %")
def rescaling_first(folder: Path) -> str:
    import tf_keras

    model = brightness_model(tf_keras.layers.Rescaling(1 / 255))
    path = save_keras(model, folder / "model.keras")
    images = [plain_image(folder / f"{value}.png", value) for value in (255, 0)]
    return best(output_of(predict.run, "--model", path, *images))


@case("the same as int8 file", "1 99.7 %, 0 99.7 %")
def rescaling_first_int8(folder: Path) -> str:
    import tf_keras

    model = brightness_model(tf_keras.layers.Rescaling(1 / 255))
    path = save_keras(model, folder / "model.keras")
    noise = np.random.default_rng(0).integers(0, 3, (40, 32, 32, 3))
    photos = folder / "photos"
    for number, pixels in enumerate(np.uint8(noise + np.linspace(0, 253, 40)[:, None, None, None])):
        target = photos / str(number % 2) / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    images = [plain_image(folder / f"{value}.png", value) for value in (255, 0)]
    words = ["--number_format", "int8", "--dataset_name", "image_folder", "--data_dir", photos]
    said = output_of(converter.run, "--model", path, *words, "--output", folder / "export")
    if not (folder / "export").is_dir():
        return said.strip().splitlines()[-1]
    seen = best(output_of(predict.run, "--model", folder / "export", *images))
    return re.sub(r"(\d\.\d)\d", r"\1", seen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=[], help="words of the names of cases; all")
    parser.add_argument("--list", action="store_true", help="print the names alone")
    arguments = parser.parse_args()
    chosen = [c for c in CASES if not arguments.cases or any(w in c.name for w in arguments.cases)]
    if arguments.list:
        print(*(case.name for case in chosen), sep="\n")
        return
    rows = []
    for row in chosen:
        with tempfile.TemporaryDirectory() as folder:
            seen = row.run(Path(folder))
        rows.append([row.name, row.wanted, seen, "" if seen == row.wanted else "differs"])
    print(text_tables.table(["case", "wanted", "seen", ""], rows))
    sys.exit(any(row[-1] for row in rows))


if __name__ == "__main__":
    main()
