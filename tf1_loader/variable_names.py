"""The names in a TF1 checkpoint: slim's scopes for our layers and back, and which variables are the
model, its moving averages, or the state of its training.

Source: tensorflow/models research/slim/models; `contrib/quantize` of TensorFlow 1 for the names of
fake quantization.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterable, Mapping

from mobilenet.configs.archs import ACTIVATIONS

AVERAGE = "/ExponentialMovingAverage"
NORM = "_batch_norm"
# Weight of a Keras layer and slim's variable under the scope of the convolution.
VARIABLES = (
    ("kernel", "weights"),
    ("depthwise_kernel", "depthwise_weights"),
    ("bias", "biases"),
    ("gamma", "BatchNorm/gamma"),
    ("beta", "BatchNorm/beta"),
    ("moving_mean", "BatchNorm/moving_mean"),
    ("moving_variance", "BatchNorm/moving_variance"),
)
_SLIM_OF = dict(VARIABLES)
_MODEL_ENDING = re.compile(f"/({'|'.join(_SLIM_OF.values())})$")
_SLOT = re.compile(r"(RMSProp|Momentum|Adam|Adagrad|Adadelta|Ftrl|SGD|beta[12]_power)(_\d+)?$")


@dataclasses.dataclass(frozen=True)
class Scopes:
    """The table of a family.

    Attributes:
        root: outermost scope.
        rows: our layer and slim's scope below the root; `{n}` is a number from 1 up.
    """

    root: str
    rows: tuple[tuple[str, str], ...]

    def scope(self, layer: str) -> str | None:
        """Slim's scope, below the root, of the convolution that `layer` is or belongs to."""
        return _translate(layer.removesuffix(NORM), self.rows)

    def layer(self, scope: str) -> str | None:
        """Our convolution by slim's scope below the root."""
        return _translate(scope, [(slim, ours) for ours, slim in self.rows])

    def variable(self, layer: str, weight: str) -> str | None:
        """Slim's variable, below the root, of one weight: `kernel`, `gamma`, ..."""
        scope = self.scope(layer)
        return None if scope is None or weight not in _SLIM_OF else f"{scope}/{_SLIM_OF[weight]}"


def _translate(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    for source, target in rows:
        pattern = re.escape(source).replace(r"\{n\}", r"([1-9]\d*)")
        if match := re.fullmatch(pattern, name):
            return target.replace("{n}", match[1]) if match.groups() else target
    return None


def split_name(variable: str) -> tuple[str, str]:
    """Scope and ending (`weights`, `BatchNorm/beta`, ...); the ending is empty for other names."""
    match = _MODEL_ENDING.search(variable)
    return (variable[: match.start()], match[1]) if match else (variable, "")


def unit_output(layer: str, layers: Container[str]) -> str | None:
    """The last layer of a convolution's unit: its activation, else its batch norm, else itself."""
    endings = [*(f"_{activation}" for activation in ACTIVATIONS), NORM, ""]
    return next((f"{layer}{end}" for end in endings if f"{layer}{end}" in layers), None)


@dataclasses.dataclass(frozen=True)
class ClassifiedVariables:
    """The variables of a checkpoint by their purpose.

    Attributes:
        raw: variables of the model, by their own names.
        averages: moving averages, by the name of the variable that they average.
        ranges: `min` and `max` of fake quantization, by name.
        left_aside: names that are no part of a model, by reason.
    """

    raw: dict[str, str]
    averages: dict[str, str]
    ranges: tuple[str, ...]
    left_aside: dict[str, tuple[str, ...]]

    def select(self, use_average: bool) -> dict[str, str]:
        """The variable to load for each variable of the model: its average if there is one."""
        return {**self.raw, **self.averages} if use_average else dict(self.raw)


def classify_variables(shapes: Mapping[str, tuple[int, ...]]) -> ClassifiedVariables:
    """Classifies the variables of a checkpoint by their names."""
    raw: dict[str, str] = {}
    averages: dict[str, str] = {}
    ranges: list[str] = []
    aside: dict[str, list[str]] = {}
    for name in sorted(shapes):
        reason = _reason(name, shapes)
        if reason:
            aside.setdefault(reason, []).append(name)
            if reason == "quantization" and name.split("/")[-1] in ("min", "max"):
                ranges.append(name)
        elif name.endswith(AVERAGE):
            averages[name.removesuffix(AVERAGE)] = name
        else:
            raw[name] = name
    skipped = {reason: tuple(names) for reason, names in aside.items()}
    return ClassifiedVariables(raw, averages, tuple(ranges), skipped)


def _reason(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why a variable is no part of a model; empty where it may be one."""
    parts = name.split("/")
    if any(re.search(r"_quant(_\d+)?$", part) for part in parts):
        return "quantization"
    if parts[-1] in ("biased", "local_step") or (parts[-1] == AVERAGE[1:] and len(parts) == 1):
        return "quantization" if "quant" in name else "training state"
    if "global_step" in parts:
        return "step"
    if any("loss" in part.lower() for part in parts):
        return "loss"
    owner, _, last = name.rpartition("/")
    if last != AVERAGE[1:] and (
        _SLOT.match(last) or owner in shapes or f"{owner}{AVERAGE}" in shapes
    ):
        return "slot"
    if not split_name(name.removesuffix(AVERAGE))[1] and not shapes[name]:
        return "training state"  # a scalar outside the model: a rate, a counter
    return ""
