"""Each operator of an int8 file against the layers that it implements, and the noise up to there.

Operators that compute in float between quantized tensors are compared together, at the quantized
tensor that they end with. The file runs with every tensor kept. Layer by layer the simulated model
is then fed what the *file* computed before, so that the one-step differences of rounding do not add
up: what is left is the operator's own, and more than a step of it is a wrong scale, zero point,
range or kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression.quantization.int8.quantizers import InputQuantizer
from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import error_diagnosis
from mobilenet.metrics import signal_to_noise
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.runtime import interpreter, quantized_io
from mobilenet.tflite import kernels, tensors
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.tensors import layer_name
from mobilenet.typing import FloatArray

# Operators that move values without computing, or whose results are compared after the next one.
MOVING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "MAX_POOL_2D")
_SAME = 1e-5  # relative: scales that float32 arithmetic can tell apart
_TIE = 0.5 + 1e-4  # steps: so near to halfway between two zero points either may be taken
SIGMOID = tf_keras.activations.sigmoid
_ROUNDING = ("AveragePooling2D", "Softmax")  # layers that round in the file without a quantizer


@dataclasses.dataclass(frozen=True)
class OperatorParity:
    """One quantized tensor of a file, compared with the output of its simulated layer.

    Attributes:
        layer: the layer whose output is rounded.
        operator: what computes it in the file; the last with a kernel of several in float.
        differing: share of values that differ when both are fed the file's own input.
        max_steps: the largest of these differences, in quantization steps.
        signal_to_noise: dB, of the file's tensor end to end against the float model on the same
            images; `None` where the float model's outputs are all zero.
        input_signal_to_noise: the lowest of the tensors that the operator reads.
        added_noise: noise that is not yet in those, as a share of the signal.
        kernel_zeros: share of zeros in the operator's kernel; `None` without a kernel.
        diagnosis: the likeliest cause of the noise.
    """

    layer: str
    operator: str
    differing: float
    max_steps: int
    signal_to_noise: float | None
    input_signal_to_noise: float | None
    added_noise: float
    kernel_zeros: float | None
    diagnosis: str


def compare_operators(
    content: tflite_model.Flatbuffer, simulated: Any, plain: Any, inputs: FloatArray
) -> tuple[tuple[OperatorParity, ...], list[str]]:
    """Compares every operator of an int8 file with its simulated layer on a few images.

    Args:
        content: the file.
        simulated: the model with fake quantization that was converted to it.
        plain: the float model with layers of the same names, kernels as trained.
        inputs: `[images, height, width, channels]`, preprocessed for `simulated`.

    Returns:
        A row for each rounded tensor in execution order, and the faults other than differing
        values: operators or layers without a counterpart, kernels that lost zeros or clusters.
    """
    run = _ParityRun(content, simulated, plain, inputs)
    for layer in run.graph.layers:
        run.visit(layer)
    left = [
        f"{op.name} {layer_name(content.tensors[op.outputs[0]])}"
        for op in content.operators
        if id(op) not in run.seen and run.computes(op)
    ]
    if left:
        run.faults.append(
            f"{len(left)} operators belong to no layer of the model, the first {left[0]}"
        )
    if run.unmatched:
        run.faults.append(f"no operator of the file computes {run.unmatched}")
    return tuple(run.rows), run.faults


def step_faults(rows: Iterable[OperatorParity], max_steps: int | None) -> list[str]:
    """The operators that differ from the simulation by more than `max_steps`, one line each."""
    return [
        f"{row.layer} ({row.operator}): {row.max_steps} steps from the simulated layer, "
        f"above {max_steps}"
        for row in rows
        if max_steps is not None and row.max_steps > max_steps
    ]


def noisiest(rows: Sequence[OperatorParity], count: int = 5) -> list[OperatorParity]:
    """The `count` layers that add most noise, the worst first."""
    return sorted(rows, key=lambda row: -row.added_noise)[:count]


class _ParityRun:
    """The simulated model in execution order, compared with what the file computed."""

    def __init__(
        self, content: tflite_model.Flatbuffer, simulated: Any, plain: Any, inputs: FloatArray
    ) -> None:
        self.content, self.inputs = content, inputs.astype(np.float32)
        self.graph = Graph(simulated)
        self.plain = {layer.name: layer for layer in plain.layers}
        self.file_values = tensor_values(content, self.inputs)
        self.float_outputs = self._run_float_model(plain)
        self.float_regions = float_fallback.find_float_regions(content)
        floats = {tensor.index for tensor in content.float_tensors()}
        self.producers = [
            op for op in content.operators if self.computes(op) and op.outputs[0] not in floats
        ]
        self.values: dict[int, Any] = {}
        self.chains: dict[int, list[Any]] = {}  # layers that the converter has fused so far
        self.signals: dict[int, list[error_diagnosis.Signal]] = {}  # that the chain reads
        self.readers = {id(x): len(self.graph.consumers(x)) for x in self.graph.layers}
        self.seen: set[int] = set()
        self.rows: list[OperatorParity] = []
        self.faults: list[str] = []
        self.unmatched = ""  # the last rounding layer without an operator

    def computes(self, op: tensors.Operator) -> bool:
        """Whether an operator implements layers; conversion of the file's input or output does
        not.
        """
        if op.name not in float_fallback.CONVERSIONS:
            return op.name not in MOVING
        if op.name == "QUANTIZE" and op.inputs[0] in self.content.inputs:
            return False
        is_output = op.outputs[0] in self.content.outputs
        return not is_output or not len(self.content.tensors[op.inputs[0]].scales)

    def _run_float_model(self, plain: Any) -> dict[str, FloatArray]:
        """Outputs of the float model on the same images, of each layer that rounds in the file."""
        rounding = [unwrap(x).name for x in self.graph.layers if _rounds(x)]
        names = [name for name in rounding if name in self.plain]
        model = tf_keras.Model(plain.inputs, [self.plain[name].output for name in names])
        inputs, quantizer = self.inputs, self._input_quantizer()
        if isinstance(quantizer, InputQuantizer):
            inputs = quantizer.undo_rescaling(inputs)
        outputs = model(tf.constant(inputs), training=False)
        listed = outputs if len(names) > 1 else [outputs]
        return {name: value.numpy() for name, value in zip(names, listed, strict=True)}

    def _input_quantizer(self) -> Any:
        layers = (x for x in self.graph.layers if kind(x) == "QuantizeLayer")
        return next((layer.quantizer for layer in layers), None)

    def visit(self, layer: Any) -> None:
        """Computes a layer from the file's values; where the file rounds, compares and continues
        with the file's own."""
        producers = self.graph.producers(layer)
        if not producers:
            self._start(layer)
            return
        inputs = [self.values[id(x)] for x in producers]
        self.chains[id(layer)] = [*_union(self.chains[id(x)] for x in producers), layer]
        self.signals[id(layer)] = _union(self.signals[id(x)] for x in producers)
        if kind(layer) == "QuantizeLayer":
            self._take_input(layer)
        else:
            outputs = layer(inputs[0] if len(inputs) == 1 else inputs, training=False)
            rounds = _rounds(layer)
            self.values[id(layer)] = self._compare(layer, outputs) if rounds else outputs
        for source in producers:
            self.readers[id(source)] -= 1
            if not self.readers[id(source)]:
                del self.values[id(source)]

    def _start(self, layer: Any) -> None:
        self.values[id(layer)] = tf.constant(self.inputs)
        self.chains[id(layer)], self.signals[id(layer)] = [], []

    def _take_input(self, layer: Any) -> None:
        """The quantized input, whose scale `structure_faults` has checked."""
        index = self.content.inputs[0]
        for op in self.content.operators:
            if op.name == "QUANTIZE" and index in op.inputs:
                index = op.outputs[0]
        self._take(layer, "input", index, self.inputs)

    def _take(
        self, layer: Any, name: str, index: int, expected: FloatArray
    ) -> error_diagnosis.Signal:
        """Continues with the file's tensor instead of the simulated one."""
        scale, zero_point = quantized_io.scale_of(self.content.tensors[index])
        values = quantized_io.dequantize(self.file_values[index], scale, zero_point)
        values = values.reshape(expected.shape)
        ratio = signal_to_noise(expected, values)
        signal = error_diagnosis.Signal(name, expected, scale, zero_point, ratio)
        self.values[id(layer)] = tf.constant(values.astype(np.float32))
        self.chains[id(layer)], self.signals[id(layer)] = [], [signal]
        return signal

    def _compare(self, layer: Any, outputs: Any) -> Any:
        """Compares a layer's outputs with the file's; the values to continue with."""
        name, chain = unwrap(layer).name, self.chains[id(layer)]
        operator = self._operator(chain)
        # The mean of a 1 x 1 map is left out of the file; the layer after it is compared.
        self.unmatched = name if operator is None else ""
        if operator is None:
            return outputs
        inputs = self.signals[id(layer)]
        index = operator.outputs[0]
        tensor, simulated = self.content.tensors[index], outputs.numpy()
        if self.file_values[index].size != simulated.size or not len(tensor.scales):
            self.faults.append(f"{name}: {operator.name} of {list(tensor.shape)} {tensor.dtype}")
            return outputs
        scale, zero_point = quantized_io.scale_of(tensor)
        self.faults += _grid_faults(layer, name, scale, zero_point)
        stored = self.file_values[index].reshape(simulated.shape).astype(np.float64)
        steps = np.abs(np.round(simulated.astype(np.float64) / scale) + zero_point - stored)
        expected = self.float_outputs.get(name, simulated).reshape(simulated.shape)
        signal = self._take(layer, name, index, expected)
        ratios = [other.ratio for other in inputs if other.ratio is not None]
        region = self.float_regions.get(index)
        role = "kernel" if operator.name in kernels.KERNEL_OPERATORS else "other"
        role = "depthwise" if operator.name == "DEPTHWISE_CONV_2D" else role
        self.rows.append(
            OperatorParity(
                layer=name,
                operator=operator.name if region is None else region.name,
                differing=float(np.mean(steps > 0)),
                max_steps=int(np.nan_to_num(steps.max(initial=0), nan=255)),
                signal_to_noise=None if signal.ratio is None else round(signal.ratio, 2),
                input_signal_to_noise=round(min(ratios), 2) if ratios else None,
                added_noise=error_diagnosis.added_noise(signal, inputs),
                kernel_zeros=self._kernel_zeros(operator, chain),
                diagnosis=error_diagnosis.diagnose(signal, inputs, role).text,
            )
        )
        return self.values[id(layer)]

    def _operator(self, chain: Sequence[Any]) -> tensors.Operator | None:
        """The operator whose output is named after one of the layers; the last if several are."""
        for first in (True, False):  # the names of what was fused are joined
            matches = []
            for op in self.producers:
                paths = tensors.name_paths(self.content.tensors[op.outputs[0]].name)
                named = paths[:1] if first else paths
                if id(op) not in self.seen and any(_is_of(path, chain) for path in named):
                    matches.append(op)
            if matches:
                region = self.float_regions.get(matches[-1].outputs[0])
                members = [matches[-1]] if region is None else region.operators
                self.seen.update(id(op) for op in members)
                return matches[-1]
        return None

    def _kernel_zeros(self, operator: tensors.Operator, chain: Sequence[Any]) -> float | None:
        """Compares the operator's kernel with its layer's; returns its share of zeros."""
        if operator.name not in kernels.KERNEL_OPERATORS:
            return None
        layer = next((x for x in chain if self.graph.kernel(x) is not None), None)
        if layer is None:
            return None
        shape = tuple(self.graph.kernel(layer).shape)
        stored = kernels.int8_kernel_matrix(operator, self.content, shape)
        if stored is None:
            return None
        name, is_depthwise = unwrap(layer).name, kind(layer) == "DepthwiseConv2D"
        if name in self.plain and layer.quantize_config.weight_quantizer is not None:
            own = Graph.kernel(self.plain[name])  # a `Rescaling` has none: constants
            variable = _kernel_variable(layer) if own is None else own
            trained = kernels.kernel_matrix(variable.numpy(), is_depthwise)
            simulated = kernels.kernel_matrix(_simulated_kernel(layer), is_depthwise)
            self.faults += kernels.kernel_faults(name, trained, simulated, stored)
        return float(np.mean(stored == 0))


