"""Does a run end as its spec says, wherever it was stopped on the way? The loop, its checkpoints, its records."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import itertools
import math
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import studies.train
from baselines import RNNConfig, TransformerConfig
from ldn import InputSpec, LDNConfig, ModelConfig, TargetSpec
from results.record import RunRecord, read_record, run_folder
from studies import checkpoint
from studies.matching import matched_width
from studies.schedule import Batches, Clock, derived_seed, learning_rate_factor
from studies.spec import Budget, Optimiser, RunSpec, with_field
from studies.tasks.digits import CuedDigits
from studies.tasks.task import Data, Split, Task
from studies.train import Place, Progress, Stopped, adamw, evaluate, train

ROOT = Path(__file__).resolve().parent.parent

# everything that draws random numbers is on; 4 batches an epoch, so 20 steps see 5 permutations
SPEC = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2, dropout=0.1),
    task=CuedDigits(view="image", train=70, valid=32, test=48),
    optim=Optimiser(lr=1e-2, label_smoothing=0.1),
    batch=16,
    augment="crop_flip",
    budget=Budget(steps=20, evaluations=4),
)
LONGER = with_field(SPEC, "budget", Budget(steps=60, evaluations=6))
PLAIN = with_field(with_field(SPEC, "model.dropout", 0.0), "augment", "none")


@dataclass(frozen=True, kw_only=True)
class Failing(Task):
    """A task whose data cannot be loaded."""

    name: ClassVar[str] = "failing"

    @property
    def input(self) -> InputSpec:
        return InputSpec(kind="pixels", length=4, channels=1)

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=2)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def load(self, folder: Path) -> Data:
        raise RuntimeError("the data are on fire\nand so is the second line")


@dataclass(frozen=True, kw_only=True)
class Padded(Failing):
    """Ids in sequences of different lengths: is the first token the same as the last?"""

    name: ClassVar[str] = "padded"

    @property
    def input(self) -> InputSpec:
        return InputSpec(kind="tokens", length=9, vocabulary=3, variable=True)

    def load(self, folder: Path) -> Data:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 3, (64, 9), generator=generator)
        lengths = torch.randint(2, 10, (64,), generator=generator)
        y = (x[:, 0] == x[torch.arange(64), lengths - 1]).long()
        return Data(*(Split(x[part], lengths[part], y[part]) for part in (slice(32), slice(32, 48), slice(48, 64))))


@dataclass(frozen=True, kw_only=True)
class Distances(ModelConfig):
    """A model with an operation that has no count."""

    name: ClassVar[str] = "distances"

    def build(self, input: InputSpec, target: TargetSpec) -> nn.Module:
        return ByDistance(target.classes)

    def without_effect(self, input: InputSpec) -> set[str]:
        return set()

    def width_unit(self) -> int:
        return 0


class ByDistance(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(1, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.map(torch.cdist(x.flatten(2), x.flatten(2)).mean((1, 2))[:, None])


def place(folder: Path, **changed: Any) -> Place:
    return Place(folder / "runs", folder / "data", **changed)


def at(*steps: int) -> Callable[[], bool]:
    """A `stop` that says so when it is asked before these steps of this call."""
    asked = itertools.count()
    return lambda: next(asked) in steps


def outcome(where: Place, spec: RunSpec) -> dict[str, Any]:
    """All that a finished run leaves, but for when and where it ran."""
    folder, record = run_folder(where.runs, spec.run_id), read_record(where.runs, spec.run_id)
    assert record is not None
    plain = dataclasses.asdict(record)
    del plain["attempts"]
    weights = torch.load(folder / "weights.pt", weights_only=True)
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        predictions = {name: stored[name].tolist() for name in stored.files}
    return plain | {
        "curve": (folder / "curve.csv").read_bytes(),
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "predictions": predictions,
    }


def curve(where: Place, spec: RunSpec) -> list[dict[str, float]]:
    with (run_folder(where.runs, spec.run_id) / "curve.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, RunRecord]:
    """SPEC, trained without interruption."""
    where = place(tmp_path_factory.mktemp("whole"))
    record = train(SPEC, where)
    assert (record.status, record.reason) == ("done", "")
    return where, record


# schedules: functions of the step


def test_the_learning_rate_rises_linearly_then_falls_along_a_cosine() -> None:
    optim = Optimiser(warmup=0.2, final=0.1)
    at_, factor = np.linspace(0, 1, 101), functools.partial(learning_rate_factor, optim=optim)
    factors = [factor(done) for done in at_]
    assert factor(0.1) == pytest.approx(0.5) and factor(0.2) == 1.0 and factor(1.0) == pytest.approx(0.1)
    assert factor(0.6) == pytest.approx((1 + 0.1) / 2)  # the middle of the cosine
    assert factors[:21] == sorted(factors[:21]) and factors[20:] == sorted(factors[20:], reverse=True)
    assert min(factors) > 0 and max(factors) == 1


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_warm_up_of_nothing_or_of_everything_is_legal(warmup: float) -> None:
    factors = [learning_rate_factor(done, Optimiser(warmup=warmup)) for done in (0.0, 0.5, 1.0)]
    assert factors == pytest.approx([1.0, 0.5, 0.0] if warmup == 0 else [0.01, 0.5, 1.0])


def test_a_budget_of_steps_epochs_or_gmacs_is_a_number_of_steps() -> None:
    def steps(**budget: Any) -> int | None:
        return Clock(Budget(**budget), steps_per_epoch=7, gmac_per_step=0.5).steps

    assert [steps(steps=9), steps(epochs=3), steps(gmacs=10), steps(gmacs=0.1)] == [9, 21, 20, 1]
    assert steps(seconds=1.0) is None


def test_a_budget_of_seconds_is_spent_by_the_clock() -> None:
    clock = Clock(Budget(seconds=4.0), 7, 0.5)
    assert [clock.done(1000, seconds) for seconds in (0.0, 1.0, 4.0, 5.0)] == [0.0, 0.25, 1.0, 1.0]
    assert Clock(Budget(seconds=0.0), 7, 0.5).done(1, 1e-6) == 1.0


@pytest.mark.parametrize("evaluations", [1, 2, 3, 7, 10, 50, 100])
def test_evaluations_are_as_many_as_asked_and_evenly_spaced(evaluations: int) -> None:
    for steps in (1, 2, 7, 10, 20, 99, 100, 600, 1000):
        clock = Clock(Budget(steps=steps, evaluations=evaluations), 1, 1.0)
        due = [s for s in range(1, steps + 1) if clock.evaluation_due(clock.done(s - 1, 0), clock.done(s, 0))]
        assert len(due) == min(steps, evaluations) and due[-1] == steps
        assert max(np.diff([0, *due])) <= math.ceil(steps / evaluations)


def test_every_role_and_step_has_a_seed_of_its_own() -> None:
    roles = ("init", "order", "dropout", "augment")
    seeds = {derived_seed(seed, role, step) for seed in range(5) for role in roles for step in range(50)}  # type: ignore[arg-type]
    assert len(seeds) == 5 * 4 * 50 and all(0 <= seed < 2**63 for seed in seeds)


def split(examples: int) -> Split:
    return Split(torch.arange(examples), None, torch.arange(examples))


def test_every_epoch_is_a_permutation_of_its_own_without_its_incomplete_batch() -> None:
    batches = Batches(split(70), SPEC)
    epochs = [torch.cat([batches[step][0] for step in range(4 * e, 4 * e + 4)]).tolist() for e in range(3)]
    assert batches.per_epoch == 4 and all(len(set(epoch)) == 64 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(set(itertools.chain(*epochs))) == 70  # what one epoch leaves out, another has


def test_a_batch_is_a_function_of_its_step_and_of_the_seed_alone() -> None:
    batches, other = Batches(split(70), SPEC), with_field(SPEC, "model", TransformerConfig())
    forwards = [batches[step][0].tolist() for step in range(9)]
    assert [Batches(split(70), other)[step][0].tolist() for step in reversed(range(9))] == forwards[::-1]
    assert Batches(split(70), with_field(SPEC, "seed", 1))[0][0].tolist() != forwards[0]


def test_a_batch_is_never_larger_than_the_data() -> None:
    batches = Batches(split(5), SPEC)
    assert batches.per_epoch == 1 and sorted(batches[3][0].tolist()) == list(range(5))


# one run


def test_the_loop_is_adamw_with_clipping_smoothing_warm_up_and_cosine(tmp_path: Path) -> None:
    """Written down a second time, step by step."""
    spec = dataclasses.replace(PLAIN, optim=Optimiser(lr=3e-2, label_smoothing=0.2, clip=0.5, weight_decay=0.3))
    train(spec, place(tmp_path))
    found = curve(place(tmp_path), spec)

    torch.manual_seed(derived_seed(spec.seed, "init"))
    network = spec.model.build(spec.task.input, spec.task.target)
    data = spec.task.load(tmp_path)
    decaying = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    losses = []
    for step in range(20):
        epoch, i = divmod(step, 4)
        if i == 0:
            order = torch.randperm(70, generator=torch.Generator().manual_seed(derived_seed(0, "order", epoch)))
        chosen = order[16 * i : 16 * i + 16]
        done = step / 20
        rate = max(done / 0.1, 0.01) if done < 0.1 else (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
        for group in optimiser.param_groups:
            group["lr"] = 3e-2 * rate
        loss = cross_entropy(network(data.train.x[chosen]), data.train.y[chosen], label_smoothing=0.2)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad.square().sum() for p in network.parameters()), torch.tensor(0.0)))
        for p in network.parameters():
            p.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 5 == 0:
            row = found[step // 5]
            with torch.no_grad():
                logits = network(data.valid.x)
            assert row["step"] == step + 1 and row["lr"] == pytest.approx(3e-2 * rate)
            assert row["train_loss"] == pytest.approx(np.mean(losses[-5:]), rel=1e-4)
            assert row["valid_loss"] == pytest.approx(cross_entropy(logits, data.valid.y).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim.label_smoothing", 0.0),
        ("optim.clip", 0.05),
        ("optim.clip", 0.0),
        ("optim.weight_decay", 1.0),
        ("optim.lr", 2e-2),
        ("optim.warmup", 0.5),
        ("optim.final", 0.5),
        ("optim.beta1", 0.5),
        ("model.dropout", 0.2),
        ("augment", "none"),
        ("precision", "bf16"),
        ("batch", 8),
        ("seed", 1),
    ],
)
def test_a_field_of_the_spec_has_an_effect(
    path: str, value: Any, whole: tuple[Place, RunRecord], tmp_path: Path
) -> None:
    record = train(with_field(SPEC, path, value), place(tmp_path))
    assert record.status == "done" and record.weights_hash != whole[1].weights_hash


def test_weight_decay_spares_what_has_one_dimension() -> None:
    network = SPEC.model.build(SPEC.task.input, SPEC.task.target)
    decaying, others = adamw(network, Optimiser(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() > 1 for p in decaying["params"]) and all(p.dim() <= 1 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_the_same_spec_gives_the_same_run(whole: tuple[Place, RunRecord], tmp_path: Path) -> None:
    torch.manual_seed(1234)  # whatever was drawn before
    torch.rand(7)
    train(SPEC, place(tmp_path))
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [(Budget(epochs=3, evaluations=3), 12), (Budget(gmacs=0.03, evaluations=1), None), (Budget(seconds=0.2), None)],
    ids=["epochs", "gmacs", "seconds"],
)
def test_a_run_lasts_as_long_as_its_budget(budget: Budget, steps: int | None, tmp_path: Path) -> None:
    record = train(dataclasses.replace(PLAIN, budget=budget), place(tmp_path))
    assert record.status == "done"
    if budget.gmacs:
        steps = int(0.03 / (3 * record.cost["gmac"] * 16))
        assert steps > 3
    assert record.steps == (steps or record.steps) and record.steps > 0
    if budget.seconds:
        assert record.attempts[0]["seconds"] > 0.2


def test_a_run_of_no_steps_gives_parameters_and_gmacs_and_needs_no_data(tmp_path: Path) -> None:
    spec = RunSpec(model=LDNConfig(), task=Failing(), budget=Budget(steps=0))
    record = train(spec, place(tmp_path))
    assert (record.status, record.steps, record.metrics, record.weights_hash) == ("done", 0, {}, "")
    assert record.cost["params"] > 100_000 and record.cost["gmac"] > 0 and record.cost["by_operation"]["diffuse"] > 0
    assert {path.name for path in run_folder(tmp_path / "runs", spec.run_id).iterdir()} == {"lock", "record.json"}


def test_sequences_of_different_lengths_are_trained_as_they_are(tmp_path: Path) -> None:
    spec = RunSpec(model=RNNConfig(width=8, depth=1), task=Padded(), batch=8, budget=Budget(steps=6, evaluations=2))
    record = train(spec, place(tmp_path))
    assert record.status == "done" and record.metrics["test"]["accuracy"] > 0
    lengths = Padded().load(tmp_path).train.lengths
    assert lengths is not None
    assert Batches(Padded().load(tmp_path).train, spec).tokens == pytest.approx(8 * lengths.float().mean().item())


def test_bfloat16_trains_weights_that_stay_in_float32(whole: tuple[Place, RunRecord], tmp_path: Path) -> None:
    spec = with_field(SPEC, "precision", "bf16")
    record = train(spec, place(tmp_path))
    weights = torch.load(run_folder(tmp_path / "runs", spec.run_id) / "weights.pt", weights_only=True)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())
    loss, exact = record.metrics["train"]["loss"], whole[1].metrics["train"]["loss"]
    assert loss != exact and loss == pytest.approx(exact, rel=0.02)


def test_a_compiled_run_is_the_same_run_up_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any backend; generating machine code takes half a minute and is the backend's own affair."""
    train(PLAIN, place(tmp_path / "plain"))
    compiled, torch_compile = [], torch.compile

    def traced(network: Any) -> Any:
        compiled.append(network)
        return torch_compile(network, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    record = train(PLAIN, place(tmp_path / "compiled", compile=True))
    assert record.status == "done" and len(compiled) == 1
    rows = zip(curve(place(tmp_path / "plain"), PLAIN), curve(place(tmp_path / "compiled"), PLAIN), strict=True)
    for plain, other in rows:
        assert other == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_the_tenth_run_of_a_process_is_compiled_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, torch_compile = [0], torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs[0] += 1
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network: torch_compile(network, backend=backend))
    short = with_field(with_field(PLAIN, "budget", Budget(steps=1)), "protocol", "validation")
    for i in range(10):
        record = train(with_field(short, "model.width", 4 * (i + 1)), place(tmp_path, compile=True))
        assert (record.status, graphs[0] > i) == ("done", True)


