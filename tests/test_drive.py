"""Does every cell of a study end in one record, whatever is killed, stopped, lost or added on the way?"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from baselines import LinearConfig
from ldn import LDNConfig
from results.record import RunRecord, read_manifest, read_record, run_folder, study_folder, write_record
from results.signals import stop_on_signals
from studies import executors
from studies.drive import Tally, drive, sole_driver
from studies.executors import Ended, Executor, Inline, Local, places
from studies.journal import ChecksummedFile
from studies.queue import Queue
from studies.spec import Budget, RunSpec, canonical, with_field
from studies.study import Cell, Study
from studies.tasks.digits import CuedDigits
from studies.tasks.images import FashionMNIST
from studies.train import Place

ROOT = Path(__file__).resolve().parent.parent

LDN = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=6, evaluations=2),
)
LINEAR = with_field(LDN, "model", LinearConfig())
NO_DATA = with_field(LDN, "task", FashionMNIST())  # its files are nowhere here
LONG = with_field(LDN, "budget", Budget(steps=120, evaluations=2))


def study(**changed: Any) -> Study:
    asked = {"question": "Why?", "reference": "ldn", "arms": {"ldn": LDN, "linear": LINEAR}, "seeds": (0, 1)}
    return Study(**{**asked, "factors": {"model.steps": [0]}, **changed})  # type: ignore[arg-type]


STUDY = study()  # 6 cells, 6 runs


class Log:
    """A watcher that writes down how each cell ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int, str]] = []
        self.running: list[set[str]] = []

    def tick(self, tally: Tally) -> None:
        self.running.append(set(tally.running))

    def finished(self, tally: Tally, cell: Cell, record: RunRecord | None, ended: Ended) -> None:
        self.ended.append((cell.arm, cell.seed, "stopped" if record is None else record.status))


class Noting(Inline):
    """Trains in this process and notes what."""

    def __init__(self, place: Place, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(place, stopping)
        self.submitted: list[str] = []

    def submit(self, spec: RunSpec) -> None:
        self.submitted.append(spec.run_id)
        super().submit(spec)


@dataclass
class Call:
    """One call of the driver, and what came of it."""

    tally: Tally
    log: Log
    submitted: list[str]


def call(folder: Path, asked: Study = STUDY, name: str = "s", stop_after: int | None = None, **options: Any) -> Call:
    """Drive a study inline; with `stop_after`, ask to stop once so many cells have ended."""
    log = Log()

    def stopping() -> bool:
        return stop_after is not None and len(log.ended) >= stop_after

    executor = Noting(place(folder), stopping)
    tally = drive(asked, name, f"{name}.py", folder / "runs", executor, log, stopping, **options)
    return Call(tally, log, executor.submitted)


def place(folder: Path) -> Place:
    return Place(folder / "runs", folder / "data")


def ids(asked: Study) -> list[str]:
    return list(dict.fromkeys(cell.spec.run_id for cell in asked.cells()))


def record_of(folder: Path, run_id: str) -> RunRecord:
    record = read_record(folder / "runs", run_id)
    assert record is not None
    return record


def outcomes(folder: Path, asked: Study = STUDY) -> dict[str, dict[str, Any]]:
    """All records of a study, but for when and where the runs ran."""
    plain = {run_id: dataclasses.asdict(record_of(folder, run_id)) for run_id in ids(asked)}
    return {run_id: {k: v for k, v in record.items() if k != "attempts"} for run_id, record in plain.items()}


def attempts(folder: Path, asked: Study = STUDY) -> list[int]:
    return [len(record_of(folder, run_id).attempts) for run_id in ids(asked)]


def journal(folder: Path, name: str = "s") -> Path:
    return study_folder(folder / "runs", name) / "journal.log"


def trials(folder: Path, name: str = "s") -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(journal(folder, name))))
    return optuna.load_study(study_name=name, storage=storage).trials


def complete(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (trial.user_attrs["arm"], trial.user_attrs["seed"])
        for trial in trials(folder)
        if trial.state == TrialState.COMPLETE
    )


