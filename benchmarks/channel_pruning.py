"""What half of the MACs costs in accuracy, variant by variant, with the same number of steps each.

    python benchmarks/channel_pruning.py --data digits --models v1,v2,v3
    python benchmarks/channel_pruning.py --data PHOTOS --checkpoints FOLDER --models v1

Without `--checkpoints` models are trained from scratch; FOLDER holds Google's TF1 weights. A seed
is one run of `mobilenet.trainer` for the start, and one from its weights for every variant: all
channels at once, on a cubic schedule, in stages, fitted again by least squares or not, with and
without the start as a teacher, by each importance; the last is a model of half the MACs by its
width alone, trained from scratch for as long as the start and the pruning together. Top-1 is that
of the held-out images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

# Checkpoint, flags of the trainer, width multiplier, that of about half the MACs.
MODELS = {
    "v1": ("mobilenet_v1_0.25_128.ckpt", ["--model_name=mobilenet_v1"], 0.25, 0.17),
    "v2": ("mobilenet_v2_1.0_224_slim_f16.npz", ["--model_name=mobilenet_v2"], 1.0, 0.67),
    "v3": ("", ["--model_name=mobilenet_v3_small"], 1.0, 0.67),
}
CHANNEL = ["--pruning=channel", "--target_macs=0.5"]
TEACHER = "--distill={start}"
PLAIN = ["--reconstruct=0", "--distill=none"]
GRADUAL = ["--pruning_schedule=polynomial", "--reconstruct=0"]
STAGES = ["--channel_stages=4", "--prune_keep_best"]
VARIANTS: dict[str, list[str]] = {
    "one shot": PLAIN,
    "one shot + teacher": ["--reconstruct=0", TEACHER],
    "gradual": [*GRADUAL, "--distill=none"],
    "gradual + teacher": [*GRADUAL, TEACHER],
    "stages": [*STAGES, *GRADUAL, "--distill=none"],
    "stages + teacher": [*STAGES, *GRADUAL, TEACHER],
    "fitted": ["--distill=none"],
    "fitted + teacher": [TEACHER],
    "fitted stages + teacher": [*STAGES, TEACHER],
    **{
        f"one shot by {importance}": [*PLAIN, f"--importance={importance}"]
        for importance in ("l2", "batch_norm_scale", "taylor", "geometric_median", "random")
    },
    "one shot globally": [*PLAIN, "--channel_scope=global"],
    "width": [],
}


class Bench:
    """Runs of one model on one data set."""

    def __init__(self, words: argparse.Namespace, name: str, folder: Path) -> None:
        self.words, self.folder = words, folder
        self.checkpoint, self.model, self.width, self.half = MODELS[name]
        data = ["--dataset_name=digits"]
        if words.data != "digits":
            data = ["--dataset_name=image_folder", f"--data_dir={words.data}"]
            data.append("--override=dataset.area_min=0.35")
        self.common = [*self.model, *data, f"--image_size={words.image_size}"]
        if words.checkpoints and not self.checkpoint:
            sys.exit(f"{name}: no checkpoint of it is known")

    def train(self, name: str, seed: int, *flags: str) -> dict[str, Any]:
        """One run; the entry of its last stage."""
        run_folder = self.folder / f"{name.replace(' ', '_')}_{seed}"
        command = [
            *(sys.executable, "-m", "mobilenet.trainer", *self.common, f"--seed={seed}"),
            *(*flags, f"--model_dir={run_folder}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        entry: dict[str, Any] = json.loads((run_folder / "report.json").read_text())["stages"][-1]
        return entry

    def start(self, seed: int) -> dict[str, Any]:
        words = self.words
        flags = [f"--width_multiplier={self.width}", "--stages=train", f"--epochs={words.epochs}"]
        if words.checkpoints:
            flags.append(f"--init_checkpoint={Path(words.checkpoints) / self.checkpoint}")
            flags += ["--recipe=from_scratch", f"--lr={words.lr}"]
        return self.train("start", seed, *flags)

    def prune(self, name: str, seed: int) -> dict[str, Any]:
        words, flags = self.words, VARIANTS[name]
        if name == "width":
            epochs = words.epochs + words.prune_epochs
            width = f"--width_multiplier={self.half}"
            return self.train(name, seed, width, "--stages=train", f"--epochs={epochs}")
        start = self.folder / f"start_{seed}" / "train"
        stages = 4 if "--channel_stages=4" in flags else 1
        budget = CHANNEL if "global" not in name else ["--pruning=channel", "--channel_ratio=0.3"]
        return self.train(
            name,
            seed,
            f"--width_multiplier={self.width}",
            *(f"--init_checkpoint={start}", "--stages=prune", *budget),
            *(f"--round_to={words.round_to}", f"--prune_epochs={words.prune_epochs // stages}"),
            *(f"--prune_lr={words.prune_lr}", *(flag.format(start=start) for flag in flags)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits, or a folder of class folders")
    parser.add_argument("--checkpoints", help="folder of the TF1 weights to start from")
    parser.add_argument("--models", default="v1", help=f"which of {', '.join(MODELS)} (v1)")
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help=f"which of {', '.join(VARIANTS)} (all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs a variant (3)")
    parser.add_argument("--image_size", type=int, default=64, help="pixels (64)")
    parser.add_argument("--epochs", type=int, default=24, help="of the start (24)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the start from weights (1e-3)")
    parser.add_argument("--prune_epochs", type=int, default=16, help="of all stages together (16)")
    parser.add_argument("--prune_lr", type=float, default=1e-3, help="of the pruning (1e-3)")
    parser.add_argument("--round_to", type=int, default=1, help="channels in multiples of it (1)")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    heads = ["model", "variant", "top-1 %", "spread", "MACs %", "params %", "seeds"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in words.models.split(","):
            bench = Bench(words, name, Path(folder) / name)
            rows += table(bench, name, words.variants.split(","), range(words.seeds))
    tables.show(heads, rows, 2, words.csv)


def table(bench: Bench, name: str, variants: list[str], seeds: range) -> list[list[str]]:
    """A row a variant: mean and standard deviation over the seeds, size over the start's."""
    starts = [bench.start(seed) for seed in seeds]
    rows = []
    todo: dict[str, Callable[[int], dict[str, Any]]] = {"start": lambda seed: starts[seed]}
    for variant in variants:
        todo[variant] = lambda seed, variant=variant: bench.prune(variant, seed)  # type: ignore[misc]
    for variant, run in todo.items():
        entries = [run(seed) for seed in seeds]
        top1 = [entry["top1"] for entry in entries]
        share = {key: 100 * entries[0][key] / starts[0][key] for key in ("macs", "params")}
        rows.append(
            [
                *(
                    name,
                    variant,
                    f"{mean(top1):.2f}",
                    f"{stdev(top1):.2f}" if len(top1) > 1 else "-",
                ),
                *(f"{share['macs']:.1f}", f"{share['params']:.1f}", str(len(top1))),
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
