"""Training defaults by model and data set.

ImageNet's are the published recipes: tensorflow/models research/mobilenet/scripts (V1, V2, V3) with
research/slim/models/mobilenet/README.md behind them, and official/vision/configs/experiments/
image_classification/imagenet_mobilenetv4_conv_*_tpu.yaml (V4) and official/projects/edgetpu/vision/
configs/mobilenet_edgetpu_config.py (EdgeTPU V2). The others are ours, each with the command that
shows it.
"""

from __future__ import annotations

from mobilenet.errors import one_of

from . import archs, dataset
from .own_model import OwnModel
from .pruning import LARGE
from .run import FINE_TUNE, FROM_SCRATCH, MODERN, RECIPES, RunConfig
from .training import TrainConfig

# python -m mobilenet.trainer --model_name NAME --dataset_name imagenet2012
# 30 epochs; slim: 0.045 a GPU with 64 (V1) or 96 (V2) images, 0.02 a chip with 192 (V3).
# Keras' L2 is not halved, slim's is: slim's 4e-5 is 2e-5 here, and V3's 1e-5 is 5e-6.
_IMAGENET = TrainConfig(
    epochs=30,
    optimizer_name="rmsprop",
    op_momentum=0.9,
    op_decay_rate=0.9,
    op_epsilon=0.002,
    label_smoothing=0.1,
    warmup_epochs=5.0,
)
_IMAGENET_V1 = _IMAGENET.replace(batch_size=64, lr=0.045, lr_decay_rate=0.94, lr_decay_epochs=2.5)
_IMAGENET_V2 = _IMAGENET.replace(batch_size=96, lr=0.045, lr_decay_rate=0.98, lr_decay_epochs=1.0)
_IMAGENET_V3 = _IMAGENET.replace(
    batch_size=192, lr=0.02, lr_decay_rate=0.99, lr_decay_epochs=3.0, ma_decay_rate=0.9999
)

# The published rate is of 4096 images a step, here 16 replicas of 256; AutoAugment is left out.
_IMAGENET_EDGETPU_V2 = _IMAGENET.replace(
    epochs=550,
    batch_size=256,
    op_epsilon=0.001,
    lr=0.256,
    lr_decay_rate=0.97,
    lr_decay_epochs=2.4,
    ma_decay_rate=0.99,
)
# The published rates are of 4096 images a step (large: 16384), here 16 (64) replicas of 256. Left
# out are what the fields have no values for: RandAugment with a probability of each operation and,
# but for small, a magnitude of 15 of 10; large's mixing of a fifth of the batches and its
# stochastic depth, the same for all blocks.
_IMAGENET_V4 = TrainConfig(
    epochs=500,
    batch_size=256,
    optimizer_name="adamw",
    op_epsilon=1e-7,
    learning_scheduler_name="cosine",
    lr=4e-3,
    warmup_epochs=5.0,
    label_smoothing=0.1,
)
_IMAGENET_V4_SMALL = _IMAGENET_V4.replace(
    epochs=9623,
    op_momentum=0.6,
    op_epsilon=1e-6,
    lr=2e-3,
    ma_decay_rate=0.9999,
    decoupled_weight_decay=0.01,
)
_IMAGENET_V4_MEDIUM = _IMAGENET_V4.replace(decoupled_weight_decay=0.1, drop_path_rate=0.075)
_IMAGENET_V4_LARGE = _IMAGENET_V4.replace(decoupled_weight_decay=0.2, warmup_epochs=20.0)
# timm's mobilenetv4_conv_small.e2400_r224_in1k, of which its RA4 recipes are variations
# (gist.github.com/rwightman/f6705cb65c03daeebca8aa129b1b94ad, mnv4_cs_r224_e2400). Its rate is 2e-3
# for 4096 images a step, times the root of the share of 4096: 5e-4 for 256. Its beta 2 of 0.995 is
# 0.999 here, and the noise in its RandAugment's magnitude, gray and blurred images are left out.
_MODERN = TrainConfig(
    epochs=2400,
    batch_size=256,
    optimizer_name="adamw",
    op_momentum=0.6,
    op_epsilon=1e-7,
    decoupled_weight_decay=0.06,
    learning_scheduler_name="cosine",
    lr=5e-4,
    warmup_epochs=5.0,
    label_smoothing=0.1,
    ma_decay_rate=0.99995,
    random_erasing=0.25,
)
_MODERN_IMAGES = {
    "area_min": 0.08,
    "aspect_max": 4 / 3,
    "color": 0.0,  # of RandAugment's operations
    "rand_augment": 2,
    "rand_augment_magnitude": 8.0,
    "train_interpolation": dataset.RANDOM,
}

