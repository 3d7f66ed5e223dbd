"""The search of a tuning: one Optuna study an arm, all in one journal, asked and told by one driver.

The records of the trials' runs are the truth. A trial that the journal has as running is one whose runs are looked
up first and run only where they have no record; so a driver may be killed at any moment, and the next one goes on.
`trials.json`, brought up to date every few seconds, lists all trials: from it a lost journal is rebuilt.

A search whose runs follow one another in the driver's process (`--on inline`) is deterministic: killed at any moment
and started again, it ends in the same trials (numbers, values, runs, metrics, winners) as one that was not disturbed.
So does one in a pool of one slot, if nothing is pruned: a driver sees the evaluations of another process only now and
then. With several slots, it depends on time which trials have ended when values are drawn. Then no trial is lost or
repeated, and the values of a trial depend on its number and on the trials that the journal holds when it begins.

For this, samplers are seeded by the trial's number, a trial begins and ends in one transaction of the journal, and all
that a draw depends on can be restored exactly from records and curves.
"""

from __future__ import annotations

import dataclasses
import shutil
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from results.entries import TrialEntry
from results.files import CorruptFile, verify
from results.identity import validate_source
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
from results.stale import stale_runs
from studies.checkpoint import read_curve
from studies.journal import Direction, Journal, JournalMismatch, quiet
from studies.provenance import commit
from studies.spec import field_value, with_fields
from studies.study import Arm, Cell, Study
from studies.tuning import Tuning, base_of, in_domain, is_range, maximised, measured, outcome, plain_space, searched

