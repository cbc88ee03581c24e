"""Top-1 of released models as float model and as int8 file by post-training quantization, next to
the published figures.

    python benchmarks/released_models.py --weights FOLDER --data_dir PHOTOS \
        --calibration_dir OTHERS --csv scores.csv

FOLDER is searched for archives, checkpoints, `.npz`, `.h5` and `.safetensors` files whose names are
those of released models; by default it is the cache of fetched weights. PHOTOS is a list
(`file,label` with labels from 0 to 999), class folders of ImageNet or some of them, named by
WordNet, or with `--dataset_name imagenet2012` the folder of TFDS. OTHERS are images to calibrate
on, which are not scored. Each row is written to the CSV file when it is known; the same command
continues there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
FLOAT, INT8 = "float", "int8"
HEADS = ("weights", "form", "px", "images", "top-1 %", "top-5 %", "published", "MB", "seconds")


@dataclasses.dataclass(frozen=True)
class Found:
    """A file of released weights: what they are, and its path as the loader takes it."""

    weights: Any
    path: Path

    def published(self, form: str) -> float | None:
        """The top-1 that was published for a form of the model, if any was."""
        from mobilenet.configs import released_models

        if form == FLOAT:
            top1: float | None = self.weights.top1
            return top1
        model = (self.weights.model_name, self.weights.width, self.weights.image_size)
        release = released_models.find(*model, released_models.QUANTIZED)
        return None if release is None else release.top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder of weights (the cache)")
    parser.add_argument("--names", default="*", help="pattern of the names that are scored (*)")
    parser.add_argument("--dataset_name", help="of TFDS, where --data_dir is its folder")
    parser.add_argument("--data_dir", required=True, help="images with labels")
    parser.add_argument("--calibration_dir", help="images to calibrate on (the training split)")
    parser.add_argument("--calibration_images", type=int, default=200, help="at most (200)")
    parser.add_argument("--limit", type=int, help="images that are scored, spread evenly (all)")
    parser.add_argument("--forms", default=f"{FLOAT},{INT8}", help="float,int8 or one of them")
    parser.add_argument(
        "--csv", type=Path, help="write the rows here; those there are not repeated"
    )
    words = parser.parse_args()
    from mobilenet.errors import UsageError

    try:
        run(words)
    except UsageError as error:
        parser.exit(UsageError.status, f"{error}\n")


def run(words: argparse.Namespace) -> None:
    import tables

    from mobilenet.downloads import Cache
    from mobilenet.errors import UsageError

    folder = words.weights or Cache.of_environment().folder
    listed = find_weights(folder, words.names)
    if not listed:
        expected = "files whose names are those of released models"
        raise UsageError("--weights", str(folder), expected, "mobilenet.list_weights() has names")
    rows = read_rows(words.csv, words.data_dir)
    done = {(row[0], row[1]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        dataset = dataset_of(words, Path(temporary))
        for found in listed:
            forms = [f for f in words.forms.split(",") if (found.weights.name, f) not in done]
            for row in score(found, forms, dataset, words) if forms else ():
                print(*row, flush=True)
                rows.append(row)
                write_rows(words.csv, words.data_dir, rows)
    shown = [row[:-1] for row in rows]  # without the seconds: 80 columns
    tables.show(HEADS[:-1], shown, os.cpu_count() or 1, None)


def find_weights(folder: Path, pattern: str) -> list[Found]:
    """The released weights in a folder, each once, in the order of their list."""
    from mobilenet.configs import released_models, released_weights

    by_name: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        weights = [w for w in released_weights.ALL if _is_of(path, w)]
        weights.sort(key=lambda w: len(w.file))  # those of a folder with a date last
        release = released_models.of_path(path)
        if weights:
            by_name[weights[-1].name] = path
        elif path.suffix in (".index", ".npz") and release is not None:
            by_name.setdefault(release.name, path.with_suffix(""))
            if path.suffix == ".npz":
                by_name[release.name] = path
    names = released_weights.names(pattern)
    listed = [w for w in released_weights.ALL if w.name in by_name and w.name in names]
    return [Found(weights, by_name[weights.name]) for weights in listed]


def _is_of(path: Path, weights: Any) -> bool:
    """Whether a file has the name of weights, below their folder where others have it too."""
    is_unique = weights.source != "google"
    name = weights.file.rpartition("/")[2] if is_unique else weights.file
    return f"/{path.as_posix()}".endswith(f"/{name}")


def dataset_of(words: argparse.Namespace, temporary: Path) -> Any:
    """The data set to score on; some class folders of ImageNet become a list with its labels."""
    from mobilenet.configs import dataset as datasets
    from mobilenet.evaluation import data_source

    if words.dataset_name:
        return datasets.get(words.dataset_name).replace(data_dir=words.data_dir)
    root = Path(words.data_dir)
    held_out = next((root / n for n in ("val", "validation", "test") if (root / n).is_dir()), root)
    classes = wordnet_classes()
    names = {path.name for path in held_out.iterdir()} if held_out.is_dir() else set()
    if not names or not names < set(classes):
        return data_source.find_dataset(words.data_dir, None)
    path = temporary / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for name in sorted(names):
            images = sorted((held_out / name).iterdir())
            table.writerows([image.resolve(), classes.index(name)] for image in images)
    return datasets.get("image_list").replace(data_dir=str(path))


def wordnet_classes() -> list[str]:
    """ImageNet's classes by index, as TFDS lists them."""
    import importlib.util

    spec = importlib.util.find_spec("tensorflow_datasets")
    assert spec is not None and spec.origin is not None
    labels = Path(spec.origin).parent / "datasets" / "imagenet2012" / "labels.txt"
    return labels.read_text(encoding="utf-8").split()


