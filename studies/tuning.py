"""How are a study's settings found? By as many trials of one space for every arm, on validation, at seeds of their own.

What is declared (`Tuning`), which of it concerns an arm, who wins, and whether a file of winners still fits. The
search itself is `studies.search`; `python -m studies tune NAME` calls it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import le
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from ldn.config import AtLeast, Config
from results.entries import FrontEntry, Outcome, TrialEntry
from results.record import RunRecord, TuningRecord, write_tuning
from studies.spec import RunSpec, field_value, with_field, with_fields

if TYPE_CHECKING:
    from studies.study import Arm, Study

Pruner = Literal["none", "median", "hyperband"]
Objective = Literal["valid.accuracy", "valid.loss", "train.seconds", "cost.gmac", "cost.params"]
FIXED = ("task", "seed", "protocol")  # what a trial is judged on is no part of what is searched
SOLVED = ("model.width", "model.depth")  # where widths are matched


@dataclass(frozen=True, kw_only=True)
class Tuning(Config):
    """What `tune` searches before a study is run.

    `space` maps dotted fields to (low, high, "log" or "linear"), of whole numbers where both bounds are, or to a list
    of choices. Every arm gets `trials` trials, each at all of `seeds`, which the study's own seeds may not meet. A
    field that an arm does not have, or that has no effect there, is left out for that arm. The first of `objectives`
    is valid.accuracy or valid.loss and decides; others (train.seconds, cost.gmac, cost.params) make the search look
    for all trade-offs. `pruner` ends trials that lag behind the others, if there is one objective.

    Raises ValueError for an objective that looks at test, and for anything else that is not as said here.
    """

    space: Mapping[str, Any]  # a domain is a Sequence; `_refuse_domain` says of which form
    trials: Annotated[int, AtLeast(1)]
    seeds: Sequence[Annotated[int, AtLeast(0)]] = (1000,)
    objectives: Sequence[str] = ("valid.accuracy",)
    pruner: Pruner = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.space:
            raise ValueError(
                'Tuning.space is empty; it maps fields to what is tried: {"optim.lr": (1e-4, 1e-2, "log")}'
            )
        for path, domain in self.space.items():
            _refuse_domain(path, domain)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Tuning.seeds must be different numbers, at least one, not {list(self.seeds)}")
        for objective in self.objectives:
            guard(objective)
            if objective not in get_args(Objective):
                raise ValueError(f"there is no objective {objective!r}; known: {', '.join(get_args(Objective))}")
        if not self.objectives or not self.objectives[0].startswith("valid."):
            raise ValueError(
                f"the first of Tuning.objectives must be valid.accuracy or valid.loss, not {self.objectives}"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"Tuning.objectives must be different ones, not {self.objectives}")
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ValueError(f'pruning compares by one objective; with {len(self.objectives)} say pruner="none"')


def guard(metric: str) -> None:
    """Raise ValueError for a metric that looks at test: nothing may be chosen by it."""
    if metric.partition(".")[0] == "test":
        raise ValueError(f"{metric} cannot be an objective: settings are chosen on validation, test is only reported")


def maximised(metric: str) -> bool:
    """Whether the most of a metric or objective is best; else the least of it."""
    return metric.endswith("accuracy")


def is_range(domain: Sequence[Any]) -> bool:
    return isinstance(domain, tuple)


def searched(spec: RunSpec, space: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The part of a space that concerns this arm: fields that it has, and that have an effect there."""
    dropped = {f"model.{name}" for name in spec.model.without_effect(spec.task.input)}
    return {path: domain for path, domain in space.items() if path not in dropped and _has(spec, path)}


def base_of(spec: RunSpec, space: Mapping[str, Sequence[Any]]) -> str:
    """The identity of an arm whatever the fields searched are: its id with each at its first value."""
    return with_fields(spec, {path: domain[0] for path, domain in searched(spec, space).items()}).run_id


