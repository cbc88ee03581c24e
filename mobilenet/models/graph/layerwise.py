"""A model over all images, layer by layer, while its weights change.

Each layer is computed with the final weights of those in front of it. A whole model would have to
be computed anew behind each change; here every layer is computed once or a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.models.graph.roles import Graph

_BATCH = 25


class LayerwiseRunner:
    """Passes of a model that takes its layers in turn, in inference mode.

    Args:
        model: functional; its layers take tensors alone.
        images: `[n, height, width, channels]`, preprocessed.
        keeps: whether a layer's output of all images stays in memory until it has been read; the
            others are computed anew from those in front of them, each time they are read.
    """

    def __init__(
        self, model: Any, images: npt.NDArray[np.float32], keeps: Callable[[Graph, Any], bool]
    ) -> None:
        self.graph = Graph(model)
        self.images = images
        self._keeps = keeps
        self._kept: dict[int, list[Any]] = {}
        self._done: set[int] = set()

    def advance(self, layer: Any) -> None:
        """Takes a layer's turn; it and those in front of it change no more."""
        self._done.add(id(layer))
        if not self._keeps(self.graph, layer):
            return
        self._kept[id(layer)] = list(self.outputs(layer))
        for other in self.graph.ancestors(layer):
            if id(other) in self._kept and not self._is_read(other):
                del self._kept[id(other)]

    def outputs(self, layer: Any, images: int | None = None) -> Iterator[Any]:
        """What a layer gives, batch by batch, till at least so many images have been."""
        for start in range(0, len(self.images) if images is None else images, _BATCH):
            yield self._value(layer, start)

    def inputs(self, layer: Any, images: int | None = None) -> Iterator[Any]:
        """What a layer of one input reads, as `outputs` gives it."""
        (source,) = self.graph.producers(layer)
        return self.outputs(source, images)

    def _value(self, layer: Any, start: int) -> Any:
        if id(layer) in self._kept:
            return self._kept[id(layer)][start // _BATCH]
        parts = [self._value(other, start) for other in self.graph.producers(layer)]
        if not parts:
            return tf.constant(self.images[start : start + _BATCH])
        return layer(parts if len(parts) > 1 else parts[0], training=False)

    def _is_read(self, layer: Any) -> bool:
        """Whether a layer still to come reads this one, or what is made of it and not kept."""
        return any(
            id(other) not in self._done or (id(other) not in self._kept and self._is_read(other))
            for other in self.graph.consumers(layer)
        )
