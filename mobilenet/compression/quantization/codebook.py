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
from mobilenet.compression.quantization.few_values import Code, FewValuesMethod
from mobilenet.configs.few_values import CodebookQuantization


class Codebook(Code):
    """Values of a kernel, and `labels`, int32 and of its shape: which of them each weight has.

    Weights that are zero have label 0 and no value.
    """

    def __init__(
        self, kernel: npt.NDArray[np.float32], bits: int, restarts: int = 10, seed: int = 0
    ) -> None:
        used = kernel != 0
        values, members = _cluster(kernel[used], 2**bits - 1, restarts, seed)
        labels = np.zeros(kernel.shape, np.int32)
        labels[used] = members
        self.numbers, self.fixed = {"values": values}, {"labels": labels}

    def weights(self, kernel: Any, numbers: Mapping[str, Any]) -> tf.Tensor:
        mask = tf.cast(tf.not_equal(kernel, 0), tf.float32)
        return spread(numbers["values"], tf.convert_to_tensor(numbers["labels"]), mask)


@register
class CodebookMethod(FewValuesMethod):
    """Trains the values of every kernel's codebook."""

    config_type = CodebookQuantization
    config: CodebookQuantization

    def code(self, kernel: npt.NDArray[np.float32], bits: int, matrix: bool) -> Code:
        del matrix
        return Codebook(kernel, bits, self.config.restarts, self.stage.seed)


def spread(values: Any, labels: Any, mask: Any) -> tf.Tensor:
    """Each weight's value, zero where `mask` is; a value's gradient is the sum over its members."""

    @tf.custom_gradient
    def of(table: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(upstream * mask, labels, table.shape[0])

        return tf.gather(table, labels) * mask, gradient

    return of(tf.convert_to_tensor(values))


def _cluster(
    weights: npt.NDArray[np.float32], count: int, restarts: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """At most `count` values, and the index of each weight's."""
    from sklearn.cluster import KMeans

    values, members = np.unique(weights, return_inverse=True)
    if not len(values):
        return np.zeros(1, np.float32), np.zeros(0, np.int32)
    if len(values) > count:
        found = KMeans(count, n_init=restarts, random_state=seed).fit(weights.reshape(-1, 1))
        values, members = found.cluster_centers_.ravel(), found.labels_
    return values.astype(np.float32), members.astype(np.int32)