def plain_space(space: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {path: list(d) if is_range(d) else {"choices": list(d)} for path, d in space.items()}


def refuse_misfit(tuning: Tuning, study: Study, specs: Sequence[RunSpec]) -> None:
    """Raise ValueError if the tuning cannot be that of a study with these arms."""
    if met := sorted(set(tuning.seeds) & set(study.seeds)):
        raise ValueError(f"tuning and evaluation share the seeds {met}: give Tuning.seeds others than Study.seeds")
    for path, domain in tuning.space.items():
        if path.partition(".")[0] in FIXED:
            raise ValueError(f"{path} cannot be tuned: trials of different {path.partition('.')[0]} do not compare")
        if any(f"{path}.".startswith(f"{factor}.") for factor in study.factors):
            raise ValueError(f"{path} is varied by the study, so it cannot be tuned as well")
        if path in SOLVED and study.match != "none":
            raise ValueError(f"{path} cannot be tuned where widths are matched (match={study.match!r})")
        having = [spec for spec in specs if _has(spec, path)]
        if not having:
            field_value(specs[0], path)  # raises, listing the known fields
        for spec in having:
            for value in _samples(domain):
                _refuse_value(spec, path, value, tuning.space)


def measured(records: Sequence[RunRecord]) -> dict[str, float]:
    """What the runs of one trial have measured, means over its seeds, by the names that objectives have.

    Multiply-adds that are a lower bound are left out.
    """
    rows = []
    for record in records:
        row = {
            f"{split}.{name}": value
            for split in ("train", "valid")
            for name, value in record.metrics.get(split, {}).items()
        }
        row |= {f"cost.{name}": record.cost[name] for name in ("params", "gmac") if name in record.cost}
        if record.cost.get("uncounted"):
            del row["cost.gmac"]
        row |= {"train.steps": record.steps, "train.seconds": sum(a.get("seconds", 0.0) for a in record.attempts)}
        rows.append(row)
    return (
        {name: fmean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)} if rows else {}
    )


def outcome(history: Sequence[TrialEntry], objectives: Sequence[str]) -> Outcome:
    """Counts, winner and front of one arm's trials.

    The winner is the best by the first objective, among equals the one of lower validation loss, then the earlier.
    """
    done = [trial for trial in history if trial["status"] == "done"]
    found: Outcome = {
        "counts": dict(Counter(trial["status"] for trial in history)),
        "distinct": len({tuple(trial["run_ids"]) for trial in history}),
    }
    if not done:
        return found
    ranked = sorted(done, key=lambda trial: (*_costs(trial, objectives[:1]), trial["metrics"]["valid.loss"]))
    if len(objectives) > 1:
        found["front"] = [_shown(trial) for trial in _front(ranked, objectives)]
    return {**found, **_shown(ranked[0])}


def described(tuned: TuningRecord) -> str:
    """What the reader of a table must know of its settings."""
    fields = ", ".join(f"{path} ({_domain(domain)})" for path, domain in tuned.space.items())
    seeds = f"seed{'s' * (len(tuned.seeds) > 1)} {', '.join(map(str, tuned.seeds))}"
    return (
        f"Tuned: {tuned.trials} trials an arm over {fields}, by {' and '.join(tuned.objectives)}, "
        f"on validation at {seeds}."
    )


def freeze(record: TuningRecord, source: Path) -> Path:
    """Write the winners beside the study's file, for `run` to use. All trials must be over.

    Raises ValueError if an arm has no trial that came to its end.
    """
    if lacking := [label for label, arm in record.arms.items() if "values" not in arm]:
        raise ValueError(
            f"no trial of {', '.join(map(repr, lacking))} came to its end, so there are no winners to write; see why "
            f"in trials.json, and try again with --retry"
        )
    written = tuned_file(source)
    for staged in source.parent.glob(f".{written.name}.????????"):  # of a process that was killed
        staged.unlink(missing_ok=True)
    write_tuning(written, dataclasses.replace(record, history=[]))
    return written


def tuned_file(source: Path) -> Path:
    """Where the winners of a study file lie: beside it."""
    return source.with_suffix(".tuned.json")


def applied(arms: list[Arm], tuned: TuningRecord) -> dict[str, RunSpec]:
    """Every arm's spec with its winner's values, by its label."""
    return {arm.label: with_fields(arm.spec, tuned.arms[arm.label]["values"]) for arm in arms}


