"""Where do a study's tables and figures come from? From its runs' files, in one call; all of them may be redrawn."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from results import costs, diffusion, effects, evals, figures, significance, tables, tuning
from results.apart import apart, sources
from results.files import CorruptFile, made_folder
from results.gather import curves, gather, manifest_of
from results.notes import bold_means, caption, legend, notes, reasons
from results.page import page as html_page
from results.printing import write
from results.record import Manifest, RunRecord
from results.section import Gathered, Section
from results.significance import over_examples
from results.summary import CHOICE, MOST_CURVES, most_telling, summarise
from results.text import styled

# what follows the table of arms, in this order; None where there is nothing to say
SECTIONS: tuple[Callable[[Gathered], Section | None], ...] = (
    significance.section,
    effects.section,
    costs.section,
    evals.section,
    diffusion.section,
    tuning.section,
)


@dataclass
class Report:
    """The files of a report, all in one folder, and what a terminal shows: the table, what is missing, the notes."""

    folder: Path
    files: list[Path]
    table: Table
    missing: list[str]
    notes: list[str]


def write_report(runs: Path, study: str, out: Path) -> Report:
    """Gather a study (its name, or its file) from `runs` and write its report into `out/<name>`.

    Raises OSError before any work if there can be no such folder.
    """
    with _uncollected():
        return _write_report(runs, study, out)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would look again and again through thousands of records that are all in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write_report(runs: Path, study: str, out: Path) -> Report:
    manifest = manifest_of(runs, study)
    folder = made_folder(out / manifest.study)
    metric = manifest.metric
    records: dict[str, RunRecord] = {}
    frame = gather(runs, study, records)
    summary = summarise(frame, metric, manifest.direction).join(over_examples(runs, frame, metric), on="arm")
    others = apart(frame, metric)
    why, remarks = reasons(summary), notes(frame)
    remarks += [f"{arm['label']}: {arm['note']}." for arm in manifest.arms if arm["note"]]
    remarks += manifest.notes
    shown = most_telling(frame, summary, manifest.direction, metric)
    learned = most_telling(frame, shown, manifest.direction, metric, MOST_CURVES)
    for what, drawn_arms in (("figures", shown), ("training curves", learned)):
        if len(drawn_arms) < len(summary):
            remarks.append(f"The {what} show {len(drawn_arms)} of {len(summary)} arms: {CHOICE}.")
    try:
        drawn_runs = frame[(frame["status"] == "done") & frame["arm"].isin(learned["arm"])]
        evaluations = curves(runs, drawn_runs)
    except CorruptFile as error:  # one torn curve is no reason to withhold the rest
        evaluations = curves(runs, frame.head(0))
        why.append(f"No training curves: {error}.")
    gathered = Gathered(runs, manifest, frame, summary, records)
    sections = [section for make in SECTIONS if (section := make(gathered)) is not None]
    drawn = {
        "arms": figures.arms(frame, shown, metric),
        "accuracy_against_cost": figures.accuracy_against_cost(shown, metric),
        "training_curves": figures.training_curves(evaluations, learned, metric),
    }
    said = [*legend(summary), *bold_means(summary), *sources(others), *remarks]
    content = {
        "table.md": _page(manifest, tables.markdown(summary, metric, others), said, sections).encode(),
        **_latex(manifest, frame, summary, others, [why, [*legend(summary), *sources(others), *remarks]]),
        "runs.csv": frame.to_csv(index=False).encode(),
        "runs.parquet": frame.to_parquet(index=False),
    }
    for made in (drawn, *(section.figures for section in sections)):
        for name, figure in made.items():
            content |= {f"{name}.{kind}": figures.encode(figure, kind) for kind in ("png", "pdf")}
    for section in sections:
        written = section.tables | section.data
        content |= {f"{name}.csv": table.to_csv(index=False).encode() for name, table in written.items()}
    pixels = {name.removesuffix(".png"): data for name, data in content.items() if name.endswith(".png")}
    content["report.html"] = html_page(gathered, folder, others, why, said, drawn, pixels, sections).encode()
    for name, data in content.items():
        write(folder / name, data)
    table = tables.terminal(summary, metric, manifest.question, others)
    return Report(folder, [folder / name for name in content], table, why, said)


def _page(manifest: Manifest, table: str, said: list[str], sections: list[Section]) -> str:
    """The report as Markdown."""
    head = f"# {manifest.study}: {tables.escape_markdown(manifest.question)}"
    page = [head, table, *map(tables.escape_markdown, said)]
    for section in sections:
        page += [f"## {tables.escape_markdown(section.title)}", *map(tables.escape_markdown, section.text)]
        page += [tables.plain_markdown(printed) for printed in section.tables.values()]
        page += [f"![{name}]({name}.png)" for name in section.figures]
    return "\n\n".join(page) + "\n"


def _latex(
    manifest: Manifest, frame: pd.DataFrame, summary: pd.DataFrame, others: pd.DataFrame, said: list[list[str]]
) -> dict[str, bytes]:
    """The table for a paper; and where the study has panels, one with these side by side."""
    metric = manifest.metric
    below = [" ".join(sentences) for sentences in said if sentences]
    above = caption(manifest.question, metric, frame, summary)
    written = {"table.tex": tables.latex(summary, metric, above, f"tab:{manifest.study}", below, others)}
    if panels := tables.by_panel(summary, manifest.reference, others):
        label = f"tab:{manifest.study}-panels"
        above = caption(manifest.question, metric, frame, summary, differences=False)
        written["panels.tex"] = tables.latex_by_panel({metric: panels}, above, label, below)
    return {name: text.encode() for name, text in written.items()}


def print_report(console: Console, report: Report) -> None:
    console.print(report.table)
    for line in report.missing:
        console.print(styled(line))
    for line in report.notes:
        console.print(styled(line, "dim"))
    folder = os.path.relpath(report.folder)
    shown = str(report.folder) if folder.startswith("..") else folder
    names = ", ".join(path.name for path in report.files)
    console.print("\n", styled(f"Written to {shown}/: {names}"), sep="")
