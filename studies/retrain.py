"""Choose the finished runs of a study that are trained again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from results.stale import Configs, finished_runs, read_records, stale_runs
from studies.spec import flatten
from studies.study import Cell


def arm_configs(cells: Iterable[Cell]) -> Configs:
    """Every field with an effect of each arm, as the study declares it today."""
    return {cell.arm: flatten(cell.spec) for cell in cells}


def runs_to_retrain(runs: Path, cells: Sequence[Cell], arms: Sequence[str]) -> list[str]:
    """All runs of `arms` that have ended or, without arms, the finished runs that differ from today; by their ids.

    Raises ValueError for an unknown arm.
    """
    known = dict.fromkeys(cell.arm for cell in cells)
    for arm in arms:
        if arm not in known:
            raise ValueError(f"there is no arm {arm!r} to retrain; arms: {', '.join(map(repr, known))}")
    ids = [(cell.arm, cell.spec.run_id) for cell in cells if not arms or cell.arm in arms]
    records = read_records(runs, (run_id for _, run_id in ids))
    return list(records) if arms else list(stale_runs(finished_runs(ids, records), arm_configs(cells)))