def _is_of(path: Sequence[str], chain: Sequence[Any]) -> bool:
    """Whether a path of a tensor's name belongs to one of the layers; see `tensors.name_paths`."""
    if len(path) == 1:
        return any(unwrap(layer).name == path[0] for layer in chain)
    return any(layer.name in path for layer in chain)


def _union(lists: Iterable[list[Any]]) -> list[Any]:
    """The members of some lists, each once; in float they would double at every branch."""
    return list({id(value): value for part in lists for value in part}.values())


def _rounds(layer: Any) -> bool:
    """Whether the file rounds this layer's outputs."""
    config = getattr(layer, "quantize_config", None)
    rounds = kind(layer) in _ROUNDING or getattr(layer, "activation", None) is SIGMOID
    return rounds or (config is not None and bool(config.get_output_quantizers(layer)))


def _grid_faults(layer: Any, name: str, scale: float, zero_point: int) -> list[str]:
    """The file must have the scale and zero point of the layer's range; slightly wrong ones would
    differ by less than a step everywhere."""
    config = getattr(layer, "quantize_config", None)
    quantizers = config.get_output_quantizers(layer) if config is not None else []
    if not quantizers:
        return []
    low, high = (float(tf.convert_to_tensor(quantizers[0].variables[x])) for x in ("low", "high"))
    expected = (high - low) / 255
    exact = -128 - low / expected
    if abs(scale / expected - 1) < _SAME and abs(zero_point - exact) <= _TIE:
        return []
    return [
        f"{name}: scale {scale:.6g} and zero point {zero_point} instead of "
        f"{expected:.6g} and {round(exact)}"
    ]


