"""Layer-wise decay of the learning rate: early layers, which have the most general features, move
less than late ones (Clark et al., arXiv 2003.10555; Bao et al., arXiv 2106.08254).
"""

from __future__ import annotations

from typing import Any

from mobilenet.models.graph.roles import Graph, kind, unwrap


def rate_factors(model: Any, decay: float) -> dict[int, float]:
    """What multiplies the learning rate of each variable.

    `decay ** depth`, where the classifier has the depth 0, and any other layer one more than the
    number of spatial convolutions, depthwise or not, that follow it: one in each block of a
    MobileNet.

    Args:
        model: functional, wrapped or plain.
        decay: of a block, 0..1.

    Returns:
        Factors by the id of the variable.
    """
    graph = Graph(model)
    factors: dict[int, float] = {}
    for layer in graph.layers:
        after = graph.descendants(layer)
        is_last = graph.role(layer) == "classifier" or not any(x.weights for x in after)
        depth = 0 if is_last else 1 + sum(map(_is_spatial, after))
        factors |= {id(variable): decay**depth for variable in layer.weights}
    return factors


def _is_spatial(layer: Any) -> bool:
    if kind(layer) not in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
        return False
    return tuple(unwrap(layer).kernel_size) != (1, 1)
