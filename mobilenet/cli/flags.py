"""The flags of a config: every field with a `help`, through the configs nested in it; and how their
text is parsed.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.configs.base import Config, ImageSize, Rule
from mobilenet.configs.dataset import CROPS, DatasetConfig
from mobilenet.configs.dataset import PREPROCESSING as TABLE
from mobilenet.configs.parameters import parameters_of
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError

GROUPS = ("model", "data", "training", "compression", "run")
_GROUP_OF = {
    **dict.fromkeys(("model", "init_checkpoint"), "model"),
    **dict.fromkeys(("dataset", "image_size", "channels"), "data"),
    **dict.fromkeys(("recipe", "augmentation", "train", "activation", "seed"), "training"),
    **dict.fromkeys(("prune", "quantize", "pruning", "quantization"), "compression"),
    "distillation": "compression",
}
_GROUP_OF_CONFIG = {DatasetConfig: "data", PostTraining: "compression"}  # of commands without a run
# What `--help` shows of a config's flags; `--helpfull` shows all.
_MAIN = frozenset(
    {
        *("width_multiplier", "num_classes", "dropout_rate", "init_checkpoint"),
        *("dataset_name", "data_dir", "image_size", "channels"),
        *(
            "recipe",
            "augmentation",
            "epochs",
            "batch_size",
            "optimizer_name",
            "learning_scheduler_name",
            "lr",
        ),
        *("label_smoothing", "activation", "ma_decay_rate", "seed"),
        *("pruning", "prune_epochs", "final_sparsity", "quantization", "quantize_epochs"),
        *("keep_best", "early_stopping", "freeze", "head_epochs", "distill"),
        *("stages", "distribution_strategy", "mixed_precision"),
    }
)


@dataclasses.dataclass(frozen=True)
class FlagSpec:
    """One flag.

    Attributes:
        name: as typed after the two dashes.
        path: dotted path of the config field that it sets; empty for an option of the command.
        type: of the value, see `parse`; `Path` marks text that may be a path.
        help: one sentence.
        default: of the option, or of the config's field, which a recipe may replace.
        short: single letter, or `None`.
        group: heading in `--help`.
        main: shown by `--help`; the others by `--helpfull` alone.
        rule: legal values; those of a config's field are checked by the config.
        on_storage: a path may have `://`.
    """

    name: str
    path: str
    type: Any
    help: str
    default: Any = dataclasses.field(default=None, hash=False)
    short: str | None = None
    group: str = "run"
    main: bool = True
    rule: Rule | None = dataclasses.field(default=None, hash=False)
    on_storage: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether `--name` and `--noname` are typed, without a value."""
        return self.type is bool or set(typing.get_args(self.type)) == {bool, types.NoneType}

    @property
    def can_be_off(self) -> bool:
        """Whether `--noname` of a switch is of use."""
        return self.is_switch and (bool(self.path) or self.default is not False)

    def parse(self, text: str) -> Any:
        """The value of a text.

        Raises:
            UsageError: it is not of the flag's type, or the value is not legal.
        """
        value = parse(f"--{self.name}", self.type, text)
        if self.type in (Path, Path | None) and not self.on_storage:
            files.check_local(value, f"--{self.name}")
        if self.rule is not None and value is not None and not self.path:
            self.rule.check(f"--{self.name}", value)
        return value


def option(
    name: str,
    type: Any,
    default: Any,
    help: str,
    *,
    short: str | None = None,
    group: str = "run",
    main: bool = True,
    on_storage: bool = False,
    **rule: Any,
) -> FlagSpec:
    """A flag of the command itself, outside any config; `rule` is of `configs.base.Rule`."""
    checked = Rule(**rule) if rule else None
    return FlagSpec(name, "", type, help, default, short, group, main, checked, on_storage)


def options_of(config: type[Config], **changes: str) -> tuple[FlagSpec, ...]:
    """The fields of a config as options of a command, which builds the config from them itself.

    Args:
        config: its fields with a `help`; their defaults are shown.
        changes: another help, by field, whose values the command then checks itself.
    """
    return tuple(
        FlagSpec(
            *(spec.name, "", spec.type, changes.get(spec.path, spec.help), spec.default),
            rule=None if spec.path in changes else spec.rule,
        )
        for spec in flag_specs(config)
    )


