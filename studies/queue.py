"""The queue of a study: every cell that has begun is a trial of an Optuna study in a journal file.

One driver is the journal's only writer, and the records are the truth: whatever the journal says, a cell whose run
has a record is finished, and one whose run has none is not. So the journal can be lost, and is rebuilt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from results.record import RunRecord
from studies.journal import Direction, Journal
from studies.study import Cell

FINISHED = {TrialState.COMPLETE, TrialState.PRUNED}


class Queue:
    """The cells still to be run, in the study's own order."""

    def __init__(self, folder: Path, study: str, direction: str, metric: str) -> None:
        # what is chosen by may only be validation: test is reported, never optimised
        self.split, _, self.metric = metric.replace("test.", "valid.").partition(".")
        self.journal = Journal(folder / "journal.log")
        directions: list[Direction] = ["maximize" if direction == "max" else "minimize"]
        self.study = self.journal.study(study) or self.journal.new_study(study, directions)
        self.left: deque[Cell] = deque()
        self.over: dict[str, RunRecord] = {}  # by run id: two cells may share one

    def fill(self, cells: Sequence[Cell], records: dict[str, RunRecord], wanted: set[str]) -> None:
        """Make the journal say what the records say, and queue the cells whose run is in `wanted`."""
        known: dict[tuple[Any, ...], set[TrialState]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if not trial.state.is_finished():  # of a driver that is gone
                self.journal.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            known.setdefault(_key_of(trial), set()).add(trial.state)
        for cell in cells:
            run_id = cell.spec.run_id  # a hash, made anew whenever it is asked for
            if run_id in wanted:
                self.left.append(cell)
            elif (record := records.get(run_id)) is not None:
                states, (state, value) = known.get(_key(cell), set()), self._trial_end(record)
                if not states & ({TrialState.FAIL} if state == TrialState.FAIL else FINISHED):
                    self.study.add_trial(create_trial(state=state, value=value, user_attrs=_attributes(cell)))

    def next(self) -> tuple[int, Cell] | None:
        """The next trial and its cell, None when the queue is empty.

        It is enqueued only now: Optuna asks for what was enqueued first, so that a run which was interrupted would
        come last, and ten thousand cells enqueued beforehand take a minute.
        """
        if not self.left:
            return None
        cell = self.left.popleft()
        # no parameters: an arm may be added later, and Optuna's categories cannot grow
        with self.journal.transaction():
            self.study.enqueue_trial({}, user_attrs=_attributes(cell))
            return self.study.ask().number, cell

    def known(self, cell: Cell) -> RunRecord | None:
        """The record of a run that has ended since this queue was filled."""
        return self.over.get(cell.spec.run_id)

    def look(self) -> None:
        """Nothing of a run matters to the queue before its end."""

    def tell(self, number: int, cell: Cell, record: RunRecord | None) -> bool:
        """How a trial ended; None where its run left no record (stopped). Whether that is its end: it always is."""
        state, value = self._trial_end(record)
        self.study.tell(number, values=value, state=state)
        if record is not None:
            self.over[cell.spec.run_id] = record
        return True

    def _trial_end(self, record: RunRecord | None) -> tuple[TrialState, float | None]:
        if record is None or record.status != "done":
            return TrialState.FAIL, None
        value = record.metrics.get(self.split, {}).get(self.metric)
        # a run of zero steps is done and has measured nothing: Optuna's finished-without-a-value is PRUNED
        return (TrialState.PRUNED, None) if value is None else (TrialState.COMPLETE, value)


def _key(cell: Cell) -> tuple[Any, ...]:
    return cell.arm, cell.seed, cell.spec.run_id


def _key_of(trial: FrozenTrial) -> tuple[Any, ...]:
    return tuple(trial.user_attrs.get(name) for name in ("arm", "seed", "run_id"))


def _attributes(cell: Cell) -> dict[str, Any]:
    return {"arm": cell.arm, "seed": cell.seed, "run_id": cell.spec.run_id, **cell.factors}
