"""Small models taken to int8 files, and the comparison of a file with its simulation."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert import interpreter
from small_models import (
    INCEPTION,
    QUICK,
    SIZE,
    file_inputs,
    inputs,
    randomize_batch_norm,
    short_blocks,
)

from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.configs import archs
from mobilenet.export import tflite_converter
from mobilenet.export.verification import verify
from mobilenet.models.builder import build
from mobilenet.models.graph.roles import Graph
from mobilenet.runtime import interpreter as runtime
from mobilenet.runtime import micro
from mobilenet.tflite import model as tflite_model


@dataclasses.dataclass(frozen=True)
class Int8Model:
    """A model on its way to int8: plain, simulated for export, and as a file.

    Attributes:
        plain: the float model.
        wrapped: its simulation, repaired and on the file's input grid.
        ranges: of its activations.
        data: the file.
        logits: logits of the simulation as training evaluates it, of `inputs(16)`.
    """

    plain: Any
    wrapped: Any
    ranges: dict[str, np.ndarray]
    data: bytes
    logits: np.ndarray


def quantize_to_file(
    plain: Any, size: int = SIZE, workarounds: bool = True, epochs: int = 0
) -> Int8Model:
    """Wrap, calibrate, train on 16 images and convert; `workarounds=False` leaves out the
    workarounds for converter bugs."""
    wrapped = scheme.wrap(plain, INCEPTION)
    calibrate(wrapped, inputs(32, size))
    if epochs:
        wrapped.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        wrapped.fit(inputs(16, size), np.arange(16) % 10, 8, epochs, verbose=0)
    ranges = scheme.get_ranges(wrapped)
    logits = wrapped(inputs(16, size), training=False).numpy()
    int8_saving.prepare_export(wrapped, repair=workarounds)
    return Int8Model(plain, wrapped, ranges, tflite_converter.int8_flatbuffer(wrapped), logits)


def plain_kernels(content: tflite_model.Flatbuffer) -> Any:
    """Kernels without a delegate, whose inner tensors can be read."""
    runner = interpreter.Interpreter(
        model_content=content.content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner.allocate_tensors()
    return runner


class MicroKernels:
    """Those of TensorFlow Lite Micro; inner tensors can be read."""

    def __init__(self, content: tflite_model.Flatbuffer) -> None:
        small = importlib.import_module(micro.MODULE)
        preserve_all = small.InterpreterConfig.kPreserveAllTensors
        self._content = content
        self._own = small.Interpreter.from_bytes(
            content.content, arena_size=1 << 24, intrepreter_config=preserve_all
        )

    def set_tensor(self, index: int, values: np.ndarray) -> None:
        assert (index,) == self._content.inputs
        self._own.set_input(values, 0)

    def invoke(self) -> None:
        self._own.invoke()

    def get_tensor(self, index: int) -> np.ndarray:
        return np.asarray(self._own.GetTensor(index, 0)["tensor_data"])


Runner = Callable[[tflite_model.Flatbuffer], Any]


def file_tensors(
    data: bytes, images: np.ndarray, make: Runner = plain_kernels
) -> dict[str, tuple[np.ndarray, float, int]]:
    """Values, scale and zero point of every operator's output, by the first part of its name."""
    content = tflite_model.read(data)
    runner = make(content)
    outputs = [content.tensors[index] for op in content.operators for index in op.outputs]
    rows: dict[int, list[np.ndarray]] = {tensor.index: [] for tensor in outputs}
    for image in images:
        pixels = (image.astype(np.int16) - 128).astype(np.int8)
        runner.set_tensor(content.inputs[0], pixels[None])
        runner.invoke()
        for index in rows:
            rows[index].append(runner.get_tensor(index)[0].copy())
    return {
        t.name.split(";")[0]: (np.stack(rows[t.index]), float(t.scales[0]), int(t.zero_points[0]))
        for t in outputs
    }


def operator_steps(
    model: Int8Model, images: np.ndarray, make: Runner = plain_kernels
) -> dict[str, np.ndarray]:
    """How far the file is from the simulation, operator by operator, in steps.

    Every simulated operator is fed the *file's* values, so that errors do not add up.

    Args:
        model: from `quantize_to_file`.
        images: uint8.
        make: whose kernels run the file.

    Returns:
        By the layer whose output is rounded: absolute difference of each value.
    """
    tensors = file_tensors(model.data, images, make)
    graph = Graph(model.wrapped)
    values: dict[int, Any] = {}
    chain: dict[int, list[str]] = {}  # layers that one operator has swallowed so far
    steps = {}
    for layer in graph.layers:
        before = graph.producers(layer)
        fed = [values[id(p)] for p in before] or [tf.constant(file_inputs(images))]
        out = layer(fed[0] if len(fed) == 1 else fed, training=False)
        swallowed = [name for p in before for name in chain[id(p)]]
        chain[id(layer)] = [*swallowed, layer.name]
        config = getattr(layer, "quantize_config", None)
        if config is not None and config.get_output_quantizers(layer):
            names = [n for n in tensors if n.split("/")[1] in chain[id(layer)]]
            assert len(names) == 1, (layer.name, names)
            quantized, scale, zero = tensors[names[0]]
            own = np.round(out.numpy().astype(np.float64) / scale) + zero
            quantized = quantized.reshape(own.shape)
            steps[layer.layer.name] = np.abs(own - quantized)
            out = tf.constant(((quantized.astype(np.float64) - zero) * scale).astype(np.float32))
            chain[id(layer)] = []
        elif "quantizer" in vars(layer):
            chain[id(layer)] = []
        values[id(layer)] = out
    return steps


def logit_steps(model: Int8Model, images: np.ndarray) -> np.ndarray:
    """End to end: difference of the logits, in output steps; default kernels, delegate and all."""
    logits = model.wrapped(file_inputs(images), training=False).numpy()
    content = tflite_model.read(model.data)
    step = float(content.tensors[content.outputs[0]].scales[0])
    runner = runtime.make_interpreter(model.data)
    return np.abs(verify.run(runner, file_inputs(images)) - logits) / step


@functools.cache
def int8_family(name: str, short: bool | None = None) -> Int8Model:
    """One of our models at a quarter of its width, 64 px, taken to int8; do not change it.

    Those of quick tests have the first row of each kind alone, unless `short` says otherwise.
    """
    tf_keras.utils.set_random_seed(1)
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    if name in QUICK if short is None else short:
        fields["blocks"] = short_blocks(name)
    return quantize_to_file(randomize_batch_norm(build(archs.get(name, **fields), (64, 64, 3))), 64)
