"""How do runs get onto a SLURM cluster, and what has become of their jobs? The only file that knows submitit.

A study's arrays lie in `runs/studies/NAME/slurm/KEY/`: which runs each job was given, and the jobs' logs. A job's name
holds the array's key, so that it is found in SLURM's queue even if whoever submitted it was killed the moment after.
What became of a run, its record says; SLURM is only asked which jobs are alive.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import submitit

from results.record import read_json, read_record, run_folder, study_folder, write_json
from studies.cluster import Cluster
from studies.drive import declare, sole_driver
from studies.executors import ASKING
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


@dataclass
class Array:
    """A submission: the ids of the runs of each of its jobs. `job_id` is empty until SLURM has given one."""

    key: str
    jobs: list[list[str]]
    submitted: float
    code: str
    slots: int
    job_id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InQueue:
    """A job that SLURM holds, as squeue shows it."""

    job_id: str
    state: str
    reason: str
    node: str
    left: str


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
    setup = [*cluster.setup, f"cd {_quoted(array.code)}", f"export PYTHONPATH={_quoted(array.code)}"]
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


# what SLURM says


def max_array_size() -> int:
    """The largest number of jobs of an array here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else 1


def arrays(runs: Path, name: str) -> list[Array]:
    """All submissions of a study, the oldest first."""
    return [array for _, array in all_arrays(runs, name)]


def all_arrays(runs: Path, name: str = "*") -> list[tuple[str, Array]]:
    """The submissions of every study with the study's name, the oldest first."""
    found = []
    for path in runs.glob(f"studies/{name}/slurm/*/array.json"):
        plain = read_json(path, "delete it if none of its jobs is queued")
        if plain is not None:
            found.append((path.parents[2].name, Array(**plain)))
    return sorted(found, key=lambda one: one[1].submitted)


def in_queue(name: str) -> dict[tuple[str, int], InQueue]:
    """The jobs of a study that SLURM holds, pending or running, by their array's key and their place in it."""
    fields = ("%j", "%F", "%K", "%T", "%r", "%N", "%L")
    said = _ask("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", f"--format={'|'.join(fields)}")
    jobs = {}
    for line in said.splitlines():
        title, job_id, index, state, reason, node, left = line.split("|")
        study, _, key = title.rpartition(".")
        if study == name:
            whole = job_id if not index.isdecimal() else f"{job_id}_{index}"
            jobs[key, int(index) if index.isdecimal() else 0] = InQueue(whole, state, reason, node, left)
    return jobs


def queued_runs(runs: Path, name: str) -> set[str]:
    """The runs that jobs in SLURM's queue were given."""
    submitted = {array.key: array for array in arrays(runs, name)}
    alive = in_queue(name) if submitted else {}
    return {run_id for key, index in alive if key in submitted for run_id in submitted[key].jobs[index]}


def ended_jobs(ids: Iterable[str]) -> dict[str, str]:
    """How jobs that are no longer queued ended, as far as SLURM keeps accounts: job id (12, 12_3) -> CANCELLED, ..."""
    wanted = ",".join(ids)
    if not wanted:
        return {}
    try:
        said = _ask("sacct", "-X", "-n", "-P", "-j", wanted, "-o", "JobID,State")
    except ValueError:  # a site without accounting
        return {}
    return {line.partition("|")[0]: line.partition("|")[2].partition(" ")[0] for line in said.splitlines()}


def cancel(name: str) -> int:
    """Take a study's jobs out of SLURM's queue; running runs write their checkpoints. How many jobs it were."""
    jobs = in_queue(name)
    if jobs:
        _ask("scancel", *sorted({job.job_id.partition("_")[0] for job in jobs.values()}))
    return len(jobs)


def log_of(runs: Path, name: str, array: Array, index: int) -> Path:
    """Where a job writes what it says."""
    job = array.job_id if len(array.jobs) == 1 else f"{array.job_id}_{index}"
    return study_folder(runs, name) / "slurm" / array.key / f"{job}_0_log.out"


def _ask(*command: str) -> str:
    """What a command of SLURM's prints. Raises ValueError if there is none, or if it fails."""
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"there is no SLURM on this machine ({command[0]} is not on the PATH): call this on a login node of the "
            f"cluster, or run here with --on local"
        )
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        raise ValueError(f"SLURM does not answer: {command[0]} took more than 60 s") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{command[0]} failed: {' '.join(error.stderr.split())}") from None
