"""A command: its flags, its help, and the config that was typed.

A command is a module with two functions, for `python -m mobilenet.NAME` and for the console script:

    COMMAND = cli.Command("mobilenet.trainer", "Trains a model.", cli.flag_specs(RunConfig), (
        cli.option("model_name", str, "mobilenet_v1", "which model", group="model"),
        cli.option("model_dir", Path, None, "the run folder"),
    ), config=RunConfig)

    @COMMAND.entry_point
    def run(argv: list[str]) -> int | None:
        parsed = COMMAND.parse(argv)     # --help and wrong flags end here, without TensorFlow
        config = cli.run_config(parsed)  # recipe or --config_file; then flags; then --override
        with cli.starting_tensorflow():
            from mobilenet.training import pipeline
        ...
        print(cli.table(["stage", "top-1"], rows))

    def main() -> None:
        cli.main(run)
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from mobilenet import console, files, text_tables
from mobilenet.cli.flags import GROUPS, FlagSpec, option, parse
from mobilenet.cli.overrides import apply_overrides
from mobilenet.configs import archs, recipes
from mobilenet.configs import dataset as datasets
from mobilenet.configs.base import Config
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.own_model import OwnModel, check_settings
from mobilenet.configs.parameters import field_types, parameters_of, stored
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError, one_of, rename_parameters
from mobilenet.training import run_folder

log = logging.getLogger("mobilenet")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What was typed.

    Attributes:
        settings: value by dotted path, for the config's flags that were given and for `--override`.
        options: value by name of the command's own options, given or default.
        arguments: what was not a flag.
        typed: the texts of each flag that was typed, by its name.
        config: read from `--config_file`, or `None`.
    """

    settings: dict[str, Any]
    options: dict[str, Any]
    arguments: list[str]
    typed: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    config: Config | None = None


