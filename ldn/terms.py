"""The terms of an LDN layer's update: diffusion and attention. (The local term is a `FeedForward`.)

Linear Diffusion Networks, arXiv 2502.12381. Shapes: B batch, N tokens, D width, heads H of width d, E offsets.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ldn.attention import by_head
from ldn.classifier import real_positions
from ldn.ops import diffuse, linear_attention
from ldn.reference import Offset

Kernel = Literal["fixed", "stationary", "multiscale", "dense", "adaptive"]
TimeStep = Literal["fixed", "learned", "channel", "token", "raw"]
AttentionKind = Literal["none", "linear", "diffusion", "softmax"]


class TimeStepRate(nn.Module):
    """The rate a of a diffusion step, in (0, 1) by a sigmoid; "raw" is the published code's unbounded scalar.

    forward(u): tokens u (B, N, D) -> a, shape (1,), (D,) or (B, N, 1). All but "raw" start at `start`.
    """

    def __init__(self, kind: TimeStep, width: int, start: float) -> None:
        super().__init__()
        self.kind = kind
        logit = math.log(start / (1 - start)) if 0 < start < 1 else 0.0
        if kind == "fixed":
            self.register_buffer("rate", torch.tensor([start]), persistent=False)
        elif kind == "token":
            self.from_token = nn.Linear(width, 1)
            nn.init.zeros_(self.from_token.weight)
            nn.init.constant_(self.from_token.bias, logit)
        elif kind == "raw":
            self.rate = nn.Parameter(torch.tensor([0.1]))
        else:
            self.logit = nn.Parameter(torch.full((width if kind == "channel" else 1,), logit))

    def forward(self, u: Tensor) -> Tensor:
        if self.kind in ("fixed", "raw"):
            return self.rate
        return torch.sigmoid(self.from_token(u) if self.kind == "token" else self.logit)


class StencilWeights(nn.Module):
    """Weights w (E, D) of a stencil: non-negative, of sum 1 over the offsets, by a softmax.

    `offsets` come in opposite pairs, (+o, -o) after one another; a symmetric stencil has one weight a pair.
    A stencil in which nothing is left to learn (one pair, symmetric) has no parameters, and width 1.
    """

    def __init__(self, offsets: int, width: int, symmetric: bool) -> None:
        super().__init__()
        self.copies = 2 if symmetric else 1
        free = offsets // self.copies
        if free > 1:
            self.logits: Tensor = nn.Parameter(torch.zeros(free, width))
        else:
            self.register_buffer("logits", torch.zeros(free, 1), persistent=False)

    def forward(self) -> Tensor:
        return (torch.softmax(self.logits, dim=0) / self.copies).repeat_interleave(self.copies, dim=0)


class Conductance(nn.Module):
    """How easily content passes along the pair of edges between i and i + offset: c = sigmoid(p_i . p_j / sqrt(k) + b).

    The product is symmetric in its two ends, so edges are undirected: c_{i, j} = c_{j, i}.
    """

    RANK = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, self.RANK)
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, u: Tensor, offsets: list[Offset]) -> Tensor:
        """u (B, *grid, D), offsets in opposite pairs -> (B, *grid, E); where an edge leaves the grid, any value."""
        p = self.project(u)
        dims = list(range(1, p.dim() - 1))
        edges = []
        for ahead, back in zip(offsets[::2], offsets[1::2], strict=True):
            c = torch.sigmoid((p * p.roll(back, dims)).sum(-1) / math.sqrt(self.RANK) + self.bias)
            edges += [c, c.roll(ahead, dims)]  # the edge back from a token is the edge ahead of the one behind it
        return torch.stack(edges, dim=-1)


class Diffusion(nn.Module):
    """`steps` explicit diffusion steps along one stencil, as the layer's configuration asks for it.

    forward(h, u, lengths): state h (B, N, D), the tokens u (B, N, D) that content-dependent coefficients
    read, lengths (B,) or None -> the diffused state (B, N, D). For every kernel but "dense", every time
    step but "raw", each value becomes a convex combination of the values it started from. Finite values in the
    padding reach no real token; inf and NaN would (0 x inf is NaN), unless replaced as by `zero_padding`.
    """

    def __init__(
        self,
        length: int,
        width: int,
        *,
        steps: int,
        kernel: Kernel,
        time_step: TimeStep,
        rate: float,
        radius: int,
        symmetric: bool,
        grid: tuple[int, int] | None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.steps, self.grid, self.fused = steps, grid, fused
        # multiscale: 1, 2, 4, ... up to the last that fits between two tokens of an axis, then from the start again
        self.scales = max(1, (max(grid or (length,)) - 1).bit_length()) if kernel == "multiscale" else 1
        self.rate = TimeStepRate(kind=time_step, width=width, start=rate)
        learned = kernel in ("stationary", "multiscale")
        axes = [(1,)] if grid is None else [(0, 1), (1, 0)]
        reach = radius if learned else 1
        ahead = [tuple(k * d for d in axis) for axis in axes for k in range(1, reach + 1)]
        self.offsets = [offset for o in ahead for offset in (o, tuple(-d for d in o))]
        self.weights = StencilWeights(len(self.offsets), width, symmetric) if learned else None
        self.conductance = Conductance(width) if kernel == "adaptive" else None

    @property
    def reads_tokens(self) -> bool:
        """Whether the coefficients depend on the tokens' content."""
        return self.conductance is not None or self.rate.kind == "token"

    def dilations(self) -> list[int]:
        """Of the sub-steps in turn: "multiscale" cycles 1, 2, 4, ..., the others stay at 1."""
        return [2 ** (s % self.scales) for s in range(self.steps)]

    def forward(self, h: Tensor, u: Tensor, lengths: Tensor | None) -> Tensor:
        batch, n, width = h.shape
        if self.grid is not None and lengths is not None:
            raise ValueError("diffusion on a 2-D grid has a fixed length and takes no lengths; use grid='1d'")
        grid = (n,) if self.grid is None else self.grid
        rate = self.rate(u)
        h, u = h.reshape(batch, *grid, width), u.reshape(batch, *grid, width)
        if rate.dim() == 3:
            rate = rate.view(batch, *grid, 1)
        weights = h.new_full((len(self.offsets), 1), 1 / len(self.offsets)) if self.weights is None else self.weights()
        if self.conductance is None and lengths is None:
            h = diffuse(h, self.offsets, weights, rate, self.steps, dilations=self.dilations(), fused=self.fused)
            return h.reshape(batch, n, width)
        for dilation, run in groupby(self.dilations()):  # conductances are those of one dilation's edges
            offsets = [tuple(d * dilation for d in offset) for offset in self.offsets]
            conductances = self.conductances(u, offsets, lengths)
            h = diffuse(h, offsets, weights, rate, len(list(run)), conductances, fused=self.fused)
        return h.reshape(batch, n, width)

    def conductances(self, u: Tensor, offsets: list[Offset], lengths: Tensor | None) -> Tensor | None:
        """Conductances (B, *grid, E): learned ones, and walls where an edge would touch padding; None if all are 1."""
        learned = None if self.conductance is None else self.conductance(u, offsets)
        if lengths is None:
            return learned
        position = torch.arange(u.shape[1], device=lengths.device)
        ends = torch.stack([position + offset[0] for offset in offsets], dim=-1)  # (N, E), no copy to wait for
        both = torch.maximum(ends, position[:, None]) < lengths[:, None, None]  # (B, N, E)
        return both.to(u.dtype) if learned is None else torch.where(both, learned, 0)


