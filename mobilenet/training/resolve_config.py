"""The fields of a run's config that depend on its data and on its initial weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from mobilenet import data
from mobilenet.configs import augmentation, recipes, timm_models
from mobilenet.configs.archs import (
    LOADED_BATCH_NORM_DECAY,
    NEW_BATCH_NORM_DECAY,
    MobileNetConfig,
)
from mobilenet.configs.card import CARD, SCALING, SIGMOID, SOFTMAX, Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.distillation import AUTO, NONE, START, Distillation
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.quantization import PostTraining
from mobilenet.configs.released_weights import TIMM
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.weights import pretrained, safetensors_file, timm_architecture

log = logging.getLogger("mobilenet")


@dataclasses.dataclass(frozen=True)
class Explicit:
    """Which of these fields were set by the user, and therefore stay.

    Attributes:
        num_classes: it must match the data.
        batch_norm_decay: it is used whatever the number of steps.
        teacher: some stage must have a use for it.
        image_size, channels, preprocessing: a model of the user's own must fit them.
    """

    num_classes: bool = False
    batch_norm_decay: bool = False
    teacher: bool = False
    image_size: bool = False
    channels: bool = False
    preprocessing: bool = False


def resolve(
    config: RunConfig, explicit: Explicit = Explicit(), stored: RunConfig | None = None
) -> tuple[RunConfig, data.DatasetInfo]:
    """Fills in what depends on the data and on the initial weights of a MobileNet.

    These are the number of classes, a batch-norm momentum that fits the initial weights and the
    number of steps, whether stages are distilled from the model that they start from, the channels
    of a thinned model that training starts from, which weights `imagenet` stands for, and padding,
    epsilon and preprocessing of timm's weights.

    Args:
        config: from recipe and flags.
        explicit: what stays as it is.
        stored: the config of the run that is continued, which may have lost its initial weights.

    Raises:
        UsageError: the data cannot be used, has one class or a class without a training image, its
            classes do not match, there are fewer images than a batch, or no stage has a use for the
            teacher.
    """
    info = describe(config, explicit)
    config = with_augmentation(config, info)
    activation = _activation(config.activation, info)
    outputs = _output_count(activation, info)  # in the config of a run that is repeated
    config = _with_named_weights(config, outputs)
    model = _with_structure_of_start(config, stored).replace(classifier_activation=None)
    if explicit.num_classes and model.num_classes not in (info.num_classes, outputs):
        raise UsageError(
            "num_classes",
            model.num_classes,
            f"{info.num_classes}, the classes of {config.dataset.name}",
            "leave it out",
        )
    model = model.replace(num_classes=outputs)
    steps = steps_per_epoch(info, config.train.images_per_update)
    if _is_open(model, explicit):
        default = LOADED_BATCH_NORM_DECAY if config.init_checkpoint else NEW_BATCH_NORM_DECAY
        published = model.batch_norm_decay
        longest = default if published is None else published
        decay = recipes.batch_norm_decay(steps * config.train.epochs, longest)
        model = model.replace(batch_norm_decay=decay)
    resolved = config.replace(
        model=model,
        distillation=with_teacher(config.distillation, info),
        activation=activation,
        initial_preprocessing=_initial_preprocessing(config, explicit, stored),
    )
    if (how := resolved.initial_preprocessing) is not None:
        log.info(
            "inputs as the initial weights take them: (pixel - %s) / %s of %s, %s",
            *(list(how.mean), list(how.std), how.part, how.interpolation),
        )
    return resolved, info


def describe(config: RunConfig, explicit: Explicit) -> data.DatasetInfo:
    """What the data of a run hold; the log says what of them is assumed or left out.

    Raises:
        UsageError: they cannot be used, have one class or a class without a training image; or no
            stage has a use for the teacher.
    """
    if explicit.teacher:
        _check_teacher(config)
    info = data.describe(config.dataset)
    for note in dict.fromkeys([*info.notes, *info.assumed.values()]):
        log.info("%s", note)
    _check_classes(info)
    return info


def with_augmentation(config: RunConfig, info: data.DatasetInfo) -> RunConfig:
    """The config with the values of its preset of augmentation.

    Raises:
        UsageError: the data are no photos, or a value contradicts another one.
    """
    if config.augmentation is None:
        return config
    name, images = config.augmentation, info.sizes.get("train", 0)
    if name == augmentation.AUTO:
        name = augmentation.by_size(images)
    config = augmentation.apply(config, recipes.of(config), augmentation.PRESETS[name].values)
    log.info("augmentation: %s, for %s training images", name, f"{images:,}")
    return config


def _check_classes(info: data.DatasetInfo) -> None:
    """Checks that there are classes to tell apart, and images of each."""
    if info.num_classes < 2:
        only = f"one class ({shorten(info.labels)})"
        raise UsageError("data_dir", only, "at least 2 classes", "add images of what it is not")
    if info.empty:
        remedy = "add some, or give the remaining classes the labels from 0 on"
        if "0" in info.empty:
            remedy = "where labels start at 1, `label_offset=1` makes them start at 0"
        count = f"no training image of {len(info.empty)} classes ({shorten(info.empty)})"
        raise UsageError("data_dir", count, "images of every class", remedy)


def resolve_as(config: RunConfig, stored: RunConfig, explicit: Explicit) -> RunConfig:
    """As `resolve`, with what depends on the data taken from the resolved config of a run.

    Reads no data: it tells whether a run is that of `config`, which it equals then.
    """
    distillation = config.distillation
    if distillation.teacher == AUTO:
        distillation = distillation.replace(teacher=stored.distillation.teacher)
    activation = stored.activation if config.activation is None else config.activation
    config = config.replace(distillation=distillation, activation=activation)
    if config.augmentation is not None and config.augmentation == stored.augmentation:
        config = augmentation.apply(config, recipes.of(config), augmentation.values_of(stored))
    if isinstance(config.model, OwnModel):
        return _with_own_model_of(config, config.model, stored, explicit)
    if not isinstance(stored.model, OwnModel):
        config = _with_named_weights(config, stored.model.num_classes or 0)
    model = _with_structure_of_start(config, stored).replace(classifier_activation=None)
    if isinstance(stored.model, OwnModel):
        return config.replace(model=model)
    if not explicit.num_classes:
        model = model.replace(num_classes=stored.model.num_classes)
    if _is_open(model, explicit):
        model = model.replace(batch_norm_decay=stored.model.batch_norm_decay)
    return config.replace(
        model=model,
        initial_preprocessing=_initial_preprocessing(config, explicit, stored),
    )


def _with_own_model_of(
    config: RunConfig, own: OwnModel, stored: RunConfig, explicit: Explicit
) -> RunConfig:
    """The config with what the same model of the user's own has decided before."""
    if not isinstance(stored.model, OwnModel):
        return config
    known = {"num_classes": stored.model.num_classes, "preprocessing": stored.model.preprocessing}
    return config.replace(
        model=own.replace(**known),
        image_size=config.image_size if explicit.image_size else stored.image_size,
        channels=config.channels if explicit.channels else stored.channels,
    )


