"""`load`: any data set as batches of inputs and labels.

An epoch is one pass over the images, in an order that is a pure function of (seed, epoch); it ends
with its last full batch. Augmentation is a pure function of (seed, step): a run that starts at step
k reads the same batches, bit for bit, as a run from step 0 does from step k on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.configs import dataset as dataset_configs
from mobilenet.configs.base import MAX_BATCH, ImageSize, check_number, one_of, sides
from mobilenet.configs.dataset import DatasetConfig, Preprocessing
from mobilenet.data import datasets, decoding, service
from mobilenet.data import preprocessing as images
from mobilenet.data.sources import digits
from mobilenet.data.split import Split, Steps, captured, part_of
from mobilenet.errors import UsageError

_AUGMENTATION = 0x56415259  # separates the seeds of augmentation from those of the order
_SERVICE_STEPS = 128  # of an epoch, which a worker of a tf.data service reads as one

Size = tuple[int, int]


def load(
    dataset: DatasetConfig | str,
    split: str,
    *,
    image_size: ImageSize,
    batch_size: int,
    training: bool = False,
    seed: int = 0,
    start_epoch: int = 0,
    start_step: int = 0,
    channels: int = 3,
    preprocessing: Preprocessing | str | None = None,
    parallel_calls: int | None = None,
    limit: int | None = None,
    input_context: tf.distribute.InputContext | None = None,
    data_service: str | None = None,
    opened: Split | None = None,
    columns: npt.NDArray[np.float32] | None = None,
) -> tf.data.Dataset:
    """Opens a split of a data set.

    Args:
        dataset: a config, or the name of one (`digits`, or a TFDS name that lies in TFDS' own
            folder).
        split: `train`, `validation` or `test`.
        image_size: side in pixels, or `(height, width)`.
        batch_size: images a batch; with `input_context` those of all replicas together.
        training: epoch after epoch without an end, each in a random order of its own, augmented, in
            full batches only: `size // batch_size` an epoch, the rest of its order is left out. A
            split smaller than a batch gives one smaller batch an epoch. Otherwise each image comes
            once, in file order, and the last batch may be smaller.
        seed: determines the order and the augmentation, together with epoch and step.
        start_epoch: of training, the epoch to start in.
        start_step: batches to skip at the start, of this epoch and of those after it; they are not
            decoded.
        channels: 3, or 1 for grey; grey sets become RGB with 3.
        preprocessing: of the model; `None` takes the data set's. `exif` of the data set, where it
            is set, replaces that of the preprocessing.
        parallel_calls: images decoded at a time; `None` lets tf.data choose.
        limit: outside training, at most so many images, spread evenly over the split.
        input_context: the worker that reads, of several which together read each image of an epoch
            once (what `tf.distribute.Strategy.distribute_datasets_from_function` gives to its
            function). A step's batches are those of one worker that reads indices, in the order of
            workers and replicas; of records each worker reads, and shuffles, a part of the files.
        data_service: address of the dispatcher of a tf.data service, whose workers read and decode
            training images. Each batch is that of reading here and comes once; with several
            workers the order of batches depends on them.
        opened: the split, if `datasets.open_split` has opened it already.
        columns: of training images that have numbers (see `datasets.has_numbers`), without a
            service: `[images, columns]`, appended to the labels, which become float32.

    Returns:
        Batches of float32 `[batch, height, width, channels]` and int32 `[batch]`; with
        `input_context` those of one replica after the other.

    Raises:
        UsageError: an argument or the data cannot be used; a corrupt image of a class folder is
            named (looked for here up to 10,000 files; beyond that, and in records, on reading: see
            `explain`).
    """
    config = dataset_configs.get(dataset) if isinstance(dataset, str) else dataset
    check_number("batch_size", batch_size, least=1, most=MAX_BATCH, integer=True)
    check_number("start_epoch", start_epoch, least=0, integer=True)
    check_number("start_step", start_step, least=0, integer=True)
    if limit is not None:
        check_number("limit", limit, least=1, integer=True)
    check_number("seed", seed, integer=True)
    one_of("channels", str(channels), ("1", "3"))
    size = _size(image_size)
    scaling = _preprocessing(config, preprocessing, channels)
    opened = datasets.open_split(config, split) if opened is None else opened
    calls = parallel_calls or tf.data.AUTOTUNE
    if training:
        config = config.replace(exif=scaling.exif)
        steps = Steps.of(opened.size, batch_size, input_context)
        first = start_epoch * steps.count + start_step
        block = steps.count if data_service is None else min(steps.count, _SERVICE_STEPS)
        batches = _training(
            opened, config, size, channels, scaling, steps, seed, first, block, calls, columns
        )
        if data_service is not None:
            batches = service.distribute(batches, data_service)
        mapper = _finish_training(config, opened, size, channels, scaling, seed, steps, columns)
        batches = batches.map(mapper, calls, deterministic=True)
    else:
        context = input_context or tf.distribute.InputContext()
        batch_size = context.get_per_replica_batch_size(batch_size)
        numbers = held_out_numbers(opened.size, limit)
        begin, end = part_of(len(numbers), context.input_pipeline_id, context.num_input_pipelines)
        numbers = numbers[begin:end][start_step * batch_size :]
        batches = _evaluation(opened, config, scaling, size, channels, batch_size, calls, numbers)
    return batches.with_options(_options()).prefetch(tf.data.AUTOTUNE)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def _size(image_size: ImageSize) -> Size:
    height, width = sides(image_size)
    for side in (height, width):
        check_number("image_size", side, least=1, integer=True)
    return int(height), int(width)


def _preprocessing(
    config: DatasetConfig, preprocessing: Preprocessing | str | None, channels: int
) -> Preprocessing:
    if preprocessing is None:
        preprocessing = config.preprocessing
    if isinstance(preprocessing, str):
        preprocessing = dataset_configs.PREPROCESSING[
            one_of("preprocessing", preprocessing, dataset_configs.PREPROCESSING)
        ]
    for values in (preprocessing.mean, preprocessing.std):
        if len(values) not in (1, channels):
            raise UsageError(
                "preprocessing",
                preprocessing.name,
                f"one mean and std, or one for each of {channels} channels",
                "use inception for grey images" if channels == 1 else "",
            )
    return config.with_exif(preprocessing)


def _seed(seed: int, position: tf.Tensor) -> tf.Tensor:
    return tf.random.fold_in(tf.constant([seed, _AUGMENTATION], tf.int64), position)


def _training(
    opened: Split,
    config: DatasetConfig,
    size: Size,
    channels: int,
    scaling: Preprocessing,
    steps: Steps,
    seed: int,
    first: int,
    block: int,
    calls: Any,
    columns: npt.NDArray[np.float32] | None = None,
) -> tf.data.Dataset:
    """The batches from step `first` of all epochs on: numbers, and items or pixels and labels.

    An epoch is read in blocks of `block` steps, each of which can be read by itself.
    """
    first_epoch, step = divmod(first, steps.count)
    blocks = -(-steps.count // block)
    first_block = first_epoch * blocks + step // block
    key = _augmentation_key(seed)

    def items(number: tf.Tensor) -> tf.data.Dataset:
        epoch, begin = number // blocks, number % blocks * block
        end = tf.minimum(begin + block, steps.count)
        begin = tf.where(number == first_block, tf.constant(step, tf.int64), begin)
        own = opened.epoch(seed, epoch, begin, steps).take((end - begin) * steps.share)
        return own.enumerate((epoch * steps.count + begin) * steps.share)

    # Without an end; a service would give each of its workers all of `counter`.
    numbered = tf.data.Dataset.range(first_block, tf.int64.max).flat_map(items)
    if isinstance(opened, datasets.DigitSplit):
        return numbered.batch(steps.replica_batch, drop_remainder=True)

    def image(number: tf.Tensor, item: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded, label = opened.read(item)
        position = steps.positions(number)
        # The first epoch finds what is damaged anywhere in an image.
        pixels = images.training_pixels(
            encoded,
            config,
            scaling,
            size,
            channels,
            tf.stack([tf.constant(key, tf.int64), position]),
            position < steps.count * steps.batch_size,
        )
        return number, pixels, _append(columns, item, label)

    varied = numbered.map(image, calls, deterministic=True)
    return varied.batch(steps.replica_batch, drop_remainder=True)


def _finish_training(
    config: DatasetConfig,
    opened: Split,
    size: Size,
    channels: int,
    scaling: Preprocessing,
    seed: int,
    steps: Steps,
    columns: npt.NDArray[np.float32] | None = None,
) -> Any:
    """The function applied to a whole batch: turns images; enlarges, varies and scales digits.

    Its first argument are the numbers of the images, of all that the worker has read.
    """

    key = _augmentation_key(seed)

    def augment_images(
        numbers: tf.Tensor, pixels: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        step, part = steps.part(numbers[0])
        if images.has_geometric_augmentation(config):
            pixels = images.random_affine(pixels, config, _seed(seed, -1 - step), part=part)
        return pixels, labels

    def augment_digits(numbers: tf.Tensor, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cells, labels = opened.read(items)
        step, part = steps.part(numbers[0])
        seeds = tf.random.split(_seed(seed, step), 3)
        vertical = tf.constant(digits.interpolation(size[0]), tf.float32)
        horizontal = tf.constant(digits.interpolation(size[1]).T, tf.float32)
        ink = tf.cast(cells, tf.float32) * (255 / digits.LEVELS)
        pixels = tf.matmul(vertical, tf.matmul(ink, horizontal))[..., None]
        if images.has_geometric_augmentation(config) or config.area_min < 1:
            options: dict[str, Any] = {"crop": True, "fill": "CONSTANT", "part": part}
            pixels = images.random_affine(pixels, config, seeds[0], **options)
        if config.flip:
            pixels = tf.image.stateless_random_flip_left_right(pixels, seeds[1])
        if config.color:
            pixels = images.adjust_brightness(pixels, config.color, seeds[2], part)
        pixels = tf.repeat(pixels, channels, axis=-1)
        if config.rand_augment:
            pixels = images.rand_augmented(pixels, config, key, steps.positions(numbers))
        return images.normalize(pixels, scaling), _append(columns, items, labels)

    return augment_digits if isinstance(opened, datasets.DigitSplit) else augment_images


def _augmentation_key(seed: int) -> int:
    """The first number of the seeds of single images."""
    return seed ^ (_AUGMENTATION << 32)


def _append(
    columns: npt.NDArray[np.float32] | None, items: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """Labels with the columns of their images, of one item or a batch."""
    if columns is None:
        return labels
    own = tf.gather(captured(columns), items)
    shape = tf.concat([tf.shape(items), [-1]], 0)
    return tf.concat([tf.reshape(tf.cast(labels, tf.float32), shape), own], -1)


def _evaluation(
    opened: Split,
    config: DatasetConfig,
    scaling: Preprocessing,
    size: Size,
    channels: int,
    batch_size: int,
    calls: Any,
    numbers: npt.NDArray[np.int64],
) -> tf.data.Dataset:
    def prepare_digit(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = images.evaluation_pixels(tf.repeat(image, channels, axis=-1), scaling, size)
        return images.normalize(image, scaling), label

    def prepare_image(item: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = opened.read(item)
        image = decoding.decode(encoded, channels, config.max_pixels, scaling.exif)
        return images.normalize(images.evaluation_pixels(image, scaling, size), scaling), label

    if isinstance(opened, datasets.DigitSplit):
        grey = digits.enlarge(opened.cells[numbers], size, channels=1)
        items = tf.data.Dataset.from_tensor_slices((grey, opened.labels[numbers]))
        examples = items.map(prepare_digit, calls, deterministic=True)
    else:
        examples = opened.items(numbers).map(prepare_image, calls, deterministic=True)
    batches = examples.batch(batch_size)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-len(numbers) // batch_size)))


def held_out_numbers(size: int, limit: int | None) -> npt.NDArray[np.int64]:
    """The numbers of at most `limit` items outside training; the others are not read."""
    numbers = np.arange(size)
    return numbers if limit is None or limit >= size else numbers[numbers * limit % size < limit]
