"""Where and with what something was computed: node, device, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from pydantic import TypeAdapter

from results.entries import Attempt
from results.files import read_json
from results.sources import TRAINING, source_hash
from results.validation import checked
from studies.spec import RunSpec

ROOT = Path(__file__).resolve().parent.parent
STAMP = "commit.json"  # beside a copy of the code: which commit it is a copy of


def provenance(device: torch.device, threads: int) -> Attempt:
    """Plain data for a record's attempt; of one in a SLURM job also the job, and how often it was queued again."""
    return {
        "node": platform.node(),
        "device": device_name(device),
        "threads": threads,
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **commit(),
        **slurm_job(),
    }


def run_sources(spec: RunSpec) -> dict[str, str]:
    """The source that trains `spec`, as in a record: for each part its entry and the hash of what that imports."""
    entries = {"model": _entry(type(spec.model)), "task": _entry(type(spec.task)), "training": TRAINING}
    return {part: f"{entry}@{source_hash(part, entry)}" for part, entry in entries.items()}


def _entry(cls: type) -> str:
    """The module of a class of this project, or the path of a user's file."""
    if cls.__module__.partition(".")[0] in ("ldn", "baselines", "studies"):
        return cls.__module__
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return str(Path(file).resolve()) if file else cls.__module__


def trained_with(attempts: Sequence[Attempt]) -> dict[str, str]:
    """The source of the training that the last attempt ended: several hashes for a part that changed meanwhile."""
    first = 0
    for number, attempt in enumerate(attempts):
        if attempt.get("first_step") == 0:
            first = number
        if attempt.get("replaced"):
            first = number + 1
    sources = [attempt.get("sources", {}) for attempt in attempts[first:]]
    merged = {}
    for part, last in sources[-1].items():
        hashes = dict.fromkeys(source.get(part, "@unknown").rpartition("@")[2] for source in sources)
        merged[part] = f"{last.rpartition('@')[0]}@{'+'.join(hashes)}"
    return merged


def cores() -> int:
    """How many CPU cores this process may use: by its affinity and by the CPU quota of its container."""
    from joblib import cpu_count  # slow to import

    return cpu_count()


def slurm_job() -> Attempt:
    """The SLURM job that this process is part of; empty outside of one."""
    job, array, task = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    if job is None:
        return {}
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return {"slurm_job": f"{array}_{task}" if array else job, "slurm_restarts": restarts}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({_processor()}, {os.cpu_count()} cores)"


@cache
def _processor() -> str:
    """The processor's model where the system tells it (Linux), else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def commit() -> Attempt:
    """The commit of this code, whether the working tree differs from it, and the hash of its differences ("": none).

    "unknown" outside a git checkout; of a copy of the code, that of the original when it was copied.
    """
    stamp, remedy = ROOT / STAMP, "delete this copy of the code and submit the runs again"
    plain = read_json(stamp, remedy)
    if plain is not None:
        return checked(TypeAdapter(Attempt), plain, stamp, remedy)
    try:
        head = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        diff = hashlib.sha256(_git("diff", "HEAD").encode()).hexdigest()[:12] if dirty else ""
        return {"commit": head[:12], "dirty": dirty, "diff": diff}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": False, "diff": ""}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
    ).stdout.strip()
