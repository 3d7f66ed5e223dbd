"""Is a study that cannot be stored, built or shown refused when it is declared, in one sentence?"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines import LinearConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig
from ldn.config import Config
from results.gather import gather
from results.record import Manifest, read_manifest, read_record
from results.report import write_report
from studies.checks import check_study, study_notes
from studies.drive import drive
from studies.executors import Inline
from studies.spec import Budget, Optimiser, RunSpec, canonical, from_plain, with_field, with_fields
from studies.study import Study
from studies.tasks.digits import CuedDigits, Digits
from studies.tasks.images import CIFAR10
from studies.tasks.listops import ListOps
from studies.train import Place
from studies.tuning import Tuning
from studies.zoo import MODELS, TASKS

SPEC = RunSpec(model=LDNConfig(width=8, depth=1, heads=2), task=Digits(), budget=Budget(steps=2), batch=16)
LINEAR = with_field(SPEC, "model", LinearConfig())
PIXELS = with_field(SPEC, "task.view", "pixels")


def study(**changed: Any) -> Study:
    return Study(**{"question": "Why?", "reference": "ldn", "arms": {"ldn": SPEC}, "seeds": (0,), **changed})


class Distances(nn.Module):
    """Adds an operation without a count."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.network(x, lengths) + torch.cdist(x, x).sum()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"arms": {"ldn": with_field(LINEAR, "budget", Budget(gmacs=1.0))}}, "a budget in gmacs needs .* aten::cdist"),
        (
            {"tuning": Tuning(space={"optim.lr": [1e-3]}, trials=1, objectives=("valid.loss", "cost.gmac"))},
            "the objective cost.gmac needs .* aten::cdist",
        ),
    ],
)
def test_a_lower_bound_of_multiply_adds_is_refused_where_they_decide(
    changed: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = LinearConfig.build
    monkeypatch.setattr(LinearConfig, "build", lambda *config: Distances(build(*config)))
    asked = study(**{"arms": {"ldn": LINEAR}, **changed})
    with pytest.raises(ValueError, match=f"^arm 'ldn': {why}"):
        check_study(asked)


# classes that the stored form cannot name


@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    momentum: float = 0.9


class LongBudget(Budget):
    pass


class MyLDN(LDNConfig):
    pass


class MyDigits(Digits):
    pass


class MySpec(RunSpec):
    pass


@pytest.mark.parametrize(
    "part", [SGD(), LongBudget(steps=2), MyLDN(width=8), MyDigits()], ids=lambda p: type(p).__name__
)
def test_a_subclass_never_shares_the_identity_of_its_base(part: Config) -> None:
    name = {"SGD": "optim", "LongBudget": "budget", "MyLDN": "model", "MyDigits": "task"}[type(part).__name__]
    spec = with_field(SPEC, name, part)
    with pytest.raises(ValueError, match=f"RunSpec.{name} is of class {type(part).__name__}, but would be stored") as e:
        canonical(spec)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"arm 'other': .*" + type(part).__name__):
        check_study(study(arms={"ldn": SPEC, "other": spec}))


def test_a_subclass_of_the_spec_itself_is_refused() -> None:
    spec = MySpec(**{f.name: getattr(SPEC, f.name) for f in dataclasses.fields(SPEC)})
    with pytest.raises(ValueError, match="MySpec changes when the run is stored and read back"):
        check_study(study(arms={"ldn": spec}))


class View(StrEnum):
    ROWS = "rows"


class Size(IntEnum):
    SMALL = 8


@pytest.mark.parametrize(
    ("path", "given_", "stored"),
    [
        ("model.width", np.int64(8), 8),
        ("model.width", Size.SMALL, 8),
        ("optim.lr", np.float32(0.5), 0.5),
        ("optim.lr", np.float64(0.1), 0.1),
        ("task.view", View.ROWS, "rows"),
        ("task.view", np.str_("rows"), "rows"),
    ],
    ids=str,
)
def test_a_value_of_a_subclass_is_stored_as_a_plain_one(path: str, given_: Any, stored: Any) -> None:
    spec = with_field(SPEC, path, given_)
    assert spec.run_id == with_field(SPEC, path, stored).run_id
    again = from_plain(json.loads(json.dumps(canonical(spec))))
    part, field = path.split(".")
    assert type(getattr(getattr(spec, part), field)) is type(getattr(getattr(again, part), field)) is type(stored)


# values that no run could use

CONFIGS = (*MODELS, *TASKS, Optimiser, Budget, RunSpec)
FIELDS = [
    (cls, name, kind)
    for cls in CONFIGS
    for name, hint in ((f.name, get_type_hints(cls)[f.name]) for f in dataclasses.fields(cls))
    for kind in (int, float)
    if kind in (hint, *get_args(hint))
]


