"""What does a study look like: its arms, what they cost, how they learned?

A study with many arms is shown in more panels, or closer, never cut in silence.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

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
    over_reference,
    panel_an_arm,
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
            "label": labels(summary),
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
            axes.set(xlabel=f"{unit} per example", ylabel=title(metric))
        if not near.all():
            panels[1].set_ylabel(f"{title(metric)}, closer")
        if few:
            legend_below(figure, _spread(summary, "bar"))
        else:
            legend_beside(figure, _spread(summary, "bar"))
    return say_absent(figure, summary["arm"][~known], "without a result or a cost")


def training_curves(evaluations: pd.DataFrame, summary: pd.DataFrame, metric: str) -> Figure:
    """Validation over steps, mean and sd of the seeds: one panel for a few arms, else one an arm over its reference."""
    column = f"valid_{metric.partition('.')[2]}"
    if column not in evaluations:
        column = "valid_loss"
    shown = summary["arm"].isin(evaluations["arm"])
    with matplotlib.rc_context(STYLE):
        if not shown.any():
            figure = nothing()
        elif shown.sum() <= FEW:
            figure = _curves_together(evaluations, summary[shown], column)
        else:
            figure = _curves_apart(evaluations, summary[shown & ~summary["is_reference"]], column)
    return say_absent(figure, summary["arm"][~shown], "without a curve")


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
    # A reference is seen even among arms that cost and reach the same.
    marker, size, above = ("*", 8, 3) if point["is_reference"] else (marker, 5, 2)
    x, y, colour = point["x"], point["y"], point["colour"]
    axes.errorbar(x, y, point["spread"], color=colour, elinewidth=0.8, zorder=above)
    style = {"color": colour, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.plot(x, y, marker, **style, label=point["label"], zorder=above)


def _curves_together(evaluations: pd.DataFrame, shown: pd.DataFrame, column: str) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.1), layout="constrained")
    axes = figure.subplots()
    for name, label, colour in zip(shown["arm"], labels(shown), colours(shown), strict=True):
        _draw_curve(axes, evaluations[evaluations["arm"] == name], column, colour, label)
    axes.set(xlabel="Step", ylabel=title(column.replace("_", ".", 1)))
    legend_below(figure, _spread(shown, "shade"))
    return figure


def _curves_apart(evaluations: pd.DataFrame, shown: pd.DataFrame, column: str) -> Figure:
    def draw(axes: Axes, arm: str, colour: Any) -> None:
        _draw_curve(axes, evaluations[evaluations["arm"] == arm], column, colour)

    wide = 4 if len(shown) <= 16 else 5
    y = title(column.replace("_", ".", 1))
    over, note = over_reference(shown, evaluations), _spread(shown, "shade")
    return panel_an_arm(shown, draw, "Step", y, titles=shown["arm"], wide=wide, size=(0.4, 1.1), over=over, note=note)


def _draw_curve(axes: Axes, evaluations: pd.DataFrame, column: str, colour: Any, label: str | None = None) -> None:
    # by hand, because seaborn's lineplot takes a tenth of a second, and there may be dozens
    over_seeds = (evaluations[column] * scale(column)).groupby(evaluations["step"])
    mean, spread = over_seeds.mean(), over_seeds.std().fillna(0)
    axes.plot(mean.index, mean, color=colour, label=label)
    axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.grid(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
