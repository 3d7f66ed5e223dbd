"""Do a study's runs end as they would here, once each, whatever a real SLURM does to their jobs?"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from results.record import read_record, run_folder
from results.report import write_report
from studies.cluster import Cluster
from studies.drive import drive
from studies.executors import Local
from studies.jobs import Array, arrays, in_queue
from studies.slurm import launch
from studies.spec import with_field
from studies.study import Study
from studies.train import Place
from tests.slurm.machine import Machine
from tests.test_drive import LINEAR, Log, call, ids, outcomes, study

TINY = study(factors={"model.steps": [0, 4], "model.attention": ["none"]}, seeds=range(8))  # 5 arms x 8 seeds
# 2 runs of several seconds: seen to train, they still do when something happens to them
LONG = study(arms={"ldn": with_field(LINEAR, "budget.steps", 8000)}, factors={})
HOUR = Cluster(time="1:00:00", runs_per_job=2, cpus=2, memory=3)


def submitted(folder: Path, asked: Study, cluster: Cluster) -> list[Array]:
    launch(asked, "s", "s.py", cluster, Place(folder / "runs", folder / "data", "cpu"))
    return arrays(folder / "runs", "s")


def finished(folder: Path, asked: Study) -> bool:
    return all((run_folder(folder / "runs", run_id) / "record.json").exists() for run_id in ids(asked))


def lives(folder: Path, asked: Study) -> list[list[dict[str, object]]]:
    """The attempts of each run."""
    records = [read_record(folder / "runs", run_id) for run_id in ids(asked)]
    return [[] if record is None else record.attempts for record in records]


def said(folder: Path) -> str:
    logs = sorted((folder / "runs" / "studies" / "s" / "slurm").glob("*/*.out"))
    return "\n".join(f"== {log.name}\n{log.read_text()}" for log in logs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LONG, run without a cluster."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call(folder, LONG).tally.done == 2
    return folder


def test_forty_runs_through_arrays_equal_those_of_this_machine(machine: Machine, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with machine.configured(max_array_size=3):
        found = submitted(there, TINY, Cluster(time="1:00:00", runs_per_job=5, slots=2, cpus=4, memory=3, parallel=1))
        assert [len(array.jobs) for array in found] == [2, 3, 3] and len(ids(TINY)) == 40
        assert launch(TINY, "s", "s.py", HOUR, Place(there / "runs", there / "data", "cpu")).queued > 0
        assert len(arrays(there / "runs", "s")) == 3  # asked again, nothing is submitted twice
        machine.wait_until(lambda: finished(there, TINY), "all runs have ended", timeout=400)
        machine.wait_until(lambda: not in_queue("s"), "no job is left")
    executor = Local([Place(here / "runs", here / "data", "cpu")] * 2)
    drive(TINY, "s", "s.py", here / "runs", executor, Log())
    executor.close()
    assert outcomes(there, TINY) == outcomes(here, TINY), said(there)
    assert [len(attempts) for attempts in lives(there, TINY)] == [1] * 40
    jobs = {str(attempts[0]["slurm_job"]) for attempts in lives(there, TINY)}
    assert jobs == {f"{array.job_id}_{index}" for array in found for index in range(len(array.jobs))}
    assert {attempts[0]["commit"] for attempts in lives(there, TINY)} != {"unknown"}
    for folder in (here, there):
        write_report(folder / "runs", "s", folder / "reports")
    tables = [(folder / "reports" / "s" / "table.md").read_text().splitlines() for folder in (here, there)]
    rows = [[line for line in table if line.startswith("|")] for table in tables]
    assert rows[0] == rows[1] and len(rows[0]) > 5


def workers(main: int | None) -> list[int]:
    """The processes of a job's slots."""
    if main is None:
        return []
    children = [int(i) for i in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
    return [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def main_of(job_id: str) -> int | None:
    """The process that submitit has started in a job (12, 12_3); None while there is none."""
    array, _, index = job_id.partition("_")
    mark = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"} if index else {f"SLURM_JOB_ID={array}"}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().split("\0")
            environment = (folder / "environ").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended
            continue
        if "python" in command[0] and "submitit.core._submit" in command and mark <= set(environment):
            found[int(folder.name)] = parent
    return next((process for process, parent in found.items() if parent not in found), None)


def tell(machine: Machine, array: Array) -> None:
    machine.call("scancel", "--signal=USR2", array.job_id)


def requeue(machine: Machine, array: Array) -> None:
    machine.call("scontrol", "requeue", array.job_id)


def kill_main(machine: Machine, array: Array) -> None:
    main = main_of(array.job_id)
    assert main is not None
    os.kill(main, signal.SIGKILL)


def kill_worker(machine: Machine, array: Array) -> None:
    one, _ = workers(main_of(array.job_id))
    os.kill(one, signal.SIGKILL)


def kill_node(machine: Machine, array: Array) -> None:
    node = machine.job(array.job_id)["NodeList"]
    machine.kill_node(node)


def preempt(machine: Machine, array: Array) -> None:
    """A job of the higher partition that wants all there is, for a moment."""
    machine.submit("sleep 1", "--partition=high", "--nodes=2", "--exclusive")


@pytest.mark.parametrize("disturb", [tell, requeue, kill_main, kill_worker, kill_node, preempt])
def test_runs_that_are_disturbed_go_on_and_end_as_if_they_had_not_been(
    disturb: Callable[[Machine, Array], None], undisturbed: Path, machine: Machine, tmp_path: Path
) -> None:
    (array,) = submitted(tmp_path, LONG, HOUR)
    folders = [run_folder(tmp_path / "runs", run_id) for run_id in ids(LONG)]
    machine.wait_until(lambda: all((f / "progress.json").exists() for f in folders), "both runs train", timeout=120)
    disturb(machine, array)
    machine.wait_until(lambda: finished(tmp_path, LONG), "both runs have ended", timeout=300)
    assert outcomes(tmp_path, LONG) == outcomes(undisturbed, LONG), said(tmp_path)
    attempts = [len(of_a_run) for of_a_run in lives(tmp_path, LONG)]
    if disturb is kill_worker:  # the other run did not notice
        assert sorted(attempts) == [1, 2]
    elif disturb in (tell, preempt, requeue):
        assert attempts == [2, 2]
        assert all(of_a_run[1]["first_step"] > 0 for of_a_run in lives(tmp_path, LONG)), said(tmp_path)  # type: ignore[operator]
    assert {str(life["slurm_job"]) for of_a_run in lives(tmp_path, LONG) for life in of_a_run} == {array.job_id}
    machine.wait_until(lambda: not in_queue("s"), "no job is left")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is no choice")
def test_both_slots_of_a_job_have_all_its_cores_where_steps_are_bound(machine: Machine, tmp_path: Path) -> None:
    two = study(factors={}, seeds=range(2))
    with machine.configured(bound=True, cpus=2):
        submitted(tmp_path, two, Cluster(time="1:00:00", runs_per_job=4, cpus=2, memory=3))
        machine.wait_until(lambda: finished(tmp_path, two), "all runs have ended", timeout=300)
    assert [attempt["cores"] for attempts in lives(tmp_path, two) for attempt in attempts] == [2] * 4
    assert "2 slots on cpu" in said(tmp_path) and "CPUs" not in said(tmp_path)


def test_a_time_limit_is_no_end(machine: Machine, tmp_path: Path) -> None:
    long = study(arms={"ldn": with_field(LINEAR, "budget", type(LINEAR.budget)(seconds=100))}, factors={}, seeds=[0])
    (array,) = submitted(tmp_path, long, Cluster(time="0:02:00", signal_delay=15, cpus=1, memory=3))
    machine.wait_until(lambda: finished(tmp_path, long), "the run has ended", timeout=600)
    (attempts,) = lives(tmp_path, long)
    record = read_record(tmp_path / "runs", ids(long)[0])
    assert record is not None and record.status == "done" and len(attempts) >= 2, said(tmp_path)
    steps = [int(str(attempt.get("first_step", 0))) for attempt in attempts]
    assert steps == sorted(steps) and steps[-1] > 0
    assert machine.job(array.job_id)["JobState"] in ("COMPLETED", "COMPLETING", "RUNNING")
