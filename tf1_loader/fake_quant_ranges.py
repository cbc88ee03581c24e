"""The ranges of kernels and activations that quantization-aware training of TF1 learned.

Source: tensorflow/contrib/quantize of TensorFlow 1. Its names are those of operators, so that the
root scope of V1 occurs in them twice. Kernel ranges are those of kernels with batch norm folded in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mobilenet.tf1_loader.checkpoint import Checkpoint
from mobilenet.tf1_loader.variable_names import Scopes, unit_output

Range = tuple[float, float]


def read_ranges(
    source: Checkpoint, variables: Iterable[str], scopes: Scopes, prefix: str, model: Any
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Ranges by quantizer (see `Report.ranges`), and those of unknown quantizers, by scope."""
    variables = set(variables)
    layers = {layer.name for layer in model.layers}
    named: dict[str, Range] = {}
    unnamed: dict[str, Range] = {}
    for low in sorted(name for name in variables if name.endswith("/min")):
        quantizer = low.removesuffix("/min")
        if f"{quantizer}/max" not in variables:
            continue
        bounds = (float(source.read(low).min()), float(source.read(f"{quantizer}/max").max()))
        name = _our_quantizer(quantizer, scopes, prefix, layers)
        if name is None or name in named:
            unnamed[quantizer] = bounds
        else:
            named[name] = bounds
    return named, unnamed


def _our_quantizer(quantizer: str, scopes: Scopes, prefix: str, layers: set[str]) -> str | None:
    scope, _, kind = quantizer.rpartition("/")
    root = f"{scopes.root}/"
    scope = scope.removeprefix(prefix).removeprefix(root)
    layer = scopes.layer(scope)
    if layer is not None:
        if kind == "weights_quant":
            return f"{layer}/kernel"
        return unit_output(layer, layers) if kind in ("act_quant", "conv_quant") else None
    block = re.fullmatch(r"expanded_conv(_\d+)?", scope)
    sums = ("add_quant", "act_quant", "activation_Add_quant", "post_activation_bypass_quant")
    if block and kind in sums and f"{scope}_add" in layers:
        return f"{scope}_add"
    if block and kind == "activation_Mul_quant" and f"{scope}_squeeze_excite_multiply" in layers:
        return f"{scope}_squeeze_excite_multiply"
    return None


def ranges_to_json(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    """Low and high by quantizer."""
    return {name: list(bounds) for name, bounds in ranges.items()}