def _activation(activation: str | None, info: data.DatasetInfo) -> str | None:
    """The activation that the data need.

    Raises:
        UsageError: it is not the one that was asked for.
    """
    if not info.multi_label:
        return activation
    if activation == SOFTMAX:
        expected = "sigmoid for data with several labels an image"
        raise UsageError("activation", activation, expected, "leave it out")
    return SIGMOID


def _output_count(activation: str | None, info: data.DatasetInfo) -> int:
    is_binary = activation == SIGMOID and info.num_classes == 2 and not info.multi_label
    return 1 if is_binary else info.num_classes


def _is_open(model: MobileNetConfig, explicit: Explicit) -> bool:
    """Whether the batch-norm momentum was left to the run."""
    return model.batch_norm_decay is None or not explicit.batch_norm_decay


def _with_named_weights(config: RunConfig, num_classes: int) -> RunConfig:
    """The config with the name of the weights that `imagenet` stands for.

    Args:
        config: of the run.
        num_classes: of its model.
    """
    if config.init_checkpoint is None:
        return config
    assert isinstance(config.model, MobileNetConfig)
    model, longer_side = config.model.replace(num_classes=num_classes), max(config.input_shape[:2])
    name = pretrained.resolve(config.init_checkpoint, model, longer_side)
    return config.replace(init_checkpoint=name)


