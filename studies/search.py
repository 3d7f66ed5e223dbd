"""The search of a tuning: one Optuna study an arm, all in one journal, asked and told by one driver.

The records of the trials' runs are the truth. A trial that the journal has as running is one whose runs are looked
up first and run only where they have no record; so a driver may be killed at any moment, and the next one goes on.
`trials.json`, brought up to date every few seconds, lists all trials: from it a lost journal is rebuilt.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from results.record import (
    RunRecord,
    TuningRecord,
    put_aside,
    read_record,
    read_tuning,
    run_folder,
    study_folder,
    write_tuning,
)
from studies.checkpoint import read_curve
from studies.journal import Direction, Journal, quiet
from studies.provenance import commit
from studies.spec import field_value, with_fields
from studies.study import Arm, Cell, Study
from studies.tuning import Tuning, base_of, is_range, maximised, measured, outcome, plain_space, searched

LOSSES = 3  # times that a run whose process died is tried again
WRITE_SECONDS = 2.0  # at least, between two writings of trials.json, which of thousands of trials is long
WRITE_SHARE = 0.05  # of the driver's time that they may take
RANDOM = 10  # at most so many trials, and at most half of them, before the search is guided


@dataclass
class Trial:
    """One configuration of an arm, run at every seed of the tuning. `status` is empty while it goes on."""

    arm: ArmSearch
    number: int
    values: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    records: dict[str, RunRecord] = field(default_factory=dict)  # by run id
    status: str = ""
    reason: str = ""
    losses: Counter[str] = field(default_factory=Counter)
    told: dict[str, Any] = field(default_factory=dict)  # `plain`, once it is over
    read: dict[str, int] = field(default_factory=dict)  # when each run's curve had last changed
    reported: int = 0  # evaluations
    hopeless: bool = False  # told to prune

    def settle(self) -> None:
        """See from the records whether it is over: one run that failed or was pruned decides for all its seeds."""
        statuses = {record.status for record in self.records.values()}
        for status in ("failed", "lost", "diverged", "pruned"):
            if status in statuses:
                self.status = "failed" if status == "lost" else status
                self.reason = next(r.reason for r in self.records.values() if r.status == status)
                return
        if set(self.run_ids) <= set(self.records):
            self.status = "done"

    def plain(self) -> dict[str, Any]:
        """As it stands in trials.json."""
        if self.told:
            return self.told
        plain = {
            "arm": self.arm.label,
            "trial": self.number,
            "values": self.values,
            "run_ids": self.run_ids,
            "status": self.status or "running",
            "reason": self.reason,
            "metrics": measured(list(self.records.values())),
        }
        if self.status:
            self.told = plain
        return plain


class ArmSearch:
    """One arm's trials, in an Optuna study of its own."""

    def __init__(self, arm: Arm, tuning: Tuning, name: str, journal: Journal) -> None:
        self.arm, self.tuning, self.label = arm, tuning, arm.label
        self.space = searched(arm.spec, tuning.space)
        self.distributions = {path: _distribution(domain) for path, domain in self.space.items()}
        self.wanted = tuning.trials if self.space else 1
        self.trials: dict[int, Trial] = {}
        self.replaced: set[int] = set()  # trials that are run again under another number
        self.handles: dict[int, optuna.Trial] = {}
        directions: list[Direction] = [
            "maximize" if maximised(objective) else "minimize" for objective in tuning.objectives
        ]
        self.asked_for = {
            "base": base_of(arm.spec, tuning.space), "space": plain_space(self.space),
            "seeds": list(tuning.seeds), "objectives": list(tuning.objectives),
        }  # fmt: skip
        self.anew = False  # what is asked has changed, so that former trials say nothing any more
        for study_name in [s.study_name for s in journal.storage.get_all_studies()]:
            if study_name == f"{name}: {self.label}":
                former = optuna.load_study(study_name=study_name, storage=journal.storage)
                self.anew = former.user_attrs.get("asked for") != self.asked_for
                if self.anew:
                    optuna.delete_study(study_name=study_name, storage=journal.storage)
        pruner = _pruner(tuning, arm.spec.budget.evaluations)
        self.study = journal.study(f"{name}: {self.label}", directions, pruner=pruner)
        if self.study.user_attrs.get("asked for") != self.asked_for:
            with quiet():
                self.study.set_metric_names(list(tuning.objectives))
            self.study.set_user_attr("asked for", self.asked_for)

    def restore(self, listed: Sequence[dict[str, Any]], runs: Path) -> list[Trial]:
        """Take up what journal and list hold; the trials that are still open."""
        if not self.study.get_trials(deepcopy=False):
            for plain in listed:  # the journal was lost; what became of each trial, the records say
                lost = create_trial(state=TrialState.RUNNING, params=plain["values"], distributions=self.distributions)
                self.study.add_trial(lost)
            declared = {path: field_value(self.arm.spec, path) for path in self.space}
            if not listed and all(_inside(declared[path], domain) for path, domain in self.space.items()):
                self.study.enqueue_trial(declared)  # the first trial is the arm as it is declared
        for frozen in self.study.get_trials(deepcopy=False):
            if "again" in frozen.user_attrs:
                self.replaced.add(frozen.user_attrs["again"])
            if frozen.state == TrialState.WAITING:
                continue
            trial = self._take(optuna.Trial(self.study, frozen._trial_id))
            if frozen.state.is_finished():
                del self.handles[trial.number]
                trial.records = {i: r for i in trial.run_ids if (r := read_record(runs, i)) is not None}
                trial.settle()
                trial.status = trial.status or "lost"  # its records are gone
                if not trial.run_ids:
                    trial.status = "failed"
            trial.reported = len(frozen.intermediate_values)
        return [trial for trial in self.trials.values() if not trial.status]

    def again(self, trial: Trial) -> None:
        """Have a trial that is over run again, under a new number."""
        self.replaced.add(trial.number)
        params = self.study.get_trials(deepcopy=False)[trial.number].params
        self.study.enqueue_trial(params, user_attrs={"again": trial.number})

    @property
    def asked(self) -> int:
        return len(self.trials) - len(self.replaced)

    def ask(self) -> Trial:
        # seeded by the trial's number, the search goes on after a restart as it would have, and every arm begins
        # with the same draws
        state = np.random.SeedSequence([*self.tuning.seeds, len(self.trials)]).generate_state(1)
        with quiet():
            self.study.sampler = TPESampler(
                seed=int(state[0]), n_startup_trials=min(RANDOM, -(-self.wanted // 2)), constant_liar=True
            )
        return self._take(self.study.ask())

    def _take(self, handle: optuna.Trial) -> Trial:
        values = {path: _suggested(handle, path, domain) for path, domain in self.distributions.items()}
        trial = Trial(self, handle.number, values)
        self.trials[trial.number], self.handles[trial.number] = trial, handle
        shown = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in values.items())
        label = f"{self.label}, trial {trial.number}" + (f" ({shown})" if shown else "")
        try:
            spec = with_fields(self.arm.spec, values)
        except ValueError as error:  # values that are fine one by one, but not together
            trial.status, trial.reason = "failed", str(error)
            return trial
        for seed in self.tuning.seeds:
            at = dataclasses.replace(spec, seed=seed, protocol="validation")
            trial.cells.append(Cell(label, seed, at, values))
            trial.run_ids.append(at.run_id)
        return trial

    def report(self, trial: Trial, curves: Sequence[Sequence[Mapping[str, float]]]) -> None:
        """Tell Optuna the evaluations that all of the trial's runs have reached, and ask whether to go on."""
        handle = self.handles[trial.number]
        column = self.tuning.objectives[0].replace(".", "_")
        for evaluation, rows in list(enumerate(zip(*curves, strict=False), start=1))[trial.reported :]:
            handle.report(float(np.mean([row[column] for row in rows])), evaluation)
            trial.reported = evaluation
            trial.hopeless |= handle.should_prune()

    def close(self, trial: Trial) -> None:
        handle, metrics = self.handles.pop(trial.number), trial.plain()["metrics"]
        handle.set_user_attr("run_ids", trial.run_ids)
        if trial.status == "done":
            self.study.tell(trial.number, [metrics[objective] for objective in self.tuning.objectives])
        elif trial.status == "failed":
            handle.set_user_attr("reason", trial.reason)
            self.study.tell(trial.number, state=TrialState.FAIL)
        else:  # a diverged trial too: the search is to keep away from there, and overlooks failed ones
            self.study.tell(trial.number, state=TrialState.PRUNED)


class Search:
    """The trials of all arms as jobs for `studies.drive`; writes trials.json."""

    def __init__(self, study: Study, name: str, source: str, runs: Path, retry: bool) -> None:
        assert study.tuning is not None
        self.tuning, self.runs = study.tuning, runs
        self.path = study_folder(runs, name) / "trials.json"
        journal = Journal(study_folder(runs, name) / "tuning.log")
        self.notes = [journal.note] if journal.note else []
        self.arms = [ArmSearch(arm, self.tuning, name, journal) for arm in study.declared()]
        self.record = TuningRecord(
            study=name, source=source, space=plain_space(self.tuning.space), trials=self.tuning.trials,
            seeds=list(self.tuning.seeds), objectives=list(self.tuning.objectives), pruner=self.tuning.pruner,
            arms={}, commit=commit()["commit"], dirty=commit()["dirty"],
        )  # fmt: skip
        former = read_tuning(self.path)
        if former is not None and former.source != source:
            raise ValueError(
                f"{self.path.parent} belongs to {former.source}, not to {source}: rename the file or choose --runs"
            )
        self.listed: dict[str, list[dict[str, Any]]] = {}  # by arm
        self.waiting: list[tuple[Trial, Cell]] = []
        for arm in self.arms:
            if arm.anew:
                self.notes.append(f"{arm.label}: what is asked has changed, so its tuning begins anew")
            for trial in arm.restore(_listed(former, arm), runs):
                self.waiting += [(trial, cell) for cell in trial.cells]
            again = {"lost", *(("failed", "diverged") if retry else ())}
            for trial in [t for t in arm.trials.values() if t.status in again and t.number not in arm.replaced]:
                for run_id in (i for i, record in trial.records.items() if record.status != "done"):
                    put_aside(runs, run_id)
                arm.again(trial)
        self.changed = {arm.label for arm in self.arms}
        self.next_writing = 0.0
        self.write()

    @property
    def runs_wanted(self) -> int:
        return sum(arm.wanted for arm in self.arms) * len(self.tuning.seeds)

    def trials_of(self, arm: ArmSearch) -> list[Trial]:
        return [trial for number, trial in sorted(arm.trials.items()) if number not in arm.replaced]

    def next(self) -> tuple[Trial, Cell] | None:
        while not self.waiting:
            open_arms = [arm for arm in self.arms if arm.asked < arm.wanted]
            if not open_arms:
                return None
            trial = min(open_arms, key=lambda arm: arm.asked).ask()
            if trial.status:
                trial.arm.close(trial)
            self.waiting = [(trial, cell) for cell in trial.cells]
            self.changed.add(trial.arm.label)
        return self.waiting.pop(0)

    def known(self, cell: Cell) -> RunRecord | None:
        record = read_record(self.runs, cell.spec.run_id)
        if record is None or record.status in ("lost", "cancelled"):
            return None
        return None if record.status == "pruned" and self.tuning.pruner == "none" else record

    def look(self) -> None:
        """Report new evaluations, and leave a file `prune` in the folders of the runs that are not worth going on."""
        if time.monotonic() > self.next_writing:
            self.write()
        if len(self.tuning.objectives) > 1:  # Optuna takes no reports then
            return
        for arm in self.arms:
            for number in list(arm.handles):
                self._look_at(arm.trials[number])

    def _look_at(self, trial: Trial) -> None:
        paths = {i: run_folder(self.runs, i) / "curve.csv" for i in trial.run_ids}
        changed = {i: path.stat().st_mtime_ns if path.exists() else 0 for i, path in paths.items()}
        if changed == trial.read:
            return
        trial.read = changed
        trial.arm.report(trial, [read_curve(path) for path in paths.values()])
        if trial.hopeless:
            waiting = [cell.spec.run_id for other, cell in self.waiting if other is trial]
            if len(waiting) < len(trial.cells):  # else nobody is left to end it: it is run as far as its next look
                self._drop(trial)
            for i in trial.run_ids:
                if i not in trial.records and paths[i].exists():
                    (run_folder(self.runs, i) / "prune").touch()

    def tell(self, trial: Trial, cell: Cell, record: RunRecord | None) -> bool:
        if record is None:  # stopped: it stays open
            return True
        if record.status == "lost" and (losses := trial.losses[record.run_id]) < LOSSES:
            trial.losses[record.run_id] = losses + 1
            self.waiting.append((trial, cell))
            return False
        trial.records[record.run_id] = record
        (run_folder(self.runs, record.run_id) / "prune").unlink(missing_ok=True)  # too late, it was done
        if trial.status:
            return True
        trial.settle()
        if trial.status == "done" and self.tuning.objectives[0] not in measured(list(trial.records.values())):
            trial.status, trial.reason = "failed", "it measured nothing: its budget has no steps"
        if trial.status:
            if len(self.tuning.objectives) == 1:
                self._look_at(trial)
            self._drop(trial)
            trial.arm.close(trial)
            self.changed.add(trial.arm.label)
        return True

    def _drop(self, trial: Trial) -> None:
        self.waiting = [(other, cell) for other, cell in self.waiting if other is not trial]

    def write(self) -> None:
        """Bring trials.json up to date, if anything has changed."""
        if not self.changed:
            return
        began = time.monotonic()
        for arm in self.arms:
            if arm.label in self.changed:
                self.listed[arm.label] = [trial.plain() for trial in self.trials_of(arm)]
                left_out = [path for path in self.tuning.space if path not in arm.space]
                self.record.arms[arm.label] = {
                    "base": arm.asked_for["base"], "left_out": left_out, "planned": arm.wanted,
                    **outcome(self.listed[arm.label], self.tuning.objectives),
                }  # fmt: skip
        self.record.history = [trial for arm in self.arms for trial in self.listed[arm.label]]
        write_tuning(self.path, self.record)
        self.changed, ended = set(), time.monotonic()
        self.next_writing = ended + max(WRITE_SECONDS, (ended - began) / WRITE_SHARE)


def _listed(former: TuningRecord | None, arm: ArmSearch) -> list[dict[str, Any]]:
    """The trials of this arm in a former list, if they are of what is asked now."""
    if former is None or former.arms.get(arm.label, {}).get("base") != arm.asked_for["base"]:
        return []
    if (former.seeds, former.objectives) != (arm.asked_for["seeds"], arm.asked_for["objectives"]):
        return []
    listed = [trial for trial in former.history if trial["arm"] == arm.label]
    fits = all(trial["values"].keys() == arm.space.keys() for trial in listed) and all(
        _inside(trial["values"][path], domain) for trial in listed for path, domain in arm.space.items()
    )
    return listed if fits else []


def _distribution(domain: Sequence[Any]) -> BaseDistribution:
    if not is_range(domain):
        return CategoricalDistribution(domain)
    low, high, scale = domain
    whole = isinstance(low, int) and isinstance(high, int)
    return (IntDistribution if whole else FloatDistribution)(low, high, log=scale == "log")


def _suggested(handle: optuna.Trial, path: str, distribution: BaseDistribution) -> Any:
    """The trial's value of a field; one of a real number in four digits, as a paper would print it."""
    value = handle._suggest(path, distribution)
    if isinstance(distribution, FloatDistribution):
        return min(max(float(f"{value:.4g}"), distribution.low), distribution.high)
    return value


def _inside(value: Any, domain: Sequence[Any]) -> bool:
    return domain[0] <= value <= domain[1] if is_range(domain) else value in domain


def _pruner(tuning: Tuning, evaluations: int) -> BasePruner:
    if tuning.pruner == "median":
        # not before half of the random trials are there to compare with, nor while the rate still warms up
        return MedianPruner(n_startup_trials=min(5, -(-tuning.trials // 4)), n_warmup_steps=-(-evaluations // 5))
    if tuning.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=evaluations)
    return NopPruner()