def wait_for(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


CELLS = sorted((cell.arm, cell.seed) for cell in STUDY.cells())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STUDY, driven without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    first = call(folder)
    assert (first.tally.done, first.tally.failed, first.tally.found) == (6, 0, 0)
    assert first.submitted == ids(STUDY)
    return folder


# the queue


def test_every_cell_is_a_trial_of_an_optuna_study_and_its_value_is_from_validation(whole: Path) -> None:
    found = trials(whole)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    for trial, cell in zip(found, STUDY.cells(), strict=True):
        wanted = {"arm": cell.arm, "seed": cell.seed, "run_id": cell.spec.run_id, **cell.factors}
        assert {name: trial.user_attrs[name] for name in wanted} == wanted
        metrics = record_of(whole, cell.spec.run_id).metrics
        assert trial.value == metrics["valid"]["accuracy"]  # though the study reports test.accuracy


def test_a_study_of_a_loss_is_minimised(tmp_path: Path) -> None:
    call(tmp_path, study(metric="valid.loss", seeds=[0], factors={}))
    best = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(journal(tmp_path)))))
    assert best.best_value == min(record_of(tmp_path, i).metrics["valid"]["loss"] for i in ids(study(seeds=[0]))[::2])


def test_the_manifest_says_which_run_answers_which_cell(whole: Path) -> None:
    manifest = read_manifest(whole / "runs", "s")
    assert manifest is not None and manifest.question == "Why?" and manifest.source == "s.py"
    assert [(c["arm"], c["seed"], c["run_id"]) for c in manifest.cells] == [
        (cell.arm, cell.seed, cell.spec.run_id) for cell in STUDY.cells()
    ]
    changes = {arm["label"]: arm["changes"] for arm in manifest.arms}
    assert changes["ldn"] == {} and changes["steps 0"]["model.steps"] == [2, 0]
    assert changes["linear"]["model"] == ["ldn", "linear"]


def test_runs_of_no_steps_end_without_a_value(tmp_path: Path) -> None:
    asked = study(arms={"ldn": with_field(LDN, "budget", Budget(steps=0))}, factors={}, seeds=[0])
    assert call(tmp_path, asked).tally.done == 1
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.PRUNED]
    assert call(tmp_path, asked).submitted == []


# called again


def test_what_is_finished_is_not_run_again(whole: Path) -> None:
    before = len(trials(whole))
    again = call(whole)
    assert again.submitted == [] and again.log.ended == []
    assert (again.tally.cells, again.tally.done, again.tally.found, again.tally.failed) == (6, 6, 6, 0)
    assert len(trials(whole)) == before


def test_an_arm_a_factor_or_a_seed_added_later_runs_alone(tmp_path: Path) -> None:
    call(tmp_path, study(arms={"ldn": LDN}, factors={}, seeds=[0]))
    larger = study(arms={"linear": LINEAR, "ldn": LDN}, factors={}, seeds=[0])
    assert call(tmp_path, larger).submitted == [with_field(LINEAR, "seed", 0).run_id]
    new = set(ids(STUDY)) - set(ids(larger))
    last = call(tmp_path, STUDY)
    assert set(last.submitted) == new and len(last.submitted) == len(new) == 4 and last.tally.found == 2
    assert attempts(tmp_path) == [1] * 6 and complete(tmp_path) == CELLS


def test_an_arm_taken_away_is_not_run(tmp_path: Path) -> None:
    call(tmp_path, stop_after=2)
    smaller = study(factors={})
    assert set(call(tmp_path, smaller).submitted) == set(ids(smaller)) - set(ids(STUDY)[:2])
    assert call(tmp_path, smaller).tally.done == 4


def test_a_run_that_another_study_has_done_is_found(tmp_path: Path) -> None:
    call(tmp_path, study(factors={}), name="other")
    assert call(tmp_path).tally.found == 4
    assert attempts(tmp_path) == [1] * 6 and complete(tmp_path) == CELLS


