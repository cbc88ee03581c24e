"""What every command is made of: flags to configs, errors as one line, tables."""

from mobilenet.errors import UsageError

from .command import Command, Parsed, dataset_of, run_config, typed_name
from .flags import CALIBRATION, GROUPS, ISOLATED, FlagSpec, flag_specs, option
from .overrides import settle
from .process import main, resumable, starting_tensorflow
from .tables import definitions, table, width, wrap

__all__ = [
    "CALIBRATION",
    "GROUPS",
    "ISOLATED",
    "Command",
    "FlagSpec",
    "Parsed",
    "UsageError",
    "dataset_of",
    "definitions",
    "flag_specs",
    "main",
    "option",
    "resumable",
    "run_config",
    "settle",
    "starting_tensorflow",
    "table",
    "typed_name",
    "width",
    "wrap",
]
