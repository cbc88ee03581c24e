"""What the tests of pruning and quantization share: a toy model, batches, and its training."""

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

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.configs import archs
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.export import tflite_converter
from mobilenet.export.verification import verify
from mobilenet.models.builder import build
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph
from mobilenet.runtime import interpreter as runtime
from mobilenet.runtime import micro
from mobilenet.tflite import model as tflite_model

L = tf_keras.layers
WAY = PREPROCESSING["inception"]
SIZE = 16
CLASSES = 4


def toy(channels: int = 8, bias: bool = False) -> tf_keras.Model:
    """Stem, depthwise, pointwise, residual, squeeze without batch norm, pool, logits; 16 px.

    The names say nothing about the roles.
    """
    tf_keras.utils.set_random_seed(3)

    def step(x: Any, layer: Any, relu: bool = True) -> Any:
        x = L.BatchNormalization(momentum=0.8, name=f"{layer.name}_norm")(layer(x))
        return L.ReLU(6.0, name=f"{layer.name}_act")(x) if relu else x

    source = L.Input((SIZE, SIZE, 3), name="input")
    x = step(source, L.Conv2D(channels, 3, 2, padding="same", use_bias=bias, name="a"))
    y = step(x, L.DepthwiseConv2D(3, padding="same", use_bias=bias, name="b"))
    y = step(y, L.Conv2D(channels, 1, use_bias=bias, name="c"), relu=False)
    x = L.Add(name="sum")([x, y])
    x = L.ReLU(name="d_act")(L.Conv2D(2 * channels, 1, name="d")(x))
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Conv2D(CLASSES, 1, name="e")(x)
    return tf_keras.Model(source, L.Flatten(name="flat", dtype="float32")(x), name="toy")


def hard_swish_model() -> Any:
    """Convolutions with a hard-swish between, a residual sum and a dense layer at the end."""
    tf_keras.utils.set_random_seed(6)
    source = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(8, 3, 2, use_bias=False, name="first")(source))
    y = L.Rescaling(1.0, 3.0, name="shift")(x)
    y = L.Rescaling(1 / 6, name="scale")(L.ReLU(6.0, name="six")(y))
    x = L.Multiply(name="swish")([x, y])
    y = L.DepthwiseConv2D(3, padding="same", name="middle")(x)
    x = L.Add(name="sum")([x, L.ReLU(name="relu")(y)])
    x = L.Conv2D(6, 1, name="last")(x)
    x = L.Dense(4, name="dense")(L.GlobalAveragePooling2D(name="pool")(x))
    return liven(tf_keras.Model(source, x))


def narrow_v3(size: int) -> Any:
    """V3-small of a quarter of its width, ten logits."""
    tf_keras.utils.set_random_seed(1)
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    return liven(build(archs.get("mobilenet_v3_small", **fields), (size, size, 3)))


def answers(model: Any, images: np.ndarray) -> np.ndarray:
    return model(images, training=False).numpy().reshape(len(images), -1)


