"""The interface of a split, shared by all sources of images, and the order of its epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf

_ORDER = 0x4F524445  # separates the seeds of the order from those of augmentation


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Classes and sizes of a data set.

    Attributes:
        num_classes: classes after the label offset.
        labels: class names by index.
        sizes: images by split, without those left out.
        splits: the splits that exist; if only one part is held out, it is both validation and
            test.
        skipped: corrupt images left out, by split (with `skip_corrupt`).
        notes: what else is left out of the data, or may not be meant, a line each.
        assumed: by split, what stands in for images that the data do not have, in a line.
        empty: names of the classes without a training image, where that is known.
        multi_label: an image may have any number of labels; batches have `[batch, labels]` of 0
            and 1, and `num_classes` is the number of labels.
    """

    num_classes: int
    labels: tuple[str, ...]
    sizes: Mapping[str, int]
    splits: tuple[str, ...]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    empty: tuple[str, ...] = ()
    multi_label: bool = False


class Split(Protocol):
    """A split of a data set: `size` images, as items to order and to read."""

    @property
    def size(self) -> int: ...

    def in_order(self) -> tf.data.Dataset:
        """Each item once."""

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        """Endless items, each epoch in its own order, starting at index `start`."""

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded image and the class index of an item."""


def order_seed(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The int64 `[2]` seed of an epoch's order."""
    return tf.random.fold_in(tf.constant([seed, _ORDER], tf.int64), epoch)


def epochs(size: int, start: int, items: Callable[[tf.Tensor], tf.data.Dataset]) -> tf.data.Dataset:
    """Chains `items(epoch)` of `size` items each, starting at index `start` of the chain."""
    return tf.data.Dataset.counter(start // size).flat_map(items).skip(start % size)
