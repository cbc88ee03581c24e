"""What every command is made of: flags to configs, errors as one line, tables."""

from mobilenet.errors import UsageError

from .command import Command, Parsed, dataset_of, run_config
from .flags import CALIBRATION, GROUPS, ISOLATED, FlagSpec, flag_specs, option
from .overrides import settle
from .process import main, starting_tensorflow, table

__all__ = [
    "CALIBRATION",
    "GROUPS",
    "ISOLATED",
    "Command",
    "FlagSpec",
    "Parsed",
    "UsageError",
    "dataset_of",
    "flag_specs",
    "main",
    "option",
    "run_config",
    "settle",
    "starting_tensorflow",
    "table",
]
