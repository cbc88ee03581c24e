"""What few values a weight cost a model with real weights where nothing is trained.

    python benchmarks/few_bits.py --model models/v1 --data photos.csv

`--model` is a float model (`python -m mobilenet.tf1_loader` makes one), `--data` a list of images
with labels. Each row gives every kernel as many bits: even steps between the extremes of each
output channel, and of each whole kernel; k-means of the whole kernel; and tfmot's
`cluster_weights`, which leaves depthwise kernels alone, so that the codebook has a row
without them, too. Agreement is the share of images whose best class is the float model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BITS = {"linear by channel": (8, 6, 5, 4), "linear by kernel": (8, 6)}
BITS |= dict.fromkeys(("codebook", "codebook but depthwise", "tfmot clusters"), (6, 5, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a float model")
    parser.add_argument("--data", required=True, help="CSV list of images with labels")
    parser.add_argument("--limit", type=int, default=100_000, help="images that are scored (all)")
    parser.add_argument("--restarts", type=int, default=10, help="starts of k-means (10)")
    parser.add_argument("--rows", default=",".join(BITS), help=f"which of {', '.join(BITS)} (all)")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        from mobilenet import data
        from mobilenet.configs import dataset as datasets
        from mobilenet.data import arrays
        from mobilenet.models import saving
    loaded = saving.load(words.model)
    listed = datasets.get("image_list").replace(data_dir=words.data)
    card = loaded.card
    images = arrays.load_images(listed, "test", card.input_shape, card.preprocessing, words.limit)
    batches = data.load(listed, "test", image_size=8, batch_size=100, limit=words.limit)
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    labels = labels + (loaded.model.output_shape[-1] == 1001)

    makers = {
        "linear by channel": lambda bits: linear(loaded.model, bits, by_channel=True),
        "linear by kernel": lambda bits: linear(loaded.model, bits, by_channel=False),
        "codebook": lambda bits: codebook(loaded.model, bits, words.restarts, depthwise=True),
        "codebook but depthwise": lambda bits: codebook(loaded.model, bits, words.restarts, False),
        "tfmot clusters": lambda bits: clusters(loaded.model, bits),
    }

    def chosen(model: Any) -> Any:
        logits = [model(images[n : n + 50], training=False) for n in range(0, len(images), 50)]
        return np.argmax(np.concatenate(logits), -1)

    expected = chosen(loaded.model)
    rows: list[list[object]] = [["float", 32, f"{100 * np.mean(expected == labels):.1f}", "100.0"]]
    print(*rows[0], flush=True)
    for name in words.rows.split(","):
        for bits in BITS[name]:
            classes = chosen(makers[name](bits))
            scores = (100 * np.mean(classes == other) for other in (labels, expected))
            rows.append([name, bits, *(f"{score:.1f}" for score in scores)])
            print(*rows[-1], flush=True)
    tables.show(["kernels", "bits", "top-1 %", "agreement %"], rows, 2, words.csv)


def linear(model: Any, bits: int, by_channel: bool) -> Any:
    """Even steps, 1x1 kernels with a sign; from `--quantization linear` before it trains.

    A channel's ends are widened to zero: the operator would move them there, and the few weights of
    a channel often have none near zero.
    """
    from mobilenet.compression.quantization.weight_sharing.uniform import MinMax, SignedMinMax

    def coded(kernel: Any, matrix: bool) -> Any:
        code = (SignedMinMax if matrix else MinMax)(kernel, bits)
        low, high = code.parameters["min"], code.parameters["max"]
        ends = {"min": np.minimum(low, 0 * low), "max": np.maximum(high, 0 * high)}
        return code.weights(kernel, ends if by_channel else code.parameters).numpy()

    def every(kernel: Any, matrix: bool, axis: int) -> Any:
        if not by_channel:
            return coded(kernel, matrix)
        parts = np.split(kernel, kernel.shape[axis], axis)
        return np.concatenate([coded(part, matrix) for part in parts], axis)

    return changed(model, every)


def codebook(model: Any, bits: int, restarts: int, depthwise: bool) -> Any:
    """k-means; from `--quantization codebook` before it trains."""
    from mobilenet.compression.quantization.weight_sharing.codebook import Codebook

    def coded(kernel: Any, matrix: bool, axis: int) -> Any:
        if axis == 2 and not depthwise:
            return kernel
        code = Codebook(kernel, bits, restarts)
        return code.weights(kernel, {**code.parameters, **code.fixed}).numpy()

    return changed(model, coded)


def clusters(model: Any, bits: int) -> Any:
    """tfmot's, as `--quantization cluster` wraps them, before they train."""
    from mobilenet.compression import method as methods
    from mobilenet.configs.dataset import PREPROCESSING
    from mobilenet.configs.weight_sharing import TfmotClustering

    stage = methods.StageContext(
        1, PREPROCESSING["inception"], lambda count: np.zeros((count, 1, 1, 3), np.float32)
    )
    method = methods.create(TfmotClustering(bits), stage)
    return method.finalize(method.apply(model))


def changed(model: Any, change: Callable[[Any, bool, int], Any]) -> Any:
    """A copy whose kernels are `change(kernel, is 1x1 or dense, axis of the channels)`."""
    import tf_keras

    from mobilenet.compression.quantization.weight_sharing.base import kernel_kind
    from mobilenet.models.graph.roles import Graph, kind

    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    graph = Graph(copy)
    for layer in graph.layers:
        kernel = graph.kernel(layer)
        if kernel is not None:
            axis = 2 if kind(layer) == "DepthwiseConv2D" else kernel.shape.rank - 1
            kernel.assign(change(kernel.numpy(), kernel_kind(graph, layer) != "depthwise", axis))
    return copy


if __name__ == "__main__":
    main()
