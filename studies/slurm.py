"""How do runs get onto a SLURM cluster, and what does a job of theirs do there? The only file that knows submitit."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import submitit

from results.record import read_record, run_folder, study_folder, write_json
from studies.cluster import Cluster
from studies.drive import declare, sole_driver
from studies.executors import ASKING
from studies.jobs import Array, max_array_size, queued_runs
from studies.packed import pack, pool
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


@dataclass
class Job:
    """What one job does: train its runs, and be queued again with those that are left when its time is over."""

    specs: list[dict[str, Any]]
    place: Place
    slots: int
    grace: float

    def __call__(self) -> str:
        asked: list[int] = []
        queue_again: Any = signal.getsignal(signal.SIGUSR2)  # submitit's way to do it, which exits
        for number in ASKING:
            signal.signal(number, lambda number, frame: asked.append(number))
        at = self.place
        executor = pool(at.runs, at.data, at.device, self.slots, at.threads, at.compile)
        try:
            specs = [from_plain(plain) for plain in self.specs]
            left = pack(specs, executor, at.runs, lambda: bool(asked), self.grace, _say)
        finally:
            executor.close()
        if left and signal.SIGUSR2 in asked:
            queue_again(signal.SIGUSR2, None)
        if left:
            raise SystemExit(f"stopped with {len(left)} runs to go")
        return f"{len(specs)} runs have ended"

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again; by then the runs have written their checkpoints."""
        return submitit.helpers.DelayedSubmission(self)


def _say(line: str) -> None:
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
        place = Place(runs.resolve(), place.data.resolve(), place.device, place.threads, place.compile)
        for jobs in asked.arrays:
            for spec in (spec for job in jobs for spec in job):
                _put_aside(runs, spec.run_id)
            packed = [
                Job([canonical(spec) for spec in job], place, asked.slots, cluster.signal_delay * 0.8) for job in jobs
            ]
            ids = [[spec.run_id for spec in job] for job in jobs]
            array = Array(secrets.token_hex(4), ids, time.time(), str(code), asked.slots)
            _submit(packed, array, study_folder(runs, name).resolve(), cluster)
    return asked


def _submit(packed: list[Job], array: Array, folder: Path, cluster: Cluster) -> None:
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
    config = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        with submitit.helpers.clean_env():
            os.environ.update(config)  # which SLURM it is, is no trace of another job
            with executor.batch():
                submitted = [executor.submit(job) for job in packed]
    except (RuntimeError, OSError) as error:
        shutil.rmtree(home)
        raise ValueError(f"SLURM refused: {' '.join(str(error).split())}") from None
    array.job_id = submitted[0].job_id.partition("_")[0]
    write_json(home / "array.json", asdict(array))


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _put_aside(runs: Path, run_id: str) -> None:
    """Have a run that has ended run again: of its record only the attempts stay, where the next one finds them."""
    record = read_record(runs, run_id)
    if record is not None:
        folder = run_folder(runs, run_id)
        write_json(folder / "attempts.json", {"attempts": record.attempts})
        (folder / "record.json").unlink()
