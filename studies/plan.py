"""What would be submitted? The runs of a study that are to be run, laid into jobs and arrays, and their hours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from results.record import RunRecord
from studies.cluster import Cluster
from studies.drive import Tally, survey
from studies.meter import measure
from studies.spec import RunSpec
from studies.study import Cell

Job = list[RunSpec]
T = TypeVar("T")


@dataclass
class Plan:
    """`jobs` are those to be submitted, `queued` the runs that former jobs are about to run or running.

    A run that several arms share counts once.
    """

    distinct: int
    shared: int
    done: int
    failed: int
    queued: int
    jobs: list[Job]
    arrays: list[list[Job]]
    cluster: Cluster
    slots: int
    max_array: int | None
    known: dict[str, float] = field(default_factory=dict)  # run id -> seconds, of arms with finished runs
    modelled: dict[str, float] = field(default_factory=dict)  # the same of others, by their multiply-adds
    devices: list[str] = field(default_factory=list)  # on which those were measured
    sbatch: list[str] = field(default_factory=list)  # what a submission gives to sbatch
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunSpec]:
        return [spec for job in self.jobs for spec in job]


def plan(
    runs: Path,
    cells: list[Cell],
    cluster: Cluster,
    threads: int,
    slots: int | None = None,
    retry: bool = False,
    queued: Collection[str] = (),
    max_array: int | None = None,
    retrain: Collection[str] = (),
) -> Plan:
    """Lay out what has no record yet (with `retry`, also what failed), what is to be trained again and is not `queued`.

    Touches no file.
    """
    tally = Tally(cells=len(cells))
    records, wanted = survey(runs, cells, retry, tally, retrain)
    specs = {cell.spec.run_id: cell.spec for cell in cells if cell.spec.run_id in wanted - set(queued)}
    jobs = split(list(specs.values()), cluster.runs_per_job)
    arms = Counter(cell.spec.run_id for cell in cells)
    settled = [record for run_id, record in records.items() if run_id not in wanted]
    corrupt = arms.keys() - records.keys() - wanted
    known, devices = seconds_by_arm(cells, records)
    unknown = [spec for run_id, spec in specs.items() if run_id not in known]
    return Plan(
        distinct=len(arms),
        shared=sum(count > 1 for count in arms.values()),
        done=sum(record.status == "done" for record in settled),
        failed=sum(record.status != "done" for record in settled) + len(corrupt),
        queued=len(arms.keys() & wanted & set(queued)),
        jobs=jobs,
        arrays=split(jobs, max_array or len(jobs) or 1),
        cluster=cluster,
        slots=slots or cluster.slots_for(threads),
        max_array=max_array,
        known={run_id: known[run_id] for run_id in specs if run_id in known},
        modelled=modelled(unknown, list(records.values())),
        devices=devices,
        notes=tally.notes,
    )


def split(items: Sequence[T], size: int) -> list[list[T]]:
    """As few parts as hold at most `size` each, in order, none larger than another by more than one."""
    parts = math.ceil(len(items) / size)
    bounds = [len(items) * part // parts for part in range(parts + 1)] if parts else [0]
    return [list(items[low:high]) for low, high in pairwise(bounds)]


def seconds_by_arm(cells: Sequence[Cell], records: dict[str, RunRecord]) -> tuple[dict[str, float], list[str]]:
    """Seconds that each run may take: the mean of its arm's finished runs; and the devices those ran on."""
    taken: dict[str, list[float]] = {}
    devices: dict[str, None] = {}
    for cell in cells:
        record = records.get(cell.spec.run_id)
        if record is not None and record.status == "done" and record.attempts:
            taken.setdefault(cell.arm, []).append(sum(attempt.get("seconds", 0.0) for attempt in record.attempts))
            devices[str(record.attempts[-1].get("device", "unknown"))] = None
    return {c.spec.run_id: fmean(taken[c.arm]) for c in cells if c.arm in taken}, list(devices)


def modelled(specs: Sequence[RunSpec], records: Sequence[RunRecord]) -> dict[str, float]:
    """Seconds that runs of arms never measured may take: by the seconds a multiply-add of the study's finished runs.

    Left out are those whose multiply-adds are not known before their data is loaded; where no run has finished, all
    but those whose budget is in seconds.
    """
    rates = []
    for record in records:
        batch = record.spec.get("batch", RunSpec.batch)  # what is at its default is not written down
        work = 3 * record.cost.get("gmac", 0.0) * batch * record.steps
        if record.status == "done" and work > 0:
            rates.append(sum(attempt.get("seconds", 0.0) for attempt in record.attempts) / work)
    gmac: dict[tuple[Any, Any], float] = {}
    seconds = {}
    for spec in specs:
        budget, built = spec.budget, (spec.model, spec.task)
        if budget.seconds is not None:
            seconds[spec.run_id] = budget.seconds
        elif rates and budget.gmacs is not None:
            seconds[spec.run_id] = median(rates) * budget.gmacs
        elif rates and budget.steps is not None:
            if built not in gmac:
                gmac[built] = measure(spec.model.build(spec.task.input, spec.task.target), spec.task.input).gmac
            seconds[spec.run_id] = median(rates) * 3 * gmac[built] * spec.batch * budget.steps
    return seconds


def plan_lines(asked: Plan) -> list[str]:
    """The plan, a line each, for a person."""
    shared = f" ({asked.shared} of them shared by several arms)" if asked.shared else ""
    counts = [f"{asked.done} done", f"{asked.failed} failed", f"{asked.queued} queued or running"]
    lines = [f"{asked.distinct} runs{shared}: {', '.join(counts)}, {len(asked.runs)} to submit"]
    if not asked.jobs:
        return lines
    sizes = sorted({len(job) for job in asked.jobs})
    packed = f"{sizes[-1]} run{'s'[: sizes[-1] > 1]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} runs"
    limit = f"MaxArraySize {asked.max_array}" if asked.max_array else "MaxArraySize unknown: no SLURM here"
    lines.append(
        f"{len(asked.jobs)} job{'s'[: len(asked.jobs) > 1]} of {packed} in {asked.slots} slot{'s'[: asked.slots > 1]}; "
        f"{len(asked.arrays)} array{'s'[: len(asked.arrays) > 1]} ({limit})"
    )
    return [*lines, *asked.sbatch, estimate(asked)]


def estimate(asked: Plan) -> str:
    """How long it may take, as far as runs of the same arms were measured, or others whose multiply-adds compare."""
    seconds = asked.known | asked.modelled
    if not seconds:
        return "hours: unknown, no run of this study was measured yet"
    # of a job the slots share one allocation
    allocated = sum(sum(seconds.get(s.run_id, 0) for s in job) / min(asked.slots, len(job)) for job in asked.jobs)
    gpu = f" ({allocated / 3600 * asked.cluster.gpus:.3g} GPU hours)" if asked.cluster.gpus else ""
    total = f"hours: {sum(seconds.values()) / 3600:.3g} of training, {allocated / 3600:.3g} of jobs{gpu}"
    said = []
    if number := len(asked.known):
        runs = f"{number} run{'s'[: number > 1]}"
        said.append(f"{runs} by finished ones of the same arms on {', '.join(asked.devices)}")
    if asked.modelled:
        said.append(f"{len(asked.modelled)} by budgets in seconds, or by multiply-adds beside those of finished runs")
    if missing := len(asked.runs) - len(seconds):
        said.append(f"{missing} unknown, which come on top")
    return f"{total}; {'; '.join(said)}"
