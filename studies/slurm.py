"""How do runs get onto a SLURM cluster, and what does a job of theirs do there? Submission is by submitit."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import submitit

from results.environment import use_temporary_caches
from results.files import write_json
from results.record import discard, put_aside, study_folder
from studies.cluster import Cluster
from studies.drive import declare, sole_driver
from studies.executors import ASKING
from studies.jobs import Array, Queue, arrays, complaint, in_queue, max_array_size, queued_runs, stuck_lines
from studies.leftovers import remove_leftovers
from studies.packed import LOSSES, FixedSupply, Supply, pack, pool
from studies.plan import Plan, plan
from studies.retrain import runs_to_retrain
from studies.sbatch import refuse_site, sbatch_environment, sbatch_lines, sbatch_options, submit_parameters
from studies.snapshot import snapshot
from studies.spec import canonical, from_plain
from studies.study import Study
from studies.train import Place

# A job that was killed (not: one that ended) is queued again, unless that has come too soon after its start too often
# in a row, as it does for want of memory. From a node's failure SLURM queues it again itself.
AGAIN = """code=$?
deaths={home}/deaths-$SLURM_JOB_ID  # how many quick ones in a row
no="the job is not queued again: it was killed (exit code $code)"
if [ $code -gt 128 ] && [ $code -lt 160 ]; then
    quick=0
    if [ $SECONDS -lt {quick} ]; then quick=$(($(cat "$deaths" 2>/dev/null) + 1)); fi
    echo $quick > "$deaths"
    if [ $quick -ge {deaths} ]; then
        echo "$no within {quick} s of its start {deaths} times in a row"
    elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {times} ]; then
        echo "$no and was queued again {times} times already"
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
else
    rm -f "$deaths"
fi
exit $code"""
QUICK_SECONDS = 120
QUICK_DEATHS = 6


class Stoppable(ABC):
    """What a job does: it can be stopped, and is queued again with what is left when its time is over."""

    @abstractmethod
    def work(self, stopping: Callable[[], bool]) -> str:
        """All of it, or until `stopping` says so; what is then left to do, empty for nothing."""

    def __call__(self) -> str:
        use_temporary_caches()
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
        try:
            executor = pool(at.runs, at.data, at.device, self.slots, at.threads, at.compile, say)
        except ValueError as error:  # the node has no such device
            raise SystemExit(str(error)) from None
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
    retrain: Sequence[str] | None = None,
) -> Plan:
    """Submit every run of a study that is neither finished nor queued; returns at once. `dry`: say only what would be.

    `retrain` is as in `drive`; what is queued already is left alone. Raises ValueError where there is no SLURM, where
    it refuses, or where the runs do not fit into its jobs.
    """
    runs, cells, at = place.runs, study.cells(), placed(place, cluster)
    again = [] if retrain is None else runs_to_retrain(runs, cells, retrain)

    def planned(queue: Queue, largest: int | None) -> Plan:
        found = plan(runs, cells, cluster, place.threads, slots, retry, queued_runs(runs, name, queue), largest, again)
        if found.jobs:
            found.sbatch = sbatch_lines(cluster, study_folder(at.runs, name), len(found.arrays[0]))
            found.notes += cluster.misfits(at.device, place.threads, slots)
        found.notes += stuck_lines(queue.values(), "run")
        return found

    if dry:
        there = shutil.which("sbatch") is not None
        return planned(in_queue(name) if there else {}, max_array_size() if there else None)
    largest = max_array_size()
    with sole_driver(study_folder(runs, name), name):
        declare(study, name, source, runs, cells)
        remove_leftovers(runs, name, dict.fromkeys(cell.spec.run_id for cell in cells))
        asked = planned(in_queue(name) if arrays(runs, name) else {}, largest)
        if not asked.jobs:
            return asked
        code = snapshot(runs)
        for jobs in asked.arrays:
            for spec in (spec for job in jobs for spec in job):
                (discard if spec.run_id in again else put_aside)(runs, spec.run_id)
            packed = [Batch(at, asked.slots, cluster.grace, [canonical(spec) for spec in job]) for job in jobs]
            ids = [[spec.run_id for spec in job] for job in jobs]
            array = Array(secrets.token_hex(4), ids, time.time(), str(code), asked.slots)
            submit(packed, array, study_folder(runs, name).resolve(), cluster)
    return asked


def placed(place: Place, cluster: Cluster) -> Place:
    """The place as a job is told of it. Raises ValueError where a run does not fit into a job."""
    cluster.refuse(place.threads)
    refuse_site(place.runs.resolve(), cluster)
    device = cluster.device_for(place.device)
    return replace(place, runs=place.runs.resolve(), data=place.data.resolve(), device=device)


def submit(jobs: Sequence[Callable[[], Any]], array: Array, folder: Path, cluster: Cluster) -> None:
    """Have SLURM run these as one array; `array` is written before and, with the id it was given, after.

    Raises ValueError if SLURM refuses.
    """
    home = folder / "slurm" / array.key
    parameters = submit_parameters(cluster, f"{folder.name}.{array.key}")
    array.parameters = cluster.parameters(f"{folder.name}.{array.key}") | cluster.sbatch
    write_json(home / "array.json", asdict(array))
    executor = submitit.SlurmExecutor(home, max_num_timeout=cluster.requeues)
    setup = [
        *cluster.setup,
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # since SLURM 22.05 srun does not take the job's CPUs itself
        # the job imports the copy of the code, not the folder where it starts, nor an installed package
        f"cd {_quoted(array.code)} || exit 1",
        f"export PYTHONPATH={_quoted(array.code)}",
    ]
    again = AGAIN.format(times=cluster.requeues, home=_quoted(str(home)), quick=QUICK_SECONDS, deaths=QUICK_DEATHS)
    executor.update_parameters(**parameters, setup=setup, teardown=again.splitlines())
    shielded = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # sbatch too: it ends what it has begun
    environment = sbatch_environment(sbatch_options(parameters, home, len(jobs)))
    try:
        # what sbatch complains of is printed by submitit and raised as well: told once
        with submitit.helpers.clean_env(), redirect_stderr(io.StringIO()):
            os.environ.update(environment)
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
    except (RuntimeError, OSError) as error:
        shutil.rmtree(home, ignore_errors=True)
        raise ValueError(f"SLURM refused: {complaint('sbatch', str(error))}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, shielded)
    array.job_id = submitted[0].job_id.partition("_")[0]
    write_json(home / "array.json", asdict(array))


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"