@pytest.mark.parametrize("cut", [1, 4])
def test_a_study_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(cut: int, whole: Path, tmp_path: Path) -> None:
    first = call(tmp_path, stop_after=cut)
    assert (first.tally.done, len(first.submitted)) == (cut, cut)
    second = call(tmp_path)
    assert (second.tally.found, second.tally.done) == (cut, 6)
    assert not set(first.submitted) & set(second.submitted)
    assert outcomes(tmp_path) == outcomes(whole) and attempts(tmp_path) == [1] * 6 and complete(tmp_path) == CELLS


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    log, asked = Log(), iter(range(99))
    executor = Noting(place(tmp_path), lambda: next(asked) > 3)
    tally = drive(STUDY, "s", "s.py", tmp_path / "runs", executor, log, lambda: next(asked) > 5)
    assert log.ended == [("ldn", 0, "stopped")] and (tally.done, tally.failed) == (0, 0)
    assert (run_folder(tmp_path / "runs", executor.submitted[0]) / "checkpoint.pt").exists()
    call(tmp_path)
    first = record_of(tmp_path, executor.submitted[0])
    assert len(first.attempts) == 2 and first.attempts[1]["first_step"] > 0
    assert outcomes(tmp_path) == outcomes(whole) and attempts(tmp_path)[1:] == [1] * 5


def test_what_was_interrupted_comes_first_again_and_the_rest_in_the_cells_order(tmp_path: Path) -> None:
    log, asked = Log(), iter(range(99))

    def stopping() -> bool:
        return len(log.ended) > 0 and next(asked) > 3

    executor = Noting(place(tmp_path), stopping)
    drive(STUDY, "s", "s.py", tmp_path / "runs", executor, log, stopping)
    assert executor.submitted == ids(STUDY)[:2] and log.ended[1][2] == "stopped"
    assert call(tmp_path).submitted == ids(STUDY)[1:]


def test_to_queue_cells_writes_nothing_however_many_they_are(tmp_path: Path) -> None:
    """Ten thousand took a minute, when each was enqueued beforehand."""
    cells = STUDY.cells()
    queue = Queue(tmp_path, "s", "max", "test.accuracy")
    before = (tmp_path / "journal.log").read_bytes()
    queue.fill(cells, {}, set(ids(STUDY)))
    assert (tmp_path / "journal.log").read_bytes() == before
    assert [queue.next() for _ in range(7)] == [*enumerate(cells), None]


def test_the_order_is_the_cells_whenever_they_were_enqueued(tmp_path: Path) -> None:
    call(tmp_path, study(factors={}), stop_after=1)
    larger = study(arms={"linear": LINEAR, "ldn": LDN}, seeds=(1, 2, 0))
    left = [run_id for run_id in ids(larger) if run_id != ids(STUDY)[0]]
    assert call(tmp_path, larger).submitted == left
    assert not [trial for trial in trials(tmp_path) if trial.state in (TrialState.WAITING, TrialState.RUNNING)]


# failures


def test_one_failure_stops_nothing_and_is_tried_again_only_on_request(tmp_path: Path) -> None:
    diverging = with_field(LDN, "optim", dataclasses.replace(LDN.optim, lr=1e6, warmup=0.0))
    asked = study(arms={"ldn": LDN, "no data": NO_DATA, "wild": diverging, "linear": LINEAR}, factors={}, seeds=[0])
    first = call(tmp_path, asked)
    assert [(arm, status) for arm, _, status in first.log.ended] == [
        ("ldn", "done"), ("no data", "failed"), ("wild", "diverged"), ("linear", "done"),
    ]  # fmt: skip
    assert (first.tally.done, first.tally.failed) == (2, 2)
    again = call(tmp_path, asked)
    assert again.submitted == [] and (again.tally.done, again.tally.failed) == (2, 2)
    retried = call(tmp_path, asked, retry=True)
    assert retried.submitted == ids(asked)[1:3] and (retried.tally.done, retried.tally.failed) == (2, 2)
    assert attempts(tmp_path, asked) == [1, 2, 2, 1]
    failed = record_of(tmp_path, ids(asked)[1])
    assert failed.reason.startswith("FileNotFoundError: ") and "download" in failed.reason


