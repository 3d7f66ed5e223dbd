"""What does a study's metric say about each arm? One row an arm, and the sentences a reader needs with it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd

from results import statistics
from results.text import shortened

CONFIDENCE = 0.95
LEVEL = 0.05
MOST_ARMS = 30  # in a figure
MOST_CURVES = 8
CHOICE = "the references and those that did best on validation"
TRIVIAL = ("chance", "most frequent class")  # the floors that a run which has learned nothing is at
REASON_WIDTH = 72  # a reason cut here is whole in runs.csv
UNFINISHED = ("missing", "running", "stopped")  # their reason says it all
UNITS = {"GMAC": 1.0, "MMAC": 1e3, "kMAC": 1e6}


def summarise(frame: pd.DataFrame, metric: str, direction: Literal["max", "min"]) -> pd.DataFrame:
    """One row an arm, in the study's order, of a gathered frame.

    `mean`, `sd` (ddof 1) and `n` are over the runs that are done and have the metric, out of `planned`;
    `difference` to the arm's reference is the mean over the `pairs` of equal seeds, `low` and `high` its t interval;
    `p` is that of the sign-flip test over the pairs, `p_min` the smallest it could be, `p_holm` p after Holm over the
    arms with one reference; `best` marks the best mean of these arms, as far as all their seeds are done, `tied` the
    best and those not significantly worse (see `_tied`); `collapsed` counts runs at a floor; `missing` says why n is
    less than planned.
    """
    arms = frame["arm"].cat.categories
    reference = frame.groupby("arm", observed=False)["reference"].first().to_numpy()
    value = metric_of(frame, metric)
    values = frame.assign(value=value).pivot(index="arm", columns="seed", values="value").reindex(arms)
    differences = values - values.loc[reference].to_numpy()
    differences[arms == reference] = math.nan
    pairs = differences.count(axis=1)
    interval = statistics.t_interval(differences.to_numpy(), CONFIDENCE)
    p = statistics.sign_flip(differences.to_numpy())
    mean = values.mean(axis=1)
    planned = frame["arm"].value_counts().reindex(arms)
    whole = values.count(axis=1) == planned  # means over other seeds are no match
    best = mean == mean.where(whole).groupby(reference).transform(direction)
    return pd.DataFrame(
        {
            "mean": mean,
            "sd": values.std(axis=1, ddof=1),
            "n": values.count(axis=1),
            "planned": planned,
            "difference": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "pairs": pairs,
            "p": p,
            "p_min": statistics.smallest_p(pairs),
            "p_holm": holm_within(reference, p),
            "reference": reference,
            "is_reference": arms == reference,
            "best": best,
            "tied": _tied(values, reference, best) & whole.to_numpy(),
            "collapsed": collapsed(frame).groupby(frame["arm"], observed=False).sum(),
            "params": _first(frame, "cost.params"),
            "gmac": _first(frame, "cost.gmac"),
            "uncounted": _uncounted(frame),
            "examples_per_second": _first(frame, "cost.examples_per_second"),
            "peak_bytes": _first(frame, "cost.peak_bytes"),
            "missing": _missing(frame[value.isna()], metric),
        },
        index=pd.CategoricalIndex(arms, arms, ordered=True, name="arm"),
    ).reset_index()


def holm_within(groups: Iterable[Any], p: np.ndarray) -> np.ndarray:
    """Holm's correction over each group's own column of comparisons."""
    return pd.Series(p).groupby(list(groups)).transform(lambda column: statistics.holm(column)).to_numpy()


def _tied(values: pd.DataFrame, reference: np.ndarray, best: pd.Series) -> np.ndarray:
    """The best arms, and those whose paired difference to the best is not significant (sign-flip, Holm, LEVEL).

    Of an arm with so few pairs that its p cannot come to LEVEL, whatever was measured, this says nothing: not tied.
    """
    first = {group: arm for arm, group, is_best in zip(values.index, reference, best, strict=True) if is_best}
    to_best = values - values.reindex([first.get(group) for group in reference]).to_numpy()
    to_best[best.to_numpy()] = math.nan
    pairs = to_best.count(axis=1)
    compared = (pairs > 0).groupby(reference).transform("sum")
    can_show = compared.to_numpy() * statistics.smallest_p(pairs) <= LEVEL
    return best.to_numpy() | (can_show & (holm_within(reference, statistics.sign_flip(to_best.to_numpy())) > LEVEL))


def collapsed(frame: pd.DataFrame) -> pd.Series:
    """Which done runs are no better on test than chance or the most frequent class (binomial test at LEVEL)."""
    needed = ["test.accuracy", "data.test_examples", *(f"data.floors.{name}" for name in TRIVIAL)]
    if not set(needed) <= set(frame):
        return pd.Series(False, frame.index)
    floor = frame[needed[2:]].max(axis=1)
    at_floor = statistics.at_floor(frame["test.accuracy"], floor, frame["data.test_examples"], LEVEL)
    return pd.Series(at_floor, frame.index) & (frame["status"] == "done")


def most_telling(
    frame: pd.DataFrame, summary: pd.DataFrame, direction: Literal["max", "min"], metric: str, most: int = MOST_ARMS
) -> pd.DataFrame:
    """The rows of at most `most` arms for figures, in the study's order: references, then those best on validation.

    Test chooses nothing, not even what is drawn.
    """
    if len(summary) <= most:
        return summary
    name = on_validation(metric)
    value = metric_of(frame, name) if name in frame else pd.Series(math.nan, frame.index)
    mean = value.groupby(frame["arm"], observed=False).mean().reindex(summary["arm"]).to_numpy()
    rank = pd.DataFrame({"other": ~summary["is_reference"], "mean": mean if direction == "min" else -mean})
    kept = rank.sort_values(["other", "mean"], kind="stable").index[:most]
    return summary.loc[sorted(kept)].reset_index(drop=True)


def metric_of(frame: pd.DataFrame, metric: str) -> pd.Series:
    """The metric where a run is done, NaN elsewhere: a diverged run has metrics too, but no result."""
    known = [name for name in frame.columns if name.startswith(("train.", "valid.", "test."))]
    if metric in known:
        return frame[metric].where(frame["status"] == "done")
    if any(name.startswith("test.") for name in known):  # else nothing was tested: no run is done, or none trained
        raise ValueError(f"no run has the metric {metric!r}; metrics: {', '.join(known)}")
    return pd.Series(math.nan, frame.index)


def on_validation(metric: str) -> str:
    """The same metric of the validation split: "test.accuracy" -> "valid.accuracy"."""
    return f"valid.{metric.partition('.')[2]}"


def title(metric: str) -> str:
    """`valid.accuracy` is read as "Validation accuracy (%)"."""
    split, _, name = metric.partition(".")
    words = f"{'validation' if split == 'valid' else split} {name}".replace("_", " ").replace(".", " ")
    return words.capitalize() + (" (%)" if scale(metric) == 100 else "")


def scale(metric: str) -> int:
    """Accuracies are stored as fractions and read in per cent."""
    return 100 if "accuracy" in metric else 1


def rounded(value: float, digits: int) -> str:
    """So many significant digits, and whole numbers from there on: 0.00123, 55.8, 20,860; never 2.086e+04."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:,.{digits}g}"


