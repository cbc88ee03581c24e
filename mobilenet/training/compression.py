"""A compression method in a training loop of the user's own: `compile`, `fit`, `finish`.

    compression = mobilenet.prune(model, sparsity=0.75, steps=1000)
    compression.model.compile(...)
    compression.model.fit(train, callbacks=compression.callbacks)
    pruned = compression.finish()

What a method does after an update is part of the train step, not a callback: under
`steps_per_execution` callbacks see only some of the steps.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured import sparsity_targets
from mobilenet.compression.quantization.int8 import quantized_model, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.configs.base import Config, check_number
from mobilenet.configs.card import ACTIVATIONS, Card
from mobilenet.configs.pruning import ChannelPruning, MagnitudePruning, Pruning
from mobilenet.configs.quantization import QUANTIZATION, PostTraining, QuantizationAwareTraining
from mobilenet.data.in_memory import Examples, check_range, load_examples
from mobilenet.errors import UsageError, shorten
from mobilenet.export import freeze
from mobilenet.models import input_preprocessing
from mobilenet.models.builder import config_of
from mobilenet.models.graph import final_activation, flatten, variables
from mobilenet.models.graph.rebuild import precision_of
from mobilenet.models.graph.roles import (
    is_quantization_layer,
    is_quantized,
    is_wrapper,
    kind,
    unwrap,
)
from mobilenet.training import compiled_step
from mobilenet.training.latency import measure_latency
from mobilenet.typing import Float32Array

_PACKAGE = "mobilenet"
_STATE = "compression_state"  # in the config of a saved model: names, shapes and types


@tf_keras.saving.register_keras_serializable(_PACKAGE)
class CompressedModel(tf_keras.Model):
    """A functional model whose train step ends with what a compression method does.

    The method's state (masks, ranges, the number of updates) are weights of the model, so that
    they are saved and restored with it. A model that was saved and loaded again computes and can be
    inspected, but does not train: load its weights into the model of a new `Compression` for that.

    Attributes:
        step_count: number of updates of the weights so far, int64; unlike `optimizer.iterations` it
            survives another `compile`.
        statistics_frozen: calls with `training=True` run in inference mode, so that batch-norm
            statistics and ranges stay as they are; a change takes effect with a new trace.
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.statistics_frozen = False
        self._after_step: Callable[[Any], None] | None = None
        self._callbacks: Callable[[], list[Any]] = list

    def attach(
        self,
        method: methods.Method,
        trained: Any,
        callbacks: Callable[[], list[Any]],
    ) -> None:
        """Makes the train step run `method`, and the method's state weights of this model."""
        self.step_count = variables.state_variable(tf.zeros([], tf.int64), "step_count")
        weights = {id(variable) for variable in self.weights}
        others = {id(variable) for model in _models_in(method) for variable in model.weights}
        state = [v for v in method.variables if id(v) not in weights | others]
        self._track(list({id(variable): variable for variable in state}.values()))

        def after_step(step: Any) -> None:
            method.after_step(trained, tf.cast(step, tf.int64))

        self._after_step, self._callbacks = after_step, callbacks

    def _track(self, state: list[Any]) -> None:
        """Makes variables weights of this model."""
        self._state_size = len(state)
        for index, variable in enumerate(state):  # in a list Keras would count them twice
            setattr(self, f"method_state_{index}", variable)

    @property
    def method_state(self) -> list[Any]:
        """The variables of the method, in a fixed order."""
        return [getattr(self, f"method_state_{index}") for index in range(self._state_size)]

    def __call__(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        if self.statistics_frozen and training is True:
            training = False
        return super().__call__(inputs, training=training, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update by Keras' own train step, then the method's `after_step`."""
        assert self._after_step is not None
        update, jit = super().train_step, self._jit_compile
        logs = compiled_step.train_step(self, update, data) if jit else dict(update(data))
        self.step_count.assign_add(1)
        self._after_step(tf.identity(self.step_count))
        return logs

    @property
    def jit_compile(self) -> bool:
        """Not of a whole step: with `compile(jit_compile=True)`, XLA compiles the update alone."""
        return False

    @jit_compile.setter
    def jit_compile(self, value: Any) -> None:
        tf_keras.Model.jit_compile.fset(self, value)

    def make_train_function(self, force: bool = False) -> Any:
        """As Keras' own.

        Raises:
            UsageError: the model was loaded from a file.
        """
        if self._after_step is None:
            raise UsageError(
                "model",
                "a compression model that was loaded from a file",
                "the model of a new mobilenet.prune or mobilenet.quantize_aware",
                "load its weights there: compression.model.load_weights(path)",
            )
        return super().make_train_function(force)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As `tf_keras.Model.fit`; the callbacks of the method are added if they are missing."""
        is_list = isinstance(callbacks, tf_keras.callbacks.CallbackList)
        listed = callbacks.callbacks if is_list else tf.nest.flatten(callbacks or [])
        missing = [own for own in self._callbacks() if own not in listed]
        if is_list:
            for own in missing:
                callbacks.append(own)
        else:
            callbacks = [*missing, *listed]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Architecture and the names, shapes and types of the method's state.

        Raises:
            UsageError: the method computes kernels in layers of its own, which no file describes.
        """
        wrapped = [x.name for x in self.layers if is_wrapper(x) and not is_quantization_layer(x)]
        if wrapped:
            raise UsageError(
                "model",
                f"wrapped layers ({shorten(wrapped)})",
                "plain layers; only the weights of this one can be saved",
                "use save_weights, or ModelCheckpoint(..., save_weights_only=True)",
            )
        config: dict[str, Any] = _functional(self).get_config()
        state = [self.step_count, *self.method_state]
        specs = [[v.name.split(":")[0], list(v.shape), v.dtype.name] for v in state]
        return {**config, _STATE: specs}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CompressedModel:
        """The model with its state, for inference and inspection."""
        config = dict(config)
        specs = config.pop(_STATE)
        with tf_keras.saving.custom_object_scope(_custom_objects()):
            plain = tf_keras.Model.from_config(config, custom_objects)
        model = cls(plain.inputs, plain.outputs, name=config["name"])
        if is_quantized(model):
            scheme.share_phase(model)
        state = [
            tf.Variable(tf.zeros(shape, dtype), trainable=False, name=name)
            for name, shape, dtype in specs
        ]
        model.step_count = state[0]
        model._track(state[1:])
        return model


@dataclasses.dataclass(frozen=True)
class CompressionReport:
    """What a compression has done so far.

    Attributes:
        method: name of its config's class.
        steps: updates of the weights so far.
        planned_steps: as given at the start.
        target_step: number of updates after which the model satisfies the method's target.
        notes: human-readable, one a layer and more.
        details: further figures of the method, as JSON values by name.
    """

    method: str
    steps: int
    planned_steps: int
    target_step: int
    notes: tuple[str, ...]
    details: Mapping[str, Any]

    @property
    def target_reached(self) -> bool:
        """Whether the model satisfies the method's target."""
        return self.steps >= self.target_step

    @property
    def warning(self) -> str:
        """Why the result is not what was asked for; empty if it is."""
        if self.target_reached and self.steps >= self.planned_steps:
            return ""
        text = f"trained for {self.steps:,} of the {self.planned_steps:,} steps of `steps`"
        if not self.target_reached:
            text += f"; {self.method} reaches its target after {self.target_step:,}"
        return text

    def __str__(self) -> str:
        reached = "target reached" if self.target_reached else "target not reached"
        head = f"{self.method}: {self.steps:,} of {self.planned_steps:,} steps, {reached}"
        return "\n".join((head, *(f"  {note}" for note in self.notes)))


@dataclasses.dataclass(frozen=True)
class StartModel:
    """The model that a compression starts from.

    Attributes:
        model: flat, of stock layers.
        final_activation: what follows its output in training only, in float: `softmax`, `sigmoid`
            or `linear`.
    """

    model: Any
    final_activation: str = "linear"

    @property
    def activation(self) -> str | None:
        """What turns the outputs into probabilities; `None` if it is not known."""
        return self.final_activation if self.final_activation in ACTIVATIONS else None

    def activate(self, output: Any) -> Any:
        """The output that the user's loss gets."""
        if self.final_activation == "linear":
            return output
        layer = tf_keras.layers.Activation(
            self.final_activation, dtype="float32", name="final_activation"
        )
        return layer(output)


class Compression:
    """A model that is compressed while the user's own loop trains it.

    With `fit`, everything happens by itself. A loop of one's own calls `before_step` and
    `after_step` around every update of the weights of `model`:

        for step, (x, y) in enumerate(batches):
            if compression.before_step(step):
                update = tf.function(train_on_batch)  # trace again: the method enters a phase
            update(x, y)
            compression.after_step(step + 1)

    Attributes:
        model: trains; compile it as any Keras model.
    """

    def __init__(self, method: methods.Method, start: StartModel) -> None:
        """Applies a method to a model, in the strategy scope that the model was created in.

        Raises:
            UsageError: the method cannot be applied to the model.
        """
        self._method, self._start = method, start
        self._strategy = start.model.distribute_strategy
        with self._strategy.scope(), precision_of(start.model):
            method.check(start.model)
            self._trained = method.apply(start.model)
            _freeze_wrappers(self._trained, start.model)
            outputs = start.activate(self._trained.output)
            self.model = CompressedModel(self._trained.inputs, outputs, name=start.model.name)
            self._phases = PhaseCallback(method)
            self.model.attach(method, self._trained, lambda: self.callbacks)
        self._finished = False

    @property
    def callbacks(self) -> list[Any]:
        """Keras callbacks that lead the method through its phases; `fit` adds them itself."""
        return [self._phases]

    def before_step(self, step: int) -> bool:
        """Prepares the update that follows `step` updates (0 before the first).

        Returns:
            Whether a compiled train step must be traced again.
        """
        return prepare_step(self._method, self.model, step)

    def after_step(self, step: Any) -> None:
        """Restores the method's constraints after update number `step`, from 1.

        Works eagerly and inside a `tf.function`; not needed with `fit` and `train_on_batch`, whose
        step does it.
        """
        step = tf.cast(step, tf.int64)
        self.model.step_count.assign(step)
        self._method.after_step(self._trained, step)

    @property
    def report(self) -> CompressionReport:
        """What the method has done so far."""
        planned = self._method.context.steps
        return CompressionReport(
            type(self._method.config).__name__,
            int(self.model.step_count.numpy()),
            planned,
            bisect.bisect_left(range(planned), True, key=self._method.target_reached),
            tuple(self._method.notes(self._trained)),
            dict(self._method.report()),
        )

    def finish(self) -> Any:
        """Ends the compression.

        Returns:
            A float32 model of stock layers that holds the constraints; of quantization-aware
            training a `QuantizedModel`.

        Raises:
            UsageError: it was called before, or inside the scope of a distribution strategy.

        Warns:
            UserWarning: training took fewer steps than planned, or the target was not reached.
        """
        if self._finished:
            raise UsageError(
                "compression", "finished already", "one call of finish", "use what it returned"
            )
        if tf.distribute.has_strategy():
            raise UsageError("finish", "a call inside a strategy scope", "one after it has closed")
        report = self.report
        if report.warning:
            warnings.warn(report.warning, UserWarning, stacklevel=2)
        self._finished = True
        with self._strategy.scope(), precision_of(self._start.model):
            ranges = int8_saving.ranges_of(self._trained)
            floats = int8_saving.float_layers_of(self._trained)
            plain = self._method.finalize(self._trained)
        with precision_of(None):
            config = config_of(plain) or config_of(self._start.model)
            plain = freeze.float32_copy(plain, logits=False)
            if config is not None:
                plain.mobilenet_config = config
            if ranges is None:
                return plain
            card = Card(
                input_shape=tuple(plain.input_shape[1:]),
                preprocessing=self._method.context.preprocessing,
                outputs="logits",
                activation=self._start.activation,
                keep_float=floats,
                notes=report.notes,
            )
            return quantized_model.assemble(plain, ranges, card)


class PhaseCallback(tf_keras.callbacks.Callback):
    """Takes a method from phase to phase while its model trains.

    Args:
        method: what trains.
    """

    def __init__(self, method: methods.Method) -> None:
        super().__init__()
        self.method = method

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del epoch, logs
        # Not in on_train_batch_begin: Keras warns of a slow one.
        self._prepare()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if batch:
            self._prepare()

    def _prepare(self) -> None:
        if prepare_step(self.method, self.model, int(self.model.step_count.numpy())):
            self.model.make_train_function(force=True)


def prepare_step(method: methods.Method, model: Any, step: int) -> bool:
    """Prepares the update of a model that follows `step` updates.

    Args:
        method: what trains.
        model: has `statistics_frozen`, which is set.
        step: updates so far.

    Returns:
        Whether the train step must be traced again.
    """
    frozen = method.statistics_frozen(step)
    changed = method.before_step(step) or frozen != model.statistics_frozen
    model.statistics_frozen = frozen
    return changed


# HDF5 files name a class without its package.
tf_keras.saving.get_custom_objects()[CompressedModel.__name__] = CompressedModel


def _functional(model: Any) -> Any:
    """The plain functional model of a subclass, sharing its layers."""
    return tf_keras.Model(model.inputs, model.outputs, name=model.name)


def _custom_objects() -> dict[str, Any]:
    """Classes of layers that a compression method puts into a model."""
    return {**tf_keras.saving.get_custom_objects(), **scheme.custom_objects()}


def _models_in(method: methods.Method) -> list[Any]:
    """Keras models that a method holds: their weights are not its state."""
    return [value for value in vars(method).values() if isinstance(value, tf_keras.Model)]


def _freeze_wrappers(trained: Any, start: Any) -> None:
    """Freezes the wrappers of layers that are frozen in the model that the user gave."""
    frozen = {layer.name for layer in start.layers if not layer.trainable}
    for layer in trained.layers:
        inner = unwrap(layer)
        if inner is not layer and inner.name in frozen:
            layer.trainable = False


def frozen_kernels_warning(method: methods.Method, model: Any) -> str:
    """Warns of kernels of frozen layers, which are pruned or rounded too: no training makes up for
    it.

    Args:
        method: that was applied.
        model: that it was applied to.

    Returns:
        A message with the remedy; empty if there are none.
    """
    kernels = [target.layer for target in getattr(method, "targets", ()) if target.sparsity]
    what = "prune"
    if not isinstance(method.config, Pruning):
        kernels, what = [x.name for x in model.layers if _is_rounded(x)], "quantize"
    frozen = [name for name in kernels if not model.get_layer(name).trainable]
    if not frozen:
        return ""
    return (
        f"{len(frozen)} of the {len(kernels)} kernels to {what} are frozen and cannot recover: "
        f"{shorten(frozen)}; set `trainable = True` on the model first"
    )


def _is_rounded(layer: Any) -> bool:
    """Whether quantization changes a layer's kernel; kernels of 0 and 1 alone are exact."""
    if kind(layer) not in WEIGHTS:
        return False
    return not all(np.isin(weight, (0, 1)).all() for weight in layer.get_weights())


def prune(
    model: Any,
    sparsity: float | Mapping[str, float] | None,
    steps: int,
    config: Pruning | None,
    data: Any,
    preprocessing: input_preprocessing.Choice,
    seed: int,
) -> Compression:
    """See `mobilenet.prune`.

    Raises:
        UsageError: an argument is wrong, or the method cannot be applied to the model.
    """
    _check_config(config, Pruning)
    if config is not None and sparsity is not None:
        raise UsageError("sparsity", sparsity, "none with `config`", "put it into the config")
    if isinstance(config, ChannelPruning) and config.stages > 1:
        remedy = "call prune once a stage, each time on the model that finish returned"
        raise UsageError("config", f"stages={config.stages}", "one stage", remedy)
    flat = flatten.flatten(model)
    if config is None:
        shares = sparsity if isinstance(sparsity, Mapping) else _shares(flat, sparsity)
        config = MagnitudePruning(final_sparsity=dict(shares))
    return _compress(model, StartModel(flat), config, steps, data, "data", preprocessing, seed)


def quantize_aware(
    model: Any,
    images: Any,
    steps: int,
    config: Config | None,
    preprocessing: input_preprocessing.Choice,
    seed: int,
) -> Compression:
    """See `mobilenet.quantize_aware`.

    Raises:
        UsageError: an argument is wrong, or a layer of the model has no int8 form.
    """
    if isinstance(config, PostTraining):
        raise UsageError(
            "config", "PostTraining", "a method that trains", "mobilenet.quantize takes it"
        )
    _check_config(config, *QUANTIZATION.values())
    config = config or QuantizationAwareTraining()
    if isinstance(config, QuantizationAwareTraining):
        start = StartModel(*final_activation.split_final_activation(model))
    else:
        start = StartModel(flatten.flatten(model))
    return _compress(model, start, config, steps, images, "images", preprocessing, seed)


def _check_config(config: object, *kinds: type[Config]) -> None:
    if config is not None and not isinstance(config, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UsageError("config", type(config).__name__, f"a config of {expected}")


def _shares(model: Any, sparsity: float | None) -> dict[str, float]:
    share = 0.5 if sparsity is None else sparsity
    check_number("sparsity", share, least=0, below=1)
    return sparsity_targets.shares_by_role(model, share)


def _compress(
    model: Any,
    start: StartModel,
    config: Config,
    steps: int,
    data: Any,
    parameter: str,
    preprocessing: input_preprocessing.Choice,
    seed: int,
) -> Compression:
    remedy = "updates of the weights: epochs times batches an epoch"
    check_number("steps", steps, least=1, integer=True, remedy=remedy)
    resolved = input_preprocessing.resolve(model, preprocessing)
    count = getattr(config, "calibration_images", None) or getattr(config, "reconstruct", None)

    @functools.cache
    def examples() -> Examples:
        if data is None:
            raise UsageError(parameter, None, f"images; {type(config).__name__} looks at some")
        shape = start.model.input_shape[1:]
        loaded = load_examples(data, shape, count, parameter, resolved)
        check_range(loaded.images, resolved, parameter)
        return loaded

    def labeled(limit: int) -> tuple[Float32Array, Any]:
        labels = examples().labels
        if labels is None:
            expected = "(images, labels); this importance takes gradients"
            raise UsageError(parameter, "images", expected)
        return examples().images[:limit], labels[:limit]

    context = methods.StageContext(
        steps,
        resolved,
        lambda limit: examples().images[:limit],
        labeled_examples=labeled,
        measure_latency=measure_latency,
        seed=seed,
    )
    method = methods.create(config, context)
    if method.needs_images:
        examples()
    compression = Compression(method, start)
    if warning := frozen_kernels_warning(method, start.model):
        warnings.warn(warning, UserWarning, stacklevel=4)
    return compression
