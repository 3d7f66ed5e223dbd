"""What did a study find? `python -m results NAME` draws its tables and figures from the runs, as far as they are."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take a moment
    from results.environment import use_temporary_caches
    from results.signals import end_on_signals

    end_on_signals()
    use_temporary_caches()

from pathlib import Path
from typing import Annotated

import typer

from results.cli import run_app
from results.environment import expanded
from results.report import print_report, write_report
from results.text import PlainConsole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="A study's name, or the path of its file.")],
    runs: Annotated[
        Path, typer.Option(envvar="LDN_RUNS", callback=expanded, help="The folder the runs are in.")
    ] = Path("runs"),
    out: Annotated[
        Path, typer.Option(envvar="LDN_REPORTS", callback=expanded, help="The folder reports go to.")
    ] = Path("reports"),
) -> None:
    """Print a study's table, and write it and its figures to OUT/NAME."""
    report = write_report(runs, name, out)
    print_report(PlainConsole(), report)
    if report.errors:
        raise ValueError(report.errors[0])


if __name__ == "__main__":
    run_app(app, "python -m results")
