"""Linear attention over heads: as its formula, and with its gradient written out for fewer passes over memory.

As plain operations it costs an eager CPU as much as all maps of a layer: elu and its gradient walk over strided
heads, and the gradients of q, k and v are gathered afterwards. Its definition is `ldn.reference.linear_attention`.
Shapes: B batch, N tokens, D width, heads H of width d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import elu


def by_head(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, N, parts D) -> (parts, B, H, N, d), a view."""
    return x.view(*x.shape[:-1], parts, heads, -1).permute(2, 0, 3, 1, 4)


def formula(qkv: Tensor, heads: int, real: Tensor | None, less_v: bool) -> Tensor:
    """A v, or (A - I) v with `less_v`: qkv (B, N, 3 D), real (B, N) bool or None -> (B, N, D).

    One pass over the tokens sums the state, one applies it. What is not real is attended to by no one; where nothing
    is real, A v is 0.
    """
    q, k, v = by_head(qkv, 3, heads)  # (B, H, N, d)
    if real is not None:  # before the feature map too: the gradient of elu at inf or NaN is NaN
        real = real[:, None, :, None]
        k, v = torch.where(real, k, 0), torch.where(real, v, 0)
    q, k = elu(q) + 1, elu(k) + 1
    if real is not None:
        k = torch.where(real, k, 0)
    state = k.transpose(-1, -2) @ v  # (B, H, d, d)
    normaliser = q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2)  # (B, H, N, 1)
    if real is not None:  # where no token is real
        normaliser = normaliser.masked_fill(normaliser == 0, 1)
    mixed = (q @ state) / normaliser
    if less_v:
        mixed = mixed - v
    return mixed.transpose(1, 2).flatten(2)


class LinearAttention(torch.autograd.Function):
    """The same, the heads laid out one after another, and the normaliser as one more column of the state:

    [A v z, z] = phi(q) [phi(k)^T v, phi(k)^T 1]
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, real: Tensor | None, less_v: bool) -> Tensor:
        with torch.autocast(qkv.device.type, enabled=False):  # one dtype, that of qkv
            own = by_head(qkv, 3, heads).clone(memory_format=torch.contiguous_format)  # it is written to
            qk, v = feature(own[:2]), own[2]
            q, k = qk
            gone = None if real is None else ~real[:, None, :, None]
            if gone is not None:
                k.masked_fill_(gone, 0)
                v.masked_fill_(gone, 0)
            state = torch.cat([k.mT @ v, k.sum(dim=-2).unsqueeze(-1)], dim=-1)  # (B, H, d, d + 1)
            both = q @ state
            if gone is not None:  # where no token is real
                both[..., -1:].masked_fill_(both[..., -1:] == 0, 1)
            mixed = both[..., :-1].div_(both[..., -1:])
            out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
            by_head(out, 1, heads)[0].copy_(mixed - v if less_v else mixed)
        ctx.save_for_backward(qk, v, state, both, gone)
        ctx.heads, ctx.less_v = heads, less_v
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, state, both, gone = ctx.saved_tensors
        (q, k), mixed, normaliser = qk, both[..., :-1], both[..., -1:]
        with torch.autocast(grad.device.type, enabled=False):
            g_out = by_head(grad, 1, ctx.heads)[0]
            g_mixed = torch.div(g_out, normaliser, out=torch.empty_like(v))  # before the division, heads first
            g_normaliser = (g_mixed * mixed).sum(dim=-1, keepdim=True).neg_()
            g_state, g_sum = q.mT @ g_mixed, g_normaliser.mT @ q
            g_qk = torch.empty_like(qk)
            torch.matmul(g_mixed, state[..., :-1].mT, out=g_qk[0]).addcmul_(g_normaliser, state[..., -1:].mT)
            torch.matmul(v, g_state.mT, out=g_qk[1]).add_(g_sum)
            g_v = k @ g_state
            if ctx.less_v:
                g_v.sub_(g_out)
            if gone is not None:
                g_v.masked_fill_(gone, 0)  # the gradient of k is 0 there already, as its slope is
            g_qkv = grad.new_empty(*grad.shape[:2], 3 * grad.shape[2])
            parts = by_head(g_qkv, 3, ctx.heads)
            torch.mul(g_qk, slope(qk), out=parts[:2])
            parts[2].copy_(g_v)
        return g_qkv, None, None, None


def feature(u: Tensor) -> Tensor:
    """phi(u) = elu(u) + 1 in place of u: exp(u) below 0 and u + 1 above, the smaller of both; never rounded to 0."""
    exp = u.exp()
    return torch.minimum(exp, u.clamp_(min=0).add_(1), out=u)


def slope(phi: Tensor) -> Tensor:
    """The derivative of phi(u), from its value: exp(u) below u = 0, and 1 above."""
    return phi.clamp(max=1)