# python -m mobilenet.trainer --model_name mobilenet_v1
_DIGITS = TrainConfig(
    epochs=24,
    batch_size=32,
    optimizer_name="adam",
    op_epsilon=1e-5,
    learning_scheduler_name="cosine",
    lr=4e-3,
    warmup_epochs=1.0,
    label_smoothing=0.1,
    ma_decay_rate=0.98,
)

# python -m mobilenet.trainer --dataset_name image_folder --data_dir FOLDER
_SMALL_FROM_SCRATCH = TrainConfig(
    epochs=60,
    batch_size=32,
    optimizer_name="adam",
    op_epsilon=1e-5,
    learning_scheduler_name="cosine",
    lr=2e-3,
    warmup_epochs=2.0,
    label_smoothing=0.1,
    ma_decay_rate=0.99,
)

# python benchmarks/fine_tuning.py --data_dir PHOTOS
_FINE_TUNE = _SMALL_FROM_SCRATCH.replace(epochs=30, lr=1e-3, warmup_epochs=1.0, layer_decay=0.8)

_DIGITS_SETS = ("digits", "mnist")
_LARGE_SETS = ("imagenet2012", "tfrecord")
# python benchmarks/distillation.py --data_dir PHOTOS --checkpoint V1_025_128
FEW_IMAGES = 100  # of a class to train on; with fewer, later stages learn from what they start with
BATCH_NORM_MEMORY = 20  # a run sees at least so many time constants of its batch-norm statistics


def batch_norm_decay(steps: int, longest: float) -> float:
    """The batch-norm momentum that a run of `steps` can afford.

    The moving statistics forget over 1 / (1 - decay) steps. The published 0.9997 needs tens of
    thousands of steps; a shorter run evaluates with statistics of a model that it no longer is.

    Args:
        steps: of training.
        longest: the momentum of a long run.
    """
    return round(min(longest, max(0.9, 1.0 - BATCH_NORM_MEMORY / max(steps, 1))), 6)


def get(
    model_name: str, dataset_name: str, recipe: str | None = None, has_weights: bool = False
) -> RunConfig:
    """The defaults of a run.

    Args:
        model_name: one of `archs.names()`.
        dataset_name: any data set; names that are not known get the recipe for small photo sets.
        recipe: `from_scratch`, `fine_tune` or `modern`; `None` chooses by `default`.
        has_weights: the model starts from trained weights.

    Raises:
        UsageError: no such model or recipe.
    """
    model = archs.get(model_name)
    data = dataset.get(dataset_name)
    recipe = default(dataset_name, has_weights) if recipe is None else recipe
    one_of("recipe", recipe, RECIPES)
    if recipe == FINE_TUNE:
        return _small(model, data, _FINE_TUNE)
    if recipe == MODERN:
        return _modern(_imagenet(model, data))
    if dataset_name in _LARGE_SETS:
        return _imagenet(model, data)
    if dataset_name in _DIGITS_SETS:
        return _chain(model, data, _DIGITS, image_size=64, prune_epochs=8, quantize_epochs=4)
    return _small(model, data, _SMALL_FROM_SCRATCH)


def default(dataset_name: str, has_weights: bool) -> str:
    """The recipe of a run that names none.

    Weights are fine-tuned on photos. ImageNet's recipes are those of models which are trained on
    ImageNet, whatever they start from, and the digits are unlike what released weights have seen.
    """
    is_photos = dataset_name not in (*_LARGE_SETS, *_DIGITS_SETS)
    return FINE_TUNE if has_weights and is_photos else FROM_SCRATCH


def name_of(config: RunConfig) -> str:
    """The name of the recipe that a run has its defaults from."""
    if config.recipe is not None:
        return config.recipe
    is_trained = isinstance(config.model, OwnModel) or config.init_checkpoint is not None
    return default(config.dataset.name, is_trained)


def of(config: RunConfig) -> RunConfig:
    """The recipe that a run has its defaults from."""
    dataset_name, recipe = config.dataset.name, name_of(config)
    if isinstance(config.model, OwnModel):
        return of_own_model(config.model, dataset_name, recipe)
    return get(archs.name_of(config.model), dataset_name, recipe)