@dataclasses.dataclass(frozen=True)
class Command:
    """A command's name, its one-line summary and its flags.

    Attributes:
        name: module that `python -m` runs.
        summary: one sentence.
        specs: flags of configs, by `flag_specs`.
        extra: flags of its own, by `option`.
        config: what `--override` and `--config_file` address; without it there is neither.
        arguments: what follows the flags, as in `IMAGE...`; empty refuses any.
    """

    name: str
    summary: str
    specs: Sequence[FlagSpec] = ()
    extra: Sequence[FlagSpec] = ()
    config: type[Config] | None = None
    arguments: str = ""

    def flags(self) -> list[FlagSpec]:
        """All flags; one of the command's own replaces a config's of the same name."""
        own = [*self.extra, *(_REPLAY if self.config else ()), *_HELP]
        names = {spec.name for spec in own}
        return [*(spec for spec in self.specs if spec.name not in names), *own]

    def parse(self, argv: Sequence[str]) -> Parsed:
        """Reads the words after the command's name.

        Raises:
            UsageError: an unknown flag (the nearest is offered), or text not of the flag's type.
            SystemExit: `--help`, `--helpfull` and `--version`, after printing.
        """
        specs = self.flags()
        typed, arguments = self._read(specs, argv)
        if "help" in typed or "helpfull" in typed:
            print(self.help(full="helpfull" in typed))
            raise SystemExit(0)
        if "version" in typed:
            print(f"mobilenet {metadata.version('mobilenet')}")
            raise SystemExit(0)
        if arguments and not self.arguments:
            raise UsageError(
                self.name,
                arguments[0],
                "flags alone",
                "--flag=value or --flag value; --help lists them",
            )
        texts = {s: typed[s.name] for s in specs if s.name in typed and s not in _REPLAY}
        read = {s: s.parse(text[-1]) for s, text in texts.items()}
        settings = {
            s.path: stored(f"--{s.name}", s.path, value) for s, value in read.items() if s.path
        }
        for text in typed.get("override", ()):
            settings.update([self._override(text)])
        options = {s.name: s.default for s in self.extra}
        options |= {s.name: value for s, value in read.items() if not s.path}
        config = self._from_file(typed["config_file"][-1]) if "config_file" in typed else None
        return Parsed(settings, options, arguments, typed, config)

    def entry_point(self, run: Callable[[list[str]], R]) -> Callable[[list[str]], R]:
        """Decorates the command's `run`: errors that name parameters then name their flags."""

        @functools.wraps(run)
        def wrapper(argv: list[str]) -> R:
            try:
                return run(argv)
            except UsageError as error:
                raise self.naming_flags(error) from error

        return wrapper

    def naming_flags(self, error: UsageError) -> UsageError:
        """An error that names parameters in the names of the command's flags."""
        return rename_parameters(error, _flags_of_parameters(self.flags()).get)

    def help(self, full: bool = False) -> str:
        """The text of `--help`, or of `--helpfull`, as wide as the terminal at most."""
        usage = f"Usage: {typed_name(self.name)} [flags] {self.arguments}".rstrip()
        lines = [*text_tables.wrap(self.summary), "", *text_tables.wrap(usage)]
        if self.config:
            lines += text_tables.wrap(
                "A flag that is left out takes its value from the recipe of the model and data set."
            )
        specs = [spec for spec in self.flags() if full or spec.main]
        for group in GROUPS:
            members = [
                (_usage(spec), _meaning(spec, full)) for spec in specs if spec.group == group
            ]
            if members:
                lines += ["", f"{group}:", *text_tables.definitions(members)]
        return "\n".join(lines)

    def _read(
        self, specs: Sequence[FlagSpec], argv: Sequence[str]
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Splits words into flags (their texts, by name) and arguments."""
        own = flags.FlagValues()
        for spec in specs:
            kept = flags.MultiFlag(
                _Text(), None, spec.name, None, spec.help, spec.short, spec.is_switch
            )
            flags.DEFINE_flag(kept, own)
        own.set_gnu_getopt(True)
        try:
            arguments = own([self.name, *argv])[1:]
        except flags.UnrecognizedFlagError as error:
            names = [spec.name for spec in specs]
            near = [
                n if n in names else _OFTEN_MEANT.get(n, n)
                for n in difflib.get_close_matches(error.flagname, [*names, *_OFTEN_MEANT], 2, 0.55)
            ]
            near = [n for n in dict.fromkeys(near) if n in names]
            remedy = (
                f"did you mean {' or '.join(f'--{n}' for n in near)}?"
                if near
                else "--help lists them"
            )
            raise UsageError(
                f"--{error.flagname}", None, f"a flag of {self.name}", remedy
            ) from None
        except (flags.Error, ValueError) as error:
            raise UsageError(
                self.name, None, f"--flag=value ({error})", "--help lists the flags"
            ) from None
        return {s.name: own[s.name].value for s in specs if own[s.name].present}, arguments

    def _override(self, text: str) -> tuple[str, Any]:
        assert self.config is not None
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                "--override", text, "path.to.field=value", "as in --override train.lr=0.01"
            )
        known = field_types(self.config)
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
            raise UsageError(
                "--override",
                path,
                f"the path of a field of {self.config.__name__}",
                f"did you mean {near[0]}?",
            )
        return path, stored(path, path, parse(f"--override {path}", known[path], value))

    def _from_file(self, text: str) -> Config:
        assert self.config is not None
        path = parse("--config_file", Path, text)
        try:
            return self.config.from_file(path)
        except UsageError as error:
            raise error.within("--config_file") from None


def _flags_of_parameters(specs: Sequence[FlagSpec]) -> dict[str, str]:
    """The flag of each parameter: by the flag's name, the path of its field or, where only one has
    that, the field's name."""
    fields = {spec.path: spec.path.rpartition(".")[2] for spec in specs if spec.path}
    count = collections.Counter(fields.values())
    names: dict[str, str] = {}
    for spec in specs:
        if spec.path and count[fields[spec.path]] == 1:
            names[fields[spec.path]] = f"--{spec.name}"
    names |= {spec.path: f"--{spec.name}" for spec in specs if spec.path}
    return names | {spec.name: f"--{spec.name}" for spec in specs}


class _Text(flags.ArgumentParser):
    """Returns what was typed; `flags.parse` reads it and words the error."""

    def parse(self, argument: Any) -> str:
        return str(argument)


_OFTEN_MEANT = {
    "learning_rate": "lr",
    "model": "model_name",
    "dataset": "dataset_name",
    "alpha": "width_multiplier",
}
_HELP = (
    option("help", bool, False, "the main flags", short="h"),
    option("helpfull", bool, False, "every flag"),
    option("version", bool, False, "the version of the package"),
)
_REPLAY = (
    option(
        "config_file", Path, None, "JSON of a config (config.json of a run) instead of the recipe"
    ),
    option("override", str, None, "path.to.field=value, any field of the config; may be repeated"),
)


def local_model(path: str) -> Path:
    """The path of a saved model on this machine: a copy until the process ends, if it has `://`.

    Raises:
        UsageError: there is no complete model, or storage cannot be read.
    """
    if not files.is_remote(path):
        return Path(path)
    with console.starting_tensorflow():
        from mobilenet import object_storage
    copies = contextlib.ExitStack()
    atexit.register(copies.close)
    try:
        return copies.enter_context(object_storage.local_copy(path))
    except UsageError as error:
        raise error.within("--model") from None


def typed_name(name: str) -> str:
    """A command as it was typed: `mobilenet trainer`, `mobilenet-trainer` or a `python -m`.

    Args:
        name: module of the command, such as `mobilenet.trainer`.
    """
    program = Path(sys.argv[0])
    short = name.rpartition(".")[2]
    if program.name == "__main__.py" and program.parent.name == "mobilenet":
        return "python -m mobilenet" if short == "mobilenet" else f"python -m mobilenet {short}"
    if program.stem == "mobilenet":
        return "mobilenet" if short == "mobilenet" else f"mobilenet {short}"
    if program.stem == f"mobilenet-{short.replace('_', '-')}":
        return program.stem
    return f"python -m {name}"


def _usage(spec: FlagSpec) -> str:
    short = f"-{spec.short}, " if spec.short else ""
    if spec.is_switch:
        return f"{short}--[no]{spec.name}" if spec.can_be_off else f"{short}--{spec.name}"
    return f"{short}--{spec.name}=..."


def _meaning(spec: FlagSpec, full: bool) -> str:
    if spec.path:
        return f"{spec.help} [{spec.path}]" if full else spec.help
    return (
        spec.help
        if spec.default in (None, False, ())
        else f"{spec.help} (default {_shown(spec.default)})"
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run_config(parsed: Parsed) -> RunConfig:
    """The config of a run: from `--config_file` or the recipe of model and data set, then as typed.

    Raises:
        UsageError: a name or value that cannot be, or a `--model_name` or `--model` other than the
            file's.
    """
    name, config = parsed.options.get("model_name"), parsed.config
    path, dataset = parsed.options.get("model"), parsed.settings.get("dataset.name", "digits")
    if path is not None:
        config = _own_config(path, parsed, dataset)
    elif config is None:
        has_weights = parsed.settings.get("init_checkpoint") is not None
        recipe = parsed.settings.get("recipe")
        config = recipes.get(name or "mobilenet_v1", dataset, recipe, has_weights)
    elif name is not None and "model_name" in parsed.typed:
        one_of("--model_name", name, archs.ALL)
        if type(config.model) is not archs.ALL[name]:  # type: ignore[attr-defined]
            raise UsageError("--model_name", name, _OF_FILE, "leave out one of the two")
    assert isinstance(config, RunConfig)
    if not isinstance(config.model, OwnModel):
        return apply_overrides(config, parsed.settings)
    flags = {p.path: f"--{p.name}" for p in parameters_of(RunConfig)}
    check_settings(parsed.settings, lambda path: flags.get(path, f"--override {path}"))
    return recipes.pruning_large_kernels(apply_overrides(config, parsed.settings))


_OF_FILE = "the model that --config_file describes"


def _own_config(path: str, parsed: Parsed, dataset: str) -> RunConfig:
    """The config of a run on the model of `--model`."""
    if "model_name" in parsed.typed:
        name = parsed.options["model_name"]
        raise UsageError("--model_name", name, "none with --model", "leave out one of the two")
    if parsed.config is None:
        return recipes.of_own_model(OwnModel.at(path), dataset, parsed.settings.get("recipe"))
    assert isinstance(parsed.config, RunConfig)
    if not isinstance(parsed.config.model, OwnModel):
        raise UsageError("--model", path, _OF_FILE, "leave out one of the two")
    return parsed.config.replace(model=parsed.config.model.replace(path=path))


# What has to be given of a data set that is no name alone, for a model that was trained on it.
_TRAINED_ON = {
    datasets.FOLDER.name: ("class folders", "give that folder"),
    datasets.LIST.name: ("list of images", "give that file"),
    datasets.RECORDS.name: ("records", "give their folder"),
}


def dataset_of(
    parsed: Parsed, trained_on: str, model: str | os.PathLike[str] | None = None
) -> DatasetConfig:
    """The data set that was asked for, else the one that a model was trained on, else, with a
    warning, the digits.

    Args:
        parsed: what was typed.
        trained_on: name of the data set in the model's card; may be empty.
        model: its path. Without `--dataset_name` and `--data_dir` the settings of the run whose
            folder it lies in are taken, which a line on stderr says.

    Raises:
        UsageError: the model was trained on images at a path that is not known or not there, or a
            flag has a value that cannot be.
    """
    own = field_types(DatasetConfig)
    settings = {path: value for path, value in parsed.settings.items() if path in own}
    name = settings.get("name", trained_on)
    if trained_on and not settings.keys() & {"name", "data_dir"}:
        return apply_overrides(_training_data(trained_on, model), settings)
    if not name:
        name = datasets.DIGITS.name
        log.warning(
            "the model names no data set, so its images are the %s; "
            "--dataset_name and --data_dir give its own",
            name,
        )
    return apply_overrides(datasets.get(name), settings)


def _training_data(name: str, model: str | os.PathLike[str] | None) -> DatasetConfig:
    """The data set that a model was trained on, see `dataset_of`."""
    recorded = None if model is None else run_folder.training_data(model, name)
    data_dir = "" if recorded is None else recorded.data_dir or ""
    if recorded is not None and (files.is_remote(data_dir) or Path(data_dir).exists()):
        note = f"Note: the images are those of {data_dir}, as in the model's run; "
        print(f"{note}--dataset_name and --data_dir give others", file=sys.stderr)
        return recorded
    if name in _TRAINED_ON:
        kind, remedy = _TRAINED_ON[name]
        expected = f"the {kind} that this model was trained on"
        remedy = f"there is no such path; {remedy}" if data_dir else remedy
        raise UsageError("data_dir", data_dir or None, expected, remedy)
    return datasets.get(name)