class DenseDiffusion(nn.Module):
    """Diffusion with a learned N x N kernel, of row sums 1 by a softmax: h <- h + a (K h - h). Fixed length only.

    Quadratic in N in time and parameters; here as the bounded form of the paper's vision model.
    """

    reads_tokens: bool

    def __init__(self, length: int, width: int, *, steps: int, time_step: TimeStep, rate: float) -> None:
        super().__init__()
        self.steps = steps
        self.rate = TimeStepRate(kind=time_step, width=width, start=rate)
        self.reads_tokens = time_step == "token"
        self.logits = nn.Parameter(torch.randn(length, length))

    def forward(self, h: Tensor, u: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None or h.shape[1] != len(self.logits):
            raise ValueError(f"the dense kernel has a fixed length of {len(self.logits)} tokens and takes no lengths")
        kernel, rate = torch.softmax(self.logits, dim=-1), self.rate(u)
        for _ in range(self.steps):
            h = torch.addcmul((1 - rate) * h, rate, kernel @ h)  # not h + a (K h - h), whose difference may overflow
        return h


class Attention(nn.Module):
    """Attention over all tokens, with heads and an output map: u (B, N, D) -> (B, N, D).

    "linear": A v of the paper's diffusion attention (`ldn.reference.linear_attention`), linear in N ·
    "diffusion": (A - I) v, what the paper reads it as · "softmax": scaled dot-product attention.
    Finite values in the padding reach no real token.
    """

    def __init__(self, width: int, heads: int, kind: AttentionKind, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.kind, self.fused = heads, kind, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        real = None if lengths is None else real_positions(lengths, u.shape[1])  # (B, N)
        qkv = self.qkv(u)
        if self.kind != "softmax":
            return self.out(linear_attention(qkv, self.heads, real, self.kind == "diffusion", self.fused))
        q, k, v = by_head(qkv, 3, self.heads)  # (B, H, N, d)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=None if real is None else real[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))
