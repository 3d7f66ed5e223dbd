"""What does a study's metric say about each arm? One row an arm, and the sentences a reader needs with it."""

from __future__ import annotations

import math
from collections import Counter
from textwrap import shorten
from typing import Literal

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
REASON_WIDTH = 72  # a reason cut here is whole in runs.csv
UNFINISHED = ("missing", "running", "stopped")  # their reason says it all
PROVENANCE = {
    "env.commit": "commit",
    "env.device": "device",
    "env.threads": "number of threads",
    "env.torch": "version of torch",
}
UNITS = {"GMAC": 1.0, "MMAC": 1e3, "kMAC": 1e6}


def summarise(frame: pd.DataFrame, metric: str, direction: Literal["max", "min"]) -> pd.DataFrame:
    """One row an arm, in the study's order, of a gathered frame.

    `mean`, `sd` (ddof 1) and `n` are over the runs that are done and have the metric, out of `planned`;
    `difference` to the arm's reference is the mean over the `pairs` of equal seeds, `low` and `high` its t interval;
    `best` marks the best mean of the arms with one reference, `missing` says why n is less than planned.
    """
    arms = frame["arm"].cat.categories
    reference = frame.groupby("arm", observed=False)["reference"].first().to_numpy()
    value = measured(frame, metric)
    values = frame.assign(value=value).pivot(index="arm", columns="seed", values="value").reindex(arms)
    differences = values - values.loc[reference].to_numpy()
    differences[arms == reference] = math.nan
    pairs = differences.count(axis=1)
    error = differences.std(axis=1, ddof=1) / pairs**0.5
    half = error * stats.t.ppf((1 + CONFIDENCE) / 2, pairs - 1)
    mean = values.mean(axis=1)
    return pd.DataFrame(
        {
            "mean": mean,
            "sd": values.std(axis=1, ddof=1),
            "n": values.count(axis=1),
            "planned": frame["arm"].value_counts(),
            "difference": differences.mean(axis=1),
            "low": differences.mean(axis=1) - half,
            "high": differences.mean(axis=1) + half,
            "pairs": pairs,
            "reference": reference,
            "is_reference": arms == reference,
            "best": mean == mean.groupby(reference).transform(direction),
            "params": _first(frame, "cost.params"),
            "gmac": _first(frame, "cost.gmac"),
            "tokens_per_second": _first(frame, "cost.tokens_per_second"),
            "peak_bytes": _first(frame, "cost.peak_bytes"),
            "missing": _missing(frame[value.isna()], metric),
        },
        index=pd.CategoricalIndex(arms, arms, ordered=True, name="arm"),
    ).reset_index()


def reasons(summary: pd.DataFrame) -> list[str]:
    """Why runs are missing: a sentence for each arm that lacks some."""
    return [f"{arm}: {why}." for arm, why in zip(summary["arm"], summary["missing"], strict=True) if why]


def notes(frame: pd.DataFrame) -> list[str]:
    """What a reader of the table must know: its signs, its seeds, and what was not the same for all its runs."""
    done = frame[frame["status"] == "done"]
    planned = frame.groupby("arm", observed=True).size()
    seeds = f"{planned.min()}" if planned.nunique() == 1 else f"{planned.min()} to {planned.max()}"
    said = [
        f"{len(done)} of {len(frame)} runs are done; seeds planned per arm: {seeds}. n: runs done of runs planned.",
        "±: standard deviation over seeds (n − 1 in its denominator). Bold: the best mean, significant or not.",
        f"Δ: mean difference to the reference over the seeds both have, in brackets its {CONFIDENCE:.0%} t interval.",
        "The intervals are not corrected for the number of arms.",
        "kMAC, MMAC, GMAC: 1e3, 1e6, 1e9 multiply-adds of one example's forward pass; elementwise work apart.",
    ]
    broken = frame[frame["status"] == "corrupt"].to_dict("records")
    said += [f"{row['arm']}, seed {row['seed']}: {row['reason']}." for row in broken]
    said += [_differing(done[name], what) for name, what in PROVENANCE.items() if name in done and _differs(done[name])]
    if "env.dirty" in done and (dirty := int(done["env.dirty"].eq(True).sum())):
        said.append(f"{dirty} of these runs ran code that is in no commit.")
    checked = [name for name in done.columns if name.startswith("data.files.") and name.endswith(".official")]
    if others := [name[len("data.files.") : -len(".official")] for name in checked if done[name].eq(False).any()]:
        said.append(f"Not the official bytes, by their md5: {', '.join(others)}.")
    task = [name for name in done.columns if name.startswith("task.")]
    if task and "data.fingerprint" in done:
        data = done.groupby(task, dropna=False)["data.fingerprint"]  # two tasks may well differ in their data
        said += [_differing(column, "fingerprint of the data") for _, column in data if _differs(column)]
    return said


def measured(frame: pd.DataFrame, metric: str) -> pd.Series:
    """The metric where a run is done, NaN elsewhere: a diverged run has metrics too, but no result."""
    known = [name for name in frame.columns if name.startswith(("train.", "valid.", "test."))]
    if metric in known:
        return frame[metric].where(frame["status"] == "done")
    if any(name.startswith("test.") for name in known):  # else nothing was tested: no run is done, or none trained
        raise ValueError(f"no run has the metric {metric!r}; metrics: {', '.join(known)}")
    return pd.Series(math.nan, frame.index)


def title(metric: str) -> str:
    """`valid.accuracy` is read as "Validation accuracy (%)"."""
    split, _, name = metric.partition(".")
    words = f"{'validation' if split == 'valid' else split} {name}".replace("_", " ").replace(".", " ")
    return words.capitalize() + (" (%)" if scale(metric) == 100 else "")


def scale(metric: str) -> int:
    """Accuracies are stored as fractions and read in per cent."""
    return 100 if "accuracy" in metric else 1


def cost_unit(gmac: pd.Series) -> str:
    """The largest unit of multiply-adds in which even the smallest cost is 0.1 or more."""
    smallest = gmac[gmac > 0].min()
    return next((unit for unit, per_giga in UNITS.items() if smallest * per_giga >= 0.1), "GMAC")


def _first(frame: pd.DataFrame, column: str) -> pd.Series | float:
    """A cost is the same for all seeds of an arm, and known of a run that diverged as well."""
    return frame.groupby("arm", observed=False)[column].first() if column in frame else math.nan


def _missing(lacking: pd.DataFrame, metric: str) -> pd.Series:
    """For each arm, why it lacks results: "2 not run yet; 1 diverged: loss is nan at step 40"."""
    why: dict[str, Counter[str]] = {arm: Counter() for arm in lacking["arm"].cat.categories}
    for arm, status, reason in lacking[["arm", "status", "reason"]].itertuples(index=False):
        short = shorten(reason, REASON_WIDTH)
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


def _differs(column: pd.Series) -> bool:
    return column.nunique(dropna=False) > 1


def _differing(column: pd.Series, what: str) -> str:
    """As in "The runs differ in the commit: a1b2c3d (3 runs), d4e5f6a (48 runs)."."""
    counts = column.astype(object).fillna("unknown").value_counts(sort=False)
    parts = (f"{str(value)[:60]} ({count} run{'s' * (count > 1)})" for value, count in counts.items())
    return f"The runs differ in the {what}: {', '.join(parts)}."
