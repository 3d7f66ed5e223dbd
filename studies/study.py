"""What a study is: a question, a reference arm, what is varied around it, and the runs that follow."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from unicodedata import category

from ldn.config import AtLeast, Config
from results.record import TuningRecord
from studies.matching import matched_width
from studies.spec import RunSpec, field_value, flatten, with_field, with_fields
from studies.tuning import Tuning, applied, maximised, refuse_misfit

Design = Literal["one_at_a_time", "crossed"]
Match = Literal["none", "params", "gmac"]
Metric = Literal["test.accuracy", "test.loss", "valid.accuracy", "valid.loss", "train.loss"]
Direction = Literal["max", "min"]
LONGEST_LABEL = 200
MOST_RUNS = 100_000
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates and line breaks, by Unicode category


@dataclass(frozen=True)
class Arm:
    """One row of the study's table, compared with the arm `reference`.

    `factors` are the values of the varied fields (of a config, its text), `note` says what was solved.
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
    wanted, for an empty or unprintable label, an empty list of values, two arms of one label, factors that overwrite
    each other or that Study sets itself, and for a tuning that does not fit.
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
        self._refuse_factors()
        self._refuse_size()
        for name in self.panels:
            _refuse_label("panel", name)
        for arms in self._sets().values():
            for label in arms:
                _refuse_label("arm", label)
            if self.reference not in arms:
                raise ValueError(
                    f"the reference {self.reference!r} is no arm; arms: {', '.join(map(repr, arms)) or 'none'}"
                )
        labels = Counter(arm.label for arm in self.unmatched())
        if repeated := [label for label, count in labels.items() if count > 1]:
            raise ValueError(f"two arms have the label {repeated[0]!r}; rename the one in `arms`")
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
        references = {arm.label: arm.spec for arm in self.unmatched()}
        return [self._matched(arm, references[arm.reference]) for arm in self.unmatched()]

    def unmatched(self) -> list[Arm]:
        """All arms as the study's file has them, before widths are matched."""
        found = []
        for panel, arms in self._sets().items():
            prefix = f"{panel}: " if panel else ""
            name, reference = prefix + self.reference, arms[self.reference]
            base = {path: _plain(field_value(reference, path)) for path in self.factors}
            found += [Arm(name, reference, name, base), *self._varied(reference, name)]
            found += [Arm(prefix + label, spec, name) for label, spec in arms.items() if label != self.reference]
        return found

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

    def _refuse_factors(self) -> None:
        """Raise ValueError for a factor without values, or whose values something else would overwrite."""
        for path, values in self.factors.items():
            if not values:
                raise ValueError(f"Study.factors[{path!r}] is empty; it lists what {path} is set to")
            if path in ("seed", "protocol"):
                raise ValueError(f"Study.factors cannot vary {path!r}: Study.seeds and `tune` set seed and protocol")
            if inner := [other for other in self.factors if other.startswith(f"{path}.")]:
                raise ValueError(f"Study.factors varies {path!r} and {inner[0]!r} in it; give the one or the other")

    def _refuse_size(self) -> None:
        """Raise ValueError for more runs than a queue, a report and a reader can take, before any is made."""
        levels = [len(values) for values in self.factors.values()]
        varied = sum(levels) if self.design == "one_at_a_time" else math.prod(levels)
        runs = sum(len(arms) + varied for arms in self._sets().values()) * len(self.seeds)
        if runs > MOST_RUNS:
            raise ValueError(f"a Study has at most {MOST_RUNS:,} runs; its arms, factors and seeds give up to {runs:,}")

    def _varied(self, reference: RunSpec, name: str) -> list[Arm]:
        """The arms that the factors make of a reference, without that itself."""
        base = {path: _plain(field_value(reference, path)) for path in self.factors}
        prefix = name.removesuffix(self.reference)
        if self.design == "crossed":
            choices = [dict(zip(base, values, strict=True)) for values in itertools.product(*self.factors.values())]
        else:
            choices = [{path: value} for path, values in self.factors.items() for value in values]
        arms = []
        for choice in choices:
            spec = with_fields(reference, choice)
            plain = {path: _plain(field_value(spec, path)) for path in choice}
            label = ", ".join(_label(path, choice[path], plain[path]) for path in choice)
            if spec != reference:
                arms.append(Arm(prefix + label, spec, name, base | plain))
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


def _label(path: str, given: Any, plain: Any) -> str:
    value = given if type(given) in (int, float) else plain  # as written: 1, not 1.0
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"{path.rpartition('.')[2]} {shown}"


def _plain(value: Any) -> Any:
    """A field's value as files hold it: of a config, its name and the fields that are not at their defaults."""
    if not isinstance(value, Config):
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    defaults = {f.name: f.default for f in dataclasses.fields(value)}
    text = ", ".join(f"{name}={_plain(inner)}" for name, inner in fields.items() if inner != defaults[name])
    return f"{value.name}({text})" if text else value.name or "default"


def _refuse_label(what: str, label: str) -> None:
    """Raise ValueError for a label that tables, figures and files cannot show on one line."""
    if not label.strip():
        raise ValueError(f"Study.{what}s has the empty name {label!r}: tables and figures show it, so name the {what}")
    if len(label) > LONGEST_LABEL:
        raise ValueError(f"Study.{what}s has a name of {len(label)} characters; the most is {LONGEST_LABEL}")
    if odd := [letter for letter in label if category(letter) in UNPRINTABLE]:
        raise ValueError(f"Study.{what}s has the name {label!r} with the unprintable character {odd[0]!r}; remove it")
