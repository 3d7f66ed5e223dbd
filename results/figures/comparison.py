"""What does a study look like: its arms, and what they cost?

A study with many arms is shown in more panels, or closer, never cut in silence.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.figures.style import (
    COLOURS,
    COLUMN,
    FEW,
    GREY,
    LONG,
    MARKERS,
    PAGE,
    STYLE,
    colours,
    labels,
    legend_below,
    legend_beside,
    log_where_wide,
    nothing,
    say_absent,
)
from results.summary import UNITS, cost_unit, metric_of, scale, title


def arms(frame: pd.DataFrame, summary: pd.DataFrame, metric: str) -> Figure:
    """Every arm's seeds (dots), mean (tick) and sd (bar), in the study's order; its reference's mean as a line.

    Where a few arms lie so far off that the others cannot be told apart, a second panel looks closer at these, and
    points to where the far ones lie.
    """
    names, means = labels(summary), summary["mean"] * scale(metric)
    values = metric_of(frame, metric) * scale(metric)
    near = _crowd(means)
    width = COLUMN if near.all() and max(map(len, names)) <= LONG else PAGE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.7 + 0.17 * len(names)), layout="constrained")
        panels = figure.subplots(1, 1 if near.all() else 2, sharey=True, squeeze=False)[0]
        for axes, drawn in zip(panels, (summary, summary[near]), strict=False):
            for black, arms in drawn.groupby("is_reference"):
                _draw_arms(axes, arms, values, frame["arm"], metric, "black" if black else COLOURS[0])
            for height in drawn.index[drawn["is_reference"]]:
                compared = summary.index[summary["reference"] == summary["arm"][height]]
                axes.vlines(
                    means[height], compared.min() - 0.5, compared.max() + 0.5, GREY, "--", linewidth=0.6, zorder=0
                )
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
            axes.set_xlabel(title(metric))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        left = panels[0].get_yaxis_transform()  # x in parts of the axes, y in data
        for height in summary.index[means.isna()]:
            panels[0].text(0.02, height, "no result", color=GREY, fontsize=7, va="center", transform=left)
        if means.isna().all():
            panels[0].set_xticks([])
        if not near.all():
            panels[1].set_xlabel(f"{title(metric)}, closer")
            for height, mean in means[~near & means.notna()].items():
                side, sign = (1, ">") if mean > means[near].max() else (0, "<")
                at = panels[1].get_yaxis_transform()
                panels[1].plot(side, height, sign, color=GREY, markersize=4, clip_on=False, transform=at)
        far = "" if near.all() else "arrow: farther off; "
        figure.supxlabel(_spread(summary, f"{far}dot: a seed; tick: mean; bar"), fontsize=7, color=GREY)
    return figure


def accuracy_against_cost(summary: pd.DataFrame, metric: str) -> Figure:
    """Every arm's mean and sd over its multiply-adds per example; a second panel as in `arms`."""
    known = summary["mean"].notna() & (summary["gmac"] > 0)
    if not known.any():
        return say_absent(nothing(), summary["arm"], "without a result or a cost")
    unit = cost_unit(summary["gmac"])
    points = pd.DataFrame(
        {
            "x": summary["gmac"] * UNITS[unit],
            "y": summary["mean"] * scale(metric),
            "spread": summary["sd"] * scale(metric),
            "label": [
                f"{label} (≥)" if names else label
                for label, names in zip(labels(summary), summary["uncounted"], strict=True)
            ],
            "is_reference": summary["is_reference"],
            "colour": colours(summary),
        }
    )[known]
    near = _crowd(points["y"])
    few = len(points) <= FEW and near.all()
    with matplotlib.rc_context(STYLE):
        size = (COLUMN, 2.2) if few else (PAGE, max(2.6, 0.3 + 0.15 * len(points)))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, 1 if near.all() else 2, squeeze=False)[0]
        for axes, shown in zip(panels, (points, points[near]), strict=False):
            for index, point in zip(shown.index, shown.to_dict("records"), strict=True):
                _draw_point(axes, point, MARKERS[index % len(MARKERS)])
            log_where_wide(axes, shown["x"], 5, 30, (1, 2, 3, 5))
            axes.grid()
            bound = "; ≥: a lower bound" if points["label"].str.endswith("(≥)").any() else ""
            axes.set(xlabel=f"{unit} per example{bound}", ylabel=title(metric))
        if not near.all():
            panels[1].set_ylabel(f"{title(metric)}, closer")
        if few:
            legend_below(figure, _spread(summary, "bar"))
        else:
            legend_beside(figure, _spread(summary, "bar"))
    return say_absent(figure, summary["arm"][~known], "without a result or a cost")


def _spread(summary: pd.DataFrame, drawn: str) -> str:
    return f"{drawn}: standard deviation over seeds" if summary["sd"].notna().any() else ""


def _crowd(means: pd.Series) -> pd.Series:
    """Which means lie together (within Tukey's fences); all of them, unless the others triple the range."""
    low, high = means.quantile([0.25, 0.75])
    near = means.between(low - 1.5 * (high - low), high + 1.5 * (high - low))
    crowded = means.max() - means.min() > 3 * (means[near].max() - means[near].min()) > 0
    return near if crowded else pd.Series(True, means.index)


def _draw_arms(axes: Axes, arms: pd.DataFrame, values: pd.Series, arm_of: pd.Series, metric: str, colour: Any) -> None:
    """All arms of one colour at once: dozens apart take a second."""
    heights = arm_of.astype(object).map(dict(zip(arms["arm"], arms.index, strict=True))).astype(float)
    axes.scatter(values, heights, s=10, color=colour, alpha=0.4, linewidths=0)
    mean, spread = arms["mean"] * scale(metric), arms["sd"] * scale(metric)
    axes.errorbar(mean, arms.index, xerr=spread, fmt="|", color=colour, markersize=8, markeredgewidth=1.2)


def _draw_point(axes: Axes, point: dict[Hashable, Any], marker: str) -> None:
    x, y, colour = point["x"], point["y"], point["colour"]
    if point["is_reference"]:  # hollow and large, its bar thin: what lies at the same place is seen behind it
        axes.errorbar(x, y, point["spread"], color=colour, elinewidth=0.5, zorder=3)
        style: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 0.8}
        axes.plot(x, y, "*", color=colour, **style, label=point["label"], zorder=3)
    else:
        axes.errorbar(x, y, point["spread"], color=colour, elinewidth=1.2, zorder=2)
        style = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot(x, y, marker, color=colour, **style, label=point["label"], zorder=2)
