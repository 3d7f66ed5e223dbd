"""How do runs get onto a SLURM cluster, and what does a job of theirs do there? The only file that knows submitit."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import submitit

from results.files import write_json
from results.record import put_aside, study_folder
from studies.cluster import Cluster
from studies.drive import declare, sole_driver
from studies.executors import ASKING
from studies.jobs import Array, max_array_size, queued_runs
from studies.packed import LOSSES, FixedSupply, Supply, pack, pool
from studies.plan import Plan, plan
from studies.snapshot import snapshot
from studies.spec import canonical, from_plain
from studies.study import Study
from studies.train import Place

# a job that was killed (not: one that ended) is queued again, from a node's failure SLURM does so itself
AGAIN = """code=$?
if [ $code -gt 128 ] && [ $code -lt 160 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {times} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code"""


class Stoppable(ABC):
    """What a job does: it can be stopped, and is queued again with what is left when its time is over."""

    @abstractmethod
    def work(self, stopping: Callable[[], bool]) -> str:
        """All of it, or until `stopping` says so; what is then left to do, empty for nothing."""

    def __call__(self) -> str:
        asked: list[int] = []
        queue_again: Any = signal.getsignal(signal.SIGUSR2)  # submitit's way to do it, which exits
        for number in ASKING:
            signal.signal(number, lambda number, frame: asked.append(number))
        left = self.work(lambda: bool(asked))
        if left and signal.SIGUSR2 in asked:
            queue_again(signal.SIGUSR2, None)
        if left:
            raise SystemExit(f"stopped with {left} to go")
        return "all is done"

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again; by then all that is to be kept is in files."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass
class Job(Stoppable):
    """A job that trains runs in `slots`."""

    place: Place
    slots: int
    grace: float
    losses: ClassVar[int] = LOSSES

    @abstractmethod
    def supply(self) -> Supply:
        """Where its runs come from."""

    def work(self, stopping: Callable[[], bool]) -> str:
        at = self.place
        executor = pool(at.runs, at.data, at.device, self.slots, at.threads, at.compile)
        try:
            left = pack(self.supply(), executor, at.runs, stopping, self.grace, say, self.losses)
        finally:
            executor.close()
        return f"{len(left)} runs" if left else ""


@dataclass
class Batch(Job):
    """A job that was given its runs when it was submitted."""

    specs: list[dict[str, Any]]

    def supply(self) -> Supply:
        return FixedSupply([from_plain(plain) for plain in self.specs])


def say(line: str) -> None:
    """A line of a job's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def launch(
    study: Study,
    name: str,
    source: str,
    cluster: Cluster,
    place: Place,
    slots: int | None = None,
    retry: bool = False,
    dry: bool = False,
) -> Plan:
    """Submit every run of a study that is neither finished nor queued; returns at once. `dry`: say only what would be.

    Raises ValueError where there is no SLURM, or where it refuses.
    """
    runs, cells = place.runs, study.cells()
    if dry:
        there = shutil.which("sbatch") is not None
        queued = queued_runs(runs, name) if there else set()
        return plan(runs, cells, cluster, place.threads, slots, retry, queued, max_array_size() if there else None)
    largest = max_array_size()
    with sole_driver(study_folder(runs, name), name):
        declare(study, name, source, runs, cells)
        asked = plan(runs, cells, cluster, place.threads, slots, retry, queued_runs(runs, name), largest)
        if not asked.jobs:
            return asked
        code = snapshot(runs)
        place = absolute(place)
        for jobs in asked.arrays:
            for spec in (spec for job in jobs for spec in job):
                put_aside(runs, spec.run_id)
            packed = [Batch(place, asked.slots, cluster.grace, [canonical(spec) for spec in job]) for job in jobs]
            ids = [[spec.run_id for spec in job] for job in jobs]
            array = Array(secrets.token_hex(4), ids, time.time(), str(code), asked.slots)
            submit(packed, array, study_folder(runs, name).resolve(), cluster)
    return asked


def absolute(place: Place) -> Place:
    return replace(place, runs=place.runs.resolve(), data=place.data.resolve())


def submit(jobs: Sequence[Callable[[], Any]], array: Array, folder: Path, cluster: Cluster) -> None:
    """Have SLURM run these as one array; `array` is written before and, with the id it was given, after.

    Raises ValueError if SLURM refuses.
    """
    parameters = cluster.parameters(f"{folder.name}.{array.key}")
    array.parameters = parameters | cluster.sbatch
    home = folder / "slurm" / array.key
    write_json(home / "array.json", asdict(array))
    executor = submitit.SlurmExecutor(home, max_num_timeout=cluster.requeues)
    # what the job imports is the copy: not this folder, where a job would begin, nor what is installed
    setup = [*cluster.setup, f"cd {_quoted(array.code)} || exit 1", f"export PYTHONPATH={_quoted(array.code)}"]
    teardown = AGAIN.format(times=cluster.requeues).splitlines()
    extra = {"requeue": True, **cluster.sbatch}
    executor.update_parameters(**parameters, setup=setup, teardown=teardown, additional_parameters=extra)
    shielded = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # sbatch too: it ends what it has begun
    config = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        with submitit.helpers.clean_env():
            os.environ.update(config)  # which SLURM it is, is no trace of another job
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
    except (RuntimeError, OSError) as error:
        shutil.rmtree(home, ignore_errors=True)
        raise ValueError(f"SLURM refused: {' '.join(str(error).split())}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, shielded)
    array.job_id = submitted[0].job_id.partition("_")[0]
    write_json(home / "array.json", asdict(array))


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"
