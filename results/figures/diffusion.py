"""How does what diffusion does look: energy and range over depth, stencils and rates by layer, receptive fields?

A few arms share a panel as lines; more get a panel each, over their reference in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
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
    over_reference,
    panel_an_arm,
    say_absent,
)

ALIKE = "because they differ in no field of diffusion"
Draw = Callable[[Axes, pd.DataFrame, Any, str | None], None]


def by_depth(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """Energy and spread (0 to 1 and above) by depth, mean and sd over seeds; a dot where an arm's layers end."""
    several = (layers.groupby("arm", observed=True)["seed"].nunique() > 1).any()
    spread = "; shade: standard deviation over seeds" if several else ""
    note = f"dot: the last layer{spread}"
    with matplotlib.rc_context(STYLE):
        if len(shown) > FEW:
            over = over_reference(shown, layers)
            figure = _apart(layers, shown, _line("energy"), "Depth (layers)", "Energy", over=over, note=note)
        else:
            figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
            panels = figure.subplots(1, 2)
            for axes, name in zip(panels, ("energy", "spread"), strict=True):
                for arm, label, colour in zip(shown["arm"], labels(shown), colours(shown), strict=True):
                    _line(name)(axes, layers[layers["arm"] == arm], colour, label)
                axes.set(xlabel="Depth (layers)", ylabel=name.capitalize())
                axes.set_ylim(bottom=0)
            legend_below(figure, note)
    return say_absent(figure, left, ALIKE)