def test_what_failed_and_is_mended_ends_as_it_would_have(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(LinearConfig, "build", lambda *_: 1 / 0)
        assert call(tmp_path).tally.failed == 2
    assert call(tmp_path, retry=True).tally.done == 6
    assert outcomes(tmp_path) == outcomes(whole)


def test_cells_that_share_a_run_share_its_end(tmp_path: Path) -> None:
    arms = {"ldn": LDN, "the same": dataclasses.replace(LDN), "no data": NO_DATA, "no data either": NO_DATA}
    asked = study(arms=arms, factors={}, seeds=[0])
    first = call(tmp_path, asked)
    assert first.submitted == ids(asked) and (first.tally.done, first.tally.failed) == (2, 2)
    assert sorted(first.log.ended) == sorted([
        ("ldn", 0, "done"), ("the same", 0, "done"), ("no data", 0, "failed"), ("no data either", 0, "failed"),
    ])  # fmt: skip
    assert attempts(tmp_path, asked) == [1, 1]
    assert call(tmp_path, asked).submitted == []


def test_a_corrupt_record_is_left_alone_and_the_other_cells_run(whole: Path, tmp_path: Path) -> None:
    path = run_folder(tmp_path / "runs", ids(STUDY)[2]) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"run_id": "')
    for _ in range(2):
        found = call(tmp_path, retry=True)
        assert (found.tally.done, found.tally.failed) == (5, 1) and path.read_text() == '{"run_id": "'
        (note,) = found.tally.notes
        assert note.startswith(f"{path} is not valid JSON") and note.endswith("delete it to run this run again")
    path.unlink()
    assert call(tmp_path).submitted == [ids(STUDY)[2]]
    assert outcomes(tmp_path) == outcomes(whole)


# the records are the truth, whatever the journal says


def test_a_lost_journal_is_rebuilt_from_the_records(whole: Path, tmp_path: Path) -> None:
    call(tmp_path, stop_after=4)
    journal(tmp_path).unlink()
    again = call(tmp_path)
    assert again.submitted == ids(STUDY)[4:] and again.tally.notes == []
    assert outcomes(tmp_path) == outcomes(whole) and complete(tmp_path) == CELLS
    journal(tmp_path).unlink()
    assert call(tmp_path).submitted == [] and complete(tmp_path) == CELLS


def _glued(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([*lines[:5], lines[5][:20], *lines[6:]])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one digit": lambda content: content.replace(b'"seed":1', b'"seed":0', 1),
    "glued": _glued,
    "a last line that is no JSON": lambda content: content + b"{}}\n",
    "noise": lambda content: bytes(range(256)) * 9,
    "zeros": lambda content: b"\0" * 500,
    "JSON of others": lambda content: b'{"a": 1}\n{"b": 2}\n',
    "a list": lambda content: b"[1, 2]\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_put_aside_and_rebuilt(damage: str, whole: Path, tmp_path: Path) -> None:
    call(tmp_path, stop_after=4)
    damaged = DAMAGES[damage](journal(tmp_path).read_bytes())
    journal(tmp_path).write_bytes(damaged)
    again = call(tmp_path)
    assert again.submitted == ids(STUDY)[4:] and again.tally.done == 6
    aside = study_folder(tmp_path / "runs", "s") / "journal.damaged-0"
    assert aside.read_bytes().startswith(damaged)
    assert again.tally.notes == [f"the journal could not be read; it was put aside as {aside} and rebuilt"]
    assert outcomes(tmp_path) == outcomes(whole) and complete(tmp_path) == CELLS
    later = call(tmp_path)
    assert later.submitted == [] and later.tally.notes == []


@pytest.mark.parametrize("cut", [1, 300])
def test_an_incomplete_end_of_the_journal_is_dropped(cut: int, whole: Path, tmp_path: Path) -> None:
    call(tmp_path, stop_after=4)
    journal(tmp_path).write_bytes(journal(tmp_path).read_bytes()[:-cut])
    again = call(tmp_path)
    assert again.submitted == ids(STUDY)[4:] and again.tally.notes == []
    assert outcomes(tmp_path) == outcomes(whole) and complete(tmp_path) == CELLS


def test_a_full_disk_is_no_fault_of_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    call(tmp_path, stop_after=4)
    before = journal(tmp_path).read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(ChecksummedFile, "append_logs", full)
        with pytest.raises(OSError, match="No space left"):
            call(tmp_path)
    assert journal(tmp_path).read_bytes() == before and not list(journal(tmp_path).parent.glob("journal.damaged-*"))
    assert call(tmp_path).submitted == ids(STUDY)[4:]


def test_what_is_wrong_with_a_folder_is_said_as_it_is(tmp_path: Path) -> None:
    spec = STUDY.cells()[0].spec
    folder = run_folder(tmp_path / "runs", spec.run_id)
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where a folder should be")
    ended = executors._train(spec, place(tmp_path), lambda: False)
    assert ended.fatal and str(folder) in ended.error and "make room" not in ended.error


def test_an_empty_journal_and_the_lock_of_a_dead_driver_are_no_obstacle(tmp_path: Path) -> None:
    call(tmp_path, stop_after=4)
    journal(tmp_path).write_bytes(b"")
    os.symlink("journal.log", f"{journal(tmp_path)}.lock")
    began = time.monotonic()
    assert call(tmp_path).submitted == ids(STUDY)[4:] and complete(tmp_path) == CELLS
    assert time.monotonic() - began < 20  # Optuna would wait for 30 s


def test_a_record_that_is_deleted_is_run_again_though_the_journal_says_it_is_done(whole: Path, tmp_path: Path) -> None:
    call(tmp_path)
    (run_folder(tmp_path / "runs", ids(STUDY)[3]) / "record.json").unlink()
    assert call(tmp_path).submitted == [ids(STUDY)[3]]
    assert outcomes(tmp_path) == outcomes(whole)


def test_a_trial_still_waiting_for_a_run_that_has_a_record_is_dropped(tmp_path: Path) -> None:
    """As in a journal of before, into which all cells were enqueued at once, whoever has done the run meanwhile."""
    call(tmp_path, stop_after=1)
    former = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(journal(tmp_path)))))
    for cell in reversed(STUDY.cells()[1:]):
        former.enqueue_trial({}, user_attrs={"arm": cell.arm, "seed": cell.seed, "run_id": cell.spec.run_id})
    call(tmp_path, study(factors={}), name="other")
    failed = next(cell for cell in STUDY.cells() if cell.arm == "steps 0")
    record = RunRecord(run_id=failed.spec.run_id, spec=canonical(failed.spec), status="failed", reason="elsewhere")
    write_record(tmp_path / "runs", record)
    again = call(tmp_path)
    assert again.submitted == ids(STUDY)[4:5] and (again.tally.done, again.tally.failed) == (5, 1)
    assert record_of(tmp_path, failed.spec.run_id) == record
    assert not [trial for trial in trials(tmp_path) if trial.state in (TrialState.WAITING, TrialState.RUNNING)]


