"""What would be submitted? The runs of a study that are to be run, laid into jobs and arrays, and their hours."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from results.record import RunRecord
from studies.cluster import Cluster
from studies.drive import Tally, survey
from studies.spec import RunSpec
from studies.study import Cell

Job = list[RunSpec]
T = TypeVar("T")


@dataclass
class Plan:
    """`jobs` are those to be submitted, `queued` the runs that former jobs are about to run or running."""

    cells: int
    done: int
    failed: int
    queued: int
    jobs: list[Job]
    arrays: list[list[Job]]
    cluster: Cluster
    slots: int
    max_array: int | None
    known: dict[str, float] = field(default_factory=dict)  # run id -> seconds, of arms with finished runs
    devices: list[str] = field(default_factory=list)  # on which those were measured
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
) -> Plan:
    """Lay out what has no record yet (with `retry`, also what failed) and is not `queued`; touches no file."""
    tally = Tally(cells=len(cells))
    records, wanted = survey(runs, cells, retry, tally)
    specs = {cell.spec.run_id: cell.spec for cell in cells if cell.spec.run_id in wanted - set(queued)}
    jobs = split(list(specs.values()), cluster.runs_per_job)
    settled = [records[c.spec.run_id] for c in cells if c.spec.run_id in records and c.spec.run_id not in wanted]
    known, devices = measured(cells, records)
    return Plan(
        cells=len(cells),
        done=sum(record.status == "done" for record in settled),
        failed=sum(record.status != "done" for record in settled) + tally.failed,
        queued=len({cell.spec.run_id for cell in cells} & wanted & set(queued)),
        jobs=jobs,
        arrays=split(jobs, max_array or len(jobs) or 1),
        cluster=cluster,
        slots=slots or cluster.slots_for(threads),
        max_array=max_array,
        known={run_id: known[run_id] for run_id in specs if run_id in known},
        devices=devices,
        notes=tally.notes,
    )


def split(items: Sequence[T], size: int) -> list[list[T]]:
    """As few parts as hold at most `size` each, in order, none larger than another by more than one."""
    parts = math.ceil(len(items) / size)
    bounds = [len(items) * part // parts for part in range(parts + 1)] if parts else [0]
    return [list(items[low:high]) for low, high in pairwise(bounds)]


def measured(cells: Sequence[Cell], records: dict[str, RunRecord]) -> tuple[dict[str, float], list[str]]:
    """Seconds that each run may take: the mean of its arm's finished runs; and the devices those ran on."""
    taken: dict[str, list[float]] = {}
    devices: dict[str, None] = {}
    for cell in cells:
        record = records.get(cell.spec.run_id)
        if record is not None and record.status == "done" and record.attempts:
            taken.setdefault(cell.arm, []).append(sum(attempt.get("seconds", 0.0) for attempt in record.attempts))
            devices[str(record.attempts[-1].get("device", "unknown"))] = None
    return {c.spec.run_id: fmean(taken[c.arm]) for c in cells if c.arm in taken}, list(devices)


def described(asked: Plan, name: str) -> list[str]:
    """The plan, a line each, for a person."""
    counts = [f"{asked.cells} runs: {asked.done} done", f"{asked.failed} failed", f"{asked.queued} queued or running"]
    counts += [f"{len(asked.runs)} to submit"]
    lines = [", ".join(counts)]
    if not asked.jobs:
        return lines
    sizes = sorted({len(job) for job in asked.jobs})
    packed = f"{sizes[-1]} run{'s'[: sizes[-1] > 1]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} runs"
    limit = f"MaxArraySize {asked.max_array}" if asked.max_array else "MaxArraySize unknown: no SLURM here"
    lines.append(
        f"{len(asked.jobs)} job{'s'[: len(asked.jobs) > 1]} of {packed} in {asked.slots} slot{'s'[: asked.slots > 1]}; "
        f"{len(asked.arrays)} array{'s'[: len(asked.arrays) > 1]} ({limit})"
    )
    lines.append("sbatch: " + shown(asked.cluster.parameters(name) | asked.cluster.sbatch))
    lines.append(estimate(asked))
    return lines


def shown(parameters: dict[str, Any]) -> str:
    return " ".join(f"{name}={shlex.quote(str(value))}" for name, value in parameters.items())


def estimate(asked: Plan) -> str:
    """How long it may take, as far as runs of the same arms were measured."""
    if not asked.known:
        return "hours: unknown, no run of these arms was measured yet"
    hours = sum(asked.known.values()) / 3600
    # of a job the slots share one allocation
    allocated = sum(sum(asked.known.get(s.run_id, 0) for s in job) / min(asked.slots, len(job)) for job in asked.jobs)
    allocated /= 3600
    gpu = f" ({allocated * asked.cluster.gpus:.3g} GPU hours)" if asked.cluster.gpus else ""
    missing = len(asked.runs) - len(asked.known)
    beside = f"; {missing} runs of arms never measured come on top" if missing else ""
    return (
        f"hours: {hours:.3g} of training, {allocated:.3g} of jobs{gpu}, by the seconds that finished runs of the same "
        f"arms took on {', '.join(asked.devices)}{beside}"
    )
