"""Which stored runs does a name on the command line mean, and what are their weights?"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from results.files import CorruptFile, read_again
from results.record import RunRecord, manifest_of, read_manifest, read_record, run_folder
from studies import checkpoint
from studies.spec import RunSpec


@dataclass(frozen=True)
class StoredRuns:
    """Finished runs; what each is called (its arm, or its model); how many others of the study are not done.

    `study` is as it was given, by its name or its file.
    """

    records: list[RunRecord]
    labels: dict[str, str]
    left: int = 0
    study: str = ""


def find_runs(runs: Path, name: str, arms: Sequence[str] = ()) -> StoredRuns:
    """The finished runs of a study, given by its name or file, or the one whose id starts with `name`.

    Raises ValueError, in one sentence, for what is neither, for a prefix of several runs, for an unknown arm, and if
    nothing is done.
    """
    study = Path(name).stem if name.endswith(".py") else name
    manifest = manifest_of(runs, name) if name.endswith(".py") else None if "/" in name else read_manifest(runs, name)
    if manifest is None:
        if arms:
            raise ValueError(f"--arm chooses from a study, and {runs} has no study {study!r}")
        one = _finished(runs, _run_id(runs, name))
        return StoredRuns([one], {one.run_id: one.spec["model"]["name"]})
    labels = [arm["label"] for arm in manifest.arms]
    for arm in arms:
        if arm not in labels:
            raise ValueError(f"study {study!r} has no arm {arm!r}; arms: {', '.join(map(repr, labels))}")
    ids = {cell["run_id"]: cell["arm"] for cell in manifest.cells if not arms or cell["arm"] in arms}
    records = [record for run_id in ids if (record := read_record(runs, run_id)) and record.status == "done"]
    if not records:
        raise ValueError(f"no run of study {study!r} is done yet; `python -m studies run {manifest.called}` runs them")
    return StoredRuns(records, ids, len(ids) - len(records), name)


def _run_id(runs: Path, prefix: str) -> str:
    known = sorted(path.parent.name for path in runs.glob("*/record.json"))
    found = [run_id for run_id in known if run_id.startswith(prefix)]
    if prefix in found:
        return prefix
    if not found:
        studies = sorted(path.parent.name for path in runs.glob("studies/*/manifest.json"))
        raise ValueError(
            f"{runs} has neither a study nor a run {prefix!r}; it has {len(known)} runs with a record, "
            f"and the studies: {', '.join(studies) or 'none'}"
        )
    if len(found) > 1:
        raise ValueError(f"{prefix!r} begins the ids of {len(found)} runs ({', '.join(found[:4])}); give more of it")
    return found[0]


def _finished(runs: Path, run_id: str) -> RunRecord:
    record = read_record(runs, run_id)
    assert record is not None
    if record.status != "done":
        raise ValueError(f"run {run_id} is not done but {record.status} ({record.reason}); it has no weights")
    return record


def weights(runs: Path, record: RunRecord) -> checkpoint.Weights:
    """The stored weights of a finished run, on the CPU. Raises ValueError if they are missing or not the record's."""
    path = run_folder(runs, record.run_id) / "weights.pt"
    if not record.weights_hash:
        raise ValueError(f"run {record.run_id} was not trained (its budget is 0 steps), so it has no weights")
    remedy = "delete its folder to train that run anew"
    try:
        content = read_again(path.read_bytes)
    except FileNotFoundError:
        raise ValueError(f"run {record.run_id} has no weights kept: there is no {path}") from None
    known = record.files.get("weights.pt")  # unknown of runs of older versions
    if known is not None and hashlib.sha256(content).hexdigest() != known:
        raise CorruptFile(f"{path} is damaged: its checksum is not the one in its record; {remedy}")
    try:
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen types for a damaged file
        raise CorruptFile(f"{path} cannot be read; {remedy}") from None
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise CorruptFile(f"{path} holds no weights; {remedy}")
    if checkpoint.weights_hash(stored) != record.weights_hash:
        raise CorruptFile(f"{path} holds other weights than its record says; {remedy}")
    return stored


def restored(spec: RunSpec, stored: checkpoint.Weights) -> nn.Module:
    """The network as it was trained, with its stored weights."""
    network = spec.model.build(spec.task.input, spec.task.target)
    network.load_state_dict(stored)
    return network.eval()