# one driver at a time


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with sole_driver(study_folder(tmp_path / "runs", "s"), "s"):
        wanted = rf"study s is being driven by process {os.getpid()} on .* already; `python -m studies status NAME`"
        with pytest.raises(ValueError, match=wanted):
            call(tmp_path)
        assert call(tmp_path, name="other").tally.done == 6
    assert call(tmp_path).tally.found == 6


def test_a_damaged_manifest_is_written_anew(tmp_path: Path) -> None:
    call(tmp_path, stop_after=1)
    manifest = study_folder(tmp_path / "runs", "s") / "manifest.json"
    manifest.write_text("{")  # it holds nothing that the study does not
    assert call(tmp_path).tally.done == 6
    assert read_manifest(tmp_path / "runs", "s") is not None


# a pool of processes


@dataclass(frozen=True, kw_only=True)
class Mine(LinearConfig):
    """A model that stands in no table."""

    name: ClassVar[str] = "mine"


POOLED = study(
    arms={"ldn": LDN, "long": LONG, "no data": NO_DATA, "mine": with_field(LDN, "model", Mine()), "linear": LINEAR},
    seeds=[0],
)
LONG_ID = LONG.run_id  # of seed 0


@dataclass
class Pooled:
    folder: Path
    tally: Tally
    log: Log
    lost: RunRecord  # as it was when the call had ended
    left: list[int]  # the processes still there after it


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Pooled:
    """POOLED, driven in two slots, while Ctrl-C reaches their processes and one is killed as it trains "long"."""
    folder, log = tmp_path_factory.mktemp("pooled"), Log()
    pool = Local([place(folder)] * 2)

    def disturb() -> None:
        wait_for(lambda: all(slot.process is not None and slot.process.pid for slot in pool.slots))
        time.sleep(0.3)  # still importing
        for slot in pool.slots:
            os.kill(slot.process.pid, signal.SIGINT)
            os.kill(slot.process.pid, signal.SIGHUP)
        wait_for((run_folder(folder / "runs", LONG_ID) / "attempts.json").exists)
        training = next(slot for slot in pool.slots if slot.run_id == LONG_ID)
        os.kill(training.process.pid, signal.SIGKILL)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        tally = drive(POOLED, "s", "s.py", folder / "runs", pool, log)
    finally:
        pool.close()
        thread.join()
    left = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    return Pooled(folder, tally, log, record_of(folder, LONG_ID), left)


