"""Where do a study's tables and figures come from? From its runs' files, in one call; all of them may be redrawn."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from results import diffusion, evals, figures, tables
from results.gather import curves, gather, manifest_of
from results.record import CorruptFile, write_atomically
from results.section import Gathered, Section
from results.summary import notes, reasons, summarise, title

# what follows the table of arms, in this order; None where there is nothing to say
SECTIONS: tuple[Callable[[Gathered], Section | None], ...] = (evals.section, diffusion.section)


@dataclass
class Report:
    """The files of a report, all in one folder, and what a terminal shows: the table, what is missing, the notes."""

    folder: Path
    files: list[Path]
    table: Table
    missing: list[str]
    notes: list[str]


def write_report(runs: Path, study: str, out: Path) -> Report:
    """Gather a study (its name, or its file) from `runs` and write its report into `out/<name>`."""
    manifest = manifest_of(runs, study)
    metric = manifest.metric
    frame = gather(runs, study)
    summary = summarise(frame, metric, manifest.direction)
    why, remarks = reasons(summary), notes(frame)
    remarks += [f"{arm['label']}: {arm['note']}." for arm in manifest.arms if arm["note"]]
    caption = f"{manifest.question} {title(metric)}, mean ± standard deviation over seeds."
    head = f"# {manifest.study}: {tables.escape_markdown(manifest.question)}"
    below = [" ".join(sentences) for sentences in (why, remarks) if sentences]
    content = {
        "table.md": b"",  # written last, named first
        "table.tex": tables.latex(summary, metric, caption, f"tab:{manifest.study}", below).encode(),
        "runs.csv": frame.to_csv(index=False).encode(),
        "runs.parquet": frame.to_parquet(index=False),
    }
    try:
        evaluations = curves(runs, frame[frame["status"] == "done"])
    except CorruptFile as error:  # one torn curve is no reason to withhold the rest
        evaluations = curves(runs, frame.head(0))
        why.append(f"No training curves: {error}.")
    drawn = {
        "arms": figures.arms(frame, summary, metric),
        "accuracy_against_cost": figures.accuracy_against_cost(summary, metric),
        "training_curves": figures.training_curves(evaluations, summary, metric),
    }
    for name, figure in drawn.items():
        content |= {f"{name}.{kind}": figures.encode(figure, kind) for kind in ("png", "pdf")}
    gathered = Gathered(runs, manifest, frame, summary)
    sections = [section for make in SECTIONS if (section := make(gathered)) is not None]
    for section in sections:
        for name, figure in section.figures.items():
            content |= {f"{name}.{kind}": figures.encode(figure, kind) for kind in ("png", "pdf")}
        content |= {f"{name}.csv": printed.to_csv(index=False).encode() for name, printed in section.tables.items()}
    page = [head, tables.markdown(summary, metric), *map(tables.escape_markdown, remarks)]
    for section in sections:
        page += [f"## {tables.escape_markdown(section.title)}", *map(tables.escape_markdown, section.text)]
        page += [tables.plain_markdown(printed) for printed in section.tables.values()]
        page += [f"![{name}]({name}.png)" for name in section.figures]
    content["table.md"] = ("\n\n".join(page) + "\n").encode()
    folder = out / manifest.study
    for name, data in content.items():
        _write(folder / name, data)
    table = tables.terminal(summary, metric, manifest.question)
    return Report(folder, [folder / name for name in content], table, why, remarks)


def print_report(console: Console, report: Report) -> None:
    console.print(report.table)
    for line in report.missing:
        console.print(line, markup=False, highlight=False)
    for line in report.notes:
        console.print(line, style="dim", markup=False, highlight=False)
    folder = os.path.relpath(report.folder)
    shown = str(report.folder) if folder.startswith("..") else folder
    names = ", ".join(path.name for path in report.files)
    console.print(f"\nWritten to {shown}/: {names}", markup=False, highlight=False)


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))
