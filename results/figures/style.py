"""How does every figure look? Sizes, colours, fonts; labels and legends that all of them share.

Each figure is a function of data to a matplotlib Figure, sized for a paper's column or page. The reference is
black everywhere; the other arms have colours that colour-blind readers can tell apart, with markers beside.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLUMN, PAGE = 3.35, 6.9  # inches
GREY = "0.55"
FEW = 8  # curves that can be told apart in one panel
LONG = 28  # letters of a label that leave a column room for its figure
# seaborn's colour-blind palette without its pale and grey ones, and the wine of Paul Tol's "muted" scheme;
# 8 colours and 9 markers give 72 distinct pairs
COLOURS = [*(sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 4, 5, 9)), "#882255"]
MARKERS = "os^DvPX<>"
STYLE = {
    **sns.axes_style("ticks"),
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.0, "lines.markersize": 5,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 2, "grid.color": "0.9", "grid.linewidth": 0.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "text.parse_math": False,  # an arm may have a dollar sign in its name
}  # fmt: skip


def encode(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind ("png", "pdf", "svg"), the same bytes each time; text in a pdf stays text."""
    file = io.BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "ldn"}):
        if figure.get_layout_engine() is not None:  # found once for all kinds: it takes longer than drawing
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, format=kind, dpi=300, metadata=undated.get(kind, {}))
    return file.getvalue()


def labels(summary: pd.DataFrame) -> list[str]:
    rows = zip(summary["arm"], summary["is_reference"], strict=True)
    return [f"{name} (reference)" if is_reference else name for name, is_reference in rows]


def colours(summary: pd.DataFrame) -> list[Any]:
    """Black for a reference that is the only one, else an arm's own by its place in the study."""
    black = summary["is_reference"] & (summary["reference"].nunique() == 1)
    return ["black" if black[index] else COLOURS[index % len(COLOURS)] for index in summary.index]


def legend_below(figure: Figure) -> None:
    """In two columns, if its labels are short enough for that."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= LONG * 2 / 3 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def panel_an_arm(
    shown: pd.DataFrame,
    draw: Callable[[Axes, str, Any], None],
    x: str,
    y: str,
    *,
    titles: Iterable[str],
    letters: int = 20,
    wide: int = 4,
    size: tuple[float, float] = (0.5, 1.2),
    over: bool = True,
    shared: bool = True,
) -> Figure:
    """A panel for each arm of a summary's rows, by `draw(axes, arm, colour)`; with `over`, over its reference in grey.

    `wide` of them are side by side; `size` is the height of what is around the panels and of a row of them, in inches;
    `titles` are cut into lines of so many `letters`. With `shared`, all have the same axes.
    """
    high = math.ceil(len(shown) / wide)
    figure = Figure(figsize=(PAGE if wide > 2 else COLUMN, size[0] + size[1] * high), layout="constrained")
    panels = list(figure.subplots(high, wide, sharex=shared, sharey=shared, squeeze=False).flat)
    for arm, label, axes in zip(shown.to_dict("records"), titles, panels, strict=False):
        if over and not arm["is_reference"]:
            draw(axes, arm["reference"], GREY)
        draw(axes, arm["arm"], "black" if arm["is_reference"] else COLOURS[0])
        axes.set(title=fill(label, width=letters), xlabel="", ylabel="")
        axes.grid(True)
    for axes in panels[len(shown) :]:
        axes.remove()
    grey = f" (grey: {', '.join(shown['reference'].unique())})" if over and not shown["is_reference"].all() else ""
    figure.supxlabel(x + grey, fontsize=8)
    figure.supylabel(y, fontsize=8)
    return figure


def log_where_wide(axes: Axes, values: pd.Series, wide: float, near: float, ticks: tuple[int, ...]) -> bool:
    """A log x axis with plain numbers at it, where values range over more than `wide` times; whether it is one.

    Below a range of `near` times there are ticks at these multiples of each power of ten, else at the powers alone.
    """
    if not ((values > 0).all() and values.max() > wide * values.min()):
        return False
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if values.max() > near * values.min() else ticks))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    return True


def nothing() -> Figure:
    return Figure(figsize=(COLUMN, 0.2), layout="constrained")


def say_absent(figure: Figure, names: Iterable[str], why: str) -> Figure:
    """What a figure cannot show, it says, in a strip of its own on top: labels and legends never reach there."""
    if listed := ", ".join(names):
        text = fill(f"Not shown, {why}: {listed}", width=int(figure.get_figwidth() * 18))
        drawn, strip = figure.get_figheight(), 0.14 * len(text.splitlines())
        figure.set_figheight(drawn + strip)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, drawn / (drawn + strip)))
        figure.text(0.01, 0.99, text, fontsize=7, color=GREY, va="top", parse_math=False)
    return figure
