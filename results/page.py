"""How does a study look in a browser? One HTML file: its tables sort, its figures are in it, every run opens.

The page asks nothing of a network and works from a file. Its tables hold the same cells as the Markdown and the LaTeX.
What is known of each run lies in it as compact JSON and is drawn when a reader opens the run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from results import figures as drawing
from results import tables
from results.details import details
from results.section import Gathered, Section
from results.summary import UNITS, cost_unit, metric_of, on_validation, rounded, scale, title

VECTOR_UP_TO = 3_000  # parts of a drawing; one of more is quicker to make and to show as pixels
PIXELS_PER_INCH = 120  # a figure's eight-point letters are then as large as the page's small ones
SORTED_BY = {
    "Δ [95% interval]": "difference",
    "Params": "params",
    "Params (M)": "params",
    **dict.fromkeys(UNITS, "gmac"),
}


def page(
    gathered: Gathered,
    folder: Path,
    others: pd.DataFrame,
    missing: Sequence[str],
    notes: Sequence[str],
    overview: Section,
    pictures: Mapping[str, bytes],
    sections: Sequence[Section],
) -> str:
    """The report of a study as one HTML document, made to lie in `folder`: from there it links to the runs' files.

    `others` are the rows that stand apart from the arms (`results.apart`).
    `missing` says why runs are missing, `notes` what a reader of the table must know, as in the other
    reports; `overview` holds the figures of all studies, `pictures` the files of all figures, PNGs among them, by name.
    """
    manifest = gathered.manifest
    shown = [(section, images(section, pictures)) for section in sections]
    island = runs_of(gathered) | details(gathered.runs, gathered.frame, gathered.records)
    island["folder"] = quote(os.path.relpath(gathered.runs, folder))
    templates = files("results") / "templates"
    script = (templates / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["columns"] = columns
    return environment.from_string((templates / "page.html").read_text(encoding="utf-8")).render(
        manifest=manifest,
        arms=arms_table(gathered.summary, manifest.metric, others),
        missing=missing,
        notes=notes,
        figures=images(overview, pictures),
        sections=shown,
        done=int((gathered.frame["status"] == "done").sum()),
        total=len(gathered.frame),
        style=(templates / "page.css").read_text(encoding="utf-8"),
        script=script,
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        island=embedded(island),
    )


def embedded(plain: Any) -> str:
    """JSON that may stand in a script element: no "<" is left in it that could end the element."""
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def images(section: Section, pictures: Mapping[str, bytes]) -> list[dict[str, Any]]:
    captions = {name: name.replace("_", " ").capitalize() + "." for name in section.figures} | section.captions
    return [image(name, drawn, pictures[f"{name}.png"], captions[name]) for name, drawn in section.figures.items()]


def image(name: str, figure: Figure, pixels: bytes, caption: str) -> dict[str, Any]:
    """A figure for an img element: vectors where they are few, else its `pixels` (a PNG); `width` in the page's."""
    vectors = len(figure.findobj()) <= VECTOR_UP_TO
    kind, data = ("svg+xml", drawing.encode(figure, "svg")) if vectors else ("png", pixels)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"name": name, "caption": caption, "source": source, "width": round(figure.get_figwidth() * PIXELS_PER_INCH)}


def arms_table(summary: pd.DataFrame, metric: str, others: pd.DataFrame) -> list[dict[str, Any]]:
    """The cells of the other reports' table; a column sorts by the value behind it, not by what is printed.

    What stands apart from the arms has no values to sort by, so it stays below them.
    """
    rows = tables.arranged(summary, others)
    printed = tables.cells(
        rows, metric, lambda text: str(escape(text)), "<strong>{}</strong>".format, "<em>{}</em>".format
    )
    if not printed["Note"].any():
        printed = printed.drop(columns="Note")
    behind = SORTED_BY | {title(metric): "mean"}
    columns = []
    for name, cells in printed.items():
        texts = [Markup(text) for text in cells]
        if name == "Arm":
            keys: list[Any] = list(rows["arm"])
        elif (source := behind.get(str(name))) in rows:
            keys = [_key(value) for value in rows[source]]
        else:
            keys = [_printed_key(text.striptags()) for text in texts]
        keys = [key if kind == "arm" else None for key, kind in zip(keys, rows["kind"], strict=True)]
        columns.append({"name": name, "right": name in tables.RIGHT, "cells": list(zip(keys, texts, strict=True))})
    return columns


