"""A loaded model in the three forms of TF2, written whole or not at all, and verified equal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet import files
from mobilenet.configs.card import CARD, Card
from mobilenet.errors import UsageError, VerificationError, one_of
from mobilenet.models import saving
from mobilenet.models.builder import IMAGENET_SHAPE

FORMS = ("ckpt", "tf", "keras")
SAVED_MODEL, CHECKPOINT, RANGES = "saved_model", "checkpoint", "ranges.json"
_TOLERANCE = 1e-5  # one program in three graphs: sums may be taken in another order
_IMAGES = 2


def save_keras_checkpoint(
    keras_model: Any, save_path: str | os.PathLike[str], save_format: str = "ckpt"
) -> str:
    """Saves a model in one form of TF2; an older one of that form at the path is replaced.

    Args:
        keras_model: a tf_keras model.
        save_path: a folder (`ckpt`, `tf`) or a `.keras` file.
        save_format: `ckpt`, for `tf.train.Checkpoint(model=...)`; `tf`, a SavedModel; `keras`.

    Returns:
        What to load: the prefix of the checkpoint, the folder or the file.

    Raises:
        UsageError: another format, or a path that holds other files or cannot be written.
    """
    import tensorflow as tf

    one_of("save_format", save_format, FORMS)
    target = Path(save_path)
    _check_own(target, save_format)
    with files.replacing(target) as temporary:
        if save_format == "ckpt":
            saved = tf.train.Checkpoint(model=keras_model)
            prefix = tf.train.CheckpointManager(saved, str(temporary), max_to_keep=1).save()
            target = target / Path(prefix).name
        else:
            keras_model.save(temporary, save_format=save_format)
    return str(target)


def save_formats(
    model: Any,
    card: Card,
    output: str | os.PathLike[str],
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> float:
    """Writes `model.keras` and `card.json`, `saved_model/` and `checkpoint/` into one new folder.

    Args:
        model: a model.
        card: its card.
        output: the folder.
        extra: further JSON files by name.
        overwrite: replace a folder that holds a model.

    Returns:
        The largest difference between the outputs of the model and of the three forms.

    Raises:
        VerificationError: the outputs of a form differ from the model's; nothing is written.
        UsageError: the folder exists or cannot be written.
    """
    target = Path(output)
    check_target(target, "output", overwrite)
    with files.replacing(target) as temporary:
        saving.save(model, temporary, card)
        save_keras_checkpoint(model, temporary / SAVED_MODEL, "tf")
        files.write_json(temporary / SAVED_MODEL / CARD, card.to_json())
        prefix = save_keras_checkpoint(model, temporary / CHECKPOINT, "ckpt")
        for name, value in (extra or {}).items():
            files.write_json(temporary / name, value)
        difference = _difference(model, temporary, prefix)
        if not difference <= _TOLERANCE:
            raise VerificationError(
                str(target),
                None,
                f"three forms of equal outputs (largest difference {difference:g})",
                "nothing was written",
            )
    return difference


def _check_own(target: Path, form: str) -> None:
    """Refuses a path that holds anything but an older model of this form."""
    if form == "keras":
        if target.suffix != ".keras" or target.is_dir():
            raise UsageError("save_path", str(target), "a .keras file", f"try {target}.keras")
        return
    mark = {"ckpt": "checkpoint", "tf": "saved_model.pb"}[form]
    taken = target.is_dir() and any(target.iterdir()) and not (target / mark).is_file()
    if taken or target.is_file():
        raise UsageError("save_path", str(target), "a new folder", "choose another")


def check_target(output: str | os.PathLike[str], parameter: str, overwrite: bool) -> None:
    """Refuses a folder that `save` would not write; see `files.check_target`."""
    files.check_target(output, parameter, replaces=(saving.MODEL, "a model"), overwrite=overwrite)


def _difference(model: Any, folder: Path, prefix: str) -> float:
    import tensorflow as tf
    import tf_keras

    restored = tf_keras.models.clone_model(model)
    status = tf.train.Checkpoint(model=restored).restore(prefix)
    status.assert_existing_objects_matched().expect_partial()
    models = [restored, saving.load(folder).model, saving.load(folder / SAVED_MODEL).model]
    shape = [side or IMAGENET_SHAPE[0] for side in model.input_shape[1:]]
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (_IMAGES, *shape)).astype(np.float32)
    expected = _outputs(model, images)
    return max(float(np.abs(_outputs(other, images) - expected).max()) for other in models)


def _outputs(model: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    outputs: npt.NDArray[np.float32] = model(images, training=False).numpy()
    return outputs