def test_the_fields_that_hold_numbers_are_found() -> None:
    assert {(RunSpec, "seed", int), (LDNConfig, "width", int), (CIFAR10, "train", int)} <= set(FIELDS)
    assert {(Optimiser, "lr", float), (Budget, "seconds", float), (LDNConfig, "dropout", float)} <= set(FIELDS)


@pytest.mark.parametrize(("cls", "name", "kind"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_a_number_that_no_run_could_use_is_refused(cls: type[Config], name: str, kind: type) -> None:
    others = {RunSpec: {"model": LDNConfig(), "task": Digits()}}.get(cls, {})
    wrong: tuple[Any, ...] = (True, "8", -1, 10**400, 10**5000)
    wrong += (2**63, 1.5) if kind is int else (math.inf, -math.inf, math.nan, np.float32("inf"))
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{cls.__name__}\.{name} must ") as refusal:
            cls(**{**others, name: value})
        assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("optim.beta1", 1.0), ("optim.beta2", 1), ("model.depth", 2**40), ("model.steps", 2**40), ("model.radius", 2**40)],
)
def test_a_value_that_a_run_could_only_fail_on_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be (below 1|between \d and 10000), not"):
        with_field(SPEC, path, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ViTConfig(), "task": Digits()}, "ViT reads images; this task's input is of kind 'pixels'"),
        ({"model": ViTConfig(patch=3), "task": Digits(view="image")}, "8 x 8 does not divide into patches of 3"),
        ({"model": LDNConfig(kernel="dense"), "task": ListOps()}, "the dense kernel has a fixed length"),
        ({"model.grid": "2d"}, "grid='2d' needs a task whose tokens lie on a grid"),
        ({"model": LinearConfig(), "task": ListOps()}, "neither variable lengths nor causal inputs"),
        ({"model.width": 2**40}, "ldn cannot be built for this task: .*overflow"),
        ({"task": CuedDigits(gap=2**62)}, "InputSpec.length must fit into 64 bits"),
        ({"augment": "crop_flip"}, "augment='crop_flip' needs inputs that lie on a grid"),
    ],
)
def test_a_model_that_does_not_fit_its_task_is_refused_before_any_training(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^arm 'other': .*{message}") as refusal:
        check_study(study(arms={"ldn": SPEC, "other": with_fields(SPEC, changes)}))
    assert "\n" not in str(refusal.value)


# labels and factors


@pytest.mark.parametrize("odd", [*"\n\r\t\v\f\0\x1b\x7f\x85\u2028\u2029", "\ud800"], ids=ascii)
def test_a_label_that_is_not_one_printable_line_is_refused(odd: str) -> None:
    for changed in ({"arms": {"ldn": SPEC, f"a{odd}b": PIXELS}}, {"panels": {f"a{odd}b": {"ldn": PIXELS}}}):
        with pytest.raises(ValueError, match=r"Study.(arms|panels).*(unprintable character|UTF-8)") as refusal:
            study(**changed)
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize(("label", "message"), [("", "empty"), ("  \u2003", "empty"), ("x" * 201, "201 characters")])
def test_a_label_that_names_nothing_or_fills_the_table_is_refused(label: str, message: str) -> None:
    for changed in ({"arms": {"ldn": SPEC, label: PIXELS}}, {"panels": {label: {"ldn": PIXELS}}}):
        with pytest.raises(ValueError, match=message):
            study(**changed)


def test_labels_may_not_clash_across_panels() -> None:
    with pytest.raises(ValueError, match="two arms have the label 'P: ldn'"):
        study(arms={"ldn": SPEC, "P: ldn": PIXELS}, panels={"P": {"ldn": PIXELS}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"factors": {"seed": [1]}}, "cannot vary 'seed'"),
        ({"factors": {"protocol": ["validation"]}}, "cannot vary 'protocol'"),
        ({"factors": {"model": [LinearConfig()], "model.steps": [1]}}, "varies 'model' and 'model.steps' in it"),
        (
            {
                "factors": {"optim": [Optimiser(lr=1.0)]},
                "tuning": Tuning(space={"optim.lr": (0.1, 1.0, "log")}, trials=1),
            },
            "optim.lr is varied by the study",
        ),
    ],
)
def test_a_factor_that_something_else_would_overwrite_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": range(10**6)},
        {"factors": {"optim.lr": [1e-3 * n for n in range(1, 401)], "batch": list(range(1, 401))}, "design": "crossed"},
    ],
)
def test_a_study_of_more_runs_than_can_be_queued_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at most 100,000 runs; its arms, factors and seeds give up to"):
        study(**changed)


