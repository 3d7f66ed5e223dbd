"""How does every figure look? Sizes, colours, fonts; labels and legends that all of them share.

Each figure is a function of data to a matplotlib Figure, sized for a paper's column or page. The reference is
black everywhere; the other arms have colours that colour-blind readers can tell apart, with markers beside.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

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
    "text.parse_math": False, "text.usetex": False,  # an arm may have a dollar sign in its name
}  # fmt: skip


UNNAMED = re.compile(r"_(child|container)\d+$|_nolegend_$|$")  # what matplotlib calls an artist without a name


def encode(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind ("png", "pdf", "svg"), the same bytes each time; text in a pdf stays text."""
    file = io.BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "ldn"}):
        _escape_missing_glyphs(figure)
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() != "linear"):
            for label in axis.get_ticklabels(which="both"):
                label.set_parse_math(True)  # powers, never names: the first ticks were made while dollars were text
        if figure.get_layout_engine() is not None:  # found once for all kinds: it takes longer than drawing
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, format=kind, dpi=300, metadata=undated.get(kind, {}))
    return file.getvalue()


def _escape_missing_glyphs(figure: Figure) -> None:
    """Have every text show an escape such as "\\u4e2d" for a character that its font lacks, instead of an empty box."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not isinstance(axis.get_major_locator(), FixedLocator):
            continue  # numbers
        ticks = axis.get_ticklabels()
        if (drawable := [_drawable(tick) for tick in ticks]) != [tick.get_text() for tick in ticks]:
            axis.set_ticklabels(drawable)
    for text in figure.findobj(Text):
        text.set_text(_drawable(text))


def _drawable(text: Text) -> str:
    said = text.get_text()
    if said.isascii():
        return said
    code_of = get_font(findfont(text.get_fontproperties())).get_char_index
    return "".join(c if c in "\n\u2007" or code_of(ord(c)) else c.encode("unicode_escape").decode() for c in said)


def labels(summary: pd.DataFrame) -> list[str]:
    rows = zip(summary["arm"], summary["is_reference"], strict=True)
    return [f"{name} (reference)" if is_reference else name for name, is_reference in rows]


def colours(summary: pd.DataFrame) -> list[Any]:
    """Black for a reference that is the only one, else an arm's own by its place in the study."""
    black = summary["is_reference"] & (summary["reference"].nunique() == 1)
    return ["black" if black[index] else COLOURS[index % len(COLOURS)] for index in summary.index]


def legend_below(figure: Figure, note: str = "") -> None:
    """What the lines are called, under a `note` on what else is drawn."""
    legends_below(figure, {note: _named(figure)})


def _named(figure: Figure) -> list[Any]:
    """The lines of all panels that have a name, once each.

    Not by matplotlib's `get_legend_handles_labels`, which leaves out what begins with an underscore.
    """
    found: dict[str, Any] = {}
    drawn: list[Any] = [artist for axes in figure.axes for artist in (*axes.lines, *axes.containers)]
    for artist in drawn:
        if not UNNAMED.match(str(artist.get_label())):
            found.setdefault(str(artist.get_label()), artist)
    return list(found.values())


def legends_below(figure: Figure, groups: Mapping[str, Sequence[Any]]) -> None:
    """One legend, or two side by side, of these handles under their titles; the figure grows by what they need.

    In as many columns as the longest label leaves room for; one that even a single column has no room for is wrapped.
    """
    places = ("center",) if len(groups) == 1 else ("left", "right")
    width, heights = figure.get_figwidth() / len(groups), []
    for (note, handles), place in zip(groups.items(), places, strict=True):
        names = [handle.get_label() for handle in handles]
        letters = {columns: int(17 * (width / columns - 0.47)) for columns in (1, 2, 3)}
        columns = max([n for n in letters if n <= len(names) and max(map(len, names)) <= letters[n]], default=1)
        texts, above = [fill(name, letters[columns]) for name in names], fill(note, int(18 * width))
        loc: Any = f"outside lower {place}"
        legend = figure.legend(handles, texts, loc=loc, ncols=columns, title=above or None)
        legend.get_title().set(fontsize=7, color=GREY)
        lines = max(sum(text.count("\n") + 1 for text in part) for part in np.array_split(texts, columns))
        heights.append(0.15 * lines + 0.14 * len(above.splitlines()))
    figure.set_figheight(figure.get_figheight() + max(heights))


def legend_beside(figure: Figure, note: str = "") -> None:
    """On the right, its labels wrapped, for more lines than a legend below is read for; the figure is high enough."""
    handles = _named(figure)
    texts = [fill(handle.get_label(), LONG) for handle in handles]
    legend = figure.legend(handles, texts, loc="outside right upper", title=fill(note, LONG) or None)
    legend.get_title().set(fontsize=7, color=GREY)
    lines = sum(text.count("\n") + 1 for text in [*texts, fill(note, LONG)])
    figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.15 * lines))


def over_reference(shown: pd.DataFrame, rows: pd.DataFrame) -> set[str]:
    """The arms of a summary's rows that have their reference to be drawn behind them: it has rows too."""
    return set(shown["arm"][~shown["is_reference"] & shown["reference"].isin(rows["arm"])])


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
    over: Collection[str] = (),
    shared: str = "xy",
    note: str = "",
) -> Figure:
    """A panel for each arm of a summary's rows, by `draw(axes, arm, colour)`; of those in `over` over the reference.

    `wide` of them are side by side; `size` is the height of what is around the panels and of a row of them, in inches;
    `titles` are cut into lines of so many `letters`. All have the axes in common that are `shared`. Below stands what
    is grey, and a `note` on what else is drawn.
    """
    high, width = math.ceil(len(shown) / wide), PAGE if wide > 2 else COLUMN
    grey = f"grey: {', '.join(shown['reference'][shown['arm'].isin(over)].unique())}" if over else ""
    below = fill("; ".join(filter(None, (grey, note))), int(15 * width))
    size = (size[0] + 0.14 * len(below.splitlines()), size[1])
    figure = Figure(figsize=(width, size[0] + size[1] * high), layout="constrained")
    panels = list(figure.subplots(high, wide, sharex="x" in shared, sharey="y" in shared, squeeze=False).flat)
    for arm, label, axes in zip(shown.to_dict("records"), titles, panels, strict=False):
        if arm["arm"] in over:
            draw(axes, arm["reference"], GREY)
        draw(axes, arm["arm"], "black" if arm["is_reference"] else COLOURS[0])
        axes.set(title=fill(label, width=letters), xlabel="", ylabel="")
        axes.grid(True)
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel(f"{x}\n{below}" if below else x, fontsize=8)
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
