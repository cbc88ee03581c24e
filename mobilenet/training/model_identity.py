"""Which model a run is of: the contents of a user's own model as a digest, without TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError


def identified(
    config: RunConfig, folder: Path, stored: RunConfig | None, model: Any = None
) -> RunConfig:
    """The config of a run with what tells its own model from others.

    Args:
        config: as asked for; that of a MobileNet is returned as it is.
        folder: of the run.
        stored: config of the run in it, if there is one that continues. It has the model of a file
            of the same name that is no longer there.
        model: of tf_keras, where it is one in memory.

    Raises:
        UsageError: there is no such file, or it has another content than that of the run.
    """
    own = config.model
    if not isinstance(own, OwnModel):
        return config
    before = stored.model if stored is not None else None
    known = before if isinstance(before, OwnModel) else None
    digest = _digest_of_model(model) if model is not None else _digest_of_files(own.path)
    if not digest and known is not None and known.name == own.name:
        digest = known.sha256
    if not digest:
        raise UsageError("model", own.path, "a saved model; there is nothing there")
    if own.sha256 not in ("", digest):
        expected = "the model that the config was written for; this one has another content"
        raise UsageError("model", own.path or own.name, expected)
    if known is not None and known.sha256 != digest:
        expected = f"the model that the run in {folder} has started from; this one has another "
        remedy = "choose another `model_dir`, or `overwrite` to start again"
        raise UsageError("model", own.path or own.name, expected + "content", remedy)
    if known is not None:  # under whatever path
        own = own.replace(name=known.name, path=known.path)
    return config.replace(model=own.replace(sha256=digest))


def _digest_of_files(path: str | None) -> str:
    """SHA-256 of a file, of all files of a folder, or of a checkpoint; empty if there is none."""
    digest, found = hashlib.sha256(), False
    for name, file in files_of(path):
        found = True
        digest.update(f"{name}\0".encode())
        digest.update(files.sha256(file))
    return digest.hexdigest() if found else ""


def files_of(path: str | None) -> Iterator[tuple[str, Path]]:
    """The files of a saved model, with their names inside it; none if there is no model."""
    if path is None:
        return
    whole = Path(path)
    if whole.is_file():
        yield "", whole
    elif whole.is_dir():
        every = sorted(file for file in whole.rglob("*") if file.is_file())
        yield from ((file.relative_to(whole).as_posix(), file) for file in every)
    elif whole.parent.is_dir():  # a checkpoint is given by the name that its files begin with
        own = sorted(f for f in whole.parent.iterdir() if f.name.startswith(f"{whole.name}."))
        yield from ((file.suffix, file) for file in own if file.is_file())


def _digest_of_model(model: Any) -> str:
    """SHA-256 of layers and weights, whatever names the layers got in this process."""
    from mobilenet.models.graph import flatten

    digest = hashlib.sha256()
    for layer in flatten.innermost_layers(model):
        config = {key: value for key, value in layer.get_config().items() if key != "name"}
        text = json.dumps([type(layer).__name__, config], sort_keys=True, default=str)
        digest.update(text.encode())
        for weight in layer.get_weights():
            digest.update(weight.tobytes())
    return digest.hexdigest()
