"""How does a search run on a SLURM cluster? Its driver offers runs, which jobs that stay, the workers, take.

The driver starts as many jobs as there are runs for, and more when some are gone. It may be stopped or killed at any
moment: the workers finish what they have, and the next driver goes on. It runs where it is called or, `detached`, in a
job of its own.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from results.record import put_aside, read_tuning, run_folder, study_folder
from results.text import PlainConsole
from studies.cluster import Cluster
from studies.display import Display, winners
from studies.drive import sole_driver, tune
from studies.executors import Ended, Executor
from studies.jobs import (
    Array,
    arrays,
    cancel_mark,
    end_jobs,
    in_queue,
    log_of,
    max_array_size,
    need,
    tail,
    wanted_memory,
)
from studies.offers import Offers, Taker
from studies.packed import Supply
from studies.plan import split
from studies.sbatch import sbatch_lines
from studies.slurm import Job, Stoppable, placed, submit
from studies.snapshot import snapshot
from studies.spec import RunSpec
from studies.study import Study
from studies.train import Place
from studies.tuning import freeze, searched

FOLDER = "offered"  # in the study's
LOOK_SECONDS = 0.1  # between two looks at what has ended
ASK_SECONDS = 10.0  # between two questions to SLURM
BROKEN = 4  # workers that come to nothing, one after another, until the driver gives up
REFUSED = 60  # submissions that SLURM refuses, one after another, though it had accepted others before
LOCK_SECONDS = 180.0  # that a driver's next life waits for the lock of its last, which a lost node may seem to hold


@dataclass
class Worker(Job):
    """A job that trains what the driver offers, until there is nothing more."""

    folder: Path
    name: str
    losses: ClassVar[int] = 0  # the driver has it tried again

    def supply(self) -> Supply:
        return Taker(self.folder, self.name)

    def work(self, stopping: Callable[[], bool]) -> str:
        left = super().work(stopping)
        if not left:
            Taker(self.folder, self.name).leave()
        return left


class Workers(Executor):
    """Slots in jobs of a cluster, for a study's search; by default so many in a job as the cluster's facts say.

    Raises ValueError where there is no SLURM, or where the runs do not fit into its jobs.
    """

    def __init__(self, study: Study, name: str, cluster: Cluster, place: Place, slots: int | None) -> None:
        self.name, self.cluster, self.place = name, cluster, placed(place, cluster)
        self.slots = slots or cluster.slots_for(place.threads)
        self.most = capacity(study, cluster, self.slots)
        self.study = study_folder(self.place.runs, name)
        self.largest = max_array_size()
        self.out: dict[str, RunSpec] = {}  # runs that were submitted and have not ended
        self.told: set[str] = set()  # those of which a worker says that they have
        self.over: list[Ended] = []
        self.next_question = 0.0  # to SLURM
        self.mine: set[str] = set()  # the workers that this driver has submitted and that were not gone yet
        self.good: set[str] = set()  # workers that were good for something
        self.broken: list[str] = []  # those that were not, since a run has ended
        self.accepted, self.refused = False, 0  # whether any submission was; how many were not, one after another
        self.stopped = True  # until it begins

    def begin(self) -> None:
        self.cancelled = cancel_mark(self.place.runs, self.name)
        self.cancelled.unlink(missing_ok=True)
        self.code = str(snapshot(self.place.runs))
        self.offers = Offers(self.study / FOLDER)
        self.former = self.offers.placed()  # what workers have that a former driver has started
        with suppress(ValueError):  # SLURM does not answer at the moment
            end_jobs(self.name, [array for array in self._arrays() if array.code != self.code])
        self.stopped = False

    def free(self) -> int:
        return 0 if self.stopped else self.most - len(self.out)

    def submit(self, spec: RunSpec) -> None:
        self.out[spec.run_id] = spec
        if not (spec.run_id in self.former and spec.run_id in self.offers.placed()):
            put_aside(self.place.runs, spec.run_id)
            self.offers.offer(spec)

    def ended(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        if not self.stopped and self.cancelled.exists():
            self._cancel()
        while not self.stopped:
            self.told |= set(self.offers.ended()) & self.out.keys()
            self.over += [Ended(run_id) for run_id in sorted(self.told) if _has_record(self.place.runs, run_id)]
            if self.over or time.monotonic() > until:
                break
            time.sleep(LOOK_SECONDS)
        if self.over:
            self.broken = []
        if not self.stopped and time.monotonic() > self.next_question:
            self._see_to_workers()
            self.next_question = time.monotonic() + ASK_SECONDS
        over, self.over = self.over, []
        for ended in over:
            self.out.pop(ended.run_id)
            self.told.discard(ended.run_id)
        return over

    def stop(self) -> None:
        """The workers go on with what was offered; whoever drives next finds it done."""
        self._end_all(stopped=True)

    def close(self) -> None:
        if not self.stopped and not self.out:
            self.offers.close()

    def _cancel(self) -> None:
        self.offers.withdraw()
        with suppress(ValueError):  # those submitted since somebody has cancelled
            end_jobs(self.name, self._arrays())
        self.stop()

    def _arrays(self) -> list[Array]:
        return [array for array in arrays(self.place.runs, self.name) if array.role == "worker"]

    def _see_to_workers(self) -> None:
        """Offer again what is in the hands of none that works, and submit as many as are missing."""
        keys = {array.key for array in self._arrays()}
        held = self.offers.held()
        try:
            queue = {_named(*at): job for at, job in in_queue(self.name).items() if at[0] in keys}
        except ValueError:  # SLURM does not answer at the moment
            return
        stuck = {worker for worker, job in queue.items() if job.held}
        waiting = {worker for worker, job in queue.items() if job.state == "PENDING"} - stuck
        working = {worker for worker, job in queue.items() if job.state not in ("PENDING", "COMPLETING")}
        # of one that does go on, the runs' locks keep others off
        self.good |= {worker for worker in set(held) - working if self.offers.give_back(worker)}
        gone = self.mine - (queue.keys() - stuck)
        self.broken += sorted(gone - self.good)
        self.mine -= gone
        for run_id in self.out.keys() - self.told - self.offers.placed():
            self.offers.offer(self.out[run_id])
        if len(self.broken) >= BROKEN:
            self._give_up()
            return
        missing = -(-len(self.out) // self.slots) - len(working) - len(waiting)
        if missing > 0 and self.offers.waiting():
            self._submit(missing)

    def _submit(self, missing: int) -> None:
        for part in split(range(missing), self.largest):
            key, folder = secrets.token_hex(4), self.study / FOLDER
            array = Array(key, [[] for _ in part], time.time(), self.code, self.slots, role="worker")
            names = [_named(key, index) for index in range(len(part))]
            workers = [Worker(self.place, self.slots, self.cluster.grace, folder, name) for name in names]
            try:
                submit(workers, array, self.study, self.cluster)
            except ValueError as error:
                self.refused += 1
                if not self.accepted or self.refused >= REFUSED:  # what was accepted before may be again
                    self._end_all(error=str(error), fatal=True)
                return
            self.accepted, self.refused = True, 0
            self.mine |= set(names)

    def _give_up(self) -> None:
        key, _, index = self.broken[-1].partition(".")
        array = next(array for array in self._arrays() if array.key == key)
        log = log_of(self.place.runs, self.name, array, int(index))
        said = [line for line in tail(log, 20) if not line.startswith(("srun:", "slurmstepd:"))]
        why = " for want of memory" if wanted_memory(log) else ""
        reason = (
            f"{len(self.broken)} jobs have ended{why} before any of their runs had; the last one said: "
            f"{said[-1] if said else 'nothing'} ({log})"
        )
        self._end_all(error=reason, fatal=True)

    def _end_all(self, **how: Any) -> None:
        self.stopped = True
        over = {ended.run_id for ended in self.over}
        self.over += [Ended(run_id, **how) for run_id in self.out if run_id not in over]


def _has_record(runs: Path, run_id: str) -> bool:
    """By a listing of the folder: a network file system may remember for long that a file was not there."""
    try:
        return "record.json" in os.listdir(run_folder(runs, run_id))
    except FileNotFoundError:
        os.listdir(runs)  # the folder itself may be what is not known yet
        return False


def _named(key: str, index: int) -> str:
    return f"{key}.{index}"


def capacity(study: Study, cluster: Cluster, slots: int) -> int:
    """How many runs of a search go on at once: a quarter of its trials, or it would be blind."""
    assert study.tuning is not None
    at_once = sum(-(-trials // 4) for trials in wanted_trials(study))
    return min(cluster.parallel * slots, at_once * len(study.tuning.seeds))


def wanted_trials(study: Study) -> list[int]:
    """How many trials each arm is to have; one of which nothing is searched needs one."""
    assert study.tuning is not None
    return [study.tuning.trials if searched(arm.spec, study.tuning.space) else 1 for arm in study.declared()]


def foreseen(study: Study, name: str, cluster: Cluster, place: Place, slots: int | None) -> list[str]:
    """What a search would do, a line each, for a person.

    Raises ValueError if the study declares none, or if its runs do not fit into the cluster's jobs.
    """
    if study.tuning is None:
        raise ValueError(f"study {name} declares no tuning: give its Study a tuning=Tuning(space=..., trials=...)")
    misfits = cluster.misfits(placed(place, cluster).device, place.threads, slots)
    slots = slots or cluster.slots_for(place.threads)
    most = capacity(study, cluster, slots)
    jobs = -(-most // slots)
    wanted = sum(wanted_trials(study))
    record = read_tuning(study_folder(place.runs, name) / "trials.json")
    over = 0 if record is None else wanted - record.left
    seeds = len(study.tuning.seeds)
    return [
        f"{wanted} trials x {seeds} seed{'s'[: seeds > 1]}: {over} over, {wanted - over} to go",
        f"at most {most} runs at a time in {jobs} job{'s'[: jobs > 1]} of {slots} slot{'s'[: slots > 1]}",
        *sbatch_lines(cluster, study_folder(place.runs.resolve(), name), min(jobs, cluster.parallel)),
        *misfits,
    ]


def detached(
    study: Study, name: str, source: str, path: Path, cluster: Cluster, place: Place, slots: int | None, retry: bool
) -> str:
    """Submit a search's driver as a job; its id. Raises ValueError if there is one already, or no SLURM."""
    need("sbatch")
    folder = study_folder(place.runs, name)
    with sole_driver(folder, name):
        drivers = {array.key for array in arrays(place.runs, name) if array.role == "driver"}
        for (key, _), job in in_queue(name).items():
            if key in drivers:
                raise ValueError(
                    f"job {job.job_id} drives the search of {name} already ({job.state.lower()}); "
                    f"`python -m studies status {name}` shows how far it is"
                )
        array = Array(secrets.token_hex(4), [[]], time.time(), str(snapshot(place.runs)), 1, role="driver")
        driver = Driver(study, name, source, path.resolve(), cluster, placed(place, cluster), slots, retry)
        submit([driver], array, folder.resolve(), cluster.for_driver())
    return array.job_id


@dataclass
class Driver(Stoppable):
    """A search's driver as a job; `path` is the study's file, beside which the winners are written."""

    study: Study
    name: str
    source: str
    path: Path
    cluster: Cluster
    place: Place
    slots: int | None
    retry: bool

    def work(self, stopping: Callable[[], bool]) -> str:
        console, runs = PlainConsole(force_terminal=False, width=160), self.place.runs
        made = Workers(self.study, self.name, self.cluster, self.place, self.slots)
        lives = int(os.environ.get("SLURM_RESTART_COUNT", 0))  # a later one only goes on
        with Display(console, runs, self.name) as display, closing(made) as executor:
            tally, found = tune(
                self.study, self.name, self.source, runs, executor, display, stopping, self.retry and not lives,
                patience=LOCK_SECONDS if lives else 0.0,
            )  # fmt: skip
        if tally.fatal:
            raise SystemExit(tally.fatal)
        if missing := found.left:
            return f"{missing} trials"
        console.print(winners(found))
        console.print(f"written to {freeze(found, self.path)}")
        return ""
