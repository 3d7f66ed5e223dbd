"""How far is a search? Read from its list of trials, its runs, its lock and, on a cluster, SLURM's queue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from results.entries import TrialEntry
from results.files import CorruptFile
from results.locks import is_held
from results.record import read_record, read_tuning, study_folder, unfinished
from results.text import styled
from studies.jobs import arrays, in_queue, log_of, restarted, stuck_lines
from studies.progress import is_fresh, progress_of, progress_text

COLUMNS = ("done", "pruned", "running", "to go", "failed")


def search_shown(runs: Path, name: str) -> tuple[Group | None, bool]:
    """Every arm's trials counted, a line for each that goes on, and who drives; and whether trials are to come.

    None where nothing was searched.
    """
    record = read_tuning(study_folder(runs, name) / "trials.json")
    if record is None:
        return None, False
    table = Table("tuning", *COLUMNS, "best so far", box=None)
    lines: list[Text] = []
    first = record.objectives[0]
    for label, arm in record.arms.items():
        trials = [trial for trial in record.history if trial["arm"] == label]
        counts: Counter[str] = Counter(t["status"] if t["status"] in COLUMNS else "failed" for t in trials)
        counts["to go"] = arm["planned"] - len(trials)
        best = f"{first} {arm['metrics'][first]:.4g}" if "metrics" in arm else ""
        table.add_row(styled(label), *(str(counts[name] or "") for name in COLUMNS), best)
        for trial in trials:
            if trial["status"] == "running":
                lines += [_line(runs, trial, run_id) for run_id in trial["run_ids"]]
            elif trial["status"] not in ("done", "pruned"):
                reason = f"{label}, trial {trial['trial']}: {trial['status']}: {trial['reason']} "
                lines.append(styled(reason).append(" ".join(trial["run_ids"]), "dim"))
    lines += [styled(line) for line in _who(runs, name, record.left)]
    return Group(table, *lines), record.left > 0


def _line(runs: Path, trial: TrialEntry, run_id: str) -> Text:
    try:
        record, where = read_record(runs, run_id), progress_of(runs, run_id)
    except CorruptFile as error:
        return styled(f"{trial['arm']}, trial {trial['trial']}: corrupt: {error} ").append(run_id, "dim")
    state = "waiting for a free slot" if record is None else str(record.status)
    if record is None and (is_fresh(where) or unfinished(runs, run_id)[0] == "running"):
        state = f"step {where['step']}, {progress_text(where)}" if where else "starting"
    return styled(f"{trial['arm']}, trial {trial['trial']}: {state} ").append(run_id, "dim")


def _who(runs: Path, name: str, missing: int) -> list[str]:
    """Who drives, and what jobs of the search SLURM holds."""
    lock = study_folder(runs, name) / "driver.lock"
    driven = is_held(lock)
    lines = [f"driven by {lock.read_text(encoding='utf-8', errors='replace').strip()}"] if driven else []
    of_search = {array.key: array for array in arrays(runs, name) if array.role != "batch"}
    if of_search:
        try:
            queue = {at: job for at, job in in_queue(name).items() if at[0] in of_search}
        except ValueError as error:
            return [*lines, f"the cluster could not be asked: {error}"]
        jobs = Counter(
            (of_search[key].role, job.state.lower(), f" ({job.reason})" * (job.state == "PENDING"))
            for (key, _), job in queue.items()
        )
        lines += [f"{number} {role} job{'s'[: number > 1]} {state}{why}" for (role, state, why), number in jobs.items()]
        again = restarted() if queue else {}
        for (key, index), job in queue.items():
            if times := again.get(job.job_id):
                log = log_of(runs, name, of_search[key], index)
                lines.append(f"job {job.job_id} was restarted {times} time{'s'[: times > 1]}, {log} says why")
        lines += stuck_lines(queue.values(), "tune")
    if missing and not driven:
        lines.append(f"{missing} trials to go, and nobody drives: `tune` goes on")
    return lines
