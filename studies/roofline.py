"""What can this device do at most? How fast it copies memory and multiplies matrices, measured on it.

A roofline (Williams et al. 2009) of what is reached, not of what a data sheet says: a model's achieved bytes and
operations a second are read as shares of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from studies.isolated import Isolated, Workload
from studies.timing import Timing, interleaved


@dataclass(frozen=True)
class Ceilings:
    """10^9 bytes a second of a copy (read and written), 10^12 operations a second of a product (2 a multiply-add)."""

    copy_gb_s: float
    matmul_tflop_s: float


def ceilings(device: torch.device, dtype: torch.dtype, threads: int, seconds: float) -> Ceilings:
    """Measure both in turns, in a process of their own. Raises Unmeasured where even these do not fit."""
    size, edge = (2**30, 8192) if device.type == "cuda" else (2**27, 2048)  # far larger than any cache
    child = Isolated(partial(_workload, device, dtype, size, edge), device, threads, patience=120)
    try:
        names = ("copy", "matmul")
        took = {name: child.meter(name, seconds, count=False).took for name in names}
        timed = dict(interleaved({name: partial(child.turn, name) for name in names}, took, seconds))
    finally:
        child.close()
    medians = {}
    for name, timing in timed.items():
        if not isinstance(timing, Timing):
            raise timing
        medians[name] = timing.quartiles[1]
    return Ceilings(2 * size / medians["copy"] / 1e9, 2 * edge**3 / medians["matmul"] / 1e12)


def _workload(device: torch.device, dtype: torch.dtype, size: int, edge: int) -> Workload:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return Workload({"copy": lambda: copy.copy_(source), "matmul": lambda: torch.mm(a, b, out=product)})
