"""What lies on disk: one folder a run, one manifest a study, all of it JSON, CSV and npz.

    runs/<run_id>/record.json       RunRecord, written once, when the run has ended
                 /curve.csv         one row an evaluation
                 /predictions.npz   `predicted` and `label` of every test example, in the task's order
                 /weights.pt        best-on-validation weights
                 /checkpoint.pt     of a run that has not ended
                 /progress.json     where a running run is
    runs/studies/<name>/manifest.json   which run is which cell of the study
                       /journal.log     the Optuna journal: a queue, rebuilt from the records when lost

Files are written beside their place and renamed, so a reader sees the old one or the new one, never half of one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args, get_origin, get_type_hints

SCHEMA = 1
UMASK = os.umask(0)
os.umask(UMASK)
Status = Literal["done", "diverged", "failed", "pruned", "cancelled", "lost"]


@dataclass(kw_only=True)
class RunRecord:
    """How one run ended, failures included.

    `spec` is the run's canonical content as plain data, `metrics` maps a split to its metrics
    (`{"test": {"accuracy": 0.97, "loss": 0.1}}`), `cost` holds params, gmac and gmac by operation,
    `data` the fingerprint of the data and what its checksums said, `attempts` one entry for every
    time the run was started (node, device, threads, commit, dirty, torch, started, seconds, first_step).
    """

    run_id: str
    spec: dict[str, Any]
    status: Status
    reason: str = ""
    traceback: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0
    weights_hash: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA


@dataclass(kw_only=True)
class Manifest:
    """A study as its driver last saw it: what is asked, and which run answers each cell.

    An arm: {"label", "reference" (the arm it is compared with), "changes": {field: [that arm's value, this one's]},
    "note"}.
    A cell: {"arm", "seed", "run_id", "factors": {field: value}}.
    """

    study: str
    source: str
    question: str
    reference: str
    metric: str
    direction: Literal["max", "min"]
    arms: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    schema: int = SCHEMA


class CorruptFile(ValueError):
    """A file of ours that cannot be read; the message says which, why, and what to do."""


def run_folder(runs: Path, run_id: str) -> Path:
    return runs / run_id


def study_folder(runs: Path, study: str) -> Path:
    return runs / "studies" / study


def write_record(runs: Path, record: RunRecord) -> None:
    """Write a run's record. Raises OSError (a full disk, say) with the old record, if any, intact."""
    write_json(run_folder(runs, record.run_id) / "record.json", dataclasses.asdict(record))


def read_record(runs: Path, run_id: str) -> RunRecord | None:
    """A run's record; None if it has none yet. Raises CorruptFile."""
    path = run_folder(runs, run_id) / "record.json"
    plain = read_json(path, "delete it to run this run again")
    if plain is None:
        return None
    record = _from_plain(RunRecord, plain, path)
    if record.status not in get_args(Status):
        raise CorruptFile(f"{path} has the unknown status {record.status!r}; known: {', '.join(get_args(Status))}")
    if record.run_id != run_id:
        raise CorruptFile(f"{path} belongs to run {record.run_id}; delete it to run this run again")
    return record


def write_manifest(runs: Path, manifest: Manifest) -> None:
    write_json(study_folder(runs, manifest.study) / "manifest.json", dataclasses.asdict(manifest))


def read_manifest(runs: Path, study: str) -> Manifest | None:
    """A study's manifest; None if the study was never run here. Raises CorruptFile."""
    path = study_folder(runs, study) / "manifest.json"
    plain = read_json(path, f"delete it and call `python -m studies run {study}`, which writes it anew")
    return None if plain is None else _from_plain(Manifest, plain, path)


def _from_plain(cls: type, plain: dict[str, Any], path: Path) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = _kinds(cls)
    odd = sorted(
        n for n in plain.keys() & kinds.keys() if isinstance(kinds[n], type) and type(plain[n]) is not kinds[n]
    )
    if odd:
        raise CorruptFile(f"{path} does not fit: of the wrong type are {', '.join(odd)}")
    if plain.get("schema", 0) > SCHEMA:
        raise CorruptFile(f"{path} was written by a newer version (schema {plain['schema']}, known up to {SCHEMA})")
    unknown = sorted(plain.keys() - fields.keys())
    missing = sorted(n for n, f in fields.items() if n not in plain and _required(f))
    if unknown or missing:
        raise CorruptFile(f"{path} does not fit: unknown fields {unknown}, missing fields {missing}")
    return cls(**plain)


@cache
def _kinds(cls: type) -> dict[str, Any]:
    """The type of each field, without what it holds; resolved once, for thousands of records are read."""
    return {name: get_origin(hint) or hint for name, hint in get_type_hints(cls).items()}


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The JSON object in `path`, None if there is no such file; CorruptFile (with `remedy`) if it holds none."""
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(plain, dict):
        raise CorruptFile(f"{path} holds no JSON object; {remedy}")
    return plain


def write_json(path: Path, plain: dict[str, Any]) -> None:
    text = json.dumps(plain, indent=1, allow_nan=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it onto `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~UMASK)  # mkstemp makes files private; a shared folder is meant to be shared
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