def _with_structure_of_start(config: RunConfig, stored: RunConfig | None) -> MobileNetConfig:
    """The model, with what its initial weights decide."""
    path, model = config.init_checkpoint, config.model
    assert isinstance(model, MobileNetConfig)
    if path is None:
        return model
    lost = _lost_start(path, stored)
    origin = None if lost is None else lost.model
    if isinstance(origin, MobileNetConfig) and type(origin) is type(model):
        return timm_architecture.with_structure(model, origin)
    return with_structure_of(model, path)


def with_structure_of(model: MobileNetConfig, path: str) -> MobileNetConfig:
    """The model, with the channels of the one that the weights at `path` are of, if that was
    thinned; or with padding, epsilon and other details of timm's weights.

    Raises:
        UsageError: a file of timm's weights cannot be read, or does not say what they are.
    """
    if (released := pretrained.find(path)) is not None:
        if released.source != TIMM:
            return model
        known = timm_models.find(released.name)[0]
        return timm_architecture.with_structure(model, known.config(model.width_multiplier))
    if Path(path).suffix == safetensors_file.SUFFIX:
        return timm_architecture.detect(path).apply_to(model)
    card = Path(path) / CARD
    start = Card.from_file(card).model_config() if card.is_file() else None
    if start is None or model.channels or type(start) is not type(model):
        return model
    return timm_architecture.with_structure(model, start).replace(channels=start.channels)


def preprocessing_of(path: str) -> Preprocessing | None:
    """How pixels become the inputs of the weights at `path`, where it is stored or known."""
    if (released := pretrained.find(path)) is not None:
        return released.preprocessing if released.source == TIMM else None
    if Path(path).suffix == safetensors_file.SUFFIX:
        return timm_architecture.detect(path).preprocessing
    file = Path(path) / CARD
    card = Card.from_file(file) if file.is_file() else None
    return None if card is None or SCALING in card.assumed else card.preprocessing


def _initial_preprocessing(
    config: RunConfig, explicit: Explicit, stored: RunConfig | None
) -> Preprocessing | None:
    """The preprocessing of the initial weights, if pixels become other inputs by it than by that of
    the data. Data whose images are taken whole stay so.
    """
    path, usual = config.init_checkpoint, config.dataset.model_preprocessing
    if path is None or explicit.preprocessing:
        return None
    if (lost := _lost_start(path, stored)) is not None:
        return lost.initial_preprocessing
    own = preprocessing_of(path)
    if own is None or own.has_inputs_of(usual):
        return None
    return own if usual.crop != "none" else own.replace(crop=usual.crop)


def _lost_start(path: str, stored: RunConfig | None) -> RunConfig | None:
    """The config of the run that is continued, if it has lost the file that it started from."""
    if stored is None or stored.init_checkpoint != path or Path(path).exists():
        return None
    return stored


def _check_teacher(config: RunConfig) -> None:
    """Checks that some stage learns from the teacher, in a run that trains at all."""
    teacher, stages = config.distillation.teacher, config.stages
    post_training = isinstance(config.quantization, PostTraining)
    later = [s for s in stages if s == "prune" or (s == "quantize" and not post_training)]
    able = later if teacher == START else [s for s in stages if s == "train" or s in later]
    if teacher in (AUTO, NONE) or able or stages == ("convert",):
        return
    raise UsageError(
        "teacher",
        teacher,
        "a stage that has a use for it: prune, or quantize with training"
        + ("" if teacher == START else ", or train"),
        "leave it out, or add the stage to `stages`",
    )


def with_teacher(distillation: Distillation, info: data.DatasetInfo) -> Distillation:
    """The distillation with `auto` decided: few images a class make the start the teacher."""
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
        raise UsageError("data_dir", None, "images to train on; all are held out", "add a split")
    if images < batch:
        expected = f"at most {images}, the number of training images, in all batches of a step"
        raise UsageError("batch_size", batch, expected)
    return images // batch
