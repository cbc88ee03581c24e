"""Codebook quantization of weights: each stays in its cluster of k-means, whose value trains.

The rules are those of wendazhou/nnet-compression-generalization `nnet/quantization/_codebook.py`:
one code is kept for zero, and a value takes the sum of its members' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.method import register
from mobilenet.compression.quantization.weight_sharing.base import (
    Parametrization,
    WeightSharingMethod,
)
from mobilenet.configs.weight_sharing import CodebookQuantization


class Codebook(Parametrization):
    """Values of a kernel, and `labels`, int32 and of its shape: which of them each weight has.

    Weights that are zero have label 0 and no value.
    """

    def __init__(
        self,
        kernel: npt.NDArray[np.float32],
        bits: int,
        restarts: int = 10,
        seed: int = 0,
        cells: str = "kmeans",
    ) -> None:
        used, count = kernel != 0, 2**bits - 1
        values: npt.NDArray[np.float32]
        members: npt.NDArray[Any]
        weights = kernel[used]
        values, members = np.unique(weights, return_inverse=True)
        if len(values) > count and cells == "even":
            values, members = _even(weights, count)
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

    def code(self, kernel: npt.NDArray[np.float32], bits: int, matrix: bool) -> Parametrization:
        del matrix
        config = self.config
        return Codebook(kernel, bits, config.restarts, self.context.seed, config.cells)


def spread(values: Any, labels: Any, mask: Any) -> tf.Tensor:
    """Each weight's value, zero where `mask` is; a value's gradient is the sum over its members.

    Values are used as the nearest float16, which takes half the bytes in a packed file.
    """

    @tf.custom_gradient
    def of(table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(upstream * mask, labels, table.shape[0])

        return tf.gather(_halved(table), labels) * mask, gradient

    return of(tf.convert_to_tensor(values))


def _halved(values: tf.Tensor) -> tf.Tensor:
    """The nearest float16 of each value, where it is neither zero nor infinite."""
    halves = tf.cast(tf.cast(values, tf.float16), tf.float32)
    return tf.where(tf.math.is_finite(halves) & (halves != 0), halves, values)


def _kmeans(
    weights: npt.NDArray[np.float32], count: int, restarts: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """`count` values, and the index of each weight's."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=restarts, random_state=seed).fit(weights.reshape(-1, 1))
    return found.cluster_centers_.ravel().astype(np.float32), found.labels_.astype(np.int32)


def _even(
    weights: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """The means of `count` cells of one width that cover the weights, without empty ones, and the
    index of each weight's."""
    edges = np.linspace(weights.min(), weights.max(), count + 1, dtype=np.float64)
    cells = np.searchsorted(edges[1:-1], weights, side="right")
    _, members = np.unique(cells, return_inverse=True)
    means = np.bincount(members, weights=weights.astype(np.float64)) / np.bincount(members)
    return means.astype(np.float32), members.astype(np.int32)
