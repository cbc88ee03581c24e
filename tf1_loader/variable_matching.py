"""Matches variables to weights, strictly both ways, and names the likely cause of a mismatch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.tf1_loader.architecture_detection import Detected, scopes_of

HEAD = "Logits"


class MismatchError(UsageError):
    """A checkpoint that does not fit a model; the message is shortened, these lists are complete.

    Attributes:
        missing: variables that the model needs.
        left_over: variables that no weight of the model takes.
        reshaped: variables of another shape, with both shapes.
    """

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A weight of the model and the variable that fills it.

    Attributes:
        weight: `<layer>/<kernel, bias, gamma, ...>`.
        target: the Keras variable.
        variable: name in the checkpoint.
        drop_first: leave out the first of the classes.
    """

    weight: str
    target: Any
    variable: str
    drop_first: bool = False


def weights(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Layer name, weight name and variable of every weight."""
    for layer in model.layers:
        for variable in layer.weights:
            yield layer.name, variable.name.split("/")[-1].split(":")[0], variable


def match_variables(
    model: Any,
    config: MobileNetConfig,
    shapes: Mapping[str, tuple[int, ...]],
    detected: Detected,
    path: str,
    *,
    head: bool,
    drop_first: bool,
) -> list[Assignment]:
    """Assigns a variable to every weight, and every variable to a weight.

    Args:
        model, config: the model.
        shapes: of the model's variables in the checkpoint, by their own names.
        detected: the architecture of the checkpoint, for its prefix and the cause of a mismatch.
        path: for the error.
        head: fill the classifier too.
        drop_first: leave out its first class.

    Raises:
        MismatchError: a weight without a variable, a variable without a weight, or another shape.
    """
    scopes = scopes_of(config)
    assignments: list[Assignment] = []
    missing: list[str] = []
    reshaped: list[str] = []
    unused = dict.fromkeys(shapes)
    for layer, weight, target in weights(model):
        if layer == HEAD and not head:
            continue
        inner = scopes.variable(layer, weight)
        name = f"{detected.prefix}{inner or f'{layer}/{weight}'}"
        unused.pop(name, None)
        cut = drop_first and layer == HEAD
        expected = tuple(target.shape)
        if name not in shapes:
            missing.append(name)
        elif _fits(shapes[name], expected, cut):
            assignments.append(Assignment(f"{layer}/{weight}", target, name, cut))
        else:
            reshaped.append(f"{name} {list(shapes[name])}, model {list(expected)}")
    if missing or unused or reshaped:
        raise _mismatch(tuple(missing), tuple(unused), tuple(reshaped), path, config, detected)
    return assignments


def _fits(shape: tuple[int, ...], expected: tuple[int, ...], cut: bool) -> bool:
    if cut:
        shape = (*shape[:-1], shape[-1] - 1)
    return shape == expected or (
        len(expected) == 4 and expected[:2] == (1, 1) and shape == expected[2:]
    )


def _mismatch(
    missing: tuple[str, ...],
    left_over: tuple[str, ...],
    reshaped: tuple[str, ...],
    path: str,
    config: MobileNetConfig,
    detected: Detected,
) -> MismatchError:
    """The error: counts and first names of what does not fit, and the likely cause."""
    kinds = {"missing": missing, "left over": left_over, "of another shape": reshaped}
    counts = [f"{len(names)} {what}: {shorten(names)}" for what, names in kinds.items() if names]
    model = type(config).__name__
    expected = f"all weights of {model}(width_multiplier={config.width_multiplier:g}) and no others"
    is_part = bool(missing) and not left_over
    fault = MismatchError(
        path, None, f"{expected}; {'; '.join(counts)}", _cause(is_part, config, detected)
    )
    fault.missing, fault.left_over, fault.reshaped = missing, left_over, reshaped
    return fault


def _cause(is_part: bool, config: MobileNetConfig, detected: Detected) -> str:
    fields = [
        name
        for name in ("width_multiplier", "finegrain_classification_mode", "num_classes")
        if getattr(config, name) != getattr(detected.config, name)
    ]
    kind = type(detected.config)
    if kind is type(config) and not fields:
        other = "some of its variables belong to something else"
        return "it is not the whole model" if is_part else other
    values = ", ".join(f"{name}={getattr(detected.config, name)!r}" for name in fields)
    return f"it holds {detected}: {kind.__name__}({values}) fits"
