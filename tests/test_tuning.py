"""Does a search give every arm the same, never look at test, and lose nothing, whatever is killed on the way?"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from baselines import LinearConfig
from ldn import LDNConfig
from results import tuning as told
from results.figures import encode
from results.gather import gather, manifest_of
from results.record import (
    RunRecord,
    TuningRecord,
    read_manifest,
    read_record,
    read_tuning,
    run_folder,
    study_folder,
    write_record,
    write_tuning,
)
from results.section import Gathered, Section
from results.summary import summarise
from studies import catalogue, train
from studies.drive import drive, tune
from studies.executors import Inline, Local
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tasks.image_files import FASHION_MNIST_MD5
from studies.tasks.images import FashionMNIST
from studies.train import Place
from studies.tuning import Tuning, freeze, guard, outcome, searched, tuned_file
from tests.watchers import Silent

ROOT = Path(__file__).resolve().parent.parent

LDN = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=6, evaluations=3),
)
LINEAR = with_field(LDN, "model", LinearConfig())
NO_DATA = with_field(LDN, "task", FashionMNIST())  # its files are nowhere here
SPACE = {"optim.lr": (1e-4, 1e-1, "log"), "model.steps": [0, 2]}


def study(trials: int = 3, space: Any = SPACE, **changed: Any) -> Study:
    options = {n: changed.pop(n) for n in ("objectives", "pruner") if n in changed}
    options["seeds"] = changed.pop("tuning_seeds", (1000,))
    asked = {"question": "Why?", "reference": "ldn", "arms": {"ldn": LDN, "linear": LINEAR}, "seeds": (0, 1)}
    return Study(**{**asked, "tuning": Tuning(space=space, trials=trials, **options), **changed})  # type: ignore[arg-type]


STUDY = study()


class Noting(Inline):
    """Trains in this process and notes what."""

    def __init__(self, folder: Path, stop_after: int = 10**9) -> None:
        super().__init__(Place(folder / "runs", folder / "data"), lambda: len(self.submitted) > stop_after)
        self.submitted: list[str] = []

    def submit(self, spec: RunSpec) -> None:
        self.submitted.append(spec.run_id)
        super().submit(spec)


def call(
    folder: Path, asked: Study = STUDY, stop_after: int = 10**9, retry: bool = False
) -> tuple[TuningRecord, list[str]]:
    """Tune inline; what was found, and which runs were started."""
    executor = Noting(folder, stop_after)
    source = str(folder / "s.py")
    _, found = tune(
        asked, "s", source, folder / "runs", executor, Silent(), lambda: len(executor.submitted) >= stop_after, retry
    )
    return found, executor.submitted


def record_of(folder: Path, run_id: str) -> RunRecord:
    record = read_record(folder / "runs", run_id)
    assert record is not None
    return record


def listed(folder: Path) -> TuningRecord:
    found = read_tuning(study_folder(folder / "runs", "s") / "trials.json")
    assert found is not None
    return found


def timeless(found: TuningRecord) -> Any:
    """All of it but for where it lay, and how long runs took."""
    plain = dataclasses.asdict(found)
    for trial in (*plain["history"], *plain["arms"].values()):
        trial.get("metrics", {}).pop("train.seconds", None)
    return {k: v for k, v in plain.items() if k not in ("source", "commit", "dirty")}


def journal(folder: Path) -> dict[str, list[FrozenTrial]]:
    storage = JournalStorage(JournalFileBackend(str(study_folder(folder / "runs", "s") / "tuning.log")))
    return {s.study_name: storage.get_all_trials(s._study_id) for s in storage.get_all_studies()}


def wait_for(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STUDY, tuned without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    found, submitted = call(folder)
    assert found.left == 0 and len(submitted) == 6 and found == listed(folder)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """What lies on disk after STUDY was tuned."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    path = study_folder(tmp_path / "runs", "s") / "trials.json"
    write_tuning(path, dataclasses.replace(listed(tmp_path), source=str(tmp_path / "s.py")))
    return tmp_path


# what is declared


