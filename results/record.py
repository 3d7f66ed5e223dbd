"""What lies on disk: one folder a run, one manifest a study, all of it JSON, CSV and npz.

    runs/<run_id>/record.json       RunRecord, written once, when the run has ended
                 /curve.csv         one row an evaluation
                 /predictions.npz   `predicted` and `label` of every test example, in the task's order; if several
                                    are made of the same, `source` says which
                 /weights.pt        best-on-validation weights
                 /evals/<eval_id>.json   EvalRecord, the weights evaluated elsewhere
                 /probe.json        ProbeRecord, what happens inside the network
                 /checkpoint.pt     of a run that has not ended; the one before is checkpoint.former.pt
                 /progress.json     where a running run is
    runs/code/<hash>/               a copy of the code, which jobs on a cluster run
    runs/studies/<name>/manifest.json   which run is which cell of the study
                       /declared/<digest>.json   the same of every set of cells declared so far, also elsewhere
                       /journal.log     the Optuna journal: a queue, rebuilt from the records when lost
                       /tuning.log      the Optuna journal of its tuning, rebuilt from trials.json when lost
                       /trials.json     TuningRecord with all trials
                       /slurm/<key>/array.json   which job was given which runs; the jobs' logs lie beside
    <study file>.tuned.json             TuningRecord without the trials, beside the study's file
    runs/costs/<cost_id>.json           CostRecord, of one pass of one model or kernel over one input on a device

Every JSON file holds a checksum of itself, a record also those of its run's curve, predictions and weights, and a
checkpoint ends with one. Files of older versions without checksums are read too. `results/files.py` writes and verifies
files; `results/entries.py` says what the parts of a record hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from results.entries import (
    ArmEntry,
    Attempt,
    Attempts,
    CellEntry,
    DataFacts,
    ForwardCost,
    ProbedNetwork,
    ProgressEntry,
    Status,
    TrialEntry,
    TunedArm,
)
from results.files import FIRST_CHECKED, CorruptFile, read_json, write_json
from results.identity import SUITE, read_source, source_of, stored_source, validate_source
from results.locks import is_held
from results.validation import SCHEMA, Count, Metrics, NonNegative, checked, from_plain, with_non_finite

ATTEMPTS = TypeAdapter(Attempts)
PROGRESS = TypeAdapter(ProgressEntry)
R = TypeVar("R")
# what a training leaves, in the order in which it is deleted: nothing may continue from it without its record
TRAINED = (
    "probe.json", "checkpoint.pt", "checkpoint.former.pt", "progress.json", "prune",
    "record.json", "predictions.npz", "weights.pt", "curve.csv",
)  # fmt: skip


@dataclass(kw_only=True)
class RunRecord:
    """How one run ended, failures included.

    `spec` is the run's canonical content as plain data, which `run_id` is the hash of; `config` has every field with
    its value, also those that `spec` leaves out. `sources` maps "model", "task" and "training" to "ENTRY@HASH", a
    module and the hash of its source (`results/sources.py`), with several hashes if it changed meanwhile. `metrics`
    maps a split to its metrics (`{"test": {"accuracy": 0.97, "loss": 0.1}}`), `files` the name of each file that the
    run has left to the sha256 of its bytes; `attempts` has one entry for every time the run was started.
    """

    run_id: str
    spec: dict[str, Any]
    status: Status
    config: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    traceback: str = ""
    metrics: dict[str, Metrics] = field(default_factory=dict)
    cost: ForwardCost = field(default_factory=ForwardCost)
    steps: Count = 0
    best_step: Count = 0
    weights_hash: str = ""
    data: DataFacts = field(default_factory=DataFacts)
    attempts: list[Attempt] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(kw_only=True)
class Manifest:
    """A study as its driver last saw it: what is asked, and which run answers each cell.

    `notes` are sentences for the report's reader;
    `tuning` is the TuningRecord, as plain data and without its trials, whose winners the arms carry, if there is one.
    """

    study: str
    source: str
    question: str
    reference: str
    metric: str
    direction: Literal["max", "min"]
    arms: list[ArmEntry]
    cells: list[CellEntry]
    notes: list[str] = field(default_factory=list)
    tuning: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def called(self) -> str:
        """What a command line knows it by: a study that ships by its name, any other by its file."""
        if self.source in ("", f"{SUITE}{self.study}"):
            return self.study
        near = os.path.relpath(self.source)
        return self.source if near.startswith("..") else near


@dataclass(kw_only=True)
class TuningRecord:
    """What a study's tuning has found so far: what was searched, every arm's winner, and all trials.

    `space` maps a dotted field to [low, high, scale] or {"choices": [...]}, `arms` a label to the arm's search.
    """

    study: str
    source: str
    space: dict[str, Any]
    trials: Count
    seeds: list[int]
    objectives: list[str]
    pruner: str
    commit: str
    dirty: bool
    arms: dict[str, TunedArm]
    history: list[TrialEntry] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def left(self) -> int:
        """How many trials are not over yet."""
        over = sum(trial["status"] not in ("running", "lost") for trial in self.history)
        return sum(arm["planned"] for arm in self.arms.values()) - over


CostStatus = Literal["done", "out of memory", "refused", "skipped", "failed"]


@dataclass(kw_only=True)
class CostRecord:
    """What one pass of a model, or of a kernel alone, over one input cost on one device, or why that is not known.

    `model` is canonical, as in a run's spec (of a kernel: which one, and whether it is fused), and so is `task`, which
    is empty where the input belongs to no task; `input` says what was read (kind, length, ...), of which `tokens` is
    what throughput counts. The values read are random in any case. `seconds` holds the time of a pass in each timed
    block, `median`, `low` and `high` their median and quartiles, `iterations` how many passes all blocks held.
    `peak_bytes` is what the device's allocator held at most, weights, input and gradients included, `moved_bytes` what
    the pass's operations read and wrote, each by itself (0: not known, as under compilation, which merges them), and
    `least_bytes` what a kernel has to move however it is written: its input read once, its output written once (0: not
    counted, as of a model). `gmac` is of the forward pass of one example, a lower bound if
    there are `uncounted` operations.
    `copy_gb_s` and `matmul_tflop_s` are the device's ceilings as measured beside it. What is unknown is NaN or 0.
    """

    label: str
    model: dict[str, Any]
    task: dict[str, Any]
    input: dict[str, Any]
    tokens: Count
    batch: Count
    dtype: Literal["float32", "bfloat16"]
    work: Literal["forward", "forward+backward"]
    compiled: bool
    status: CostStatus
    reason: str = ""
    seconds: list[NonNegative] = field(default_factory=list)
    median: NonNegative = math.nan
    low: NonNegative = math.nan
    high: NonNegative = math.nan
    iterations: Count = 0
    peak_bytes: Count = 0
    moved_bytes: Count = 0
    least_bytes: Count = 0
    params: Count = 0
    gmac: NonNegative = math.nan
    uncounted: list[str] = field(default_factory=list)
    copy_gb_s: NonNegative = math.nan
    matmul_tflop_s: NonNegative = math.nan
    env: Attempt = field(default_factory=Attempt)
    schema: int = SCHEMA

    @property
    def cost_id(self) -> str:
        """Of what was measured and where: measuring it again replaces the record. The label is no part of it."""
        where = {name: self.env.get(name) for name in ("node", "device", "threads")}
        what = [self.model, self.task, self.input, self.batch, self.dtype, self.work, self.compiled, where]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class EvalRecord:
    """Stored weights evaluated elsewhere: at another length or resolution, or on other data.

    `eval_id` is the hash of the weights and of all that was asked: `task` (canonical, as in a run's spec), `split`,
    `resolution` ([H, W] the images are resized to, empty for their own). `changes` are the fields in which that
    differs from what the run was trained on, {"gap": 3}; empty: the very same. `length` counts the positions of an
    input, `trained_length` those of training. A model that cannot read the input is `failed`, with a `reason`.
    """

    eval_id: str
    run_id: str
    task: dict[str, Any]
    split: Literal["valid", "test"]
    resolution: list[Count]
    changes: dict[str, Any]
    length: Count
    trained_length: Count
    status: Literal["done", "failed"]
    reason: str = ""
    metrics: Metrics = field(default_factory=dict)
    examples: Count = 0
    weights_hash: str
    data: DataFacts = field(default_factory=DataFacts)
    provenance: Attempt = field(default_factory=Attempt)
    schema: int = SCHEMA


@dataclass(kw_only=True)
class ProbeRecord:
    """What happens inside a run's network, on the first `examples` of its validation split (`studies/probe.py`).

    `trained` is of the stored weights, `untrained` (empty if not asked for) of the run's own initialisation. Each
    holds "layers", one entry a depth from 0 (the embedded input), and "field", the effective receptive field. A model
    without tokens has neither, and a `reason`.
    """

    run_id: str
    examples: Count
    trained: ProbedNetwork = field(default_factory=ProbedNetwork)
    untrained: ProbedNetwork = field(default_factory=ProbedNetwork)
    reason: str = ""
    weights_hash: str = ""
    data: DataFacts = field(default_factory=DataFacts)
    provenance: Attempt = field(default_factory=Attempt)
    schema: int = SCHEMA


def run_folder(runs: Path, run_id: str) -> Path:
    return runs / run_id


def study_folder(runs: Path, study: str) -> Path:
    return runs / "studies" / study


def write_record(runs: Path, record: RunRecord) -> None:
    """Write a run's record. Raises OSError (a full disk, say) with the old record, if any, intact."""
    _write(run_folder(runs, record.run_id) / "record.json", record)


def read_record(runs: Path, run_id: str) -> RunRecord | None:
    """A run's record; None if it has none yet. Raises CorruptFile."""
    path = run_folder(runs, run_id) / "record.json"
    remedy = "delete it to run this run again"
    record = _read(RunRecord, path, remedy)
    if record is None:
        return None
    _check_owner(path, "run", record.run_id, run_id, remedy)
    record.spec = _identified(record.spec, run_id, path, remedy)
    return record


def older_files(records: Iterable[RunRecord]) -> list[str]:
    """A sentence if records were written before files had checksums."""
    count = sum(record.schema < FIRST_CHECKED for record in records)
    return [f"Records written by an older version, without checksums: {count}."] if count else []


def content_id(plain: Any) -> str:
    """Sixteen hex digits of the hash of plain data."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identified(spec: dict[str, Any], run_id: str, path: Path, remedy: str) -> dict[str, Any]:
    """The spec that `run_id` is the hash of, with the non-finite numbers that JSON cannot hold. Raises CorruptFile."""
    for found in (spec, with_non_finite(spec)):
        if content_id(found) == run_id:
            return found
    raise CorruptFile(f"{path} holds another spec than that of run {run_id}; {remedy}")


def read_attempts(runs: Path, run_id: str) -> list[Attempt] | None:
    """The starts of a run that has no record yet; None if there are none. Raises CorruptFile."""
    path, remedy = run_folder(runs, run_id) / "attempts.json", "delete it: it only lists the earlier starts of this run"
    plain = read_json(path, remedy)
    return None if plain is None else checked(ATTEMPTS, plain, path, remedy)["attempts"]


def write_attempts(runs: Path, run_id: str, attempts: list[Attempt]) -> None:
    write_json(run_folder(runs, run_id) / "attempts.json", {"attempts": attempts})


def read_progress(runs: Path, run_id: str) -> ProgressEntry | None:
    """The last report of a running run; None before the first. Raises CorruptFile."""
    path, remedy = run_folder(runs, run_id) / "progress.json", "delete it: it is written again when the run continues"
    plain = read_json(path, remedy)
    return None if plain is None else checked(PROGRESS, plain, path, remedy)


def eval_path(runs: Path, run_id: str, eval_id: str) -> Path:
    return run_folder(runs, run_id) / "evals" / f"{eval_id}.json"


def write_eval(runs: Path, record: EvalRecord) -> None:
    _write(eval_path(runs, record.run_id, record.eval_id), record)


def read_eval(runs: Path, run_id: str, eval_id: str) -> EvalRecord | None:
    """An evaluation; None if it was not made yet. Raises CorruptFile."""
    path, remedy = eval_path(runs, run_id, eval_id), "delete it and evaluate again"
    record = _read(EvalRecord, path, remedy)
    if record is not None:
        _check_owner(path, "run", record.run_id, run_id, remedy)
        _check_owner(path, "evaluation", record.eval_id, eval_id, remedy)
    return record


def read_evals(runs: Path, run_id: str) -> list[EvalRecord]:
    """All evaluations of a run, in a fixed order. Raises CorruptFile."""
    folder = os.path.join(runs, run_id, "evals")  # asked of thousands of runs, most of which have none
    if not os.path.isdir(folder):
        return []
    files = sorted(os.listdir(folder))
    names = [name.removesuffix(".json") for name in files if name.endswith(".json") and not name.startswith(".")]
    return [record for name in names if (record := read_eval(runs, run_id, name)) is not None]


def write_probe(runs: Path, record: ProbeRecord) -> None:
    _write(run_folder(runs, record.run_id) / "probe.json", record)


def read_probe(runs: Path, run_id: str) -> ProbeRecord | None:
    """What was measured inside a run's network; None if nothing yet. Raises CorruptFile."""
    if not os.path.exists(os.path.join(runs, run_id, "probe.json")):
        return None
    path, remedy = run_folder(runs, run_id) / "probe.json", "delete it and probe again"
    record = _read(ProbeRecord, path, remedy)
    if record is not None:
        _check_owner(path, "run", record.run_id, run_id, remedy)
    return record


def write_manifest(runs: Path, manifest: Manifest, file: str = "manifest.json") -> None:
    path = study_folder(runs, manifest.study) / file
    _write(path, replace(manifest, source=stored_source(manifest.source, path.parent)))


def read_manifest(runs: Path, study: str, file: str = "manifest.json") -> Manifest | None:
    """A study's manifest; None if the study was never run here. Raises CorruptFile."""
    path = study_folder(runs, study) / file
    remedy = "delete it and call `python -m studies run` again, which writes it anew"
    manifest = _read(Manifest, path, remedy)
    if manifest is not None:
        _check_owner(path, "study", manifest.study, study, remedy)
        if manifest.tuning:
            from_plain(TuningRecord, manifest.tuning, path, remedy)
        manifest.source = read_source(manifest.source, path.parent)
    return manifest


def validate_owner(runs: Path, study: Path) -> None:
    """Raise ValueError if another study file of the same name has been run or searched here."""
    folder, source = study_folder(runs, study.stem), source_of(study)
    if (manifest := read_manifest(runs, study.stem)) is not None:
        validate_source(folder / "manifest.json", manifest.source, source)
    elif (tuning := read_tuning(folder / "trials.json")) is not None:
        validate_source(folder / "trials.json", tuning.source, source)


def manifest_of(runs: Path, study: str) -> Manifest:
    """The manifest of a study, given by its name or its file.

    Raises ValueError if it was never run here, or if another study file of the same name was.
    """
    if study.endswith(".py") and Path(study).is_file():
        validate_owner(runs, Path(study))
    name = Path(study).stem if study.endswith(".py") else study
    manifest = None if "/" in name else read_manifest(runs, name)  # a name with "/" would leave `runs`
    if manifest is None:
        known = sorted(path.parent.name for path in runs.glob("studies/*/manifest.json"))
        own = f"`python -m studies run {study}` runs it"
        any_ = "`python -m studies run` runs one, by its name (`python -m studies list`) or its file"
        raise ValueError(
            f"{runs} has no study {study!r} (it has: {', '.join(known) or 'none'}); "
            f"{own if study.endswith('.py') and Path(study).is_file() else any_}"
        )
    return manifest


def unfinished(runs: Path, run_id: str) -> tuple[str, str]:
    """Whether a run without a record is running, stopped or missing, and a sentence that says where it is.

    Raises CorruptFile.
    """
    folder = run_folder(runs, run_id)
    progress = read_progress(runs, run_id)
    where = f"at step {progress['step']} ({progress['done']:.0%})" if progress else "before its first report"
    if is_held(folder / "lock"):
        return "running", f"running, {where}"
    if progress or (folder / "checkpoint.pt").exists():
        return "stopped", f"stopped {where}"
    return "missing", "not run yet"


def write_tuning(path: Path, tuning: TuningRecord) -> None:
    _write(path, replace(tuning, source=stored_source(tuning.source, path.parent)))


def read_tuning(path: Path) -> TuningRecord | None:
    """The TuningRecord in `path`; None if there is no such file. Raises CorruptFile."""
    remedy = "delete it and call `python -m studies tune` again, which writes it anew from its runs"
    tuning = _read(TuningRecord, path, remedy)
    if tuning is not None:
        tuning.source = read_source(tuning.source, path.parent)
    return tuning


def write_cost(runs: Path, record: CostRecord) -> Path:
    """Write a cost record in place of the last one of the same measurement; where it lies."""
    path = runs / "costs" / f"{record.cost_id}.json"
    _write(path, record)
    return path


def read_cost(path: Path) -> CostRecord:
    """A cost record. Raises CorruptFile, and FileNotFoundError where there is none."""
    remedy = "delete it and measure again"
    record = _read(CostRecord, path, remedy)
    if record is None:
        raise FileNotFoundError(f"there is no cost record {path}")
    _check_owner(path, "measurement", record.cost_id, path.stem, remedy)
    return record


def _write(path: Path, record: Any) -> None:
    """Write a record in today's format, whatever version it was read from."""
    write_json(path, vars(record) | {"schema": SCHEMA})


def _read(cls: type[R], path: Path, remedy: str) -> R | None:
    plain = read_json(path, remedy)
    return None if plain is None else from_plain(cls, plain, path, remedy)


def _check_owner(path: Path, kind: str, found: str, wanted: str, remedy: str) -> None:
    if found != wanted:
        raise CorruptFile(f"{path} belongs to {kind} {found}, not to {wanted}; {remedy}")


def put_aside(runs: Path, run_id: str) -> None:
    """Have a run that has ended run again: of its record only the attempts stay, where the next one finds them."""
    record = read_record(runs, run_id)
    if record is not None:
        write_attempts(runs, run_id, record.attempts)
        (run_folder(runs, run_id) / "record.json").unlink()


def discard(runs: Path, run_id: str) -> None:
    """Delete what a run was trained to, so that it is trained anew; its attempts stay. Raises CorruptFile.

    Stopped at any point, either the record is still there or the run is one that was never finished.
    """
    folder = run_folder(runs, run_id)
    record = read_record(runs, run_id)
    attempts = read_attempts(runs, run_id) if record is None else record.attempts
    if attempts:
        attempts[-1]["replaced"] = True
        write_attempts(runs, run_id, attempts)
    shutil.rmtree(folder / "evals", ignore_errors=True)
    for name in TRAINED:
        (folder / name).unlink(missing_ok=True)
