"""What only the data can tell of a run: its classes, its steps, a momentum that fits them."""

from __future__ import annotations

from mobilenet import data
from mobilenet.configs import recipes
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError


def completed(
    config: RunConfig, classes_given: bool, decay_given: bool
) -> tuple[RunConfig, data.DatasetInfo]:
    """Fills in what only the data can tell: the class count, and a batch-norm momentum that fits.

    Args:
        config: as recipes and flags made it.
        classes_given: `num_classes` was asked for and must match the data.
        decay_given: `batch_norm_decay` was asked for and stays.

    Raises:
        UsageError: the data cannot be used, its classes do not match, or there are fewer images
            than a batch.
    """
    info = data.describe(config.dataset)
    net = config.model.replace(classifier_activation=None)
    if classes_given and net.num_classes != info.num_classes:
        raise UsageError(
            "--num_classes",
            net.num_classes,
            f"{info.num_classes}, the classes of {config.dataset.name}",
            "leave it out",
        )
    net = net.replace(num_classes=info.num_classes)
    steps = steps_per_epoch(info, config.train.batch_size)
    if not decay_given:
        decay = recipes.batch_norm_decay(steps * config.train.epochs, net.batch_norm_decay)
        net = net.replace(batch_norm_decay=decay)
    return config.replace(model=net), info


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
