"""What every command is made of: flags to configs, errors as one line, tables."""

from mobilenet.console import starting_tensorflow
from mobilenet.errors import UsageError
from mobilenet.text_tables import definitions, table, width, wrap

from .command import Command, Parsed, dataset_of, local_model, run_config, typed_name
from .flags import (
    CALIBRATION,
    GROUPS,
    IMAGE_SIZE,
    ISOLATED,
    LABELS,
    OFFLINE,
    PREPROCESSING,
    FlagSpec,
    flag_specs,
    option,
    options_of,
)
from .overrides import apply_overrides
from .process import main, resumable

__all__ = [
    "CALIBRATION",
    "GROUPS",
    "IMAGE_SIZE",
    "ISOLATED",
    "OFFLINE",
    "LABELS",
    "PREPROCESSING",
    "Command",
    "FlagSpec",
    "Parsed",
    "UsageError",
    "apply_overrides",
    "dataset_of",
    "definitions",
    "flag_specs",
    "local_model",
    "main",
    "option",
    "options_of",
    "resumable",
    "run_config",
    "starting_tensorflow",
    "table",
    "typed_name",
    "width",
    "wrap",
]
