"""What must a reader know with the table? Sentences: what its signs mean, what is missing, what was not the same."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from results import statistics
from results.summary import CONFIDENCE, LEVEL, UNITS, cost_unit, title

PLACE = {"env.device": "device", "env.torch": "torch", "env.commit": "commit"}
PROVENANCE = {
    "env.commit": "commit",
    "env.device": "device",
    "env.threads": "number of threads",
    "env.torch": "version of torch",
    "env.python": "version of Python",
    "env.compile": "use of torch.compile",
}


def reasons(summary: pd.DataFrame) -> list[str]:
    """Why runs are missing, and which are no better than a floor: a sentence for each such arm."""
    rows = summary.to_dict("records")
    lacking = [f"{row['arm']}: {row['missing']}." for row in rows if row["missing"]]
    return lacking + [f"{row['arm']}: {at_floor(row)}; its mean includes them." for row in rows if row["collapsed"]]


def at_floor(row: dict[Hashable, Any]) -> str:
    """As in "1 of 3 seeds no better than the most frequent class"; "" where none is."""
    return f"{row['collapsed']} of {row['n']} seeds no better than the most frequent class" if row["collapsed"] else ""


def legend(summary: pd.DataFrame, by_panel: bool = False) -> list[str]:
    """What the signs of the table mean, as far as it has them; `by_panel`: of the one with panels side by side."""
    unit = cost_unit(summary["gmac"])
    said = []
    if not by_panel:
        said.append("n: runs done of runs planned.")
    if summary["sd"].notna().any():
        said.append("±: standard deviation over seeds (n − 1 in its denominator).")
    if not by_panel and (summary["pairs"] > 0).any():
        interval = f", in brackets its {CONFIDENCE:.0%} t interval, not corrected for the number of arms"
        interval = interval if summary["low"].notna().any() else ""
        said.append(f"Δ: mean difference to the reference over the seeds both have{interval}.")
    said.append(
        f"{unit}: {1e9 / UNITS[unit]:,.0f} multiply-adds of one example's forward pass; elementwise work apart."
    )
    if summary["uncounted"].any():
        bounds = summary[summary["uncounted"] != ""]
        named = "; ".join(f"{arm} ({names})" for arm, names in zip(bounds["arm"], bounds["uncounted"], strict=True))
        said.append(f"≥: a lower bound, for these operations have no count: {named}.")
    columns = {"ex/s": ("examples_per_second", "examples a second"), "MiB": ("peak_bytes", "memory")}
    if by_panel:
        del columns["MiB"]
    if known := {head: what for head, (name, what) in columns.items() if summary[name].notna().any()}:
        said.append(
            f"{', '.join(known)}: {' and '.join(known.values())} of a forward and backward pass, by `bench`; the "
            "quartiles of its times say how much of a difference may be noise."
        )
    if summary["collapsed"].any():
        said.append("†: some seeds are no better than the most frequent class or chance (one-sided binomial, 5 %).")
    return said


def bold_means(summary: pd.DataFrame) -> list[str]:
    """What is bold, and what the seeds can show at all."""
    if not summary["best"].any():
        return ["Nothing is bold: no arm has all its seeds yet."]
    means = (
        "the best mean" if summary["n"].eq(summary["planned"]).all() else "the best mean of arms with all their seeds"
    )
    compared = summary[summary["pairs"] > 0]
    if compared.empty:
        return [f"Bold: {means}."]
    fewest, most = compared["pairs"].min(), compared["pairs"].max()
    pair = f"{most} pair{'s' if most > 1 else ''}"
    pairs = f"{most}" if fewest == most else f"{fewest} to {most}"
    comparisons = int(compared.groupby("reference")["pairs"].size().max())
    if can_show(summary):
        test = "sign-flip test, exact" if most <= statistics.EXACT_PAIRS else "sign-flip test, Monte Carlo"
        return [
            f"p: two-sided {test}, over {pairs} pairs, Holm-corrected over the arms with one reference; "
            f"the smallest attainable before correction is {number(compared['p_min'].min())}.",
            f"Bold: {means}, and all that the same test does not find worse at {LEVEL:.0%} (of many equal arms one is "
            "called worse more often than that, for the best of them is chosen by the same runs).",
        ]
    smallest = number(compared["p_min"].min())
    return [
        f"Bold: {means}, significant or not: {pair} can attain no p below {smallest} by a sign-flip test; "
        f"for {comparisons} comparison{'s' * (comparisons > 1)} after Holm it takes "
        f"{statistics.pairs_needed(comparisons, LEVEL)} seeds to reach {LEVEL:.0%}."
    ]


def caption(question: str, metric: str, frame: pd.DataFrame, summary: pd.DataFrame, differences: bool = True) -> str:
    """What a table's caption states: what is shown, n, the tests and their correction, device, versions and commit.

    `differences`: whether the table has a column of them.
    """
    done = frame[frame["status"] == "done"]
    planned = sorted(set(summary["planned"]))
    seeds = f"{planned[0]}" if len(planned) == 1 else f"{planned[0]} to {planned[-1]}"
    short = "" if summary["n"].equals(summary["planned"]) else " (n: those done)"
    spread = "mean ± standard deviation over " if summary["sd"].notna().any() else ""
    differences = differences and bool((summary["pairs"] > 0).any())
    said = [
        f"{question} {title(metric)}, {spread}{seeds} seed{'s' * (planned[-1] > 1)}{short}.",
        *([f"Δ: paired difference to the reference with its {CONFIDENCE:.0%} t interval."] if differences else []),
        *bold_means(summary),
    ]
    where = [
        f"{what} {_listed(done[name])}" for name, what in PLACE.items() if name in done and done[name].notna().any()
    ]
    return " ".join([*said, *([f"Measured on: {', '.join(where)}."] if where else [])])


def _listed(column: pd.Series) -> str:
    values = column.dropna().astype(str).unique()
    return " and ".join(values) if len(values) <= 2 else f"{len(values)} different (see the notes)"


def can_show(summary: pd.DataFrame) -> bool:
    """Whether any comparison has the pairs to reach LEVEL after Holm."""
    comparisons = (summary["pairs"] > 0).groupby(summary["reference"]).transform("sum")
    return bool((comparisons * summary["p_min"] <= LEVEL).any())


def number(p: float) -> str:
    """A p as it is printed: two digits, never 0."""
    return "" if math.isnan(p) else f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}" if p >= 1e-16 else "< 1e-16"


def notes(frame: pd.DataFrame) -> list[str]:
    """What a reader of the table must know of its runs: how many, and what was not the same for all of them."""
    done = frame[frame["status"] == "done"]
    planned = frame.groupby("arm", observed=True).size()
    seeds = f"{planned.min()}" if planned.nunique() == 1 else f"{planned.min()} to {planned.max()}"
    said = [f"{len(done)} of {len(frame)} runs are done; seeds planned per arm: {seeds}."]
    broken = frame[frame["status"] == "corrupt"].to_dict("records")
    said += [f"{row['arm']}, seed {row['seed']}: {row['reason']}." for row in broken]
    for name, what in PROVENANCE.items():
        if name in done and _differs(done[name]):
            said.append(_differing(done[name], what) + _unlike_pairs(done, name))
    if "env.dirty" in done and (dirty := int(done["env.dirty"].eq(True).sum())):
        said.append(f"{dirty} of these runs ran code that is in no commit.")
    checked = [name for name in done.columns if name.startswith("data.files.") and name.endswith(".official")]
    if others := [name[len("data.files.") : -len(".official")] for name in checked if done[name].eq(False).any()]:
        said.append(f"Not the official bytes, by their md5: {', '.join(others)}.")
    if "spec.task" in done and "data.fingerprint" in done:
        data = done.groupby("spec.task")["data.fingerprint"]  # two tasks may well differ in their data
        said += [_differing(column, "fingerprint of the data") for _, column in data if _differs(column)]
    return said


def _unlike_pairs(done: pd.DataFrame, name: str) -> str:
    """How many of the differences to a reference mix two devices (commits, ...) within a pair."""
    known = done.assign(value=done[name].astype(object).fillna("unknown"), arm=done["arm"].astype(str))
    both = known.merge(known, left_on=["reference", "seed"], right_on=["arm", "seed"], suffixes=("", "_other"))
    both = both[both["arm"] != both["reference"]]
    unlike = int((both["value"] != both["value_other"]).sum())
    return f" So do {unlike} of {len(both)} pairs compared." if unlike else " No pair compared does."


def _differs(column: pd.Series) -> bool:
    return column.nunique(dropna=False) > 1


def _differing(column: pd.Series, what: str) -> str:
    """As in "The runs differ in the commit: a1b2c3d (3 runs), d4e5f6a (48 runs)."."""
    counts = column.astype(object).fillna("unknown").value_counts(sort=False)
    parts = (f"{str(value)[:60]} ({count} run{'s' * (count > 1)})" for value, count in counts.items())
    return f"The runs differ in the {what}: {', '.join(parts)}."