@pytest.mark.parametrize("metric", ["test.accuracy", "test.loss", "test.f1"])
def test_settings_cannot_be_chosen_by_test(metric: str) -> None:
    wanted = f"{metric} cannot be an objective: settings are chosen on validation, test is only reported"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        guard(metric)
    for objectives in ((metric,), ("valid.accuracy", metric)):
        with pytest.raises(ValueError, match=re.escape(wanted)):
            Tuning(space=SPACE, trials=1, objectives=objectives)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"optim.lr": (1, 2)}}, "must be (low, high"),
        ({"space": {"optim.lr": 0.1}}, "must be (low, high"),
        ({"space": {"optim.lr": "log"}}, "must be (low, high"),
        ({"space": ["optim.lr"]}, "Tuning.space must be a dict, not ['optim.lr']"),
        ({"seeds": 1000}, "Tuning.seeds must be a list, not 1000"),
        ({"seeds": (-1,)}, "Tuning.seeds[0] must be at least 0, not -1"),
        ({"objectives": "valid.loss"}, "Tuning.objectives must be a list, not 'valid.loss'"),
        ({"space": {"optim.lr": (2.0, 1.0, "log")}}, "with low < high"),
        ({"space": {"optim.lr": (0.0, 1.0, "log")}}, "must begin above 0"),
        ({"space": {"optim.lr": [[1]]}}, "must list numbers"),
        ({"trials": 0}, "at least 1"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"objectives": ("valid.f1",)}, "there is no objective 'valid.f1'; known: valid.accuracy"),
        ({"objectives": ("cost.gmac",)}, "the first of Tuning.objectives must be valid.accuracy or valid.loss"),
        ({"objectives": ("valid.loss", "valid.loss")}, "must be different ones"),
        ({"pruner": "mean"}, "must be one of 'none', 'median', 'hyperband'"),
        ({"pruner": "median", "objectives": ("valid.loss", "cost.gmac")}, "pruning compares by one objective"),
    ],
)
def test_a_tuning_that_makes_no_sense_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Tuning(**{"space": SPACE, "trials": 1, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tuning_seeds": (1, 7)}, "tuning and evaluation share the seeds [1]"),
        ({"space": {"optim.rate": [1]}}, "Optimiser has no field 'rate'; known fields: lr"),
        ({"space": {"optim.lr": (-1.0, 1.0, "linear")}}, "Optimiser.lr must be at least 0"),
        ({"space": {"task.gap": [1, 2]}}, "task.gap cannot be tuned: trials of different task do not compare"),
        ({"space": {"seed": [1, 2]}}, "seed cannot be tuned"),
        ({"factors": {"model.steps": [0]}}, "model.steps is varied by the study"),
        ({"space": {"model.width": [8, 16]}, "match": "params"}, "cannot be tuned where widths are matched"),
    ],
)
def test_a_tuning_that_does_not_fit_its_study_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        study(**changed)


def test_a_study_without_a_tuning_cannot_be_tuned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="study s declares no tuning"):
        call(tmp_path, study(tuning=None))


def test_a_field_without_effect_in_an_arm_is_not_searched_there() -> None:
    assert list(searched(LINEAR, SPACE)) == ["optim.lr"]
    off = with_field(LDN, "model.steps", 0)
    assert list(searched(off, {"model.kernel": ["fixed"], "optim.lr": [1.0]})) == ["optim.lr"]


def test_the_main_study_ships_a_tuning_of_more_than_one_field() -> None:
    asked = catalogue.declared(catalogue.source("axes"))
    assert asked.tuning is not None and len(asked.tuning.space) > 1 and not set(asked.tuning.seeds) & set(asked.seeds)


# what a trial is


def test_every_arm_has_as_many_trials_and_none_looks_at_test(whole: Path) -> None:
    found = listed(whole)
    assert {label: arm["counts"] for label, arm in found.arms.items()} == {"ldn": {"done": 3}, "linear": {"done": 3}}
    assert {label: arm["left_out"] for label, arm in found.arms.items()} == {"ldn": [], "linear": ["model.steps"]}
    for trial in found.history:
        (run_id,) = trial["run_ids"]
        record = record_of(whole, run_id)
        assert record.metrics.keys() == {"train", "valid"} and record.spec["protocol"] == "validation"
        assert record.spec["seed"] == 1000
        assert trial["metrics"]["valid.accuracy"] == record.metrics["valid"]["accuracy"]
        folder = run_folder(whole / "runs", run_id)
        assert not (folder / "predictions.npz").exists() and (folder / "weights.pt").exists()


