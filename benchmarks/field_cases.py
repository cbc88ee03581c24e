"""Cases of real users: what a model's inputs and outputs mean, from a saved model to its file.

    python benchmarks/field_cases.py [--cases WORD ...] [--list]

Every case builds what it needs (models, images) in a folder of its own and downloads nothing. A row
is a function with the decorator `case`: it takes the folder and returns what is seen, as text that
equals what is expected.
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
from PIL import Image, ImageOps

from mobilenet import converter, errors, predict, text_tables
from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.data.sources import image_csv, image_folder
from mobilenet.runtime.images import decode

CASES: list[Case] = []


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: unique; what is tried.
        expected: the right result.
        run: takes an empty folder, returns the result that is seen.
    """

    name: str
    expected: str
    run: Callable[[Path], str]


def case(name: str, expected: str) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Adds a function to the table."""

    def add(run: Callable[[Path], str]) -> Callable[[Path], str]:
        CASES.append(Case(name, expected, run))
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
    dense.set_weights([np.tile([[-2.0, 2.0]], (3, 1)), np.array([3.0, -3.0])])
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


# What images, folders and lists mean


def training_pixels(path: Path, exif: bool = True) -> np.ndarray | str:
    """Pixels as training decodes them, or the reason why it does not."""
    import tensorflow as tf

    from mobilenet.data import corrupt_images, decoding

    content = path.read_bytes()
    fault = corrupt_images.find_fault(content, MAX_PIXELS)
    return str(fault) if fault else decoding.decode(tf.constant(content), exif=exif).numpy()


def photo(height: int = 40, width: int = 50) -> Image.Image:
    """A smooth image of many colors."""
    coarse = np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@case("EXIF orientations 1 to 8: training and predict", "as upright, 24 files")
def orientations(folder: Path) -> str:
    count = 0
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        for kind in ("jpg", "png", "webp"):
            path = folder / f"{number}.{kind}"
            photo().save(path, exif=exif)
            upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
            same = [np.array_equal(upright, seen) for seen in (training_pixels(path), decode(path))]
            count += all(same)
    return f"as upright, {count} files"


FORMATS: dict[str, Callable[[Path], None]] = {
    "CMYK.jpg": lambda path: photo().convert("CMYK").save(path),
    "16bit.png": lambda path: Image.fromarray(
        np.asarray(photo().convert("L"), np.uint16) * 257
    ).save(path),
    "1bit.png": lambda path: photo().convert("1").save(path),
    "alpha.webp": lambda path: photo().convert("RGBA").save(path, lossless=True),
    "palette.gif": lambda path: photo().quantize(64).save(path),
    "palette.bmp": lambda path: photo().quantize(64).save(path),
    "moving.webp": lambda path: photo().save(path, save_all=True, append_images=[photo(40, 50)]),
    "tiff.jpg": lambda path: photo().save(path, "tiff"),
    "avif.jpg": lambda path: photo().save(path, "avif"),
}


@case("formats: training and predict", "9 of 9 read alike or refused alike")
def formats(folder: Path) -> str:
    alike = 0
    for name, write in FORMATS.items():
        write(folder / name)
        trained = training_pixels(folder / name)
        try:
            ours: np.ndarray | str = decode(folder / name)
        except errors.UsageError as error:
            ours = str(error)
        if isinstance(trained, str) or isinstance(ours, str):
            alike += str(trained) in str(ours)
        else:
            alike += bool(np.abs(trained.astype(int) - ours).max() <= 1)
    return f"{alike} of {len(FORMATS)} read alike or refused alike"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def sizes(root: Path) -> str:
    """Images by split, and what is said about the folder."""
    listed = image_folder.list_images(root)
    counts = ", ".join(f"{split} {len(items)}" for split, items in listed.splits.items())
    said = [*listed.notes, *dict.fromkeys(listed.assumed.values())]
    return "; ".join([counts, *(line.replace(str(root), "ROOT") for line in said)])


@case("Train, Valid and Test", "train 2, validation 2, test 2")
def split_names(folder: Path) -> str:
    splits = ("Train", "Valid", "Test")
    return sizes(touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab")))


@case(
    "train and test alone",
    "train 2, validation 2, test 2; ROOT has no validation images: those of test are used for both",
)
def no_validation(folder: Path) -> str:
    splits = ("train", "test")
    return sizes(touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab")))


@case(
    "unlabeled test/, .tif",
    "train 2, validation 2, test 2; ROOT: 1 file is left out (1 .tif), first train/a/2.tif; "
    "ROOT: 1 folder is left out: test with 2 images; "
    "ROOT has no test images: those of validation are used for both",
)
def left_out(folder: Path) -> str:
    splits = ("train", "val")
    touch(folder, *(f"{split}/{name}/1.jpg" for split in splits for name in "ab"))
    return sizes(touch(folder, "train/a/2.tif", "test/1.jpg", "test/2.jpg"))


@case("a class called test", "bus, test")
def class_called_test(folder: Path) -> str:
    touch(folder, *(f"{name}/{number}.jpg" for name in ("bus", "test") for number in range(5)))
    return ", ".join(image_folder.list_images(folder).labels)


@case("lists of Excel and Windows", "(0, 1), (0, 1), (0, 1), classes cat, dog")
def spreadsheets(folder: Path) -> str:
    touch(folder, "sub/a.jpg", "sub/b.jpg")
    texts = {
        "utf-8-sig": "File;Label\r\nsub\\a.jpg;0\r\nsub\\b.jpg;1\r\n",
        "utf-16": "file\tlabel\r\nsub/a.jpg\t0.0\r\nsub/b.jpg\t1.0\r\n",
        "utf-8": "LABEL,FILE\ncat,sub/a.jpg\ndog,sub/b.jpg\n",
    }
    labels, listed = [], None
    for encoding, text in texts.items():
        (folder / "list.csv").write_bytes(text.encode(encoding))
        listed = image_csv.read_list(folder / "list.csv")
        labels.append(str(tuple(label for _, label in listed.splits["test"])))
    return f"{', '.join(labels)}, classes {', '.join(listed.labels if listed else ())}"


@case("a list that starts at 1", "refused: `label_offset=1` makes them start at 0")
def one_based(folder: Path) -> str:
    from mobilenet.configs import recipes
    from mobilenet.training import resolve_config

    photo().save(folder / "a.jpg")
    rows = "".join(f"a.jpg,{label},train\n" for label in (1, 2, 3))
    (folder / "list.csv").write_text(f"file,label,split\n{rows}")
    config = recipes.get("mobilenet_v1", "image_list")
    data = config.dataset.replace(data_dir=str(folder / "list.csv"))
    try:
        resolve_config.resolve(config.replace(dataset=data))
    except errors.UsageError as error:
        return f"refused: {error.remedy.partition(', ')[2]}"
    return "read"


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
        rows.append([row.name, row.expected, seen, "" if seen == row.expected else "differs"])
    print(text_tables.table(["case", "expected", "seen", ""], rows))
    sys.exit(any(row[-1] for row in rows))


if __name__ == "__main__":
    main()
