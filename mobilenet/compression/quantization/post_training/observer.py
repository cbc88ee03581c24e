"""Statistics of a model's tensors on calibration images: extremes, means, counts and samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.typing import Float32Array, Float64Array

_BATCH = 5  # all tensors of a batch are in memory together: 0.2 GB for V1 at 224 px
_BINS = 1 << 16
Range = tuple[float, float]


@dataclasses.dataclass
class Observation:
    """One tensor over all images; arrays are `[channels]` unless stated otherwise.

    Attributes:
        low, high: its extremes.
        mean: over images and positions.
        counts: `[65536]`, the number of values that start with these 16 bits (sign, exponent and 7
            bits of fraction: a resolution of 1/128); `None` where it was not asked for.
        samples: `[values, channels]`, some of the values; `None` where it was not asked for.
    """

    low: Float64Array
    high: Float64Array
    mean: Float64Array
    counts: npt.NDArray[np.int64] | None = None
    samples: Float32Array | None = None

    def range(self) -> Range:
        """The extremes of the whole tensor, extended to zero."""
        return min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)

    def joined(self, other: Observation, share: float) -> Observation:
        """Extremes and means over the images of both; `share` of all images are this one's."""
        return Observation(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            share * self.mean + (1 - share) * other.mean,
        )

    def values(self) -> tuple[Float64Array, npt.NDArray[np.int64]]:
        """The centers of the bins that hold values, ascending, and their counts."""
        assert self.counts is not None
        bins = np.flatnonzero(self.counts)
        centers = (bins.astype(np.uint32) << 16) | 0x8000
        values = np.where(bins % 0x8000, centers.view(np.float32), 0.0).astype(np.float64)
        order = np.argsort(values)
        return values[order], self.counts[bins][order]


class Observer:
    """Passes of a plain model over images.

    A pass over the same tensors again is not traced again, which would take longer than a hundred
    images do; weights may change between passes.

    Args:
        model: functional, in float32; runs in inference mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._functions: dict[tuple[tuple[str, ...], frozenset[str]], Any] = {}

    def __call__(
        self,
        names: Sequence[str],
        images: Float32Array,
        counted: Collection[str] = (),
        sampled: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> dict[str, Observation]:
        """One pass.

        Args:
            names: layers whose outputs are observed.
            images: `[n, height, width, channels]`, preprocessed.
            counted: those whose values are counted, for percentiles and the like.
            sampled: the number of values to keep per channel, at random positions, by name.
            seed: of those positions.
        """
        sampled = sampled or {}
        run = self._function(tuple(names), frozenset({*counted, *sampled}))
        accumulators = {
            name: _Accumulator(name in counted, sampled.get(name, 0), len(images), seed)
            for name in names
        }
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            statistics = run(tf.constant(batch))
            for accumulator, values in zip(accumulators.values(), statistics, strict=True):
                accumulator.add(len(batch), *(value.numpy() for value in values))
        return {name: accumulator.result() for name, accumulator in accumulators.items()}

    def _function(self, names: tuple[str, ...], with_values: frozenset[str]) -> Any:
        function = self._functions.get((names, with_values))
        if function is None:
            outputs = [self.model.get_layer(name).output for name in names]
            reader = tf_keras.Model(self.model.inputs, outputs)
            spec = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
            function = self._functions[names, with_values] = tf.function(
                lambda batch: _statistics(reader(batch, training=False), names, with_values),
                input_signature=[spec],
            )
        return function


def _statistics(
    outputs: Any, names: Sequence[str], with_values: Collection[str]
) -> list[tuple[tf.Tensor, ...]]:
    """Minimum, maximum and mean of each channel.

    The values themselves follow only where they are needed, since all of them together would fill
    the memory.
    """
    statistics = []
    for name, value in zip(names, outputs if len(names) > 1 else [outputs], strict=True):
        axes = range(value.shape.rank - 1)
        reduced = [f(value, axes) for f in (tf.reduce_min, tf.reduce_max, tf.reduce_mean)]
        statistics.append((*reduced, value) if name in with_values else tuple(reduced))
    return statistics


class _Accumulator:
    """The statistics of one tensor, batch by batch."""

    def __init__(self, counted: bool, samples: int, images: int, seed: int) -> None:
        self.counts = np.zeros(_BINS, np.int64) if counted else None
        self.samples_per_image = -(-samples // images) if samples else 0
        self.samples: list[Float32Array] = []
        self.rng = np.random.default_rng(seed)
        self.low: list[Float32Array] = []
        self.high: list[Float32Array] = []
        self.sums: list[Float64Array] = []
        self.images = 0

    def add(self, images: int, low: Any, high: Any, mean: Any, value: Any = None) -> None:
        self.low.append(low)
        self.high.append(high)
        self.sums.append(mean.astype(np.float64) * images)
        self.images += images
        if self.counts is not None:
            bits = value.view(np.uint16).reshape(-1, 2)[:, 1]  # little-endian
            self.counts += np.bincount(bits, minlength=_BINS)
        if self.samples_per_image:
            for image in value.reshape(images, -1, value.shape[-1]):
                count = min(self.samples_per_image, len(image))
                self.samples.append(image[self.rng.integers(0, len(image), count)])

    def result(self) -> Observation:
        return Observation(
            np.min(self.low, axis=0).astype(np.float64),
            np.max(self.high, axis=0).astype(np.float64),
            np.sum(self.sums, axis=0) / self.images,
            self.counts,
            np.concatenate(self.samples) if self.samples else None,
        )
