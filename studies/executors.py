"""Where runs are trained: in this process, or in a pool of processes with one slot each.

An executor is given specs and says which runs have ended; what became of them stands in their records. A slot is a
device and a number of threads. Every slot's process is its own, so that one that crashes takes one run with it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from results.files import write_json
from results.record import run_folder
from results.signals import STOPS, blocked
from studies.provenance import cores
from studies.spec import RunSpec, canonical, from_plain
from studies.train import NO_ROOM, Place, Progress, Stopped, train

Begin = Literal["spawn", "fork"]
ASKING = (signal.SIGTERM, signal.SIGUSR2)  # to stop; SLURM sends the second to all processes of a job


@dataclass(frozen=True)
class Ended:
    """A run that no longer runs: by itself (its record says how), stopped on request, or with an `error` instead."""

    run_id: str
    stopped: bool = False
    error: str = ""
    fatal: bool = False  # nothing more can be run (no room on the disk)


class Executor(ABC):
    def begin(self) -> None:
        """Called once, before all else, by a driver that has the study to itself."""
        return

    @abstractmethod
    def free(self) -> int:
        """How many runs may be submitted now."""

    @abstractmethod
    def submit(self, spec: RunSpec) -> None: ...

    @abstractmethod
    def ended(self, seconds: float) -> list[Ended]:
        """The runs that have ended since the last call; waits up to `seconds` for one."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all running runs to write their checkpoints and end; `ended` tells when they have."""

    @abstractmethod
    def close(self) -> None: ...

    def attend(self, tick: Callable[[], None]) -> None:
        """Call `tick` from time to time while `submit` trains; nothing to do where it returns at once."""
        return


class Inline(Executor):
    """One run after another, in this process."""

    def __init__(self, place: Place, stopping: Callable[[], bool]) -> None:
        self.place, self.stopping = place, stopping
        self.over: list[Ended] = []
        self.tick: Callable[[], None] = lambda: None

    def free(self) -> int:
        return 0 if self.over or self.stopping() else 1

    def submit(self, spec: RunSpec) -> None:
        self.over.append(_train(spec, self.place, self.stopping, self.tick))

    def ended(self, seconds: float) -> list[Ended]:
        over, self.over = self.over, []
        return over

    def stop(self) -> None:
        pass  # its run has already seen that it is stopping

    def close(self) -> None:
        pass

    def attend(self, tick: Callable[[], None]) -> None:
        self.tick = tick


class Local(Executor):
    """A pool of processes on this machine, one for each place: the CPU's cores, or its GPUs."""

    def __init__(self, places: list[Place], begin: Begin = "spawn", patience: float = 30.0) -> None:
        self.slots = [Slot(place, begin) for place in places]
        self.patience = patience  # seconds that `close` gives all of them to end

    def free(self) -> int:
        return sum(slot.run_id is None for slot in self.slots)

    def submit(self, spec: RunSpec) -> None:
        next(slot for slot in self.slots if slot.run_id is None).start(spec)

    def ended(self, seconds: float) -> list[Ended]:
        busy = [slot for slot in self.slots if slot.run_id is not None]
        multiprocessing.connection.wait([slot.pipe for slot in busy], seconds)
        return [ended for slot in busy if (ended := slot.ended()) is not None]

    def stop(self) -> None:
        for slot in self.slots:
            slot.stop()

    def close(self) -> None:
        for slot in self.slots:
            slot.leave()
        until = time.monotonic() + self.patience
        for slot in self.slots:
            slot.end(until - time.monotonic())