def test_a_pool_trains_what_this_process_would_have_trained_whatever_ctrl_c_reaches_it(
    pooled: Pooled, whole: Path
) -> None:
    done = [cell.spec.run_id for cell in POOLED.cells() if cell.arm in ("ldn", "steps 0", "linear")]
    found = {run_id: dataclasses.asdict(record_of(pooled.folder, run_id)) for run_id in done}
    for record in found.values():
        assert len(record.pop("attempts")) == 1
    assert found == {run_id: outcomes(whole)[run_id] for run_id in done}
    assert max(len(running) for running in pooled.log.running) == 2


def test_a_failure_in_a_pool_stops_nothing(pooled: Pooled) -> None:
    assert {arm: status for arm, _, status in pooled.log.ended} == {
        "ldn": "done", "steps 0": "done", "long": "lost", "no data": "failed", "mine": "lost", "linear": "done",
    }  # fmt: skip
    assert (pooled.tally.done, pooled.tally.failed) == (3, 3)


def test_a_run_whose_process_is_killed_is_lost_and_says_so(pooled: Pooled) -> None:
    assert pooled.lost.reason == "its process died of SIGKILL (killed, perhaps for want of memory)"


def test_a_model_of_ones_own_that_a_process_cannot_find_is_refused_in_one_sentence(pooled: Pooled) -> None:
    reason = record_of(pooled.folder, POOLED.arms["mine"].run_id).reason
    assert reason.startswith("there is no model named 'mine'; known: ldn")


def test_a_closed_pool_leaves_no_process(pooled: Pooled) -> None:
    assert pooled.left == []


def test_a_lost_run_is_run_again_without_being_asked_to(pooled: Pooled, tmp_path: Path) -> None:
    only = study(arms={"ldn": LONG}, factors={}, seeds=[0])
    again = call(pooled.folder, only, name="again")
    assert again.submitted == [LONG_ID] and again.tally.done == 1
    call(tmp_path, only)
    assert outcomes(pooled.folder, only) == outcomes(tmp_path, only)
    assert len(record_of(pooled.folder, LONG_ID).attempts) == 2  # the killed one, and this one


def test_a_run_that_is_stopped_before_its_process_has_begun_is_not_lost(tmp_path: Path) -> None:
    log, pool = Log(), Local([place(tmp_path)])

    def stop_the_group() -> None:
        wait_for(lambda: pool.slots[0].process is not None and pool.slots[0].process.pid)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(pool.slots[0].process.pid, number)  # it is still importing
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_the_group)
    try:
        with stop_on_signals() as stopping:
            thread.start()
            tally = drive(STUDY, "s", "s.py", tmp_path / "runs", pool, log, stopping)
    finally:
        pool.close()
        thread.join()
    assert log.ended == [("ldn", 0, "stopped")] and (tally.done, tally.failed) == (0, 0)
    assert read_record(tmp_path / "runs", ids(STUDY)[0]) is None