LOSSES = 3  # times that a run whose process died is tried again
WRITE_SECONDS = 2.0  # at least, between two writings of trials.json, which of thousands of trials is long
WRITE_SHARE = 0.05  # of the driver's time that they may take
NAMED = 4  # run ids in a sentence
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
    told: TrialEntry | None = None  # `plain`, once it is over
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
            self._judge()

    def _judge(self) -> None:
        """Done if its runs have measured all objectives, else failed."""
        found, objectives = measured(list(self.records.values())), self.arm.tuning.objectives
        if objectives[0] not in found:
            self.status, self.reason = "failed", "it measured nothing: its budget has no steps"
        elif not found.keys() >= set(objectives):
            self.status, self.reason = "failed", "its multiply-adds are a lower bound: an operation has no count"
        else:
            self.status = "done"

    def plain(self) -> TrialEntry:
        """As it stands in trials.json."""
        if self.told:
            return self.told
        plain: TrialEntry = {
            "arm": self.arm.label,
            "trial": self.number,
            "values": self.values,
            "run_ids": self.run_ids,
            "status": self.status or "running",  # type: ignore[typeddict-item]
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
        self.journal = journal
        title, pruner = f"{name}: {self.label}", _pruner(tuning, arm.spec.budget.evaluations)
        former = journal.study(title, pruner=pruner)
        # what is asked has changed, so that former trials say nothing any more
        self.anew = former is not None and former.user_attrs.get("asked for") != self.asked_for
        if former is not None and not self.anew:
            self.study = former
        else:
            with quiet(), journal.transaction():
                if former is not None:
                    optuna.delete_study(study_name=title, storage=journal.storage)
                self.study = journal.new_study(title, directions, pruner=pruner)
                self.study.set_metric_names(list(tuning.objectives))
                self.study.set_user_attr("asked for", self.asked_for)
        if isinstance(pruner, HyperbandPruner):  # which makes its brackets, by which values are drawn, when first asked
            pruner.prune(self.study, create_trial(state=TrialState.RUNNING))

    def restore(self, listed: Sequence[TrialEntry], runs: Path) -> list[Trial]:
        """Take up what journal and list hold; the trials that are still open.

        Raises JournalMismatch where the journal contradicts the records.
        """
        if not self.study.get_trials(deepcopy=False):
            self._begin(listed)
        for frozen in self.study.get_trials(deepcopy=False):
            if "again" in frozen.user_attrs:
                self.replaced.add(frozen.user_attrs["again"])
            if frozen.state == TrialState.WAITING:
                continue
            self.study.sampler = self._sampler(frozen.number)  # a trial of an older version may lack values
            trial = self._take(optuna.Trial(self.study, frozen._trial_id))
            trial.reported = len(frozen.intermediate_values)
            if frozen.state.is_finished():
                self._restore_end(trial, frozen, runs)
            elif trial.reported:
                trial.hopeless = self.handles[trial.number].should_prune()
            for run_id in trial.run_ids if not trial.status else ():
                (run_folder(runs, run_id) / "prune").unlink(missing_ok=True)  # it is too early until a run gets there
        stored = self.study.get_trials(deepcopy=False)
        for number in self.trials.keys() - self.replaced:
            self._check(self.trials[number], stored[number])
        return [trial for trial in self.trials.values() if not trial.status]

    def _begin(self, listed: Sequence[TrialEntry]) -> None:
        """Fill an empty journal: with the trials that were listed, or with the arm as it is declared."""
        declared = {path: field_value(self.arm.spec, path) for path in self.space}
        with self.journal.transaction():
            for plain in listed:  # the journal was lost; what became of each trial, the records say
                lost = create_trial(state=TrialState.RUNNING, params=plain["values"], distributions=self.distributions)
                self.study.add_trial(lost)
            if not listed and all(in_domain(declared[path], domain) for path, domain in self.space.items()):
                self.study.enqueue_trial({p: _rounded(v, self.distributions[p]) for p, v in declared.items()})

    def _restore_end(self, trial: Trial, frozen: FrozenTrial, runs: Path) -> None:
        del self.handles[trial.number]
        trial.records = {i: r for i in trial.run_ids if (r := read_record(runs, i)) is not None}
        trial.settle()
        trial.status = trial.status or "lost"  # its records are gone
        if not trial.run_ids:
            trial.status = "failed"

    def _check(self, trial: Trial, frozen: FrozenTrial) -> None:
        """Raise JournalMismatch where the journal has other runs or values of a trial than the records."""
        runs_differ = frozen.user_attrs.get("run_ids", trial.run_ids) != trial.run_ids
        measured_now = trial.plain()["metrics"]
        values_differ = (
            trial.status == "done"
            and frozen.state == TrialState.COMPLETE
            and frozen.values != [measured_now.get(objective) for objective in self.tuning.objectives]
        )
        if runs_differ or values_differ:
            raise JournalMismatch(f"contradicts the records of {self.label}, trial {trial.number}")

    def again(self, trial: Trial) -> None:
        """Have a trial that is over run again, under a new number."""
        self.replaced.add(trial.number)
        params = self.study.get_trials(deepcopy=False)[trial.number].params
        self.study.enqueue_trial(params, user_attrs={"again": trial.number})

    @property
    def asked(self) -> int:
        return len(self.trials) - len(self.replaced)

    def ask(self) -> Trial:
        """A new trial. One whose values do not go together has failed already."""
        with quiet(), self.journal.transaction():
            self.study.sampler = self._sampler(self.asked)
            trial = self._take(self.study.ask())
            if trial.status:
                self.close(trial)
        return trial

    def _sampler(self, number: int) -> TPESampler:
        """The sampler of one trial. Every arm begins with the same draws."""
        state = np.random.SeedSequence([*self.tuning.seeds, number]).generate_state(1)
        startup = min(RANDOM, -(-self.wanted // 2))
        with quiet():
            return _RoundingSampler(seed=int(state[0]), n_startup_trials=startup, constant_liar=True)

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
        with self.journal.transaction():
            for evaluation, rows in list(enumerate(zip(*curves, strict=False), start=1))[trial.reported :]:
                handle.report(float(np.mean([row[column] for row in rows])), evaluation)
                trial.reported = evaluation
                trial.hopeless |= handle.should_prune()

    def close(self, trial: Trial) -> None:
        handle, metrics = self.handles.pop(trial.number), trial.plain()["metrics"]
        with self.journal.transaction():
            handle.set_user_attr("run_ids", trial.run_ids)
            if trial.status == "done":
                self.study.tell(trial.number, [metrics[objective] for objective in self.tuning.objectives])
            elif trial.status == "failed":
                handle.set_user_attr("reason", trial.reason)
                self.study.tell(trial.number, state=TrialState.FAIL)
            else:  # a diverged trial too: the search is to keep away from there, and overlooks failed ones
                self.study.tell(trial.number, state=TrialState.PRUNED)


class _RoundingSampler(TPESampler):
    """TPE whose real numbers have four digits, as a paper would print them."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        values = super().sample_relative(study, trial, search_space)
        return {path: _rounded(value, search_space[path]) for path, value in values.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return _rounded(value, param_distribution)


class Search:
    """The trials of all arms as jobs for `studies.drive`; writes trials.json."""

    def __init__(self, study: Study, name: str, source: str, runs: Path, retry: bool) -> None:
        assert study.tuning is not None
        self.tuning, self.runs = study.tuning, runs
        self.path = study_folder(runs, name) / "trials.json"
        self.arms: list[ArmSearch] = []
        self.record = TuningRecord(
            study=name, source=source, space=plain_space(self.tuning.space), trials=self.tuning.trials,
            seeds=list(self.tuning.seeds), objectives=list(self.tuning.objectives), pruner=self.tuning.pruner,
            arms={}, commit=commit()["commit"], dirty=commit()["dirty"],
        )  # fmt: skip
        former = read_tuning(self.path)
        if former is not None:
            bases = {arm["base"] for arm in former.arms.values()}
            alike = any(base_of(arm.spec, self.tuning.space) in bases for arm in study.declared())
            validate_source(self.path, former.source, source, alike)
        self.listed: dict[str, list[TrialEntry]] = {}  # by arm
        self.waiting: list[tuple[Trial, Cell]] = []
        journal = Journal(study_folder(runs, name) / "tuning.log")
        try:
            self._restore(study.declared(), name, journal, former)
        except JournalMismatch as error:
            journal.put_aside(str(error))
            self._restore(study.declared(), name, journal, former)
        self.notes = [journal.note] if journal.note else []
        self.notes += [
            f"{arm.label}: what is asked has changed, so its tuning begins anew" for arm in self.arms if arm.anew
        ]
        self.notes += [*self._keep_foreign(former), *self._stale()]
        for arm in self.arms:
            again = {"lost", *(("failed", "diverged") if retry else ())}
            for trial in [t for t in arm.trials.values() if t.status in again and t.number not in arm.replaced]:
                for run_id in (i for i, record in trial.records.items() if record.status != "done"):
                    put_aside(runs, run_id)
                arm.again(trial)
        self.changed = {arm.label for arm in self.arms}
        self.next_writing = 0.0
        self.write()

    def _restore(self, arms: Sequence[Arm], name: str, journal: Journal, former: TuningRecord | None) -> None:
        self.arms = [ArmSearch(arm, self.tuning, name, journal) for arm in arms]
        self.waiting = [
            (trial, cell)
            for arm in self.arms
            for trial in arm.restore(_listed(former, arm), self.runs)
            for cell in trial.cells
        ]

    def _keep_foreign(self, former: TuningRecord | None) -> list[str]:
        """Copy a list that has trials which are not in the journal, as one of another machine; a sentence if so."""
        known = {run_id for arm in self.arms for trial in arm.trials.values() for run_id in trial.run_ids}
        listed = [trial for arm in self.arms if not arm.anew for trial in _listed(former, arm)]
        foreign = sum(not known.issuperset(trial["run_ids"]) for trial in listed)
        if not foreign:
            return []
        kept = self.path.with_name(f"trials.other-{len(list(self.path.parent.glob('trials.other-*.json')))}.json")
        shutil.copyfile(self.path, kept)
        return [
            f"{self.path} has {foreign} trials that the journal beside it does not have, as the list of another "
            f"machine; it was copied to {kept} and replaced by the journal's trials"
        ]

    def _stale(self) -> list[str]:
        """A sentence if trials were trained with other source than today's."""
        records = {
            run_id: (arm.label, record)
            for arm in self.arms
            for trial in self.trials_of(arm)
            for run_id, record in trial.records.items()
            if record.status == "done"
        }
        stale = stale_runs(records, {})
        parts = sorted({part for different in stale.values() for part in different.sources})
        named = ", ".join([*list(stale)[:NAMED], *(["..."] if len(stale) > NAMED else [])])
        return [
            f"runs of former trials trained with other source of {', '.join(parts)} than today's: {len(stale)}; "
            f"delete their folders in {self.runs} to train them again: {named}"
        ] * bool(stale)

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
        try:
            curves = {i: self._curve(trial, i, path) for i, path in paths.items()}
        except CorruptFile as error:
            self.notes.append(f"{trial.arm.label}, trial {trial.number}: its evaluations are not compared: {error}")
            return
        trial.arm.report(trial, list(curves.values()))
        waiting = {cell.spec.run_id for other, cell in self.waiting if other is trial}
        running = [i for i in trial.run_ids if i not in waiting and i not in trial.records]
        if trial.hopeless and running:  # else nobody is left to end it: it is run as far as its next look
            self._drop(trial)
            for i in running:
                if len(curves[i]) >= trial.reported:  # a run that goes on from its checkpoint is not there again yet
                    (run_folder(self.runs, i) / "prune").touch()

    def _curve(self, trial: Trial, run_id: str, path: Path) -> list[dict[str, float]]:
        if run_id in trial.records:
            verify(path, trial.records[run_id].files.get(path.name), "delete the folder of this run to train it again")
        return read_curve(path)

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
                    "base": str(arm.asked_for["base"]), "left_out": left_out, "planned": arm.wanted,
                    **outcome(self.listed[arm.label], self.tuning.objectives),
                }  # fmt: skip
        self.record.history = [trial for arm in self.arms for trial in self.listed[arm.label]]
        write_tuning(self.path, self.record)
        self.changed, ended = set(), time.monotonic()
        self.next_writing = ended + max(WRITE_SECONDS, (ended - began) / WRITE_SHARE)


def _listed(former: TuningRecord | None, arm: ArmSearch) -> list[TrialEntry]:
    """The trials of this arm in a former list, if they are of what is asked now."""
    if former is None or arm.label not in former.arms or former.arms[arm.label]["base"] != arm.asked_for["base"]:
        return []
    if (former.seeds, former.objectives) != (arm.asked_for["seeds"], arm.asked_for["objectives"]):
        return []
    listed = [trial for trial in former.history if trial["arm"] == arm.label]
    fits = all(trial["values"].keys() == arm.space.keys() for trial in listed) and all(
        in_domain(trial["values"][path], domain) for trial in listed for path, domain in arm.space.items()
    )
    return listed if fits else []


def _distribution(domain: Sequence[Any]) -> BaseDistribution:
    if not is_range(domain):
        return CategoricalDistribution(domain)
    low, high, scale = domain
    whole = isinstance(low, int) and isinstance(high, int)
    return (IntDistribution if whole else FloatDistribution)(low, high, log=scale == "log")


def _suggested(handle: optuna.Trial, path: str, distribution: BaseDistribution) -> Any:
    return _rounded(handle._suggest(path, distribution), distribution)


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    """A real number in four digits, within its range; any other value as it is."""
    if isinstance(distribution, FloatDistribution):
        return min(max(float(f"{value:.4g}"), distribution.low), distribution.high)
    return value


def _pruner(tuning: Tuning, evaluations: int) -> BasePruner:
    if tuning.pruner == "median":
        # not before half of the random trials are there to compare with, nor while the rate still warms up
        return MedianPruner(n_startup_trials=min(5, -(-tuning.trials // 4)), n_warmup_steps=-(-evaluations // 5))
    if tuning.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=evaluations)
    return NopPruner()