def ranges(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """All values (light) and 98 % of them (dark) by depth; a bar half a layer on: after its diffusion alone.

    An arm with fewer layers than others says so, and a dotted line stands at its end.
    """
    last = layers.groupby("arm", observed=True)["depth"].max()[shown["arm"]].tolist()
    counts = [f" ({depth}\xa0layer{'s' * (depth > 1)})" if depth < max(last) else "" for depth in last]
    note = "light: all values; dark: the middle 98 %"
    if "diffused_min" in layers and layers["diffused_min"].notna().any():
        note += "; bar: after diffusion alone"
    if any(counts):
        note += "; dotted: no more layers"
    with matplotlib.rc_context(STYLE):
        figure = _apart(layers, shown, _band, "Depth (layers)", "Value", added=counts, note=note)
        for axes, depth in zip(figure.axes, last, strict=True):
            if depth < max(last):
                axes.axvline(depth, color=GREY, linestyle=":", linewidth=0.7)
        largest = layers[["min", "max"]].abs().max(axis=1)[layers["arm"].isin(shown["arm"])]
        for axes in figure.axes:
            if largest.max() > 10 * largest.median():
                axes.set_yscale("symlog", linthresh=max(1.0, float(largest.min())))
    return say_absent(figure, left, ALIKE)


def stencils(weights: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure | None:
    """Weights by offset, one line a layer (light to dark), with the quartiles over channels; None without any."""
    # one symmetric pair has the weight one half, whatever is trained
    varied = weights.groupby("arm", observed=True)[["mean", "q25", "q75"]].agg(np.ptp).sum(axis=1) > 0
    mine = shown[shown["arm"].isin(varied.index[varied])]
    fixed = [arm for arm in shown["arm"] if arm not in set(mine["arm"])]
    with matplotlib.rc_context(STYLE):
        if mine.empty:
            return None
        note = "shade: quartiles over channels"
        figure = _apart(weights, mine, _stencil, "Offset, in dilations", "Weight", shared="", note=note)
        figure.axes[0].legend(*_ends(figure.axes[0]), fontsize=6)
    return _say_both(figure, fixed, "with no stencil to learn", left)


def rates(layers: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure | None:
    """The rate a by layer: median and quartiles over channels or tokens, means over seeds; None without any."""
    note = "dot: median; bar: quartiles over channels or tokens"
    diffusing = layers[layers["rate"].notna()]
    mine = shown[shown["arm"].isin(diffusing["arm"])]
    if mine.empty:
        return None
    with matplotlib.rc_context(STYLE):
        if len(mine) > FEW:
            over = over_reference(mine, diffusing)
            figure = _apart(diffusing, mine, _rate, "Layer", "Rate a", over=over, note=note)
        else:
            figure = Figure(figsize=(COLUMN, 2.0), layout="constrained")
            axes = figure.subplots()
            spread = zip(mine["arm"], labels(mine), colours(mine), range(len(mine)), strict=True)
            for arm, label, colour, place in spread:
                nudge = 0.06 * (place - len(mine) / 2)  # so that bars of equal height are seen
                rows = diffusing[diffusing["arm"] == arm]
                _rate(axes, rows.assign(depth=rows["depth"] + nudge), colour, label)
            axes.set(xlabel="Layer", ylabel="Rate a", xlim=(0.5, diffusing["depth"].max() + 0.5))
            legend_below(figure, note)
    without = [arm for arm in shown["arm"] if arm not in set(diffusing["arm"])]
    return _say_both(figure, without, "without diffusion", left)


def fields(found: pd.DataFrame, shown: pd.DataFrame, left: pd.Series) -> Figure:
    """The centre's gradient by offset, over its largest, on a log axis; dotted: the 1 % that bounds the support.

    Grey: the reference, of as many tokens. Dashed: the untrained network. Arms of unequal numbers of tokens say theirs.
    """
    largest = found.groupby(["arm", "seed", "state"], observed=True)["gradient"].transform("max")
    found = found.assign(share=found["gradient"] / largest)
    inputs = found.groupby("arm", observed=True)[["tokens", "line"]].first()
    inputs = inputs.loc[shown["arm"]].apply(tuple, axis=1)  # both decide what an offset is
    reference, alike = dict(zip(shown["arm"], shown["reference"], strict=True)), inputs.nunique() == 1
    over = {arm for arm in over_reference(shown, found) if inputs[arm] == inputs[reference[arm]]}
    sizes = [f" ({n:.3g}\xa0tokens)" if line else f" ({n:.3g}\xa0tokens,\xa0a\xa0grid)" for n, line in inputs]
    lines = {line for _, line in inputs}
    x = "Offset (in a grid: distance)" if len(lines) > 1 else "Offset" if lines == {True} else "Distance"
    note = "dotted: 1 % of the largest" + "; dashed: untrained" * ("untrained" in set(found["state"]))
    with matplotlib.rc_context(STYLE):
        figure = _apart(
            found, shown, _field, f"{x} from the centre token", "Gradient over its largest",
            added=[] if alike else sizes, over=over, shared="xy" if alike else "y",
            note=note,
        )  # fmt: skip
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
    rows: pd.DataFrame, shown: pd.DataFrame, draw: Draw, x: str, y: str, *, added: Iterable[str] = (), **how: Any
) -> Figure:
    """`added` to the arms' labels; `how` is what `panel_an_arm` takes."""

    def of_arm(axes: Axes, arm: str, colour: Any) -> None:
        draw(axes, rows[rows["arm"] == arm], colour, None)

    titles = map("".join, zip_longest(labels(shown), added, fillvalue=""))
    return panel_an_arm(shown, of_arm, x, y, titles=titles, letters=22, wide=min(4, len(shown)), size=(0.5, 1.3), **how)


def _line(name: str) -> Draw:
    def draw(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
        over_seeds = rows.groupby("depth")[name]
        mean, sd = over_seeds.mean(), over_seeds.std()
        axes.plot(mean.index, mean, color=colour, label=label)
        if sd.notna().any():
            axes.fill_between(mean.index, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        axes.plot(mean.index[-1:], mean.iloc[-1:], "o", color=colour, markersize=3)
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
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(True)


def _field(axes: Axes, rows: pd.DataFrame, colour: Any, label: str | None) -> None:
    for state, style in (("trained", "-"), ("untrained", "--")):
        mean = rows[rows["state"] == state].groupby("offset")["share"].mean()
        if colour != GREY or state == "trained":
            axes.plot(mean.index, mean.clip(lower=1e-9), style, color=colour, linewidth=1.0 if style == "-" else 0.7)