def test_a_run_that_ended_before_its_process_was_killed_is_not_overwritten(whole: Path, tmp_path: Path) -> None:
    class Dying(Noting):
        def ended(self, seconds: float) -> list[Ended]:
            return [Ended(over.run_id, error="its process died of SIGKILL") for over in super().ended(seconds)]

    tally = drive(STUDY, "s", "s.py", tmp_path / "runs", Dying(place(tmp_path)), Log())
    assert (tally.done, tally.failed) == (6, 0) and outcomes(tmp_path) == outcomes(whole)


def test_no_room_on_the_disk_ends_the_call_and_loses_nothing(whole: Path, tmp_path: Path) -> None:
    class Full(Noting):
        def submit(self, spec: RunSpec) -> None:
            if len(self.submitted) == 2:
                self.over.append(Ended(spec.run_id, error="No space left on device: runs", fatal=True))
            else:
                super().submit(spec)

    executor: Executor = Full(place(tmp_path))
    tally = drive(STUDY, "s", "s.py", tmp_path / "runs", executor, Log())
    assert (tally.done, tally.failed, tally.fatal) == (2, 0, "No space left on device: runs")
    assert call(tmp_path).tally.found == 2
    assert outcomes(tmp_path) == outcomes(whole)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cuda:x", "gpu"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no device '{device}'"):
        places(tmp_path, tmp_path, device, None, 1, False)


def test_there_are_as_many_slots_as_asked_or_as_the_threads_leave_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "cores", lambda: 8)
    counts = [len(places(tmp_path, tmp_path, "cpu", slots, threads, False)) for slots, threads in
              ((None, 1), (None, 3), (None, 16), (3, 4))]  # fmt: skip
    assert counts == [8, 2, 1, 3]


# the command


FILE = """
from tests.test_drive import LONG, study

STUDY = study(arms={"ldn": LONG}, factors={}, seeds=(0, 1))
"""
TWO_LONG = study(arms={"ldn": LONG}, factors={}, seeds=(0, 1))


def started(folder: Path) -> subprocess.Popen[str]:
    """`python -m studies run` in a group of processes of its own."""
    command = [sys.executable, "-m", "studies", "run", str(folder / "mine.py"), "--on", "local", "--slots", "1"]
    folders = ["--runs", str(folder / "runs"), "--data", str(folder / "data"), "--out", str(folder / "reports")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *folders], cwd=ROOT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def held(lock: Path) -> bool:
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_command_stopped_by_ctrl_c_or_killed_goes_on_when_called_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    runs = tmp_path / "runs"
    folders = [run_folder(runs, run_id) for run_id in ids(TWO_LONG)]

    killed = started(tmp_path)  # kill -9 of the driver alone: its process notices, writes its checkpoint and ends
    wait_for(lambda: any(held(folder / "lock") for folder in folders) or killed.poll() is not None)
    killed.kill()
    killed.communicate(timeout=60)
    wait_for(lambda: not any(held(folder / "lock") for folder in folders))

    stopped = started(tmp_path)  # Ctrl-C while a run trains
    wait_for(lambda: any(held(folder / "lock") for folder in folders) or stopped.poll() is not None)
    os.killpg(stopped.pid, signal.SIGINT)
    said, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 2 and "Traceback" not in said + errors, errors
    assert "it goes on next time" in said and "the same command goes on from here" in errors

    source = str((tmp_path / "mine.py").resolve())
    tally = drive(TWO_LONG, "mine", source, runs, Noting(place(tmp_path)), Log())
    assert (tally.done, tally.failed) == (2, 0) and sum(attempts(tmp_path, TWO_LONG)) == 4
    call(tmp_path / "whole", TWO_LONG)
    assert outcomes(tmp_path, TWO_LONG) == outcomes(tmp_path / "whole", TWO_LONG)
