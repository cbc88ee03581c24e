"""Each operator of an int8 file against the layers that it stands for, and the noise up to there.

Operators that compute in float between codes are verified together, at the codes that they end
with. The file runs with every tensor kept. Layer by layer the simulated model is then fed what the
*file* computed before, so that the one-step differences of rounding do not add up: what is left is
the operator's own, and more than a step of it is a wrong scale, zero point, range or kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import error_diagnosis
from mobilenet.export.verification.structure import name_of
from mobilenet.metrics import signal_to_noise
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.runtime import interpreter, quantized_io
from mobilenet.tflite import kernels, tensors
from mobilenet.tflite import model as tflite_model

Floats = npt.NDArray[np.floating]
# Operators that move codes without computing, or compute what is compared behind them.
MOVING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "PADV2", "MAX_POOL_2D")
_SAME = 1e-5  # relative: scales that float32 arithmetic can tell apart
_TIE = 0.5 + 1e-4  # codes: so near to halfway between two zero points either may be taken
_ROUNDING = ("AveragePooling2D", "Softmax")  # layers that round in the file without a quantizer


@dataclasses.dataclass(frozen=True)
class Proof:
    """One rounded tensor of a file and the simulated layer that it belongs to.

    Attributes:
        layer: the layer whose output is rounded.
        operator: what computes it in the file; the last with a kernel of several in float.
        differing: share of codes that differ when both are fed the file's own input.
        max_steps: the largest of these differences, in codes.
        signal_to_noise: dB, of the file's tensor end to end against the float model on the same
            images; `None` where the float model gives zeros alone.
        input_signal_to_noise: the lowest of the tensors that the operator reads.
        added_noise: noise that is not yet in those, as a share of the signal.
        kernel_zeros: share of zero codes in the operator's kernel; `None` without a kernel.
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


def compare(
    content: tflite_model.Flatbuffer, simulated: Any, plain: Any, inputs: Floats
) -> tuple[tuple[Proof, ...], list[str]]:
    """Verifies every operator of an int8 file on a few images.

    Args:
        content: the file.
        simulated: the model with fake quantization that it was made from, as it was converted.
        plain: the float model with layers of the same names, kernels as trained.
        inputs: `[images, height, width, channels]`, as `simulated` takes them.

    Returns:
        A row for each rounded tensor in execution order, and what is wrong besides the steps:
        operators or layers without a counterpart, kernels that lost zeros or clusters.
    """
    walk = _Walk(content, simulated, plain, inputs)
    for layer in walk.graph.layers:
        walk.visit(layer)
    left = [
        f"{op.name} {name_of(content.tensors[op.outputs[0]])}"
        for op in content.operators
        if id(op) not in walk.seen and walk.computes(op)
    ]
    if left:
        walk.faults.append(
            f"{len(left)} operators belong to no layer of the model, the first {left[0]}"
        )
    if walk.unmatched:
        walk.faults.append(f"no operator of the file computes {walk.unmatched}")
    return tuple(walk.proofs), walk.faults


def step_faults(proofs: Iterable[Proof], most: int | None) -> list[str]:
    """The rows that are further from the simulation than `most` steps, one line each."""
    return [
        f"{proof.layer} ({proof.operator}): {proof.max_steps} steps from the simulated layer, "
        f"above {most}"
        for proof in proofs
        if most is not None and proof.max_steps > most
    ]


def worst(proofs: Sequence[Proof], count: int = 5) -> list[Proof]:
    """The `count` layers that lose most signal: those of the most added noise, worst first."""
    return sorted(proofs, key=lambda proof: -proof.added_noise)[:count]