def test_a_run_that_tests_is_not_the_one_that_validated() -> None:
    blind = with_field(LDN, "protocol", "validation")
    assert blind.run_id != LDN.run_id


def test_the_first_trial_is_the_arm_as_declared_and_the_next_draws_are_the_same_for_all(whole: Path) -> None:
    by_arm = {label: [t["values"] for t in listed(whole).history if t["arm"] == label] for label in ("ldn", "linear")}
    assert by_arm["ldn"][0] == {"optim.lr": 1e-3, "model.steps": 2} and by_arm["linear"][0] == {"optim.lr": 1e-3}
    assert by_arm["ldn"][1]["optim.lr"] == by_arm["linear"][1]["optim.lr"] != 1e-3


def test_the_winner_is_the_best_on_validation_and_among_equals_the_one_of_lower_loss() -> None:
    def trial(number: int, accuracy: float, loss: float, status: str = "done") -> dict[str, Any]:
        metrics = {"valid.accuracy": accuracy, "valid.loss": loss}
        return {"trial": number, "values": {}, "metrics": metrics, "status": status, "run_ids": [f"{number}"]}

    trials = [trial(0, 0.8, 1.0), trial(1, 0.9, 1.2), trial(2, 0.9, 1.1), trial(3, 0.95, 1.0, "pruned")]
    assert outcome(trials, ["valid.accuracy"])["trial"] == 2
    assert outcome(trials, ["valid.loss"])["trial"] == 0
    assert "trial" not in outcome(trials[3:], ["valid.accuracy"])


def test_of_several_seeds_a_trial_is_the_mean(tmp_path: Path) -> None:
    found, submitted = call(tmp_path, study(1, arms={"ldn": LDN}, tuning_seeds=(7, 8)))
    (trial,) = found.history
    assert submitted == trial["run_ids"] and len(submitted) == 2
    values = [record_of(tmp_path, run_id).metrics["valid"]["accuracy"] for run_id in submitted]
    assert trial["metrics"]["valid.accuracy"] == pytest.approx(np.mean(values))
    (stored,) = journal(tmp_path)["s: ldn"]
    assert stored.value == trial["metrics"]["valid.accuracy"] and list(stored.intermediate_values) == [1, 2, 3]


def test_a_configuration_drawn_again_is_not_run_again(tmp_path: Path) -> None:
    arms = {"ldn": LDN, "the same": dataclasses.replace(LDN)}
    found, submitted = call(tmp_path, study(4, {"model.steps": [0, 2]}, arms=arms))
    assert len(submitted) == len(set(submitted)) == 2
    assert {arm["distinct"] for arm in found.arms.values()} == {2} and len(found.history) == 8
    assert all(trial["status"] == "done" for trial in found.history)


def test_an_arm_that_the_space_does_not_concern_has_one_trial(tmp_path: Path) -> None:
    found, _ = call(tmp_path, study(2, {"model.steps": [0, 2]}))
    assert {label: arm["planned"] for label, arm in found.arms.items()} == {"ldn": 2, "linear": 1}
    assert found.left == 0 and found.arms["linear"]["values"] == {}


def test_values_that_do_not_go_together_fail_and_stop_nothing(tmp_path: Path) -> None:
    space = {"model.width": [8, 10], "model.heads": [2, 5]}  # 8 has no 5 heads, though 10 and 2 heads are fine
    found, _ = call(tmp_path, study(8, space, arms={"ldn": LDN}))
    assert found.arms["ldn"]["counts"].keys() == {"done", "failed"} and found.left == 0
    failed = next(trial for trial in found.history if trial["status"] == "failed")
    assert failed["values"] == {"model.width": 8, "model.heads": 5} and "heads" in failed["reason"]


# pruning


