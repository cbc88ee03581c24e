"""Which flags a config has: every field with a `help`, through the configs nested in it. And flags
that several commands share, or that are many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.cli import values
from mobilenet.configs import number_formats
from mobilenet.configs.base import Config

GROUPS = ("model", "data", "training", "compression", "run")
_GROUP_OF = {"model": 0, "init_checkpoint": 0, "dataset": 1, "image_size": 1, "train": 2, "seed": 2}
_GROUP_OF |= {"prune": 3, "quantize": 3, "pruning": 3, "quantization": 3, "distillation": 3}
# What `--help` shows of a config's flags; `--helpfull` shows all.
_MAIN = frozenset(
    {
        *("width_multiplier", "num_classes", "dropout_rate", "init_checkpoint"),
        *("dataset_name", "data_dir", "image_size"),
        *("epochs", "batch_size", "optimizer_name", "learning_scheduler_name", "lr"),
        *("label_smoothing", "ma_decay_rate", "seed"),
        *("pruning", "prune_epochs", "final_sparsity", "quantization", "quantize_epochs"),
        *("keep_best", "distill"),
        *("stages", "distribution_strategy", "mixed_precision"),
    }
)


@dataclasses.dataclass(frozen=True)
class FlagSpec:
    """One flag.

    Attributes:
        name: as typed after the two dashes.
        path: dotted path of the config field that it sets; empty for an option of the command.
        kind: type of the value, see `values.convert`; `Path` marks text that may be a path.
        help: one sentence.
        default: of an option; a config's field has its default in the recipe.
        short: single letter, or `None`.
        group: heading in `--help`.
        main: shown by `--help`; the others by `--helpfull` alone.
    """

    name: str
    path: str
    kind: Any
    help: str
    default: Any = None
    short: str | None = None
    group: str = "run"
    main: bool = True


def option(
    name: str,
    kind: Any,
    default: Any,
    help: str,
    *,
    short: str | None = None,
    group: str = "run",
    main: bool = True,
) -> FlagSpec:
    """A flag of the command itself, outside any config."""
    return FlagSpec(name, "", kind, help, default, short, group, main)


# Of the commands that run a flatbuffer which another process wrote.
ISOLATED = option(
    "isolated", bool, True, "a flatbuffer runs in a process of its own, which it may crash or hang"
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
        "its place, or a list or folder of images without classes",
        group="data",
    ),
    option("calibration_images", int, 200, "at most so many of them, spread evenly", group="data"),
)

# Of the converter: what the file looks like, and which figures it must reach.
FORM = (
    option(
        "quantization",
        str,
        None,
        f"format of a float model: {', '.join(number_formats.FORMATS)}; float32 when left out",
    ),
    option(
        "io", str, None, "type of both ends: int8, uint8 or float32; the inside's when left out"
    ),
    option("batch", int, 1, "images a call; 0 leaves it open in a frozen graph"),
    option("image_size", int, None, "height and width of a model that leaves its size open"),
    option("output_activation", str, "none", "none (logits) or softmax (1/256 a step in int8)"),
    option(
        "target",
        str,
        "xnnpack",
        "xnnpack (hard-swish written out, stem on pairs of pixels) or generic (neither)",
    ),
)
LIMITS = (
    option("verify_images", int, 200, "held-out images that model and file must answer alike"),
    option("min_agreement", float, 0.0, "least share of images with the model's top-1"),
    option(
        "min_clear_agreement", float, 0.0, "the same where the model's margin exceeds two steps"
    ),
    option("max_mean_steps", float, None, "largest mean difference of an output, in codes"),
    option("max_operator_steps", int, 1, "largest difference of one operator, in codes"),
    option("max_partitions", int, None, "most delegate partitions; only told when left out"),
)


def flag_specs(config: type[Config] | Config) -> list[FlagSpec]:
    """The flags of a config and of the configs nested in it: every field that has a `help`."""
    specs = list(_walk(config if isinstance(config, type) else type(config), "", "", None))
    for place, spec in enumerate(specs):
        if spec.path == "model.weight_decay":  # beside the other fields of the seeds' table
            specs.insert(
                place, _spec("dropout_rate", "model.dropout_keep_prob", float, _DROPOUT_HELP)
            )
            break
    return specs


_DROPOUT_HELP = "share dropped before the logits: 1 - model.dropout_keep_prob"


def _walk(
    kind: type[Config], place: str, prefix: str, only: tuple[str, ...] | None
) -> Iterator[FlagSpec]:
    hints = values.field_kinds(kind)
    for field in dataclasses.fields(kind):
        path = f"{place}{field.name}"
        if "prefix" in field.metadata:
            kinds, seen = field.metadata["kinds"], set()
            if kinds:
                yield _spec(field.name, path, str, f"{field.metadata['help']}: {', '.join(kinds)}")
            for inner in kinds.values() or (hints[field.name],):
                for spec in _walk(
                    inner, f"{path}.", field.metadata["prefix"], field.metadata["only"]
                ):
                    if spec.path not in seen:
                        seen.add(spec.path)
                        yield spec
        elif "help" in field.metadata and (only is None or field.name in only):
            name = prefix + (field.metadata["flag"] or field.name)
            stage = f" ({place.rstrip('.')} stage)" if prefix else ""
            yield _spec(name, path, hints[field.name], field.metadata["help"] + stage)


def _spec(name: str, path: str, kind: Any, help: str) -> FlagSpec:
    group = GROUPS[_GROUP_OF.get(path.split(".")[0], 4)]
    return FlagSpec(name, path, kind, help, group=group, main=name in _MAIN)
