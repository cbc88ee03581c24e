"""What pruning and quantization keep where they learn from the model that they began with.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --data_dir PHOTOS --checkpoint V1_025_128

A seed trains one float model; every variant starts from it. The first command is about the digits,
at 32 px. PHOTOS is a folder of class folders, which V1 of width 0.25 is fine-tuned on from Google's
TF1 weights. The figure is top-1 on the held-out images, in percent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

# Stage, teacher, temperature, weight of feature maps; 3/4 of the pointwise weights go in pruning.
VARIANTS = {
    "prune": ("prune", "none", 1.0, 0.0),
    "prune, T 1": ("prune", "start", 1.0, 0.0),
    "prune, T 2": ("prune", "start", 2.0, 0.0),
    "prune, T 4": ("prune", "start", 4.0, 0.0),
    "prune, T 2, features": ("prune", "start", 2.0, 3.0),
    "quantize": ("quantize", "none", 1.0, 0.0),
    "quantize, T 2": ("quantize", "start", 2.0, 0.0),
    "quantize, T 2, features": ("quantize", "start", 2.0, 3.0),
}
NET = ("--model_name=mobilenet_v1", "--width_multiplier=0.25", "--final_sparsity=0.75")
DIGITS = ("--image_size=32", "--epochs=16", "--prune_epochs=6", "--quantize_epochs=3")
PHOTOS = (
    *("--dataset_name=image_folder", "--image_size=128", "--override=dataset.area_min=0.35"),
    *("--recipe=from_scratch", "--epochs=8", "--lr=1e-3", "--prune_epochs=5", "--prune_lr=5e-4"),
    *("--quantize_epochs=3", "--quantize_lr=1e-4"),
)


def top1(folder: Path, stage: str, *flags: str) -> float:
    """Runs one stage; what its model scores."""
    command = [
        *(sys.executable, "-m", "mobilenet.trainer", *NET, *flags),
        *(f"--stages={stage}", f"--model_dir={folder}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    (entry,) = json.loads((folder / "report.json").read_text())["stages"]
    return float(entry["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="folder with train/ and val/ of photos")
    parser.add_argument("--checkpoint", help="TF1 weights of V1 0.25 at 128 px, for the photos")
    parser.add_argument("--seeds", type=int, default=3, help="float models (3)")
    parser.add_argument("--weight", type=float, default=0.9, help="share of the teacher (0.9)")
    parser.add_argument(
        "--variants", default=";".join(VARIANTS), help=f"which of {'; '.join(VARIANTS)} (all)"
    )
    parser.add_argument("--flags", type=str.split, default=[], help="more flags of every run")
    words = parser.parse_args()
    chosen = [name.strip() for name in words.variants.split(";")]
    data = (*PHOTOS, f"--data_dir={words.data_dir}") if words.data_dir else DIGITS
    data = (*data, *words.flags)
    first = (f"--init_checkpoint={words.checkpoint}",) if words.checkpoint else ()
    scores: dict[str, list[float]] = {name: [] for name in ("train", *chosen)}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.seeds):
            own, start = (*data, f"--seed={seed}"), Path(folder) / f"{seed}"
            scores["train"].append(top1(start, "train", *own, *first, "--distill=none"))
            for number, name in enumerate(chosen):
                stage, teacher, temperature, features = VARIANTS[name]
                flags = (
                    *(*own, f"--init_checkpoint={start / 'train'}", f"--distill={teacher}"),
                    *(f"--distill_weight={words.weight}", f"--distill_temperature={temperature}"),
                    f"--distill_features={features}",
                )
                scores[name].append(top1(Path(folder) / f"{seed}_{number}", stage, *flags))
            print(f"seed {seed}", {name: values[-1] for name, values in scores.items()}, flush=True)
    for name, values in scores.items():
        spread = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:<26}{mean(values):>8.2f}   {spread}")


if __name__ == "__main__":
    main()
