"""The interface of a compression method, and the registry that finds one by its config's class.

A method implements three members:

    trained = method.apply(model)          the model to train
    method.after_step(trained, step)       compiled into the train step, after the optimizer
    plain = method.finalize(trained)       a model of stock layers again

The other members of `Method` are optional hooks, listed there in the order in which they are
called. The training engine and pipeline call this interface and know no method by name.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.configs.base import Config
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.graph import flatten, variables

Images = Callable[[int], npt.NDArray[np.float32]]
LabeledExamples = Callable[[int], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
MeasureLatency = Callable[[Any], Callable[[Any], tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class StageContext:
    """What a method knows of the training stage that it runs in.

    Attributes:
        steps: optimizer steps of the stage.
        preprocessing: how pixels became the model's inputs.
        training_images: `training_images(n)` returns the first n training inputs, preprocessed,
            `[n, height, width, channels]`.
        initial_ranges: low and high of activations by layer name, where the model was trained with
            fake quantization elsewhere (`Report.ranges` of `mobilenet.tf1_loader`).
        calibration_images: as `training_images`, but spread evenly over the training split and
            without augmentation; `None` where training has no augmentation either.
        labeled_examples: `labeled_examples(n)` returns the first n training inputs and their
            labels, `[n]`.
        measure_latency: `measure_latency(model)(other)` returns the seconds of one invocation of
            the float files of `other` and of `model`, measured alternately.
        original_channels: output channels by layer of the model before any of them were pruned;
            pruning ratios refer to them.
        part: number of this part, from 1, of a stage that runs in several parts.
        parts: number of parts of the stage.
        seed: seed of everything random.
        activation: of the card: what turns the outputs into probabilities, `softmax` or `sigmoid`;
            `None` if it is not known.
    """

    steps: int
    preprocessing: Preprocessing
    training_images: Images
    _: dataclasses.KW_ONLY
    initial_ranges: Mapping[str, tuple[float, float]] | None = None
    calibration_images: Images | None = None
    labeled_examples: LabeledExamples | None = None
    measure_latency: MeasureLatency | None = None
    original_channels: Mapping[str, int] | None = None
    part: int = 1
    parts: int = 1
    seed: int = 0
    activation: str | None = None


class Sparsity(NamedTuple):
    """The share that a method has removed of what it prunes, in 0..1.

    Attributes:
        now: of weights or channels.
        target: by the method's schedule.
    """

    now: float
    target: float


class Method(tf.Module):
    """Base class of all methods. Its variables are saved in the checkpoints of its stage.

    `apply`, `after_step` and `finalize` are required. The optional hooks, with the required members
    among them, are called in this order:

    1. `check(model)`, for every stage of a run, before the first one trains.
    2. `apply(model)`.
    3. Around every update: `statistics_frozen(step)` and `before_step(step)`, in Python; then
       `after_step(model, step)`, in the graph. The moving average of the weights restarts after
       update `average_restart_step`.
    4. `sparsity(step)` and `target_reached(step)`, after every epoch.
    5. `notes(model)`, after the last epoch, then `finalize(model)`,
       `card_fields()` and `report()`.

    Where `trains` is false, `apply` does all of the work, and steps 3 and 4 are left out.

    Attributes:
        config_type: class of the configs that pick this method.
        trains: whether the model that `apply` returns is trained.
        needs_images: whether it looks at `context.training_images`.
        needs_float32: a stage of a run trains it in float32 even if others train in 16 bits.
        average_restart_step: update after which the moving average of the weights restarts, because
            the weights before it are those of another model (0: never).
        config: what the method does.
        context: the stage that it runs in.
    """

    config_type: ClassVar[type[Config]]
    trains: ClassVar[bool] = True
    needs_images: ClassVar[bool] = False
    needs_float32: ClassVar[bool] = False
    average_restart_step: int = 0

    def __init__(self, config: Any, context: StageContext) -> None:
        super().__init__(name=type(self).__name__)
        self.config = config
        self.context = context

    def apply(self, model: Any) -> Any:
        """Returns the model to train; `model` is left as it is."""
        raise NotImplementedError

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        """Restores the method's constraints after update number `step` (int64, from 1)."""
        raise NotImplementedError

    def finalize(self, model: Any) -> Any:
        """Returns a model of stock layers that satisfies the method's constraints."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raises early what `apply` would raise.

        Raises:
            UsageError: the config does not fit the model.
        """
        del model

    def statistics_frozen(self, step: int) -> bool:
        """Whether the update after `step` updates runs in inference mode, with frozen
        statistics.
        """
        del step
        return False

    def before_step(self, step: int) -> bool:
        """Prepares the update that follows `step` updates. Called in Python, outside the graph.

        Returns:
            Whether the train step must be traced again.
        """
        del step
        return False

    def sparsity(self, step: int) -> Sparsity | None:
        """How far pruning has come after `step` updates; `None` of methods that do not prune."""
        del step
        return None

    def target_reached(self, step: int) -> bool:
        """Whether the model after `step` updates satisfies the method's target."""
        del step
        return True

    def notes(self, model: Any) -> list[str]:
        """Human-readable notes: what was done to which layer, and why not to others."""
        del model
        return []

    def card_fields(self) -> Mapping[str, Any]:
        """Further fields of the card of the stage's model, by name."""
        return {}

    def report(self) -> Mapping[str, Any]:
        """Further entries of the stage in the run's report, as JSON values by name."""
        return {}


M = TypeVar("M", bound=type[Method])
_METHODS: dict[type[Config], type[Method]] = {}
_MODULES = (
    "mobilenet.compression.pruning.channel.channel_pruning",
    "mobilenet.compression.pruning.unstructured.dynamic_surgery",
    "mobilenet.compression.pruning.unstructured.magnitude",
    "mobilenet.compression.pruning.unstructured.tfmot_wrapper",
    "mobilenet.compression.quantization.weight_sharing.tfmot_clustering",
    "mobilenet.compression.quantization.weight_sharing.codebook",
    "mobilenet.compression.quantization.weight_sharing.uniform",
    "mobilenet.compression.quantization.int8.qat",
    "mobilenet.compression.quantization.post_training.method",
)


def register(method: M) -> M:
    """Class decorator: registers a method for its config's class."""
    if method.config_type in _METHODS:
        raise ValueError(f"{method.config_type.__name__} already has a method")
    _METHODS[method.config_type] = method
    return method


def type_of(config: Config) -> type[Method]:
    """The class of the method that `config` asks for.

    Raises:
        UsageError: nothing is registered for the config's class.
    """
    if type(config) not in _METHODS:
        for module in _MODULES:
            importlib.import_module(module)
    if type(config) not in _METHODS:
        known = ", ".join(sorted(kind.__name__ for kind in _METHODS))
        raise UsageError("method", type(config).__name__, f"a config of one of {known}")
    return _METHODS[type(config)]


def create(config: Config, context: StageContext) -> Method:
    """The method that `config` asks for.

    Raises:
        UsageError: nothing is registered for the config's class.
    """
    return type_of(config)(config, context)


def check_plain(model: Any) -> None:
    """Checks that a method can be applied to `model`.

    Raises:
        UsageError: it is no functional model of tf_keras, has wrapped or quantized layers, or a
            weight that is not finite.
    """
    flatten.check_functional(model)
    flatten.check_unwrapped(model)
    variables.check_finite(model)