def test_graphs_change_nothing_on_a_cpu_and_the_record_says_that_there_were_none(
    whole: tuple[Place, RunRecord], tmp_path: Path
) -> None:
    spec, where = with_field(SPEC, "optim.graphs", True), place(tmp_path)
    assert spec.run_id != SPEC.run_id
    with pytest.raises(Stopped):
        train(spec, where, stop=at(7))
    record = train(spec, where)
    found, expected = outcome(where, spec), outcome(whole[0], SPEC)
    assert found.pop("spec")["optim"].pop("graphs") and found.pop("run_id") == spec.run_id
    assert found["config"]["optim"].pop("graphs") and not expected["config"]["optim"].pop("graphs")
    del expected["spec"], expected["run_id"]
    for one in (found, expected):  # the predictions name their run
        del one["predictions"]["run_id"], one["files"]["predictions.npz"]
    assert found == expected
    assert [attempt["graphs"] for attempt in record.attempts] == [False, False]


def test_progress_tells_loss_accuracy_speed_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies.train, "REPORT_SECONDS", 0.0)
    reports: list[Progress] = []
    train(SPEC, place(tmp_path), reports.append)
    told = list({progress.step: progress for progress in reports}.values())  # an evaluation is reported once more
    assert [progress.step for progress in told] == list(range(1, 21))
    assert [progress.done for progress in told] == pytest.approx([step / 20 for step in range(1, 21)])
    assert math.isnan(told[3].loss) and math.isnan(told[3].accuracy)  # before the first evaluation
    row = curve(place(tmp_path), SPEC)[1]
    assert (told[9].loss, told[9].accuracy) == (row["train_loss"], row["valid_accuracy"])
    assert all(progress.tokens_per_second > 0 for progress in told)
    assert all(progress.seconds_left > 0 for progress in told[:-1]) and told[-1].seconds_left == 0


