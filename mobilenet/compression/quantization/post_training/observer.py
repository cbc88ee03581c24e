"""What calibration images do to the tensors of a model: extremes, means, counted values,
samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.models.graph.batch_norm_folding import Array

Floats = npt.NDArray[np.float32]

_BATCH = 5  # all tensors of a batch are in memory together: 0.2 GB for V1 at 224 px
_UPPER = 1 << 16


@dataclasses.dataclass
class Observation:
    """One tensor over all images; arrays are `[channels]` unless they say otherwise.

    Attributes:
        low, high: its extremes.
        mean: over images and places.
        counts: `[65536]`, how often a value begins with these 16 bits (sign, exponent and 7 bits of
            fraction: a resolution of 1/128); `None` where it was not asked for.
        samples: `[values, channels]`, some of the values; `None` where it was not asked for.
    """

    low: Array
    high: Array
    mean: Array
    counts: npt.NDArray[np.int64] | None = None
    samples: Floats | None = None

    def span(self) -> tuple[float, float]:
        """The extremes of the whole tensor, with zero between."""
        return min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)

    def joined(self, other: Observation, share: float) -> Observation:
        """Extremes and means over the images of both; `share` of all images are this one's."""
        return Observation(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            share * self.mean + (1 - share) * other.mean,
        )

    def values(self) -> tuple[Array, npt.NDArray[np.int64]]:
        """The counted values, ascending, and their counts; each stands for those of its bin."""
        assert self.counts is not None
        present = np.flatnonzero(self.counts)
        middle = (present.astype(np.uint32) << 16) | 0x8000
        values = np.where(present % 0x8000, middle.view(np.float32), 0.0).astype(np.float64)
        order = np.argsort(values)
        return values[order], self.counts[present][order]


class Observer:
    """Passes of a plain model over images.

    A pass over the same tensors again is not traced again, which would take longer than a hundred
    images do; weights may change between passes.

    Args:
        model: functional, in float32; runs in inference mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._passes: dict[tuple[tuple[str, ...], frozenset[str]], Any] = {}

    def __call__(
        self,
        names: Sequence[str],
        images: Floats,
        counted: Collection[str] = (),
        sampled: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> dict[str, Observation]:
        """One pass.

        Args:
            names: layers whose outputs are looked at.
            images: `[n, height, width, channels]`, preprocessed.
            counted: those whose values are counted, for percentiles and the like.
            sampled: values to keep of a channel, at random places, by name.
            seed: of those places.
        """
        run = self._pass(tuple(names), frozenset({*counted, *(sampled or {})}))
        watches = {
            name: _Watch(name in counted, (sampled or {}).get(name, 0), len(images), seed)
            for name in names
        }
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            for watch, found in zip(watches.values(), run(tf.constant(batch)), strict=True):
                watch.add(len(batch), *(value.numpy() for value in found))
        return {name: watch.result() for name, watch in watches.items()}

    def _pass(self, names: tuple[str, ...], wanted: frozenset[str]) -> Any:
        found = self._passes.get((names, wanted))
        if found is None:
            outputs = [self.model.get_layer(name).output for name in names]
            reader = tf_keras.Model(self.model.inputs, outputs)
            spec = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
            found = self._passes[names, wanted] = tf.function(
                lambda batch: _figures(reader(batch, training=False), names, wanted),
                input_signature=[spec],
            )
        return found


def _figures(
    outputs: Any, names: Sequence[str], wanted: Collection[str]
) -> list[tuple[tf.Tensor, ...]]:
    """Least, largest and mean of each channel; the values themselves only where they are wanted,
    since all of them together fill the memory."""
    found = []
    for name, value in zip(names, outputs if len(names) > 1 else [outputs], strict=True):
        axes = range(value.shape.rank - 1)
        reduced = [f(value, axes) for f in (tf.reduce_min, tf.reduce_max, tf.reduce_mean)]
        found.append((*reduced, value) if name in wanted else tuple(reduced))
    return found


class _Watch:
    """One tensor, batch by batch."""

    def __init__(self, counted: bool, samples: int, images: int, seed: int) -> None:
        self.counts = np.zeros(_UPPER, np.int64) if counted else None
        self.of_an_image = -(-samples // images) if samples else 0
        self.samples: list[Floats] = []
        self.noise = np.random.default_rng(seed)
        self.low: list[Floats] = []
        self.high: list[Floats] = []
        self.means: list[Array] = []
        self.images = 0

    def add(self, images: int, low: Any, high: Any, mean: Any, value: Any = None) -> None:
        self.low.append(low)
        self.high.append(high)
        self.means.append(mean.astype(np.float64) * images)
        self.images += images
        if self.counts is not None:
            bits = value.view(np.uint16).reshape(-1, 2)[:, 1]  # little-endian
            self.counts += np.bincount(bits, minlength=_UPPER)
        if self.of_an_image:
            flat = value.reshape(images, -1, value.shape[-1])
            for image in flat:
                places = self.noise.integers(0, len(image), min(self.of_an_image, len(image)))
                self.samples.append(image[places])

    def result(self) -> Observation:
        return Observation(
            np.min(self.low, axis=0).astype(np.float64),
            np.max(self.high, axis=0).astype(np.float64),
            np.sum(self.means, axis=0) / self.images,
            self.counts,
            np.concatenate(self.samples) if self.samples else None,
        )
