"""Does the SLURM under test do what real ones do? And is nothing left of it in the end?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import submitit

from tests.slurm import processes
from tests.slurm.daemons import SlurmError
from tests.slurm.machine import MARKER, NODES, TEMPORARY, Machine, end_abandoned, remove

ROOT = Path(__file__).resolve().parents[2]

# notes its start and every signal in $NOTES; ends by itself after the seconds
NOTING = """
import os, signal, sys, time
def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        print(os.environ.get("SLURM_RESTART_COUNT", "0"), text, file=notes)
for name in ("SIGTERM", "SIGCONT", "SIGUSR2"):
    signal.signal(getattr(signal, name), lambda number, frame: note(signal.Signals(number).name))
note("start")
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    time.sleep(0.1)
note("end")
"""


@pytest.fixture
def noting(tmp_path: Path) -> str:
    """The line of a job whose task writes what happens to it into tmp_path/notes."""
    (tmp_path / "noting.py").write_text(NOTING)
    return f"NOTES={tmp_path}/notes srun {sys.executable} {tmp_path}/noting.py"


def notes(tmp_path: Path, text: str = "") -> list[str]:
    """What the task noted, in its lives: "0 start", "0 SIGTERM", "1 start", ..."""
    file = tmp_path / "notes"
    return [line for line in file.read_text().splitlines() if text in line] if file.exists() else []


def test_a_job_completes_and_is_accounted(machine: Machine, tmp_path: Path) -> None:
    job = machine.submit(f"echo $SLURMD_NODENAME > {tmp_path}/node")
    machine.wait_for(job, "COMPLETED")
    assert (tmp_path / "node").read_text().strip() in NODES
    assert machine.accounted(job, "JobID", "State", "ExitCode") == [(job, "COMPLETED", "0:0")]


def test_a_failed_job_is_accounted_with_its_exit_code(machine: Machine) -> None:
    job = machine.submit("exit 3")
    machine.wait_for(job, "FAILED")
    assert machine.accounted(job, "ExitCode") == [("3:0",)]


def test_an_array_runs_each_task(machine: Machine, tmp_path: Path) -> None:
    job = machine.submit(f"touch {tmp_path}/$SLURM_ARRAY_TASK_ID", "--array=0-4%2")
    machine.wait_until(lambda: machine.accounted(job, "State") == [("COMPLETED",)] * 5, "the array is done")
    assert {path.name for path in tmp_path.iterdir()} == set("01234")
    assert {row[0] for row in machine.accounted(job, "JobID")} == {f"{job}_{i}" for i in range(5)}


def test_an_array_beyond_the_limit_is_refused(machine: Machine) -> None:
    with machine.configured(max_array_size=5):
        assert "MaxArraySize            = 5\n" in machine.call("scontrol", "show", "config")
        machine.submit("true", "--array=0-4")
        with pytest.raises(SlurmError, match="Invalid job array specification"):
            machine.submit("true", "--array=0-5")
    machine.submit("true", "--array=0-5")


def test_a_requeued_job_runs_again_and_knows(machine: Machine, tmp_path: Path) -> None:
    job = machine.submit(
        f"echo life ${{SLURM_RESTART_COUNT:-0}} >> {tmp_path}/lives; sleep ${{SLURM_RESTART_COUNT:-60}}"
    )
    machine.wait_until((tmp_path / "lives").exists, "the job runs")
    machine.call("scontrol", "requeue", job)
    machine.wait_for(job, "COMPLETED")
    assert (tmp_path / "lives").read_text() == "life 0\nlife 1\n"
    assert machine.accounted(job, "State") == [("REQUEUED",), ("COMPLETED",)]
    assert machine.job(job)["Restarts"] == "1"


def test_a_higher_partition_preempts(machine: Machine, noting: str, tmp_path: Path) -> None:
    whole = ("--nodelist=n1", "--cpus-per-task=8")
    low = machine.submit(f"{noting} $((90 - 90 * ${{SLURM_RESTART_COUNT:-0}}))", "--partition=low", *whole)
    machine.wait_until(lambda: notes(tmp_path, "start"), "the lower job runs")
    high = machine.submit("sleep 1", "--partition=high", *whole)
    machine.wait_until(lambda: notes(tmp_path, "SIGTERM"), "the lower job is told", timeout=10)
    states = [machine.job(job)["JobState"] for job in (low, high)]
    assert states == ["RUNNING", "PENDING"]  # for the time of grace
    machine.wait_for(high, "COMPLETED", timeout=90)
    machine.wait_for(low, "COMPLETED")
    assert machine.accounted(low, "State") == [("PREEMPTED",), ("COMPLETED",)]
    assert {"0 SIGCONT", "0 SIGTERM", "1 end"} < set(notes(tmp_path)) and "0 end" not in notes(tmp_path)


@pytest.mark.parametrize("warned", [True, False])
def test_preemption_sends_the_signal_asked_for_only_where_so_configured(
    machine: Machine, noting: str, tmp_path: Path, warned: bool
) -> None:
    whole = ("--nodelist=n1", "--cpus-per-task=8")
    with machine.configured(warn_of_preemption=warned):
        machine.submit(f"{noting} 90", "--partition=low", "--signal=USR2@90", "--time=60", *whole)
        machine.wait_until(lambda: notes(tmp_path, "start"), "the lower job runs")
        machine.submit("sleep 1", "--partition=high", *whole)
        machine.wait_until(lambda: notes(tmp_path, "SIGCONT"), "the lower job is told", timeout=10)
        machine.wait_until(lambda: len(notes(tmp_path)) > 2, "both signals are noted", timeout=10)
    assert sorted(notes(tmp_path)) == ["0 SIGCONT", "0 SIGUSR2" if warned else "0 SIGTERM", "0 start"]


def test_a_dead_node_is_found_and_its_jobs_run_elsewhere(machine: Machine, noting: str, tmp_path: Path) -> None:
    job = machine.submit(f"{noting} $((90 - 90 * ${{SLURM_RESTART_COUNT:-0}}))")
    machine.wait_until(lambda: notes(tmp_path, "start"), "the job runs")
    node = machine.job(job)["NodeList"]
    machine.kill_node(node)
    assert not processes.of(machine.folder, node)
    machine.wait_until(lambda: machine.node_state(node) == "DOWN+NOT_RESPONDING", f"{node} is down", timeout=90)
    machine.wait_for(job, "COMPLETED")
    assert [row[0] for row in machine.accounted(job, "State")] == ["NODE_FAIL", "COMPLETED"]
    assert machine.accounted(job, "NodeList")[1] != (node,)
    assert notes(tmp_path) == ["0 start", "1 start", "1 end"]
    machine.start_node(node)
    machine.wait_for(machine.submit("true", f"--nodelist={node}"), "COMPLETED")


def test_a_job_outlives_its_slurmd(machine: Machine, noting: str, tmp_path: Path) -> None:
    job = machine.submit(f"{noting} 6")
    machine.wait_until(lambda: notes(tmp_path, "start"), "the job runs")
    node = machine.job(job)["NodeList"]
    machine.kill_slurmd(node)
    machine.start_node(node)
    machine.wait_for(job, "COMPLETED")
    assert notes(tmp_path) == ["0 start", "0 end"]


@pytest.mark.parametrize("kill", [False, True])
def test_a_controller_that_comes_back_has_lost_nothing(
    machine: Machine, noting: str, tmp_path: Path, kill: bool
) -> None:
    running = machine.submit(f"{noting} 20")
    array = machine.submit("true", "--array=0-2", f"--dependency=afterok:{running}")
    machine.wait_until(lambda: notes(tmp_path, "start"), "the job runs")
    seen, state = time.time(), machine.folder / "state" / "job_state"
    machine.wait_until(lambda: state.exists() and state.stat().st_mtime > seen, "the controller's state is on disk")
    machine.stop_controller(kill)
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        machine.submit("true")
    machine.start_controller()
    machine.wait_for(running, "COMPLETED")
    machine.wait_until(lambda: machine.accounted(array, "State") == [("COMPLETED",)] * 3, "the array is done")
    assert notes(tmp_path) == ["0 start", "0 end"]


def test_gpus_are_given_out_by_number(machine: Machine, tmp_path: Path) -> None:
    script = f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/$SLURM_ARRAY_TASK_ID; sleep 3"
    job = machine.submit(script, "--array=0-1", "--gpus-per-node=1", "--nodelist=n1")
    machine.wait_until(lambda: machine.accounted(job, "State") == [("COMPLETED",)] * 2, "both are done")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"0\n", "1\n"}
    with pytest.raises(SlurmError, match="Requested node configuration is not available"):
        machine.submit("true", "--gpus-per-node=3")


def test_a_job_that_takes_too_much_memory_is_killed(machine: Machine) -> None:
    job = machine.submit(f"{sys.executable} -c 'import time; x = bytearray(400 << 20); time.sleep(30)'", "--mem=100")
    machine.wait_for(job, "FAILED")
    assert machine.accounted(job, "ExitCode") == [("0:9",)]
    assert "exceeded memory limit" in (machine.folder / "tmp" / f"{job}.out").read_text()


def test_submitit_returns_a_functions_value(machine: Machine, tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=2, slurm_partition="low", mem_gb=1, cpus_per_task=1)
    job = executor.submit(divmod, 17, 5)
    machine.wait_for(job.job_id, "COMPLETED")
    assert job.result() == (3, 2)
    jobs = executor.map_array(pow, [2, 3], [5, 2])
    machine.wait_until(lambda: all(job.paths.result_pickle.exists() for job in jobs), "both results are there")
    assert [job.result() for job in jobs] == [32, 9]


class Counter(submitit.helpers.Checkpointable):
    """Counts seconds up to a number, and goes on after an interruption where it was."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, int]] = []

    def __call__(self, seconds: int) -> list[tuple[str, int]]:
        while len(self.counted) < seconds:
            self.counted.append((os.environ.get("SLURM_RESTART_COUNT", "0"), len(self.counted)))
            time.sleep(1)
        return self.counted


