"""S diffusion steps in one read and one write of the tokens, and their gradients in two reads and one write.

A program, one warp, marches along the tokens and steps them in registers, in float32 (`ldn.kernels.steps`); along which
tokens, how many at once and how many steps is decided by `ldn.kernels.plan`. A sequence is a grid of width 1. Nothing
is summed by atomics: the same input gives the same bits. The definition is `ldn.reference.diffuse`.

States are those of x / 2, so that differences of finite values are finite. Halving and doubling take about two
of the 12 instructions that an element takes in 2 steps, and one of 24 in their gradients. An H200 can issue 31 while it
copies an element of 16 bits: 8 steps take 33 with them, and 30 without.
Not measured on a GPU. `python -m benchmarks.instructions` says what it compiles to for an H100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

from ldn.kernels.march import Pass, as_text
from ldn.kernels.plan import enough, pairs, plan
from ldn.kernels.steps import backward_kernel, forward_kernel
from ldn.reference import Offset
from ldn.stencil import step_flops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MULTIPROCESSORS = 132  # of an H100
# what is interpreted cannot be traced into: there the operators are opaque
operator = torch.library.custom_op if triton.knobs.runtime.interpret else triton_op


def _ceil(n: int, by: int) -> int:
    """n / by, rounded up; four calls of `triton.cdiv` take a quarter of the time of a launch here."""
    return -(-n // by)


@dataclass(frozen=True)
class Operands:
    """What the launches of one call have in common. x and its like are (B, H, W, D), rate of as many dimensions."""

    offsets: tuple[Offset, ...]
    weights: Tensor
    rate: Tensor
    conductance: Tensor | None

    @property
    def of_tokens(self) -> bool:
        """Whether each token has a rate of its own."""
        return bool(self.rate.shape[1] > 1 or self.rate.shape[2] > 1)

    @property
    def of_channels(self) -> bool:
        """Whether each channel of each token has."""
        return self.of_tokens and bool(self.rate.shape[3] > 1)

    @property
    def conducting(self) -> bool:
        return self.conductance is not None

    @property
    def numbers(self) -> int:
        """How many coefficients each token has of its own."""
        return self.of_tokens + self.conducting * len(self.offsets)

    def arguments(self, part: Pass, x: Tensor, **flags: bool) -> tuple[int, dict[str, Any]]:
        """Number of programs for each sequence and block of channels, and the arguments that both kernels share."""
        h, w, d = x.shape[1], int(x.shape[2]), int(x.shape[3])  # constants of the kernel, whatever else varies
        block = min(1 << (d - 1).bit_length(), 32 * part.channels)
        blocks = _ceil(d, block)
        sy, sx = part.stride, part.stride if w > 1 else 1
        tiles_x = _ceil(w, sx * part.columns)
        chunk = _chunk(part, _ceil(h, sy), x.shape[0] * blocks * tiles_x * sy * sx)
        chunks = _ceil(_ceil(h, sy), chunk)
        rate_strides = [0 if n == 1 else stride for n, stride in zip(self.rate.shape, self.rate.stride(), strict=True)]
        flags |= {"of tokens": self.of_tokens, "of channels": self.of_channels, "conducting": self.conducting}
        constants = {"W": w, "D": d, "stride y": sy, "stride x": sx, **flags}
        shared = {
            "weights": self.weights, "rate": self.rate, "conductance": self.conductance if self.conducting else x,
            "H": h, "chunk": chunk, "chunks": chunks, "tiles_x": tiles_x, "blocks": blocks,
            **dict(zip(("x_b", "X_Y", "X_X"), x.stride(), strict=False)),
            "W_E": self.weights.stride(0), "W_D": 0 if self.weights.shape[1] == 1 else self.weights.stride(1),
            **dict(zip(("r_b", "R_Y", "R_X", "R_D"), rate_strides, strict=True)),
            "PASS": as_text(part, tuple(constants.items())),
            "BLOCK": block, "num_warps": 1,
        }  # fmt: skip
        return chunks * tiles_x * sy * sx, shared


def _chunk(part: Pass, rows: int, warps: int) -> int:
    """Rows that a program owns, of so many, where there are so many warps beside it.

    As many programs as run at once, or if these are few for each, several times as many; but what a program loads and
    steps before its own rows it does for nothing. The last turn is a whole one, if there is another program.
    """
    at_once, beside = MULTIPROCESSORS * part.warps_at_once, part.lead + part.march.tail
    chunks = at_once // warps
    if chunks < 4:
        chunks = torch.sym_max(1, 4 * at_once // warps)
    chunk = torch.sym_max(_ceil(rows, chunks), max(beside, part.rows))
    return torch.sym_min(chunk + -(chunk + beside) % part.rows, rows)


def forward(operands: Operands, x: Tensor, passes: Sequence[Pass], dtype: torch.dtype) -> Tensor:
    """x through these passes; what lies between two of them stays in float32."""
    for part in passes:
        out = torch.empty(x.shape, dtype=dtype if part is passes[-1] else torch.float32, device=x.device)
        programs, shared = operands.arguments(part, x)
        with torch.cuda.device_of(x):
            wrap_triton(forward_kernel)[(programs * shared["blocks"] * x.shape[0],)](x=x, out=out, **shared)
        x = out
    return x


def backward(
    operands: Operands, x: Tensor, grad: Tensor, part: Pass, dtype: torch.dtype, learning: bool, of_conductances: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, (B, E, D) of the weights, (B, H, W, D or 1) of rates of tokens, (B, H, W, E) of conductances.

    Where the rate is the same for all tokens, it is not in that of the weights. What is not asked for is empty.
    """
    b, h, w, d = x.shape
    programs, shared = operands.arguments(part, x, **{"learning": learning, "of conductances": of_conductances})
    blocks, edges = shared["blocks"], len(operands.offsets)
    moving = {edge for pair in part.pairs for edge in (pair.ahead, pair.back)} - {-1}
    # an edge from a token to itself, or out of the grid, moves nothing, and nothing is written for it
    made = torch.empty if len(moving) == edges else torch.zeros
    new = partial(made, dtype=torch.float32, device=x.device)
    g_x = torch.empty(x.shape, dtype=dtype, device=x.device)
    g_weights = new((b, programs, edges, d) if learning else (0, 0))
    g_rate, g_conductance = new((1, 0)), new((1, 0))
    if learning and operands.of_tokens:
        g_rate = new((1, b, h, w, d) if operands.of_channels else (blocks, b, h, w, 1))
    if of_conductances:
        g_conductance = new((blocks, b, h, w, edges))
    strides = dict(zip(("grad_b", "GRAD_Y", "GRAD_X"), grad.stride(), strict=False))
    with torch.cuda.device_of(x):
        wrap_triton(backward_kernel)[(programs * blocks * b,)](
            x=x, grad=grad, g_x=g_x, g_weights=g_weights, g_rate=g_rate, g_conductance=g_conductance,
            B=b, **strides, **shared,
        )  # fmt: skip
    return g_x, g_weights.sum(1), _summed(g_rate), _summed(g_conductance)


