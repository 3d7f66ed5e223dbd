"""How does the time of a pass grow with the length? Log-log, a line a model, a panel a pass."""

from __future__ import annotations

import math

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullLocator

from results.figures.style import COLOURS, GREY, MARKERS, PAGE, STYLE, legends_below

BAND = 0.2  # part of the panel, on top, for what has no time
UNKNOWN = {"out of memory": ("x", "out of memory"), "skipped": ("+", "not run: too long")}


def length_scaling(frame: pd.DataFrame, exponents: pd.DataFrame) -> Figure:
    """Median time of a pass over N with its quartiles; compiled dashed; what has no time is marked on the top edge.

    `frame` and `exponents` are those of `results.cost_frame`. Each panel's legend gives its models' exponents in N,
    eager where it was measured so.
    """
    works = [work for work in ("forward", "forward+backward") if (frame["work"] == work).any()]
    names = list(dict.fromkeys(frame["label"]))
    colour = {name: COLOURS[(i - 1) % len(COLOURS)] if i else "black" for i, name in enumerate(names)}
    marker = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}
    legends: dict[str, list[Line2D]] = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
        panels = figure.subplots(1, len(works), sharey=True, squeeze=False)[0]
        for axes, work in zip(panels, works, strict=True):
            rows = frame[frame["work"] == work]
            for place, name in enumerate(names):
                for compiled in (False, True):
                    series = rows[(rows["label"] == name) & (rows["compiled"] == compiled)].sort_values("tokens")
                    _draw(axes, series[series["status"] == "done"], colour[name], marker[name], compiled)
                    _mark(axes, series, colour[name], place / len(names))
            axes.set(xscale="log", yscale="log", xlabel="Tokens N", title=work.capitalize())
            lengths = sorted(frame["tokens"].unique())
            axes.set_xticks(lengths, labels=[short(n) for n in lengths])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
            axes.grid(True)
            unknown = [sign for status, sign in UNKNOWN.items() if status in set(rows["status"])]
            legends[f"{work.capitalize()}: time ~ N^a [95 % interval]"] = [
                *(_sign(f"{name}{_power(exponents, name, work)}", colour[name], marker[name], "-") for name in names),
                *([_sign("compiled", GREY, "", "--")] if rows["compiled"].any() else []),
                *(_sign(text, GREY, sign, "") for sign, text in unknown),
            ]
        panels[0].set_ylabel("Time of a pass (bar: quartiles)")
        if frame["status"].isin(UNKNOWN).any():  # room for the signs above all times
            low, high = panels[0].get_ylim()
            panels[0].set_ylim(low, high * (high / low) ** (BAND / (1 - BAND)))
        legends_below(figure, legends)
    return figure


def _sign(label: str, colour: object, marker: str, line: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label)  # type: ignore[arg-type]


def _draw(axes: Axes, series: pd.DataFrame, colour: object, marker: str, compiled: bool) -> None:
    line = {"color": colour, "linestyle": "--" if compiled else "-", "marker": marker, "markersize": 3.5}
    axes.plot(series["tokens"], series["median"], **line)  # type: ignore[arg-type]
    axes.vlines(series["tokens"], series["low"], series["high"], color=colour, linewidth=0.8)


def _mark(axes: Axes, series: pd.DataFrame, colour: object, shift: float) -> None:
    """Signs along the top edge, a little apart for each model, so that none hides another."""
    top = axes.get_xaxis_transform()  # x in data, y in parts of the axes
    for status, (sign, _) in UNKNOWN.items():
        for n in series.loc[series["status"] == status, "tokens"]:
            axes.plot(n, 1 - 0.9 * BAND * shift, sign, color=colour, markersize=4, clip_on=False, transform=top)


def _power(exponents: pd.DataFrame, name: str, work: str) -> str:
    fits = exponents[(exponents["label"] == name) & (exponents["work"] == work)].sort_values("compiled")
    fits = fits[fits["exponent"].notna()]
    if fits.empty:
        return ""
    fit = fits.iloc[0]
    interval = "" if math.isnan(fit["low"]) else f" [{fit['low']:.2f}, {fit['high']:.2f}]"
    return f": N^{fit['exponent']:.2f}{interval}"


def short(n: int) -> str:
    return f"{n // 1024}K" if n % 1024 == 0 else f"{n:,}"
