"""Which variable fills which weight: strict both ways, with the likely cause of a misfit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.tf1_loader.architecture_detection import Detected, scopes_of

HEAD = "Logits"


class Misfit(UsageError):
    """A checkpoint that does not fit a model; its line is shortened, these lists are whole.

    Attributes:
        missing: variables that the model needs.
        left_over: variables that the model has no place for.
        reshaped: variables of another shape, with both shapes.
    """

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Place:
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


def match(
    model: Any,
    config: MobileNetConfig,
    shapes: Mapping[str, tuple[int, ...]],
    found: Detected,
    path: str,
    *,
    head: bool,
    drop_first: bool,
) -> list[Place]:
    """A place for every weight and every variable.

    Args:
        model, config: the model.
        shapes: of the model's variables in the checkpoint, by their own names.
        found: what the checkpoint holds, for its prefix and the likely cause of a misfit.
        path: for the error.
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
        name = f"{found.prefix}{inner or f'{layer}/{weight}'}"
        unused.pop(name, None)
        cut = drop_first and layer == HEAD
        wanted = tuple(target.shape)
        if name not in shapes:
            missing.append(name)
        elif _fits(shapes[name], wanted, cut):
            places.append(Place(f"{layer}/{weight}", target, name, cut))
        else:
            reshaped.append(f"{name} {list(shapes[name])}, model {list(wanted)}")
    if missing or unused or reshaped:
        raise _misfit(tuple(missing), tuple(unused), tuple(reshaped), path, config, found)
    return places


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], cut: bool) -> bool:
    if cut:
        shape = (*shape[:-1], shape[-1] - 1)
    return shape == wanted or (len(wanted) == 4 and wanted[:2] == (1, 1) and shape == wanted[2:])


def _misfit(
    missing: tuple[str, ...],
    left_over: tuple[str, ...],
    reshaped: tuple[str, ...],
    path: str,
    config: MobileNetConfig,
    found: Detected,
) -> Misfit:
    """One line: what does not fit, in numbers and first names, and what causes it."""
    kinds = {"missing": missing, "left over": left_over, "of another shape": reshaped}
    told = [f"{len(names)} {what}: {shorten(names)}" for what, names in kinds.items() if names]
    model = type(config).__name__
    expected = f"all weights of {model}(width_multiplier={config.width_multiplier:g}) and no others"
    is_part = bool(missing) and not left_over
    fault = Misfit(path, None, f"{expected}; {'; '.join(told)}", _cause(is_part, config, found))
    fault.missing, fault.left_over, fault.reshaped = missing, left_over, reshaped
    return fault


def _cause(is_part: bool, config: MobileNetConfig, found: Detected) -> str:
    fields = [
        name
        for name in ("width_multiplier", "finegrain_classification_mode", "num_classes")
        if getattr(config, name) != getattr(found.config, name)
    ]
    kind = type(found.config)
    if kind is type(config) and not fields:
        other = "some of its variables belong to something else"
        return "it is not the whole model" if is_part else other
    values = ", ".join(f"{name}={getattr(found.config, name)!r}" for name in fields)
    return f"it holds {found}: {kind.__name__}({values}) fits"
