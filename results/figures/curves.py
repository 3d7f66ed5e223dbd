"""Learning curves: validation while training, as means over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from results.figures.style import (
    COLUMN,
    FEW,
    PAGE,
    STYLE,
    colours,
    labels,
    legend_below,
    nothing,
    over_reference,
    panel_an_arm,
    say_absent,
)
from results.summary import scale, title

SHARE = "Share of the run's steps"


@dataclass(frozen=True)
class Curves:
    """Evaluations of all runs, one row each, over an `x` that the seeds of an arm have in common.

    `x` is the step, or where the seeds of an arm evaluated at different steps the share of the run's steps, onto which
    their curves are interpolated.
    """

    rows: pd.DataFrame
    interpolated: bool

    @property
    def banded(self) -> bool:
        """Whether any arm has the two seeds that a standard deviation takes."""
        return bool((self.rows.groupby("arm", observed=True)["seed"].nunique() > 1).any())

    @property
    def caption(self) -> str:
        spread = " and standard deviation (shade)" if self.banded else ""
        seeds = f"mean{spread} of the seeds" if self.banded else "one seed an arm"
        how = " Seeds took different numbers of steps: curves are interpolated linearly over the share of these."
        return f"Validation while training: {seeds}.{how * self.interpolated}"


def aligned(evaluations: pd.DataFrame) -> Curves:
    """Curves from the rows of `results.gather.curves`."""
    by_arm = evaluations.groupby("arm", observed=True)
    if all(_have_equal_steps(rows) for _, rows in by_arm):
        return Curves(evaluations.assign(x=evaluations["step"]), interpolated=False)
    last = evaluations.groupby("run_id")["step"].transform("max").clip(lower=1)
    shares = evaluations.assign(x=evaluations["step"] / last)
    arms = [
        rows if _have_equal_steps(rows) else _interpolated(rows)
        for _, rows in shares.groupby("arm", observed=True, sort=False)
    ]
    return Curves(pd.concat(arms, ignore_index=True), interpolated=True)


def training_curves(curves: Curves, summary: pd.DataFrame, metric: str) -> Figure:
    """Validation over steps, mean and sd of the seeds: an axis for a few arms of one reference, else one an arm."""
    column = f"valid_{metric.partition('.')[2]}"
    if column not in curves.rows:
        column = "valid_loss"
    shown = summary["arm"].isin(curves.rows["arm"])
    with matplotlib.rc_context(STYLE):
        if not shown.any():
            figure = nothing()
        elif shown.sum() <= FEW:
            figure = _together(curves, summary[shown], column)
        else:
            figure = _apart(curves, summary[shown & ~summary["is_reference"]], column)
    return say_absent(figure, summary["arm"][~shown], "without a curve")


def _have_equal_steps(rows: pd.DataFrame) -> bool:
    return rows.groupby("seed")["step"].agg(tuple).nunique() == 1


def _interpolated(rows: pd.DataFrame) -> pd.DataFrame:
    """The curves of one arm on as many evenly spaced shares as its longest curve has evaluations."""
    runs = [run.sort_values("x") for _, run in rows.groupby("seed")]
    x = np.linspace(max(run["x"].iloc[0] for run in runs), 1, max(map(len, runs)))
    values = [name for name in rows.select_dtypes("number") if name not in ("x", "seed")]
    parts = []
    for run in runs:
        common = pd.DataFrame({"x": x} | {name: np.interp(x, run["x"], run[name]) for name in values})
        parts.append(run.head(1).drop(columns=["x", *values]).merge(common, how="cross"))
    return pd.concat(parts)


def _together(curves: Curves, shown: pd.DataFrame, column: str) -> Figure:
    """A panel for each reference with the arms that are compared with it."""
    panels = list(shown.groupby("reference", sort=False))
    wide = min(len(panels), 2)
    high = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(COLUMN if wide == 1 else PAGE, 2.1 * high), layout="constrained")
    grid = list(figure.subplots(high, wide, squeeze=False).flat)
    drawn = {arm: style for arm, *style in zip(shown["arm"], colours(shown), labels(shown), strict=True)}
    for axes, (reference, arms) in zip(grid, panels, strict=False):
        for arm in arms["arm"]:
            _draw(axes, curves, arm, column, *drawn[arm])
        axes.set(xlabel=_x(curves), ylabel=title(column.replace("_", ".", 1)))
        if len(panels) > 1:
            axes.set_title(reference.rpartition(": ")[0] or reference)
    for axes in grid[len(panels) :]:
        axes.remove()
    legend_below(figure, "shade: standard deviation over seeds" if curves.banded else "")
    return figure


def _apart(curves: Curves, shown: pd.DataFrame, column: str) -> Figure:
    def draw(axes: Axes, arm: str, colour: Any) -> None:
        _draw(axes, curves, arm, column, colour)

    y, note = title(column.replace("_", ".", 1)), "shade: standard deviation over seeds" if curves.banded else ""
    over, wide = over_reference(shown, curves.rows), 4 if len(shown) <= 16 else 5
    size = (0.4, 1.1)
    return panel_an_arm(shown, draw, _x(curves), y, titles=shown["arm"], wide=wide, size=size, over=over, note=note)


def _x(curves: Curves) -> str:
    return SHARE if curves.interpolated else "Step"


def _draw(axes: Axes, curves: Curves, arm: str, column: str, colour: Any, label: str | None = None) -> None:
    # by hand, because seaborn's lineplot takes a tenth of a second, and there may be dozens
    rows = curves.rows[curves.rows["arm"] == arm]
    over_seeds = (rows[column] * scale(column)).groupby(rows["x"])
    mean, spread = over_seeds.mean(), over_seeds.std()
    axes.plot(mean.index, mean, color=colour, label=label)
    if spread.notna().any():
        axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.grid(True)
    axes.xaxis.set_major_formatter("{x:g}" if curves.interpolated else EngFormatter(sep=""))
