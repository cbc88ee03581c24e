"""What int8 costs a model with real weights: a float fine-tune, then a short QAT, on real photos.

    python benchmarks/real_weights.py --data_dir PHOTOS --checkpoints FOLDER --models v1

PHOTOS is a folder of class folders; FOLDER holds Google's TF1 weights. Every seed is one run of
`mobilenet.trainer` from the checkpoint with a new head: `train` is the float fine-tune, `quantize`
the QAT from its end, `convert` the file. Top-1 is that of the held-out photos, each used once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

# Checkpoint, flags of the trainer, side of its images in pixels.
MODELS = {
    "v1": (
        "mobilenet_v1_0.25_128.ckpt",
        ["--model_name=mobilenet_v1", "--width_multiplier=0.25"],
        128,
    ),
    "v2": ("mobilenet_v2_1.0_224_slim_f16.npz", ["--model_name=mobilenet_v2"], 224),
    "v3": (
        "mobilenet_v3_small_1.0_224_slim_f16.npz",
        ["--model_name=mobilenet_v3_small", "--override=model.hard_sigmoid_slope=0.16667"],
        224,
    ),
}


def run(name: str, seed: int, words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run; the top-1 of its stages."""
    file, model, size = MODELS[name]
    command = [
        *(sys.executable, "-m", "mobilenet.trainer", *model),
        *("--dataset_name=image_folder", f"--data_dir={words.data_dir}"),
        f"--init_checkpoint={Path(words.checkpoints) / file}",
        *(f"--image_size={words.image_size or size}", f"--seed={seed}"),
        *("--recipe=from_scratch", f"--epochs={words.epochs}", f"--lr={words.lr}"),
        *(f"--quantize_epochs={words.quantize_epochs}", f"--quantize_lr={words.quantize_lr}"),
        *("--stages=train,quantize,convert", "--override=dataset.area_min=0.35"),
        f"--distill={words.distill}",
        f"--model_dir={folder}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    stages = {e["stage"]: e for e in json.loads((folder / "report.json").read_text())["stages"]}
    return {
        "model": name,
        "seed": seed,
        "float": stages["train"]["top1"],
        "qat": stages["quantize"]["top1"],
        "file": stages["convert"]["top1"],
        "agreement": stages["convert"]["agreement"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with train/ and val/ of photos")
    parser.add_argument("--checkpoints", required=True, help="folder of the TF1 weights")
    parser.add_argument(
        "--models", default=",".join(MODELS), help=f"which of {', '.join(MODELS)} (all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs a model (3)")
    parser.add_argument("--image_size", type=int, help="pixels (that of the checkpoint)")
    parser.add_argument("--epochs", type=int, default=8, help="of the float fine-tune (8)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the float fine-tune (1e-3)")
    parser.add_argument("--quantize_epochs", type=int, default=4, help="of the QAT (4)")
    parser.add_argument("--quantize_lr", type=float, default=1e-4, help="of the QAT (1e-4)")
    parser.add_argument("--distill", default="none", help="teacher of the QAT (none)")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    words = parser.parse_args()
    rows = []
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{'model':<5}{'seed':>5}{'float':>9}{'QAT':>9}{'file':>9}{'agreement':>11}")
    with tempfile.TemporaryDirectory() as parent:
        for name in words.models.split(","):
            for seed in range(words.seeds):
                rows.append(run(name, seed, words, Path(parent) / f"{name}_{seed}"))
                show(rows[-1])
            own = [row for row in rows if row["model"] == name]
            average = {
                key: mean(r[key] for r in own) for key in ("float", "qat", "file", "agreement")
            }
            show({"model": name, "seed": "mean", **average})
    if words.csv:
        with open(words.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['model']:<5}{row['seed']:>5}{row['float']:>9.2f}{row['qat']:>9.2f}"
        f"{row['file']:>9.2f}{row['agreement']:>11.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
