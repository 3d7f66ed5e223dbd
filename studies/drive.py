"""Run a study: ask the queue, fill the slots, tell how each run ended. It can be stopped and called again any time."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from results.declarations import keep_declaration
from results.entries import ArmEntry, CellEntry
from results.files import CorruptFile, made_folder
from results.identity import validate_source
from results.locks import locked
from results.record import (
    Manifest,
    RunRecord,
    TuningRecord,
    discard,
    read_manifest,
    read_record,
    study_folder,
    write_manifest,
    write_record,
)
from studies.checks import study_notes
from studies.executors import Ended, Executor
from studies.leftovers import remove_leftovers
from studies.queue import Queue
from studies.retrain import arm_configs, runs_to_retrain
from studies.search import Search
from studies.spec import canonical
from studies.study import Cell, Study, changes
from studies.tuning import described

GLANCE_SECONDS = 0.5  # for which `status` may hold a driver's lock, when it looks whether anyone does
LOOK_SECONDS = 0.5  # at most, between two looks at what is running


@dataclass
class Tally:
    """How far a study is. `running` maps the ids of running runs to the cells they answer."""

    cells: int
    done: int = 0
    failed: int = 0
    found: int = 0  # done before this call
    running: dict[str, list[Cell]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fatal: str = ""


T = TypeVar("T")


class Jobs(Protocol[T]):
    """What is to be run, in order, and who is told how it ended. T is what it knows a job by."""

    def next(self) -> tuple[T, Cell] | None:
        """The next job and its run; None where there is none at this moment."""

    def known(self, cell: Cell) -> RunRecord | None:
        """The record that answers this run, if it need not be run."""

    def look(self) -> None:
        """See how the running runs are getting on."""

    def tell(self, job: T, cell: Cell, record: RunRecord | None) -> bool:
        """How a run ended, None if it was stopped. False: it will be run again."""


class Watcher(Protocol):
    """Who looks on while a study runs."""

    def tick(self, tally: Tally) -> None: ...

    def finished(self, tally: Tally, cell: Cell, record: RunRecord | None, ended: Ended) -> None: ...


def drive(
    study: Study,
    name: str,
    source: str,
    runs: Path,
    executor: Executor,
    watcher: Watcher,
    stopping: Callable[[], bool] = lambda: False,
    retry: bool = False,
    retrain: Sequence[str] | None = None,
) -> Tally:
    """Run every cell of `study` that has no record yet (with `retry`, also those that failed); records and journal.

    With `retrain`, results are deleted and trained again: those of the arms it lists, or if it lists none those that
    differ from today's source or defaults. One run's failure never stops the others. When `stopping` says so, running
    runs write their checkpoints and end.
    Raises ValueError if another driver runs this study, or the study stored under this name is of another file.
    """
    cells = study.cells()
    with sole_driver(study_folder(runs, name), name):
        again = [] if retrain is None else runs_to_retrain(runs, cells, retrain)
        declare(study, name, source, runs, cells)
        for run_id in again:
            discard(runs, run_id)
        tally = Tally(cells=len(cells))
        records, wanted = survey(runs, cells, retry, tally)
        remove_leftovers(runs, name, dict.fromkeys(cell.spec.run_id for cell in cells))
        queue = Queue(study_folder(runs, name), name, study.direction, study.metric)
        tally.notes += [queue.journal.note] if queue.journal.note else []
        queue.fill(cells, records, wanted)
        for cell in cells:
            record = records.get(cell.spec.run_id)
            if cell.spec.run_id not in wanted and record is not None:
                tally.done += record.status == "done"
                tally.failed += record.status != "done"
        tally.found = tally.done
        _drain(queue, runs, executor, watcher, stopping, tally)
    return tally


def tune(
    study: Study,
    name: str,
    source: str,
    runs: Path,
    executor: Executor,
    watcher: Watcher,
    stopping: Callable[[], bool] = lambda: False,
    retry: bool = False,
    patience: float = 0.0,
) -> tuple[Tally, TuningRecord]:
    """Give every arm of `study` the trials that its tuning asks for, as far as they are not there yet.

    Stopping and failures are as in `drive`; a run whose process died is tried again. The record holds all trials.
    `patience` seconds it waits for another driver to end.
    Raises ValueError if the study declares no tuning.
    """
    if study.tuning is None:
        raise ValueError(f"study {name} declares no tuning: give its Study a tuning=Tuning(space=..., trials=...)")
    with sole_driver(study_folder(runs, name), name, patience):
        search = Search(study, name, source, runs, retry)
        remove_leftovers(runs, name, [i for arm in search.arms for trial in arm.trials.values() for i in trial.run_ids])
        tally = Tally(cells=search.runs_wanted, notes=search.notes)
        for trial in (trial for arm in search.arms for trial in search.trials_of(arm) if trial.status):
            tally.done += len(study.tuning.seeds) * (trial.status in ("done", "pruned"))
            tally.failed += len(study.tuning.seeds) * (trial.status not in ("done", "pruned"))
        tally.found = tally.done
        _drain(search, runs, executor, watcher, stopping, tally)
        search.write()
        return tally, search.record


def _drain(
    jobs: Jobs[T], runs: Path, executor: Executor, watcher: Watcher, stopping: Callable[[], bool], tally: Tally
) -> None:
    """Keep every slot busy until there is nothing left to run, or until `stopping`."""
    running: dict[str, list[tuple[T, Cell]]] = {}  # by run id: two cells may share one
    asked_to_stop = False

    def look() -> None:
        jobs.look()
        watcher.tick(tally)

    executor.begin()
    executor.attend(look)
    while True:
        if (stopping() or tally.fatal) and not asked_to_stop:
            executor.stop()
            asked_to_stop = True
        while not asked_to_stop and executor.free() and (asked := jobs.next()) is not None:
            trial, cell = asked
            run_id = cell.spec.run_id
            if (record := jobs.known(cell)) is not None:
                _tell(jobs, watcher, tally, trial, cell, record, Ended(run_id))
                continue
            running.setdefault(run_id, []).append(asked)
            tally.running.setdefault(run_id, []).append(cell)
            if len(running[run_id]) == 1:
                watcher.tick(tally)  # an executor may train right here
                executor.submit(cell.spec)
        if not running:
            return
        watcher.tick(tally)
        over = executor.ended(LOOK_SECONDS)
        jobs.look()
        for ended in over:
            record = _outcome(ended, runs, running[ended.run_id][0][1], tally)
            tally.running.pop(ended.run_id, None)
            for trial, cell in running.pop(ended.run_id):
                _tell(jobs, watcher, tally, trial, cell, record, ended)


def _tell(
    jobs: Jobs[T], watcher: Watcher, tally: Tally, trial: T, cell: Cell, record: RunRecord | None, ended: Ended
) -> None:
    if jobs.tell(trial, cell, record) and record is not None:
        fine = record.status in ("done", "pruned")
        tally.done += fine
        tally.failed += not fine
    watcher.finished(tally, cell, record, ended)


def _outcome(ended: Ended, runs: Path, cell: Cell, tally: Tally) -> RunRecord | None:
    """The record of a run that ended; of one whose process died without writing any, a record that it was lost."""
    if ended.fatal:
        tally.fatal = ended.error
        return None
    if ended.stopped:
        return None
    record = read_record(runs, ended.run_id)
    if ended.error and (record is None or record.status != "done"):
        record = RunRecord(run_id=ended.run_id, spec=canonical(cell.spec), status="lost", reason=ended.error)
        write_record(runs, record)
    return record


def survey(
    runs: Path, cells: list[Cell], retry: bool, tally: Tally, retrain: Collection[str] = ()
) -> tuple[dict[str, RunRecord], set[str]]:
    """The records there are, and the ids of the runs that are to be run: without one, cut off, or to `retrain`."""
    again = {"lost", "cancelled", "pruned"} | ({"failed", "diverged"} if retry else set())
    records: dict[str, RunRecord] = {}
    wanted = set()
    for run_id in dict.fromkeys(cell.spec.run_id for cell in cells):
        try:
            record = read_record(runs, run_id)
        except CorruptFile as error:  # neither overwritten nor run: its owner decides
            tally.notes.append(str(error))
            tally.failed += sum(cell.spec.run_id == run_id for cell in cells)
            continue
        if record is not None:
            records[run_id] = record
        if record is None or record.status in again or run_id in retrain:
            wanted.add(run_id)
    return records, wanted


def declare(study: Study, name: str, source: str, runs: Path, cells: list[Cell]) -> None:
    """Write the study's manifest, and keep what it declared before. Raises ValueError if it is another study's."""
    try:
        former = read_manifest(runs, name)
    except CorruptFile:
        former = None  # its cells are kept beside it
    if former is not None:
        alike = {cell["run_id"] for cell in former.cells} & {cell.spec.run_id for cell in cells}
        validate_source(study_folder(runs, name) / "manifest.json", former.source, source, bool(alike))
        keep_declaration(runs, former)
    expanded = {arm.label: arm for arm in study.expanded()}
    configs = arm_configs(cells)
    arms: list[ArmEntry] = [
        {
            "label": arm.label,
            "reference": arm.reference,
            "changes": changes(arm.spec, expanded[arm.reference].spec),
            "note": arm.note,
            "config": dict(configs[arm.label]),
        }
        for arm in expanded.values()
    ]
    plain: list[CellEntry] = [
        {"arm": c.arm, "seed": c.seed, "run_id": c.spec.run_id, "factors": c.factors} for c in cells
    ]
    manifest = Manifest(
        study=name,
        source=source,
        question=study.question,
        reference=study.reference,
        metric=study.metric,
        direction=study.direction,
        arms=arms,
        cells=plain,
        notes=study_notes(study) + ([] if study.tuned is None else [described(study.tuned)]),
        tuning={} if study.tuned is None else dataclasses.asdict(study.tuned),
    )
    write_manifest(runs, manifest)
    keep_declaration(runs, manifest)


@contextmanager
def sole_driver(folder: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the study's lock. Raises ValueError if someone else does, for more than `patience` seconds."""
    path = made_folder(folder) / "driver.lock"
    with ExitStack() as held:
        try:
            file = held.enter_context(locked(path, patience + GLANCE_SECONDS))
        except BlockingIOError:
            manifest = None
            with suppress(CorruptFile):
                manifest = read_manifest(folder.parent.parent, name)
            called = "NAME" if manifest is None else manifest.called  # a search alone has none
            who = path.read_text(encoding="utf-8").strip() or "someone else"
            raise ValueError(
                f"study {name} is being driven by {who} already; "
                f"`python -m studies status {called}` shows how far it is"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
