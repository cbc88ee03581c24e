"""ai-edge-quantizer's own recipes on a float file of ours (the extra `[edge]`).

They are what Google offers beside TensorFlow's converter; here they run as they come, so that
their files stand in the same table as ours. Its int4 is ours where kernels lie on a 4-bit grid.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.export.rewrites import four_bits
from mobilenet.runtime import quantized_io
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

_RECIPES = {
    "edge_dynamic": "dynamic_wi8_afp32",
    "edge_weights": "weight_only_wi8_afp32",
    "edge_static": "static_wi8_ai8",
}
_INT4 = "edge_int4"
_SIGNATURE, _INPUT, _OUTPUT = "serving_default", "input", "output"


def quantize(data: bytes, name: str, images: npt.NDArray[np.float32] | None = None) -> bytes:
    """Applies a recipe.

    Args:
        data: a float file.
        name: `edge_dynamic`, `edge_weights`, `edge_static`, or `edge_int4` for kernels on a 4-bit
            grid.
        images: `[n, height, width, channels]`, preprocessed as the file takes them, for
            `edge_static`.

    Raises:
        UsageError: the package refused the file, or no kernel of it lies on a 4-bit grid.
        ImportError: the package is not installed.
    """
    from ai_edge_quantizer import quantizer

    content = tflite_model.read(data)
    batch = content.tensors[content.inputs[0]].shape[0]
    scales = four_bits.grids(content) if name == _INT4 else {}
    if name == _INT4 and not scales:
        expected = (
            "kernels on a 4-bit grid, as --quantization linear --num_bits_pointwise 4 trains them"
        )
        raise UsageError("--quantization", name, expected)
    refused: Exception | None = None
    aside = io.StringIO()
    with freeze.quiet(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
        try:
            tool = quantizer.Quantizer(signed(data), _recipe(name, content, scales))
            seen = None
            if tool.need_calibration:
                assert images is not None
                samples = [{_INPUT: block} for block in quantized_io.batches(images, batch)]
                seen = tool.calibrate({_SIGNATURE: samples}, num_threads=1)
            made: Any = tool.quantize(seen, enable_progress_report=False).quantized_model
        except (ValueError, RuntimeError) as error:
            refused = error
    if refused is not None:
        reason = " ".join(str(refused).split())[:300]
        expected = f"a model that ai-edge-quantizer takes ({reason})"
        raise UsageError("--quantization", name, expected) from refused
    return four_bits.on_grid(bytes(made), content, scales) if scales else bytes(made)


def _recipe(name: str, content: tflite_model.Flatbuffer, kernels: Collection[int]) -> Any:
    """The package's own, or int4 for the operators of some `kernels`."""
    from ai_edge_quantizer import qtyping, recipe, recipe_manager

    if name != _INT4:
        return getattr(recipe, _RECIPES[name])()
    manager = recipe_manager.RecipeManager()
    for operator in content.operators:
        if operator.name in four_bits.OPERATORS and operator.inputs[1] in kernels:
            scope = re.escape(content.tensors[operator.outputs[0]].name)
            kind = qtyping.TFLOperationName(operator.name)
            manager.add_weight_only_config(f"^{scope};?$", kind, num_bits=4)
    return manager.get_quantization_recipe()


def signed(data: bytes) -> bytes:
    """The file with a signature, by which the package finds its ends."""
    schema, model = tflite_model.schema(), editor.opened(data)
    graph, signature = model.subgraphs[0], schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = _SIGNATURE, 0
    ends = []
    for name, index in ((_INPUT, graph.inputs[0]), (_OUTPUT, graph.outputs[0])):
        end = schema.TensorMapT()
        end.name, end.tensorIndex = name, int(index)
        ends.append([end])
    signature.inputs, signature.outputs = ends
    model.signatureDefs = [signature]
    return editor.packed(model)