def test_a_run_whose_folder_says_prune_ends_at_the_next_evaluation_and_goes_on_when_called_again(
    tmp_path: Path,
) -> None:
    spec, place = with_field(LDN, "protocol", "validation"), Place(tmp_path / "runs", tmp_path)
    folder = run_folder(place.runs, spec.run_id)
    folder.mkdir(parents=True)
    (folder / "prune").touch()
    pruned = train.train(spec, place)
    assert (pruned.status, pruned.steps, pruned.reason) == ("pruned", 2, "pruned at step 2, 33% of its budget")
    assert pruned.metrics.keys() == {"train", "valid"}
    assert (folder / "checkpoint.pt").exists() and not (folder / "prune").exists()
    after = train.train(spec, place)
    whole = train.train(spec, Place(tmp_path / "whole", tmp_path))
    assert after.status == "done" and not (folder / "checkpoint.pt").exists()
    assert (after.weights_hash, after.metrics, after.steps) == (whole.weights_hash, whole.metrics, whole.steps)
    assert [attempt["first_step"] for attempt in after.attempts] == [0, 2]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruning_saves_steps(pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "REPORT_SECONDS", 0.0)  # in this process reports are when the driver has a look
    long = with_field(LINEAR, "budget", Budget(steps=30, evaluations=10))
    asked = study(10, {"optim.lr": (1e-6, 1e-1, "log")}, arms={"ldn": long}, pruner=pruner)
    found, submitted = call(tmp_path, asked)
    assert len(submitted) == 10 and found.arms["ldn"]["counts"].keys() == {"done", "pruned"}
    pruned = [trial for trial in found.history if trial["status"] == "pruned"]
    steps = [record_of(tmp_path, trial["run_ids"][0]).steps for trial in pruned]
    assert all(0 < step < 30 for step in steps)
    assert sum(record_of(tmp_path, i).steps for i in submitted) == 300 - sum(30 - step for step in steps)
    stored = journal(tmp_path)["s: ldn"]
    assert [t.number for t in stored if t.state == TrialState.PRUNED] == [trial["trial"] for trial in pruned]
    for trial, step in zip(pruned, steps, strict=True):
        assert stored[trial["trial"]].last_step == step // 3
    assert not list((tmp_path / "runs").glob("*/prune"))
    assert call(tmp_path, asked) == (listed(tmp_path), [])


def test_a_diverged_trial_counts_and_the_search_hears_of_it(tmp_path: Path) -> None:
    wild = with_field(with_field(LDN, "optim.warmup", 0.0), "optim.clip", 0.0)
    found, _ = call(tmp_path, study(2, {"optim.lr": (1e7, 1e8, "log")}, arms={"ldn": wild}))
    assert found.arms["ldn"]["counts"] == {"diverged": 2} and found.left == 0
    assert {trial.state for trial in journal(tmp_path)["s: ldn"]} == {TrialState.PRUNED}
    with pytest.raises(ValueError, match="no trial of 'ldn' came to its end"):
        freeze(found, tmp_path / "s.py")


# called again


def test_what_is_there_is_not_run_again_and_more_trials_go_on_from_there(copied: Path) -> None:
    found, submitted = call(copied)
    assert submitted == [] and timeless(found) == timeless(listed(copied))
    more, submitted = call(copied, study(4))
    assert len(submitted) == 2 and len(more.history) == 8
    assert timeless(more)["history"][:3] == timeless(found)["history"][:3]


def test_a_tuning_stopped_anywhere_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    for cut in (1, 1, 2):
        found, _ = call(tmp_path, stop_after=cut)
        assert found.left > 0
    found, _ = call(tmp_path)
    assert timeless(found) == timeless(listed(whole))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[:-20],
    "noise": lambda content: b"\0 noise\n" * 9,
    "a digit of a parameter": lambda content: content.replace(
        b'"param_value_internal":0.0', b'"param_value_internal":0.1', 1
    ),
    "a digit of a result": lambda content: content.replace(b'"values":[0.', b'"values":[0.9', 1),
    "a digit of a result, without checksums": lambda content: re.sub(
        rb',"checksum":"[0-9a-f]*"', b"", content.replace(b'"values":[0.', b'"values":[0.9', 1)
    ),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "deleted"])