def columns(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A section's table: numbers at the right with four digits, nothing for NaN."""
    columns = []
    for name, cells in table.items():
        numeric = pd.api.types.is_numeric_dtype(table[name])
        keys = [_key(value) if numeric else _printed_key(_printed(value)) for value in cells]
        columns.append(
            {"name": str(name), "right": numeric, "cells": list(zip(keys, map(_printed, cells), strict=True))}
        )
    return columns


def runs_of(gathered: Gathered) -> dict[str, Any]:
    """One row a run for the table of all runs; a text that many runs share is stored once, by its place in `texts`."""
    frame, metric = gathered.frame, gathered.manifest.metric
    texts: dict[str, int] = {}

    def shared(column: str) -> list[int]:
        values = frame[column].astype(object) if column in frame else pd.Series("", frame.index, dtype=object)
        return [texts.setdefault("" if pd.isna(v) else str(v), len(texts)) for v in values]

    def numbers(column: str, factor: float = 1) -> list[float | str | None]:
        return [_key(v * factor) for v in frame[column]] if column in frame else [None] * len(frame)

    unit = cost_unit(gathered.summary["gmac"])
    valid = on_validation(metric)
    rows = zip(
        shared("arm"),
        [str(seed) for seed in frame["seed"]],
        shared("status"),
        [_key(value) for value in metric_of(frame, metric) * scale(metric)],
        numbers(valid, scale(metric)),
        numbers("cost.params"),
        numbers("cost.gmac", UNITS[unit]),
        numbers("env.seconds"),
        shared("env.device"),
        shared("env.commit"),
        list(frame["run_id"]),
        shared("reason"),
        strict=True,
    )
    head = [
        "Arm",
        "Seed",
        "Status",
        title(metric),
        title(valid),
        "Params",
        unit,
        "Seconds",
        "Device",
        "Commit",
        "Run",
    ]
    arms = {
        arm["label"]: {
            "reference": arm["reference"],
            "note": arm["note"],
            "changes": [[path, *map(_plain, pair)] for path, pair in arm["changes"].items()],
        }
        for arm in gathered.manifest.arms
    }
    return {
        "head": head,
        "rows": list(rows),
        "lower": [
            names not in ("", "[]") for names in frame.get("cost.uncounted", pd.Series("", frame.index)).fillna("")
        ],
        "texts": list(texts),
        "arms": arms,
        "decimals": 2 if scale(metric) == 100 else 4,
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _key(value: Any) -> float | str | None:
    """A number as JSON can hold it: None for NaN, infinities as the text that JavaScript reads as such."""
    if pd.isna(value):
        return None
    number = float(value)
    return f"{number:.12g}".replace("inf", "Infinity") if math.isinf(number) else float(f"{number:.12g}")


def _printed(value: Any) -> str:
    if pd.isna(value):
        return ""
    return rounded(value, 4) if isinstance(value, float) else str(value)


def _printed_key(text: str) -> float | str | None:
    """The number a cell begins with, as in "1.2 ± 0.1" or "3/5"; else its text; None where it says nothing."""
    text = text.strip().lstrip(tables.FIGURE_SPACE)
    if text in ("", tables.DASH):
        return None
    found = re.match(r"[+−-]?\d[\d,]*\.?\d*(e[+-]?\d+)?(?![\w.])", text)
    return float(found[0].replace("−", "-").replace(",", "")) if found else text
