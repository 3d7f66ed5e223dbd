"""How does accuracy change with the length of the input, relative to the length trained on?"""

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from results.figures.style import (
    COLUMN,
    FEW,
    GREY,
    MARKERS,
    STYLE,
    colours,
    labels,
    legend_below,
    over_reference,
    panel_an_arm,
    say_absent,
)
from results.summary import scale, title


def accuracy_against_length(rows: pd.DataFrame, summary: pd.DataFrame, metric: str) -> Figure | None:
    """One line an arm: mean and sd over seeds of every length; a dashed line where the arms were trained.

    None where no arm was evaluated at another length.

    `rows` are those of `results.evals.gather_evals`. More than a few arms are drawn apart, each over its reference.
    """
    rows = rows.assign(ratio=rows["length"] / rows["trained_length"], value=rows["value"] * scale(metric))
    drawn = rows[(rows["status"] == "done") & rows["value"].notna()]
    away = drawn.loc[drawn["ratio"] != 1, "arm"].unique()
    asked = summary[summary["arm"].isin(rows["arm"])]
    shown = asked[asked["arm"].isin(away)]
    with matplotlib.rc_context(STYLE):
        if shown.empty:
            return None
        figure = (_together if len(shown) <= FEW else _apart)(drawn, shown, metric)
    return say_absent(figure, asked["arm"][~asked["arm"].isin(away)], "of a fixed length")


def _together(rows: pd.DataFrame, shown: pd.DataFrame, metric: str) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.1), layout="constrained")
    axes = figure.subplots()
    for name, label, colour, marker in zip(shown["arm"], labels(shown), colours(shown), MARKERS, strict=False):
        _draw(axes, rows[rows["arm"] == name], colour, marker, label)
    axes.set(xlabel="Length over the length trained on", ylabel=title(f"test.{metric}"))
    legend_below(figure, _spread(rows))
    return figure


def _apart(rows: pd.DataFrame, shown: pd.DataFrame, metric: str) -> Figure:
    def draw(axes: Axes, arm: str, colour: Any) -> None:
        _draw(axes, rows[rows["arm"] == arm], colour, ".")

    others = shown[~shown["is_reference"]]
    y = title(f"test.{metric}")
    x, over = "Length over the length trained on", over_reference(others, rows)
    return panel_an_arm(others, draw, x, y, titles=others["arm"], over=over, note=_spread(rows))


def _spread(rows: pd.DataFrame) -> str:
    several = rows.groupby(["arm", "setting"], observed=True)["seed"].nunique().max() > 1
    return "bar: standard deviation over seeds" if several else ""


def _draw(axes: Axes, rows: pd.DataFrame, colour: Any, marker: str, label: str | None = None) -> None:
    seeds = rows.groupby("ratio")["value"].agg(["mean", "std"])
    style = {"color": colour, "marker": marker, "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.errorbar(seeds.index, seeds["mean"], seeds["std"], elinewidth=0.7, label=label, **style)
    axes.axvline(1, color=GREY, linestyle="--", linewidth=0.6, zorder=0)
    axes.set_xscale("log", base=2)
    span = rows["ratio"].max() / rows["ratio"].min()
    axes.xaxis.set_major_locator(LogLocator(2, subs=(1, 1.5) if span < 8 else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.grid(True)