def noise(found: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error of outputs as a share of their own square."""
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def liven(model: Any, seed: int = 0) -> Any:
    """Gives the batch norms of a model statistics as training leaves them. In place.

    Mean and variance are those of a batch, so that images still differ at the end of a deep model.
    """
    rng = np.random.default_rng(seed)
    norms = [x for x in model.layers if type(x).__name__ == "BatchNormalization"]
    momentum = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
        n = layer.moving_mean.shape[0]
        layer.gamma.assign(rng.uniform(0.5, 1.5, n))
        layer.beta.assign(rng.normal(0, 0.3, n))
    model(inputs(32, model.input_shape[1], seed), training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    return model


def pixels(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Blocks of color with noise on them, uint8 `[count, size, size, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def inputs(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """The same, as a float model takes them: `pixel / 127.5 - 1`."""
    return (pixels(count, size, seed).astype(np.float32) - 127.5) / 127.5


def stage(steps: int = 20, size: int = SIZE) -> methods.StageContext:
    return methods.StageContext(steps, WAY, lambda count: inputs(count, size))


def train(
    model: Any,
    method: methods.Method | None,
    steps: int,
    size: int = SIZE,
    rate: float = 0.05,
    watch: Callable[[int], None] = lambda step: None,
    after_update: Callable[[tf.Tensor], None] = lambda step: None,
) -> float:
    """Some steps as the engine takes them, `watch` called after each; returns the last loss."""
    from mobilenet.training.engine import Learner

    def both(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)
        after_update(step)

    learner = Learner(model, both)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(tf_keras.optimizers.SGD(rate, momentum=0.9), loss)
    images = inputs(8 * steps, size, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    value = 0.0
    for step in range(1, steps + 1):
        rows = slice(8 * (step - 1), 8 * step)
        value = float(learner.train_on_batch(images[rows], labels[rows]))
        watch(step)
    return value


def zeros(array: Any) -> float:
    """The share of entries that are exactly zero."""
    return float(np.mean(np.asarray(array) == 0))


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A model on its way to int8: plain, simulated for export, and as a file.

    Attributes:
        plain: the float model.
        wrapped: its simulation, repaired and on the file's input grid.
        ranges: of its activations.
        data: the file.
        said: logits of the simulation as training evaluates it, of `inputs(16)`.
    """

    plain: Any
    wrapped: Any
    ranges: dict[str, np.ndarray]
    data: bytes
    said: np.ndarray


def quantize(plain: Any, size: int = SIZE, mend: bool = True, epochs: int = 0) -> Quantized:
    """Wrap, calibrate, train on 16 images and convert; `mend=False` leaves out the repair."""
    wrapped = scheme.wrap(plain, WAY)
    calibrate(wrapped, inputs(32, size))
    if epochs:
        wrapped.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        wrapped.fit(inputs(16, size), np.arange(16) % 10, 8, epochs, verbose=0)
    ranges = scheme.get_ranges(wrapped)
    said = wrapped(inputs(16, size), training=False).numpy()
    if mend:
        int8_saving.for_export(wrapped)
    else:
        found = scheme.quantizers(wrapped)
        for layer in plain.layers:
            if f"{layer.name}/kernel" in found:
                quantizer = found[f"{layer.name}/kernel"]
                quantizer.variables["absmax"].assign(quantizer.reach(variables.kernel(layer)))
        wrapped.phase.exporting = True
    return Quantized(plain, wrapped, ranges, tflite_converter.int8_flatbuffer(wrapped), said)


def grid(images: np.ndarray) -> np.ndarray:
    """uint8 pixels as a file takes them."""
    return (images.astype(np.float32) - 128) / np.float32(127.5)


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
        way = small.InterpreterConfig.kPreserveAllTensors
        self._content = content
        self._own = small.Interpreter.from_bytes(
            content.content, arena_size=1 << 24, intrepreter_config=way
        )

    def set_tensor(self, index: int, codes: np.ndarray) -> None:
        assert (index,) == self._content.inputs
        self._own.set_input(codes, 0)

    def invoke(self) -> None:
        self._own.invoke()

    def get_tensor(self, index: int) -> np.ndarray:
        return np.asarray(self._own.GetTensor(index, 0)["tensor_data"])


Runner = Callable[[tflite_model.Flatbuffer], Any]


def file_tensors(
    data: bytes, images: np.ndarray, make: Runner = plain_kernels
) -> dict[str, tuple[np.ndarray, float, int]]:
    """Codes, scale and zero point of every operator's output, by the first part of its name."""
    content = tflite_model.read(data)
    runner = make(content)
    wanted = [content.tensors[index] for op in content.operators for index in op.outputs]
    rows: dict[int, list[np.ndarray]] = {tensor.index: [] for tensor in wanted}
    for image in images:
        codes = (image.astype(np.int16) - 128).astype(np.int8)
        runner.set_tensor(content.inputs[0], codes[None])
        runner.invoke()
        for index in rows:
            rows[index].append(runner.get_tensor(index)[0].copy())
    return {
        t.name.split(";")[0]: (np.stack(rows[t.index]), float(t.scales[0]), int(t.zero_points[0]))
        for t in wanted
    }


def operator_steps(
    made: Quantized, images: np.ndarray, make: Runner = plain_kernels
) -> dict[str, np.ndarray]:
    """How far the file is from the simulation, operator by operator, in steps.

    Every simulated operator is fed the *file's* codes, so that errors do not add up.

    Args:
        made: from `quantize`.
        images: uint8.
        make: whose kernels run the file.

    Returns:
        By the layer whose output is rounded: absolute difference of each code.
    """
    tensors = file_tensors(made.data, images, make)
    graph = Graph(made.wrapped)
    values: dict[int, Any] = {}
    chain: dict[int, list[str]] = {}  # layers that one operator has swallowed so far
    steps = {}
    for layer in graph.layers:
        before = graph.producers(layer)
        fed = [values[id(p)] for p in before] or [tf.constant(grid(images))]
        out = layer(fed[0] if len(fed) == 1 else fed, training=False)
        swallowed = [name for p in before for name in chain[id(p)]]
        chain[id(layer)] = [*swallowed, layer.name]
        config = getattr(layer, "quantize_config", None)
        if config is not None and config.get_output_quantizers(layer):
            names = [n for n in tensors if n.split("/")[1] in chain[id(layer)]]
            assert len(names) == 1, (layer.name, names)
            codes, scale, zero = tensors[names[0]]
            own = np.round(out.numpy().astype(np.float64) / scale) + zero
            codes = codes.reshape(own.shape)
            steps[layer.layer.name] = np.abs(own - codes)
            out = tf.constant(((codes.astype(np.float64) - zero) * scale).astype(np.float32))
            chain[id(layer)] = []
        elif "quantizer" in vars(layer):
            chain[id(layer)] = []
        values[id(layer)] = out
    return steps


def logit_steps(made: Quantized, images: np.ndarray) -> np.ndarray:
    """End to end: difference of the logits, in output steps; default kernels, delegate and all."""
    said = made.wrapped(grid(images), training=False).numpy()
    content = tflite_model.read(made.data)
    step = float(content.tensors[content.outputs[0]].scales[0])
    runner = runtime.make(made.data)
    return np.abs(verify.run(runner, grid(images)) - said) / step


@functools.cache
def family(name: str) -> Quantized:
    """One of the seven models at a quarter of its width, 64 px, taken to int8; do not change it."""
    tf_keras.utils.set_random_seed(1)
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    return quantize(liven(build(archs.get(name, **fields), (64, 64, 3))), 64)
