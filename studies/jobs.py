"""Which jobs has SLURM, and which runs were they given? Light, for whoever only looks.

A study's arrays lie in `runs/studies/NAME/slurm/KEY/`: which runs each job was given, and the jobs' logs. A job's name
holds the array's key, so that it is found in SLURM's queue even if whoever submitted it was killed the moment after.
What became of a run, its record says; SLURM is only asked which jobs are alive.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from results.files import read_json
from results.record import study_folder
from results.validation import from_plain


@dataclass
class Array:
    """A submission: the ids of the runs of each of its jobs. `job_id` is empty until SLURM has given one.

    Jobs that take runs from a driver are given none; `role` is then "worker", and that of the driver's job "driver".
    """

    key: str
    jobs: list[list[str]]
    submitted: float
    code: str
    slots: int
    job_id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    role: Literal["batch", "worker", "driver"] = "batch"

    def job(self, index: int) -> str:
        """A job's id, as SLURM writes it (12, of several 12_3)."""
        return self.job_id if len(self.jobs) == 1 else f"{self.job_id}_{index}"


@dataclass(frozen=True)
class InQueue:
    """A job that SLURM holds, as squeue shows it."""

    job_id: str
    state: str
    reason: str
    node: str
    left: str

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return self.state == "PENDING" and re.search("[Hh]eld|JobHold", self.reason) is not None

    @property
    def stuck(self) -> bool:
        """Whether SLURM will not begin it by itself, however long it waits."""
        return self.held or (self.state == "PENDING" and NEVER.search(self.reason) is not None)


Queue = dict[tuple[str, int], InQueue]  # by the array's key and the place in it

# reasons for which a job waits for ever, as long as nobody changes it or the site
NEVER = re.compile(
    r"BadConstraints|Partition(Node|Time)Limit|(Account|QOS)NotAllowed|Invalid(Account|QOS)"
    r"|PerJob(Limit)?$|DependencyNeverSatisfied"
)
NO_MEMORY = re.compile(r"exceeded \w* ?memory limit|out.?of.?memory|oom.?kill", re.IGNORECASE)
NAMED = 5  # jobs that a line names, at most


def max_array_size() -> int:
    """The largest number of jobs of an array here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else 1


def arrays(runs: Path, name: str) -> list[Array]:
    """All submissions of a study, the oldest first."""
    return [array for _, array in all_arrays(runs, name)]


def all_arrays(runs: Path, name: str = "*") -> list[tuple[str, Array]]:
    """The submissions of every study with the study's name, the oldest first."""
    found = []
    for path in runs.glob(f"studies/{name}/slurm/*/array.json"):
        remedy = "delete it if none of its jobs is queued"
        plain = read_json(path, remedy)
        if plain is not None:
            found.append((path.parents[2].name, from_plain(Array, plain, path, remedy)))
    return sorted(found, key=lambda one: one[1].submitted)


def in_queue(name: str) -> Queue:
    """The jobs of a study that SLURM holds, pending or running, by their array's key and their place in it."""
    fields = ("%j", "%F", "%K", "%T", "%r", "%N", "%L")
    said = ask(*squeue(), "--format", "|".join(fields))
    jobs = {}
    for line in said.splitlines():
        if line.count("|") < len(fields) - 1:  # "CLUSTER: name", where SLURM_CLUSTERS chooses one
            continue
        title, job_id, index, state, reason, node, left = line.rsplit("|", len(fields) - 1)
        study, _, key = title.rpartition(".")
        if study == name:
            whole = job_id if not index.isdecimal() else f"{job_id}_{index}"
            jobs[key, int(index) if index.isdecimal() else 0] = InQueue(whole, state, reason, node, left)
    return jobs


def squeue() -> list[str]:
    """The command that lists this user's jobs, or everybody's for a user id without a name, which squeue refuses."""
    command, user = ["squeue", "--noheader", "--array", "--all"], os.getuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        return command
    return [*command, "--user", str(user)]


def restarted() -> dict[str, int]:
    """How often SLURM has begun each of this user's queued jobs again, by the job's id (12, 12_3)."""
    fields = "ArrayJobID:20,ArrayTaskID:20,RestartCnt:20"
    try:
        said = ask(*squeue(), "--Format", fields)
    except ValueError:  # a SLURM that cannot tell
        return {}
    rows = (line.split() for line in said.splitlines() if not line.startswith("CLUSTER:"))
    return {f"{job}_{i}" if i.isdecimal() else job: int(count) for job, i, count in rows}