def _summed(parts: Tensor) -> Tensor:
    """Over the first dimension; nothing is launched where there is nothing to add."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


@operator("ldn::diffuse_fused", mutates_args=())
def _diffuse(
    x: Tensor,
    offsets: Sequence[int],
    weights: Tensor,
    rate: Tensor,
    conductance: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    operands, tokens = unpacked(x, offsets, weights, rate, conductance)
    passes = passes_of(operands, x, dilations, of_gradients=False)
    if passes is None:
        return torch.ops.ldn.diffuse(x, offsets, weights, rate, len(dilations), conductance, dilations)
    return forward(operands, tokens, passes, x.dtype).view(x.shape)


@operator("ldn::diffuse_fused_backward", mutates_args=())
def _diffuse_backward(
    grad: Tensor,
    x: Tensor,
    offsets: Sequence[int],
    weights: Tensor,
    rate: Tensor,
    conductance: Tensor | None,
    dilations: Sequence[int],
    learning: bool,
    conducting: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, weights, rate, conductance).

    All but the first are empty unless `learning`, and the last unless `conducting` (which is learning, too).
    """
    operands, tokens = unpacked(x, offsets, weights, rate, conductance)
    passes = passes_of(operands, x, dilations, of_gradients=True)
    if passes is None:
        found = torch.ops.ldn.diffuse_backward(
            grad, x, offsets, weights, rate, conductance, dilations, learning, conducting
        )
        return found if learning else (found[0], found[1], rate.new_empty(0), found[3])
    g, inputs, moved = _of_rows(grad).view(tokens.shape), [tokens], []
    for part in passes[:-1] if learning else ():
        again = passes_of(operands, x, [part.stride * d for d in part.dilations], of_gradients=False)
        assert again is not None  # states alone need fewer registers than with their gradients
        inputs.append(forward(operands, inputs[-1], again, torch.float32))
    for part in reversed(passes):
        dtype = x.dtype if part is passes[0] else torch.float32
        before = inputs.pop() if learning else tokens
        g, *of_coefficients = backward(operands, before, g, part, dtype, learning, conducting)
        moved.append(of_coefficients)
    if not learning:
        return g.view(x.shape), weights.new_empty(0), rate.new_empty(0), x.new_empty(0)
    g_weights, g_rate, g_conductance = (sum(parts[1:], parts[0]) for parts in zip(*moved, strict=True))
    if not operands.of_tokens:  # times the weights it is the rate's gradient, and times the rate the weights'
        g_rate = (g_weights * weights.float()).sum(1)[:, None, None]
        g_weights = g_weights * operands.rate[:, 0].float()
    g_rate = g_rate.sum_to_size(operands.rate.shape).reshape(rate.shape).to(rate.dtype)
    g_weights = g_weights.sum(0).sum_to_size(weights.shape).to(weights.dtype)
    if not conducting or conductance is None:
        return g.view(x.shape), g_weights, g_rate, x.new_empty(0)
    return g.view(x.shape), g_weights, g_rate, g_conductance.reshape(conductance.shape).to(conductance.dtype)


