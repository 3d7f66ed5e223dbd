"""What came of every cell of a study? One row a cell, read from the files of its runs.

A row always holds `arm` (an ordered categorical, in the study's order), `reference` (the arm it is compared with),
`seed`, `run_id`, `status` and `reason`; then, as far as the cell's run has them, columns grouped by prefix:

    factor.*                            what the study varied, as the manifest says it
    model.* task.* optim.* budget.*     the run's spec, nested fields joined by dots; empty: at its default
    spec.*                              the spec's other fields
    train.* valid.* test.*              metrics; `train.steps` and `train.best_step` beside them
    cost.* data.*                       parameters and multiply-adds, throughput and memory where `bench` measured
                                        them on the task's own input; the data's fingerprint
    env.*                               the last attempt; `env.attempts` and `env.seconds` count all of them

A cell whose run has no record yet is a row too: `missing`, `running` or `stopped`. So is one whose record
cannot be read: `corrupt`, with what is wrong as its reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from results.cost_frame import MeasuredRuns
from results.files import CorruptFile
from results.record import RunRecord, manifest_of, read_record, run_folder, unfinished

PREFIXES = ["factor", "model", "task", "optim", "budget", "spec", "train", "valid", "test", "cost", "data", "env"]


def gather(runs: Path, study: str, kept: dict[str, RunRecord] | None = None) -> pd.DataFrame:
    """One row for every cell of the study's manifest, arms in the study's order; `kept` is given the records read."""
    kept = {} if kept is None else kept
    manifest = manifest_of(runs, study)
    measured = MeasuredRuns(runs)
    frame = pd.DataFrame([_row(runs, cell, measured, kept) for cell in manifest.cells])
    compared = {arm["label"]: arm["reference"] for arm in manifest.arms}
    frame.insert(1, "reference", frame["arm"].map(compared))
    frame["arm"] = pd.Categorical(frame["arm"], list(compared), ordered=True)
    for name in frame.columns[frame.dtypes == "object"]:
        frame[name] = _of_one_type(frame[name])
    columns: list[str] = sorted(frame.columns, key=_place)
    return frame[columns].sort_values(["arm", "seed"], ignore_index=True)


def curves(runs: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The learning curves of the frame's runs, one row an evaluation: `arm`, `reference`, `seed`, `step`, ..."""
    parts = {}
    for index, run_id in frame["run_id"].items():
        path = run_folder(runs, run_id) / "curve.csv"
        try:
            parts[index] = pd.read_csv(path)
        except FileNotFoundError:  # a run without training steps has none
            continue
        except ValueError as error:
            raise CorruptFile(f"{path} is no table of numbers ({' '.join(str(error).split())})") from None
    cells = frame[["arm", "reference", "seed", "run_id"]]
    if not parts:
        return cells.head(0).assign(step=pd.Series(dtype=int))
    rows = pd.concat(parts, names=["cell", "row"]).reset_index("row", drop=True)
    return cells.join(rows, how="inner").reset_index(drop=True)


def _row(runs: Path, cell: dict[str, Any], measured: MeasuredRuns, kept: dict[str, RunRecord]) -> dict[str, Any]:
    run_id = cell["run_id"]
    row = {"arm": cell["arm"], "seed": cell["seed"], "run_id": run_id}
    try:
        record = read_record(runs, run_id)
        status, reason = (record.status, record.reason) if record else unfinished(runs, run_id)
    except CorruptFile as error:
        record, status, reason = None, "corrupt", str(error)
    row |= {"status": status, "reason": " ".join(reason.split())}
    _flatten(row, "factor", cell["factors"])
    if record is not None:
        kept[run_id] = record
        _add_fields(row, record)
        row |= measured.of(record)
    return row


def _add_fields(row: dict[str, Any], record: RunRecord) -> None:
    for name, value in record.spec.items():
        grouped = name in PREFIXES and isinstance(value, dict)
        _flatten(row, name if grouped else f"spec.{name}", value)
    row |= {"train.steps": record.steps, "train.best_step": record.best_step}
    for split, metrics in record.metrics.items():
        _flatten(row, split, metrics)
    _flatten(row, "cost", record.cost)
    _flatten(row, "data", record.data)
    if record.attempts:
        _flatten(row, "env", record.attempts[-1])
    row["env.attempts"] = len(record.attempts)
    # An attempt that was killed could not say how long it took.
    row["env.seconds"] = sum(attempt.get("seconds", 0.0) for attempt in record.attempts)


def _flatten(row: dict[str, Any], name: str, value: Any) -> None:
    """Add `{"a": {"b": 1}}` under the name "x" as "x.a.b"; a list becomes its JSON, which every file can hold."""
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(row, f"{name}.{key}", part)
    else:
        row[name] = json.dumps(value) if isinstance(value, list) else value


def _of_one_type(column: pd.Series) -> pd.Series:
    """A stored column has one type: a factor that is off in one arm and 8 in another is text."""
    kinds = set(map(type, column.dropna()))
    if kinds == {bool}:
        return column.astype("boolean")
    return column.map(str, na_action="ignore") if len(kinds) > 1 else column


def _place(column: str) -> int:
    """Rank of a column: the cell's own first, then by prefix; other splits' metrics last."""
    prefix, dot, _ = column.partition(".")
    if not dot:
        return -1
    return PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES)
