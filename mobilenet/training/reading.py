"""Errors that come up while images are read, told by the file that is to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from mobilenet import data
from mobilenet.configs.dataset import DatasetConfig


@contextlib.contextmanager
def explained(dataset: DatasetConfig, *splits: str) -> Iterator[None]:
    """Around a loop over batches of `data.load`: a TensorFlow error becomes the input's own.

    Raises:
        UsageError: an image of one of `splits` cannot be read or decoded; names it.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for split in splits:
            found = data.explain(error, dataset, split)
            if found is not None:
                raise found from None
        raise
