"""What only the data can tell of a run: its classes, its steps, what fits their number."""

from __future__ import annotations

from pathlib import Path

from mobilenet import data
from mobilenet.configs import recipes
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import Card
from mobilenet.configs.distillation import AUTO, NONE, START, Distillation
from mobilenet.configs.quantization import PostTraining
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.models import saving


def completed(
    config: RunConfig, classes_given: bool, decay_given: bool, teacher_given: bool = False
) -> tuple[RunConfig, data.DatasetInfo]:
    """Fills in what only the data and the start can tell: the class count, a batch-norm momentum
    that fits, whether stages distil from what they start with, and the channels of a start that
    was thinned.

    Args:
        config: as recipes and flags made it.
        classes_given: `num_classes` was asked for and must match the data.
        decay_given: `batch_norm_decay` was asked for and stays.
        teacher_given: `distillation.teacher` was asked for and must serve a stage.

    Raises:
        UsageError: the data cannot be used, its classes do not match, there are fewer images than a
            batch, or no stage has a use for the teacher.
    """
    if teacher_given:
        _check_teacher(config)
    info = data.describe(config.dataset)
    model = _thinned(config).replace(classifier_activation=None)
    if classes_given and model.num_classes != info.num_classes:
        raise UsageError(
            "--num_classes",
            model.num_classes,
            f"{info.num_classes}, the classes of {config.dataset.name}",
            "leave it out",
        )
    model = model.replace(num_classes=info.num_classes)
    steps = steps_per_epoch(info, config.train.batch_size)
    if not decay_given:
        decay = recipes.batch_norm_decay(steps * config.train.epochs, model.batch_norm_decay)
        model = model.replace(batch_norm_decay=decay)
    distillation = _decided(config.distillation, info)
    return config.replace(model=model, distillation=distillation), info


def _thinned(config: RunConfig) -> MobileNetConfig:
    """The model, with the channels of the one that the weights come from where that is thin."""
    place = Path(config.init_checkpoint or "")
    if config.init_checkpoint is None or not (place / saving.CARD).is_file():
        return config.model
    start = saving.architecture(Card.from_file(place / saving.CARD))
    if config.model.channels or type(start) is not type(config.model):
        return config.model
    return config.model.replace(channels=start.channels)


def _check_teacher(config: RunConfig) -> None:
    """A teacher that was asked for has a stage to teach, in a run that trains at all."""
    teacher, stages = config.distillation.teacher, config.stages
    fits = isinstance(config.quantization, PostTraining)
    later = [s for s in stages if s == "prune" or (s == "quantize" and not fits)]
    able = later if teacher == START else [s for s in stages if s == "train" or s in later]
    if teacher in (AUTO, NONE) or able or stages == ("convert",):
        return
    raise UsageError(
        "--distill",
        teacher,
        "a stage that has a use for it: prune, or quantize with training"
        + ("" if teacher == START else ", or train"),
        "leave it out, or add the stage to --stages",
    )


def _decided(distillation: Distillation, info: data.DatasetInfo) -> Distillation:
    if distillation.teacher != AUTO:
        return distillation
    few = info.sizes["train"] < recipes.FEW_IMAGES * info.num_classes
    return distillation.replace(teacher=START if few else NONE)


def steps_per_epoch(info: data.DatasetInfo, batch: int) -> int:
    """Whole batches in the training images.

    Raises:
        UsageError: there are no training images, or fewer than a batch.
    """
    images = info.sizes.get("train", 0)
    if not images:
        raise UsageError("--data_dir", None, "images to train on; all are held out", "add a split")
    if images < batch:
        raise UsageError("--batch_size", batch, f"at most {images}, the number of training images")
    return images // batch
