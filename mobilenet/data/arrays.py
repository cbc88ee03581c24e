"""Images of a data set as arrays; an error names the file that cannot be read."""

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
def explain_errors(dataset: DatasetConfig, *splits: str) -> Iterator[None]:
    """Turns a TensorFlow error in a loop over batches of `data.load` into one about the input.

    Raises:
        UsageError: an image of one of `splits` cannot be read or decoded; names it.
    """
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the second: a message with raw bytes
        for split in splits:
            usage_error = data.explain(error, dataset, split)
            if usage_error is not None:
                raise usage_error from None
        raise


def load_images(
    dataset: DatasetConfig,
    split: str,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    limit: int,
) -> npt.NDArray[np.float32]:
    """Loads at most `limit` images, sampled evenly from a split and preprocessed.

    Args:
        dataset, split: the images.
        shape: `(height, width, channels)` of the model's input.
        preprocessing: of the model.
        limit: the largest number of images.

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
    with explain_errors(dataset, split):
        return np.concatenate([batch.numpy() for batch, _ in batches])
