"""Weights to start from: what is loaded by name and shape is listed, and so is what is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.models import folder
from mobilenet.tf1_loader import keras_applications

log = logging.getLogger("mobilenet")
_HEAD = "Logits"


def load_into(model: Any, path: str, config: MobileNetConfig) -> None:
    """Fills `model` from a model folder, `.keras`, SavedModel or a keras.applications `.h5`.

    The head stays new where the class counts differ; everything else must fit.

    Raises:
        UsageError: the file is none of these, or belongs to another net.
    """
    if Path(path).suffix in (".h5", ".hdf5"):
        report = keras_applications.load_weights(model, path, config)
        loaded, new = list(report.loaded), list(report.new)
    else:
        loaded, new = _by_name(model, folder.load(path).model, path)
    log.info(
        "%s: weights of %d layers loaded%s",
        path,
        len(loaded),
        f"; new: {shorten(new)}" if new else "",
    )


def _by_name(model: Any, source: Any, path: str) -> tuple[list[str], list[str]]:
    theirs = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    values: dict[str, list[np.ndarray]] = {}
    problems = [f"{name}: left over" for name in theirs if name not in ours and name != _HEAD]
    new = []
    for name, layer in ours.items():
        wanted = [tuple(w.shape) for w in layer.weights]
        got = [w.shape for w in theirs.get(name, [])]
        if got == wanted:
            values[name] = theirs[name]
        elif name == _HEAD and (not got or got[0][:-1] == wanted[0][:-1]):
            new.append(name)
        else:
            problems.append(f"{name}: there {got or 'absent'}, here {wanted}")
    if problems:
        raise UsageError(
            "--init_checkpoint",
            path,
            f"weights of this net; {len(problems)} layers do not fit: {shorten(problems)}",
            "give the --model_name and --width_multiplier that it was made with",
        )
    for name, arrays in values.items():
        ours[name].set_weights(arrays)
    return list(values), new
