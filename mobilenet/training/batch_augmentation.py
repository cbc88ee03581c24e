"""Augmentation of whole batches in the training step: mixup, CutMix and random erasing.

Partners are images of the same batch, of one replica. Everything is drawn from the seed, the step
and the replica, so that a run that continues draws the same.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from mobilenet.configs.training import TrainConfig

_STREAM = 0x4D495855  # separates these seeds from those of data and layers
_SWITCH = 0.5  # share of the batches that CutMix mixes where mixup is on too, as in timm
_AREA = (0.02, 1 / 3)  # of an erased rectangle, share of the image
_ASPECT = 10 / 3  # greatest ratio of its sides


@dataclasses.dataclass(frozen=True)
class BatchAugmentation:
    """What a stage does with each of its batches.

    Attributes:
        config: of the stage.
        seed: of the run.
        classes: outputs of the model.
        has_vectors: labels are `[batch, classes]` of 0 and 1, not class indices.
    """

    config: TrainConfig
    seed: int
    classes: int
    has_vectors: bool = False

    def apply(
        self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Images and labels of the update after `step` updates.

        Args:
            images: float `[batch, height, width, channels]`.
            labels: class indices `[batch]`, or `[batch, classes]` of 0 and 1.
            step: int64.

        Returns:
            Images of the same shape; if they are mixed, labels as float32 `[batch, classes]`, or
            `[batch]` of two classes with one output.
        """
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        key = tf.random.fold_in(tf.constant([self.seed, _STREAM], tf.int64), step)
        seeds = tf.unstack(tf.random.split(tf.random.fold_in(key, replica), 5), num=5)
        if self.config.random_erasing:
            images = erase(images, self.config.random_erasing, seeds[:2])
        if not (self.config.mixup or self.config.cutmix):
            return images, labels
        images, share = self._mix(images, seeds[2:])
        soft = self._soft(labels)
        return images, share * soft + (1 - share) * tf.reverse(soft, [0])

    def decided(self, labels: tf.Tensor) -> tf.Tensor:
        """The labels of the larger share, for metrics."""
        if not (self.config.mixup or self.config.cutmix):
            return labels
        if self.has_vectors or self.classes == 1:
            return tf.round(labels)
        return tf.argmax(labels, axis=-1)

    def _soft(self, labels: tf.Tensor) -> tf.Tensor:
        if self.has_vectors or self.classes == 1:
            return tf.cast(labels, tf.float32)
        return tf.one_hot(tf.cast(labels, tf.int32), self.classes)

    def _mix(self, images: tf.Tensor, seeds: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixed images, and the share of the first of each pair."""
        config = self.config
        if not config.cutmix:
            return mixup(images, beta(config.mixup, seeds[0]))
        if not config.mixup:
            return cutmix(images, beta(config.cutmix, seeds[0]), seeds[1])
        mixed: tuple[tf.Tensor, tf.Tensor] = tf.cond(
            tf.random.stateless_uniform([], seeds[2]) < _SWITCH,
            lambda: cutmix(images, beta(config.cutmix, seeds[0]), seeds[1]),
            lambda: mixup(images, beta(config.mixup, seeds[0])),
        )
        return mixed


def of_job(
    config: TrainConfig, seed: int, classes: int, has_vectors: bool
) -> BatchAugmentation | None:
    """The batch augmentation of a stage; `None` if it has none."""
    if not config.augments_batches:
        return None
    return BatchAugmentation(config, seed, classes, has_vectors)


def beta(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """A number of the distribution Beta(alpha, alpha), float32."""
    pair = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
    return tf.cast(tf.math.divide_no_nan(pair[0], tf.reduce_sum(pair)), tf.float32)


def mixup(images: tf.Tensor, share: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image blended with the one at the same index from the end (arXiv 1710.09412).

    Args:
        images: `[batch, height, width, channels]`.
        share: of the first of each pair, scalar.

    Returns:
        Images, and `share`.
    """
    weight = tf.cast(share, images.dtype)
    return weight * images + (1 - weight) * tf.reverse(images, [0]), share


def cutmix(images: tf.Tensor, share: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A rectangle of each image replaced by that of the one at the same index from the end (arXiv
    1905.04899).

    Args:
        images: `[batch, height, width, channels]`.
        share: of the area that stays, before the rectangle is cut off at the border.
        seed: of its center, the same for all images.

    Returns:
        Images, and the share of the area that has stayed.
    """
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    center = tf.random.stateless_uniform([2], seed)
    side = tf.sqrt(1 - share)
    rows = _inside(height, center[0], side)
    columns = _inside(width, center[1], side)
    is_cut = tf.logical_and(rows[:, None], columns[None, :])
    mixed = tf.where(is_cut[None, :, :, None], tf.reverse(images, [0]), images)
    return mixed, 1 - tf.reduce_mean(tf.cast(is_cut, tf.float32))


def _inside(size: tf.Tensor, center: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Which of `size` pixels are in an interval; its center and length are shares of them."""
    length = tf.cast(side * tf.cast(size, tf.float32), tf.int32)
    first = tf.cast(center * tf.cast(size, tf.float32), tf.int32) - length // 2
    return _interval(size, first, length)


def erase(images: tf.Tensor, probability: float, seeds: list[tf.Tensor]) -> tf.Tensor:
    """A random rectangle of some images replaced by noise (arXiv 1708.04896).

    The noise has the mean and the deviation of each channel of the batch, whatever the
    preprocessing. Area and ratio of the sides are drawn as in timm; sides
    longer than the image are those of the image.

    Args:
        images: `[batch, height, width, channels]`.
        probability: of an image.
        seeds: two.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3], num=3)
    drawn = tf.random.stateless_uniform([5, batch], seeds[0])
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * drawn[0]
    ratio = tf.exp((2 * drawn[1] - 1) * tf.math.log(_ASPECT))
    sides = tf.minimum(tf.sqrt(area * ratio), 1.0), tf.minimum(tf.sqrt(area / ratio), 1.0)
    rows = _covered(height, drawn[2], sides[0])
    columns = _covered(width, drawn[3], sides[1])
    is_chosen = (drawn[4] < probability)[:, None, None]
    is_erased = rows[:, :, None] & columns[:, None, :] & is_chosen
    mean, variance = tf.nn.moments(tf.cast(images, tf.float32), [0, 1, 2])
    noise = mean + tf.sqrt(variance) * tf.random.stateless_normal(tf.shape(images), seeds[1])
    return tf.where(is_erased[..., None], tf.cast(noise, images.dtype), images)


def _covered(size: tf.Tensor, position: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Pixels `[batch, size]` of an interval inside the image; side and the share of the free space
    before it are `[batch]`.
    """
    whole = tf.cast(size, tf.float32)
    length = tf.round(side * whole)
    first = tf.floor(position * (whole - length + 1))
    return _interval(size, first[:, None], length[:, None])


def _interval(size: tf.Tensor, first: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Which of `size` pixels are among the `length` from `first` on, along the last axis."""
    pixels = tf.range(tf.cast(size, first.dtype))
    return tf.logical_and(pixels >= first, pixels < first + length)
