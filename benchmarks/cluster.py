"""How fast is the way to a cluster? Starts a real SLURM on this machine, as `make test-slurm` does: root only.

    python -m benchmarks.cluster

Targets: 1 000 runs submitted in under 30 s and 50 MB; the status of 5 000 runs in under 3 s, as a whole command; from
a free slot to the next training at most 2 s, in a study's jobs and in a search's. While submission and status are
measured the jobs are held, so that nothing runs beside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from baselines import LinearConfig
from results.record import RunRecord, read_record, write_record
from studies.cluster import Cluster
from studies.drive import Tally, tune
from studies.executors import Ended
from studies.jobs import cancel, in_queue
from studies.provenance import commit, device_name
from studies.slurm import launch
from studies.spec import Budget, RunSpec, canonical
from studies.study import Cell, Study
from studies.tasks.digits import CuedDigits
from studies.train import Place
from studies.tuning import Tuning
from studies.workers import Workers
from tests.slurm.machine import Machine, missing

SPEC = RunSpec(
    model=LinearConfig(),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=100, evaluations=5),
)
FACTS = Cluster(time="1:00:00", cpus=2, memory=3, slots=1)


class Silent:
    def tick(self, tally: Tally) -> None: ...

    def finished(self, tally: Tally, cell: Cell, record: RunRecord | None, ended: Ended) -> None: ...


def study(seeds: int, trials: int = 1) -> Study:
    space = {"optim.lr": (1e-4, 1e-1, "log")}
    tuning = Tuning(space=space, trials=trials, seeds=[10**6])
    return Study(question="?", reference="linear", arms={"linear": SPEC}, seeds=range(seeds), tuning=tuning)


def place(folder: Path) -> Place:
    return Place(folder / "runs", folder / "data")


def submission(folder: Path) -> None:
    held = Cluster(time="1:00:00", memory=1, sbatch={"hold": True})
    began = time.perf_counter()
    launch(study(1000), "s", "benchmark", held, place(folder))
    seconds = time.perf_counter() - began
    used = sum(path.stat().st_blocks * 512 for path in (folder / "runs").rglob("*"))
    print(f"1,000 runs submitted, a job each: {seconds:.1f} s, {used / 1e6:.1f} MB (targets: 30 s, 50 MB)")


def status(folder: Path) -> None:
    """Of 5 000 runs: 1 000 done, the others pending in jobs of 10."""
    asked = study(5000)
    for cell in asked.cells()[:1000]:
        write_record(folder / "runs", RunRecord(run_id=cell.spec.run_id, spec=canonical(cell.spec), status="done"))
    held = Cluster(time="1:00:00", memory=1, runs_per_job=10, sbatch={"hold": True})
    launch(asked, "s", "benchmark", held, place(folder))
    seconds = []
    (folder / "s.py").touch()
    for _ in range(5):
        began = time.perf_counter()
        command = [sys.executable, "-m", "studies", "status", str(folder / "s.py"), "--runs", str(folder / "runs")]
        said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
        seconds.append(time.perf_counter() - began)
    if "4000 pending: JobHeldUser" not in said:
        raise RuntimeError(f"status says something else: {said}")
    print(f"status of 5,000 runs, the whole command: {median(seconds):.2f} s, median of 5 (target: 3 s)")


def gaps(folder: Path, ids: list[str]) -> str:
    """Between the end of a run and the begin of the next in the same slot."""
    records = [record for run_id in ids if (record := read_record(folder / "runs", run_id)) is not None]
    lives = sorted((r.attempts[-1]["slurm_job"], r.attempts[-1]["started"], r.attempts[-1]["seconds"]) for r in records)
    between = [
        start - (former + lasted) for (job, former, lasted), (other, start, _) in pairwise(lives) if job == other
    ]
    return f"median {median(between):.2f} s, at most {max(between):.2f} s over {len(between)} (target: 2 s)"


def free_slots(machine: Machine, folder: Path) -> None:
    asked = study(20)
    ids = [cell.spec.run_id for cell in asked.cells()]
    facts = Cluster(time="1:00:00", cpus=2, memory=3, slots=1, runs_per_job=20)
    launch(asked, "s", "benchmark", facts, place(folder))
    records = [folder / "runs" / run_id / "record.json" for run_id in ids]
    machine.wait_until(lambda: all(path.exists() for path in records), "all runs have ended", timeout=300)
    print(f"from a free slot to training, a study's: {gaps(folder, ids)}")
    machine.wait_until(lambda: not in_queue("s"), "no job is left")
    asked = study(1, trials=20)
    executor = Workers(asked, "t", FACTS, place(folder), 1)
    _, found = tune(asked, "t", "benchmark", folder / "runs", executor, Silent())
    executor.close()
    print(f"from a free slot to training, a search's: {gaps(folder, [i for t in found.history for i in t['run_ids']])}")


def main() -> None:
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, commit {commit()['commit']}")
    if reason := missing():
        print(f"not measured: {reason}")
        return
    with Machine() as machine:
        os.environ.update(machine.environment())
        for measure in (submission, status):
            with tempfile.TemporaryDirectory() as folder:
                measure(Path(folder))
                cancel(Path(folder) / "runs", "s")
                machine.settle()
        with tempfile.TemporaryDirectory() as folder:
            free_slots(machine, Path(folder))
            machine.settle()


if __name__ == "__main__":
    main()
