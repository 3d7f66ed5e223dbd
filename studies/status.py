"""How far is a study? Read from its files and, if it was submitted to a cluster, from SLURM's queue."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from results.declarations import undeclared_note
from results.entries import CellEntry
from results.files import CorruptFile
from results.record import manifest_of, older_files, read_attempts, read_manifest, read_record, unfinished
from results.signals import interrupt_on_signals
from results.stale import read_records, study_lines
from results.text import styled, styled_lines
from studies.jobs import (
    Array,
    InQueue,
    Queue,
    all_arrays,
    arrays,
    ended_jobs,
    in_queue,
    log_of,
    restarted,
    stuck_lines,
    tail,
    wanted_memory,
)
from studies.progress import is_fresh, progress_of, progress_text
from studies.search_status import search_shown

COLUMNS = ("done", "running", "pending", "stopped", "to go", "lost", "failed")
NAMED = {"missing": "to go", "waiting": "pending", "cancelled": "stopped"}  # the column of a state, if not its name
TOGETHER = ("pending", "waiting", "cancelled")  # of which only the number is told, by their reasons
LOG_LINES = 3
RUN_ID = re.compile("[0-9a-f]{1,16}")


@dataclass(frozen=True)
class State:
    """Where the run of one cell is. `text` says more; empty for what is done or to go."""

    arm: str
    seed: int
    run_id: str
    status: str
    text: str = ""
    restarts: int = 0  # of the queued job that it was given to

    @property
    def column(self) -> str:
        name = NAMED.get(self.status, self.status)
        return name if name in COLUMNS else "failed"


@dataclass(frozen=True)
class JobOfRun:
    """The job that a run was given to last."""

    array: Array
    index: int
    queued: InQueue | None
    restarts: int

    @property
    def job_id(self) -> str:
        return self.array.job(self.index)


def look(runs: Path, name: str) -> tuple[list[State], str]:
    """The state of every cell, and what is to be said of SLURM: that it could not be asked, or holds jobs back.

    Raises ValueError for a study that was never run here.
    """
    manifest = manifest_of(runs, name)
    submitted, note = arrays(runs, name), ""
    queue: Queue = {}
    try:
        queue = in_queue(name) if submitted else {}
    except ValueError as error:
        note = f"the cluster could not be asked, so what is pending is not known: {error}"
    asked = not note
    of_runs = [job for (key, _), job in queue.items() if key in {array.key for array in submitted if any(array.jobs)}]
    restarts = restarted() if of_runs else {}
    note = "\n".join([note] * (not asked) + stuck_lines(of_runs, "run"))
    given = {
        run_id: JobOfRun(array, index, queue.get((array.key, index)), restarts.get(array.job(index), 0))
        for array in submitted
        for index, job in enumerate(array.jobs)
        for run_id in job
    }
    states = [_state(runs, cell, given.get(cell["run_id"]), asked) for cell in manifest.cells]
    gone = {given[state.run_id].job_id for state in states if state.status == "lost" and state.run_id in given}
    ends = ended_jobs(sorted(gone))
    note = "\n".join(line for line in (note, undeclared_note(runs, manifest)) if line)
    return [
        _lost(runs, name, s, given[s.run_id], ends) if s.status == "lost" and not s.text else s for s in states
    ], note


def _state(runs: Path, cell: CellEntry, given: JobOfRun | None, asked: bool) -> State:
    run_id = cell["run_id"]

    def state(status: str, text: str = "") -> State:
        restarts = given.restarts if given and status in ("pending", "waiting", "running") else 0
        return State(cell["arm"], cell["seed"], run_id, status, text, restarts)

    try:
        record = read_record(runs, run_id)
        status, reason = (record.status, record.reason) if record else unfinished(runs, run_id)
    except CorruptFile as error:
        return state("corrupt", f"corrupt: {error}")
    if record is not None:
        return state(status, "" if status == "done" else f"{status}: {reason}")
    queued = given.queued if given else None
    if queued is not None and queued.state == "PENDING":
        return state("pending", queued.reason)
    where = progress_of(runs, run_id) if status in ("running", "stopped") else None
    if status == "running" or (queued is not None and is_fresh(where)):
        at = "" if queued is None else f", on {queued.node}, job {queued.job_id} ({queued.left} left of it)"
        step = f"step {where['step']}, " if where else ""
        return state("running", f"running, {step}{progress_text(where)}{at}")
    if queued is not None:
        return state("waiting", f"for a slot of job {queued.job_id} on {queued.node}")
    if given is not None and asked:
        return state("lost")
    return state(status, reason if status == "stopped" else "")


def _lost(runs: Path, name: str, state: State, given: JobOfRun, ends: dict[str, str]) -> State:
    """What became of a run whose job is no longer queued and that has no record."""
    end = ends.get(given.job_id) or ends.get(given.array.job_id) or "is no longer queued"
    if end == "CANCELLED":
        return State(state.arm, state.seed, state.run_id, "cancelled", "`run` submits them again")
    log = log_of(runs, name, given.array, given.index)
    last = "".join(f"\n    {line}" for line in tail(log, LOG_LINES)) or "; it has said nothing"
    why = " (out of memory: memory in slurm.toml)" if end != "OUT_OF_MEMORY" and wanted_memory(log) else ""
    return State(state.arm, state.seed, state.run_id, "lost", f"lost: its job {given.job_id} {end}{why}{last}")


def _again(state: State) -> str:
    if not state.restarts:
        return ""
    times = f"{state.restarts} time{'s'[: state.restarts > 1]}"
    return f"; the job was restarted {times}, `python -m studies logs {state.run_id}` says why"


def shown(states: Iterable[State], note: str) -> Group:
    """The counts of every arm, and a line for each run that is neither done nor to go; those in line together."""
    states = list(states)
    counts: dict[str, Counter[str]] = {}
    for state in states:
        counts.setdefault(state.arm, Counter())[state.column] += 1
    columns = [name for name in COLUMNS if name not in ("pending", "lost") or any(s.column == name for s in states)]
    table = Table("arm", *columns, box=None)
    for arm, count in counts.items():
        table.add_row(styled(arm), *(str(count[name] or "") for name in columns))
    parts: list[Any] = [table]
    together: dict[tuple[str, str, int], dict[str, State]] = {}
    for state in (state for state in states if state.status in TOGETHER):
        together.setdefault((state.status, state.text, state.restarts), {})[state.run_id] = state
    for (status, text, _), alike in together.items():
        parts.append(styled(f"{len(alike)} {status}: {text}{_again(next(iter(alike.values())))}"))
    for state in states:
        if state.text and state.status not in TOGETHER:
            said = styled(f"{state.arm}, seed {state.seed}: ") + styled_lines(f"{state.text}{_again(state)} ")
            parts.append(said.append(state.run_id, "dim"))
    if note:
        parts.append(styled_lines(note, "yellow"))
    return Group(*parts)


def show_status(console: Console, runs: Path, name: str, every: float | None = None) -> None:
    """Print how far a study and its search are; with `every`, again and again, until all has ended or Ctrl-C.

    Raises ValueError for a study of which nothing was run or searched here.
    """
    whole, going = _whole(runs, name)
    if every is None:
        console.print(whole, soft_wrap=True)
        return
    with interrupt_on_signals(), suppress(KeyboardInterrupt), Live(whole, console=console, auto_refresh=False) as live:
        while going:
            time.sleep(every)
            whole, going = _whole(runs, name)
            live.update(whole, refresh=True)


def _whole(runs: Path, name: str) -> tuple[Group, bool]:
    """All that `status` shows, and whether anything is still to come."""
    search, going = search_shown(runs, name)
    if search is not None and read_manifest(runs, name) is None:
        return search, going
    states, note = look(runs, name)
    going |= any(state.column in ("running", "pending", "to go") for state in states)
    records = read_records(runs, (state.run_id for state in states if state.status == "done"))
    lines = [*study_lines(manifest_of(runs, name), records), *older_files(records.values())]
    of_study = Group(shown(states, note), *(styled(line, "yellow") for line in lines))
    return of_study if search is None else Group(search, Text(), of_study), going


def logs(runs: Path, run: str, lines: int) -> tuple[list[Path], list[str]]:
    """Where the jobs of a run, given by how its id begins, have written; how the last one ends, and the traceback.

    Raises ValueError if no job was given such a run.
    """
    if not RUN_ID.fullmatch(run):
        raise ValueError(f"{run!r} is no run's id: an id is up to 16 digits from 0 to f, and may be cut at its end")
    found: dict[str, list[Path]] = {}
    for name, array in all_arrays(runs):
        for index, job in enumerate(array.jobs):
            for run_id in job:
                if run_id.startswith(run):
                    found.setdefault(run_id, []).append(log_of(runs, name, array, index))
    if not found:
        found = _of_searches(runs, run)
    if len(found) != 1:
        which = f"{len(found)} runs that begin with {run!r}" if found else f"no run {run!r}"
        raise ValueError(f"jobs on a cluster were given {which}; `python -m studies status NAME` shows the ids")
    ((run_id, paths),) = found.items()
    record = read_record(runs, run_id)
    return paths, tail(paths[-1], lines) + (record.traceback.splitlines() if record else [])


def _of_searches(runs: Path, run: str) -> dict[str, list[Path]]:
    """Where the jobs have written that took a run from a search's driver: its attempts name them."""
    homes = {
        array.job(index): log_of(runs, name, array, index)
        for name, array in all_arrays(runs)
        for index in range(len(array.jobs))
    }
    found: dict[str, list[Path]] = {}
    for folder in runs.glob(f"{run}*"):
        record = read_record(runs, folder.name)
        started = record.attempts if record else read_attempts(runs, folder.name) or []
        paths = [homes[job] for attempt in started if (job := attempt.get("slurm_job")) in homes]
        if paths:
            found[folder.name] = list(dict.fromkeys(paths))
    return found
