"""LDN's operators alone, as subjects of the bench: diffusion and linear attention, in plain operations and fused.

Both variants are called as a model calls them (`ldn.ops`), with and without `fused`; plain ones are compiled as well.
Achieved bytes a second count the traffic that no implementation can do without, in tensors of x's size (B N D):

    diffusion   forward: x read, result written (2), whatever the number of steps
                backward: x and the result's gradient read, x's gradient written (3)
    attention   forward: q, k, v read, result written (4)
                backward: q, k, v and the result's gradient read, the gradients of q, k, v written (7)

Not counted: coefficients (weights, rates, conductances) and the state of the attention. The gradients asked for are
those of x and the weights, of an adaptive diffusion those of the token's rate and the conductances too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ldn.ops import diffuse, linear_attention
from studies.isolated import Workload
from studies.subjects import DTYPES, Pass
from studies.timing import Work

NAME = "operators"  # what `bench` calls them all
SETS = 4  # of inputs, taken in turns, so that a call finds little of its own in a cache
OFFSETS = [(1,), (-1,)]


@dataclass(frozen=True)
class DiffusionCase:
    """A symmetric stencil of radius 1 with weights (2, D) and a rate (D,).

    Adaptive: with a rate (B, N, 1) and conductances (B, N, 2).
    """

    operator: ClassVar[str] = "diffuse"
    moved: ClassVar[dict[Pass, int]] = {"forward": 2, "forward+backward": 2 + 3}
    steps: int
    dilations: tuple[int, ...] = (1,)
    adaptive: bool = False

    def given(self, batch: int, n: int, width: int, dtype: torch.dtype) -> list[Tensor]:
        """x, weights, rate and, if adaptive, conductance; those whose gradient is asked for require it."""
        x = torch.randn(batch, n, width).to(dtype).requires_grad_()
        weights = torch.rand(1, width).div(2).repeat(2, 1).requires_grad_()
        if not self.adaptive:
            return [x, weights, torch.rand(width)]
        rate, conductance = torch.rand(batch, n, 1).to(dtype), torch.rand(batch, n, 2).to(dtype)
        return [x, weights, rate.requires_grad_(), conductance.requires_grad_()]

    def call(self, fused: bool, x: Tensor, weights: Tensor, rate: Tensor, conductance: Tensor | None = None) -> Tensor:
        return diffuse(x, OFFSETS, weights, rate, self.steps, conductance, self.dilations, fused=fused)


@dataclass(frozen=True)
class AttentionCase:
    """(A - I) v over heads."""

    operator: ClassVar[str] = "linear_attention"
    moved: ClassVar[dict[Pass, int]] = {"forward": 4, "forward+backward": 4 + 7}
    heads: int

    def given(self, batch: int, n: int, width: int, dtype: torch.dtype) -> list[Tensor]:
        return [torch.randn(batch, n, 3 * width).to(dtype).requires_grad_()]

    def call(self, fused: bool, qkv: Tensor) -> Tensor:
        return linear_attention(qkv, self.heads, less_v=True, fused=fused)


CASES: dict[str, DiffusionCase | AttentionCase] = {
    **{f"diffusion S={steps}": DiffusionCase(steps) for steps in (1, 2, 4, 8)},
    "multiscale S=4": DiffusionCase(4, dilations=(1, 2, 4, 8)),
    "adaptive S=2": DiffusionCase(2, adaptive=True),
    "attention": AttentionCase(heads=4),
}


@dataclass(frozen=True)
class Size:
    """How large the inputs are: width D, tokens over the whole batch, and the lengths N over which these are spread."""

    width: int
    tokens: int
    lengths: tuple[int, ...]


def size(device: str) -> Size:
    """On a GPU a tensor of bfloat16 has 67 MB."""
    return Size(64, 4096, (256, 1024, 4096)) if device == "cpu" else Size(512, 2**16, (1024, 4096, 16384, 65536))


@dataclass(frozen=True)
class OperatorSubject:
    """One case over x (B, N, D), or q, k, v of that size, of random values: plain, or fused where a GPU is at hand."""

    case: str
    width: int
    batch: int
    tokens: int
    fused: bool
    counted: ClassVar[bool] = False  # the first call compiles; and `least_bytes` is what matters here
    task: ClassVar[dict[str, Any]] = {}

    @property
    def label(self) -> str:
        return f"{self.case}, fused" if self.fused else self.case

    @property
    def compilable(self) -> bool:
        return not self.fused

    @property
    def plain_model(self) -> dict[str, Any]:
        case = CASES[self.case]
        return {"kernel": case.operator, "case": self.case, **dataclasses.asdict(case), "fused": self.fused}

    @property
    def plain_input(self) -> dict[str, Any]:
        return {"kind": "hidden", "length": self.tokens, "width": self.width, "sets": SETS}

    def least_bytes(self, work: Pass, dtype: str) -> int:
        return CASES[self.case].moved[work] * self.batch * self.tokens * self.width * DTYPES[dtype].itemsize

    def build(self, device: str, dtype: str, compiled: bool) -> Workload:
        place, case = torch.device(device), CASES[self.case]
        if self.fused and place.type != "cuda":
            raise ValueError("fused kernels run on a GPU only")
        torch.manual_seed(0)
        sets, held = [], 0
        for _ in range(SETS):
            with place:
                given = case.given(self.batch, self.tokens, self.width, DTYPES[dtype])
                gradient = torch.randn(self.batch, self.tokens, self.width).to(DTYPES[dtype])
            sets.append((given, gradient))
            held += sum(tensor.numel() * tensor.element_size() for tensor in (*given, gradient))

        def call(*given: Tensor) -> Tensor:
            return case.call(self.fused, *given)

        def plain(*given: Tensor) -> Tensor:
            return case.call(False, *given)

        works = passes(torch.compile(call, dynamic=False, fullgraph=True) if compiled else call, sets)

        def verify(name: str) -> None:
            if self.fused and launched(works[name]) <= launched(passes(plain, sets)[name]):
                raise ValueError("no kernel was launched but those of the plain operations: this case is not fused")

        facts = {"params": 0, "gmac": math.nan}
        idle, captured = held // SETS * (SETS - 1), set(works) if place.type == "cuda" else set()
        return Workload(works, held, facts, idle=idle, verify=verify, captured=captured)


def passes(call: Callable[..., Tensor], sets: Sequence[tuple[list[Tensor], Tensor]]) -> dict[str, Work]:
    """Forward without gradients, and forward with backward, each call on the next of the `sets` of inputs."""
    turns = cycle(sets)

    def forward() -> None:
        given, _ = next(turns)
        with torch.no_grad():
            call(*given)

    def forward_backward() -> None:
        given, gradient = next(turns)
        torch.autograd.grad(call(*given), [tensor for tensor in given if tensor.requires_grad], gradient)

    return {"forward": forward, "forward+backward": forward_backward}


def launched(work: Work) -> set[str]:
    """The names of the kernels that a call launches on a GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    return {event.name for event in recorded.events() or () if event.device_type == DeviceType.CUDA}


def operators(lengths: Iterable[int], batch: int | None, device: str) -> list[OperatorSubject]:
    """Every case at every length, fused ones on a GPU only; by default as many tokens in all at every length."""
    shape = size(device)
    return [
        OperatorSubject(case, shape.width, batch or max(1, shape.tokens // n), n, fused)
        for n in lengths
        for case in CASES
        for fused in ((False,) if device == "cpu" else (False, True))
    ]
