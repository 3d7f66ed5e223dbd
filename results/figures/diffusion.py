"""How does what diffusion does look: energy and range over depth, stencils and rates by layer, receptive fields?

A few arms share a panel as lines; more get a panel each, over their reference in grey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.figures.style import (
    COLUMN,
    FEW,
    GREY,
    PAGE,
    STYLE,
    colours,
    labels,
    legend_below,
    nothing,
    panel_an_arm,
    say_absent,
)

ALIKE = "because they differ in no field of diffusion"
Draw = Callable[[Axes, pd.DataFrame, Any, str | None], None]


def by_depth(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """Energy and spread (0 to 1 and above) by depth, mean and sd over seeds."""
    with matplotlib.rc_context(STYLE):
        if len(shown) > FEW:
            figure = _apart(layers, shown, _line("energy"), "Depth (layers)", "Energy")
        else:
            figure = Figure(figsize=(PAGE, 2.5 + 0.07 * len(shown)), layout="constrained")
            panels = figure.subplots(1, 2)
            for axes, name in zip(panels, ("energy", "spread"), strict=True):
                for arm, label, colour in zip(shown["arm"], labels(shown), colours(shown), strict=True):
                    _line(name)(axes, layers[layers["arm"] == arm], colour, label)
                axes.set(xlabel="Depth (layers)", ylabel=name.capitalize())
                axes.set_ylim(bottom=0)
            legend_below(figure)
    return say_absent(figure, left, ALIKE)


def ranges(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """All values (light) and 98 % of them (dark) by depth; a bar half a layer on: after its diffusion alone."""
    with matplotlib.rc_context(STYLE):
        figure = _apart(layers, shown, _band, "Depth (layers); bars: after diffusion alone", "Value", over=False)
        largest = layers[["min", "max"]].abs().max(axis=1)[layers["arm"].isin(shown["arm"])]
        for axes in figure.axes:
            if largest.max() > 10 * largest.median():
                axes.set_yscale("symlog", linthresh=max(1.0, float(largest.min())))
    return say_absent(figure, left, ALIKE)


def stencils(weights: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """Weights by offset, one line a layer (light to dark), with the quartiles over channels."""
    # one symmetric pair has the weight one half, whatever is trained
    varied = weights.groupby("arm", observed=True)[["mean", "q25", "q75"]].agg(np.ptp).sum(axis=1) > 0
    mine = shown[shown["arm"].isin(varied.index[varied])]
    fixed = [arm for arm in shown["arm"] if arm not in set(mine["arm"])]
    with matplotlib.rc_context(STYLE):
        if mine.empty:
            figure = nothing()
        else:
            figure = _apart(weights, mine, _stencil, "Offset, in dilations", "Weight", over=False, shared=False)
            figure.axes[0].legend(*_ends(figure.axes[0]), fontsize=6)
    return _say_both(figure, fixed, "with no stencil to learn", left)


def rates(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """The rate a by layer: median and quartiles over channels or tokens, means over seeds."""
    diffusing = layers[layers["rate"].notna()]
    mine = shown[shown["arm"].isin(diffusing["arm"])]
    with matplotlib.rc_context(STYLE):
        if len(mine) > FEW:
            figure = _apart(diffusing, mine, _rate, "Layer", "Rate a")
        else:
            figure = Figure(figsize=(COLUMN, 2.2 + 0.07 * len(mine)), layout="constrained")
            axes = figure.subplots()
            spread = zip(mine["arm"], labels(mine), colours(mine), range(len(mine)), strict=True)
            for arm, label, colour, place in spread:
                nudge = 0.06 * (place - len(mine) / 2)  # so that bars of equal height are seen
                rows = diffusing[diffusing["arm"] == arm]
                _rate(axes, rows.assign(depth=rows["depth"] + nudge), colour, label)
            axes.set(xlabel="Layer", ylabel="Rate a")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend_below(figure)
    without = [arm for arm in shown["arm"] if arm not in set(diffusing["arm"])]
    return _say_both(figure, without, "without diffusion", left)


def fields(found: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """The centre's gradient by offset, over its largest, on a log axis; dotted: the 1 % that bounds the support.

    Grey: the reference. Dashed: the untrained network.
    """
    largest = found.groupby(["arm", "seed", "state"], observed=True)["gradient"].transform("max")
    found = found.assign(share=found["gradient"] / largest)
    x = "Offset from the centre token" if found["line"].all() else "Distance from the centre token"
    with matplotlib.rc_context(STYLE):
        figure = _apart(found, shown, _field, x, "Gradient over its largest")
        for axes in figure.axes:
            axes.set_yscale("log")
            axes.set_ylim(max(1e-4, min(0.005, float(found["share"].min()))), 1.5)
            axes.axhline(0.01, color=GREY, linestyle=":", linewidth=0.7)
    return say_absent(figure, left, ALIKE)


def _say_both(figure: Figure, without: list[str], why: str, left: pd.Series) -> Figure:
    if without and len(left):
        without, left = [f"{', '.join(without)}; {ALIKE}: {', '.join(left)}"], left.head(0)
    return say_absent(figure, without, why) if without else say_absent(figure, left, ALIKE)


def _apart(
    rows: pd.DataFrame, shown: pd.DataFrame, draw: Draw, x: str, y: str, over: bool = True, shared: bool = True
) -> Figure:
    def of_arm(axes: Axes, arm: str, colour: Any) -> None:
        draw(axes, rows[rows["arm"] == arm], colour, None)

    wide = min(4, len(shown))
    return panel_an_arm(
        shown, of_arm, x, y, titles=labels(shown), letters=22, wide=wide, size=(0.5, 1.3), over=over, shared=shared
    )


def _line(name: str) -> Draw:
    def draw(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
        sns.lineplot(rows, x="depth", y=name, errorbar="sd", color=colour, label=label, legend=False, ax=axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(True)

    return draw


def _band(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
    depth = rows.groupby("depth")
    low, high = depth["min"].min(), depth["max"].max()  # of all seeds
    axes.fill_between(low.index, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.fill_between(low.index, depth["q01"].mean(), depth["q99"].mean(), color=colour, alpha=0.5, linewidth=0)
    if "diffused_min" in rows and rows["diffused_min"].notna().any():
        after = rows[rows["diffused_min"].notna()].groupby("depth")
        axes.vlines(
            np.array(list(after.groups)) - 0.5, after["diffused_min"].min(), after["diffused_max"].max(), "black"
        )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _stencil(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
    if rows.empty:
        return
    depths = sorted(rows["depth"].unique())
    rows = rows.assign(where=rows["offset"].map(lambda o: o[0] if len(o) == 1 else ", ".join(map(str, o))))
    if not (flat := rows["offset"].map(len).eq(1).all()):
        rows = rows.sort_values("where")
    for shade, depth in zip(np.linspace(0.25, 0.9, len(depths)), depths, strict=True):
        mean = rows[rows["depth"] == depth].groupby("where", sort=flat)[["mean", "q25", "q75"]].mean()
        tone = matplotlib.colormaps["viridis_r"](shade)
        axes.fill_between(mean.index, mean["q25"], mean["q75"], color=tone, alpha=0.15, linewidth=0)
        axes.plot(mean.index, mean["mean"], ".-", color=tone, label=f"layer {depth}", markersize=3)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    if flat:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _ends(axes: Axes) -> tuple[list[Any], list[str]]:
    """Of a legend's entries the first and the last."""
    handles, names = axes.get_legend_handles_labels()
    return ([handles[0], handles[-1]], [names[0], names[-1]]) if len(handles) > 2 else (handles, names)


def _rate(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
    seeds = rows.groupby("depth")[["rate", "rate_q25", "rate_q75"]].mean()
    if seeds.empty:
        return
    below, above = seeds["rate"] - seeds["rate_q25"], seeds["rate_q75"] - seeds["rate"]
    axes.errorbar(seeds.index, seeds["rate"], [below, above], fmt=".-", color=colour, label=label, elinewidth=0.7)
    axes.grid(True)


def _field(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
    for state, style in (("trained", "-"), ("untrained", "--")):
        mean = rows[rows["state"] == state].groupby("offset")["share"].mean()
        if colour != GREY or state == "trained":
            axes.plot(mean.index, mean.clip(lower=1e-9), style, color=colour, linewidth=1.0 if style == "-" else 0.7)
