"""Codebook quantization of weights: each weight has the trained value of its k-means cluster.

The rules are those of wendazhou/nnet-compression-generalization `nnet/quantization/_codebook.py`:
one of the values is zero and fixed, and the gradient of a value is the sum over its members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.compression.method import register
from mobilenet.compression.quantization.weight_sharing.base import (
    Parametrization,
    WeightSharingMethod,
)
from mobilenet.configs.weight_sharing import CodebookQuantization
from mobilenet.typing import Float32Array, IntArray


class Codebook(Parametrization):
    """The values of a kernel, and `labels`, int32 and of its shape: the index of each weight's.

    Weights that are zero have label 0 and stay zero.
    """

    def __init__(
        self,
        kernel: Float32Array,
        bits: int,
        restarts: int = 10,
        seed: int = 0,
        cells: str = "kmeans",
    ) -> None:
        used, count = kernel != 0, 2**bits - 1
        values: Float32Array
        members: IntArray
        weights = kernel[used]
        values, members = np.unique(weights, return_inverse=True)
        if len(values) > count and cells == "even":
            values, members = _equal_width(weights, count)
        elif len(values) > count:
            values, members = _kmeans(weights, count, restarts, seed)
        if not len(values):
            values = np.zeros(1, np.float32)
        labels = np.zeros(kernel.shape, np.int32)
        labels[used] = members
        self.parameters, self.fixed = {"values": values}, {"labels": labels}

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        mask = tf.cast(tf.not_equal(kernel, 0), tf.float32)
        return spread(parameters["values"], tf.convert_to_tensor(parameters["labels"]), mask)


@register
class CodebookMethod(WeightSharingMethod):
    """Trains the values of every kernel's codebook."""

    config_type = CodebookQuantization
    config: CodebookQuantization

    def parametrize(self, kernel: Float32Array, bits: int, matrix: bool) -> Parametrization:
        del matrix
        config = self.config
        return Codebook(kernel, bits, config.restarts, self.context.seed, config.cells)


def spread(values: Any, labels: Any, mask: Any) -> tf.Tensor:
    """Each weight's value, zero where `mask` is; a value's gradient is the sum over its members.

    Values are used as the nearest float16, which takes half the bytes in a packed file.
    """

    @tf.custom_gradient
    def gather(table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(upstream * mask, labels, table.shape[0])

        return tf.gather(_to_float16(table), labels) * mask, gradient

    return gather(tf.convert_to_tensor(values))


def _to_float16(values: tf.Tensor) -> tf.Tensor:
    """The nearest float16 of each value, where it is neither zero nor infinite."""
    halves = tf.cast(tf.cast(values, tf.float16), tf.float32)
    return tf.where(tf.math.is_finite(halves) & (halves != 0), halves, values)


def _kmeans(
    weights: Float32Array, count: int, restarts: int, seed: int
) -> tuple[Float32Array, IntArray]:
    """`count` values, and the index of each weight's."""
    from sklearn.cluster import KMeans

    clusters = KMeans(count, n_init=restarts, random_state=seed).fit(weights.reshape(-1, 1))
    return clusters.cluster_centers_.ravel().astype(np.float32), clusters.labels_.astype(np.int32)


def _equal_width(weights: Float32Array, count: int) -> tuple[Float32Array, IntArray]:
    """The mean of each of `count` cells of equal width that is not empty, and the index of each
    weight's."""
    boundaries = np.linspace(weights.min(), weights.max(), count + 1, dtype=np.float64)
    cells = np.searchsorted(boundaries[1:-1], weights, side="right")
    _, members = np.unique(cells, return_inverse=True)
    means = np.bincount(members, weights=weights.astype(np.float64)) / np.bincount(members)
    return means.astype(np.float32), members.astype(np.int32)