def stuck_lines(jobs: Iterable[InQueue], command: str) -> list[str]:
    """A line for each reason for which jobs will not begin by themselves: which, why, and what to do."""
    by_reason: dict[tuple[str, bool], list[str]] = {}
    for job in jobs:
        if job.stuck:
            by_reason.setdefault((job.reason, job.held), []).append(job.job_id)
    lines = []
    for (reason, held), ids in by_reason.items():
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        which = f"{len(ids)} job{'s'[: len(ids) > 1]} ({', '.join(ids[:NAMED])}{more})"
        anew = f"`python -m studies cancel NAME` and `python -m studies {command} NAME --on slurm`"
        advice = f"`scontrol release JOB`, or {anew}" if held else f"after a change of slurm.toml {anew}"
        lines.append(f"{which} will not begin by {'itself' if len(ids) == 1 else 'themselves'}, {reason}: {advice}")
    return lines


def queued_runs(runs: Path, name: str, queue: Queue) -> set[str]:
    """The runs that jobs in SLURM's queue were given."""
    submitted = {array.key: array for array in arrays(runs, name)}
    return {run_id for key, index in queue if key in submitted for run_id in submitted[key].jobs[index]}


def ended_jobs(ids: Iterable[str]) -> dict[str, str]:
    """How jobs that are no longer queued ended, as far as SLURM keeps accounts: job id (12, 12_3) -> CANCELLED, ...

    The jobs of an array that never began have one account together, under the array's id.
    """
    wanted = sorted({job.partition("_")[0] for job in ids})
    if not wanted:
        return {}
    try:
        said = ask("sacct", "-X", "-n", "-P", "-j", ",".join(wanted), "-o", "JobID,State")
    except ValueError:  # a site without accounting
        return {}
    ends = {}
    for line in said.splitlines():
        job, _, state = line.partition("|")
        ends[job.partition("_[")[0]] = state.partition(" ")[0]
    return ends


def cancel(runs: Path, name: str) -> int:
    """Take a study's jobs out of SLURM's queue; running runs write their checkpoints. How many jobs it were.

    A search's driver, wherever it runs, ends too. Raises ValueError if `runs` has no such study.
    """
    if not study_folder(runs, name).is_dir():
        raise ValueError(f"{runs} has no study {name!r}, so it has no jobs to cancel; check the name and --runs")
    mark = cancel_mark(runs, name)
    if mark.parent.exists():
        mark.touch()
    return end_jobs(name, arrays(runs, name))


def end_jobs(name: str, submitted: Iterable[Array]) -> int:
    """Take the jobs of these arrays out of SLURM's queue; how many it were."""
    keys = {array.key for array in submitted}
    jobs = [job.job_id for (key, _), job in in_queue(name).items() if key in keys] if keys else []
    if jobs:
        ask("scancel", *sorted({job.partition("_")[0] for job in jobs}))
    return len(jobs)


def cancel_mark(runs: Path, name: str) -> Path:
    """The file that tells a search's driver that its jobs were cancelled."""
    return study_folder(runs, name) / "slurm" / "cancelled"


def log_of(runs: Path, name: str, array: Array, index: int) -> Path:
    """Where a job writes what it says."""
    return study_folder(runs, name) / "slurm" / array.key / f"{array.job(index)}_0_log.out"


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; none where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 500 * lines))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def wanted_memory(log: Path) -> bool:
    """Whether the end of a job's log says that there was not enough memory."""
    return any(NO_MEMORY.search(line) for line in tail(log, 20))


def need(command: str) -> None:
    """Raise ValueError if there is no such command of SLURM's here."""
    if shutil.which(command) is None:
        raise ValueError(
            f"there is no SLURM on this machine ({command} is not on the PATH): call this on a login node of the "
            f"cluster, or run here with --on local"
        )


def ask(*command: str) -> str:
    """What a command of SLURM's prints. Raises ValueError if there is none, or if it fails."""
    need(command[0])
    # without the user's defaults of what is listed, and of whether scancel asks
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=60, env=kept
        ).stdout
    except subprocess.TimeoutExpired:
        raise ValueError(f"SLURM does not answer: {command[0]} took more than 60 s") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{command[0]} failed: {complaint(command[0], error.stderr)}") from None


def complaint(command: str, stderr: str) -> str:
    """What a command of SLURM's complains of, without its name before every line."""
    lines = (re.sub(rf"^{command}:( error:)?", "", line.strip()).strip() for line in stderr.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))