def _kernel_variable(layer: Any) -> Any:
    """The kernel of a wrapped layer, whose attribute is the quantized tensor after a call."""
    return next(v for v in layer.weights if v.name.endswith("kernel:0"))


def _simulated_kernel(layer: Any) -> npt.NDArray[np.int16]:
    """The quantized kernel of a wrapped layer, `[..., channels]` as in Keras."""
    quantizer = layer.quantize_config.weight_quantizer
    variable = tf.convert_to_tensor(_kernel_variable(layer))
    values = quantizer(variable, False, quantizer.variables).numpy()
    largest = np.asarray(quantizer.variables["absmax"], np.float64)
    if kind(layer) == "DepthwiseConv2D":
        largest = largest.reshape(values.shape[2:])
    quantized: npt.NDArray[np.int16] = np.round(values / (largest / 127)).astype(np.int16)
    return quantized


def tensor_values(
    content: tflite_model.Flatbuffer, inputs: FloatArray, runner: Any = None
) -> dict[int, npt.NDArray[Any]]:
    """The stored values of every operator's output and of the input, by tensor: `[images, ...]`.

    Args:
        content: the file.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.
        runner: an interpreter of the file with `keep_tensors`; one in this process when `None`.
    """
    runner = runner or interpreter.make_interpreter(content, keep_tensors=True)
    indices = [*content.inputs, *(index for op in content.operators for index in op.outputs)]
    values: dict[int, list[npt.NDArray[Any]]] = {index: [] for index in indices}
    for count in quantized_io.invoke_batches(runner, inputs):
        for index, batches in values.items():
            batches.append(np.array(runner.get_tensor(index)[:count]))
    return {index: np.concatenate(batches) for index, batches in values.items()}
