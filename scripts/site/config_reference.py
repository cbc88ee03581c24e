"""The page of the configs: each class with its fields, their legal values and defaults."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator

import griffe
from command_reference import escaped, shown, values
from shared_descriptions import separated

from mobilenet.cli import FlagSpec
from mobilenet.configs import (
    archs,
    card,
    conversion,
    dataset,
    distillation,
    own_model,
    pruning,
    quantization,
    reencoding,
    run,
    sweep,
    training,
    weight_sharing,
)
from mobilenet.configs.base import Config

PAGE = "reference/configs.md"
# The public classes by heading.
CLASSES: dict[str, tuple[type[Config], ...]] = {
    "Runs": (run.RunConfig, training.TrainConfig, distillation.Distillation),
    "Sweeps": (sweep.SweepConfig, sweep.Metric, sweep.Choices, sweep.Range),
    "Models": (archs.MobileNetConfig, own_model.OwnModel),
    "Data": (dataset.DatasetConfig, dataset.Preprocessing, reencoding.ReencodingConfig),
    "Pruning": (
        pruning.MagnitudePruning,
        pruning.ChannelPruning,
        pruning.DnsPruning,
        pruning.TfmotPruning,
    ),
    "Quantization": (
        quantization.QuantizationAwareTraining,
        quantization.PostTraining,
        weight_sharing.CodebookQuantization,
        weight_sharing.LinearQuantization,
        weight_sharing.TfmotClustering,
    ),
    "Files": (conversion.ConversionConfig, conversion.VerificationLimits, card.Card),
}
_PURPOSE = """\
# Configs

`mobilenet.configs` has everything that can be set, as frozen dataclasses without TensorFlow. A
value that is not legal is a `UsageError` when the config is made. `replace` makes the next config,
`to_json` and `from_file` write and read one. The fields of `RunConfig`, through the configs in it,
are those that `mobilenet.train` and `--override` set by a dotted path, such as `train.lr`.
"""
_OF_BASE = """\
## Every config

::: mobilenet.configs.base.Config
    options:
      heading_level: 3
      separate_signature: false
      show_signature: false
      members: [replace, with_values, to_json, from_json, from_file]
"""


def page() -> str:
    """Markdown of the page."""
    lines = [_PURPOSE]
    for title, classes in CLASSES.items():
        lines.append(f"## {title}\n")
        for kind in classes:
            lines += _class(kind)
    return "\n".join([*lines, _OF_BASE])


def _class(kind: type[Config]) -> Iterator[str]:
    yield f"::: {kind.__module__}.{kind.__qualname__}"
    yield "    options:"
    yield "      heading_level: 3"
    yield "      separate_signature: false"
    yield "      show_signature: false"
    yield "      show_docstring_attributes: false"
    yield "      members: []\n"
    if kind is archs.MobileNetConfig:
        names = ", ".join(f"`{name}` (`{c.__name__}`)" for name, c in archs.ALL.items())
        yield f"Its classes differ in the defaults and the blocks, by name: {names}.\n"
    meanings = _meanings(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.name.startswith("_"):
            yield _field(field, hints[field.name], meanings.get(field.name, ""))


def _meanings(kind: type[Config]) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of the fields."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docstring = griffe.Docstring(separated(inspect.cleandoc(base.__doc__ or "")))
        for section in docstring.parse("google", warnings=False):
            if section.kind is griffe.DocstringSectionKind.attributes:
                meanings |= {
                    item.name: " ".join(item.description.split()) for item in section.value
                }
    return meanings


def _field(field: dataclasses.Field[object], hint: object, meaning: str) -> str:
    """A field with its meaning, and a line of what it may be."""
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    spec = FlagSpec(field.name, field.name, hint, "", rule=field.metadata.get("rule"))
    legal, text = values(spec), "" if default is dataclasses.MISSING else shown(default)
    if isinstance(default, Config):
        chosen = field.metadata.get("classes", {}).values()  # by a flag
        names = [kind.__name__ for kind in chosen or typing.get_args(hint) or [type(default)]]
        legal, text = " or ".join(names), type(default).__name__ if len(names) > 1 else ""
    line = escaped("; ".join(fact for fact in (legal, text and f"default: {text}") if fact))
    text = escaped(_joined(field.metadata.get("help", ""), meaning))
    parts = [text, line and f"<small>{line}</small>"]
    return f"`{field.name}`\n:   " + "\n\n    ".join(part for part in parts if part) + "\n"


def _joined(help: str, meaning: str) -> str:
    """The help of a flag, then what the docstring says, which may begin with the same words."""
    if not help or not meaning or meaning.split()[:2] == help.split()[:2]:
        return meaning or help
    return f"{help}. {meaning[0].upper()}{meaning[1:]}"
