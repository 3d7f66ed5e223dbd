"""How near is each operator to a copy of its input, over lengths? Log-log, a line a case, a column a variant."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from results.figures.cost import short
from results.figures.style import COLOURS, COLUMN, GREY, MARKERS, PAGE, STYLE


def copy_share(frame: pd.DataFrame) -> Figure:
    """Share of the copy's measured bandwidth over N with its quartiles; a row a pass. `frame`: `results.operators`."""
    works = [work for work in ("forward", "forward+backward") if (frame["work"] == work).any()]
    variants = [variant for variant in ("plain", "compiled", "fused") if (frame["variant"] == variant).any()]
    cases = list(dict.fromkeys(frame["case"]))
    colour = {case: COLOURS[i % len(COLOURS)] for i, case in enumerate(cases)}
    marker = {case: MARKERS[i % len(MARKERS)] for i, case in enumerate(cases)}
    lengths = sorted(frame["tokens"].unique())
    with matplotlib.rc_context(STYLE):
        width = PAGE if len(variants) > 1 else COLUMN
        columns = 3 if len(variants) > 1 else 2
        height = 0.4 + 1.9 * len(works) + 0.16 * -(-(len(cases) + 1) // columns)
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(works), len(variants), sharex=True, sharey=True, squeeze=False)
        for line, work in zip(panels, works, strict=True):
            for axes, variant in zip(line, variants, strict=True):
                rows = frame[(frame["work"] == work) & (frame["variant"] == variant)]
                for case in cases:
                    series = rows[rows["case"] == case].sort_values("tokens")
                    share, median = series["gb_share"], series["median"]
                    axes.plot(series["tokens"], share, color=colour[case], marker=marker[case], markersize=3.5)
                    low, high = share * median / series["high"], share * median / series["low"]
                    axes.vlines(series["tokens"], low, high, color=colour[case], linewidth=0.8)
                axes.axhline(1, color=GREY, linestyle="--", linewidth=0.8)
                axes.set(xscale="log", yscale="log", title=f"{variant.capitalize()}, {work}")
                axes.set_xticks(lengths, labels=[short(n) for n in lengths])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
                axes.grid(True)
            line[0].set_ylabel("Share of a copy's bandwidth")
        for axes in panels[-1]:
            axes.set_xlabel("Tokens N")
        handles = [Line2D([], [], color=colour[case], marker=marker[case], label=case) for case in cases]
        handles.append(Line2D([], [], color=GREY, linestyle="--", label="a copy"))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure
