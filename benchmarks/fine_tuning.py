"""What the recipe for a few hundred photos reaches from released weights, float and compressed.

    python benchmarks/fine_tuning.py --data_dir PHOTOS
    python benchmarks/fine_tuning.py --data_dir PHOTOS --models v1 --methods qat,zeros,channels,dns

    python benchmarks/fine_tuning.py --data_dir PHOTOS --models v1 --shuffle_split

PHOTOS is a folder with `train` and `val`, each with class folders. Each model is trained with the
defaults of `mobilenet.train` from the weights that `imagenet` stands for, or from those of
`--weights v1=PATH,v2=PATH`; each method then begins with the float model of the same seed. Top-1 is
that of the held-out photos; seconds are those of the stage. With `--shuffle_split` each seed splits
all photos anew, with as many of each class in both parts as before: the spread then is that of the
photos, too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sklearn.model_selection import StratifiedShuffleSplit

import mobilenet

MODELS: dict[str, dict[str, Any]] = {
    "v1": {"model": "mobilenet_v1", "width_multiplier": 0.25, "image_size": 128},
    "v2": {"model": "mobilenet_v2", "image_size": 96},
    "v3": {"model": "mobilenet_v3_small", "image_size": 128},
}
METHODS: dict[str, dict[str, Any]] = {
    "qat": {"stages": ("quantize", "convert")},
    "zeros": {"stages": ("prune",), "final_sparsity": 0.75},
    "channels": {
        "stages": ("prune",),
        "pruning": "channel",
        "target_macs": 0.5,
        "round_to": 1,
        "channel_stages": 2,
        "stage_epochs": 4,
        "prune_lr": 3e-4,
        "reconstruct": 650,
    },
    "dns": {
        "stages": ("prune", "quantize"),
        "pruning": "dns",
        "quantization": "codebook",
        "num_bits_depthwise": 6,
        "num_bits_pointwise": 5,
        "num_bits_dense": 5,
        "codebook_cells": "even",
        "quantize_lr": 1e-3,
    },
}
HEADS = ["model", "stage", "top-1 %", "std", "to float", "by seed", "seconds"]
Stage = tuple[str, str]  # model and method, name of the stage
Figures = tuple[float, float]  # top-1 in percent, seconds


class Bench:
    """All runs of a seed, in a folder of their own."""

    def __init__(self, words: argparse.Namespace, folder: Path, seed: int) -> None:
        self.words, self.folder, self.seed = words, folder, seed
        self.data = Path(words.data_dir)
        if words.shuffle_split:
            self.data = shuffled(self.data, folder / "photos", seed)

    def run(self, name: str, fields: dict[str, Any]) -> dict[Stage, Figures]:
        """Figures of each stage of a run."""
        folder = self.folder / name.replace(" ", "_")
        fields = {**fields, "seed": self.seed, "model_dir": folder}
        report = mobilenet.train(self.data, **fields).report
        figures = {(name, str(r.part)): (r.top1, 60 * (r.minutes or 0)) for r in report}
        for (_, stage), (top1, seconds) in figures.items():
            print(f"seed {self.seed}, {name}, {stage}: {top1:.2f} %, {seconds:.0f} s", flush=True)
        return figures

    def rows(self) -> dict[Stage, Figures]:
        rows: dict[Stage, Figures] = {}
        weights = dict(pair.split("=", 1) for pair in self.words.weights.split(",") if pair)
        for model in self.words.models.split(","):
            fields = MODELS[model] | {"weights": weights.get(model, "imagenet")}
            rows |= self.run(model, {**fields, **self.words.train, "stages": ("train",)})
            start = self.folder / model / "train"
            for method in filter(None, self.words.methods.split(",")):
                fields = {**MODELS[model], **METHODS[method], **self.words.compress}
                rows |= self.run(f"{model} {method}", {**fields, "weights": start})
        return rows


def shuffled(photos: Path, folder: Path, seed: int) -> Path:
    """The photos as links in another split, which has as many of each class as theirs."""
    files = sorted(path for path in photos.glob("*/*/*") if path.is_file())
    labels = [path.parent.name for path in files]
    held_out = sum(path.parts[-3] != "train" for path in files)
    split = StratifiedShuffleSplit(n_splits=1, test_size=held_out, random_state=seed)
    parts = zip(("train", "val"), next(split.split(labels, labels)), strict=True)
    for part, path in ((part, files[index]) for part, indices in parts for index in indices):
        link = folder / part / path.parent.name / f"{path.parts[-3]}_{path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    return folder


def fields(text: str) -> dict[str, Any]:
    """Fields of the config, as in `lr=1e-3,pruning=dns`."""
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    return {name: _number(value) for name, value in pairs}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def row(
    name: str, stage: str, figures: list[Figures], by_stage: dict[Stage, list[Figures]]
) -> list[str]:
    """A line of the table."""
    top1 = [value for value, _ in figures]
    start = mean(value for value, _ in by_stage[name.split()[0], "train"])
    return [
        *(name, stage, f"{mean(top1):.2f}", f"{stdev(top1):.2f}" if len(top1) > 1 else ""),
        *(f"{mean(top1) - start:+.2f}", " ".join(f"{value:.1f}" for value in top1)),
        f"{mean(seconds for _, seconds in figures):.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with train/ and val/ of photos")
    parser.add_argument("--models", default=",".join(MODELS), help="of v1,v2,v3 (all)")
    parser.add_argument("--weights", default="", help="v1=PATH,... instead of imagenet")
    parser.add_argument("--methods", default="", help=f"any of {','.join(METHODS)} (none)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--shuffle_split", action="store_true", help="another split by each seed")
    parser.add_argument("--train", type=fields, default={}, help="fields of float training")
    parser.add_argument("--compress", type=fields, default={}, help="fields of the methods")
    parser.add_argument("--folder", type=Path, help="where the runs stay; what is there is used")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    by_stage: dict[Stage, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.first, words.first + words.seeds):
            bench = Bench(words, (words.folder or Path(folder)) / str(seed), seed)
            for stage, figures in bench.rows().items():
                by_stage.setdefault(stage, []).append(figures)
    rows = [row(*stage, figures, by_stage) for stage, figures in by_stage.items()]
    tables.show(HEADS, rows, 2, words.csv)


if __name__ == "__main__":
    main()
