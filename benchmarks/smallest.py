"""What is left of a model, in points and bytes, after surgery, codebooks and the packer.

    python benchmarks/smallest.py
    python benchmarks/smallest.py --data_dir PHOTOS --checkpoint V1_025_128

A seed trains one float model, prunes it by surgery and, to the same share of zeros in as many
steps, by magnitude; the codebooks (bits of k x k kernels, 1x1 kernels, the classifier) begin with
the model of the surgery. Every model is packed as it is and with its batch norms in 16 bits; the
latter is unpacked and scored, too. The first command is about the digits, V1 of width 0.5 at 32 px.
PHOTOS is a folder of class folders, which V1 of width 0.25 is fine-tuned on from Google's TF1
weights.

Top-1 is that of the held-out images. `kernels`, `file` and `folded` tell how many times smaller
than their float32 values the kernels are in the packed file, and the whole model is in the file
without and with 16-bit batch norms. `to bound` is what kernels of few values take in the file
over the zeroth-order entropy of their positions and indices and their codebooks. All commands run
in this process, as each start costs as much as an epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tempfile
from pathlib import Path
from statistics import mean

DIGITS = ("--width_multiplier=0.5", "--image_size=32", "--prune_epochs=12", "--quantize_epochs=4")
PHOTOS = (
    *("--dataset_name=image_folder", "--width_multiplier=0.25", "--image_size=128"),
    *("--override=dataset.area_min=0.35", "--recipe=from_scratch", "--epochs=8", "--lr=1e-3"),
    *("--prune_epochs=20", "--prune_lr=5e-4", "--quantize_epochs=10", "--quantize_lr=1e-3"),
)
BITS = ("depthwise", "pointwise", "dense")
HEADS = ["model", "top-1 %", "spread", "zeros %", "kernels", "to bound", "file", "folded", "bytes"]
Row = dict[str, float]


class Bench:
    """One seed: its runs lie in a folder of their own."""

    def __init__(self, words: argparse.Namespace, folder: Path, seed: int) -> None:
        self.words, self.folder = words, folder
        self.data = [f"--data_dir={words.data_dir}"] if words.data_dir else []
        data = (*PHOTOS, *self.data) if words.data_dir else DIGITS
        self.common = ("--model_name=mobilenet_v1", *data, f"--seed={seed}", *words.flags)

    def train(self, name: str, stage: str, start: Path | str | None, *flags: str) -> Path:
        """Runs a stage unless it is there; the folder of its model."""
        folder = self.folder / name
        first = [f"--init_checkpoint={start}"] if start else []
        run("trainer", [*self.common, *flags, *first, f"--stages={stage}", f"--model_dir={folder}"])
        return folder / stage

    def pruned(self, start: Path) -> dict[str, Path]:
        """Models of the surgery and of magnitude pruning, with as many zeros."""
        from mobilenet.reporting import packed_size

        dns = self.train("dns", "prune", start, "--pruning=dns", *self.words.dns)
        self.pack(dns, False)
        lines = packed_size.contents(dns.parent / "model.packed").arrays
        hit = [line for line in lines if line.distinct is not None and line.zeros]
        share = sum(line.zeros for line in hit) / sum(line.weights for line in hit)
        flat = f"--final_sparsity=pointwise={share:.6f},classifier={share:.6f}"
        return {"dns": dns, "magnitude": self.train("magnitude", "prune", start, flat)}

    def codebook(self, start: Path, book: str) -> Path:
        bits = [f"--num_bits_{k}={n}" for k, n in zip(BITS, book.split("/"), strict=True)]
        flags = ("--quantization=codebook", *bits, *self.words.codebook)
        return self.train(f"codebook_{book.replace('/', '')}", "quantize", start, *flags)

    def pack(self, model: Path, fold: bool) -> Path:
        """The model's packed file."""
        file = model.parent / ("folded.packed" if fold else "model.packed")
        run("packer", ["pack", str(model), str(file), *(["--fold_batch_norm", *self.data] * fold)])
        return file

    def row(self, name: str, model: Path) -> Row:
        """Figures of a model."""
        from mobilenet.reporting import packed_size

        whole, small = (packed_size.contents(self.pack(model, fold)) for fold in (False, True))
        back = model.parent / "back"
        run("packer", ["unpack", str(model.parent / "folded.packed"), str(back)])
        printed = run("evaluator", [f"--model={back}", *self.data])
        kernels = [line for line in whole.arrays if line.distinct is not None]
        coded = [line for line in kernels if line.entropy is not None]
        bound = sum((line.entropy or 0) + (line.codebook or 0) for line in coded)
        row = {
            "top1": float(json.loads((model / "card.json").read_text())["metrics"]["top1"]),
            "folded top1": float(re.findall(r"^ *(\d+\.\d+) ", printed, re.MULTILINE)[0]),
            "zeros": 100 * sum(x.zeros for x in kernels) / sum(x.weights for x in kernels),
            "kernels": sum(x.plain for x in kernels) / sum(x.packed for x in kernels),
            "bound": sum(x.packed for x in coded) / bound if coded else float("nan"),
            "file": whole.ratio,
            "folded": small.ratio,
            "bytes": small.total.packed,
        }
        print(name, *(f"{key} {value:.2f}," for key, value in row.items()), flush=True)
        return row

    def rows(self) -> dict[str, Row]:
        """All models of a seed."""
        start = self.train("float", "train", self.words.checkpoint)
        models = {"float": start, **self.pruned(start)}
        rows = {name: self.row(name, model) for name, model in models.items()}
        for book in self.words.books.split(","):
            name = f"dns, codebook {book}"
            rows[name] = self.row(name, self.codebook(models["dns"], book))
        return rows


