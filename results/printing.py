"""What do the sections' tables and pages share: how a number is written, a table printed, a file put down?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from results import tables
from results.figures.style import encode
from results.files import write_atomically
from results.section import Section
from results.summary import scale
from results.text import styled

NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
TEXTUAL = ("Model", "Mode", "Kernel", "Variant")


def signed(values: pd.Series, metric: str) -> list[str]:
    """Differences of the metric with their sign, a true minus; "" for NaN."""
    decimals = 2 if scale(metric) == 100 else 4
    return ["" if math.isnan(v) else f"{v * scale(metric):+z.{decimals}f}".replace("-", "−") for v in values]


def intervals(low: pd.Series, high: pd.Series, metric: str) -> list[str]:
    """As in "[−2.00, −0.40]"; "" where there is none."""
    ends = zip(signed(low, metric), signed(high, metric), strict=True)
    return [f"[{a}, {b}]" if a else "" for a, b in ends]


def write_page(folder: Path, frame: pd.DataFrame, name: str, page: Section) -> list[Path]:
    """The frame as CSV file `name`, figures as .png and .pdf, and a table.md that shows tables, figures and text."""
    content = {name: csv(frame)}
    for stem, figure in page.figures.items():
        content |= {f"{stem}.{kind}": encode(figure, kind) for kind in ("png", "pdf")}
    parts = [f"# {tables.escape_markdown(page.title)}", *map(tables.plain_markdown, page.tables.values())]
    parts += [f"![{stem}]({stem}.png)" for stem in page.figures] + list(map(tables.escape_markdown, page.text))
    content["table.md"] = ("\n\n".join(parts) + "\n").encode()
    for name, data in content.items():
        write(folder / name, data)
    return [folder / name for name in content]


def _fitting(printed: pd.DataFrame, width: int, expendable: Iterable[str]) -> pd.DataFrame:
    """Without the columns that a terminal has no room for, the least important ones first; the files hold them all."""
    for name in expendable:
        needed = 1 + sum(2 + max(map(len, [column, *map(str, cells)])) for column, cells in printed.items())
        if needed > width and name in printed:
            printed = printed.drop(columns=name)
    return printed


def print_table(
    console: Console, printed: pd.DataFrame, title: str, apart: str = "", expendable: Iterable[str] = ()
) -> None:
    """A table with an empty line wherever the column `apart`, if any, changes."""
    printed = _fitting(printed, console.width, expendable)
    table = Table(title=styled(title, "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for column in printed.columns:
        left = column in TEXTUAL
        table.add_column(
            styled(str(column)), justify="left" if left else "right", no_wrap=column not in ("Model", "Kernel")
        )
    former = None
    for row in printed.to_dict("records"):
        if former and apart and row[apart] != former[apart]:
            table.add_row()
        table.add_row(*(styled(str(cell)) for cell in row.values()))
        former = row
    console.print(table)


def print_notes(console: Console, said: Iterable[str], files: list[Path]) -> None:
    for line in said:
        console.print(styled(line, "dim"))
    names = ", ".join(path.name for path in files)
    console.print("\n", styled(f"Written to {files[0].parent}/: {names}"), sep="", soft_wrap=True)


def csv(frame: pd.DataFrame) -> bytes:
    """The frame in CSV; an apostrophe stands before text that a spreadsheet would take for a formula."""
    text = frame.select_dtypes(exclude=["number", "bool"])
    plain = frame.assign(**{str(name): cells.astype(object).map(_no_formula) for name, cells in text.items()})
    return plain.rename(columns=_no_formula).to_csv(index=False).encode()


def file_stem(text: str) -> str:
    """A file's name without its ending, in letters that any file system and link takes; never a path."""
    return re.sub(r"[^\w.+-]+", "_", text)[:100].lstrip(".")


def _no_formula(value: object) -> object:
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula and not NUMBER.fullmatch(str(value)) else value


def write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))
