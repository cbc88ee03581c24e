"""What is left of a net, in points and bytes, behind surgery, codebooks and the packer.

    python benchmarks/smallest.py
    python benchmarks/smallest.py --data_dir PHOTOS --checkpoint V1_025_128

A seed trains one float net, prunes it by surgery and, to the same share of zeros in as many steps,
by magnitude; the codebooks begin with the net of the surgery. Every net is packed as it is and with
its batch norms in 16 bits, unpacked, and scored on the held-out images. The first command is about
the digits, V1 of width .5 at 64 px. PHOTOS is a folder of class folders, which V1 of width .25 is
fine-tuned on from Google's TF1 weights. Ratios are of the float net's bytes; `to bound` is what the
kernels of few values take in the file beside the zeroth-order entropy of their positions and codes
with their codebooks.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from mobilenet.reporting import packed

DIGITS = ("--width_multiplier=0.5", "--image_size=64", "--prune_epochs=16", "--quantize_epochs=6")
PHOTOS = (
    *("--dataset_name=image_folder", "--width_multiplier=0.25", "--image_size=128"),
    *("--override=dataset.area_min=0.35", "--epochs=8", "--lr=1e-3"),
    *("--prune_epochs=20", "--prune_lr=5e-4", "--quantize_epochs=10", "--quantize_lr=1e-4"),
)
BITS = ("depthwise", "pointwise", "dense")
HEADS = ["net", "top-1 %", "spread", "zeros %", "kernels", "to bound", "file", "folded", "bytes"]


class Bench:
    """One seed: its runs lie in a folder of their own."""

    def __init__(self, words: argparse.Namespace, folder: Path, seed: int) -> None:
        self.words, self.folder = words, folder
        data = (*PHOTOS, f"--data_dir={words.data_dir}") if words.data_dir else DIGITS
        self.common = ("--model_name=mobilenet_v1", *data, f"--seed={seed}")

    def train(self, name: str, stage: str, *flags: str, start: str = "") -> Path:
        """Runs a stage unless it is there; the folder of its net."""
        place = self.folder / name.replace("/", "")
        first = f"--init_checkpoint={self.folder / start}" if start else ""
        if not start and self.words.checkpoint:
            first = f"--init_checkpoint={self.words.checkpoint}"
        wanted = (*self.common, *flags, *filter(None, [first]))
        _run("trainer", *wanted, f"--stages={stage}", f"--model_dir={place}")
        return place / stage

    def row(self, name: str, net: Path) -> dict[str, float]:
        """Figures of a net; of a folded one its own top-1, too."""
        whole, small = (self.packed(net, fold) for fold in (False, True))
        kernels = [line for line in whole.lines if line.name not in ("norms and biases", "header")]
        coded = [line for line in kernels if line.entropy is not None]
        bound = sum((line.entropy or 0) + (line.codebook or 0) for line in coded)
        found = {
            "top1": float(json.loads((net / "card.json").read_text())["metrics"]["top1"]),
            "folded top1": self.top1(net.parent / "back"),
            "zeros": 100 * sum(x.zeros for x in kernels) / sum(x.weights for x in kernels),
            "kernels": sum(x.plain for x in kernels) / sum(x.packed for x in kernels),
            "bound": sum(x.packed for x in coded) / bound if coded else float("nan"),
            "file": whole.ratio,
            "folded": small.ratio,
            "bytes": small.total.packed,
        }
        print(name, *(f"{key} {value:.2f}" for key, value in found.items()), flush=True)
        return found

    def packed(self, net: Path, fold: bool) -> packed.Contents:
        """The net's packed file; the folded one is unpacked again beside it."""
        file = net.parent / ("folded.packed" if fold else "net.packed")
        data = f"--data_dir={self.words.data_dir}" if self.words.data_dir else ""
        flags = ("--fold_batch_norm", *filter(None, [data])) if fold else ()
        _run("packer", "pack", str(net), str(file), *flags)
        if fold:
            _run("packer", "unpack", str(file), str(net.parent / "back"))
        return packed.contents(file)

    def top1(self, net: Path) -> float:
        data = f"--data_dir={self.words.data_dir}" if self.words.data_dir else ""
        said = _run("evaluator", f"--model={net}", *filter(None, [data]))
        return float(re.search(r"^ *(\d+\.\d+) ", said, re.MULTILINE)[1])  # type: ignore[index]


def seed_rows(bench: Bench, books: list[str]) -> dict[str, dict[str, float]]:
    """All nets of a seed."""
    nets = {"float": bench.train("float", "train")}
    rows = {"float": bench.row("float", nets["float"])}
    dns = bench.train("dns", "prune", "--pruning=dns", *bench.words.dns, start="float/train")
    rows["dns"] = bench.row("dns", dns)
    lines = packed.contents(dns.parent / "net.packed").lines
    pruned = [line for line in lines if line.distinct is not None and line.zeros]
    share = sum(line.zeros for line in pruned) / sum(line.weights for line in pruned)
    flat = f"--final_sparsity=pointwise={share:.6f},classifier={share:.6f}"
    magnitude = bench.train("magnitude", "prune", flat, start="float/train")
    rows["magnitude"] = bench.row("magnitude", magnitude)
    for book in books:
        bits = [f"--num_bits_{k}={n}" for k, n in zip(BITS, book.split("/"), strict=True)]
        flags = ("--quantization=codebook", *bits, *bench.words.codebook)
        net = bench.train(f"codebook {book}", "quantize", *flags, start="dns/prune")
        rows[f"codebook {book}"] = bench.row(f"codebook {book}", net)
    return rows


def _run(name: str, *words: str) -> str:
    command = [sys.executable, "-m", f"mobilenet.{name}", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="folder with train/ and val/ of photos")
    parser.add_argument("--checkpoint", help="TF1 weights of V1 0.25 at 128 px, for the photos")
    parser.add_argument("--seeds", type=int, default=3, help="float nets (3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--books", default="8/6/5,6/6/5,4/4/4", help="bits of the codebooks")
    parser.add_argument("--dns", type=str.split, default=[], help="more flags of the surgery")
    parser.add_argument("--codebook", type=str.split, default=[], help="more flags of codebooks")
    parser.add_argument("--folder", type=Path, help="where the runs stay; what is there is used")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import nets

    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(words.first, words.first + words.seeds):
            print(f"seed {seed}", flush=True)
            bench = Bench(words, (words.folder or Path(place)) / str(seed), seed)
            for name, row in seed_rows(bench, words.books.split(",")).items():
                found.setdefault(name, []).append(row)
    rows = []
    for name, values in found.items():
        means = {key: mean(value[key] for value in values) for key in values[0]}
        rows += [
            [
                *(name, f"{means['top1']:.2f}", " ".join(f"{v['top1']:.2f}" for v in values)),
                *(f"{means['zeros']:.1f}", f"{means['kernels']:.2f}", f"{means['bound']:.3f}"),
                *(f"{means['file']:.2f}", "", ""),
            ],
            [
                *("", f"{means['folded top1']:.2f}"),
                " ".join(f"{v['folded top1']:.2f}" for v in values),
                *("", "", "", "", f"{means['folded']:.2f}", f"{means['bytes']:,.0f}"),
            ],
        ]
    nets.show(HEADS, rows, 2, words.csv)


if __name__ == "__main__":
    main()