def cost_unit(gmac: pd.Series) -> str:
    """The largest unit of multiply-adds in which even the smallest cost is 0.1 or more."""
    smallest = gmac[gmac > 0].min()
    return next((unit for unit, per_giga in UNITS.items() if smallest * per_giga >= 0.1), "GMAC")


def _first(frame: pd.DataFrame, column: str) -> pd.Series | float:
    """A cost is the same for all seeds of an arm, and known of a run that diverged as well."""
    return frame.groupby("arm", observed=False)[column].first() if column in frame else math.nan


def _uncounted(frame: pd.DataFrame) -> pd.Series | str:
    """The operations without a count, for which an arm's multiply-adds are a lower bound: "aten::cdist"."""
    if "cost.uncounted" not in frame:
        return ""
    first = frame.groupby("arm", observed=False)["cost.uncounted"].first()
    return first.map(lambda text: ", ".join(json.loads(text)), na_action="ignore").fillna("")


def _missing(lacking: pd.DataFrame, metric: str) -> pd.Series:
    """For each arm, why it lacks results: "2 not run yet; 1 diverged: loss is nan at step 40"."""
    why: dict[str, Counter[str]] = {arm: Counter() for arm in lacking["arm"].cat.categories}
    for arm, status, reason in lacking[["arm", "status", "reason"]].itertuples(index=False):
        short = shortened(reason, REASON_WIDTH)
        if status == "done":
            phrase = f"done without {metric}"
        elif status == "corrupt":
            phrase = "corrupt record"  # a sentence with its path, in the notes
        elif status in UNFINISHED:
            phrase = reason
        else:
            phrase = f"{status}: {short}" if short else status
        why[arm][phrase] += 1
    return pd.Series({arm: "; ".join(f"{n} {phrase}" for phrase, n in counts.items()) for arm, counts in why.items()})
