"""How a diffusion step runs without a kernel of its own: a few passes over x, never a loop over tokens.

Opposite offsets share one difference x[head] - x[tail] over all their edges at once. Half precision is stepped in
float32 and rounded once at the end. The states that are stepped are those of x / 2, so that differences of finite
values are finite: halving is exact but for subnormal numbers, and a constant x stays exactly as it is. Eager steps work
in place, with the gradient written out (`Stencil`); a compiler gets the same sums as plain operations, which it fuses
(`traceable`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ldn.reference import Offset

Region = tuple[slice, ...]  # of the batch and grid dimensions of x


def step_flops(shape: Sequence[int], edges: int, steps: int) -> int:
    """Floating-point operations of steps on x of this shape: E + 1 multiply-adds a token and channel."""
    return 2 * math.prod(shape) * (edges + 1) * steps


class Edge(NamedTuple):
    which: int
    region: Region  # where it starts: the tail or the head of its bundle
    sign: int  # of the difference along it, relative to x[head] - x[tail]


class Bundle(NamedTuple):
    """Edges that join the same pairs of tokens, head lying one offset after tail."""

    tail: Region
    head: Region
    edges: list[Edge]


def bundles(offsets: Sequence[Offset], grid: Sequence[int], dilation: int) -> list[Bundle]:
    """The edges along `dilation` times the offsets by the pairs of tokens they join."""
    edges = [(e, tuple(dilation * d for d in offset)) for e, offset in enumerate(offsets)]
    # an edge and its opposite join the same pairs: both are filed under the later of the two offsets
    filed = sorted((max(o, _minus(o)), e, 1 if o >= _minus(o) else -1) for e, o in edges)
    found = []
    for offset, group in groupby(filed, key=lambda entry: entry[0]):
        pairs = list(zip(offset, grid, strict=True))
        if any(abs(d) >= n for d, n in pairs):
            continue  # every such edge leaves the grid
        tail = (slice(None), *(slice(max(0, -d), n - max(0, d)) for d, n in pairs))
        head = (slice(None), *(slice(max(0, d), n - max(0, -d)) for d, n in pairs))
        found.append(Bundle(tail, head, [Edge(e, tail if sign > 0 else head, sign) for _, e, sign in group]))
    return found


def _minus(offset: Offset) -> Offset:
    return tuple(-d for d in offset)


_remembered = cache(bundles)


def clip(rate: Tensor, region: Region) -> Tensor:
    """`rate` over `region`; dimensions along which it is constant stay as they are."""
    return rate[tuple(part if n > 1 else slice(None) for part, n in zip(region, rate.shape, strict=False))]


class Coefficients:
    """Weights, rate (of as many dimensions as x) and conductance of a diffusion of x, in the precision of its steps."""

    def __init__(self, x: Tensor, weights: Tensor, rate: Tensor, conductance: Tensor | None) -> None:
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.weights, self.rate = weights.to(self.dtype), rate.to(self.dtype)
        self.conductance = None if conductance is None else conductance.to(self.dtype)

    def of(self, edge: Edge) -> Tensor:
        """rate * weight * conductance of an edge, broadcastable to x[edge.region]."""
        share = clip(self.rate, edge.region) * self.weights[edge.which]
        return share if self.conductance is None else share * self.conductance[starts(edge)]


def starts(edge: Edge) -> tuple[slice, ...]:
    """Where the edge's conductances lie."""
    return (*edge.region, slice(edge.which, edge.which + 1))


def traceable(
    x: Tensor,
    offsets: Sequence[Offset],
    weights: Tensor,
    rate: Tensor,
    dilations: Sequence[int],
    conductance: Tensor | None,
) -> Tensor:
    """A sub-step for each dilation in differentiable operations, none in place: slow eagerly, one pass once fused."""
    coefficients = Coefficients(x, weights, rate, conductance)
    grid, y = x.shape[1:-1], x.to(coefficients.dtype) / 2
    for dilation in dilations:
        change = torch.zeros_like(y)
        for tail, head, edges in bundles(offsets, grid, dilation):
            difference = y[head] - y[tail]
            for edge in edges:
                around = [(part.start, n - part.stop) for part, n in zip(edge.region[1:], grid, strict=True)]
                widths = [0, 0, *(width for pair in reversed(around) for width in pair)]
                change = change + edge.sign * pad(coefficients.of(edge) * difference, widths)
        y = y + change
    return (2 * y).to(x.dtype)


