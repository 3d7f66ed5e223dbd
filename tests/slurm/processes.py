"""Which processes belong to a SLURM under test, and their end. /proc says it, whoever started them.

A daemon carries a mark in its environment: the machine's folder, its own name, and the process that owns the machine. A
slurmstepd inherits that mark from slurmd, but may write its title over it, and is no child of slurmd: what tells it is
the node's log, which it holds open. A job's processes are the descendants of a slurmstepd, and those with the job's
variables, if they left it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER, DAEMON, OWNER = "LDN_SLURM_FOLDER", "LDN_SLURM_DAEMON", "LDN_SLURM_OWNER"
NOBODY = "nobody"  # owns a machine that is to outlive the command that starts it


class Daemon(NamedTuple):
    pid: int
    folder: Path
    name: str
    owner: str


def identity(pid: int) -> str:
    """A process for good: its pid and when it started, for pids are used again. Empty where there is none."""
    fields = _stat(pid)
    return f"{pid}:{fields[19]}" if fields and fields[0] != "Z" else ""


def alive(owner: str) -> bool:
    return owner == NOBODY or identity(int(owner.partition(":")[0])) == owner


def daemons() -> Iterator[Daemon]:
    """Every daemon of every such machine that runs here, without what it forked."""
    marked = {pid: environment for pid in _pids() if DAEMON in (environment := _environment(pid))}
    for pid, environment in marked.items():
        if _parent(pid) not in marked and _name(pid) != "slurmstepd":
            yield Daemon(pid, Path(environment[FOLDER]), environment[DAEMON], environment[OWNER])


def of(folder: Path, node: str | None = None) -> set[int]:
    """The processes of the machine in the folder, or of one of its nodes alone: slurmd, its steps, and their jobs."""
    found = {d.pid for d in daemons() if d.folder == folder and node in (None, d.name)}
    logs = f"{folder}/log/{node or ''}"
    for pid in _pids():
        if _name(pid) == "slurmstepd" and any(file.startswith(logs) for file in _files(pid)):
            found.add(pid)
        environment = _environment(pid)
        of_a_job = "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF") == f"{folder}/slurm.conf"
        if of_a_job and node in (None, environment.get("SLURMD_NODENAME")):
            found.add(pid)
    return _with_descendants(found) - {os.getpid()}


def end(folder: Path, node: str | None = None, timeout: float = 30) -> None:
    """SIGKILL, until nothing is left: there is nothing to save, and a process may start another meanwhile."""
    deadline = time.monotonic() + timeout
    while left := of(folder, node):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of {folder} do not end: {sorted(left)}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(left)
        time.sleep(0.05)


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _with_descendants(pids: set[int]) -> set[int]:
    parents = {pid: _parent(pid) for pid in _pids()}
    found, grown = set(pids), True
    while grown:
        new = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | new, bool(new)
    return found


def _pids() -> list[int]:
    """Of every process but zombies."""
    return [pid for name in os.listdir("/proc") if name.isdigit() and identity(pid := int(name))]


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold blanks: state, parent, ..."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _parent(pid: int) -> int:
    return int(fields[1]) if (fields := _stat(pid)) else 0


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _environment(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    return {}


def _files(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(fd))
    return found