def unpacked(
    x: Tensor, offsets: Sequence[int], weights: Tensor, rate: Tensor, conductance: Tensor | None
) -> tuple[Operands, Tensor]:
    """The operands, its offsets no longer one list, and x (B, H, W, D): a sequence is a grid of width 1."""
    rank = x.dim() - 2
    listed = tuple(tuple(offsets[i : i + rank]) for i in range(0, len(offsets), rank))
    x = _of_rows(x)
    if rank == 1:
        x, rate = x.unsqueeze(2), rate.unsqueeze(2)
    return Operands(listed, weights, rate, None if conductance is None else conductance.contiguous()), x


def _of_rows(x: Tensor) -> Tensor:
    """x with the channels of a token side by side, as kernels read them; an expanded gradient has them not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def passes_of(operands: Operands, x: Tensor, dilations: Sequence[int], of_gradients: bool) -> tuple[Pass, ...] | None:
    """None where the kernels cannot: for other dtypes, nothing to move, or offsets that reach too far for registers."""
    if x.dtype not in DTYPES or x.numel() == 0 or not pairs(operands.offsets):
        return None
    most = enough(operands.offsets, tuple(dilations))  # beyond it all plans are alike: compiled once for all lengths
    grid = tuple(most if n > most else int(n) for n in x.shape[1:-1])
    planned = plan(operands.offsets, tuple(dilations), grid, operands.numbers, of_gradients)
    return None if planned is None else planned.passes


@_diffuse.register_fake
def _(x, offsets, weights, rate, conductance, dilations):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_diffuse_backward.register_fake
def _(grad, x, offsets, weights, rate, conductance, dilations, learning, conducting):
    g_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not learning:
        return g_x, weights.new_empty(0), rate.new_empty(0), x.new_empty(0)
    g_conductance = conductance.new_empty(conductance.shape) if conducting else x.new_empty(0)
    return g_x, weights.new_empty(weights.shape), rate.new_empty(rate.shape), g_conductance


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.offsets, weights, rate, conductance, ctx.dilations = inputs
    ctx.save_for_backward(x, weights, rate, conductance)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weights, rate, conductance = ctx.saved_tensors
    learning = any(ctx.needs_input_grad[n] for n in (2, 3, 4))
    conducting = ctx.needs_input_grad[4]  # walls of padding have none
    g_x, g_weights, g_rate, g_conductance = torch.ops.ldn.diffuse_fused_backward(
        grad, x, ctx.offsets, weights, rate, conductance, ctx.dilations, learning, conducting
    )
    if not learning:
        return g_x, None, None, None, None, None
    return g_x, None, g_weights, g_rate, g_conductance if conducting else None, None


_diffuse.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.ldn.diffuse_fused)
def _(x, offsets, weights, rate, conductance, dilations, **_):
    return step_flops(x, weights[0], len(dilations))


@register_flop_formula(torch.ops.ldn.diffuse_fused_backward)
def _(grad, x, offsets, weights, rate, conductance, dilations, learning, conducting, **_):
    """The steps transposed; and for the coefficients' gradients the states again, and as many sums."""
    return (3 if learning else 1) * step_flops(x, weights[0], len(dilations))


def diffuse(
    x: Tensor,
    offsets: Sequence[Offset],
    weights: Tensor,
    rate: Tensor,
    dilations: Sequence[int],
    conductance: Tensor | None = None,
) -> Tensor:
    """A step for each dilation, otherwise as `ldn.ops.diffuse`, which checks the shapes; of any strides.

    What the kernels cannot do (float64, offsets that reach dozens of tokens) the plain operator does.
    """
    flat = [coordinate for offset in offsets for coordinate in offset]
    rate = rate.view((1,) * (x.dim() - rate.dim()) + rate.shape)
    return _diffuse(x, flat, weights, rate, conductance, list(dilations))
