"""Where and with what something was computed: node, device, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch
from pydantic import TypeAdapter

from results.entries import Attempt
from results.files import read_json
from results.validation import checked

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