def run(name: str, words: list[str]) -> str:
    """`python -m mobilenet.NAME WORDS`, in this process; what it prints."""
    from importlib import import_module

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        import_module(f"mobilenet.{name}").run(words)
    return printed.getvalue()


def shown(name: str, rows: list[Row]) -> list[list[str]]:
    """Two lines: the model as it is, and with batch norms in 16 bits."""
    means = {key: mean(row[key] for row in rows) for key in rows[0]}
    spread, folded = (
        " ".join(f"{row[key]:.2f}" for row in rows) for key in ("top1", "folded top1")
    )
    return [
        [
            *(name, f"{means['top1']:.2f}", spread, f"{means['zeros']:.1f}"),
            *(f"{means['kernels']:.2f}", f"{means['bound']:.3f}", f"{means['file']:.2f}", "", ""),
        ],
        [
            *("  16-bit norms", f"{means['folded top1']:.2f}", folded, "", "", "", ""),
            *(f"{means['folded']:.2f}", f"{means['bytes']:,.0f}"),
        ],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="folder with train/ and val/ of photos")
    parser.add_argument("--checkpoint", help="TF1 weights of V1 0.25 at 128 px, for the photos")
    parser.add_argument("--seeds", type=int, default=3, help="float models (3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--books", default="6/6/5,4/4/4", help="bits of the codebooks")
    parser.add_argument("--dns", type=str.split, default=[], help="more flags of the surgery")
    even = ["--codebook_cells=even"]
    parser.add_argument("--codebook", type=str.split, default=even, help="flags of codebooks")
    parser.add_argument("--flags", type=str.split, default=[], help="more flags of every run")
    parser.add_argument("--folder", type=Path, help="where the runs stay; what is there is used")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    by_model: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.first, words.first + words.seeds):
            print(f"seed {seed}", flush=True)
            bench = Bench(words, (words.folder or Path(folder)) / str(seed), seed)
            for name, row in bench.rows().items():
                by_model.setdefault(name, []).append(row)
    rows = [line for name, values in by_model.items() for line in shown(name, values)]
    tables.show(HEADS, rows, 2, words.csv)


if __name__ == "__main__":
    main()