def test_arms_that_are_the_same_runs_and_seeds_that_are_not_used_are_named() -> None:
    assert study_notes(study(factors={"model.steps": [0]}, panels={"P": {"ldn": SPEC}})) == []  # two panels may share
    assert study_notes(
        study(factors={"model.patch": [2, 3]}, arms={"ldn": SPEC, "other": with_field(SPEC, "seed", 3)})
    ) == [
        "The arms 'ldn', 'patch 2', 'patch 3' are the same runs: what differs between them has no effect.",
        "The seed set in 'other' is not used: Study.seeds sets the seeds of all runs.",
    ]


def test_a_model_varied_as_a_factor_is_matched_as_one_in_arms_is() -> None:
    other = TransformerConfig(depth=1, heads=2, width=64)
    factor = study(factors={"model": [other]}, match="params").expanded()[1]
    arm = study(arms={"ldn": SPEC, "other": with_field(SPEC, "model", other)}, match="params").expanded()[1]
    assert factor.spec == arm.spec and factor.note == arm.note and factor.note
    assert factor.label == "model transformer(width=64, depth=1, heads=2)"


class Silent:
    def tick(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...


def run(asked: Study, runs: Path) -> Manifest:
    """Run a study as `python -m studies run` does."""
    check_study(asked)
    drive(asked, "s", "s.py", runs, Inline(Place(runs, runs), lambda: False), Silent())
    manifest = read_manifest(runs, "s")
    assert manifest is not None
    return manifest


def test_factors_that_are_configs_run_under_readable_labels(tmp_path: Path) -> None:
    factors = {"task": [Digits(), Digits(view="pixels")], "model.local": [True, False]}
    manifest = run(study(factors=factors, design="crossed"), tmp_path)
    assert {cell["factors"]["task"] for cell in manifest.cells} == {"digits", "digits(view=pixels)"}
    frame = gather(tmp_path, "s")
    assert "task digits(view=pixels), local off" in set(frame["arm"]) and set(frame["status"]) == {"done"}


# whatever is accepted can be run and reported


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a field: legal ones, bounds, and some that are out of range."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    kinds = {int: [0, 1, 2, 3, 8, 2**31, 2**63 - 1], float: [0.0, 1e-300, 0.5, 1.0, 1e308], bool: [True, False]}
    known = [value for kind in (hint, *get_args(hint)) for value in kinds.get(kind, [])]
    return st.sampled_from(known or [None])


def configs(cls: type[Config], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments for a config: any of its fields, beside some that keep it small."""
    hints = get_type_hints(cls)
    free = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls) if f.name not in fixed}
    small = {name: st.just(value) for name, value in fixed.items() if name in hints}
    return st.fixed_dictionaries(small, optional=free)


RUNS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS).flatmap(
            lambda cls: st.tuples(st.just(cls), configs(cls, width=8, depth=1, heads=2, patch=4))
        ),
        "task": st.sampled_from(["rows", "pixels", "image"]).map(
            lambda view: CuedDigits(view=view, gap=0, train=64, valid=16, test=16)
        ),
        "optim": configs(Optimiser),
        "batch": st.sampled_from([1, 16, 2**63 - 1]),
        "augment": st.sampled_from(["none", "crop_flip"]),
        "precision": st.sampled_from(["fp32", "bf16"]),
    }
)


def declared(drawn: dict[str, Any]) -> RunSpec | None:
    """The run that these values declare; None if they are refused."""
    cls, model = drawn["model"]
    try:
        spec = RunSpec(
            **{**drawn, "model": cls(**model), "optim": Optimiser(**drawn["optim"]), "budget": Budget(steps=2)}
        )
        check_study(study(arms={"ldn": spec}))
    except ValueError as refusal:
        assert "\n" not in str(refusal)
        return None
    return spec


def test_whatever_is_accepted_is_run_and_reported(tmp_path: Path) -> None:
    accepted: dict[str, RunSpec] = {}

    @settings(max_examples=16, deadline=None, derandomize=True, database=None)
    @given(RUNS)
    def draw(drawn: dict[str, Any]) -> None:
        if (spec := declared(drawn)) is not None:
            accepted[spec.run_id] = spec

    draw()
    assert 4 <= len(accepted) < 16
    labels = [f"{odd}{i}" for i, odd in enumerate(["_", ":x:", "[b]", "\\alpha $ %", "é日本", "=1+1", "| a |"] * 6)]
    arms = dict(zip(labels, accepted.values(), strict=False))
    run(study(reference=labels[0], arms=arms), tmp_path)
    assert not write_report(tmp_path, "s", tmp_path / "reports").errors
    records = [read_record(tmp_path, spec.run_id) for spec in accepted.values()]
    reasons = {record.reason for record in records if record is not None and record.status == "failed"}
    assert len(records) == len(accepted) and all("memory" in reason for reason in reasons), reasons
