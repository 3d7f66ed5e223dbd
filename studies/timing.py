"""How long does a piece of work take, how much memory does it hold, how many bytes does it move?

Work is any callable without arguments: a pass of a network, a kernel, a copy. Blocks of calls are timed with one
synchronisation each, and the blocks of everything that is compared take turns, so that whatever else the machine does
meets all of it. What is reported is the median of the blocks with their quartiles, never a mean.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], Any]
Key = TypeVar("Key", bound=Hashable)
BLOCKS, FEWEST = 20, 10  # blocks of a measurement; of work that takes longer than all its time, as few as these
WARM_UP_CALLS = 10
Status = Literal["out of memory", "refused", "skipped", "failed"]


class Unmeasured(Exception):
    """Work that could not be measured: how it ended, and why in one sentence."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Timing:
    """Seconds a call, block by block, and how many calls all blocks held."""

    seconds: list[float]
    iterations: int

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile."""
        low, median, high = np.quantile(self.seconds, [0.25, 0.5, 0.75])
        return float(low), float(median), float(high)


def block(work: Work, calls: int, device: torch.device) -> float:
    """Seconds a call, over `calls` of them: by events on a GPU, by the wall clock on a CPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls
    work()  # others had their turn: fill the allocator's and the processor's caches again
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3 / calls


def replayed_block(work: Work, calls: int, device: torch.device) -> float:
    """Seconds a call over `calls` of them that are captured as one CUDA graph: without what launching takes.

    A kernel of 30 microseconds takes longer to launch from Python than to run; in a model that waits for the GPU, or is
    itself a graph, launching costs nothing. Raises RuntimeError for what cannot be captured.
    """
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return block(graph.replay, 1, device) / calls


def warm_up(work: Work, device: torch.device, seconds: float) -> float:
    """Call until nothing changes any more: at least 10 times and for `seconds`; work slower than that, once.

    Returns the seconds that the last call took.
    """
    spent, calls, took = 0.0, 0, math.inf
    while spent < seconds or calls < WARM_UP_CALLS:
        took = block(work, 1, device)
        spent, calls = spent + took, calls + 1
        if spent >= 2 * seconds:
            break
    return took


def interleaved(
    turns: Mapping[Key, Callable[[int], float]], took: Mapping[Key, float], seconds: float
) -> Iterator[tuple[Key, Timing | Unmeasured]]:
    """Time all work in turns: `turns[key](calls)` runs one block and gives its seconds a call, `took` is a first guess.

    Each gets about `seconds` in 20 blocks; work slower than a twentieth of it gets blocks of one call, at least 10.
    Work that raises Unmeasured drops out with that. On Ctrl-C what has had 10 blocks is yielded before it is raised.
    """
    calls = {key: max(1, round(seconds / BLOCKS / max(took[key], 1e-9))) for key in turns}
    blocks = {key: min(BLOCKS, max(FEWEST, math.ceil(seconds / took[key]))) for key in turns}
    measured: dict[Key, list[float]] = {key: [] for key in turns}
    faults: dict[Key, Unmeasured] = {}
    interrupted: KeyboardInterrupt | None = None
    try:
        for turn in range(BLOCKS):
            for key, run in turns.items():
                if turn < blocks[key] and key not in faults:
                    try:
                        measured[key].append(run(calls[key]))
                    except Unmeasured as fault:
                        faults[key] = fault
    except KeyboardInterrupt as stop:
        interrupted = stop
    for key, times in measured.items():
        if key in faults:
            yield key, faults[key]
        elif len(times) >= FEWEST:
            yield key, Timing(times, calls[key] * len(times))
    if interrupted is not None:
        raise interrupted


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, each taken by itself: what eager execution has to move.

    Views move nothing. An operator of ours counts by its inputs and outputs, whatever it does in between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)))
        return out


@dataclass
class Held:
    """How many bytes a device's allocator held at most; known when the block has ended."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device, before: int) -> Iterator[Held]:
    """The most bytes that tensors held within the block; `before` are those of tensors made earlier and alive still.

    On a GPU the allocator says so itself (`max_memory_allocated`, which counts the earlier ones too). On a CPU the
    profiler reports every allocation, and their running sum is taken: the same quantity, where the peak of a process'
    resident memory would be mostly libraries.
    """
    held = Held()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield held
        torch.cuda.synchronize(device)
        held.bytes = torch.cuda.max_memory_allocated(device)
        return
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield held
    events = profiler.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    held.bytes = before + max(0, *np.cumsum([0, *changes]).tolist(), 0)


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0
