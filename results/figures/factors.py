"""What do crossed factors do? The metric of every pair of levels, and effects beside importances."""

from __future__ import annotations

import itertools
import math
import warnings

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from results.figures.style import COLOURS, COLUMN, GREY, PAGE, STYLE, say_absent
from results.summary import scale, title

MOST_PAIRS = 6  # of factors in one figure
MOST_EFFECTS = 40


def factor_grid(levels: dict[str, list[str]], y: np.ndarray, metric: str) -> Figure:
    """Heat maps of y (seeds, levels of A, levels of B, ...): the mean of each pair of levels, and of how many runs.

    Of more than two factors every pair has a panel, averaged over the others; grey where there is no result. Levels
    that are numbers ascend, whichever is the reference's.
    """
    levels, y = _ascending(levels, y)
    pairs = list(itertools.combinations(levels, 2))
    shown, left_out = pairs[:MOST_PAIRS], pairs[MOST_PAIRS:]
    maps = [_pair_means(list(levels), y * scale(metric), *pair) for pair in shown]
    form = ".1f" if scale(metric) == 100 else ".3g"
    wide = min(len(shown), 3 if len(shown) != 4 else 2)
    high = math.ceil(len(shown) / wide)
    # seven-point numbers over "n = 10" need this much room
    tallest, widest = (max(mean.shape[axis] for mean, _ in maps) for axis in (0, 1))
    size = (COLUMN if wide == 1 and widest <= 5 else PAGE, high * (0.8 + 0.36 * tallest))
    lowest, highest = (pick([pick(mean[np.isfinite(mean)], initial=edge) for mean, _ in maps]) for pick, edge in EDGES)
    scaled = (lowest, highest) if math.isfinite(lowest) else (0.0, 1.0)  # nothing measured yet: every cell is grey
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(high, wide, squeeze=False)
        for axes, (first, second), (mean, n) in zip(panels.flat, shown, maps, strict=False):
            texts = [[_cell(m, k, form) for m, k in zip(*row, strict=True)] for row in zip(mean, n, strict=True)]
            sns.heatmap(
                mean, ax=axes, annot=np.array(texts), fmt="", annot_kws={"size": 7}, cmap="cividis", cbar=False,
                vmin=scaled[0], vmax=scaled[1], linewidths=0.5, xticklabels=levels[second], yticklabels=levels[first],
            )  # fmt: skip
            axes.set(xlabel=_short(second), ylabel=_short(first), facecolor="0.9")
            axes.tick_params(length=0, rotation=0)
        for axes in panels.flat[len(shown) :]:
            axes.set_visible(False)
        if math.isfinite(lowest):
            colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(lowest, highest), "cividis")
            bar = figure.colorbar(colours, ax=panels, label=title(metric), aspect=25, shrink=0.9)
            bar.outline.set_visible(False)
    return say_absent(figure, (f"{a} × {b}" for a, b in left_out), f"more than {MOST_PAIRS} pairs")


def _ascending(levels: dict[str, list[str]], y: np.ndarray) -> tuple[dict[str, list[str]], np.ndarray]:
    ordered = {}
    for axis, (name, labels) in enumerate(levels.items(), start=1):
        try:
            order = np.argsort([float(label) for label in labels], kind="stable")
        except ValueError:  # words stay in the study's order
            order = np.arange(len(labels))
        ordered[name], y = [labels[i] for i in order], np.take(y, order, axis)
    return ordered, y


def importance(effects: pd.DataFrame, shares: pd.DataFrame, metric: str) -> Figure:
    """Main effects with their intervals (columns as of `results.effects.effects`) beside each factor's importances."""
    main = effects[effects["factors"] == 1].reset_index(drop=True)
    shown = main.head(MOST_EFFECTS)
    rows = max(len(shown), 2 * len(shares))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.7 + 0.17 * rows), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        numbers = shown[["estimate", "low", "high"]] * scale(metric)
        reach = np.nan_to_num(np.array([numbers["estimate"] - numbers["low"], numbers["high"] - numbers["estimate"]]))
        left.errorbar(
            numbers["estimate"], shown.index, xerr=reach, fmt="o", color="black", markersize=3, elinewidth=0.8
        )
        left.axvline(0, color=GREY, linestyle="--", linewidth=0.6, zorder=0)
        left.set_yticks(shown.index, [_short(label) for label in shown["effect"]])
        left.set_ylim(len(shown) - 0.5, -0.5)
        left.set_xlabel(f"Effect on {title(metric)[0].lower()}{title(metric)[1:]}, 95% interval")
        for offset, (name, colour) in zip((-0.2, 0.2), zip(shares.columns, COLOURS, strict=False), strict=True):
            right.barh(np.arange(len(shares)) + offset, shares[name], height=0.36, color=colour, label=str(name))
        right.set_yticks(range(len(shares)), [_short(name) for name in shares.index])
        right.set_ylim(len(shares) - 0.5, -0.5)
        right.set_xlabel("Importance on validation (share)")
        right.legend(loc="best")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
    return say_absent(figure, [f"{len(main) - len(shown)} more effects"] * (len(main) > len(shown)), "too many")


EDGES = ((np.min, math.inf), (np.max, -math.inf))


def _pair_means(names: list[str], y: np.ndarray, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Means (levels of the first, levels of the second) over seeds and all other factors, and how many results."""
    kept = (names.index(first) + 1, names.index(second) + 1)
    rest = tuple(axis for axis in range(y.ndim) if axis not in kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a pair of levels without any result
        return np.nanmean(y, axis=rest), np.isfinite(y).sum(axis=rest)


def _cell(mean: float, n: int, form: str) -> str:
    return f"{round(mean, 10):{form}}\nn = {n}" if n else "–"  # as in the table


def _short(name: str) -> str:
    """ "model.steps 8 − 2" is read as "steps 8 − 2"."""
    first, space, rest = name.partition(" ")
    return first.rpartition(".")[2] + space + rest
