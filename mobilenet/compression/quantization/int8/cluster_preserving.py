"""Cluster-preserving training (tfmot: CQAT): a clustered kernel keeps its few distinct values.

Each weight stays in its cluster. After an optimizer step every cluster is set to the mean of its
weights, which for plain gradient descent is the update by the cluster's mean gradient (Han et al.,
arXiv 1510.00149, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.models.graph import variables

_MAX_VALUES = 256  # of a kernel that counts as clustered: the indices of 8 bits
_MIN_WEIGHTS = 8  # per cluster, on average; a trained dense kernel hardly repeats a value


def is_clustered(kernel: npt.NDArray[Any]) -> bool:
    """Whether the nonzero weights share a few distinct values, at least two."""
    weights = kernel[kernel != 0]
    values = len(np.unique(weights))
    return 1 < values <= min(_MAX_VALUES, len(weights) // _MIN_WEIGHTS)


class Clusters(tf.Module):
    """The cluster of every weight, int32 and of the kernel's shape, by layer name."""

    def __init__(self, kernels: Mapping[str, tf.Variable]) -> None:
        """Selects the kernels that are clustered; zero is a cluster like the others."""
        super().__init__(name="clusters")
        self.kernels = {n: k for n, k in kernels.items() if is_clustered(k.numpy())}
        self.labels: dict[str, tf.Variable] = {}
        self.counts: dict[str, int] = {}
        for name, kernel in self.kernels.items():
            values, labels = np.unique(kernel.numpy(), return_inverse=True)
            self.counts[name] = len(values)
            shaped = labels.reshape(kernel.shape).astype(np.int32)
            self.labels[name] = variables.state_variable(shaped, f"{name}_clusters")

    def apply(self) -> None:
        """Sets every weight to the mean of its cluster."""
        for name, kernel in self.kernels.items():
            count = self.counts[name]

            def share(target: Any, labels: Any, count: int = count) -> None:
                means = tf.math.unsorted_segment_mean(tf.cast(target, tf.float32), labels, count)
                target.assign(tf.cast(tf.gather(means, labels), target.dtype))

            variables.update(kernel, share, [self.labels[name]])