class _Walk:
    """The simulated model in execution order, beside what the file computed."""

    def __init__(
        self, content: tflite_model.Flatbuffer, simulated: Any, plain: Any, inputs: Floats
    ) -> None:
        self.content, self.inputs = content, inputs.astype(np.float32)
        self.graph = Graph(simulated)
        self.plain = {layer.name: layer for layer in plain.layers}
        self.codes = kept_codes(content, self.inputs)
        self.real = self._float_outputs(plain)
        self.islands = float_fallback.find(content)
        floats = {tensor.index for tensor in content.float_tensors()}
        self.makers = [
            op for op in content.operators if self.computes(op) and op.outputs[0] not in floats
        ]
        self.values: dict[int, Any] = {}
        self.chains: dict[int, list[Any]] = {}  # layers that one operator has swallowed so far
        self.signals: dict[int, list[error_diagnosis.Signal]] = {}  # that the chain reads
        self.readers = {id(x): len(self.graph.consumers(x)) for x in self.graph.layers}
        self.seen: set[int] = set()
        self.proofs: list[Proof] = []
        self.faults: list[str] = []
        self.unmatched = ""  # the last rounding layer, where no operator was found for it

    def computes(self, op: tensors.Operator) -> bool:
        """Whether an operator stands for layers; an end of another type than codes does not."""
        if op.name not in float_fallback.CONVERSIONS:
            return op.name not in MOVING
        if op.name == "QUANTIZE" and op.inputs[0] in self.content.inputs:
            return False
        is_end = op.outputs[0] in self.content.outputs
        return not is_end or not len(self.content.tensors[op.inputs[0]].scales)

    def _float_outputs(self, plain: Any) -> dict[str, Floats]:
        """What the float model makes of the same images, at each layer that rounds in the file."""
        rounding = [unwrap(x).name for x in self.graph.layers if _rounds(x)]
        names = [name for name in rounding if name in self.plain]
        model = tf_keras.Model(plain.inputs, [self.plain[name].output for name in names])
        outputs = model(tf.constant(self.inputs), training=False)
        listed = outputs if len(names) > 1 else [outputs]
        return {name: value.numpy() for name, value in zip(names, listed, strict=True)}

    def visit(self, layer: Any) -> None:
        """Computes a layer from the file's codes; where the file rounds, compares and goes on with
        the file's own."""
        before = self.graph.producers(layer)
        if not before:
            self._begin(layer)
            return
        fed = [self.values[id(x)] for x in before]
        self.chains[id(layer)] = [*_joined(self.chains[id(x)] for x in before), layer]
        self.signals[id(layer)] = _joined(self.signals[id(x)] for x in before)
        if kind(layer) == "QuantizeLayer":
            self._take_input(layer)
        else:
            out = layer(fed[0] if len(fed) == 1 else fed, training=False)
            self.values[id(layer)] = self._rounded(layer, out) if _rounds(layer) else out
        for source in before:
            self.readers[id(source)] -= 1
            if not self.readers[id(source)]:
                del self.values[id(source)]

    def _begin(self, layer: Any) -> None:
        self.values[id(layer)] = tf.constant(self.inputs)
        self.chains[id(layer)], self.signals[id(layer)] = [], []

    def _take_input(self, layer: Any) -> None:
        """The codes of the input, whose grid `structure_faults` has looked at."""
        index = self.content.inputs[0]
        for op in self.content.operators:
            if op.name == "QUANTIZE" and index in op.inputs:
                index = op.outputs[0]
        self._take(layer, "input", index, self.inputs)

    def _take(self, layer: Any, name: str, index: int, real: Floats) -> error_diagnosis.Signal:
        """Goes on with the file's tensor in place of the simulated one."""
        tensor = self.content.tensors[index]
        scale, zero = quantized_io.scale_of(tensor)
        held = quantized_io.dequantized(self.codes[index], scale, zero).reshape(real.shape)
        signal = error_diagnosis.Signal(name, real, scale, zero, signal_to_noise(real, held))
        self.values[id(layer)] = tf.constant(held.astype(np.float32))
        self.chains[id(layer)], self.signals[id(layer)] = [], [signal]
        return signal

    def _rounded(self, layer: Any, out: Any) -> Any:
        name, chain = unwrap(layer).name, self.chains[id(layer)]
        operator = self._operator(chain)
        # The mean of a 1 x 1 map is left out of the file; what comes behind it is compared.
        self.unmatched = name if operator is None else ""
        if operator is None:
            return out
        read = self.signals[id(layer)]
        index = operator.outputs[0]
        tensor, own = self.content.tensors[index], out.numpy()
        if self.codes[index].size != own.size or not len(tensor.scales):
            self.faults.append(f"{name}: {operator.name} of {list(tensor.shape)} {tensor.dtype}")
            return out
        scale, zero = quantized_io.scale_of(tensor)
        self.faults += _grid_faults(layer, name, scale, zero)
        codes = self.codes[index].reshape(own.shape).astype(np.float64)
        steps = np.abs(np.round(own.astype(np.float64) / scale) + zero - codes)
        signal = self._take(layer, name, index, self.real.get(name, own).reshape(own.shape))
        heard = [other.ratio for other in read if other.ratio is not None]
        island = self.islands.get(index)
        sort = "kernel" if operator.name in kernels.KERNEL_OPERATORS else "other"
        sort = "depthwise" if operator.name == "DEPTHWISE_CONV_2D" else sort
        self.proofs.append(
            Proof(
                layer=name,
                operator=operator.name if island is None else island.name,
                differing=float(np.mean(steps > 0)),
                max_steps=int(np.nan_to_num(steps.max(initial=0), nan=255)),
                signal_to_noise=None if signal.ratio is None else round(signal.ratio, 2),
                input_signal_to_noise=round(min(heard), 2) if heard else None,
                added_noise=error_diagnosis.added(signal, read),
                kernel_zeros=self._kernel_zeros(operator, chain),
                diagnosis=error_diagnosis.explain(signal, read, sort),
            )
        )
        return self.values[id(layer)]

    def _operator(self, chain: Sequence[Any]) -> tensors.Operator | None:
        """The operator whose output is named after one of the layers; the last if several are."""
        names = {layer.name for layer in chain}
        for first in (True, False):  # the converter joins the names of what it fuses
            found = []
            for op in self.makers:
                joined = self.content.tensors[op.outputs[0]].name.split(";")
                words = {w for part in joined[: 1 if first else None] for w in part.split("/")}
                if id(op) not in self.seen and words & names:
                    found.append(op)
            if found:
                island = self.islands.get(found[-1].outputs[0])
                own = [found[-1]] if island is None else island.operators
                self.seen.update(id(op) for op in own)
                return found[-1]
        return None

    def _kernel_zeros(self, operator: tensors.Operator, chain: Sequence[Any]) -> float | None:
        """Compares the operator's kernel with that of its layer; gives its share of zeros."""
        if operator.name not in kernels.KERNEL_OPERATORS:
            return None
        layer = next((x for x in chain if self.graph.kernel(x) is not None), None)
        if layer is None:
            return None
        file = kernels.codes_of(operator, self.content, tuple(self.graph.kernel(layer).shape))
        if file is None:
            return None
        name, is_depthwise = unwrap(layer).name, kind(layer) == "DepthwiseConv2D"
        if name in self.plain and layer.quantize_config.weight_quantizer is not None:
            model = kernels.by_channel(Graph.kernel(self.plain[name]).numpy(), is_depthwise)
            simulated = kernels.by_channel(_simulated_codes(layer), is_depthwise)
            self.faults += kernels.faults(name, model, simulated, file)
        return float(np.mean(file == 0))