def test_time_limits(machine: Machine, noting: str, tmp_path: Path) -> None:
    """One job is warned and ended; one of submitit, beside it to save the minute, asks for a requeue when warned."""
    job = machine.submit(f"{noting} 200", "--time=1", "--signal=USR2@15")
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm", slurm_max_num_timeout=9)
    executor.update_parameters(timeout_min=1, mem_gb=1, slurm_signal_delay_s=15, slurm_setup=[f"cd {ROOT}"])
    counter = executor.submit(Counter(), 50)

    machine.wait_until(lambda: notes(tmp_path, "USR2"), "the job is warned", timeout=60)
    assert machine.state(job) == "RUNNING"
    machine.wait_for(job, "TIMEOUT", timeout=90)
    assert "0 end" not in notes(tmp_path)
    assert machine.job(job)["Restarts"] == "0"  # SLURM requeues by itself for preemption and lost nodes alone

    machine.wait_for(counter.job_id, "COMPLETED", timeout=240)
    lives, counted = zip(*counter.result(), strict=True)
    assert counted == tuple(range(50))
    assert set(lives) == {str(life) for life in range(int(lives[-1]) + 1)} and lives[-1] != "0"


def test_a_folder_that_holds_something_else_is_left_alone(machine: Machine) -> None:
    other = machine.folder / "tmp" / "other"
    (other / "file").mkdir(parents=True)
    for act in (Machine(other).start, Machine(other).stop):
        with pytest.raises(ValueError, match="holds something else"):
            act()
    assert (other / "file").exists()


def test_the_folder_of_a_machine_that_died_while_it_was_removed_goes_too(machine: Machine) -> None:
    left, used = (Path(tempfile.mkdtemp(prefix=TEMPORARY, dir="/tmp")) for _ in range(2))
    (left / MARKER).write_text("1:0")  # process 1 did not start at 0
    (used / MARKER).write_text(processes.identity(os.getpid()))
    end_abandoned()
    assert not left.exists() and used.exists() and machine.folder.exists()
    remove(used)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_machine_whose_owner_ends(machine: Machine, by: signal.Signals) -> None:
    lines = (
        "import time; from tests.slurm.machine import Machine",
        "with Machine() as m: m.submit('setsid sleep 99 & sleep 99'); print(m.folder, flush=True); time.sleep(99)",
    )
    owner = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert len({daemon.name for daemon in processes.daemons() if daemon.folder == folder}) == 6
    machine.wait_until(lambda: len(processes.of(folder)) >= 10, "its job runs")
    owner.send_signal(by)
    owner.wait(timeout=60)
    end_abandoned()  # as the next start does
    assert not processes.of(folder) and not folder.exists()
    assert machine.node_state("n1") == "IDLE"
