"""`--sweep` of the trainer: its runs have the other flags that were typed."""

from __future__ import annotations

from pathlib import Path

from mobilenet import console, files
from mobilenet.cli.command import Command, Parsed, run_config
from mobilenet.cli.process import resumable
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps import sweep, sweep_file
from mobilenet.sweeps.search import Settings
from mobilenet.sweeps.trials import Trial
from mobilenet.training import training_run

_OWN = ("sweep", "sweep_jobs", "model_dir", "overwrite", "resume")  # not of the runs
_SOME_FAILED = 1  # exit status


def run(command: Command, parsed: Parsed) -> int:
    """Executes a sweep and prints its results; returns the exit status.

    Raises:
        UsageError: the sweep or a flag cannot be used.
    """
    path = parsed.options["sweep"]
    config = sweep_file.read(path)
    common = run_config(parsed)
    if parsed.options["find_lr"]:
        raise UsageError("--sweep", path, "no --find_lr, which trains nothing", "leave out one")
    words = [
        f"--{n}={text}" for n, texts in parsed.typed.items() if n not in _OWN for text in texts
    ]

    def config_of(settings: Settings) -> RunConfig:
        try:
            return run_config(command.parse([*words, *Trial(settings, ()).overrides]))
        except UsageError as error:
            raise error.within(path) from None

    request = sweep.Request(
        config,
        common,
        frozenset(parsed.settings),
        tuple(words),
        config_of,
        _folder(parsed, common),
        parsed.options["sweep_jobs"],
        parsed.options["overwrite"],
    )
    with resumable("the same command continues the sweep"), console.log_to_stdout():
        result = sweep.execute(request)
    print(f"\n{result}")
    if result.page is not None:
        print(f"\n{result.page}")
    return _SOME_FAILED if result.failed else 0


def _folder(parsed: Parsed, common: RunConfig) -> Path:
    folder = str(parsed.options["model_dir"] or f"{training_run.default_folder(common)}_sweep")
    files.check_local(folder, "--model_dir", "choose a folder of this machine for a sweep")
    if not parsed.options["resume"] and not parsed.options["overwrite"] and Path(folder).exists():
        expected = "a new folder with --noresume"
        raise UsageError("--model_dir", folder, expected, "choose another name")
    return Path(folder)
