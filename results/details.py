"""What is known of each run beyond its row: spec, attempts, traceback, curve, and the files it left?

It is made for a page that holds thousands of runs. So all is text, printed once here; and a text that many runs
share (a task's settings, a device's description) is stored once, in `pool`, and named by its place there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from results.entries import Attempt
from results.files import CorruptFile, verify
from results.record import RunRecord, run_folder

CURVE_ROWS = 200_000  # evaluations that all curves together may have in a page, but never less than FEWEST a run
FEWEST = 20
TIMES = ("started", "seconds")  # what no two attempts share


class Pool:
    """Texts, each stored once and known by its place."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self._fields: dict[tuple[str, str], int] = {}

    def add(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def field(self, name: str, value: Any) -> int:
        """A field of a JSON object, indented. Indenting is slow, so it is done once for equal values."""
        key = name, str(value)
        if key not in self._fields:
            indented = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            self._fields[key] = self.add(f"{json.dumps(name, ensure_ascii=False)}: {indented}")
        return self._fields[key]


def details(runs: Path, frame: pd.DataFrame, records: Mapping[str, RunRecord]) -> dict[str, Any]:
    """`details`, a list of one object a row of `frame`, and the `pool` of texts that these name by number."""
    pool = Pool()
    rows = max(FEWEST, CURVE_ROWS // max(1, len(frame)))
    found = [_details(str(run_folder(runs, run_id)), records.get(run_id), rows, pool) for run_id in frame["run_id"]]
    return {"details": found, "pool": list(pool.texts)}


def _details(folder: str, record: RunRecord | None, rows: int, pool: Pool) -> dict[str, Any]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = {"files": pool.add("\n".join(names))} if names else {}
    if "curve.csv" in names:
        with suppress(CorruptFile):
            verify(Path(folder, "curve.csv"), record.files.get("curve.csv") if record else None, "")
            found["curve"], found["evaluations"] = _curve(os.path.join(folder, "curve.csv"), rows)
    return found | _of_record(record, pool) if record else found


def _of_record(record: RunRecord, pool: Pool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # A field's text is shared, for most runs of a study have most fields in common.
    found["spec"] = [pool.field(name, value) for name, value in (record.config or record.spec).items()]
    found["metrics"] = [
        [f"{split}.{name}", _number(value)]
        for split, metrics in record.metrics.items() if isinstance(metrics, dict)
        for name, value in metrics.items()
    ]  # fmt: skip
    found["attempts"] = [_attempt(attempt, pool) for attempt in record.attempts]
    facts = {"cost": record.cost, "data": record.data}
    found["facts"] = [pool.field(name, value) for name, value in facts.items() if value]
    found["end"] = [f"{record.steps}", f"{record.best_step}", record.weights_hash]
    if record.traceback:
        found["traceback"] = pool.add(record.traceback)
    return found


def _attempt(attempt: Attempt, pool: Pool) -> list[Any]:
    """When it was started (UTC), how many seconds it took, and everything else of it."""
    started, seconds = (attempt.get(name) for name in TIMES)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(started)) if isinstance(started, int | float) else ""
    others = {name: value for name, value in attempt.items() if name not in TIMES}
    return [when, "" if seconds is None else f"{seconds:,.1f}", pool.add(json.dumps(others)[1:-1])]


def _curve(path: str, rows: int) -> tuple[str, int]:
    """The file's text, thinned evenly to so many rows (the last one stays); and how many evaluations it has."""
    with open(path, encoding="utf-8", errors="replace") as file:
        head, *lines = file.read().rstrip("\n").split("\n")
    if len(lines) <= rows:
        return "\n".join([head, *lines]), len(lines)
    kept = [lines[round(i * (len(lines) - 1) / (rows - 1))] for i in range(rows)]
    return "\n".join([head, *kept]), len(lines)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
