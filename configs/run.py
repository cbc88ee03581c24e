"""A run: which model, which data and which stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from mobilenet.configs.weight_sharing import FewValues
from mobilenet.errors import UsageError

from . import augmentation
from .archs import MobileNetConfig, MobileNetV1Config
from .base import MAX_SIDE, Config, ImageSize, flag, nested, sides
from .card import ACTIVATIONS
from .dataset import BALANCED, DatasetConfig, Preprocessing
from .distillation import Distillation
from .own_model import OwnModel
from .pruning import PRUNING, ChannelPruning, DnsPruning, MagnitudePruning, TfmotPruning
from .quantization import QUANTIZATION, PostTraining, QuantizationAwareTraining
from .training import TrainConfig

FROM_SCRATCH, FINE_TUNE, MODERN = "from_scratch", "fine_tune", "modern"
RECIPES = (FROM_SCRATCH, FINE_TUNE, MODERN)
STAGES = ("train", "prune", "quantize", "convert")
FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "mixed_float16", "mixed_bfloat16")
STRATEGIES = ("none", "mirrored", "multi_worker", "tpu")
TRACKERS = ("tensorboard", "wandb", "mlflow")
_OF_TRAINED_LAYERS = ("freeze", "head_epochs", "freeze_batch_norm")
_STAGE_FLAGS = ("epochs", "lr", "keep_best", "early_stopping")  # with the prefix of a stage


@dataclasses.dataclass(frozen=True)
class Part:
    """What trains and is saved as one: a stage, or one of several rounds of channel pruning.

    Attributes:
        stage: one of `STAGES`.
        number: of an earlier round, from 1; `None` for a whole stage and for its last round.
    """

    stage: str
    number: int | None = None

    @classmethod
    def parse(cls, name: str) -> Part:
        """The part with this name, such as `prune` or `prune_2`.

        Raises:
            ValueError: no part has that name.
        """
        stage, separator, number = name.partition("_")
        is_number = number.isascii() and number.isdigit()
        if stage not in STAGES or bool(separator) != is_number:
            raise ValueError(name)
        return cls(stage, int(number) if is_number else None)

    @property
    def name(self) -> str:
        return self.stage if self.number is None else f"{self.stage}_{self.number}"

    @property
    def order(self) -> tuple[int, float]:
        """Sorts parts by when they run."""
        return STAGES.index(self.stage), math.inf if self.number is None else self.number

    @property
    def is_last(self) -> bool:
        """Whether the stage is finished with it."""
        return self.number is None

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class RunConfig(Config):
    """Everything that decides what a run computes; not where it is stored.

    Attributes:
        model: a MobileNet, which is built; or a trained model of the user's own.
        dataset: the images, and how they are read and varied.
        recipe: the defaults of the other fields, see `recipes.get`; `None` is `fine_tune` where a
            model starts from weights and the data set is a small one, else `from_scratch`.
        augmentation: a preset of `mobilenet.configs.augmentation` for the variation of training
            images; fields that differ from the recipe stay. `auto` chooses by the number of
            training images. `None` is the recipe's own.
        train: float training.
        prune: the training during which the model is pruned.
        quantize: the training with the file's rounding, or with shared weights.
        stages: any subset of train, prune, quantize, convert, in that order.
        image_size: side of the square input, or its height and width, in pixels.
        channels: 3 for RGB, 1 for gray; images are read as the model takes them.
        activation: `softmax`, one class an image; or `sigmoid`, each label by itself, trained with
            the binary cross entropy: of two classes it has one output. `None` takes what the data
            need: sigmoid for lists of several labels an image, else softmax.
        distillation: what stages learn from besides the labels.
        initial_preprocessing: how pixels become the inputs of the initial weights, where that is
            not how they become those of the data set; filled in by the run.
        seed: the one source of randomness: initial weights, order, augmentation, dropout.
        deterministic: the same command computes the same bits on the same machine, at the cost of
            speed.
        checkpoint_minutes: at most so much work is lost when a run is killed; a state is also
            saved after every epoch.
        keep_checkpoints: states of a stage that are kept: if the newest is damaged, the one before
            it is used.
        data_service: the dispatcher whose workers read and decode training images; they need the
            same paths. `None` reads them in the process.
        log_to: where the metrics of each epoch go, besides `metrics.csv`; may be empty.
        histogram_epochs: of TensorBoard.
        steps_per_execution: of an accelerator, which then waits less often for Python; states are
            saved, and a method enters its next phase, between executions.
        jit_compile: for an accelerator; on a CPU it costs more than it saves. Masks and averages,
            which follow an update, are not compiled.
    """

    model: MobileNetConfig | OwnModel = nested(MobileNetV1Config(), flags_of=MobileNetConfig)
    dataset: DatasetConfig = nested(DatasetConfig())
    image_size: ImageSize = flag(
        224,
        "side of the square input in pixels, or height,width",
        least=1,
        most=MAX_SIDE,
        integer=True,
        remedy="as in 96, or 48,96 for a height of 48",
    )
    channels: int = flag(3, "channels of the input: 3 (RGB) or 1 (gray)", choices=(1, 3))
    activation: str | None = flag(
        None,
        "softmax (one class an image) or sigmoid (each label by itself; two classes: one output)",
        choices=ACTIVATIONS,
    )
    stages: tuple[str, ...] = flag(
        STAGES, "which of " + ",".join(STAGES) + " to run, in that order", choices=STAGES
    )
    recipe: str | None = flag(
        None,
        "defaults of the other flags: " + ", ".join(RECIPES) + "; left out, it depends on the data "
        "and on whether there are weights to start from",
        choices=RECIPES,
    )
    augmentation: str | None = flag(
        None,
        "preset of the variation of training images: none, light, medium, strong, or auto, by the "
        "number of images; by default the recipe's own",
        choices=augmentation.NAMES,
    )
    train: TrainConfig = nested(TrainConfig())
    prune: TrainConfig = nested(TrainConfig(), "prune_", _STAGE_FLAGS)
    quantize: TrainConfig = nested(TrainConfig(), "quantize_", _STAGE_FLAGS)
    pruning: MagnitudePruning | ChannelPruning | DnsPruning | TfmotPruning = nested(
        MagnitudePruning(), classes=PRUNING, help="how to prune"
    )
    quantization: QuantizationAwareTraining | PostTraining | FewValues = nested(
        QuantizationAwareTraining(), classes=QUANTIZATION, help="how to quantize"
    )
    distillation: Distillation = nested(Distillation())
    init_checkpoint: str | None = flag(
        None,
        "weights to start from: imagenet or a name of mobilenet.list_weights(), model folder, "
        ".keras, TF1 or TF2 checkpoint, keras.applications .h5 or .weights.h5, timm's .safetensors",
        path=True,
    )
    initial_preprocessing: Preprocessing | None = None
    seed: int = flag(0, "seed of everything random", least=0, integer=True)
    distribution_strategy: str = flag(
        "none", "tf.distribute: " + ", ".join(STRATEGIES), choices=STRATEGIES
    )
    deterministic: bool = flag(False, "the same bits in every run on the same machine; slower")
    checkpoint_minutes: float = flag(
        10.0, "minutes after which the state of an unfinished epoch is saved", above=0
    )
    keep_checkpoints: int = flag(
        3, "resume states of a stage that are kept", least=1, most=1000, integer=True
    )
    data_service: str | None = flag(
        None, "address (host:port) of the tf.data service that decodes training images"
    )
    steps_per_execution: int = flag(
        1,
        "training steps that are sent to the device at a time",
        least=1,
        most=10_000,
        integer=True,
    )
    log_to: tuple[str, ...] = flag(
        ("tensorboard",), "any of " + ",".join(TRACKERS), choices=TRACKERS
    )
    histogram_epochs: int = flag(
        0,
        "epochs from one histogram of the weights in TensorBoard to the next; 0 is none",
        least=0,
        integer=True,
    )
    jit_compile: bool = flag(False, "XLA compiles the training step, for accelerators")
    mixed_precision: str = flag(FLOAT32, " or ".join(PRECISIONS), choices=PRECISIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = sides(self.image_size)
        object.__setattr__(self, "image_size", height if height == width else (height, width))
        if not self.stages:
            raise UsageError("stages", "", f"at least one of {', '.join(STAGES)}")
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise UsageError(
                "stages", ",".join(self.stages), f"stages in the order {','.join(STAGES)}"
            )
        self._check_start()
        self._check_training()

    def _check_training(self) -> None:
        """Checks how the stages train against what they share."""
        for stage in ("train", "prune", "quantize"):
            training: TrainConfig = getattr(self, stage)
            if self.jit_compile and training.accumulation_steps > 1:
                raise UsageError(
                    "accumulation_steps", training.accumulation_steps, "1 with `jit_compile`"
                )
            if training.drop_path_rate and isinstance(self.model, MobileNetV1Config):
                expected = "0 for a MobileNetV1, which has no residual sum"
                raise UsageError("drop_path_rate", training.drop_path_rate, expected)
            if training.drop_path_rate and self.distillation.features:
                expected = "0 with `distillation.features`, which compares maps of whole models"
                raise UsageError("drop_path_rate", training.drop_path_rate, expected)
            if self.dataset.sampling == training.class_weights == BALANCED:
                expected = "none or weights by class with `sampling=balanced`"
                remedy = "both make up for rare classes: choose one"
                raise UsageError("class_weights", training.class_weights, expected, remedy)

    def _check_start(self) -> None:
        """Checks that what is fine-tuned, or left as it is, has been trained before."""
        is_new = isinstance(self.model, MobileNetConfig) and self.init_checkpoint is None
        if not is_new or "train" not in self.stages:
            return
        if self.recipe == FINE_TUNE:
            expected = f"{FROM_SCRATCH} or {MODERN} for a model with random weights"
            raise UsageError("recipe", self.recipe, expected, "give `init_checkpoint`")
        for field in dataclasses.fields(TrainConfig):
            value = getattr(self.train, field.name)
            if field.name in _OF_TRAINED_LAYERS and value != field.default:
                remedy = "give `init_checkpoint`"
                raise UsageError(field.name, value, "a model that starts from weights", remedy)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of the model: `(height, width, channels)`."""
        return (*sides(self.image_size), self.channels)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels become the inputs of the model."""
        if isinstance(self.model, OwnModel) and self.model.preprocessing is not None:
            return self.dataset.with_exif(self.model.preprocessing)
        if self.initial_preprocessing is not None:
            return self.dataset.with_exif(self.initial_preprocessing)
        return self.dataset.model_preprocessing

    def parts(self, stages: Iterable[str]) -> tuple[Part, ...]:
        """What runs, in order: the stages, with all rounds of channel pruning.

        `prune_1`, `prune_2`, ..., `prune` where channels are pruned in several rounds.
        """
        rounds = [Part("prune", n) for n in range(1, getattr(self.pruning, "stages", 1))]
        parts: list[Part] = []
        for stage in stages:
            parts += [*rounds, Part(stage)] if stage == "prune" else [Part(stage)]
        return tuple(parts)

    def training(self, part: Part) -> TrainConfig:
        """How a part trains; `stage_epochs` is that of all rounds of pruning but the last."""
        training: TrainConfig = getattr(self, part.stage)
        epochs = getattr(self.pruning, "stage_epochs", None)
        return training if part.is_last or epochs is None else training.replace(epochs=epochs)
