"""Whether the calls of a functional model can all be made, in some order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.errors import UsageError
from mobilenet.models.safe_loading import allowed

Json = Any
CONSTANT = "_CONSTANT_VALUE"  # instead of a layer's name: a constant operand


class RefusedModel(UsageError):
    """A saved model that holds something that is not read."""


def looks_like_reference(value: Json) -> bool:
    """Whether Keras takes a value for an output of a layer."""
    return isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str)


def is_reference(value: Json) -> bool:
    """Whether it is an output of a layer: `[layer, call, output]`, arguments may follow."""
    return (
        looks_like_reference(value)
        and value[0] != CONSTANT
        and all(type(index) is int and index >= 0 for index in value[1:3])
    )


def references_in(value: Json) -> Iterator[tuple[str, int, int]]:
    """Layer, call and output of each that a call takes."""
    if is_reference(value):
        yield value[0], value[1], value[2]
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, (list, dict)):
        for item in items:
            yield from references_in(item)


class Connections:
    """The calls of a functional model; Keras waits without end for an output that never comes.

    Args:
        config: a sanitized functional model's `config`.
        where: names the model in errors.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._first: dict[str, int] = {}  # the number of a layer's first call
        self._done: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        for layer in config["layers"]:
            name = layer["name"]
            if name in self._first:
                raise RefusedModel(where, name, "layers of different names")
            is_model = layer["class_name"] in allowed.MODELS
            self._first[name] = self._done[name] = int(is_model)  # it was called as it was built
            self._outputs[name] = _output_count(layer) if is_model else 1

    def check(self) -> None:
        """Goes through the layers as Keras does, until all calls are done or none can be.

        Raises:
            RefusedModel: two layers of one name, or an input that no layer computes.
        """
        layers = self._config["layers"]
        waiting = {
            layer["name"]: deque(list(references_in(call)) for call in layer["inbound_nodes"])
            for layer in layers
        }
        inputs = {layer["name"] for layer in layers if layer["class_name"] == "InputLayer"}
        progress = True
        while progress:
            progress = False
            for name, calls in waiting.items():
                while calls and self._ready(calls[0], inputs):
                    calls.popleft()
                    self._done[name] += 1
                    progress = True
        stuck = [name for name, calls in waiting.items() if calls]
        if stuck:
            raise RefusedModel(
                f"{self._where} layer {stuck[0]!r}", None, "inputs that other layers compute"
            )
        for key in ("input_layers", "output_layers"):
            if not self._ready(list(references_in(self._config[key])), inputs):
                raise RefusedModel(f"{self._where} {key}", None, "outputs that layers compute")

    def _ready(self, references: list[tuple[str, int, int]], inputs: set[str]) -> bool:
        for name, index, output in references:
            if name not in self._first:
                raise RefusedModel(self._where, name[:80], "the name of one of its layers")
            if output >= self._outputs[name]:
                raise RefusedModel(f"{self._where} layer {name!r}", output, "one of its outputs")
            if name not in inputs and not self._first[name] <= index < self._done[name]:
                return False
        return True


def _output_count(model: Mapping[str, Any]) -> int:
    outputs = model["config"].get("output_layers")  # a sequential model has none: one output
    return 1 if outputs is None or is_reference(outputs) else len(outputs)
