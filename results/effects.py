"""What does each factor of a crossed study do, and each pair of factors? Effects with intervals, blocked by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results import statistics
from results.figures.factors import factor_grid, importance
from results.gather import level_text
from results.importance import importances
from results.notes import number
from results.printing import intervals, signed
from results.section import Gathered, Section
from results.summary import CONFIDENCE, LEVEL, metric_of, on_validation, title

FACTOR = "factor."


@dataclass(frozen=True)
class Grid:
    """A crossed design: `y` (seeds, levels of the first factor, ...), NaN where a cell has no result.

    `levels` of each factor, in the study's order but for the reference arm's, which is first.
    """

    levels: dict[str, list[str]]
    y: np.ndarray


def section(gathered: Gathered) -> Section | None:
    """Effects, heat maps and importances of each reference's factors; None for a study that crosses none."""
    metric = gathered.manifest.metric
    made = Section("Effects of the factors", [EXPLAINED.format(level=f"{CONFIDENCE:.0%}", metric=title(metric))])
    grids = list(_grids(gathered.frame, metric))
    for i, (reference, runs, grid) in enumerate(grids):
        stem = f"_{i + 1}" if len(grids) > 1 else ""
        table = effects(grid)
        selected = _selection(runs, metric)
        shares = importances(runs, [FACTOR + name for name in grid.levels], selected, gathered.manifest.direction)
        shares.index = [name.removeprefix(FACTOR) for name in shares.index]
        if stem:
            made.text.append(f"effects{stem}: {reference}.")
        if (table.loc[table["factors"] == 2, "p_holm"] <= LEVEL).any():
            made.text.append(f"Factors of {reference} interact: {INTERACTING}")
        made.tables[f"effects{stem}"], made.data[f"effects{stem}"] = _printed(table, metric), table
        made.figures[f"factors{stem}"] = factor_grid(grid.levels, grid.y, metric)
        if len(shares):
            made.tables[f"importance{stem}"] = shares.round(3).rename_axis("Factor").reset_index()
            made.figures[f"importance{stem}"] = importance(table, shares, metric)
    if any(name.startswith("importance") for name in made.tables):
        made.text.append(IMPORTANCES)
    return made if grids else None


def effects(grid: Grid) -> pd.DataFrame:
    """One row for each level of each factor beside its reference level, and each such pair of two factors' levels.

    Columns `factors` (1 or 2), `effect` (its label), `estimate`, `low`, `high` (t interval over seeds), `p` (paired t),
    `p_holm` (over the rows of as many factors), `seeds`, `cells` (pairs of cells used), `planned` (of the full grid).
    """
    rows = []
    names = list(grid.levels)
    for i, name in enumerate(names):
        contrasts, cells = statistics.main_effects(grid.y, i)
        planned = math.prod(len(levels) for other, levels in grid.levels.items() if other != name)
        for level, values, used in zip(grid.levels[name][1:], contrasts, cells, strict=True):
            rows.append(_row(1, f"{name} {level} − {grid.levels[name][0]}", values, used, planned))
    for i, j in itertools.combinations(range(len(names)), 2):
        contrasts, cells = statistics.pair_effects(grid.y, i, j)
        planned = math.prod(len(grid.levels[name]) for k, name in enumerate(names) if k not in (i, j))
        for a, first in enumerate(grid.levels[names[i]][1:]):
            for b, second in enumerate(grid.levels[names[j]][1:]):
                label = f"{names[i]} {first} × {names[j]} {second}"
                rows.append(_row(2, label, contrasts[a, b], cells[a, b], planned))
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("factors")["p"].transform(lambda p: statistics.holm(p))
    return table


def _row(factors: int, label: str, values: np.ndarray, used: np.ndarray, planned: int) -> dict[str, object]:
    interval = statistics.t_interval(values, CONFIDENCE)
    return {
        "factors": factors, "effect": label, "estimate": float(interval.estimate), "low": float(interval.low),
        "high": float(interval.high), "p": float(statistics.t_test(values)), "seeds": int(np.isfinite(values).sum()),
        "cells": int(used.sum()), "planned": planned * len(values),
    }  # fmt: skip


def _grids(frame: pd.DataFrame, metric: str) -> Iterator[tuple[str, pd.DataFrame, Grid]]:
    """Each reference with the runs of its crossed arms, as a grid; none where no arm varies two factors at once."""
    columns = [name for name in frame.columns if name.startswith(FACTOR)]
    values = metric_of(frame, metric)
    for reference, runs in frame.groupby("reference", sort=False):
        runs = runs[runs[columns].notna().all(axis=1)] if columns else runs.head(0)
        base = runs[runs["arm"].astype(str) == reference]
        varied = [name for name in columns if runs[name].nunique() > 1]
        if base.empty or len(varied) < 2 or not (runs[varied] != base[varied].iloc[0]).sum(axis=1).gt(1).any():
            continue
        text = runs[varied].map(level_text)
        first = text.loc[base.index[0]].to_dict()
        levels = {n: [first[n], *(v for v in text[n].unique() if v != first[n])] for n in varied}
        seeds = sorted(runs["seed"].unique())
        y = np.full((len(seeds), *map(len, levels.values())), math.nan)
        places = [runs["seed"].map(seeds.index), *(text[n].map(levels[n].index) for n in varied)]
        y[tuple(np.asarray(place, int) for place in places)] = values[runs.index]
        yield str(reference), runs, Grid({n.removeprefix(FACTOR): levels[n] for n in varied}, y)


def _selection(runs: pd.DataFrame, metric: str) -> pd.Series:
    """The metric's value on validation: importances are of what one would select by, never of test."""
    name = on_validation(metric)
    return metric_of(runs, name) if name in runs else pd.Series(math.nan, runs.index)


def _printed(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Effect": table["effect"],
            "Estimate": signed(table["estimate"], metric),
            f"{CONFIDENCE:.0%} interval": intervals(table["low"], table["high"], metric),
            "p": table["p"].map(number),
            "p (Holm)": table["p_holm"].map(number),
            "seeds": table["seeds"],
            "cells": [f"{used}/{planned}" for used, planned in zip(table["cells"], table["planned"], strict=True)],
        }
    )


INTERACTING = (
    "what one of them does depends on the other, and its effect is a mean over what it does there. Read the heat map, "
    "and the effects of pairs, before the effects of one."
)
EXPLAINED = (
    "{metric}. An effect is the mean difference between a level and the reference arm's level of the same factor, over "
    "all cells of the other factors, taken at each seed; the estimate is its mean over seeds, with its {level} t "
    "interval and the p of a paired t test, Holm-corrected over the effects of as many factors. A × B: what both "
    "levels do together beyond the sum of what each does alone (a difference of differences). A cell without a result "
    "is left out, with the cells it would be compared with, at that seed; cells: comparisons used of those planned."
)
IMPORTANCES = (
    "Importances are of the validation metric, every run a trial: what sets the best tenth apart (PED-ANOVA), and "
    "the variance that each factor has alone (fANOVA; the rest is of factors together, and of seeds). They have no "
    "sign and no interval; read them beside the effects."
)
