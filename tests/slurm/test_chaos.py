"""On a real SLURM on which everything happens that happens to jobs: does each run end once, as if nothing had?

Each time with its own order and moments, of a seed that is printed; `CHAOS_SEED=123` asks for it again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from results.record import read_record, run_folder
from studies import catalogue
from studies.drive import drive
from studies.executors import Local
from studies.jobs import InQueue, in_queue
from studies.train import Place
from studies.tuning import tuned_file
from tests.slurm.machine import NODES, Machine
from tests.slurm.test_launch import lives, main_of, said, workers
from tests.slurm.test_search import attempts, declared, over, studies
from tests.test_drive import Log, ids, outcomes
from tests.test_tuning import listed

STUDY = """
from baselines import LinearConfig
from ldn import LDNConfig
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits

LINEAR = RunSpec(
    model=LinearConfig(),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=600, evaluations=5),
)
LDN = with_field(with_field(LINEAR, "model", LDNConfig(width=8, depth=1, heads=2)), "budget.steps", 80)
STUDY = Study(question="?", reference="linear", arms={"linear": LINEAR, "ldn": LDN}, seeds=range(30))
"""
FACTS = (
    'time = "1:00:00"\npartition = "low"\ncpus = 2\nmemory = 3\nruns_per_job = 10\nparallel = 2\nsignal_delay = 10\n'
)
PATIENCE = 600  # seconds, for all runs to end


class Chaos:
    """What happens to jobs, while some run."""

    def __init__(self, machine: Machine, folder: Path, chance: random.Random) -> None:
        self.machine, self.folder, self.chance = machine, folder, chance
        self.happened: Counter[str] = Counter()

    def strike(self, what: Callable[[InQueue], None]) -> bool:
        """Whether there was anything to strike."""
        running = [job for job in in_queue("s").values() if job.state == "RUNNING"]
        if running:
            self.happened[what.__name__] += 1
            what(self.chance.choice(running))
        return bool(running)

    def kill_a_slot(self, job: InQueue) -> None:
        self._kill(*workers(main_of(job.job_id))[:1])

    def kill_a_job(self, job: InQueue) -> None:
        self._kill(main_of(job.job_id))

    def requeue(self, job: InQueue) -> None:
        self.machine.call("scontrol", "requeue", job.job_id)

    def preempt(self, job: InQueue) -> None:
        self.machine.submit("sleep 2", "--partition=high", "--nodes=1", "--exclusive")

    def lose_a_node(self, job: InQueue) -> None:
        node = self.chance.choice(NODES)
        self.machine.kill_node(node)
        time.sleep(self.chance.uniform(0, 15))
        self.machine.start_node(node)

    def restart_a_slurmd(self, job: InQueue) -> None:
        node = self.chance.choice(NODES)
        self.machine.kill_slurmd(node)
        time.sleep(self.chance.uniform(0, 5))
        self.machine.start_node(node)

    def restart_the_controller(self, job: InQueue) -> None:
        self.machine.stop_controller()
        time.sleep(self.chance.uniform(0, 5))
        self.machine.start_controller()

    def _kill(self, *processes: int | None) -> None:
        for process in processes:
            if process is not None:
                os.kill(process, signal.SIGKILL)


def submit(folder: Path, chance: random.Random) -> None:
    """As a user does whose connection is cut: killed somewhere, called again."""
    call = studies(folder, "run", "s.py", "--on", "slurm")
    time.sleep(chance.uniform(1, 6))
    call.kill()
    call.wait()
    again = studies(folder, "run", "s.py", "--on", "slurm")
    printed = again.communicate(timeout=120)[0]
    assert again.returncode == 0, printed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Where the study was run with nobody disturbing it: by the first process that asks, for all of them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        (folder / "s.py").write_text(STUDY)
        executor = Local([Place(folder / "runs", folder / "data", "cpu")] * 2)
        tally = drive(catalogue.load(folder / "s.py"), "s", "s.py", folder / "runs", executor, Log())
        executor.close()
    assert tally.done == 60
    return folder


@pytest.mark.parametrize("number", range(3))
def test_sixty_runs_end_once_each_whatever_happens(
    number: int, undisturbed: Path, machine: Machine, tmp_path: Path
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    chance = random.Random(seed)
    (tmp_path / "s.py").write_text(STUDY)
    (tmp_path / "slurm.toml").write_text(FACTS)
    asked = catalogue.load(tmp_path / "s.py")
    folders = [run_folder(tmp_path / "runs", run_id) for run_id in ids(asked)]

    def to_go() -> int:
        return sum(not (folder / "record.json").exists() for folder in folders)

    submit(tmp_path, chance)
    machine.wait_until(lambda: to_go() < 60, "the first run has ended", timeout=120)
    chaos = Chaos(machine, tmp_path, chance)
    strikes = [
        chaos.kill_a_slot, chaos.kill_a_job, chaos.requeue, chaos.preempt, chaos.lose_a_node, chaos.restart_a_slurmd,
        chaos.restart_the_controller,
    ]  # fmt: skip
    chance.shuffle(strikes)
    until = time.monotonic() + PATIENCE
    while to_go():
        assert time.monotonic() < until, f"{to_go()} of 60 to go after {dict(chaos.happened)}\n{said(tmp_path)}"
        if strikes and chaos.strike(strikes[-1]):
            strikes.pop()
            time.sleep(chance.uniform(0.5, 4))
        elif not in_queue("s"):  # come back, and call again
            submit(tmp_path, chance)
        else:
            time.sleep(0.5)
    assert len(chaos.happened) == 7, chaos.happened
    assert outcomes(tmp_path, asked) == outcomes(undisturbed, asked), said(tmp_path)
    records = [read_record(tmp_path / "runs", run_id) for run_id in ids(asked)]
    assert [record and record.status for record in records] == ["done"] * 60
    for run_id, lived in zip(ids(asked), lives(tmp_path, asked), strict=True):  # nothing was begun after its end
        assert "seconds" in lived[-1] and said(tmp_path).count(f"run {run_id} done") <= 1, said(tmp_path)
    machine.wait_until(lambda: not in_queue("s"), "no job is left", timeout=120)


def test_a_search_loses_no_trial_whatever_happens_to_its_workers(machine: Machine, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    chaos = Chaos(machine, tmp_path, random.Random(seed))
    path = declared(tmp_path, 40, "")
    driver = studies(tmp_path, "tune", str(path), "--on", "slurm")
    strikes = [
        chaos.kill_a_slot, chaos.kill_a_job, chaos.requeue, chaos.lose_a_node, chaos.restart_the_controller,
    ]  # fmt: skip
    chaos.chance.shuffle(strikes)
    machine.wait_until(lambda: over(tmp_path) >= 1, "a trial is over", timeout=120)
    until = time.monotonic() + PATIENCE
    while driver.poll() is None:
        assert time.monotonic() < until, f"{over(tmp_path)} of 80 over after {dict(chaos.happened)}\n{said(tmp_path)}"
        if strikes and chaos.strike(strikes[-1]):
            strikes.pop()
        time.sleep(chaos.chance.uniform(0.5, 4))
    printed = driver.communicate()[0]
    assert driver.returncode == 0 and tuned_file(path).exists(), printed + said(tmp_path)
    found = listed(tmp_path)
    assert Counter((trial["arm"], trial["status"]) for trial in found.history) == {
        ("linear", "done"): 40,
        ("ldn", "done"): 40,
    }
    assert 0 not in attempts(tmp_path, found) and len(chaos.happened) >= 3, (chaos.happened, printed)