def misfit(tuned: TuningRecord, tuning: Tuning | None, arms: list[Arm]) -> str:
    """Why these winners are not those of the study as it now is; empty if they are."""
    if tuning is None:
        return "the study declares no tuning"
    if tuned.space != plain_space(tuning.space):
        return "the space is another"
    if tuned.objectives != list(tuning.objectives):
        return "the objectives are others"
    if tuned.seeds != list(tuning.seeds):
        return "the tuning's seeds are others"
    labels = [arm.label for arm in arms]
    if odd := [label for label in labels if label not in tuned.arms] or [a for a in tuned.arms if a not in labels]:
        return f"the arm {odd[0]!r} is in one of them only"
    changed = [arm.label for arm in arms if base_of(arm.spec, tuning.space) != tuned.arms[arm.label]["base"]]
    if changed:
        return f"the arm {changed[0]!r} has changed"
    return next((why for arm in arms if (why := _odd_value(arm, tuned.arms[arm.label].get("values"), tuning))), "")


def _odd_value(arm: Arm, values: Any, tuning: Tuning) -> str:
    """Why these cannot be the values that were found for an arm; empty if they can."""
    space = searched(arm.spec, tuning.space)
    if not isinstance(values, dict) or values.keys() != space.keys():
        return f"the arm {arm.label!r} has values of other fields than {', '.join(space) or 'none'}"
    odd = [path for path, domain in space.items() if not in_domain(values[path], domain)]
    return f"the arm {arm.label!r} has {odd[0]} {values[odd[0]]!r}, which is outside its space" if odd else ""


def in_domain(value: Any, domain: Sequence[Any]) -> bool:
    """Whether a value is one of the choices or within the range."""
    if not is_range(domain):
        return value in domain
    kinds = int if isinstance(domain[0], int) and isinstance(domain[1], int) else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and domain[0] <= value <= domain[1]


def _refuse_domain(path: str, domain: Sequence[Any]) -> None:
    if isinstance(domain, list):
        if not domain or not all(isinstance(c, bool | int | float | str | None) for c in domain):
            raise ValueError(f"Tuning.space[{path!r}] must list numbers, words, True, False or None, not {domain!r}")
        return
    form = f'Tuning.space[{path!r}] must be (low, high, "log" or "linear") or a list of choices, not {domain!r}'
    if not isinstance(domain, tuple) or len(domain) != 3 or domain[2] not in ("log", "linear"):
        raise ValueError(form)
    low, high, scale = domain
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
    if not numbers or not low < high:
        raise ValueError(f"{form}, with low < high")
    if scale == "log" and low <= 0:
        raise ValueError(f"Tuning.space[{path!r}] is on a log scale, so it must begin above 0, not at {low!r}")


def _samples(domain: Sequence[Any]) -> Sequence[Any]:
    """The ends of a range, or all choices."""
    return domain[:2] if is_range(domain) else domain


def _refuse_value(spec: RunSpec, path: str, value: Any, space: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError for a value that the arm cannot have, neither as it is nor with another field changed."""
    try:
        with_field(spec, path, value)
    except ValueError:
        for other, domain in searched(spec, space).items():
            for beside in _samples(domain) if other != path else ():
                with suppress(ValueError):
                    with_field(with_field(spec, other, beside), path, value)
                    return
        raise


def _has(spec: RunSpec, path: str) -> bool:
    try:
        field_value(spec, path)
    except ValueError:
        return False
    return True


def _costs(trial: TrialEntry, objectives: Sequence[str]) -> tuple[float, ...]:
    """What a trial has measured, signed so that less is better."""
    return tuple(-trial["metrics"][o] if maximised(o) else trial["metrics"][o] for o in objectives)


def _front(ranked: Sequence[TrialEntry], objectives: Sequence[str]) -> list[TrialEntry]:
    """The trials that no other equals in every objective and beats in one; of equal ones the first."""
    points: dict[tuple[float, ...], TrialEntry] = {}
    for trial in ranked:
        points.setdefault(_costs(trial, objectives), trial)
    return [
        trial
        for mine, trial in points.items()
        if not any(other != mine and all(map(le, other, mine)) for other in points)
    ]


def _shown(trial: TrialEntry) -> FrontEntry:
    return {"trial": trial["trial"], "values": trial["values"], "metrics": trial["metrics"]}


def _domain(domain: Any) -> str:
    if isinstance(domain, dict):
        return ", ".join(map(str, domain["choices"]))
    low, high, scale = domain
    return f"{low:g} to {high:g}" + (", log" if scale == "log" else "")
