"""What did tuning see? Every trial over the field searched, and what accuracy costs."""

from __future__ import annotations

import math
from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from results.figures.style import (
    COLOURS,
    COLUMN,
    FEW,
    GREY,
    MARKERS,
    PAGE,
    STYLE,
    legend_below,
    legend_beside,
    legends_below,
    log_where_wide,
    say_absent,
)
from results.summary import UNITS, cost_unit, scale, title

WIDE = 10  # a range of more than this ratio is drawn on a log axis
DOT: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4}
KINDS: dict[str, dict[str, Any]] = {
    "done": DOT | {"color": COLOURS[0], "markeredgewidth": 0, "alpha": 0.7},
    "pruned: its best until then": DOT | {"color": GREY, "markerfacecolor": "none", "markeredgewidth": 0.7},
    "the winner": DOT | {"marker": "*", "color": "black", "markersize": 10, "markerfacecolor": "none",
                         "markeredgewidth": 0.7, "clip_on": False},
}  # fmt: skip


def slices(trials: pd.DataFrame, objective: str, path: str) -> Figure | None:
    """A panel an arm: the objective over the field `path`, the winner in a star, pruned trials hollow.

    `trials` is `results.tuning.frame`'s. All panels have the same axes; arms without the field are listed. What a
    trial is drawn at is the best of its evaluations: of a pruned one those it came to. None without such trials.
    """
    column = f"value.{path}"
    shown = trials.dropna(subset=[c for c in (column, objective) if c in trials])
    shown = shown if {column, objective} <= set(trials) else trials.head(0)
    names = [arm for arm in trials["arm"].cat.categories if (shown["arm"] == arm).any()]
    absent = [arm for arm in trials["arm"].cat.categories if arm not in names]
    if not names:
        return None
    across = min(len(names), 3 if len(names) <= 9 else 4)
    high = math.ceil(len(names) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE if across > 2 else COLUMN, 0.3 + 1.25 * high), layout="constrained")
        panels = list(figure.subplots(high, across, sharex=True, sharey=True, squeeze=False).flat)
        for name, axes in zip(names, panels, strict=False):
            mine = shown[shown["arm"] == name]
            for kind, those in _kinds(mine).items():
                axes.plot(mine[column][those], mine[objective][those] * scale(objective), **KINDS[kind])
            axes.set_title(fill(name, width=24))
            axes.grid(True)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for axes in panels[len(names) - across : len(names)]:
            axes.tick_params(axis="x", labelbottom=True)
            axes.set_xlabel(path)
        if pd.api.types.is_numeric_dtype(shown[column]):
            dense = across < 4 and shown[column].max() < 30 * shown[column].min()
            _choose_axis(panels[0], shown[column], near=100, ticks=(1, 2, 5) if dense else (1, 3))
        panels[0].yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        figure.supylabel(title(objective), fontsize=8)
        panels[0].margins(0.08, 0.12)
        seen = [kind for kind, those in _kinds(shown).items() if those.any()]
        legends_below(figure, {"": [Line2D([], [], label=kind, **KINDS[kind]) for kind in seen]})
    return say_absent(figure, absent, f"without trials over {path}")


def front(trials: pd.DataFrame, objective: str, cost: str) -> Figure | None:
    """Every configuration once: the objective over what it costs. A line joins those no other of the arm beats.

    None before any trial is done.
    """
    done = trials[trials["status"] == "done"].drop_duplicates(["arm", "configuration"])
    names = [arm for arm in trials["arm"].cat.categories if (done["arm"] == arm).any()]
    absent = [arm for arm in trials["arm"].cat.categories if arm not in names]
    if not names:
        return None
    label, factor = _cost_axis(cost, done[cost])
    few = len(names) <= FEW
    with matplotlib.rc_context(STYLE):
        size = (COLUMN, 2.2) if few else (PAGE, max(2.6, 0.3 + 0.15 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for index, name in enumerate(names):
            mine = done[done["arm"] == name].sort_values(cost)
            x, y = mine[cost] * factor, mine[objective] * scale(objective)
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            axes.plot(x, y, linestyle="none", markersize=4, alpha=0.35, markeredgewidth=0, **style)
            best = mine["on_front"]
            # a step: what lies between two points of the front is not known to be reached
            axes.plot(x[best], y[best], drawstyle="steps-post", markersize=4.5, markeredgecolor="white",
                      markeredgewidth=0.4, label=name, **style)  # fmt: skip
        _choose_axis(axes, done[cost] * factor, near=300)
        axes.grid(True)
        axes.set(xlabel=label, ylabel=title(objective))
        if few:
            legend_below(figure)
        else:
            legend_beside(figure)
    return say_absent(figure, absent, "without a trial that is done")


def _kinds(trials: pd.DataFrame) -> dict[str, pd.Series]:
    pruned = trials["status"] == "pruned"
    return dict(zip(KINDS, (~pruned, pruned, trials["wins"]), strict=True))


def _cost_axis(cost: str, values: pd.Series) -> tuple[str, float]:
    """The axis' label, and what to multiply by."""
    if cost == "cost.gmac":
        unit = cost_unit(values)
        return f"{unit} per example", UNITS[unit]
    return ("Parameters", 1.0) if cost == "cost.params" else ("Training time of a run (s)", 1.0)


def _choose_axis(axes: Axes, values: pd.Series, near: float = 30, ticks: tuple[int, ...] = (1, 3)) -> None:
    if not log_where_wide(axes, values, WIDE, near, ticks):
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
