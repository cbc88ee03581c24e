"""The interface of a split, shared by all sources of images, and the order of its epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.errors import UsageError

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


@dataclasses.dataclass(frozen=True)
class Steps:
    """How an epoch is divided into batches, and a batch into the shares of workers.

    Attributes:
        batch_size: images a step, of all workers together.
        count: steps an epoch; images that are left after so many full batches are left out.
        worker: index of the one that reads.
        workers: each reads as many images of a step.
        replicas: of a worker; each gets a batch of its own.
    """

    batch_size: int
    count: int
    worker: int = 0
    workers: int = 1
    replicas: int = 1

    @classmethod
    def of(
        cls, size: int, batch_size: int, context: tf.distribute.InputContext | None = None
    ) -> Steps:
        """The full batches in `size` images; of fewer images than a batch, one smaller batch.

        Raises:
            UsageError: the replicas cannot have batches of one size.
        """
        context = context or tf.distribute.InputContext()
        every, workers = context.num_replicas_in_sync, context.num_input_pipelines
        if batch_size % every or every % workers:
            expected = f"a multiple of the {every} replicas on {workers} workers"
            raise UsageError("batch_size", batch_size, expected)
        if size < every:
            raise UsageError("data_dir", f"{size} images", f"at least {every}, one a replica")
        batch_size = min(batch_size, size - size % every)
        replicas = every // workers
        return cls(batch_size, size // batch_size, context.input_pipeline_id, workers, replicas)

    @property
    def share(self) -> int:
        """Images of a step that the worker reads."""
        return self.batch_size // self.workers

    @property
    def replica_batch(self) -> int:
        """Images of a step that a replica gets."""
        return self.share // self.replicas

    def positions(self, items: tf.Tensor) -> tf.Tensor:
        """The positions in all epochs of images that the worker counts from the first epoch on."""
        if self.workers == 1:
            return items
        return items // self.share * self.batch_size + self.worker * self.share + items % self.share

    def part(self, item: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, int]]:
        """The step of the batch of a replica that begins with an item, and its part of the step.

        The item is counted as in `positions`; the part is the number of its first image, and the
        images of all replicas.
        """
        position = self.positions(item)
        first = tf.cast(position % self.batch_size, tf.int32)
        return position // self.batch_size, (first, self.batch_size)


def part_of(size: int, worker: int, workers: int) -> tuple[int, int]:
    """Begin and end of the part of `size` items that is a worker's; each item is in one part."""
    return worker * size // workers, (worker + 1) * size // workers


class Split(Protocol):
    """A split of a data set: `size` images, as items to order and to read."""

    @property
    def size(self) -> int: ...

    def items(self, numbers: npt.NDArray[np.int64]) -> tf.data.Dataset:
        """The items with these numbers, in this order."""

    def epoch(
        self, seed: int, number: tf.Tensor, start: tf.Tensor, steps: Steps
    ) -> tf.data.Dataset:
        """The worker's items of an epoch in their random order, from step `start` on."""

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded image and the class index of an item."""


def captured(values: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """A tensor that traced functions refer to; a constant would be copied into each of them."""
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(values, dtype)


def order_seed(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The int64 `[2]` seed of an epoch's order."""
    return tf.random.fold_in(tf.constant([seed, _ORDER], tf.int64), epoch)
