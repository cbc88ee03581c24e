"""The quantization scheme: a copy of a model in tfmot's wrappers, with our quantizers.

tfmot's `quantize_apply` clones a model four times and builds every quantizer twice in each, which
takes 11 s for V3-small; here the same wrappers are put around one copy in one pass.

A quantized model is stored as the float model with its weights as trained, and the ranges of its
activations by layer name. The wrapped model is built from both when it is needed, and never saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapperV2,
)
from tf_keras.src import backend  # the public name of the scope warns

from mobilenet.compression.quantization.int8 import channel_rescaling
from mobilenet.compression.quantization.int8.quantizer_placement import (
    QuantizerSpec,
    place_quantizers,
)
from mobilenet.compression.quantization.int8.quantizers import (
    MAX_PIXEL,
    ActivationQuantizer,
    InputQuantizer,
    Phase,
    WeightQuantizer,
)
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError, shorten
from mobilenet.models.graph import flatten, roles, variables
from mobilenet.models.graph.operators import ON_TENSORS
from mobilenet.models.graph.rebuild import precision_of, rebuild, single_or_list
from mobilenet.models.graph.roles import is_quantized, kind
from mobilenet.models.graph.variables import check_finite
from mobilenet.typing import Float32Array

Ranges = dict[str, Float32Array]
_PREFIX = "quant_"
INPUT = "input"


class LayerQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """tfmot's view of a `QuantizerSpec`: quantizers for the kernel and the output of one layer.

    Args:
        weights, output, fixed: of the `QuantizerSpec`.
        rectified: the layer's output is never below zero.
    """

    def __init__(
        self, weights: str | None, output: bool, fixed: Any, rectified: bool = False
    ) -> None:
        self.spec = QuantizerSpec(weights, output, None if fixed is None else (fixed[0], fixed[1]))
        self.rectified = rectified
        self.weight_quantizer = WeightQuantizer(weights) if weights else None
        self.output_quantizer = ActivationQuantizer(self.spec.fixed, rectified) if output else None

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return (
            []
            if self.weight_quantizer is None
            else [(variables.kernel(layer), self.weight_quantizer)]
        )

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if quantize_weights:
            attribute = "depthwise_kernel" if self.spec.weights == "depthwise" else "kernel"
            setattr(layer, attribute, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        del layer, quantize_activations

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return [] if self.output_quantizer is None else [self.output_quantizer]

    def get_config(self) -> dict[str, Any]:
        return {
            "weights": self.spec.weights,
            "output": self.spec.output,
            "fixed": self.spec.fixed,
            "rectified": self.rectified,
        }


def custom_objects() -> dict[str, Any]:
    """The classes by which Keras reads a saved model with quantizers."""
    classes = (LayerQuantizeConfig, WeightQuantizer, ActivationQuantizer, InputQuantizer)
    wrappers = (QuantizeWrapperV2, QuantizeLayer)
    return {cls.__name__: cls for cls in (*classes, *wrappers)}


def input_quantizer(
    preprocessing: Preprocessing, first: tuple[float, float] = (1.0, 0.0)
) -> InputQuantizer | ActivationQuantizer:
    """The exact pixel grid where channels share mean and deviation; else a range from data.

    Args:
        preprocessing: how pixels become inputs.
        first: scale and offset of the first layer, see `find_input_rescaling`.
    """
    scale, shift = first
    if len(set(preprocessing.mean)) == 1 and len(set(preprocessing.std)) == 1:
        mean, std = preprocessing.mean[0], preprocessing.std[0] / scale
        mean -= shift * std
        if 0 <= round(mean) <= MAX_PIXEL:
            return InputQuantizer(mean, std, scale, shift)
    return ActivationQuantizer()


def find_input_rescaling(model: Any) -> tuple[Any, tuple[float, float]]:
    """The `Rescaling` that alone reads the model's input, and its scale and offset.

    An input quantizer computes it, so that the file takes pixels exactly. `None`, 1 and 0 where
    there is no such layer, or it has a constant for each channel.
    """
    graph = roles.Graph(model)
    readers = graph.consumers(model.inputs[0]._keras_history.layer)
    if len(readers) == 1 and kind(readers[0]) == "Rescaling":
        layer = roles.unwrap(readers[0])
        if np.size(layer.scale) == np.size(layer.offset) == 1 and float(layer.scale) > 0:
            return readers[0], (float(layer.scale), float(layer.offset))
    return None, (1.0, 0.0)


def file_preprocessing(model: Any, preprocessing: Preprocessing) -> Preprocessing:
    """How pixels become inputs of an int8 file, which computes neither shift nor first layer.

    Args:
        model: the float model.
        preprocessing: how pixels become its inputs.
    """
    quantizer = input_quantizer(preprocessing, find_input_rescaling(model)[1])
    if not isinstance(quantizer, InputQuantizer):
        return preprocessing
    return preprocessing.replace(
        mean=tuple(float(quantizer.zero) for _ in preprocessing.mean),
        std=tuple(quantizer.std for _ in preprocessing.std),
    )


def to_grid(images: Float32Array, preprocessing: Preprocessing) -> Float32Array:
    """Inputs of the float model as the file takes them: `(pixel - 128) / std` on an exact grid."""
    return _on_grid(images, input_quantizer(preprocessing))


def file_inputs(wrapped: Any, images: Float32Array) -> Float32Array:
    """Inputs of a quantized model as its file takes them."""
    return _on_grid(images, quantizers(wrapped)[INPUT])


def _on_grid(images: Float32Array, quantizer: Any) -> Float32Array:
    on_grid: Float32Array = images
    if isinstance(quantizer, InputQuantizer):
        on_grid = quantizer.to_grid(images)
    return on_grid


def wrap(
    model: Any,
    preprocessing: Preprocessing,
    target: str = "xnnpack",
    keep_float: Sequence[str] = (),
) -> Any:
    """A copy of a plain model with quantizers, whose ranges are not set yet.

    Args:
        model: functional tf_keras model of stock layers; it is left as it is.
        preprocessing: how pixels become its inputs, which decides the input grid.
        target, keep_float: see `quantizer_placement.place_quantizers`.

    Returns:
        A model of tfmot's wrappers, for `calibrate` or `set_ranges`; its attribute `phase` is the
        mode of its quantizers.

    Raises:
        UsageError: the model is wrapped already, is not functional, is of Keras 3, holds a nested
            model or a layer whose int8 form is not known, or a weight that is not finite.
    """
    flatten.check_functional(model)
    if is_quantized(model):
        raise UsageError("model", model.name, "a plain model; this one is quantized already")
    check_finite(model)
    _check_layers(model)
    specs = place_quantizers(model, target, keep_float)
    rescaling, constants = find_input_rescaling(model)
    of_input = input_quantizer(preprocessing, constants)
    building = Phase()
    building.building = True

    def call_layer(layer: Any, copy: Any, inputs: list[Any]) -> Any:
        if kind(layer) == "InputLayer":
            copy = QuantizeLayer(of_input, name=_PREFIX + INPUT)
        elif layer is rescaling and isinstance(of_input, InputQuantizer):
            return inputs[0]  # the quantizer computes it
        elif layer.name in specs:
            spec = specs[layer.name]
            if channel_rescaling.is_channel_rescaling(layer):
                copy = channel_rescaling.as_convolution(layer)
                spec = dataclasses.replace(spec, weights="depthwise")
            config = LayerQuantizeConfig(**vars(spec), rectified=_is_rectified(layer))
            for quantizer in (config.weight_quantizer, config.output_quantizer):
                if quantizer is not None:
                    quantizer.phase = building
            copy = QuantizeWrapperV2(copy, config, _PREFIX)
        return _call(copy, single_or_list(inputs), _training_of(layer))

    with precision_of(model):  # new wrappers take the global policy, which may be another
        wrapped = rebuild(model, call_layer)
    _freeze_kernels(wrapped)
    copy_weights(model, wrapped)
    share_phase(wrapped)
    return wrapped


def _freeze_kernels(wrapped: Any) -> None:
    """Freezes the kernels of frozen layers: tfmot's wrapper lists every kernel as trainable."""
    for layer in wrapped.layers:
        if isinstance(layer, QuantizeWrapperV2) and not layer.layer.trainable:
            layer._non_trainable_weights += layer._trainable_weights
            layer._trainable_weights = []


