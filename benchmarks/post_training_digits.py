"""Every family without training: the digits' float model, and the int8 file that calibration
makes.

    python benchmarks/post_training_digits.py --width_multiplier 0.35

Each model is trained by `python -m mobilenet.trainer --model_name NAME` in float and goes on by
`--quantization ptq`; other words are handed to the trainer. Top-1 is in percent of the held-out
digits, of the float model and of the file; `same` is how often both have the same top-1 there.
Every operator of the file was verified when it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def trained(name: str, folder: Path, flags: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One run of the trainer; its stages by name."""
    command = [
        *(sys.executable, "-m", "mobilenet.trainer", f"--model_name={name}", *flags),
        *("--stages=train,quantize,convert", "--quantization=ptq", f"--model_dir={folder}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    report = json.loads((folder / "report.json").read_text())
    return {entry["stage"]: entry for entry in report["stages"]}


def same_top1(folder: Path) -> float:
    """Share of the held-out digits where the file and the float model answer alike, in percent."""
    from mobilenet.compression.quantization.int8 import scheme
    from mobilenet.configs import dataset
    from mobilenet.data import arrays
    from mobilenet.models import saving
    from mobilenet.runtime import interpreter, quantized_io

    model = saving.load(folder / "train")
    preprocessing = model.card.preprocessing
    images = arrays.load_images(
        dataset.get("digits"), "test", model.card.input_shape, preprocessing, 100_000
    )
    expected = model.model.predict(images, verbose=0).argmax(axis=1)
    (file,) = (folder / "export").glob("*.tflite")
    runner = interpreter.make_interpreter(file.read_bytes())
    classes = quantized_io.run(runner, scheme.to_grid(images, preprocessing)).argmax(axis=1)
    return float(100 * (classes == expected).mean())


def main() -> None:
    from mobilenet.configs import archs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(archs.names()), help="all of them")
    words, flags = parser.parse_known_args()
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        import tensorflow  # noqa: F401
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in words.models.split(","):
            stages = trained(name, Path(folder) / name, flags)
            verification = stages["convert"]["verification"]
            rows.append(
                [
                    *(name, f"{stages['train']['top1']:.2f}", f"{stages['convert']['top1']:.2f}"),
                    f"{same_top1(Path(folder) / name):.2f}",
                    *(
                        verification["partitions"],
                        verification["float_tensors"],
                        len(verification["layers"]),
                    ),
                ]
            )
            print(*rows[-1], flush=True)
    heads = ["model", "float %", "file %", "same %", "partitions", "float tensors", "verified"]
    tables.show(heads, rows, 2, None)


if __name__ == "__main__":
    main()
