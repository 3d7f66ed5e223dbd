"""What came of every cell of a study? One row a cell, read from the files of its runs.

A row always holds `arm` (an ordered categorical, in the study's order), `reference` (the arm it is compared with),
`seed`, `run_id`, `status` and `reason`; then, as far as the cell's run has them, columns grouped by prefix:

    factor.*                            what the study varied, as the manifest says it; empty: not varied in this arm
    model.* task.* optim.* budget.*     the run's configuration, nested fields joined by dots; of a run of an earlier
                                        version empty where a field is at its default
    spec.*                              the configuration's other fields; `spec.task` identifies the task as JSON
    train.* valid.* test.*              metrics; `train.steps` and `train.best_step` beside them
    cost.* data.*                       parameters and multiply-adds, throughput and memory where `bench` measured
                                        them on the task's own input; the data's fingerprint
    env.*                               the last attempt; `env.attempts` and `env.seconds` count all of them

A cell whose run has no record yet is a row too: `missing`, `running` or `stopped`. So is one whose record
cannot be read: `corrupt`, with what is wrong as its reason. Values that a table has no type for are text: None, NaN,
lists, and integers of more than 64 bits. Text is printable, on one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.cost_frame import MeasuredRuns
from results.entries import ArmEntry, CellEntry
from results.files import CorruptFile, verify
from results.record import Manifest, RunRecord, manifest_of, read_record, run_folder, unfinished
from results.text import one_line, printable

INT64 = range(-(2**63), 2**63)
REMEDY = "delete the folder of this run to train it again"
PREFIXES = ["factor", "model", "task", "optim", "budget", "spec", "train", "valid", "test", "cost", "data", "env"]


def gather(runs: Path, study: str, kept: dict[str, RunRecord] | None = None) -> pd.DataFrame:
    """One row for every cell of the study's manifest, arms in the study's order; `kept` is given the records read."""
    kept = {} if kept is None else kept
    manifest = printable_manifest(runs, study)
    measured = MeasuredRuns(runs)
    frame = pd.DataFrame([_row(runs, cell, measured, kept) for cell in manifest.cells])
    compared = {arm["label"]: arm["reference"] for arm in manifest.arms}
    frame.insert(1, "reference", frame["arm"].map(compared))
    frame["arm"] = pd.Categorical(frame["arm"], list(compared), ordered=True)
    frame = frame.sort_values(["arm", "seed"], ignore_index=True)
    for name in frame.columns[frame.dtypes == "object"]:
        frame[name] = _of_one_type(frame[name])
    columns: list[str] = sorted(frame.columns, key=_place)
    return frame[columns]


def printable_manifest(runs: Path, study: str) -> Manifest:
    """The manifest of a study with its labels and sentences as `results.text.printable` text.

    Raises CorruptFile where its arms and cells do not belong together.
    """
    manifest = manifest_of(runs, study)
    arms: list[ArmEntry] = [
        {
            "label": printable(arm["label"]),
            "reference": printable(arm["reference"]),
            "changes": arm["changes"],
            "note": printable(arm["note"]),
        }
        for arm in manifest.arms
    ]
    cells: list[CellEntry] = [{**cell, "arm": printable(cell["arm"])} for cell in manifest.cells]
    if wrong := _inconsistency(arms, cells):
        raise CorruptFile(
            f"the manifest of study {manifest.study!r} in {runs} {wrong}; `python -m studies run` writes it anew"
        )
    reference, question = printable(manifest.reference), one_line(manifest.question)
    notes = [one_line(note) for note in manifest.notes]
    return dataclasses.replace(manifest, arms=arms, cells=cells, reference=reference, question=question, notes=notes)


def _inconsistency(arms: list[ArmEntry], cells: list[CellEntry]) -> str:
    """What is wrong with a manifest's arms and cells; empty if nothing is."""
    labels, keys = {arm["label"] for arm in arms}, {(cell["arm"], cell["seed"]) for cell in cells}
    checks = {
        "has no cells": not cells,
        "has two arms of one label": len(labels) < len(arms),
        "has two cells of one arm and seed": len(keys) < len(cells),
        "has cells and arms that do not match": {arm for arm, _ in keys} != labels,
        "compares an arm with an unknown one": not labels.issuperset(arm["reference"] for arm in arms),
    }
    return next((what for what, found in checks.items() if found), "")


