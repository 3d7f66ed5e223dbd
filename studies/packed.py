"""How are several runs trained in one job? In slots, each of which takes the next of the job's runs when it is free.

A job that is stopped, killed or started a second time goes on: runs with a record are left alone, the others go on
from their checkpoints. A run whose process dies is tried again; the others do not notice.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import torch

from results.files import CorruptFile
from results.record import RunRecord, read_record, write_record
from studies.executors import Ended, Executor, Local, places
from studies.provenance import cores, device_name
from studies.spec import RunSpec, canonical
from studies.train import Place

LOSSES = 3  # times that a run whose process died is tried again
LOOK_SECONDS = 0.2
LATE = ("torch._dynamo", "sklearn.datasets")  # imported where they are first used, which takes seconds in every slot


def pool(
    runs: Path, data: Path, device: str, slots: int, threads: int, compile: bool, say: Callable[[str], None]
) -> Local:
    """Slots that are forked from this process, so that all of them share its imports; `say` is told their devices.

    A process that has asked for the GPUs cannot be forked any more, so another one counts them. Raises ValueError where
    there is no such device, or where CUDA cannot be used.
    """
    for name in LATE:
        importlib.import_module(name)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:
        found, names = apart.submit(_seen, runs, data, device, slots, threads, compile).result()
    say(f"{len(found)} slot{'s'[: len(found) > 1]} on {', '.join(names)}")
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    if cores() < asked:
        say(f"the job asked for {asked} CPUs, but its slots share {cores()}: SLURM has bound its step to these")
    return Local(found, "fork", patience=2.0)


def _seen(
    runs: Path, data: Path, device: str, slots: int, threads: int, compile: bool
) -> tuple[list[Place], list[str]]:
    """A job's places, and the names of their devices."""
    if device.startswith("cuda"):  # else CUDA's own reason would be lost
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            where, why = platform.node(), str(error).strip().partition("\n")[0]
            raise ValueError(f"the job is to train on a GPU, but CUDA cannot be used on {where}: {why}") from None
    found = places(runs, data, device, slots, threads, compile)
    used = dict.fromkeys(place.device for place in found)
    return found, [name if name == "cpu" else f"{name} ({device_name(torch.device(name))})" for name in used]


class Supply(Protocol):
    """Where a job's runs come from."""

    def next(self) -> RunSpec | None:
        """The next run to be trained, None while there is none."""

    def ended(self, run_id: str) -> None:
        """A run has its record."""

    def expects(self) -> bool:
        """Whether another run may come, though there is none now."""

    def left(self) -> list[str]:
        """The runs that are still to come, when the job is stopped."""


class FixedSupply:
    """A `Supply` of the runs that a job was given from the start."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.waiting = deque(specs)

    def next(self) -> RunSpec | None:
        return self.waiting.popleft() if self.waiting else None

    def ended(self, run_id: str) -> None:
        pass

    def expects(self) -> bool:
        return False

    def left(self) -> list[str]:
        return [spec.run_id for spec in self.waiting]


def pack(
    supply: Supply,
    executor: Executor,
    runs: Path,
    stopping: Callable[[], bool] = lambda: False,
    grace: float = 60.0,
    say: Callable[[str], None] = lambda line: None,
    losses: int = LOSSES,
) -> list[str]:
    """Train the runs of `supply` that have no record yet; the ids of those that are left when `stopping` has said so.

    Then running runs write their checkpoints, for which they have `grace` seconds. A run whose process dies is tried
    again at most `losses` times. Raises OSError on a full disk.
    """
    again: deque[RunSpec] = deque()  # whose process has died
    running: dict[str, RunSpec] = {}
    lost: Counter[str] = Counter()
    left: list[str] = []
    until, full = float("inf"), ""
    while True:
        if until == float("inf") and (stopping() or full):
            executor.stop()
            until = time.monotonic() + grace
        stopped = until < float("inf")
        while not stopped and executor.free() and (spec := again.popleft() if again else supply.next()) is not None:
            if not _is_open(runs, spec.run_id, say):
                supply.ended(spec.run_id)
                continue
            running[spec.run_id] = spec
            say(f"run {spec.run_id} begins: {spec.model.name} on {spec.task.name}, seed {spec.seed}")
            executor.submit(spec)
        if time.monotonic() > until:
            left += list(running)  # they go on from an earlier checkpoint
            running.clear()
        if not running:
            if stopped or not supply.expects():
                break
            time.sleep(LOOK_SECONDS)
            continue
        for ended in executor.ended(LOOK_SECONDS):
            spec = running.pop(ended.run_id)
            if ended.stopped or ended.fatal:
                left.append(ended.run_id)
                full = full or (ended.error if ended.fatal else "")
                say(f"run {ended.run_id} {_ending(runs, ended)}")
                continue
            if ended.error and _is_open(runs, ended.run_id, say):
                lost[ended.run_id] += 1
                if lost[ended.run_id] <= losses:
                    say(f"run {ended.run_id}: {ended.error}, tried again")
                    again.append(spec)
                    continue
                times = lost[ended.run_id]
                reason = ended.error if times == 1 else f"{ended.error}, {times} times"
                write_record(runs, RunRecord(run_id=spec.run_id, spec=canonical(spec), status="lost", reason=reason))
            say(f"run {ended.run_id} {_ending(runs, ended)}")
            supply.ended(ended.run_id)
    if stopped:
        left += [spec.run_id for spec in again] + supply.left()
    if full:
        raise OSError(full)
    return left


def _is_open(runs: Path, run_id: str, say: Callable[[str], None]) -> bool:
    """Whether a run has no record; one that cannot be read is left to its owner."""
    try:
        return read_record(runs, run_id) is None
    except CorruptFile as error:
        say(str(error))
        return False


def _ending(runs: Path, ended: Ended) -> str:
    if ended.stopped:
        return "stopped"
    try:
        record = read_record(runs, ended.run_id)
    except CorruptFile as error:
        return str(error)
    return ended.error if record is None else f"{record.status} {record.reason}".rstrip()
