"""A compression method has three verbs; its config's class picks it.

    trained = method.apply(model)          a model that trains
    method.after_step(trained, step)       what must hold, compiled behind the optimizer
    plain = method.finalize(trained)       stock layers again

The training engine knows these verbs and nothing else of any method.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.base import Config
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import is_wrapper

Images = Callable[[int], npt.NDArray[np.float32]]
Examples = Callable[[int], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
Latency = Callable[[Any], Callable[[Any], tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a method may know of the stage that it serves.

    Attributes:
        steps: optimizer steps of the stage.
        preprocessing: how pixels became the inputs.
        images: gives the first n training inputs, `[n, height, width, channels]`, preprocessed.
        calibration: gives n images of the training split as an evaluation sees them, evenly from
            all, in the same form; `images` where nothing is varied in training.
        ranges: low and high of tensors by layer name, where the model comes from training with fake
            quantization elsewhere (`Report.ranges` of `mobilenet.tf1_loader`).
        examples: gives the first n training inputs with their labels, `[n]`.
        latency: from a model to a function that times other models beside it: seconds of one
            invocation of the other's float file, and of its own.
        whole: config of the model before its channels were thinned; shares of channels are of it.
        part: number of this part of the stage, from 1, and of how many, where the stage is run in
            parts.
        seed: of everything random.
    """

    steps: int
    preprocessing: Preprocessing
    images: Images
    ranges: Mapping[str, tuple[float, float]] | None = None
    calibration: Images | None = None
    examples: Examples | None = None
    latency: Latency | None = None
    whole: MobileNetConfig | None = None
    part: tuple[int, int] = (1, 1)
    seed: int = 0


class Method(tf.Module):
    """Base of all methods. Its variables are saved in the checkpoints of its stage."""

    config_type: ClassVar[type[Config]]
    trains: ClassVar[bool] = True  # `apply` does all of it where this is false
    averaged_from: int = 0  # updates behind which the average of the weights begins anew

    def __init__(self, config: Any, stage: Stage) -> None:
        super().__init__(name=type(self).__name__)
        self.config = config
        self.stage = stage

    def apply(self, model: Any) -> Any:
        """Returns a model that trains; `model` is left as it is."""
        raise NotImplementedError

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        """Restores what must hold after the update number `step` (int64, counted from 1)."""

    def finalize(self, model: Any) -> Any:
        """Returns a model of stock layers that keeps what the method promised."""
        raise NotImplementedError

    def evaluate_as_inference(self, step: int) -> bool:
        """Whether steps from `step` on run in inference mode, so that statistics stand still."""
        del step
        return False

    def enter(self, step: int) -> bool:
        """Prepares for the update behind `step` of them; true where the step must be traced anew.

        Called before every update, outside the graph.
        """
        del step
        return False

    def settled(self, step: int) -> bool:
        """Whether the model after `step` updates keeps what the method promises."""
        del step
        return True

    def check(self, model: Any) -> None:
        """Tells, before an earlier stage has trained, why `apply` would refuse `model`.

        Raises:
            UsageError: the config does not fit the model.
        """
        del model

    def figures(self) -> Mapping[str, Any]:
        """What the run's report has of the stage besides, as JSON values by name."""
        return {}

    def notes(self, model: Any) -> list[str]:
        """Lines for a person: what was done to which layer, and why not to others."""
        del model
        return []


M = TypeVar("M", bound=type[Method])
_METHODS: dict[type[Config], type[Method]] = {}
_HOMES = (
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
    """Class decorator: files a method under its config's class."""
    if method.config_type in _METHODS:
        raise ValueError(f"{method.config_type.__name__} already has a method")
    _METHODS[method.config_type] = method
    return method


def create(config: Config, stage: Stage) -> Method:
    """The method that `config` asks for.

    Raises:
        UsageError: nothing is registered for the config's class.
    """
    if type(config) not in _METHODS:
        for home in _HOMES:
            importlib.import_module(home)
    if type(config) not in _METHODS:
        known = ", ".join(sorted(kind.__name__ for kind in _METHODS))
        raise UsageError("method", type(config).__name__, f"a config of one of {known}")
    return _METHODS[type(config)](config, stage)


def check_plain(model: Any) -> None:
    """Checks that a method can be applied to `model`.

    Raises:
        UsageError: it is no functional model of tf_keras, holds layers that a method has wrapped,
            or a weight that is no number.
    """
    if not isinstance(model, tf_keras.Model) or not model._is_graph_network:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UsageError(
            "model",
            kind,
            "a functional model of tf_keras",
            "mobilenet.build makes one; of a Keras 3 model take the weights: set_weights on it",
        )
    for layer in model.layers:
        if is_wrapper(layer) or type(layer).__name__ == "QuantizeLayer":
            raise UsageError(
                layer.name,
                type(layer).__name__,
                "a plain layer",
                "finalize the pruned or quantized model first, or load it from its folder",
            )
    variables.check_finite(model)
