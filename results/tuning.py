"""How were the settings found? Every arm's winner, all trials, and what they trade: the report's section on tuning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from results.figures.tuning import front, slices
from results.printing import file_stem
from results.record import TuningRecord, read_tuning, study_folder
from results.section import Gathered, Section
from results.summary import scale, title

EDGE = 0.05  # share of a range that counts as its end
CARRIED = (
    "The table's runs carry the winners: a difference between arms is one of arms with settings of their own, "
    "not of one field alone."
)
NOT_CARRIED = "The table's runs do not use it (yet)."
SHORT = {"train.seconds": "Training (s)", "cost.gmac": "GMAC", "cost.params": "Params"}


def section(gathered: Gathered) -> Section | None:
    """Nothing for a study that was never tuned. Raises CorruptFile if trials.json is none."""
    manifest = gathered.manifest
    used = TuningRecord(**manifest.tuning) if manifest.tuning else None
    found = read_tuning(study_folder(gathered.runs, manifest.study) / "trials.json")
    if found is not None and used is not None and _asked(found) != _asked(used):
        found = None  # of another tuning than the one whose winners the runs carry
    record = used or found
    if record is None:
        return None
    trials = frame(found) if found is not None and found.history else None
    told = Section("Tuning", _text(record, trials, used is not None), {"tuning": _winners(record)})
    if len(record.objectives) > 1:
        told.tables["tuning_front"] = _fronts(record)
    if trials is not None:
        drawn = {"tuning": slices(trials, record.objectives[0], _field_shown(record))}
        for other in record.objectives[1:]:
            stem = file_stem(f"tuning_front_{other.partition('.')[2]}")
            drawn[stem] = front(trials, record.objectives[0], other)
        told.figures = {name: figure for name, figure in drawn.items() if figure is not None}
    return told


def frame(record: TuningRecord) -> pd.DataFrame:
    """One row a trial: `arm` (categorical), `trial`, `status`, `configuration`, `wins`, `on_front`; `value.*`, metrics.

    Trials of one configuration share their `configuration`.
    """
    rows = []
    for trial in record.history:
        arm = record.arms[trial["arm"]]
        rows.append(
            {
                **{name: trial[name] for name in ("arm", "trial", "status")},
                "configuration": " ".join(trial["run_ids"]),
                "wins": trial["trial"] == arm.get("trial"),
                "on_front": trial["trial"] in [other["trial"] for other in arm.get("front", [])],
                **{f"value.{path}": value for path, value in trial["values"].items()},
                **trial["metrics"],
            }
        )
    return pd.DataFrame(rows).assign(arm=lambda f: pd.Categorical(f["arm"], list(record.arms), ordered=True))


def _asked(record: TuningRecord) -> Any:
    return record.space, record.seeds, record.objectives, {label: arm["base"] for label, arm in record.arms.items()}


def _text(record: TuningRecord, trials: pd.DataFrame | None, used: bool) -> list[str]:
    fields = "; ".join(f"{path}: {_domain(domain)}" for path, domain in record.space.items())
    seeds = f"seed{'s' * (len(record.seeds) > 1)} {', '.join(map(str, record.seeds))}"
    judged = f"the winner is the best by {record.objectives[0]}, among equals the one of lower validation loss"
    first = (
        f"Every arm had {record.trials} trials of one space ({fields}). A trial is judged on validation at {seeds}, "
        f"which no run of the table has, and never sees test; {judged}."
    )
    said = [f"{first} {CARRIED if used else NOT_CARRIED}"]
    fewer: dict[str, list[str]] = {}
    for label, arm in record.arms.items():
        if arm["left_out"]:
            fewer.setdefault(", ".join(arm["left_out"]), []).append(label)
    said += [f"Without effect, and so not searched: {paths} in {', '.join(arms)}." for paths, arms in fewer.items()]
    if record.trials > 1 and (alone := sum(arm["planned"] == 1 for arm in record.arms.values())):
        said.append(f"{alone} arm{'s'[: alone > 1]} had nothing to search and one trial.")
    said += _unfinished(record)
    if edges := [text for label, arm in record.arms.items() for text in _at_an_edge(record, label, arm)]:
        said.append(f"Won at an end of its range, beyond which may lie better: {', '.join(edges)}.")
    if trials is not None and (trials["status"] == "pruned").any():
        most = trials.groupby("arm", observed=True)["train.steps"].transform("max")
        ended = trials["status"].isin(["done", "pruned"])
        saved = 1 - trials.loc[ended, "train.steps"].sum() / most[ended].sum()
        said.append(f"Pruning ({record.pruner}) saved {saved:.0%} of the training steps.")
    return said


def _unfinished(record: TuningRecord) -> list[str]:
    odd = {}
    for label, arm in record.arms.items():
        over = sum(count for status, count in arm["counts"].items() if status not in ("running", "lost"))
        if over < arm["planned"]:
            odd[label] = f"{over} of {arm['planned']}"
    return [f"Not over: {', '.join(f'{label} ({text} trials)' for label, text in odd.items())}."] if odd else []


def _at_an_edge(record: TuningRecord, label: str, arm: Mapping[str, Any]) -> list[str]:
    found = []
    for path, value in arm.get("values", {}).items():
        domain = record.space[path]
        if isinstance(domain, list):
            low, high, at = (math.log(v) if domain[2] == "log" else v for v in (*domain[:2], value))
            if not EDGE < (at - low) / (high - low) < 1 - EDGE:
                found.append(f"{label} ({path} {value:g})")
    return found


def _winners(record: TuningRecord) -> pd.DataFrame:
    rows = []
    for label, arm in record.arms.items():
        counts = Counter(arm["counts"])
        rows.append(
            {
                "Arm": label,
                **{path: _value(arm, path) for path in record.space},
                **{_heading(o): _metric(arm, o) for o in record.objectives},
                "Trial": str(arm.get("trial", "")),
                "Done": counts["done"],
                "Pruned": counts["pruned"],
                "Failed": counts["failed"] + counts["diverged"],
                "Distinct": arm["distinct"],
            }
        )
    return pd.DataFrame(rows)


def _fronts(record: TuningRecord) -> pd.DataFrame:
    rows = [
        {"Arm": label, "Trial": str(point["trial"])}
        | {path: _value(point, path) for path in record.space}
        | {_heading(o): _metric(point, o) for o in record.objectives}
        for label, arm in record.arms.items()
        for point in arm.get("front", [])
    ]
    return pd.DataFrame(rows, columns=["Arm", "Trial", *record.space, *map(_heading, record.objectives)])


def _field_shown(record: TuningRecord) -> str:
    """The field that figures stand over: the first that is a range, else the first."""
    return next((path for path, domain in record.space.items() if isinstance(domain, list)), next(iter(record.space)))


def _value(found: Mapping[str, Any], path: str) -> str:
    value = found.get("values", {}).get(path, "–")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metric(found: Mapping[str, Any], objective: str) -> float:
    return found.get("metrics", {}).get(objective, math.nan) * scale(objective)


def _heading(objective: str) -> str:
    return SHORT.get(objective) or title(objective)


def _domain(domain: Any) -> str:
    if isinstance(domain, dict):
        return ", ".join(map(str, domain["choices"]))
    return f"{domain[0]:g} to {domain[1]:g}, {domain[2]}"
