"""The tensors of our models under the names of slim's end points."""

from __future__ import annotations

from typing import Any

from mobilenet.errors import UsageError
from mobilenet.tf1_loader.variable_names import unit_output


def end_points(model: Any) -> dict[str, Any]:
    """Slim's end points: name to symbolic tensor, in the order of execution.

    Args:
        model: what `build` or a loader of TF1 checkpoints made.

    Returns:
        V1: `Conv2d_0`, `Conv2d_1_depthwise`, `Conv2d_1_pointwise`, ..., `AvgPool_1a`. The others:
        `layer_1` (the stem), `layer_2` (the first block), ..., with `layer_2/expansion_output`,
        `layer_2/depthwise_output` and `layer_2/output`. All: `global_pool` (what the classifier
        takes), `Logits` `[batch, classes]`, `Predictions`. For `Model(model.input, list(...))`.

    Raises:
        UsageError: not one of our models.
    """
    layers = {layer.name: layer for layer in model.layers}
    stem = "Conv2d_0" if "Conv2d_0" in layers else "Conv"
    if stem not in layers:
        raise UsageError("model", model.name, "a model of mobilenet.build, with slim's names")
    names = _v1(layers) if stem == "Conv2d_0" else _layers(layers)
    names["global_pool"] = _before_head(layers)
    if stem == "Conv2d_0":
        names["AvgPool_1a"] = names["global_pool"]
    if "Logits" in layers:
        names["Logits"] = "squeeze" if "squeeze" in layers else "Logits"
    if "Predictions" in layers:
        names["Predictions"] = "Predictions"
    return {name: layers[layer].output for name, layer in names.items()}


def _v1(layers: dict[str, Any]) -> dict[str, str]:
    convs = ("Conv2d_0", *(name for name in layers if name.endswith(("_depthwise", "_pointwise"))))
    return {name: end for name in convs if (end := unit_output(name, layers))}


def _layers(layers: dict[str, Any]) -> dict[str, str]:
    """`layer_N`: stem, blocks, the last convolution; in V3 the pooling and one more."""
    names: dict[str, str] = {}
    number = 0

    def add(layer: str | None, parts: dict[str, str | None] | None = None) -> None:
        nonlocal number
        if layer is None:
            return
        number += 1
        for part, name in (parts or {}).items():
            if name is not None:
                names[f"layer_{number}/{part}"] = name
        names[f"layer_{number}"] = layer

    add(unit_output("Conv", layers))
    for project in [name for name in layers if name.endswith("_project")]:
        block = project.removesuffix("_project")
        end = f"{block}_add" if f"{block}_add" in layers else unit_output(project, layers)
        parts = {
            f"{part}_output": unit_output(f"{block}_{layer}", layers)
            for part, layer in (("expansion", "expand"), ("depthwise", "depthwise"))
        }
        add(end, {**parts, "output": end})
    add(unit_output("Conv_1", layers))
    if "Conv_2" in layers:
        add("global_pool")
        add(unit_output("Conv_2", layers))
    return names


def _before_head(layers: dict[str, Any]) -> str:
    return unit_output("Conv_2", layers) or "global_pool"
