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

How files are written is in `results/files.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from results.files import CorruptFile, read_json, write_json
from results.identity import SUITE, read_source, source_of, stored_source, validate_source
from results.locks import is_held

SCHEMA = 1
Status = Literal["done", "diverged", "failed", "pruned", "cancelled", "lost"]


@dataclass(kw_only=True)
class RunRecord:
    """How one run ended, failures included.

    `spec` is the run's canonical content as plain data, `metrics` maps a split to its metrics
    (`{"test": {"accuracy": 0.97, "loss": 0.1}}`), `cost` holds params, gmac and gmac by operation
    (lower bounds if `uncounted` lists any operation), `data` the fingerprint of the data and what its
    checksums said, `attempts` one entry for every time the run was started (node, device, threads,
    commit, dirty, torch, started, seconds, first_step).
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
    A cell: {"arm", "seed", "run_id", "factors": {field: value}}. `notes` are sentences for the report's reader;
    `tuning` is the TuningRecord, as plain data and without its trials, whose winners the arms carry, if there is one.
    """

    study: str
    source: str
    question: str
    reference: str
    metric: str
    direction: Literal["max", "min"]
    arms: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    tuning: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def called(self) -> str:
        """What a command line knows it by: a study that ships by its name, any other by its file."""
        if self.source == f"{SUITE}{self.study}":
            return self.study
        near = os.path.relpath(self.source)
        return self.source if near.startswith("..") else near


@dataclass(kw_only=True)
class TuningRecord:
    """What a study's tuning has found so far: what was searched, every arm's winner, and all trials.

    `space` maps a dotted field to [low, high, scale] or {"choices": [...]}. `arms` maps a label to {"base" (the
    identity of the arm without the fields searched), "left_out" (fields of the space without effect there), "planned"
    (trials), "counts" (trials by status), "distinct" (configurations), "trial", "values" and "metrics" (the winner's,
    absent before there is one), "front" (of several objectives, the trials that no other beats in all)}.
    A trial: {"arm", "trial", "values", "run_ids", "status" (that of its runs, or "running"), "reason", "metrics"
    (means over its seeds)}.
    """

    study: str
    source: str
    space: dict[str, Any]
    trials: int
    seeds: list[int]
    objectives: list[str]
    pruner: str
    commit: str
    dirty: bool
    arms: dict[str, dict[str, Any]]
    history: list[dict[str, Any]] = field(default_factory=list)
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
    tokens: int
    batch: int
    dtype: Literal["float32", "bfloat16"]
    work: Literal["forward", "forward+backward"]
    compiled: bool
    status: CostStatus
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan
    iterations: int = 0
    peak_bytes: int = 0
    moved_bytes: int = 0
    least_bytes: int = 0
    params: int = 0
    gmac: float = math.nan
    uncounted: list[str] = field(default_factory=list)
    copy_gb_s: float = math.nan
    matmul_tflop_s: float = math.nan
    env: dict[str, Any] = field(default_factory=dict)
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
    resolution: list[int]
    changes: dict[str, Any]
    length: int
    trained_length: int
    status: Literal["done", "failed"]
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    weights_hash: str
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(kw_only=True)
class ProbeRecord:
    """What happens inside a run's network, on the first `examples` of its validation split (`studies/probe.py`).

    `trained` is of the stored weights, `untrained` (empty if not asked for) of the run's own initialisation. Each
    holds "layers", one entry a depth from 0 (the embedded input): "energy", "spread", "range", and of a layer that
    diffuses "diffusion", "rate" and "stencil"; and "field", the effective receptive field. A model without tokens
    has neither, and a `reason`.
    """

    run_id: str
    examples: int
    trained: dict[str, Any] = field(default_factory=dict)
    untrained: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    weights_hash: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


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


def eval_path(runs: Path, run_id: str, eval_id: str) -> Path:
    return run_folder(runs, run_id) / "evals" / f"{eval_id}.json"


def write_eval(runs: Path, record: EvalRecord) -> None:
    write_json(eval_path(runs, record.run_id, record.eval_id), dataclasses.asdict(record))


def read_eval(runs: Path, run_id: str, eval_id: str) -> EvalRecord | None:
    """An evaluation; None if it was not made yet. Raises CorruptFile."""
    path = eval_path(runs, run_id, eval_id)
    plain = read_json(path, "delete it and evaluate again")
    return None if plain is None else _from_plain(EvalRecord, plain, path)


def read_evals(runs: Path, run_id: str) -> list[EvalRecord]:
    """All evaluations of a run, in a fixed order. Raises CorruptFile."""
    folder = os.path.join(runs, run_id, "evals")  # asked of thousands of runs, most of which have none
    if not os.path.isdir(folder):
        return []
    files = sorted(os.listdir(folder))
    names = [name.removesuffix(".json") for name in files if name.endswith(".json") and not name.startswith(".")]
    return [record for name in names if (record := read_eval(runs, run_id, name)) is not None]


def write_probe(runs: Path, record: ProbeRecord) -> None:
    write_json(run_folder(runs, record.run_id) / "probe.json", dataclasses.asdict(record))


def read_probe(runs: Path, run_id: str) -> ProbeRecord | None:
    """What was measured inside a run's network; None if nothing yet. Raises CorruptFile."""
    if not os.path.exists(os.path.join(runs, run_id, "probe.json")):
        return None
    path = run_folder(runs, run_id) / "probe.json"
    plain = read_json(path, "delete it and probe again")
    return None if plain is None else _from_plain(ProbeRecord, plain, path)


def write_manifest(runs: Path, manifest: Manifest, file: str = "manifest.json") -> None:
    path = study_folder(runs, manifest.study) / file
    source = stored_source(manifest.source, path.parent)
    write_json(path, dataclasses.asdict(dataclasses.replace(manifest, source=source)))


def read_manifest(runs: Path, study: str, file: str = "manifest.json") -> Manifest | None:
    """A study's manifest; None if the study was never run here. Raises CorruptFile."""
    path = study_folder(runs, study) / file
    plain = read_json(path, "delete it and call `python -m studies run` again, which writes it anew")
    if plain is None:
        return None
    manifest: Manifest = _from_plain(Manifest, plain, path)
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
    manifest = read_manifest(runs, Path(study).stem if study.endswith(".py") else study)
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
    """Whether a run without a record is running, stopped or missing, and a sentence that says where it is."""
    folder = run_folder(runs, run_id)
    progress = read_json(folder / "progress.json", "it is written anew when the run goes on")
    where = f"at step {progress['step']} ({progress['done']:.0%})" if progress else "before its first report"
    if is_held(folder / "lock"):
        return "running", f"running, {where}"
    if progress or (folder / "checkpoint.pt").exists():
        return "stopped", f"stopped {where}"
    return "missing", "not run yet"


def write_tuning(path: Path, tuning: TuningRecord) -> None:
    write_json(path, vars(tuning) | {"source": stored_source(tuning.source, path.parent)})


def read_tuning(path: Path) -> TuningRecord | None:
    """The TuningRecord in `path`; None if there is no such file. Raises CorruptFile."""
    plain = read_json(path, "delete it and call `python -m studies tune` again, which writes it anew from its runs")
    if plain is None:
        return None
    tuning: TuningRecord = _from_plain(TuningRecord, plain, path)
    tuning.source = read_source(tuning.source, path.parent)
    return tuning


def write_cost(runs: Path, record: CostRecord) -> Path:
    """Write a cost record in place of the last one of the same measurement; where it lies."""
    path = runs / "costs" / f"{record.cost_id}.json"
    write_json(path, dataclasses.asdict(record))
    return path


def read_cost(path: Path) -> CostRecord:
    """A cost record. Raises CorruptFile, and FileNotFoundError where there is none."""
    plain = read_json(path, "delete it and measure again")
    if plain is None:
        raise FileNotFoundError(f"there is no cost record {path}")
    record: CostRecord = _from_plain(CostRecord, plain, path)
    if record.status not in get_args(CostStatus):
        raise CorruptFile(f"{path} has the unknown status {record.status!r}; known: {', '.join(get_args(CostStatus))}")
    return record


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


def put_aside(runs: Path, run_id: str) -> None:
    """Have a run that has ended run again: of its record only the attempts stay, where the next one finds them."""
    record = read_record(runs, run_id)
    if record is not None:
        folder = run_folder(runs, run_id)
        write_json(folder / "attempts.json", {"attempts": record.attempts})
        (folder / "record.json").unlink()
