"""How is something measured without taking the machine down? In a process of its own, with a limit on its memory.

A model that does not fit is a result like any other. On a CPU the system would kill some process for it, or swap; so
a child may hold at most 9/10 of the memory that was free when it began, beyond which allocation fails and is
reported. A child that dies all the same takes one measurement with it. The children are forked from a server that has
imported torch and computed nothing: each starts in milliseconds and shares no thread with another.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from results.signals import blocked
from results.text import error_text, lacks_memory
from studies.timing import Traffic, Unmeasured, Work, block, peak_memory, replayed_block, warm_up

# What the server imports once for all children: the models come along with the bench; the compiler, which the first
# call of an operator of ours imports, takes seconds. Neither asks for a GPU, which a server that forks must not.
PRELOAD = ["studies.bench", "studies.operators", "torch._dynamo"]
SHARE = 0.9  # of the free memory that a measurement may take
GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


@dataclass
class Workload:
    """What a child measures: work by name, tensors that exist throughout (`held` bytes), and what is known of it.

    `idle` bytes of these wait for other calls and are no part of a call's peak. `verify(name)`, asked after all
    timing, raises ValueError if that work was not what it is called. Blocks of the work
    named in `captured` are replayed as graphs.
    """

    works: dict[str, Work]
    held: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    tidy: Callable[[], None] = lambda: None  # let go of what a call has left behind
    idle: int = 0
    verify: Callable[[str], None] = lambda name: None
    captured: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Metered:
    """What the first calls of a work tell: seconds of a call, peak and moved bytes (0: not counted).

    `launched` says why a work that was to be captured is launched call by call.
    """

    took: float
    peak_bytes: int
    moved_bytes: int
    launched: str = ""


class Isolated:
    """A child process with one workload; it computes only while a method here waits for it."""

    def __init__(self, build: Callable[[], Workload], device: torch.device, threads: int, patience: float) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler else writes to the terminal each time it starts
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.patience = patience
        self.closed = False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, device, threads), daemon=True)
        with blocked():  # they reach all processes of a terminal: the bench answers them
            self.process.start()
        theirs.close()

    def facts(self) -> dict[str, Any]:
        """Build the workload; what it knows of itself. Raises Unmeasured, as the others do."""
        return self._ask("facts")

    def meter(self, name: str, seconds: float, count: bool) -> Metered:
        """Call a work for the first times: its peak, its traffic (if `count`), then the warm-up."""
        return self._ask("meter", name, seconds, count)

    def turn(self, name: str, calls: int) -> float:
        """One timed block: seconds a call."""
        return self._ask("turn", name, calls)

    def verify(self, name: str) -> None:
        """Whether the work was what it is called."""
        self._ask("verify", name)

    def close(self) -> None:
        self.closed = True
        self.pipe.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()

    def _ask(self, *question: Any) -> Any:
        try:
            self.pipe.send(question)
            if not self.pipe.poll(self.patience):
                self.process.kill()
                raise Unmeasured("skipped", f"it had not ended after {self.patience:.0f} s")
            answer = self.pipe.recv()
        except KeyboardInterrupt:  # what it is about to answer would be taken for the next question's
            self.process.kill()
            self.close()
            raise
        except (EOFError, OSError):
            self.process.join()
            raise _death(self.process.exitcode) from None
        if isinstance(answer, Unmeasured):
            raise answer
        return answer


def _serve(pipe: Connection, build: Callable[[], Workload], device: torch.device, threads: int) -> None:
    """The life of a child: answer questions until the pipe closes."""
    torch.set_num_threads(threads)
    if device.type == "cpu":
        pin(threads)
        limit_memory()
    workload: Workload | None = None
    with suppress(EOFError, OSError):
        while True:
            question, *arguments = pipe.recv()
            answer: Any
            try:
                workload = workload or build()
                answer = workload.facts if question == "facts" else _answer(workload, question, device, *arguments)
            except ValueError as error:  # a model that does not take this input says so
                answer = Unmeasured("refused", str(error))
            except Exception as error:
                answer = _fault(error, device)
            if workload is not None:
                workload.tidy()
            if device.type == "cuda":
                torch.cuda.empty_cache()  # others have their turn now
            pipe.send(answer)


def _answer(workload: Workload, question: str, device: torch.device, name: str, *arguments: Any) -> Any:
    work = workload.works[name]
    if question == "turn":
        return (replayed_block if name in workload.captured else block)(work, arguments[0], device)
    if question == "verify":
        return workload.verify(name)
    seconds, count = arguments
    if not count:
        work()  # compiles; what that holds is no part of the pass
        workload.tidy()
    traffic = Traffic()
    with peak_memory(device, workload.held) as held:
        if count:
            with traffic:
                work()
        else:
            work()
    took, launched = warm_up(work, device, seconds), ""
    if name in workload.captured:
        try:
            replayed_block(work, 1, device)
        except RuntimeError as error:
            workload.captured.discard(name)
            launched = error_text(error)
    return Metered(took, held.bytes - workload.idle, traffic.bytes, launched)


def pin(threads: int) -> None:
    """Keep this process on as many cores as it has threads, the same for all children: not all cores are equally fast.

    Where another takes from one of them, a child that stayed there would be measured as slower than the others.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def limit_memory() -> None:
    """Let this process allocate 9/10 of the memory that is free now, and no more. Where the system has such limits."""
    if (free := free_memory()) is not None and hasattr(resource, "RLIMIT_DATA"):
        limit = _kilobytes("/proc/self/status", "VmData:") + int(SHARE * free)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def free_memory() -> int | None:
    """Bytes that can be allocated here without swapping, whatever the container's limit; None if nothing tells."""
    try:
        free = _kilobytes("/proc/meminfo", "MemAvailable:")
    except (OSError, StopIteration):
        return None
    for most, used in GROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max": no limit
            root = Path("/sys/fs/cgroup")
            free = min(free, int((root / most).read_bytes()) - int((root / used).read_bytes()))
    return max(free, 0)


def _kilobytes(file: str, name: str) -> int:
    line = next(line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _fault(error: Exception, device: torch.device) -> Unmeasured:
    if lacks_memory(error):
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0] if device.type == "cpu" else -1
        room = f"{limit / 1e9:.1f} GB, nine tenths of what was free," if limit > 0 else "the device's memory"
        return Unmeasured("out of memory", f"{room} is not enough")
    return Unmeasured("failed", error_text(error))


def _death(code: int | None) -> Unmeasured:
    if code == -9:
        return Unmeasured("out of memory", "the system killed its process, most likely for want of memory")
    return Unmeasured("failed", f"its process ended with exit code {code}")