def curves(
    runs: Path, frame: pd.DataFrame, records: Mapping[str, RunRecord], unreadable: list[str] | None = None
) -> pd.DataFrame:
    """The learning curves of the frame's runs, one row an evaluation: `arm`, `reference`, `seed`, `step`, ...

    Raises CorruptFile for a file that does not match its record or is no table of numbers; with a list `unreadable`,
    adds a sentence to it instead.
    """
    parts = {}
    for index, run_id in frame["run_id"].items():
        try:
            curve = _curve(run_folder(runs, run_id) / "curve.csv", records.get(run_id))
        except CorruptFile as error:
            if unreadable is None:
                raise
            unreadable.append(f"{error}.")
            continue
        if curve is not None:
            parts[index] = curve
    cells = frame[["arm", "reference", "seed", "run_id"]]
    if not parts:
        return cells.head(0).assign(step=pd.Series(dtype=int))
    rows = pd.concat(parts, names=["cell", "row"]).reset_index("row", drop=True)
    return cells.join(rows, how="inner").reset_index(drop=True)


def _curve(path: Path, record: RunRecord | None) -> pd.DataFrame | None:
    """Read the curve in `path`. Return None if there is no such file: a run without training steps writes none."""
    try:
        verify(path, record.files.get(path.name) if record else None, REMEDY)
        curve = pd.read_csv(path)
    except FileNotFoundError:
        return None
    except CorruptFile:
        raise
    except ValueError as error:
        raise CorruptFile(f"{path} is no table of numbers ({one_line(str(error))})") from None
    if "step" not in curve or curve["step"].isna().any() or len(curve.select_dtypes("number").columns) < curve.shape[1]:
        raise CorruptFile(f"{path} is no table of numbers with a column `step`")
    if not np.isfinite(curve.to_numpy(float)).all() or not curve["step"].is_monotonic_increasing:
        raise CorruptFile(f"{path} has a value that is not finite, or steps that do not ascend")
    return curve


def _row(runs: Path, cell: CellEntry, measured: MeasuredRuns, kept: dict[str, RunRecord]) -> dict[str, Any]:
    run_id = cell["run_id"]
    row = {"arm": cell["arm"], "seed": cell["seed"], "run_id": run_id}
    try:
        record = read_record(runs, run_id)
        status, reason = (record.status, record.reason) if record else unfinished(runs, run_id)
    except CorruptFile as error:
        record, status, reason = None, "corrupt", str(error)
    row |= {"status": status, "reason": one_line(reason)}
    row |= {f"factor.{name}": _level(value) for name, value in cell["factors"].items()}
    if record is not None:
        kept[run_id] = record
        _add_fields(row, record)
        row |= measured.of(record)
    return row


def _add_fields(row: dict[str, Any], record: RunRecord) -> None:
    config: dict[str, Any] = {}
    for name, value in (record.config or record.spec).items():
        grouped = name in PREFIXES and isinstance(value, dict)
        _flatten(config, name if grouped else f"spec.{name}", value)
    row |= {name: _level(value) for name, value in config.items()}  # None and NaN are no defaults
    row["spec.task"] = json.dumps(record.spec["task"], sort_keys=True)
    row |= {"train.steps": record.steps, "train.best_step": record.best_step}
    for split, metrics in record.metrics.items():
        _flatten(row, split, metrics)
    _flatten(row, "cost", record.cost)
    _flatten(row, "data", record.data)
    if record.attempts:
        _flatten(row, "env", {name: value for name, value in record.attempts[-1].items() if name != "sources"})
    row["env.attempts"] = len(record.attempts)
    # An attempt that was killed could not say how long it took.
    row["env.seconds"] = sum(attempt.get("seconds", 0.0) for attempt in record.attempts)


def _flatten(row: dict[str, Any], name: str, value: Any) -> None:
    """Add `{"a": {"b": 1}}` under the name "x" as "x.a.b"; a list becomes its JSON, which every file can hold."""
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(row, f"{name}.{key}", part)
    elif isinstance(value, str):
        row[name] = printable(value)
    else:
        row[name] = json.dumps(value) if isinstance(value, list) else value


def _level(value: Any) -> Any:
    """A value of a field as a cell: text for what a column would take for missing, or has no type for."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "NaN" if value else "None"
    if isinstance(value, str):
        return printable(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


def _of_one_type(column: pd.Series) -> pd.Series:
    """A stored column has one type: a factor that is off in one arm and 8 in another is text."""
    values = column.dropna()
    kinds = set(map(type, values))
    if kinds == {bool}:
        return column.astype("boolean")
    if kinds == {int, float}:
        return column.astype(float)
    big = int in kinds and not all(value in INT64 for value in values if type(value) is int)
    return column.map(level_text, na_action="ignore") if len(kinds) > 1 or big else column


def level_text(value: object) -> str:
    """A value of a factor in words, the same whatever other values its column holds: "on", "2", "0.5"."""
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _place(column: str) -> int:
    """Rank of a column: the cell's own first, then by prefix; other splits' metrics last."""
    prefix, dot, _ = column.partition(".")
    if not dot:
        return -1
    return PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES)
