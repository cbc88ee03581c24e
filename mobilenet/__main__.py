"""`python -m mobilenet`: which commands and which models there are."""

from __future__ import annotations

import ast
from importlib import resources

from mobilenet import cli
from mobilenet.configs import archs

COMMAND = cli.Command("mobilenet", "Lists the commands and the models.")
MODULES = ("trainer", "evaluator", "converter", "predict", "profiler", "packer", "tf1_loader")


def summaries() -> list[tuple[str, str]]:
    """The commands, each with the first words of its module; none is imported."""
    found = []
    for module in MODULES:
        source = resources.files("mobilenet").joinpath(f"{module}.py")
        if not source.is_file():  # a package with a command of its own
            source = resources.files(f"mobilenet.{module}").joinpath("__main__.py")
        text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        command = f"python -m mobilenet.{module}"
        first = " ".join(text.partition("\n\n")[0].split())
        found.append((command, first.removeprefix(f"`{command}`: ").partition("; ")[0]))
    return found


def run(argv: list[str]) -> None:
    """Prints both lists."""
    COMMAND.parse(argv)
    print(cli.table(("command", "does"), summaries()))
    print()
    models = [(name, (kind.__doc__ or "").partition("\n")[0]) for name, kind in archs.ALL.items()]
    print(cli.table(("net (--model_name)", "is"), models))
    print("\npython -m mobilenet.trainer --help explains the flags.")


def main() -> None:
    """The console script `mobilenet`."""
    cli.main(run)


if __name__ == "__main__":
    main()
