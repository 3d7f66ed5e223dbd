"""The mathematics of LDN in plain PyTorch: slow, obvious, any dtype. Everything faster is tested against it.

Linear Diffusion Networks, arXiv 2502.12381. Shapes: B batch, N tokens, D width, E offsets, H x W a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Offset = tuple[int, ...]


def diffuse(
    x: Tensor, offsets: Sequence[Offset], weights: Tensor, rate: Tensor, steps: int, conductance: Tensor | None = None
) -> Tensor:
    """`steps` explicit Euler steps of diffusion along the edges i -> i + offset.

        x_i <- x_i + rate_i * sum_e weights_e * conductance_{i,e} * (x_{i + offset_e} - x_i)

    taken of x / 2, so that the difference of two finite values is finite.
    x (B, N, D) with offsets (d,), or (B, H, W, D) with offsets (dy, dx) · weights (E, D) or (E, 1) ·
    rate broadcastable to x · conductance (B, *grid, E), None for 1 everywhere. An edge that leaves
    the grid does not exist: its weight stays on the token (never renormalised), so that a symmetric
    stencil stays symmetric and keeps the mean. With 0 <= rate <= 1, weights >= 0 of sum <= 1 and
    0 <= conductance <= 1 every step is a convex combination: nothing leaves the range of x.
    """
    grid, x = x.shape[1:-1], x / 2
    for _ in range(steps):
        change = torch.zeros_like(x)
        for e, offset in enumerate(offsets):
            for index in torch.cartesian_prod(*[torch.arange(n) for n in grid]).reshape(-1, len(grid)).tolist():
                there = [i + d for i, d in zip(index, offset, strict=True)]
                if all(0 <= j < n for j, n in zip(there, grid, strict=True)):
                    i, j = (slice(None), *index), (slice(None), *there)
                    flow = weights[e] * (x[j] - x[i])
                    change[i] += flow if conductance is None else conductance[(*i, e)][:, None] * flow
        x = x + rate * change
    return 2 * x


def linear_attention(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> Tensor:
    """The diffusion-inspired attention A v, written as the row-stochastic matrix A that it is.

    A_ij = phi(q_i).phi(k_j) / sum_j phi(q_i).phi(k_j) with phi(u) = elu(u) + 1.
    q, k, v (B, H, N, d) · real (B, N) bool: which tokens may be attended to; where none, A is 0.
    """
    score = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).transpose(-1, -2)
    if real is not None:
        score = score * real[:, None, None, :]
    total = score.sum(dim=-1, keepdim=True)
    return (score / total.masked_fill(total == 0, 1)) @ v
