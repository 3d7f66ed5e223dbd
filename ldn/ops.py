"""How the operators run: checks, then the fastest implementation for the device at hand.

On a GPU that is a kernel of `ldn.kernels`. Elsewhere `diffuse` is one operator of `torch.library` ("ldn::diffuse"), so
that a counter sees one operation with one cost; a compiler is given plain operations, to fuse with what stands around.
The definitions are those of `ldn.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ldn.attention import LinearAttention, formula
from ldn.reference import Offset
from ldn.stencil import Stencil, step_flops, traceable

KERNELS = torch.version.cuda is not None and find_spec("triton") is not None
if KERNELS:
    from ldn import kernels


def diffuse(
    x: Tensor,
    offsets: Sequence[Offset],
    weights: Tensor,
    rate: Tensor,
    steps: int,
    conductance: Tensor | None = None,
    dilations: Sequence[int] = (1,),
    fused: bool = True,
) -> Tensor:
    """`steps` explicit diffusion steps; shapes and meaning as in `ldn.reference.diffuse`.

    Sub-step s goes along `dilations[s % len(dilations)]` times the offsets. One-sided (causal) offsets are legal.
    Within the bounds of a convex combination (see there) the result of finite values is finite, however large they are.
    `fused`: on a GPU, by the kernels of `ldn.kernels`. An edge of conductance 0 carries nothing where x is finite;
    0 times inf is NaN.
    Raises ValueError for shapes that do not fit, and for a conductance, which is of one edge, with several dilations.
    """
    rank = x.dim() - 2
    if rank not in (1, 2):
        raise ValueError(f"diffuse takes x (B, N, D) or (B, H, W, D), not a shape of {x.dim()} dimensions")
    if any(len(offset) != rank for offset in offsets):
        raise ValueError(f"diffuse takes offsets of {rank} coordinates for this x, not {list(offsets)}")
    if weights.dim() != 2 or weights.shape[0] != len(offsets) or weights.shape[1] not in (1, x.shape[-1]):
        raise ValueError(f"diffuse takes weights ({len(offsets)}, {x.shape[-1]} or 1), not {tuple(weights.shape)}")
    if rate.dim() > x.dim() or any(n not in (1, m) for n, m in zip(rate.shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"diffuse takes a rate that broadcasts to x {tuple(x.shape)}, not {tuple(rate.shape)}")
    if conductance is not None and conductance.shape != (*x.shape[:-1], len(offsets)):
        wanted = (*x.shape[:-1], len(offsets))
        raise ValueError(f"diffuse takes a conductance {wanted}, not {tuple(conductance.shape)}")
    if steps < 0:
        raise ValueError(f"diffuse takes at least 0 steps, not {steps}")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"diffuse takes dilations of at least 1, and at least one of them, not {list(dilations)}")
    if conductance is not None and len(set(dilations)) > 1:
        raise ValueError("diffuse takes one dilation with a conductance, whose edges have other ends at another")
    if not offsets or steps == 0:
        return x
    rate = rate.view((1,) * (x.dim() - rate.dim()) + rate.shape)
    dilations = [dilations[s % len(dilations)] for s in range(steps)]
    if KERNELS and fused and x.is_cuda:
        return kernels.diffuse(x, offsets, weights, rate, dilations, conductance)
    if torch.compiler.is_compiling():
        return traceable(x, offsets, weights, rate, dilations, conductance)
    flat = [coordinate for offset in offsets for coordinate in offset]
    return _diffuse(x, flat, weights, rate, steps, conductance, dilations)


def linear_attention(
    qkv: Tensor, heads: int, real: Tensor | None = None, less_v: bool = False, fused: bool = True
) -> Tensor:
    """A v in time linear in N, or (A - I) v with `less_v`: qkv (B, N, 3 D), real (B, N) bool or None -> (B, N, D).

    A is that of `ldn.reference.linear_attention`. Where `real` is False, v counts as 0 and no token attends, whatever
    k and v hold there; where no token of a sequence is real, A v is 0.
    `fused`: on a GPU, by the kernels of `ldn.kernels`.
    """
    traced = torch.jit.is_tracing()
    if KERNELS and fused and qkv.is_cuda and not traced and kernels.attention_refusal(qkv, heads) is None:
        return kernels.linear_attention(qkv, heads, real, less_v)
    if torch.compiler.is_compiling() or traced:  # whoever takes the graph down fuses or counts it
        return formula(qkv, heads, real, less_v)
    return LinearAttention.apply(qkv, heads, real, less_v)


@torch.library.custom_op("ldn::diffuse", mutates_args=())
def _diffuse(
    x: Tensor,
    offsets: Sequence[int],
    weights: Tensor,
    rate: Tensor,
    steps: int,
    conductance: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    stencil = Stencil(x, _unflattened(offsets, x), weights, rate, dilations, conductance)
    y = stencil.halved(x)
    for dilation in dilations:
        y = stencil.step(y, dilation)
    return stencil.doubled(y).to(x.dtype)


def _unflattened(offsets: Sequence[int], x: Tensor) -> list[Offset]:
    """An operator takes no list of tuples: the coordinates come one after another."""
    rank = x.dim() - 2
    return [tuple(offsets[i : i + rank]) for i in range(0, len(offsets), rank)]


@_diffuse.register_fake
def _(x, offsets, weights, rate, steps, conductance, dilations):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("ldn::diffuse_backward", mutates_args=())
def _diffuse_backward(
    grad: Tensor,
    x: Tensor,
    offsets: Sequence[int],
    weights: Tensor,
    rate: Tensor,
    conductance: Tensor | None,
    dilations: Sequence[int],
    of_weights: bool,
    of_conductance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, weights, rate, conductance), those not asked for empty; the states are recomputed from x."""
    stencil = Stencil(x, _unflattened(offsets, x), weights, rate, dilations, conductance)
    states = [stencil.halved(x)]
    for dilation in dilations[:-1]:
        states.append(stencil.step(states[-1], dilation))
    of = stencil.coefficients
    g_rate = torch.zeros_like(of.rate)
    g_weights = torch.zeros_like(of.weights) if of_weights else None
    g_conductance = torch.zeros_like(of.conductance) if of_conductance and of.conductance is not None else None
    g_x = grad.to(stencil.dtype)
    for dilation in reversed(dilations):
        stencil.accumulate(g_x, states.pop(), dilation, g_weights, g_rate, g_conductance)
        g_x = stencil.transposed_step(g_x, dilation)
    return (
        g_x.to(x.dtype),
        weights.new_empty(0) if g_weights is None else g_weights.to(weights.dtype),
        g_rate.to(rate.dtype),
        x.new_empty(0) if g_conductance is None or conductance is None else g_conductance.to(conductance.dtype),
    )