class Stencil:
    """The same a step at a time, in place, with the gradient of a step; `step` and the rest take a dilation.

    `halved` gives the first state, `doubled` makes the last one the result.
    """

    def __init__(
        self,
        x: Tensor,
        offsets: Sequence[Offset],
        weights: Tensor,
        rate: Tensor,
        dilations: Sequence[int],
        conductance: Tensor | None,
    ) -> None:
        self.coefficients = Coefficients(x, weights, rate, conductance)
        self.dtype = self.coefficients.dtype
        grid = tuple(x.shape[1:-1])
        self.bundles = {dilation: _remembered(tuple(offsets), grid, dilation) for dilation in dilations}
        self.flows = {
            dilation: [[(edge, self.coefficients.of(edge)) for edge in bundle.edges] for bundle in found]
            for dilation, found in self.bundles.items()
        }

    def halved(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) / 2

    @staticmethod
    def doubled(state: Tensor) -> Tensor:
        return state.mul_(2)

    def step(self, x: Tensor, dilation: int) -> Tensor:
        change = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for (tail, head, _), flows in zip(self.bundles[dilation], self.flows[dilation], strict=True):
            difference = x[head] - x[tail]
            for edge, coefficient in flows:
                change[edge.region].addcmul_(difference, coefficient, value=edge.sign)
        return change.add_(x)  # one rounding at the size of x, however many edges

    def transposed_step(self, grad: Tensor, dilation: int) -> Tensor:
        """The transpose of `step`, which carries a gradient of the new state to one of the old."""
        change = torch.zeros_like(grad, memory_format=torch.contiguous_format)
        for (tail, head, _), ((first, coefficient), *others) in zip(
            self.bundles[dilation], self.flows[dilation], strict=True
        ):
            flow = grad[first.region] * coefficient
            for edge, coefficient in others:
                flow.addcmul_(grad[edge.region], coefficient, value=edge.sign * first.sign)
            change[head].add_(flow, alpha=first.sign)
            change[tail].sub_(flow, alpha=first.sign)
        return change.add_(grad)

    def accumulate(
        self,
        grad: Tensor,
        x: Tensor,
        dilation: int,
        g_weights: Tensor | None,
        g_rate: Tensor,
        g_conductance: Tensor | None,
    ) -> None:
        """Add a step's gradients of the coefficients, given the state x before it and the gradient of the next one."""
        conductance = self.coefficients.conductance
        for tail, head, edges in self.bundles[dilation]:
            difference = x[head] - x[tail]
            for edge in edges:
                rate, weight = clip(self.coefficients.rate, edge.region), self.coefficients.weights[edge.which]
                inner = grad[edge.region] * difference  # gradient of rate * weight * conductance, but for the sign
                if conductance is not None:
                    if g_conductance is not None:
                        along = (inner * rate * weight).sum(-1, keepdim=True)
                        g_conductance[starts(edge)].add_(along, alpha=2 * edge.sign)
                    inner.mul_(conductance[starts(edge)])
                # where the rate is the same for all tokens one sum over them serves both gradients
                constant = [dim for dim in range(inner.dim() - 1) if rate.shape[dim] == 1]
                inner = inner.sum(constant, keepdim=True) if constant else inner
                if g_weights is not None:
                    of_weight = (inner * rate).sum(tuple(range(inner.dim() - 1))).sum_to_size(weight.shape)
                    g_weights[edge.which].add_(of_weight, alpha=2 * edge.sign)
                clip(g_rate, edge.region).add_((inner * weight).sum_to_size(rate.shape), alpha=2 * edge.sign)
