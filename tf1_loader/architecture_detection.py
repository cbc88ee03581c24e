"""Detects the model in a TF1 checkpoint from names and shapes of its variables.

The resolution cannot be detected: weights fit every input size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

from mobilenet.configs import archs
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.models.layer_plan import layer_channels
from mobilenet.tf1_loader import edgetpu_loader, v1_loader, v2_loader, v3_loader
from mobilenet.tf1_loader.variable_names import Scopes, split_name

Shapes = Mapping[str, tuple[int, ...]]
_COMMON = ("0.25", "0.35", "0.5", "0.75", "1", "1.3", "1.4")
_STEPS = (100, 1000)  # then hundredths, then thousandths
_WIDEST = 3
_EDGETPU = "mobilenet_edgetpu"
_ROOTS = tuple(x.SCOPES.root for x in (v1_loader, v2_loader, v3_loader, edgetpu_loader))


@dataclasses.dataclass(frozen=True)
class Detected:
    """The architecture of a checkpoint.

    Attributes:
        name: of the model, as in `archs.ALL`.
        config: that builds it; `num_classes` is 0 where it has no logits.
        channels: of the input image.
        prefix: of slim's scopes: the root scope and any scopes outside it.
        exact: the width rule gives all channels; else `config` is the nearest.
    """

    name: str
    config: MobileNetConfig
    channels: int
    prefix: str
    exact: bool = True

    def __str__(self) -> str:
        """The model in a few words."""
        config = self.config
        width = f"{self.name} of width {config.width_multiplier:g}"
        last = f"last convolution {list(layer_channels(config).values())[-1]}"
        classes = f"{config.num_classes} classes" if config.num_classes else "no classifier"
        image = f"{self.channels} input channel{'s' if self.channels > 1 else ''}"
        return ", ".join([width if self.exact else f"about {width}", last, classes, image])


def scopes_of(config: MobileNetConfig) -> Scopes:
    """The table of names of a model's family."""
    if isinstance(config, archs.MobileNetV1Config):
        return v1_loader.SCOPES
    if isinstance(config, archs.MobileNetV2Config):
        return v2_loader.SCOPES
    if isinstance(config, archs.MobileNetEdgeTPUConfig):
        return edgetpu_loader.SCOPES
    if isinstance(config, archs.MobileNetV3Config):
        return v3_loader.SCOPES
    raise UsageError("config", type(config).__name__, "the config of a V1, V2, V3 or EdgeTPU")


def detect(shapes: Shapes, path: str = "checkpoint", exactly: bool = True) -> Detected:
    """Detects model, width, last convolution, classes and input channels.

    Args:
        shapes: of the variables of the model, by name; no slots, no ranges, no averages' suffix.
        path: for the error.
        exactly: refuse channels that no width gives, instead of returning the nearest.

    Raises:
        UsageError: no MobileNet, or one of a width that no rule gives.
    """
    prefix = _prefix(shapes)
    inner = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    name = _name(inner, prefix)
    if name is None:
        tops = dict.fromkeys(name.split("/")[0] for name in shapes)
        content = f"it holds {shorten(tops)}" if shapes else "it holds no variables"
        raise UsageError(path, None, f"a checkpoint of a MobileNet; {content}")
    scopes = scopes_of(archs.get(name))
    observed = _channels(inner, scopes)
    config, wrong = _width(name, observed)
    if wrong and exactly:
        expected = layer_channels(config)
        details = shorten(
            f"{layer} has {observed[layer]}, there {expected[layer]}" for layer in wrong
        )
        raise UsageError(
            path,
            None,
            f"the channels of a {name} of some width; nearest is {config.width_multiplier:g}, "
            f"where {len(wrong)} layer{'s differ' if len(wrong) > 1 else ' differs'}: {details}",
            "a model with channels of its own needs its config",
        )
    logits = scopes.variable("Logits", "kernel")
    stem = scopes.variable("Conv2d_0" if name == "mobilenet_v1" else "Conv", "kernel")
    assert logits is not None and stem is not None
    classes = inner[logits][-1] if logits in inner else 0
    image = inner[stem][2] if len(inner.get(stem, ())) == 4 else 3
    return Detected(name, config.replace(num_classes=classes), image, prefix, not wrong)


def _prefix(shapes: Shapes) -> str:
    """The names' prefix up to and including the root scope; empty if they have none."""
    for root in _ROOTS:
        for name in shapes:
            parts = name.split("/")
            if root in parts:
                return "/".join(parts[: parts.index(root) + 1]) + "/"
    stems = [name for name in shapes if re.search(r"(^|/)Conv(2d_0)?/weights$", name)]
    outer = [name for name in stems if "/squeeze_excite/" not in name]  # has a Conv of its own
    return min(outer, key=len, default="").rpartition("Conv")[0]


def _name(inner: Shapes, prefix: str) -> str | None:
    """The model's name by its scopes; `None` if they are of no MobileNet."""
    root = next((root for root in _ROOTS if prefix.endswith(f"{root}/")), "")
    blocks = {int(hit[1] or 0) for n in inner if (hit := re.match(r"expanded_conv(?:_(\d+))?/", n))}
    if root == "MobilenetV1" or any(re.match(r"Conv2d_\d+_pointwise/", name) for name in inner):
        return "mobilenet_v1" if "Conv2d_0/weights" in inner else None
    if not blocks:
        return None
    if root == "MobilenetEdgeTPU":
        return _EDGETPU
    squeezes = any("/squeeze_excite/" in name for name in inner)
    if root == "MobilenetV3" or squeezes or "Conv_2/weights" in inner:
        size = "large" if max(blocks) > 10 else "small"
        return f"mobilenet_v3_{size}{'' if squeezes else '_minimalistic'}"
    fused = inner.get("expanded_conv_1/expand/weights", ())[:2] == (3, 3)
    return _EDGETPU if fused and not root else "mobilenet_v2"


def _channels(inner: Shapes, scopes: Scopes) -> dict[str, int]:
    """Output channels by our layer, as far as the names are known."""
    channels = {}
    for name, shape in inner.items():
        scope, ending = split_name(name)
        layer = scopes.layer(scope)
        if ending == "weights" and layer not in (None, "Logits") and len(shape) == 4:
            channels[layer] = shape[-1]
    return channels


def _width(name: str, observed: dict[str, int]) -> tuple[MobileNetConfig, list[str]]:
    """The config with the fewest layers of other channels than observed, and these layers."""
    nearest: tuple[MobileNetConfig, list[str]] | None = None
    for config in _candidates(name):
        expected = layer_channels(config)
        # Missing and additional rows are named by the strict matching of variables.
        wrong = [n for n, count in expected.items() if observed.get(n, count) != count]
        if nearest is None or len(wrong) < len(nearest[1]):
            nearest = (config, wrong)
        if not wrong:
            break
    assert nearest is not None
    return nearest


def _candidates(name: str) -> Iterator[MobileNetConfig]:
    """Configs to try, with both rules for the last convolution, the family's own first."""
    widths = [Fraction(text) for text in _COMMON]
    for step in _STEPS:
        widths += [Fraction(k, step) for k in range(1, _WIDEST * step + 1)]
    default = archs.get(name)
    modes = [default.finegrain_classification_mode]
    if name != "mobilenet_v1":
        modes.append(not modes[0])
    for width in dict.fromkeys(widths):
        for mode in modes:
            yield default.replace(width_multiplier=float(width), finegrain_classification_mode=mode)