def test_a_lost_or_damaged_journal_is_rebuilt_from_the_list_and_the_records(
    damage: str, whole: Path, copied: Path
) -> None:
    path = study_folder(copied / "runs", "s") / "tuning.log"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](content))
        assert path.read_bytes() != content
    before = journal(whole)
    executor = Noting(copied)
    tally, found = tune(STUDY, "s", str(copied / "s.py"), copied / "runs", executor, Silent())
    assert executor.submitted == [] and timeless(found) == timeless(listed(whole))
    for name, trials in journal(copied).items():
        assert [(t.state, t.params, t.value, t.intermediate_values) for t in trials] == [
            (t.state, t.params, t.value, t.intermediate_values) for t in before[name]
        ]
    aside = path.with_suffix(".damaged-0")
    assert aside.exists() == ("digit" in damage or damage == "noise") == any(str(aside) in note for note in tally.notes)


def test_a_list_of_another_machine_is_kept_and_named(copied: Path) -> None:
    path = study_folder(copied / "runs", "s") / "trials.json"
    other = listed(copied)
    other.history[1]["run_ids"], other.history[1]["values"]["optim.lr"] = ["0" * 16], 0.0123
    write_tuning(path, other)
    tally, found = tune(STUDY, "s", str(copied / "s.py"), copied / "runs", Noting(copied), Silent())
    (note,) = tally.notes
    assert "has 1 trials that the journal beside it does not have" in note and found.history[1] != other.history[1]
    kept = read_tuning(path.with_name("trials.other-0.json"))
    assert kept is not None and kept.history == other.history


def test_trials_that_were_trained_with_other_source_are_named(copied: Path) -> None:
    run_id = listed(copied).history[0]["run_ids"][0]
    record = record_of(copied, run_id)
    write_record(copied / "runs", dataclasses.replace(record, sources=record.sources | {"model": "ldn.model@0"}))
    tally, _ = tune(STUDY, "s", str(copied / "s.py"), copied / "runs", Noting(copied), Silent())
    (note,) = tally.notes
    assert note.startswith("runs of former trials trained with other source of model than today's: 1; ")
    assert note.endswith(run_id)


def test_a_trial_whose_multiply_adds_are_a_lower_bound_fails_where_they_are_an_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = study(trials=1, arms={"ldn": LDN}, objectives=("valid.loss", "cost.gmac"))
    counted = train.measure
    monkeypatch.setattr(train, "measure", lambda *what: dataclasses.replace(counted(*what), uncounted=["aten::cdist"]))
    for _ in range(2):  # when the trial ends, and when it is read again
        found, _ = call(tmp_path, asked)
        assert found.arms["ldn"]["counts"] == {"failed": 1} and "a lower bound" in found.history[0]["reason"]


def test_a_trial_whose_record_is_deleted_is_run_again_under_a_new_number(whole: Path, copied: Path) -> None:
    (run_id,) = listed(copied).history[1]["run_ids"]
    (run_folder(copied / "runs", run_id) / "record.json").unlink()
    found, submitted = call(copied)
    assert submitted == [run_id] and found.left == 0
    assert sorted(t["run_ids"] for t in found.history) == sorted(t["run_ids"] for t in listed(whole).history)
    assert call(copied)[1] == []


def test_what_failed_is_tried_again_on_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = study(arms={"ldn": LDN})
    with monkeypatch.context() as broken:
        broken.setattr(LDNConfig, "build", lambda *_: 1 / 0)
        found, submitted = call(tmp_path, asked)
        assert found.arms["ldn"]["counts"] == {"failed": 3} and "ZeroDivision" in found.history[0]["reason"]
    assert call(tmp_path, asked)[1] == []
    again, retried = call(tmp_path, asked, retry=True)
    assert retried == submitted and again.arms["ldn"]["counts"] == {"done": 3} and again.left == 0
    assert call(tmp_path, asked, retry=True)[1] == []