# Of the commands that run a TFLite file which another process wrote.
ISOLATED = option(
    "isolated", bool, True, "a TFLite file runs in a process of its own, which it may crash or hang"
)
# Of the commands that take released weights by name.
OFFLINE = option(
    "offline", bool, False, "fetch no released weights; those in the cache can be used"
)
# Of the commands that give images to a model of any origin.
PREPROCESSING = (
    option(
        "preprocessing",
        str,
        None,
        f"how pixels become the model's inputs: {', '.join(TABLE)}, or mean,std of pixels 0 to 255 "
        "(or the means and deviations of all channels); by default as stored with the model or "
        "read from its first layers",
        group="data",
    ),
    option(
        "crop",
        str,
        None,
        f"the part of an image that is taken: {', '.join(CROPS)}, or the share of each side, such "
        "as 0.875; by default that of the preprocessing",
        group="data",
    ),
)
# Of the commands that count or convert a model on the way.
IMAGE_SIZE = option(
    "image_size",
    ImageSize,
    None,
    "side, or height,width, of a model that leaves its size open",
    least=1,
    integer=True,
)
# Of the commands that take a model whose classes may have no names.
LABELS = option(
    "labels",
    Path,
    None,
    "names of the model's classes, one a line; of one output those of both classes",
    group="model",
)
CALIBRATION = (
    option(
        "calibration_dataset",
        Path,
        None,
        "ranges are taken from its training split (or from the images at a path); "
        "--dataset_name's when left out",
        group="data",
    ),
    option(
        "calibration_dir",
        Path,
        None,
        "its data_dir, or a list or folder of images without classes",
        group="data",
    ),
    option(
        "calibration_images",
        int,
        200,
        "maximum number of them, sampled evenly",
        group="data",
        least=8,
        integer=True,
    ),
)


def flag_specs(config: type[Config] | Config) -> list[FlagSpec]:
    """The flags of a config and of the configs nested in it: every field that has a `help`."""
    kind = config if isinstance(config, type) else type(config)
    return [
        FlagSpec(
            *(p.name, p.path, p.type, p.help, p.default),
            group=_GROUP_OF_CONFIG.get(kind, _GROUP_OF.get(p.path.split(".")[0], "run")),
            main=p.name in _MAIN,
            rule=p.rule,
            on_storage=p.path.rpartition(".")[2] == "data_dir",
        )
        for p in parameters_of(kind)
    ]


def _option(types_of_union: tuple[Any, ...], text: str) -> Any:
    """The type of a union that a text is of: a tuple where it has a comma, else the first."""
    named = [option for option in types_of_union if option is not types.NoneType]
    tuples = [option for option in named if typing.get_origin(option) is tuple]
    return tuples[0] if tuples and "," in text else named[0]


_TRUTH = {
    "true": True,
    "t": True,
    "1": True,
    "yes": True,
    "false": False,
    "f": False,
    "0": False,
    "no": False,
}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def parse(name: str, type: Any, text: str) -> Any:
    """Reads text as a value of a type: scalars, `X | None`, `tuple[X, ...]` and `dict[str, X]`.

    Lists are split at commas, entries of a dictionary at their last `=`; a lone number for a
    dictionary is kept under the empty name, for the caller to place. The text `none` is `None`
    where the type allows it, and text with a comma a tuple. `Path` gives text too, in which a
    leading `~` is the home folder.

    Raises:
        UsageError: names the flag, the text and the type.
    """
    origin, inner = typing.get_origin(type), typing.get_args(type)
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in inner and text.lower() == "none":
            return None
        return parse(name, _option(inner, text), text)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if origin is tuple:
        items = tuple(parse(name, inner[0], word) for word in words)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise UsageError(name, text, f"{len(inner)} values, split by commas")
        return items
    if origin is dict:
        pairs = [word.rpartition("=") for word in words]
        return {key.strip(): parse(name, inner[1], value) for key, _, value in pairs}
    if type is Path:
        return os.path.expanduser(text)
    try:
        return _TRUTH[text.lower()] if type is bool else type(text)
    except (ValueError, KeyError):
        raise UsageError(name, text, _EXPECTED.get(type, f"a {type.__name__}")) from None