def score(
    found: Found, forms: list[str], dataset: Any, words: argparse.Namespace
) -> Iterator[list[str]]:
    """A row for each form of a model."""
    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        import tensorflow  # noqa: F401
        import tf_keras
    import mobilenet
    from mobilenet.export import calibration_data
    from mobilenet.weights import pretrained

    tf_keras.backend.clear_session()
    loaded = pretrained.load_file(found.weights, found.path)
    for form in forms:
        started = time.monotonic()
        model: Any = loaded
        size = 4 * loaded.model.count_params()
        if form == INT8:
            shape, preprocessing = loaded.model.input_shape[1:], loaded.card.preprocessing
            seen = calibration_data.load_calibration(
                *(None, words.calibration_dir, dataset, shape, preprocessing),
                words.calibration_images,
            )
            quantized = mobilenet.quantize(loaded, seen.images)
            model = mobilenet.convert(quantized, images=seen.images)
            size = len(model.content)
        result = mobilenet.evaluate(model, dataset, limit=words.limit)
        published = found.published(form)
        yield [
            found.weights.name,
            form,
            str(found.weights.image_size),
            str(result.images),
            f"{result.top1:.1f}",
            "-" if result.top5 is None else f"{result.top5:.1f}",
            "-" if published is None else f"{published:.1f}",
            f"{size / 1e6:.2f}",
            f"{time.monotonic() - started:.0f}",
        ]


def read_rows(path: Path | None, data: str) -> list[list[str]]:
    """The rows of an earlier run.

    Raises:
        UsageError: the file is of something else, or of other data.
    """
    from mobilenet.errors import UsageError

    if path is None or not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    if tuple(head) != (*HEADS, "data") or any(len(row) != len(head) for row in rows):
        raise UsageError("--csv", str(path), "a file of this benchmark", "choose another name")
    if other := {row[-1] for row in rows} - {data}:
        expected = f"scores on {data}; it has those on {other.pop()}"
        raise UsageError("--csv", str(path), expected, "choose another name")
    return [row[:-1] for row in rows]


def write_rows(path: Path | None, data: str, rows: list[list[str]]) -> None:
    from mobilenet import files

    if path is not None:
        with files.replacing(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([(*HEADS, "data"), *([*row, data] for row in rows)])


if __name__ == "__main__":
    main()
