"""The images of a run: batches for training and evaluation, and samples for methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import data
from mobilenet.configs.dataset import UNIFORM, Preprocessing
from mobilenet.configs.run import RunConfig
from mobilenet.data import arrays, datasets
from mobilenet.data.in_memory import evenly_spaced
from mobilenet.data.preprocessing import is_varied
from mobilenet.data.split import Split


class RunData:
    """The splits of a run's data set.

    Args:
        config: of the run.
        preprocessing: how pixels become inputs.
    """

    def __init__(self, config: RunConfig, preprocessing: Preprocessing) -> None:
        self.config, self.preprocessing = config, preprocessing
        self._opened: dict[str, tf.data.Dataset] = {}
        self._held_out: dict[str, Split] = {}

    def dataset(
        self,
        split: str,
        batch: int = 0,
        start: int | None = None,
        data_service: str | None = None,
        context: tf.distribute.InputContext | None = None,
        columns: npt.NDArray[np.float32] | None = None,
    ) -> tf.data.Dataset:
        """Batches of a split; held-out ones are cached, as opening decodes image folders.

        Args:
            split: train, validation or test.
            batch: images a step, on all replicas together.
            start: step to begin training with; held-out batches without.
            data_service: address of a tf.data service.
            context: of the worker that reads its part of each step.
            columns: of training, see `data.load`.
        """
        if start is None and split in self._opened:
            return self._opened[split]
        batches = data.load(
            self.config.dataset,
            split,
            image_size=self.config.image_size,
            channels=self.config.channels,
            preprocessing=self.preprocessing,
            batch_size=batch or self.config.train.batch_size,
            training=start is not None,
            seed=self.config.seed,
            start_step=start or 0,
            input_context=context,
            data_service=data_service,
            opened=self._split(split) if start is None else None,
            columns=columns,
        )
        if start is None:
            self._opened[split] = batches
        return batches

    def numbered_images(self, batch: int) -> tf.data.Dataset | None:
        """Each training image once, in batches with their numbers `[batch]` as float32; `None`
        where images are varied, are read by a service, or have no numbers.
        """
        config = self.config
        if is_varied(config.dataset) or config.data_service is not None:
            return None
        split = self._split("train")
        if not datasets.has_numbers(split):
            return None
        numbers = np.arange(split.size, dtype=np.float32)[:, None]
        # A balanced epoch does not have every image.
        once = config.replace(dataset=config.dataset.replace(sampling=UNIFORM))
        data_once = RunData(once, self.preprocessing)
        each = data_once.dataset("train", 1, 0, columns=numbers).take(split.size).unbatch()
        return each.map(lambda image, label: (image, label[-1])).batch(batch)

    def _split(self, name: str) -> Split:
        """A split, opened once."""
        if name not in self._held_out:
            self._held_out[name] = datasets.open_split(self.config.dataset, name)
        return self._held_out[name]

    def training_labels(self) -> npt.NDArray[Any] | None:
        """Class indices of all training images `[images]`, or `[images, labels]` of 0 and 1.

        `None` of records, which are not read for that.
        """
        labels: npt.NDArray[Any] | None = getattr(self._split("train"), "labels", None)
        return labels

    def test_names(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The files of test images, relative to the folder of the data; none of other sources.

        Bytes of a name that are no UTF-8 are written as escapes.
        """
        opened = self._split("test")
        if not isinstance(opened, datasets.FileSplit):
            return ()
        names = (opened.files.name(number) for number in numbers)
        return tuple(name.encode("utf-8", "backslashreplace").decode() for name in names)

    def first_images(self, count: int) -> npt.NDArray[np.float32]:
        """The first training inputs, with shuffled classes and augmentation as in training."""
        return self.first_examples(count)[0]

    def first_examples(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The same with their labels, `[count]`."""
        images: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[np.int64]] = []
        with arrays.explain_errors(self.config.dataset, "train"):
            for batch, own in self.dataset("train", min(count, 32), 0).as_numpy_iterator():
                images.append(batch)  # of a few images there are smaller batches
                labels.append(own)
                if sum(map(len, labels)) >= count:
                    break
        return np.concatenate(images)[:count], np.concatenate(labels).astype(np.int64)[:count]

    def held_out(self, limit: int) -> npt.NDArray[np.float32]:
        """At most `limit` test images, sampled evenly from the split."""
        with arrays.explain_errors(self.config.dataset, "test"):
            every = np.concatenate([images.numpy() for images, _ in self.dataset("test")])
        images: npt.NDArray[np.float32] = every[evenly_spaced(len(every), limit)]
        return images

    def calibration_images(self, count: int) -> npt.NDArray[np.float32]:
        """Training images without augmentation, sampled evenly from all."""
        return arrays.load_images(
            self.config.dataset, "train", self.config.input_shape, self.preprocessing, count
        )
