"""Is identity content? What makes two runs one, what keeps stored runs found, and how a typo is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import studies.spec
import studies.zoo
from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig, PaperSequenceConfig, PaperVisionConfig
from ldn.classifier import ModelConfig
from ldn.config import AtLeast
from results.cost_frame import BATCH
from studies.spec import Budget, Optimiser, RunSpec, canonical, field_value, flatten, from_plain, with_field
from studies.tasks.digits import CuedDigits, Digits
from studies.tasks.images import CIFAR10, FashionMNIST
from studies.tasks.listops import ListOps

BASE = RunSpec(model=LDNConfig(), task=Digits())


# what is pinned

PINNED = {
    # A change of any of these orphans every stored run of everybody. Give a new field the default that stored runs
    # were made with, or metadata={"introduced": ...}; only a change of meaning is a reason for a new SCHEMA.
    "1efbdf92bfe811c5": BASE,
    "888afabb3601aa6d": RunSpec(
        model=LDNConfig(width=64, depth=2),
        task=CuedDigits(),
        optim=Optimiser(lr=2e-3),
        budget=Budget(steps=600),
        seed=2,
    ),
    "a3633e71251d230e": RunSpec(
        model=LDNConfig(steps=0, attention="softmax", dropout=0.1),
        task=Digits(view="image"),
        batch=16,
        precision="bf16",
        augment="crop_flip",
        budget=Budget(epochs=3, evaluations=4),
    ),
    "788689cd906312b5": RunSpec(
        model=ViTConfig(patch=4), task=CIFAR10(view="patches"), optim=Optimiser(label_smoothing=0.1)
    ),
    "e75f6cebf6cd1790": RunSpec(model=RNNConfig(cell="gru"), task=ListOps(seed=1), budget=Budget(gmacs=1000.0)),
    "30da8d27b195c3ee": RunSpec(model=PaperSequenceConfig(), task=FashionMNIST(train=100), budget=Budget(steps=0)),
}


@pytest.mark.parametrize("run_id", PINNED)
def test_run_ids_are_the_pinned_ones(run_id: str) -> None:
    assert PINNED[run_id].run_id == run_id


def test_the_canonical_content_is_the_pinned_one() -> None:
    spec = RunSpec(
        model=LDNConfig(width=64, symmetric=False),
        task=CuedDigits(view="pixels"),
        optim=Optimiser(lr=2e-3),
        batch=32,
        seed=7,
    )
    assert canonical(spec) == {
        "schema": 1,
        "model": {"name": "ldn", "width": 64, "symmetric": False},
        "task": {"name": "cued_digits", "view": "pixels"},
        "optim": {"lr": 2e-3},
        "batch": 32,
        "budget": {"steps": 1000},
        "seed": 7,
    }
    assert canonical(BASE) == {
        "schema": 1,
        "model": {"name": "ldn"},
        "task": {"name": "digits"},
        "budget": {"steps": 1000},
    }


# identity is content

DIFFERENT: dict[str, Any] = {
    "model.fused": False,
    "model": TransformerConfig(),
    "model.width": 64,
    "model.depth": 1,
    "model.steps": 3,
    "model.kernel": "fixed",
    "model.radius": 2,
    "model.symmetric": False,
    "model.time_step": "token",
    "model.rate": 0.25,
    "model.attention": "none",
    "model.heads": 2,
    "model.local": False,
    "model.norm": "post",
    "model.ffn_ratio": 4,
    "model.dropout": 0.1,
    "model.positions": "none",
    "task": CuedDigits(),
    "task.view": "pixels",
    "task.seed": 1,
    "optim.lr": 1e-2,
    "optim.weight_decay": 0.0,
    "optim.beta1": 0.8,
    "optim.beta2": 0.99,
    "optim.warmup": 0.0,
    "optim.final": 0.1,
    "optim.clip": 0.0,
    "optim.label_smoothing": 0.1,
    "optim.graphs": True,
    "batch": 32,
    "budget": Budget(epochs=1),
    "budget.steps": 999,
    "budget.evaluations": 3,
    "precision": "bf16",
    "augment": "crop_flip",
    "protocol": "validation",
    "seed": 1,
}


def test_every_field_with_an_effect_is_part_of_the_identity() -> None:
    specs = [BASE, *(with_field(BASE, path, value) for path, value in DIFFERENT.items())]
    assert len({spec.run_id for spec in specs}) == len(specs)
    untested = flatten(BASE).keys() - DIFFERENT.keys() - {"model.grid"}  # "2d" needs a grid
    assert untested == {"budget.epochs", "budget.seconds", "budget.gmacs"}  # exactly one of the four is given


def test_how_a_spec_is_written_down_makes_no_difference() -> None:
    same = [
        RunSpec(task=Digits(), model=LDNConfig()),
        RunSpec(model=LDNConfig(width=128, rate=0.5), task=Digits(seed=0), optim=Optimiser(), batch=64),
        dataclasses.replace(with_field(BASE, "seed", 3), seed=0),
        with_field(with_field(BASE, "model.width", 64), "model.width", 128),
    ]
    assert {spec.run_id for spec in same} == {BASE.run_id}
    assert with_field(BASE, "optim.clip", 2).run_id == with_field(BASE, "optim.clip", 2.0).run_id


WITHOUT_EFFECT: dict[str, tuple[RunSpec, dict[str, Any]]] = {
    "no steps": (
        with_field(BASE, "model.steps", 0),
        {
            "model.kernel": "adaptive",
            "model.radius": 3,
            "model.symmetric": False,
            "model.time_step": "token",
            "model.rate": 0.1,
        },
    ),
    "kernel fixed": (with_field(BASE, "model.kernel", "fixed"), {"model.radius": 3, "model.symmetric": False}),
    "kernel adaptive": (with_field(BASE, "model.kernel", "adaptive"), {"model.radius": 3, "model.symmetric": False}),
    "raw rate": (with_field(BASE, "model.time_step", "raw"), {"model.rate": 0.1}),
    "no attention": (with_field(BASE, "model.attention", "none"), {"model.heads": 8}),
    "nothing to fuse": (
        with_field(with_field(BASE, "model.steps", 0), "model.attention", "softmax"),
        {"model.fused": False},
    ),
    "no image": (BASE, {"model.patch": 2}),
    "no image, Transformer": (with_field(BASE, "model", TransformerConfig()), {"model.patch": 2}),
    "no image, RNN": (with_field(BASE, "model", RNNConfig()), {"model.patch": 2}),
    "no image, paper-vision": (with_field(BASE, "model", PaperVisionConfig()), {"model.patch": 2}),
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_a_field_without_effect_is_no_part_of_the_identity_and_indeed_has_none(case: str) -> None:
    spec, idle = WITHOUT_EFFECT[case]
    assert idle.keys() <= {f"model.{name}" for name in spec.model.without_effect(spec.task.input)}
    for path, value in idle.items():
        other = with_field(spec, path, value)
        assert other != spec and other.run_id == spec.run_id and flatten(other) == flatten(spec)
        x = torch.randn(2, spec.task.input.length, spec.task.input.channels)
        networks = []
        for one in (spec, other):
            torch.manual_seed(0)
            networks.append(one.model.build(one.task.input, one.task.target))
        ours, theirs = (network.state_dict() for network in networks)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert torch.equal(*(network(x) for network in networks))


# what is stored is read again, whatever has become of the defaults since

MODELS: tuple[ModelConfig, ...] = (
    LDNConfig(width=64),
    TransformerConfig(heads=2),
    RNNConfig(cell="gru"),
    ViTConfig(patch=4),
    LinearConfig(),
    PaperVisionConfig(width=8),
    PaperSequenceConfig(depth=2),
)
TASKS = (Digits(view="image"), CuedDigits(seed=3), ListOps(train=10), FashionMNIST(train=5), CIFAR10(view="colour"))


def test_every_model_and_task_of_the_zoo_survives_storage() -> None:
    assert {type(model) for model in MODELS} == set(studies.zoo.MODELS)
    assert {type(task) for task in TASKS} == set(studies.zoo.TASKS)
    for model in MODELS:
        for task in TASKS:
            spec = RunSpec(model=model, task=task, seed=1)
            stored = json.loads(json.dumps(canonical(spec)))
            assert from_plain(stored).run_id == spec.run_id and canonical(from_plain(stored)) == stored


OPTIMS = st.builds(
    Optimiser,
    lr=st.sampled_from([1e-3, 3e-4, 1, 0.1 + 0.2]),
    warmup=st.floats(0, 1),
    clip=st.sampled_from([0, 1, 0.5]),
)
BUDGETS = st.one_of(
    st.builds(Budget, steps=st.integers(0, 10**6), evaluations=st.integers(1, 20)),
    st.builds(Budget, epochs=st.integers(1, 100)),
    st.builds(Budget, seconds=st.floats(0, 1e6)),
    st.builds(Budget, gmacs=st.floats(0, 1e12)),
)
LDNS = st.builds(
    LDNConfig,
    steps=st.sampled_from([0, 2, 8]),
    kernel=st.sampled_from(["fixed", "stationary", "dense"]),
    radius=st.integers(1, 3),
    attention=st.sampled_from(["none", "linear"]),
    heads=st.sampled_from([1, 4]),
)
SPECS = st.builds(
    RunSpec,
    model=LDNS,
    task=st.builds(Digits, seed=st.integers(0, 3)),
    optim=OPTIMS,
    budget=BUDGETS,
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=60, deadline=None)
@given(SPECS, SPECS)
def test_two_runs_are_one_exactly_where_all_that_has_an_effect_is_equal(one: RunSpec, other: RunSpec) -> None:
    assert (one.run_id == other.run_id) == (flatten(one) == flatten(other))
    again = from_plain(json.loads(json.dumps(canonical(one))))
    assert again.run_id == one.run_id and flatten(again) == flatten(one)


class Linearish(LinearConfig):
    """A model whose config changes from version to version: `First`, and what might have become of it."""

    name: ClassVar[str] = "linearish"


@dataclass(frozen=True, kw_only=True)
class First(Linearish):
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class WithANewField(Linearish):
    width: int = 8
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class WithAChangedDefault(Linearish):
    width: int = field(default=16, metadata={"introduced": 8})


@dataclass(frozen=True, kw_only=True)
class FasterOptimiser(Optimiser):
    lr: Annotated[float, AtLeast(0)] = field(default=5e-3, metadata={"introduced": 1e-3})


@dataclass(frozen=True, kw_only=True)
class FasterRunSpec(RunSpec):
    optim: Optimiser = FasterOptimiser()


def test_a_new_field_orphans_no_stored_run() -> None:
    old, new = RunSpec(model=First(), task=Digits()), RunSpec(model=WithANewField(), task=Digits())
    assert old.run_id == new.run_id
    assert RunSpec(model=WithANewField(bias=False), task=Digits()).run_id != old.run_id


def test_reports_know_the_batch_that_specs_leave_out() -> None:
    assert RunSpec.batch == BATCH and "batch" not in canonical(BASE)


def test_a_changed_default_keeps_the_meaning_of_stored_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = canonical(RunSpec(model=First(), task=Digits()))
    assert stored["model"] == {"name": "linearish"}
    monkeypatch.setattr(studies.zoo, "MODELS", (WithAChangedDefault,))
    assert from_plain(stored).model == WithAChangedDefault(width=8)
    new = RunSpec(model=WithAChangedDefault(), task=Digits())
    assert canonical(new)["model"] == {"name": "linearish", "width": 16}
    assert from_plain(canonical(new)) == new


def test_a_changed_default_of_the_optimiser_keeps_the_meaning_of_stored_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, run_id = canonical(BASE), BASE.run_id
    monkeypatch.setattr(studies.spec, "Optimiser", FasterOptimiser)
    monkeypatch.setattr(studies.spec, "RunSpec", FasterRunSpec)
    assert from_plain(stored).optim.lr == 1e-3
    new = FasterRunSpec(model=LDNConfig(), task=Digits())
    assert new.run_id != run_id and canonical(new)["optim"] == {"lr": 5e-3}
    assert from_plain(canonical(new)).optim.lr == 5e-3
    assert FasterRunSpec(model=LDNConfig(), task=Digits(), optim=FasterOptimiser(lr=1e-3)).run_id == run_id


# misfits are refused in one sentence


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"widht": 3}, r"RunSpec has no field 'widht'; known fields: model, task, optim"),
        ({"model": {"name": "ldm"}}, r"there is no model named 'ldm'; known: ldn, .*transformer"),
        ({"task": {"name": "mnist"}}, r"there is no task named 'mnist'; known: digits, cued_digits"),
        ({"model": {"name": "ldn", "step": 3}}, r"LDNConfig has no field 'step'; known fields: .*steps"),
        ({"optim": {"momentum": 0.9}}, r"Optimiser has no field 'momentum'; known fields: lr"),
        ({"budget": {"hours": 1}}, r"Budget has no field 'hours'; known fields: steps, epochs, seconds, gmacs"),
        ({"schema": 2}, r"newer version \(schema 2, known up to 1\)"),
        ({"optim": {"lr": -1.0}}, r"Optimiser.lr must be at least 0, not -1.0"),
        ({"seed": "0"}, r"RunSpec.seed must be of type int, not '0'"),
    ],
)
def test_data_that_are_no_spec_are_refused(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(canonical(BASE) | plain)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.stepz", 0, r"LDNConfig has no field 'stepz'; known fields: width, depth, steps"),
        ("modl.steps", 0, r"RunSpec has no field 'modl'; known fields: model, task"),
        ("model.steps.x", 0, r"2 is a value and has no field 'x'"),
        ("model.steps", -1, r"LDNConfig.steps must be between 0 and 10000, not -1"),
        ("model.kernel", "gauss", r"LDNConfig.kernel must be one of 'fixed', 'stationary'"),
        ("model.width", 130, r"width 130 does not divide into 4 heads"),
        ("optim.lr", "fast", r"Optimiser.lr must be of type float, not 'fast'"),
        ("optim.lr", float("nan"), r"Optimiser.lr must be a finite number, not nan"),
        ("optim.label_smoothing", 1.5, r"Optimiser.label_smoothing must be between 0 and 1, not 1.5"),
        ("precision", "fp16", r"RunSpec.precision must be one of 'fp32', 'bf16', not 'fp16'"),
        ("batch", 0, r"RunSpec.batch must be at least 1, not 0"),
        ("batch", True, r"RunSpec.batch must be of type int, not True"),
        (
            "budget.epochs",
            3,
            r"exactly one of steps, epochs, seconds, gmacs; given: \['steps', 'epochs'\]",
        ),
        ("task", LDNConfig(), r"RunSpec.task must be of type Task"),
        ("seed", -1, r"RunSpec.seed must be at least 0, not -1"),
    ],
)
def test_a_misfit_is_refused_where_it_is_written(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        with_field(BASE, path, value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("given_", [{}, {"steps": 1, "seconds": 2.0}, {"steps": -1}, {"epochs": 0}, {"seconds": -1.0}])
def test_a_budget_is_one_amount(given_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Budget"):
        Budget(**given_)


def test_a_budget_of_no_steps_is_legal() -> None:
    assert Budget(steps=0).steps == 0


def test_a_field_is_read_and_changed_by_its_path() -> None:
    assert field_value(BASE, "optim.lr") == 1e-3 and field_value(BASE, "model") == LDNConfig()
    changed = with_field(BASE, "model.steps", 5)
    assert changed.model.steps == 5 and with_field(changed, "model.steps", 2) == BASE  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="LDNConfig has no field 'stepz'"):
        field_value(BASE, "model.stepz")


def test_flatten_gives_every_field_that_has_an_effect() -> None:
    flat = flatten(with_field(BASE, "model.steps", 0))
    assert flat["model"] == "ldn" and flat["task"] == "digits" and flat["model.steps"] == 0 and flat["optim.lr"] == 1e-3
    assert "model.kernel" not in flat and "model.patch" not in flat


def test_specs_are_immutable_and_hashable() -> None:
    assert len({BASE, RunSpec(model=LDNConfig(), task=Digits())}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.seed = 3  # type: ignore[misc]
