"""Whether the calls of a functional model can all be made, in some order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.errors import UsageError

from . import allowed

Json = Any
CONSTANT = "_CONSTANT_VALUE"  # in place of a layer's name: a constant operand


class RefusedModel(UsageError):
    """A saved model that holds something that is not read."""


def is_reference(value: Json) -> bool:
    """Whether it is an output of a layer: `[layer, call, output]`, arguments may follow."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and value[0] != CONSTANT
        and all(type(index) is int for index in value[1:3])
    )


def references_in(value: Json) -> Iterator[tuple[str, int]]:
    """Layer and call of each output that a call takes."""
    if is_reference(value):
        yield value[0], value[1]
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
        for layer in config["layers"]:
            if layer["name"] in self._first:
                raise RefusedModel(where, layer["name"], "layers of different names")
            self._first[layer["name"]] = self._done[layer["name"]] = _first_call(layer)

    def check(self) -> None:
        """Goes through the layers as Keras does, until all calls are done or none can be.

        Raises:
            RefusedModel: two layers of one name, or an input that no layer computes.
        """
        waiting = {layer["name"]: deque(layer["inbound_nodes"]) for layer in self._config["layers"]}
        inputs = {
            layer["name"] for layer in self._config["layers"] if layer["class_name"] == "InputLayer"
        }
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
            if not self._ready(self._config[key], inputs):
                raise RefusedModel(f"{self._where} {key}", None, "outputs that layers compute")

    def _ready(self, call: Json, inputs: set[str]) -> bool:
        for name, index in references_in(call):
            if name not in self._first:
                raise RefusedModel(self._where, name[:80], "the name of one of its layers")
            if name not in inputs and not self._first[name] <= index < self._done[name]:
                return False
        return True


def _first_call(layer: Mapping[str, Any]) -> int:
    """1 for a model inside a model, which was called once as it was built, else 0."""
    if layer["class_name"] not in allowed.MODELS:
        return 0
    layers = layer["config"]["layers"]
    has_input = any(inner["class_name"] == "InputLayer" for inner in layers)
    return int(has_input or (bool(layers) and "batch_input_shape" in layers[0]["config"]))
