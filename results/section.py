"""What is a report made of? Sections: each says something in words, tables and figures, and knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from results.record import Manifest, RunRecord


@dataclass(frozen=True)
class Gathered:
    """A study as its files tell it: what a section is made from.

    `frame` has one row a cell, `summary` one an arm; `records` are those of the runs, by their ids, that have one.
    """

    runs: Path
    manifest: Manifest
    frame: pd.DataFrame
    summary: pd.DataFrame
    records: Mapping[str, RunRecord] = field(default_factory=dict)


@dataclass
class Section:
    """One part of a report. `tables` and `figures` are keyed by the stem of the file they are written to.

    `text` is paragraphs of plain text. A table holds plain cells (numbers or text) in the columns that are
    printed; it is shown in Markdown and HTML, and written as CSV unless `data` has, under the same stem, the plain
    numbers behind it. `captions` of figures, where their names do not say enough.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