def of_own_model(model: OwnModel, dataset_name: str, recipe: str | None = None) -> RunConfig:
    """The defaults of a run on a trained model of the user's own: those of MobileNetV2."""
    return get("mobilenet_v2", dataset_name, recipe, has_weights=True).replace(model=model)


def pruning_large_kernels(config: RunConfig) -> RunConfig:
    """The config in which a share of the pointwise kernels alone, as MobileNets have it, is one of
    all large kernels: other models may have most weights elsewhere.
    """
    for field in ("final_sparsity", "sparsity"):
        shares = getattr(config.pruning, field, {})
        if isinstance(shares, dict) and list(shares) == ["pointwise"]:
            changed = {field: {LARGE: shares["pointwise"]}}
            config = config.replace(pruning=config.pruning.replace(**changed))
    return config


def _chain(
    model: archs.MobileNetConfig,
    data: dataset.DatasetConfig,
    train: TrainConfig,
    image_size: int,
    prune_epochs: int,
    quantize_epochs: int,
) -> RunConfig:
    """Later stages start from a trained model: a fraction of its rate, no warm-up."""
    return RunConfig(
        model=model,
        dataset=data,
        image_size=image_size,
        train=train,
        prune=train.replace(epochs=prune_epochs, lr=train.lr / 4, warmup_epochs=0.0),
        quantize=train.replace(epochs=quantize_epochs, lr=train.lr / 20, warmup_epochs=0.0),
    )


def _small(
    model: archs.MobileNetConfig, data: dataset.DatasetConfig, train: TrainConfig
) -> RunConfig:
    """Later stages have the same rates, whatever the model was trained from."""
    config = _chain(
        model, data, _SMALL_FROM_SCRATCH, image_size=224, prune_epochs=20, quantize_epochs=10
    )
    return config.replace(train=train)


def _modern(published: RunConfig) -> RunConfig:
    """Image size and later stages are those of the published recipe."""
    assert isinstance(published.model, archs.MobileNetConfig)
    model = published.model.replace(weight_decay=0.0, dropout_keep_prob=0.75, batch_norm_decay=0.9)
    images = published.dataset.replace(**_MODERN_IMAGES)
    return published.replace(model=model, dataset=images, train=_MODERN)


def _imagenet(model: archs.MobileNetConfig, data: dataset.DatasetConfig) -> RunConfig:
    image_size = 224
    if isinstance(model, archs.MobileNetV4Config):
        model, train, image_size = _imagenet_v4(model)
    elif isinstance(model, archs.MobileNetEdgeTPUV2Config):
        train = _IMAGENET_EDGETPU_V2
        kept = 0.95 if isinstance(model, archs.MobileNetEdgeTPUV2XSConfig) else 0.8
        model = model.replace(weight_decay=5e-6, batch_norm_decay=0.99, dropout_keep_prob=kept)
    elif isinstance(model, archs.MobileNetV1Config):
        train, model = _IMAGENET_V1, model.replace(batch_norm_decay=0.9997)
    elif isinstance(model, archs.MobileNetV2Config):
        train, model = _IMAGENET_V2, model.replace(batch_norm_decay=0.9997)
    else:
        train = _IMAGENET_V3
        model = model.replace(weight_decay=5e-6, stddev=0.008, batch_norm_decay=0.997)
    # Fine-tuning by slim: rate 1e-4, no warm-up (research/slim/models/mobilenet_v1_train.py).
    later = train.replace(
        epochs=8,
        lr=1e-3,
        learning_scheduler_name="cosine",
        warmup_epochs=0.0,
        optimizer_name="momentum",
        op_momentum=0.9,
    )
    return RunConfig(
        model=model,
        dataset=data,
        image_size=image_size,
        train=train,
        prune=later,
        quantize=later.replace(epochs=3, lr=1e-4),
    )


def _imagenet_v4(
    model: archs.MobileNetV4Config,
) -> tuple[archs.MobileNetV4Config, TrainConfig, int]:
    """Model, training and image size; the published L2 is halved, as Keras' is not."""
    if isinstance(model, archs.MobileNetV4ConvSmallConfig):
        model = model.replace(
            batch_norm_decay=0.95,
            batch_norm_epsilon=1e-6,
            dropout_keep_prob=0.7,
            weight_decay=5e-6,
        )
        return model, _IMAGENET_V4_SMALL, 224
    model = model.replace(batch_norm_decay=0.997, weight_decay=0.0)
    if isinstance(model, archs.MobileNetV4ConvMediumConfig):
        return model, _IMAGENET_V4_MEDIUM, 256
    return model, _IMAGENET_V4_LARGE, 384