def test_an_arm_that_has_changed_is_tuned_anew_and_the_others_are_not(copied: Path) -> None:
    changed = study(arms={"ldn": LDN, "linear": with_field(LINEAR, "batch", 8)})
    executor = Noting(copied)
    tally, found = tune(changed, "s", str(copied / "s.py"), copied / "runs", executor, Silent())
    assert tally.notes == ["linear: what is asked has changed, so its tuning begins anew"]
    assert len(executor.submitted) == 3 and len(found.history) == 6
    (copied / "s.py").touch()
    with pytest.raises(ValueError, match=r"trials.json belongs to .*s\.py, not to other\.py: rename the file, "):
        tune(changed, "s", "other.py", copied / "runs", executor, Silent())
    (copied / "s.py").unlink()
    assert tune(changed, "s", "other.py", copied / "runs", executor, Silent())[0].found == 6  # the file was moved


# killed


@pytest.mark.slow
def test_a_killed_worker_s_trial_is_run_again_and_no_other_is(tmp_path: Path) -> None:
    long = with_field(LINEAR, "budget", Budget(steps=300, evaluations=3))
    asked = study(4, {"optim.lr": (1e-4, 1e-1, "log")}, arms={"ldn": long, "linear": LINEAR})
    pool = Local([Place(tmp_path / "runs", tmp_path)] * 2)
    killed: list[str] = []

    def kill() -> None:
        def training() -> list[Any]:
            begun = [slot for slot in pool.slots if slot.run_id is not None]
            return [s for s in begun if (run_folder(tmp_path / "runs", str(s.run_id)) / "attempts.json").exists()]

        wait_for(lambda: bool(training()))
        (slot, *_) = training()
        killed.append(str(slot.run_id))
        os.kill(slot.process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        tally, found = tune(asked, "s", "s.py", tmp_path / "runs", pool, Silent())
    finally:
        pool.close()
        thread.join()
    assert (tally.done, tally.failed, found.left) == (8, 0, 0) and len(killed) == 1
    assert {label: arm["counts"] for label, arm in found.arms.items()} == {"ldn": {"done": 4}, "linear": {"done": 4}}
    runs = [run_id for trial in found.history for run_id in trial["run_ids"]]
    assert len(set(runs)) == 8 == sum(len(trials) for trials in journal(tmp_path).values())
    tries = {run_id: len(record_of(tmp_path, run_id).attempts) for run_id in runs}
    assert tries == {run_id: 1 + (run_id in killed) for run_id in runs}


# the winners


FILE = """
from tests.test_tuning import study

STUDY = study()
"""


@pytest.fixture
def shell(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`python -m studies ...` in this process, where s.py holds STUDY and its tuning is done."""
    monkeypatch.chdir(copied)
    monkeypatch.setenv("COLUMNS", "250")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (copied / "s.py").write_text(FILE)
    from studies.__main__ import app

    yield lambda *arguments: CliRunner().invoke(app, arguments)
    del sys.modules["studies.__main__"]  # other tests run it as a program
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_command_writes_the_winners_and_run_uses_them(shell: Callable[..., Any], copied: Path) -> None:
    assert "not tuned yet: `python -m studies tune s.py`" in shell("show", "s.py").output
    tuned = shell("tune", "s.py", "--on", "inline")
    assert tuned.exit_code == 0 and "Written to s.tuned.json; `python -m studies run s.py` uses it" in tuned.output
    found = read_tuning(copied / "s.tuned.json")
    assert found is not None and found.history == [] and found.commit
    note = (
        "Tuned: 3 trials an arm over optim.lr (0.0001 to 0.1, log), model.steps (0, 2), by valid.accuracy, "
        "on validation at seed 1000."
    )
    assert note in shell("show", "s.py").output
    ran = shell("run", "s.py", "--on", "inline")
    assert ran.exit_code == 0 and note in " ".join(ran.output.split())  # a terminal breaks lines
    asked = catalogue.load(copied / "s.py")
    for cell in asked.cells():
        record = record_of(copied, cell.spec.run_id)
        for path, value in found.arms[cell.arm]["values"].items():
            assert with_field(cell.spec, path, value) == cell.spec
        assert record.status == "done" and "test" in record.metrics and record.spec.get("seed", 0) not in found.seeds
    assert not {c.spec.run_id for c in asked.cells()} & {c.spec.run_id for c in STUDY.cells()}
    manifest = read_manifest(copied / "runs", "s")
    assert manifest is not None and manifest.notes == [note] and manifest.tuning["arms"] == found.arms
    page = (copied / "reports" / "s" / "table.md").read_text()
    assert "## Tuning" in page and "The table's runs carry the winners: " in page and "![tuning](tuning.png)" in page


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("tuning=None", "the study declares no tuning"),
        ("space={'optim.lr': (1e-4, 1e-2, 'log')}", "the space is another"),
        ("objectives=('valid.loss',)", "the objectives are others"),
        ("tuning_seeds=(5,)", "the tuning's seeds are others"),
        ("factors={'batch': [8]}", "the arm 'batch 8' is in one of them only"),
        ("arms={'ldn': LDN}", "the arm 'linear' is in one of them only"),
        ("arms={'ldn': LDN, 'linear': with_field(LINEAR, 'batch', 8)}", "the arm 'linear' has changed"),
    ],
)
def test_winners_that_no_longer_fit_are_refused(changed: str, why: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    freeze(listed(whole), path)
    path.write_text(FILE.replace("import study", "import *").replace("study()", f"study({changed})"))
    with pytest.raises(
        ValueError, match=re.escape(f"{tuned_file(path)} does not fit s.py any more, {why}: tune again")
    ):
        catalogue.load(path)
    assert catalogue.declared(path).tuned is None
    path.write_text(FILE.replace("study()", "study(7)"))  # a change of what is searched for says nothing against them
    assert catalogue.load(path).tuned is not None


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"optim.lr": 0.2, "model.steps": 2}, "the arm 'ldn' has optim.lr 0.2, which is outside its space"),
        ({"optim.lr": "fast", "model.steps": 2}, "the arm 'ldn' has optim.lr 'fast', which is outside its space"),
        ({"optim.lr": 0.01, "model.steps": 1}, "the arm 'ldn' has model.steps 1, which is outside its space"),
        ({"optim.lr": 0.01}, "the arm 'ldn' has values of other fields than optim.lr, model.steps"),
        ({"optim.lr": 0.01, "model.steps": 2, "batch": 4}, "the arm 'ldn' has values of other fields than"),
        (None, "arms.ldn.values: Input should be a valid dictionary"),
    ],
)
def test_winners_outside_the_space_are_refused(values: Any, why: str, whole: Path, tmp_path: Path) -> None:
    found = listed(whole)
    found.arms["ldn"]["values"] = values
    freeze(found, tmp_path / "s.py")
    (tmp_path / "s.py").write_text(FILE)
    with pytest.raises(ValueError, match=re.escape(why)):
        catalogue.load(tmp_path / "s.py")


def test_a_tuning_that_is_not_over_writes_no_winners(shell: Callable[..., Any], copied: Path) -> None:
    shutil.rmtree(copied / "runs")
    text = FILE.replace("import study", "import *").replace("study()", "study(1, arms={'ldn': NO_DATA})")
    (copied / "s.py").write_text(text)
    for name in FASHION_MNIST_MD5:  # files that are there, and no data set
        (copied / "data" / "fashion-mnist").mkdir(parents=True, exist_ok=True)
        (copied / "data" / "fashion-mnist" / name).touch()
    failed = shell("tune", "s.py", "--on", "inline")
    assert isinstance(failed.exception, ValueError) and "no trial of 'ldn' came to its end" in str(failed.exception)
    assert not (copied / "s.tuned.json").exists()


# several objectives, and the report


WIDTHS = study(5, {"model.width": [4, 8, 16]}, arms={"ldn": LDN}, objectives=("valid.accuracy", "cost.gmac"))


def section_of(folder: Path, asked: Study) -> Section:
    drive(asked, "s", str(folder / "s.py"), folder / "runs", Noting(folder), Silent())
    frame = gather(folder / "runs", "s")
    manifest = manifest_of(folder / "runs", "s")
    section = told.section(Gathered(folder / "runs", manifest, frame, summarise(frame, "test.accuracy", "max")))
    assert section is not None
    return section


def test_of_several_objectives_the_front_is_found_each_configuration_once(tmp_path: Path) -> None:
    found, submitted = call(tmp_path, WIDTHS)
    arm = found.arms["ldn"]
    assert len(submitted) == arm["distinct"] <= 3
    done = {
        t["values"]["model.width"]: (t["metrics"]["valid.accuracy"], -t["metrics"]["cost.gmac"]) for t in found.history
    }
    beaten = [w for w, m in done.items() if any(o != m and o[0] >= m[0] and o[1] >= m[1] for o in done.values())]
    assert sorted(p["values"]["model.width"] for p in arm["front"]) == sorted(done.keys() - set(beaten))
    assert arm["metrics"]["valid.accuracy"] == max(accuracy for accuracy, _ in done.values())
    assert {trial.state for trial in journal(tmp_path)["s: ldn"]} == {TrialState.COMPLETE}

    section = section_of(tmp_path, WIDTHS)
    assert list(section.tables) == ["tuning", "tuning_front"] and len(section.tables["tuning_front"]) == len(
        arm["front"]
    )
    assert list(section.figures) == ["tuning", "tuning_front_gmac"]
    (axes,) = section.figures["tuning_front_gmac"].axes
    everything, best = axes.lines
    assert len(everything.get_xdata()) == len(done) and len(best.get_xdata()) == len(arm["front"])
    assert all(encode(figure, "png").startswith(b"\x89PNG") for figure in section.figures.values())


def test_the_report_says_what_was_searched_and_what_the_table_does_not_use(copied: Path) -> None:
    section = section_of(copied, STUDY)
    assert section.text[0].startswith(
        "Every arm had 3 trials of one space (optim.lr: 0.0001 to 0.1, log; model.steps: 0, 2)"
    )
    assert section.text[0].endswith("The table's runs do not use it (yet).")
    assert "Without effect, and so not searched: model.steps in linear." in section.text
    table = section.tables["tuning"]
    assert list(table["Arm"]) == ["ldn", "linear"] and list(table["Done"]) == [3, 3]
    assert table["model.steps"][1] == "–"
    (copied / "runs" / "studies" / "s" / "trials.json").unlink()
    frame = pd.DataFrame()
    assert told.section(Gathered(copied / "runs", manifest_of(copied / "runs", "s"), frame, frame)) is None


def test_winners_are_told_without_the_trials_and_those_at_an_end_of_a_range_are_named(copied: Path) -> None:
    found = listed(copied)
    found.arms["ldn"]["values"]["optim.lr"] = 0.0999
    shutil.move(copied / "runs" / "studies" / "s" / "trials.json", copied / "elsewhere.json")
    section = section_of(copied, dataclasses.replace(STUDY, tuned=dataclasses.replace(found, history=[])))
    assert "Won at an end of its range, beyond which may lie better: ldn (optim.lr 0.0999)." in section.text
    assert section.text[0].endswith(told.CARRIED) and section.figures == {}


# the dashboard


def test_optuna_dashboard_shows_every_arm_and_its_trials(whole: Path) -> None:
    path = study_folder(whole / "runs", "s") / "tuning.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from optuna_dashboard._cli import main; main()"  # what the command `optuna-dashboard` does
    command = [sys.executable, "-c", start, str(path), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def fetch(what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{what}", timeout=10) as answer:
            return json.load(answer)

    def answers() -> bool:
        assert server.poll() is None
        try:
            return bool(fetch("meta"))
        except OSError:
            return False

    try:
        wait_for(answers)
        shown = {study["study_name"]: study for study in fetch("studies")["study_summaries"]}
        assert shown.keys() == {"s: ldn", "s: linear"}
        detail = fetch(f"studies/{shown['s: ldn']['study_id']}")
        mine = [trial for trial in listed(whole).history if trial["arm"] == "ldn"]
        assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 3
        assert [trial["values"] for trial in detail["trials"]] == [[t["metrics"]["valid.accuracy"]] for t in mine]
        assert detail["directions"] == ["maximize"]
    finally:
        server.terminate()
        server.wait(30)
    assert optuna.load_study(study_name="s: ldn", storage=JournalStorage(JournalFileBackend(str(path)))).best_trial
