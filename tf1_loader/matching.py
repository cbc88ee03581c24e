"""Which variable fills which weight: strict both ways, with the likely cause of a misfit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.tf1_loader.detect import Detected, scopes_of

HEAD = "Logits"


class Misfit(UsageError):
    """A checkpoint that does not fit a net; its line is shortened, these lists are whole.

    Attributes:
        missing: variables that the net needs.
        left_over: variables that the net has no place for.
        reshaped: variables of another shape, with both shapes.
    """

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Place:
    """A weight of the net and the variable that fills it.

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


def match(
    model: Any,
    config: MobileNetConfig,
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str,
    *,
    head: bool,
    drop_first: bool,
) -> list[Place]:
    """A place for every weight and every variable.

    Args:
        model, config: the net.
        shapes: of the net's variables in the checkpoint, by their own names.
        prefix: in front of slim's scopes.
        head: fill the classifier too.
        drop_first: leave out its first class.

    Raises:
        Misfit: a weight without a variable, a variable without a weight, or another shape.
    """
    scopes = scopes_of(config)
    places: list[Place] = []
    missing: list[str] = []
    reshaped: list[str] = []
    unused = dict.fromkeys(shapes)
    for layer, weight, target in weights(model):
        if layer == HEAD and not head:
            continue
        inner = scopes.variable(layer, weight)
        name = f"{prefix}{inner or f'{layer}/{weight}'}"
        unused.pop(name, None)
        cut = drop_first and layer == HEAD
        wanted = tuple(target.shape)
        if name not in shapes:
            missing.append(name)
        elif _fits(shapes[name], wanted, cut):
            places.append(Place(f"{layer}/{weight}", target, name, cut))
        else:
            reshaped.append(f"{name} {list(shapes[name])}, net {list(wanted)}")
    if missing or unused or reshaped:
        fault = Misfit("", None, "")
        fault.missing, fault.left_over = tuple(missing), tuple(unused)
        fault.reshaped = tuple(reshaped)
        raise fault
    return places


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], cut: bool) -> bool:
    if cut:
        shape = (*shape[:-1], shape[-1] - 1)
    return shape == wanted or (len(wanted) == 4 and wanted[:2] == (1, 1) and shape == wanted[2:])


def explained(fault: Misfit, path: str, config: MobileNetConfig, found: Detected) -> Misfit:
    """The fault as one line: what it is, in numbers and first names, and what causes it."""
    told = [
        f"{len(names)} {what}: {shorten(names)}"
        for what, names in (
            ("missing", fault.missing),
            ("left over", fault.left_over),
            ("of another shape", fault.reshaped),
        )
        if names
    ]
    net = type(config).__name__
    expected = f"all weights of {net}(width_multiplier={config.width_multiplier:g}) and no others"
    line = Misfit(path, None, f"{expected}; {'; '.join(told)}", _cause(fault, config, found))
    line.missing, line.left_over = fault.missing, fault.left_over
    line.reshaped = fault.reshaped
    return line


def _cause(fault: Misfit, config: MobileNetConfig, found: Detected) -> str:
    fields = [
        name
        for name in ("width_multiplier", "finegrain_classification_mode", "num_classes")
        if getattr(config, name) != getattr(found.config, name)
    ]
    kind = type(found.config)
    if kind is type(config) and not fields:
        if fault.missing and not fault.left_over:
            return "it is not the whole net"
        return "some of its variables belong to something else"
    values = ", ".join(f"{name}={getattr(found.config, name)!r}" for name in fields)
    return f"it holds {found}: {kind.__name__}({values}) fits"
