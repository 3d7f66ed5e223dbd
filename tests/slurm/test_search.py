"""Does a search on a real SLURM end with every trial once, whoever is killed on the way?"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from optuna.trial import TrialState

from results.record import TuningRecord, read_record, read_tuning, study_folder
from studies.jobs import arrays, in_queue
from studies.tuning import tuned_file
from tests.slurm.machine import Machine
from tests.test_tuning import ROOT, journal, listed

STUDY = """
from baselines import LinearConfig
from ldn import LDNConfig
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tuning import Tuning

LINEAR = RunSpec(
    model=LinearConfig(),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=400, evaluations=5),
)
LDN = with_field(with_field(LINEAR, "model", LDNConfig(width=8, depth=1, heads=2)), "budget.steps", 20)
STUDY = Study(
    question="What is found?",
    reference="linear",
    arms={{"linear": LINEAR, "ldn": LDN}},
    tuning=Tuning(
        space={{"optim.lr": (1e-4, 1e-1, "log"), "optim.weight_decay": (1e-3, 1.0, "log")}},
        trials={trials},
        {options}
    ),
)
"""
FACTS = 'time = "1:00:00"\nslots = 2\ncpus = 4\nmemory = 3\nparallel = 2\n'


def declared(folder: Path, trials: int, options: str) -> Path:
    (folder / "s.py").write_text(STUDY.format(trials=trials, options=options))
    (folder / "slurm.toml").write_text(FACTS)
    return folder / "s.py"


def studies(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, "-m", "studies", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def said(folder: Path) -> str:
    logs = sorted((study_folder(folder / "runs", "s") / "slurm").glob("*/*.out"))
    return "\n".join(f"== {log.name}\n{log.read_text()}" for log in logs)


def over(folder: Path) -> int:
    found = read_tuning(study_folder(folder / "runs", "s") / "trials.json")
    return 0 if found is None else sum(trial["status"] != "running" for trial in found.history)


def attempts(folder: Path, found: TuningRecord) -> Counter[int]:
    records = [read_record(folder / "runs", run_id) for trial in found.history for run_id in trial["run_ids"]]
    return Counter(0 if record is None else len(record.attempts) for record in records)


def test_forty_trials_survive_five_deaths_of_their_driver(machine: Machine, tmp_path: Path) -> None:
    path, chance = declared(tmp_path, 20, 'pruner="median",'), random.Random()
    for death in range(5):
        driver = studies(tmp_path, "tune", str(path), "--on", "slurm")
        wanted = 6 * death + 1
        machine.wait_until(lambda least=wanted: over(tmp_path) >= least, f"{wanted} trials are over", timeout=120)  # type: ignore[misc]
        if death == 0:
            driver.send_signal(signal.SIGSTOP)  # it keeps its lock, and does not end before the second one asks
            second = studies(tmp_path, "tune", str(path), "--on", "slurm")
            assert "is being driven by process" in second.communicate(timeout=60)[0] and second.returncode == 2
        time.sleep(chance.random())
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    last = studies(tmp_path, "tune", str(path), "--on", "slurm")
    printed = last.communicate(timeout=300)[0]
    assert last.returncode == 0 and tuned_file(path).exists(), printed + said(tmp_path)
    found = listed(tmp_path)
    counts = Counter((trial["arm"], trial["status"] in ("done", "pruned")) for trial in found.history)
    assert counts == {("linear", True): 20, ("ldn", True): 20}
    ids = [run_id for trial in found.history for run_id in trial["run_ids"]]
    assert len(set(ids)) == 40 and attempts(tmp_path, found) == {1: 40}, said(tmp_path)
    for trials in journal(tmp_path).values():
        states = Counter(trial.state for trial in trials)
        assert states.keys() <= {TrialState.COMPLETE, TrialState.PRUNED} and states.total() == 20
    assert len([array for array in arrays(tmp_path / "runs", "s") if array.role == "worker"]) <= 3
    machine.wait_until(lambda: not in_queue("s"), "the workers have left", timeout=90)


def test_a_driver_in_a_job_goes_on_when_it_is_queued_again(machine: Machine, tmp_path: Path) -> None:
    path = declared(tmp_path, 30, 'objectives=("valid.accuracy", "cost.params"),')
    submitted = studies(tmp_path, "tune", str(path), "--on", "slurm", "--detach")
    printed = submitted.communicate(timeout=60)[0]
    assert submitted.returncode == 0 and "driven by job" in printed, printed
    (driver,) = arrays(tmp_path / "runs", "s")
    again = studies(tmp_path, "tune", str(path), "--on", "slurm", "--detach")
    printed = again.communicate(timeout=60)[0]
    assert again.returncode == 2
    assert "drives the search of s already" in printed or "is being driven by process" in printed  # it may have begun
    machine.wait_until(lambda: over(tmp_path) >= 2, "two trials are over", timeout=120)
    status = studies(tmp_path, "status", str(path)).communicate(timeout=60)[0]
    assert "driven by process" in status and "driver job running" in status and "worker job" in status, status
    machine.call("scontrol", "requeue", driver.job_id)
    machine.wait_until(tuned_file(path).exists, "the winners are written", timeout=240)
    found = listed(tmp_path)
    assert Counter(t["arm"] for t in found.history if t["status"] == "done") == {"linear": 30, "ldn": 30}, said(
        tmp_path
    )
    assert attempts(tmp_path, found) == {1: 60}
    assert json.loads(tuned_file(path).read_text())["arms"]["ldn"]["front"]


def test_cancelling_ends_driver_and_workers(machine: Machine, tmp_path: Path) -> None:
    path = declared(tmp_path, 400, "")
    driver = studies(tmp_path, "tune", str(path), "--on", "slurm")
    machine.wait_until(lambda: over(tmp_path) >= 2, "two trials are over", timeout=120)
    cancelled = studies(tmp_path, "cancel", str(path))
    assert "jobs cancelled" in cancelled.communicate(timeout=60)[0] and cancelled.returncode == 0
    printed = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2 and "trials to go; the same command goes on from here" in printed
    machine.wait_until(lambda: not in_queue("s"), "no job is left", timeout=60)


def test_workers_that_cannot_work_end_the_search_with_a_reason(machine: Machine, tmp_path: Path) -> None:
    path = declared(tmp_path, 8, "")
    (tmp_path / "slurm.toml").write_text(FACTS + 'setup = ["echo no such module >&2; exit 1"]\n')
    driver = studies(tmp_path, "tune", str(path), "--on", "slurm")
    printed = driver.communicate(timeout=180)[0]
    assert driver.returncode == 2, printed
    assert "jobs have ended before any of their runs had; the last one said: no such module" in printed