def share_phase(wrapped: Any) -> None:
    """Gives all quantizers of a model one phase, its attribute `phase`. In place."""
    wrapped.phase = Phase()
    for quantizer in quantizers(wrapped).values():
        quantizer.phase = wrapped.phase


def _training_of(layer: Any) -> bool | None:
    """The `training` that a layer of a flat model is always called with; `None` if it varies."""
    nodes = [node for node in layer._inbound_nodes if not node.is_input]
    training: bool | None = nodes[0].call_kwargs.get("training") if nodes else None
    return training


def _call(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    """The symbolic output of a new layer.

    A wrapper that is called before it is known whether the model trains builds both branches of
    every quantizer, and has its Python read by autograph, though nothing in it depends on a tensor.
    """
    layer.call = tf.autograph.experimental.do_not_convert(layer.call)
    with backend.deprecated_internal_learning_phase_scope(0):
        return layer(inputs) if training is None else layer(inputs, training=training)


def _check_layers(model: Any) -> None:
    """Refuses nested models and operators on tensors."""
    for layer in model.layers:
        if kind(layer) in ON_TENSORS or isinstance(layer, tf_keras.Model):
            raise UsageError(
                f"layer {layer.name}",
                kind(layer),
                "stock layers; an operator on tensors or a nested model cannot have quantizers",
                "mobilenet.quantize makes a flat model of stock layers first, as "
                "mobilenet.models.graph.flatten does",
            )


def _is_rectified(layer: Any) -> bool:
    """Whether the output of a layer is never below zero."""
    if kind(layer) == "ReLU":
        return float(layer.negative_slope) == 0.0 and float(layer.threshold) >= 0.0
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return name in ("relu", "relu6")


def unwrap(wrapped: Any, like: Any) -> Any:
    """The plain model `like` with the weights of `wrapped`."""
    plain = tf_keras.models.clone_model(like)
    copy_weights(wrapped, plain)
    return plain


def copy_weights(source: Any, target: Any) -> None:
    """Copies the variables of all layers by layer name and variable name, wrapped or not."""
    by_layer = {roles.unwrap(layer).name: variables.named(layer) for layer in source.layers}
    for layer in target.layers:
        values = by_layer.get(roles.unwrap(layer).name, {})
        for name, variable in variables.named(layer).items():
            if name in values:
                variable.assign(tf.convert_to_tensor(values[name]))


def quantizers(wrapped: Any) -> dict[str, Any]:
    """All quantizers: `<layer>` is that of its output, `<layer>/kernel` that of its kernel."""
    by_name: dict[str, Any] = {}
    for layer in wrapped.layers:
        if isinstance(layer, QuantizeLayer):
            by_name[INPUT] = layer.quantizer
        elif isinstance(layer, QuantizeWrapperV2):
            config = layer.quantize_config
            if config.weight_quantizer is not None:
                by_name[f"{layer.layer.name}/kernel"] = config.weight_quantizer
            if config.output_quantizer is not None:
                by_name[layer.layer.name] = config.output_quantizer
    return by_name


def get_ranges(wrapped: Any) -> Ranges:
    """Low and high of every activation quantizer, by layer name."""
    return {
        name: np.asarray(
            [tf.convert_to_tensor(q.variables[end]).numpy() for end in ("low", "high")], np.float32
        )
        for name, q in quantizers(wrapped).items()
        if isinstance(q, ActivationQuantizer)
    }


def set_ranges(wrapped: Any, ranges: Mapping[str, Float32Array]) -> None:
    """Sets the ranges of all activation quantizers, as `get_ranges` returned them.

    Raises:
        UsageError: a quantizer has no range, a range has no quantizer, or one is not valid.
    """
    own = {name: q for name, q in quantizers(wrapped).items() if isinstance(q, ActivationQuantizer)}
    unmatched = sorted(set(own) ^ set(ranges))
    if unmatched:
        raise UsageError("ranges", shorten(unmatched), "one range for each quantizer of this model")
    check_ranges(ranges)
    for name, quantizer in own.items():
        low, high = (float(value) for value in ranges[name])
        quantizer.variables["low"].assign(low)
        quantizer.variables["high"].assign(high)


def check_ranges(ranges: Mapping[str, Float32Array]) -> None:
    """Checks that every range includes zero and is not empty.

    Raises:
        UsageError: one does not, or was never set.
    """
    for name, limits in ranges.items():
        low, high = (float(value) for value in limits)
        if not (np.isfinite([low, high]).all() and low <= 0 <= high and low < high):
            raise UsageError(
                f"range of {name}",
                [low, high],
                "low < high with zero between",
                "calibrate the model",
            )