def _joined(lists: Iterable[list[Any]]) -> list[Any]:
    """What is in any of some lists, once; in float they would double at every fork."""
    return list({id(value): value for part in lists for value in part}.values())


def _rounds(layer: Any) -> bool:
    """Whether the file rounds what this layer gives."""
    config = getattr(layer, "quantize_config", None)
    if config is None:
        return kind(layer) in _ROUNDING
    return bool(config.get_output_quantizers(layer)) or kind(layer) in _ROUNDING


def _grid_faults(layer: Any, name: str, scale: float, zero: int) -> list[str]:
    """The file must round on the grid of the layer's range: a grid that is a little off is within
    a step of it everywhere."""
    config = getattr(layer, "quantize_config", None)
    quantizers = config.get_output_quantizers(layer) if config is not None else []
    if not quantizers:
        return []
    low, high = (float(tf.convert_to_tensor(quantizers[0].variables[x])) for x in ("low", "high"))
    wanted = (high - low) / 255
    exact = -128 - low / wanted
    if abs(scale / wanted - 1) < _SAME and abs(zero - exact) <= _TIE:
        return []
    return [
        f"{name}: scale {scale:.6g} and zero point {zero} instead of "
        f"{wanted:.6g} and {round(exact)}"
    ]


def _simulated_codes(layer: Any) -> npt.NDArray[np.int16]:
    """The codes of a wrapped layer's kernel, `[..., channels]` as Keras keeps it."""
    ((kernel, quantizer),) = layer.quantize_config.get_weights_and_quantizers(layer.layer)
    variable = next(v for v in layer.weights if v.name.endswith("kernel:0"))
    del kernel  # after a call it is the quantized tensor, not the variable
    values = quantizer(tf.convert_to_tensor(variable), False, quantizer.variables).numpy()
    reach = np.asarray(quantizer.variables["absmax"], np.float64)
    if kind(layer) == "DepthwiseConv2D":
        reach = reach.reshape(values.shape[2:])
    codes: npt.NDArray[np.int16] = np.round(values / (reach / 127)).astype(np.int16)
    return codes


def kept_codes(
    content: tflite_model.Flatbuffer, inputs: Floats, runner: Any = None
) -> dict[int, npt.NDArray[Any]]:
    """What every operator gave, by tensor: `[images, ...]`; the input too.

    Args:
        content: the file.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.
        runner: an interpreter of the file with `keep_tensors`; one in this process when `None`.
    """
    runner = runner or interpreter.make(content, keep_tensors=True)
    wanted = [*content.inputs, *(index for op in content.operators for index in op.outputs)]
    kept: dict[int, list[npt.NDArray[Any]]] = {index: [] for index in wanted}
    for count in quantized_io.blocks(runner, inputs):
        for index, rows in kept.items():
            rows.append(np.array(runner.get_tensor(index)[:count]))
    return {index: np.concatenate(rows) for index, rows in kept.items()}
