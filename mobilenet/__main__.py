"""`python -m mobilenet`: runs a command by name, or lists the commands and the models."""

from __future__ import annotations

import ast
import importlib
from importlib import resources

from mobilenet import cli
from mobilenet.configs import archs
from mobilenet.errors import one_of

COMMAND = cli.Command(
    "mobilenet",
    "Runs a command, or lists the commands and the models.",
    arguments="[COMMAND [flags]]",
)
COMMANDS = {  # modules by the words after `mobilenet`
    name: f"mobilenet.{name}"
    for name in (
        "trainer",
        "evaluator",
        "converter",
        "predict",
        "profiler",
        "packer",
        "report",
        "data",
        "tf1_loader",
    )
}


def summaries() -> list[tuple[str, str]]:
    """The commands, each with the first words of its module; none is imported."""
    listed = []
    for name, module in COMMANDS.items():
        source = resources.files("mobilenet").joinpath(f"{name}.py")
        if not source.is_file():  # a package with a command of its own
            source = resources.files(module).joinpath("__main__.py")
        text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.partition("\n\n")[0].split())
        summary = first.removeprefix(f"`python -m {module}`: ").partition("; ")[0]
        listed.append((cli.typed_name(module), summary))
    return listed


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    """Runs the command that the first word names; lists commands and models without one."""
    if argv and not argv[0].startswith("-"):
        return _run_command(argv[0], argv[1:])
    COMMAND.parse(argv)
    print(cli.table(("command", "does"), summaries()))
    print()
    models = [(name, (kind.__doc__ or "").partition("\n")[0]) for name, kind in archs.ALL.items()]
    print(cli.table(("model (--model_name)", "is"), models))
    print(f"\n{cli.typed_name('mobilenet.trainer')} --help explains the flags.")
    return None


def _run_command(word: str, argv: list[str]) -> int | None:
    module = COMMANDS[one_of("command", word.replace("-", "_"), COMMANDS)]
    command = importlib.import_module(module)
    if not hasattr(command, "run"):
        command = importlib.import_module(f"{module}.__main__")
    status: int | None = command.run(argv)
    return status


def main() -> None:
    """The console script `mobilenet`."""
    cli.main(run)


if __name__ == "__main__":
    main()