class Slot:
    """One process that trains one run after another.

    It is spawned, for a forked child would inherit torch's threads in an undefined state; where nothing was computed
    in this process yet, "fork" spares it the imports.
    """

    def __init__(self, place: Place, begin: Begin = "spawn") -> None:
        self.place, self.begin = place, begin
        self.run_id: str | None = None
        self.process: Any = None
        self.pipe: Any = None

    def start(self, spec: RunSpec) -> None:
        if self.process is None or not self.process.is_alive():
            context: Any = multiprocessing.get_context(self.begin)
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, self.place), daemon=True)
            # Ctrl-C and SIGHUP reach the whole group: the driver alone answers them. A signal that asks to stop waits
            # until the process has imported what it needs, and can answer.
            with blocked({*STOPS, *ASKING}):
                self.process.start()
            theirs.close()
        self.run_id = spec.run_id
        with suppress(BrokenPipeError):  # of a process that has just died: `ended` finds out
            self.pipe.send((spec.run_id, canonical(spec)))

    def ended(self) -> Ended | None:
        """How the run ended, None while it goes on."""
        assert self.run_id is not None
        try:
            if not self.pipe.poll():
                return None
            ended: Ended = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            early = self.process.exitcode == 0  # asked to stop before it began, it had nothing to save
            ended = Ended(self.run_id, stopped=early, error="" if early else _death(self.process.exitcode))
        self.run_id = None
        if ended.stopped:
            self.process.join()
        return ended

    def stop(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.process.terminate()

    def leave(self) -> None:
        if self.process is not None:
            self.pipe.close()
            self.stop()

    def end(self, seconds: float) -> None:
        """Kill the process if it has not ended in time."""
        if self.process is not None:
            self.process.join(max(seconds, 0))
            self.process.kill()


def _work(pipe: Connection, place: Place) -> None:
    """The life of a slot's process: train what comes through the pipe until it closes or a signal asks to stop."""
    asked: list[int] = []
    for number in ASKING:
        signal.signal(number, lambda number, frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    driver = os.getppid()

    def stopping() -> bool:
        return bool(asked) or os.getppid() != driver  # a driver that was killed asks for nothing any more

    while not stopping():
        try:
            if not pipe.poll(0.2):
                continue
            run_id, plain = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            ended = _train(from_plain(plain), place, stopping)
        except ValueError as error:  # a model or a task that stands in no table of studies/zoo.py
            ended = Ended(run_id, error=str(error))
        with suppress(BrokenPipeError):  # of a driver that is gone: the record says it all
            pipe.send(ended)


def _train(spec: RunSpec, place: Place, stopping: Callable[[], bool], tick: Callable[[], None] = lambda: None) -> Ended:
    """Train, reporting into the run's folder for whoever watches: the driver, and `status` from anywhere else."""

    def report(progress: Progress) -> None:
        path = run_folder(place.runs, spec.run_id) / "progress.json"
        write_json(path, dataclasses.asdict(progress) | {"time": time.time()}, flush=False)
        tick()

    try:
        train(spec, place, report, stopping)
    except Stopped:
        return Ended(spec.run_id, stopped=True)
    except OSError as error:
        where = error.filename or run_folder(place.runs, spec.run_id)
        hint = " (make room)" if error.errno in NO_ROOM else ""
        return Ended(spec.run_id, error=f"{error.strerror or error}: {where}{hint}", fatal=True)
    except ValueError as error:  # a damaged record or list of attempts: it says what to do
        return Ended(spec.run_id, error=str(error))
    return Ended(spec.run_id)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (killed, perhaps for want of memory)" if -code == signal.SIGKILL else ""
        return f"its process died of {name}{hint}"
    return f"its process ended with exit code {code}"


def devices(device: str) -> list[str]:
    """The devices that a name stands for: "auto" and "cuda" for every GPU there is, "auto" without one for "cpu".

    Raises ValueError where there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"there is no device {device!r}; known: auto, cpu, cuda, cuda:N")
    gpus = torch.cuda.device_count()
    if kind == "cuda" and (not gpus or (index and not (index.isdecimal() and int(index) < gpus))):
        raise ValueError(f"there is no device {device!r} here ({gpus} GPUs); --device cpu runs on the processor")
    return ["cpu"] if kind == "cpu" else [device] if index else [f"cuda:{i}" for i in range(gpus)]


def validate_compiler() -> None:
    """Raise ValueError where torch.compile has no C++ compiler for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

    try:
        get_cpp_compiler()
    except RuntimeError:
        raise ValueError(
            "torch.compile finds no C++ compiler here: install g++, name one in CXX, or leave out --compile"
        ) from None


def places(runs: Path, data: Path, device: str, slots: int | None, threads: int, compile: bool) -> list[Place]:
    """One place a slot: on a CPU as many as `threads` leave room for, on GPUs one each.

    Raises ValueError where there is no such device, or nothing to compile with.
    """
    names = devices(device)
    if compile and names == ["cpu"]:
        validate_compiler()
    count = slots or (max(1, cores() // threads) if names == ["cpu"] else len(names))
    return [Place(runs, data, names[i % len(names)], threads, compile) for i in range(count)]
