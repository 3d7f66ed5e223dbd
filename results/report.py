"""The report of a study: tables, figures and text from the files of its runs; all of it can be made again."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from results import costs, diffusion, effects, evals, figures, significance, tables, tuning
from results.apart import apart, sources
from results.declarations import undeclared_note
from results.files import made_folder
from results.gather import curves, gather, printable_manifest
from results.latex import unknown_to_pdflatex
from results.notes import bold_means, caption, legend, notes, reasons
from results.page import page as html_page
from results.parts import Parts
from results.printing import csv, file_stem, write
from results.record import Manifest, RunRecord, older_files
from results.section import Gathered, Section
from results.significance import over_examples
from results.stale import study_lines
from results.summary import CHOICE, MOST_CURVES, most_telling, summarise
from results.text import styled

# what follows the table of arms, in this order; None where there is nothing to say
SECTIONS: dict[str, Callable[[Gathered], Section | None]] = {
    "significance": significance.section,
    "effects of factors": effects.section,
    "measured cost": costs.section,
    "evaluations elsewhere": evals.section,
    "diffusion": diffusion.section,
    "tuning": tuning.section,
}
CAPTIONS = {
    "arms": "Every arm: its seeds (dots), mean (tick) and standard deviation (bar); the reference's mean as a line.",
    "accuracy_against_cost": "What each arm reaches, over its multiply-adds per example.",
}


@dataclass
class Report:
    """The files of a report, all in one folder, and what a terminal shows: the table, what is missing, the notes.

    `errors` are the sentences of `missing` that name an error in the suite.
    """

    folder: Path
    files: list[Path]
    table: Table
    missing: list[str]
    notes: list[str]
    errors: list[str]


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
    parts = Parts()
    gathered = _gathered(runs, study, parts)
    manifest, metric, summary = gathered.manifest, gathered.manifest.metric, gathered.summary
    folder = made_folder(out / manifest.study)
    others = apart(gathered.frame, metric)
    overview = _overview(gathered, parts)
    made = [parts.make(f"section {name}", function, gathered) for name, function in SECTIONS.items()]
    sections = [section for section in made if section is not None]
    pictures = _pictures([overview, *sections], parts)
    why = [*reasons(summary), *parts.missing, *parts.errors]
    remarks = _remarks(gathered, why) + overview.text
    said = [*legend(summary), *bold_means(summary), *sources(others), *remarks]
    content: dict[str, Callable[[], str | bytes]] = {
        "table.md": lambda: _page(
            manifest, tables.markdown(summary, metric, others), [*said, *parts.missing, *parts.errors], sections
        ),
        "table.tex": lambda: _latex(gathered, others, why, remarks),
        "panels.tex": lambda: _latex_panels(gathered, others, why, remarks),
        "runs.csv": lambda: csv(gathered.frame),
        "runs.parquet": lambda: bytes(gathered.frame.to_parquet(index=False)),
        **{name: partial(bytes, data) for name, data in pictures.items()},
        **{
            f"{stem}.csv": partial(csv, table)
            for section in sections
            for stem, table in (section.tables | section.data).items()
        },
        "report.html": lambda: html_page(gathered, folder, others, why, said, overview, pictures, sections),
    }
    files = []
    for name, function in content.items():
        if data := parts.make(name, function):
            write(folder / name, data if isinstance(data, bytes) else data.encode(errors="backslashreplace"))
            files.append(folder / name)
    why = [*reasons(summary), *parts.missing, *parts.errors]
    return Report(folder, files, tables.terminal(summary, metric, manifest.question, others), why, said, parts.errors)


def _gathered(runs: Path, study: str, parts: Parts) -> Gathered:
    """Raises ValueError for a study whose name is no name of a folder, as one that was not written here may be."""
    manifest = printable_manifest(runs, study)
    if file_stem(manifest.study) != manifest.study:
        raise ValueError(f"the study is called {manifest.study!r} by its manifest, which is no name of a folder")
    records: dict[str, RunRecord] = {}
    frame = gather(runs, study, records)
    summary = summarise(frame, manifest.metric, manifest.direction)
    metric, missing = manifest.metric, parts.missing
    over = parts.make("differences over test examples", over_examples, runs, frame, metric, records, missing)
    return Gathered(runs, manifest, frame, summary if over is None else summary.join(over, on="arm"), records)


def _overview(gathered: Gathered, parts: Parts) -> Section:
    """The figures of all studies; the text says which arms they leave out."""
    frame, summary, metric = gathered.frame, gathered.summary, gathered.manifest.metric
    shown = most_telling(frame, summary, gathered.manifest.direction, metric)
    learned = most_telling(frame, shown, gathered.manifest.direction, metric, MOST_CURVES)
    made = Section("Figures")
    for what, drawn in (("figures", shown), ("training curves", learned)):
        if len(drawn) < len(summary):
            made.text.append(f"The {what} show {len(drawn)} of {len(summary)} arms: {CHOICE}.")
    of_learned = frame[(frame["status"] == "done") & frame["arm"].isin(learned["arm"])]
    evaluations = figures.aligned(curves(gathered.runs, of_learned, gathered.records, parts.missing))
    drawings: dict[str, Callable[[], Any]] = {
        "arms": lambda: figures.arms(frame, shown, metric),
        "accuracy_against_cost": lambda: figures.accuracy_against_cost(shown, metric),
        "training_curves": lambda: figures.training_curves(evaluations, learned, metric),
    }
    for name, draw in drawings.items():
        if (figure := parts.make(f"figure {name}", draw)) is not None:
            made.figures[name] = figure
    made.captions = CAPTIONS | {"training_curves": evaluations.caption}
    return made


def _pictures(sections: list[Section], parts: Parts) -> dict[str, bytes]:
    """All figures as .png and .pdf files; a figure that cannot be drawn is taken out of its section."""
    pictures: dict[str, bytes] = {}
    for section in sections:
        for name, figure in list(section.figures.items()):
            encoded = [parts.make(f"figure {name}", figures.encode, figure, kind) for kind in ("png", "pdf")]
            if None in encoded:
                del section.figures[name]
            pictures |= {f"{name}.{kind}": data for kind, data in zip(("png", "pdf"), encoded, strict=True) if data}
    return pictures


def _remarks(gathered: Gathered, why: list[str]) -> list[str]:
    """What a reader must know of the runs, of the arms, and of the characters that one of the formats lacks."""
    manifest = gathered.manifest
    remarks = [*study_lines(manifest, gathered.records), *notes(gathered.frame)]
    remarks += older_files(gathered.records.values())
    remarks += [f"{arm['label']}: {arm['note']}." for arm in manifest.arms if arm["note"]]
    remarks += manifest.notes
    if undeclared := undeclared_note(gathered.runs, manifest):
        remarks.append(f"{undeclared[:1].upper()}{undeclared[1:]}.")
    printed = "".join([manifest.question, *gathered.summary["arm"], *why, *remarks])
    if codes := unknown_to_pdflatex(printed):
        remarks.append(f"pdfLaTeX prints these characters of the tables as codes: {' '.join(codes)}.")
    return remarks


def _page(manifest: Manifest, table: str, said: list[str], sections: list[Section]) -> str:
    """The report as Markdown."""
    head = tables.escape_markdown(f"{manifest.study}: {manifest.question}")
    page = [f"# {head}", table, *map(tables.escape_markdown, said)]
    for section in sections:
        page += [f"## {tables.escape_markdown(section.title)}", *map(tables.escape_markdown, section.text)]
        page += [tables.plain_markdown(printed) for printed in section.tables.values()]
        page += [f"![{name}]({name}.png)" for name in section.figures]
    return "\n\n".join(page) + "\n"


def _latex(gathered: Gathered, others: pd.DataFrame, why: list[str], remarks: list[str]) -> str:
    """The table for a paper."""
    manifest, summary = gathered.manifest, gathered.summary
    below = [" ".join(sentences) for sentences in (why, [*legend(summary), *sources(others), *remarks]) if sentences]
    above = caption(manifest.question, manifest.metric, gathered.frame, summary)
    return tables.latex(summary, manifest.metric, above, f"tab:{manifest.study}", below, others)


def _latex_panels(gathered: Gathered, others: pd.DataFrame, why: list[str], remarks: list[str]) -> str:
    """The panels of a study side by side; "" where there are none."""
    manifest, summary = gathered.manifest, gathered.summary
    signs = [*legend(summary, by_panel=True), *sources(others)]
    below = [" ".join(sentences) for sentences in (why, [*signs, *remarks]) if sentences]
    panels = tables.by_panel(summary, manifest.reference, others)
    above = caption(manifest.question, manifest.metric, gathered.frame, summary, differences=False)
    label = f"tab:{manifest.study}-panels"
    return tables.latex_by_panel({manifest.metric: panels}, above, label, below) if panels else ""


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
