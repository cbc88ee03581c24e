"""The latency of thin models, float and int8, over that of the whole model: what channels in whole
tiles win.

    python benchmarks/thin_latency.py --models mobilenet_v1 mobilenet_v2

Every model has half of the MACs (`--target_macs`), with channel counts in multiples of 1, 8, 16 and
32; the last row has what `--target_latency` chose, by its own measurement. All files run
interleaved in one process, batch 1, one thread; the figure is the median of the thread's CPU time.
Weights are random, which the time does not depend on.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
TILES = (1, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["mobilenet_v1", "mobilenet_v2"])
    parser.add_argument("--target_macs", type=float, default=0.5, help="default %(default)s")
    parser.add_argument("--target_latency", type=float, default=0.6, help="default %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels, default %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="tables to take the median of")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        import tensorflow  # noqa: F401
    rows = [row for name in words.models for row in table(name, words)]
    heads = ["model", "channels", "MACs", "float ms", "/ whole", "int8 ms", "/ whole"]
    tables.show(heads, rows, 1, words.csv)


def table(name: str, words: argparse.Namespace) -> list[list[str]]:
    """A row for the whole model and for every thin one."""
    import models

    from mobilenet.models import counting
    from mobilenet.runtime import interpreter

    whole = models.build(name, 1.0, words.size)
    made = {"whole": whole}
    for tile in TILES:
        made[f"by {tile}"] = thin(whole, target_macs=words.target_macs, round_to=tile)
    aim = f"{words.target_latency:g} of the float time, by 32"
    made[aim] = thin(whole, target_latency=words.target_latency, round_to=32)
    files = {}
    for key, model in made.items():
        print(f"converting {name} {key}", flush=True)
        files.update({f"{key} {kind}": data for kind, data in both(model, words.size).items()})
        gc.collect()
    runs = [interpreter.latency(files, words.rounds, seed=seed) for seed in range(words.repeats)]
    macs = {key: sum(counting.layer_macs(model).values()) for key, model in made.items()}
    rows = []
    for key in made:
        cells = []
        for kind in ("float", "int8"):
            ratio = statistics.median(run[f"{key} {kind}"] / run[f"whole {kind}"] for run in runs)
            time = statistics.median(run[f"{key} {kind}"] for run in runs)
            cells += [f"{1e3 * time:.3f}", f"{ratio:.3f}"]
        rows.append([name, key, f"{macs[key] / macs['whole']:.3f}", *cells])
    return rows


def thin(whole: Any, **fields: Any) -> Any:
    """The model with as many channels as channel pruning would leave."""
    import models

    from mobilenet.compression import method as methods
    from mobilenet.compression.pruning.channel import surgery
    from mobilenet.configs.dataset import PREPROCESSING
    from mobilenet.configs.pruning import ChannelPruning
    from mobilenet.training.latency import measure_latency

    size = whole.input_shape[1]
    stage = methods.StageContext(
        4,
        PREPROCESSING["inception"],
        lambda n: models.images(n, size),
        measure_latency=measure_latency,
    )
    method = methods.create(ChannelPruning(**fields), stage)
    method.apply(whole)
    share = float(max(method.shares.numpy()))
    return surgery.thin(whole, share, fields["round_to"]).model


def both(model: Any, size: int) -> dict[str, bytes]:
    """The float and the int8 file."""
    import models

    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.export import tflite_converter

    wrapped = models.quantized(model, size)
    int8_saving.prepare_export(wrapped)
    return {
        "float": tflite_converter.float_flatbuffer(model),
        "int8": tflite_converter.int8_flatbuffer(wrapped),
    }


if __name__ == "__main__":
    main()
