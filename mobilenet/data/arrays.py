"""Images of a data set as arrays; what cannot be read is told by the file that is to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import data
from mobilenet.configs.dataset import DatasetConfig, Preprocessing

_BATCH = 32


@contextlib.contextmanager
def explained(dataset: DatasetConfig, *splits: str) -> Iterator[None]:
    """Around a loop over batches of `data.load`: a TensorFlow error becomes the input's own.

    Raises:
        UsageError: an image of one of `splits` cannot be read or decoded; names it.
    """
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the second: a message with raw bytes
        for split in splits:
            found = data.explain(error, dataset, split)
            if found is not None:
                raise found from None
        raise


def images(
    dataset: DatasetConfig,
    split: str,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    limit: int,
) -> npt.NDArray[np.float32]:
    """At most `limit` images of a split, evenly from all, as a model takes them.

    Args:
        dataset, split: which images.
        shape: `(height, width, channels)` of the model.
        preprocessing: that of the model.
        limit: how many.

    Returns:
        `[images, height, width, channels]`.

    Raises:
        UsageError: the data cannot be used, or an image is corrupt.
    """
    batches = data.load(
        dataset,
        split,
        image_size=shape[:2],
        batch_size=_BATCH,
        channels=shape[2],
        preprocessing=preprocessing,
        limit=limit,
    )
    with explained(dataset, split):
        return np.concatenate([batch.numpy() for batch, _ in batches])
