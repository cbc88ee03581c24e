"""A model over all images, layer by layer, while its weights change.

Each layer is computed with the final weights of the layers before it. A whole model would have to
be computed again after each change; here every layer is computed once or a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from mobilenet.models.graph.roles import Graph
from mobilenet.typing import Float32Array

_BATCH = 25


class LayerwiseRunner:
    """Runs a model in inference mode, one layer after the other.

    Args:
        graph: of a functional model; its layers take tensors alone.
        images: `[n, height, width, channels]`, preprocessed.
        is_stored: whether a layer's output of all images stays in memory until all its consumers
            have been computed; other outputs are computed again each time they are read.
    """

    def __init__(
        self, graph: Graph, images: Float32Array, is_stored: Callable[[Graph, Any], bool]
    ) -> None:
        self.graph = graph
        self.images = images
        self._is_stored = is_stored
        self._stored: dict[int, list[Any]] = {}
        self._done: set[int] = set()

    def advance(self, layer: Any) -> None:
        """Marks a layer as final; its weights and those of the layers before it must not change."""
        self._done.add(id(layer))
        if not self._is_stored(self.graph, layer):
            return
        self._stored[id(layer)] = list(self.outputs(layer))
        for other in self.graph.ancestors(layer):
            if id(other) in self._stored and not self._is_needed(other):
                del self._stored[id(other)]

    def outputs(self, layer: Any, images: int | None = None) -> Iterator[Any]:
        """The outputs of a layer, batch by batch, for at least `images` images (default: all)."""
        for start in range(0, len(self.images) if images is None else images, _BATCH):
            yield self._output(layer, start)

    def inputs(self, layer: Any, images: int | None = None) -> Iterator[Any]:
        """The inputs of a layer that has one, as `outputs` yields them."""
        (source,) = self.graph.producers(layer)
        return self.outputs(source, images)

    def _output(self, layer: Any, start: int) -> Any:
        if id(layer) in self._stored:
            return self._stored[id(layer)][start // _BATCH]
        inputs = [self._output(other, start) for other in self.graph.producers(layer)]
        if not inputs:
            return tf.constant(self.images[start : start + _BATCH])
        return layer(inputs if len(inputs) > 1 else inputs[0], training=False)

    def _is_needed(self, layer: Any) -> bool:
        """Whether a later layer reads this one, directly or through outputs that are not stored."""
        return any(
            id(other) not in self._done
            or (id(other) not in self._stored and self._is_needed(other))
            for other in self.graph.consumers(layer)
        )
