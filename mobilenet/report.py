"""`python -m mobilenet.report`: what runs reached as an HTML page; of several a comparison."""

from __future__ import annotations

from pathlib import Path

from mobilenet import cli
from mobilenet.reporting import page
from mobilenet.sweeps import report

COMMAND = cli.Command(
    "mobilenet.report",
    "Writes what runs reached as one HTML page that needs no network.",
    extra=(
        cli.option(
            "output",
            Path,
            None,
            f"the folder of {page.PAGE} and {page.PLOTS}/; that of the run, or {page.COMPARISON} "
            "for several, when left out",
        ),
    ),
    arguments="RUN... | SWEEP",
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    swept = report.sweep_of(parsed.arguments, parsed.options["output"])
    if swept is not None:
        print(f"{swept}\n")
        print(report.write(swept) or swept.folder)
        return None
    print(page.write(parsed.arguments, parsed.options["output"]))
    return None


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