@_diffuse_backward.register_fake
def _(grad, x, offsets, weights, rate, conductance, dilations, of_weights, of_conductance):  # type: ignore[no-untyped-def]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(weights) if of_weights else weights.new_empty(0),
        torch.empty_like(rate),
        torch.empty_like(conductance) if of_conductance else x.new_empty(0),
    )


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, ctx.offsets, weights, rate, _, conductance, ctx.dilations = inputs
    ctx.save_for_backward(x, weights, rate, conductance)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weights, rate, conductance = ctx.saved_tensors
    of_weights, of_conductance = ctx.needs_input_grad[2], ctx.needs_input_grad[5]
    g_x, g_weights, g_rate, g_conductance = torch.ops.ldn.diffuse_backward(
        grad, x, ctx.offsets, weights, rate, conductance, ctx.dilations, of_weights, of_conductance
    )
    return g_x, None, g_weights if of_weights else None, g_rate, None, g_conductance if of_conductance else None, None


_diffuse.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.ldn.diffuse)
def _(x, offsets, weights, rate, steps, conductance, dilations, **_):  # type: ignore[no-untyped-def]
    return step_flops(x, weights[0], steps)


@register_flop_formula(torch.ops.ldn.diffuse_backward)
def _(grad, x, offsets, weights, rate, conductance, dilations, *_, **__):  # type: ignore[no-untyped-def]
    """The states again, the steps transposed, and as many sums for the coefficients."""
    return 3 * step_flops(x, weights[0], len(dilations))
