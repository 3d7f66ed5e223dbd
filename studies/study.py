"""What a study is: a question, a reference arm, what is varied around it, and the runs that follow."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ldn.config import AtLeast, Config
from results.record import TuningRecord
from studies.matching import matched_width
from studies.spec import RunSpec, field_value, flatten, with_field, with_fields
from studies.tuning import Tuning, applied, maximised, refuse_misfit

Design = Literal["one_at_a_time", "crossed"]
Match = Literal["none", "params", "gmac"]
Metric = Literal["test.accuracy", "test.loss", "valid.accuracy", "valid.loss", "train.loss"]
Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Arm:
    """One row of the study's table, compared with the arm `reference`.

    `factors` are the values of the varied fields, `note` says what was solved.
    """

    label: str
    spec: RunSpec
    reference: str
    factors: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One arm at one seed: one run (which other cells may share, if their content is the same)."""

    arm: str
    seed: int
    spec: RunSpec
    factors: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study(Config):
    """A declared experiment. The labels are the keys of `arms`; `reference` is one of them.

    `factors` maps dotted fields to values and varies them around the reference, one at a time or crossed:
    `factors={"model.steps": [0, 8]}`. `panels` holds further sets of arms by name (other tasks, say), each compared
    with the arm of its own that is called `reference`. `match` solves the width of every arm whose model is of
    another kind than the reference's, so that it costs as much (`studies.matching`).
    `metric` is what the table shows: the most of an accuracy is best, and the least of a loss.
    `tuning` says how settings are found before (`python -m studies tune`); what was found, `tuned`, is read from the
    file beside the study's by `studies.catalogue`, and the arms carry it.

    Raises ValueError for an unknown field, reference, design or metric, for what is no list or dict where one is
    wanted, for an empty label or list of values, for two arms of one label, and for a tuning that does not fit.
    """

    question: str
    reference: str
    arms: Mapping[str, RunSpec] = field(default_factory=dict)
    panels: Mapping[str, Mapping[str, RunSpec]] = field(default_factory=dict)
    factors: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    design: Design = "one_at_a_time"
    seeds: Sequence[Annotated[int, AtLeast(0)]] = (0, 1, 2)
    metric: Metric = "test.accuracy"
    match: Match = "none"
    tuning: Tuning | None = None
    tuned: TuningRecord | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Study.seeds must be different numbers, at least one, not {list(self.seeds)}")
        for path, values in self.factors.items():
            if not values:
                raise ValueError(f"Study.factors[{path!r}] is empty; it lists what {path} is set to")
        if "" in self.panels:
            raise ValueError("a panel of Study.panels has the empty name ''; what it is called stands before its arms")
        for arms in self._sets().values():
            if "" in arms:
                raise ValueError("an arm has the empty label ''; the label is what the table calls it")
            if self.reference not in arms:
                raise ValueError(
                    f"the reference {self.reference!r} is no arm; arms: {', '.join(map(repr, arms)) or 'none'}"
                )
            labels = [*arms, *(arm.label for arm in self._varied(arms[self.reference], self.reference))]
            if len(set(labels)) < len(labels):
                repeated = next(label for label in labels if labels.count(label) > 1)
                raise ValueError(f"two arms have the label {repeated!r}; rename the one in `arms`")
        if self.tuning is not None:
            refuse_misfit(self.tuning, self, [spec for arms in self._sets().values() for spec in arms.values()])

    @property
    def direction(self) -> Direction:
        return "max" if maximised(self.metric) else "min"

    def expanded(self) -> list[Arm]:
        """All arms, of each set the reference first, widths solved, with the values that tuning has found."""
        arms = self.declared()
        specs = {} if self.tuned is None else applied(arms, self.tuned)
        return [dataclasses.replace(arm, spec=specs.get(arm.label, arm.spec)) for arm in arms]

    def declared(self) -> list[Arm]:
        """All arms as the study's file has them, before any tuning."""
        expanded = []
        for panel, arms in self._sets().items():
            prefix = f"{panel}: " if panel else ""
            name, reference = prefix + self.reference, arms[self.reference]
            base = {path: field_value(reference, path) for path in self.factors}
            expanded += [Arm(name, reference, name, base), *self._varied(reference, name)]
            for label, spec in arms.items():
                if label != self.reference:
                    expanded.append(self._matched(Arm(prefix + label, spec, name), reference))
        return expanded

    def cells(self) -> list[Cell]:
        """All runs, seed by seed: a study stopped early has whole rows of fewer seeds."""
        arms = self.expanded()
        return [
            Cell(arm.label, seed, dataclasses.replace(arm.spec, seed=seed), arm.factors)
            for seed in self.seeds
            for arm in arms
        ]

    def _sets(self) -> dict[str, Mapping[str, RunSpec]]:
        return {**({"": self.arms} if self.arms or not self.panels else {}), **self.panels}

    def _varied(self, reference: RunSpec, name: str) -> list[Arm]:
        """The arms that the factors make of a reference, without that itself."""
        base = {path: field_value(reference, path) for path in self.factors}
        prefix = name.removesuffix(self.reference)
        if self.design == "crossed":
            choices = [dict(zip(base, values, strict=True)) for values in itertools.product(*self.factors.values())]
        else:
            choices = [{path: value} for path, values in self.factors.items() for value in values]
        arms = []
        for choice in choices:
            spec = with_fields(reference, choice)
            label = ", ".join(_label(path, value) for path, value in choice.items())
            if spec != reference:
                arms.append(Arm(prefix + label, spec, name, base | choice))
        return arms

    def _matched(self, arm: Arm, reference: RunSpec) -> Arm:
        model = arm.spec.model
        if self.match == "none" or type(model) is type(reference.model) or model.width_unit() == 0:
            return arm
        solved = matched_width(arm.spec, reference, self.match)
        return dataclasses.replace(arm, spec=with_field(arm.spec, "model.width", solved.width), note=str(solved))


def changes(spec: RunSpec, reference: RunSpec) -> dict[str, list[Any]]:
    """Where two specs differ: {field: [the reference's value, this one's]}, None where one has no such field."""
    ours, theirs = flatten(spec), flatten(reference)
    paths = [*theirs, *(path for path in ours if path not in theirs)]
    return {path: [theirs.get(path), ours.get(path)] for path in paths if theirs.get(path) != ours.get(path)}


def _label(path: str, value: Any) -> str:
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"{path.rpartition('.')[2]} {shown}"
