"""Object checkpoints of TF2 (`tf.train.Checkpoint(model=...)`, `save_weights`) into our models.

Keras numbers the layers that have weights in the order of the model, so that the weights of ours
are found by that number and checked by their shapes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.tf1_loader import checkpoint, locate

_KEY = re.compile(r"(.*?)layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE")
_ORDER = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def is_tf2_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint at `path` is one of TF2.

    Raises:
        UsageError: there is no checkpoint, or a damaged one.
    """
    if locate.is_archive(Path(path)):
        return False  # only those of TF1 were published in one
    with locate.checkpoint_prefix(path) as prefix:
        if prefix.endswith(".npz"):
            return False
        return checkpoint.OBJECT_GRAPH in checkpoint.open_bundle(prefix).shapes


def read_layers(
    path: str | os.PathLike[str], names: Sequence[str]
) -> dict[str, list[npt.NDArray[np.float32]]]:
    """The weights of a Keras model by layer.

    Args:
        path: prefix, `.index` file or folder.
        names: of the layers that have weights, in the order of the model.

    Returns:
        By name, in the order of `layer.weights`; a layer beyond `names` is called by its number.

    Raises:
        UsageError: it holds no functional Keras model, or is damaged.
    """
    with locate.checkpoint_prefix(path) as prefix:
        source = checkpoint.open_bundle(prefix)
        keys_by_number: dict[int, dict[str, str]] = {}
        for key in source.shapes:
            hit = _KEY.fullmatch(key)
            if hit and hit[3] in _ORDER and "optimizer" not in hit[1]:
                keys_by_number.setdefault(int(hit[2]), {})[hit[3]] = key
        if not keys_by_number:
            raise UsageError(
                str(path), None, "a TF2 checkpoint of a tf_keras model", "save it as .keras"
            )
        return {
            names[number] if number < len(names) else f"layer {number}": [
                source.read(keys[weight]) for weight in sorted(keys, key=_ORDER.index)
            ]
            for number, keys in sorted(keys_by_number.items())
        }