# what is kept


def test_the_record_tells_what_ran_where_and_on_which_data(whole: tuple[Place, RunRecord]) -> None:
    where, record = whole
    assert record == read_record(where.runs, SPEC.run_id)
    assert record.data == SPEC.task.load(where.data).provenance
    (attempt,) = record.attempts
    assert attempt["threads"] == 1 and attempt["first_step"] == 0 and attempt["seconds"] > 0
    assert attempt.keys() >= {"node", "device", "commit", "dirty", "torch", "python", "started"}
    names = {path.name for path in run_folder(where.runs, SPEC.run_id).iterdir()}
    assert names == {"lock", "record.json", "curve.csv", "weights.pt", "predictions.npz"}


def test_the_weights_kept_are_the_best_on_validation_and_the_metrics_are_theirs(tmp_path: Path) -> None:
    spec = dataclasses.replace(PLAIN, optim=Optimiser(lr=5e-2), budget=Budget(steps=60, evaluations=20))
    where = place(tmp_path)
    record = train(spec, where)
    best = max(curve(where, spec), key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert record.best_step == best["step"] < record.steps == 60  # or this shows nothing
    assert record.metrics["valid"] == {"loss": best["valid_loss"], "accuracy": best["valid_accuracy"]}

    weights = torch.load(run_folder(where.runs, spec.run_id) / "weights.pt", weights_only=True)
    assert checkpoint.weights_hash(weights) == record.weights_hash
    network = spec.model.build(spec.task.input, spec.task.target)
    network.load_state_dict(weights)
    data = spec.task.load(where.data)
    off = torch.autocast("cpu", enabled=False)
    assert evaluate(network, data.valid, spec, off)[0] == record.metrics["valid"]
    metrics, predicted = evaluate(network, data.test, spec, off)
    assert metrics == record.metrics["test"]
    with np.load(run_folder(where.runs, spec.run_id) / "predictions.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["predicted"], predicted) and np.array_equal(stored["label"], data.test.y)
        assert (stored["predicted"] == stored["label"]).mean() == record.metrics["test"]["accuracy"]


def test_test_is_touched_once_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []

    def watched(network: Any, part: Split, *others: Any) -> Any:
        touched.append(len(part))
        return evaluate(network, part, *others)

    monkeypatch.setattr(studies.train, "evaluate", watched)
    train(SPEC, place(tmp_path))
    assert touched == [32, 32, 32, 32, 48]


def test_evaluation_covers_the_incomplete_last_batch() -> None:
    network = SPEC.model.build(SPEC.task.input, SPEC.task.target)  # batches of 32 over 48 examples
    test = SPEC.task.load(Path("nowhere")).test
    metrics, predicted = evaluate(network, test, SPEC, torch.autocast("cpu", enabled=False))
    with torch.no_grad():
        logits = network(test.x)
    assert metrics["loss"] == pytest.approx(cross_entropy(logits, test.y).item(), rel=1e-5)
    assert np.array_equal(predicted, logits.argmax(-1))
    assert metrics["accuracy"] == (logits.argmax(-1) == test.y).double().mean().item()


def test_a_run_that_is_done_is_not_run_again(whole: tuple[Place, RunRecord]) -> None:
    where, record = whole
    folder = run_folder(where.runs, SPEC.run_id)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train(SPEC, where, stop=lambda: pytest.fail("it trains")) == record
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_of_two_who_train_the_same_run_at_once_one_waits_for_the_other(tmp_path: Path) -> None:
    records: list[RunRecord] = []
    threads = [threading.Thread(target=lambda: records.append(train(SPEC, place(tmp_path)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records[0] == records[1] and len(records[0].attempts) == 1


def test_the_hash_of_weights_sees_names_shapes_types_and_every_bit() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int64)}
    assert checkpoint.weights_hash(one) == checkpoint.weights_hash(dict(reversed(one.items())))
    nudged = torch.nextafter(one["a"], torch.tensor(9.0))
    others = [
        {"a": nudged, "b": one["b"]},
        {"c": one["a"], "b": one["b"]},
        {"a": one["a"][None], "b": one["b"]},
        {"a": one["a"], "b": one["b"].int()},
        {"a": one["a"].bfloat16(), "b": one["b"]},
        {"a": one["a"]},
    ]
    assert len({checkpoint.weights_hash(weights) for weights in [one, *others]}) == 7


# stopped anywhere, and run again


@pytest.mark.parametrize("steps", [(0,), (3,), (5,), (19,), (1, 3, 0, 7)], ids=str)
def test_a_run_stopped_on_request_ends_as_if_it_had_not_been(
    steps: tuple[int, ...], whole: tuple[Place, RunRecord], tmp_path: Path
) -> None:
    where, reached = place(tmp_path), 0
    for step in steps:
        reached += step
        with pytest.raises(Stopped, match=f"run {SPEC.run_id} was stopped at step {reached}$"):
            train(SPEC, where, stop=at(step))
        assert read_record(where.runs, SPEC.run_id) is None
    record = train(SPEC, where)
    assert outcome(where, SPEC) == outcome(whole[0], SPEC)
    starts = [0, *itertools.accumulate(steps)]
    assert [attempt["first_step"] for attempt in record.attempts] == starts
    names = {path.name for path in run_folder(where.runs, SPEC.run_id).iterdir()}
    assert names == {"lock", "record.json", "curve.csv", "weights.pt", "predictions.npz"}


# a process that forks one child after another, each of which trains until it is killed; torch is imported once
KILLER = """
import os, random, signal, sys, time
from pathlib import Path

import sklearn.datasets
import studies.train
from tests.test_train import LONGER

studies.train.CHECKPOINT_SECONDS = 0.0
place = studies.train.Place(Path(sys.argv[1]) / "runs", Path(sys.argv[1]) / "data")
path = place.runs / LONGER.run_id / "checkpoint.pt"
kills = 0
for _ in range(4):
    child = os.fork()
    if not child:
        studies.train.train(LONGER, place)
        os._exit(0)
    forked = time.time_ns()
    while not (path.exists() and path.stat().st_mtime_ns > forked) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.04))
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        break  # it came to its end before
    os.waitpid(child, 0)
    kills += 1
print(kills)
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    record = train(LONGER, place(tmp_path))
    train(LONGER, place(tmp_path / "whole"))
    assert outcome(place(tmp_path), LONGER) == outcome(place(tmp_path / "whole"), LONGER)
    starts = [attempt["first_step"] for attempt in record.attempts if "first_step" in attempt]
    assert kills >= 2 and len(record.attempts) == kills + 1
    assert starts == sorted(starts) and 0 < starts[-1] <= 60


def test_a_run_on_a_full_disk_loses_nothing(
    whole: tuple[Place, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = checkpoint.save, itertools.count()

    def full(*arguments: Any) -> None:
        if next(saved) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(studies.train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(SPEC, place(tmp_path))
    assert read_record(tmp_path / "runs", SPEC.run_id) is None
    record = train(SPEC, place(tmp_path))
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)
    assert [attempt["first_step"] for attempt in record.attempts] == [0, 7]


def test_an_interrupt_leaves_no_record_and_is_passed_on(whole: tuple[Place, RunRecord], tmp_path: Path) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SPEC, place(tmp_path), stop=interrupt)
    assert read_record(tmp_path / "runs", SPEC.run_id) is None
    assert len(train(SPEC, place(tmp_path)).attempts) == 2
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)


# what goes wrong becomes a record


@pytest.mark.parametrize(("evaluations", "step"), [(8, 5), (1, 20)])
def test_divergence_is_a_record_that_says_when(evaluations: int, step: int, tmp_path: Path) -> None:
    budget = Budget(steps=40, evaluations=evaluations)
    spec = dataclasses.replace(PLAIN, optim=Optimiser(lr=1e6, warmup=0.0), budget=budget)
    record = train(spec, place(tmp_path))
    assert (record.status, record.reason) == ("diverged", f"the loss is no longer finite by step {step}")
    assert record.cost["params"] > 0 and record.metrics == {} and record.weights_hash == "" and record.traceback == ""
    assert record == read_record(tmp_path / "runs", spec.run_id)
    assert not (run_folder(tmp_path / "runs", spec.run_id) / "checkpoint.pt").exists()


def test_a_crash_is_a_record_with_its_reason_and_traceback(tmp_path: Path) -> None:
    spec = RunSpec(model=LDNConfig(), task=Failing(), budget=Budget(steps=3))
    record = train(spec, place(tmp_path))
    assert (record.status, record.reason) == ("failed", "RuntimeError: the data are on fire and so is the second line")
    assert "in load" in record.traceback and "second line" in record.traceback
    assert record.cost["gmac"] > 0 and record == read_record(tmp_path / "runs", spec.run_id)


def test_a_model_that_does_not_fit_its_task_is_a_record(tmp_path: Path) -> None:
    record = train(RunSpec(model=LDNConfig(grid="2d"), task=Padded()), place(tmp_path))
    assert record.status == "failed" and record.reason.startswith("ValueError: grid='2d' needs a task whose tokens")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.full((16, 9), 3)}, "has ids from 3 to 3; they must be from 0 to 2"),
        ({"x": torch.full((16, 9), 3, dtype=torch.uint8)}, "has ids from 3 to 3; they must be from 0 to 2"),
        ({"x": torch.full((16, 9), 60_000).to(torch.uint16)}, "has ids from 60000 to 60000;"),
        ({"x": torch.zeros(15, 9)}, "has 15 inputs, 16 labels, 16 lengths; it needs as many of each"),
        ({"x": torch.full((16, 9), math.nan)}, "has 144 values that are not finite"),
        ({"y": torch.full((16,), 2)}, "has torch.int64 labels from 2 to 2; they must be int64, from 0 to 1"),
        ({"y": torch.zeros(16)}, "has torch.float32 labels"),
        ({"lengths": torch.full((16,), 10)}, "has lengths from 10 to 10; they must be from 1 to 9"),
        ({"lengths": torch.zeros(16, dtype=torch.long)}, "has lengths from 0 to 0"),
    ],
)
def test_data_that_are_not_what_the_task_says_are_refused(
    wrong: dict[str, Tensor], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Padded().load(tmp_path)
    other = dataclasses.replace(data, valid=dataclasses.replace(data.valid, **wrong))
    monkeypatch.setattr(Padded, "load", lambda task, folder: other)
    record = train(RunSpec(model=LDNConfig(width=8), task=Padded(), budget=Budget(steps=1)), place(tmp_path))
    assert record.status == "failed"
    assert record.reason.startswith(f"ValueError: the valid split of task 'padded' {sentence}")


def test_a_run_that_crashed_goes_on_from_its_checkpoint_when_it_is_tried_again(
    whole: tuple[Place, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def unlucky(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("a cosmic ray")
        return evaluate(*arguments)

    monkeypatch.setattr(studies.train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(studies.train, "evaluate", unlucky)
    assert train(SPEC, place(tmp_path)).reason == "RuntimeError: a cosmic ray"
    record = train(SPEC, place(tmp_path))
    assert [attempt["first_step"] for attempt in record.attempts] == [0, 14]
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)


# files that cannot be trusted


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "other", "pickle", "weights"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence_and_left_alone(
    damage: str, whole: tuple[Place, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        train(SPEC, place(tmp_path), stop=at(7))
    path = run_folder(tmp_path / "runs", SPEC.run_id) / "checkpoint.pt"
    content = path.read_bytes()
    if damage in ("other", "weights"):
        torch.save({"network": Bomb()} if damage == "weights" else {"a": 1}, path)
    else:
        damaged = {"empty": b"", "half": content[: len(content) // 2], "noise": b"\x07" * 999}
        path.write_bytes({**damaged, "pickle": pickle.dumps(Bomb(), 2)}[damage])
    left = path.read_bytes()

    record = train(SPEC, place(tmp_path))
    assert record.status == "failed" and path.read_bytes() == left and not Path("exploded").exists()
    assert record.reason.startswith(f"ValueError: {path} cannot be used (")
    assert record.reason.endswith("; delete it to start the run anew") and len(record.reason) < len(str(path)) + 160
    path.unlink()
    train(SPEC, place(tmp_path))
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_torn_checkpoint_is_skipped_for_the_one_before(
    damage: str, whole: tuple[Place, RunRecord], tmp_path: Path
) -> None:
    for step in (7, 3):
        with pytest.raises(Stopped):
            train(SPEC, place(tmp_path), stop=at(step))
    folder = run_folder(tmp_path / "runs", SPEC.run_id)
    path = folder / "checkpoint.pt"
    assert {file.name for file in folder.glob("*.pt")} == {"checkpoint.pt", "checkpoint.former.pt"}
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:999])
    else:  # killed between two renames
        path.rename(folder / "checkpoint.new.pt")
    record = train(SPEC, place(tmp_path))
    assert [attempt["first_step"] for attempt in record.attempts] == [0, 7, 7]
    assert outcome(place(tmp_path), SPEC) == outcome(whole[0], SPEC)
    assert not list(folder.glob("checkpoint*"))


def test_a_checkpoint_holds_nothing_but_numbers(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(SPEC, place(tmp_path), stop=at(7))
    path = run_folder(tmp_path / "runs", SPEC.run_id) / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"run_id", "data", "network", "optimiser", "state"} and content["state"]["step"] == 7
    assert len(content["state"]["curve"]) == 1 and content["state"]["best_step"] == 5


def test_a_corrupt_record_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "runs", SPEC.run_id) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"run_id": "')
    with pytest.raises(ValueError, match=r"record.json is not valid JSON .*; delete it to run this run again"):
        train(SPEC, place(tmp_path))
    assert path.read_text() == '{"run_id": "'


# what a model costs


def test_a_model_with_an_operation_without_a_count_is_trained_and_the_record_names_it(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, model=Distances(), augment="none", budget=Budget(steps=2, evaluations=1))
    record = train(spec, place(tmp_path))
    assert record.status == "done" and record.cost["uncounted"] == ["aten::cdist"]


def test_a_budget_in_multiply_adds_needs_all_of_them(tmp_path: Path) -> None:
    record = train(
        dataclasses.replace(SPEC, model=Distances(), augment="none", budget=Budget(gmacs=1.0)), place(tmp_path)
    )
    assert record.status == "failed" and "a budget in gmacs needs all multiply-adds" in record.reason


def test_matching_by_multiply_adds_needs_all_of_them() -> None:
    reference = dataclasses.replace(SPEC, model=Distances(), augment="none")
    with pytest.raises(ValueError, match=r'matching distances by gmac needs all .*: aten::cdist; use match="params"'):
        matched_width(SPEC, reference, "gmac")
