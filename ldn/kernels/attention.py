"""Linear attention on a GPU: two passes over the tokens forward, two backward; the same as `ldn.attention.formula`.

No value outside float32 is larger than what is mixed, whatever the length and the keys. Per head, with phi(u) = elu(u)
+ 1, s_a = sum_j phi(k_j)_a the sum and S_ae = sum_j phi(k_j)_a v_je the state, a row of A v is a mean of means:

    p_ia = phi(q_i)_a s_a / sum_b phi(q_i)_b s_b        M_ae = S_ae / s_a        (A v)_i = sum_a p_ia M_a

Its gradients, with G that of A v, T = p^T G, m_i = sum_a p_ia (M G_i)_a and t = p^T m:

    of q_ia: p_ia / max(phi(q_ia), 1) ((M G_i)_a - m_i)
    of k_ja: min(phi(k_ja), 1) / s_a ((T v_j)_a - t_a)        of v_je: sum_a phi(k_ja) / s_a T_ae

Shapes: B batch, N tokens, D width, heads H of width d; a state is (d + 1, d), its last row the sum. Tokens are cut into
chunks, a program each: partial states are summed in a fixed order, so that the same input gives the same bits. Not
measured on a GPU.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

WIDEST = 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETED = triton.knobs.runtime.interpret
operator = torch.library.custom_op if INTERPRETED else triton_op  # what is interpreted cannot be traced into


@triton.jit
def _feature(u):
    """phi(u) = elu(u) + 1, never rounded to 0 before exp(u) is; of NaN it is NaN."""
    return tl.where(u > 0, u + 1, tl.exp(u))


@triton.jit
def _or_one(x):
    """What to divide by where 0 / 0 is to be 0."""
    return tl.where(x == 0, 1.0, x)


@triton.jit
def _place(heads, chunks, length, tokens):
    """The program's row of the batch, its head, its first token and the end of its tokens."""
    program = tl.program_id(0)
    first = program % chunks * length
    row = program // chunks
    return (row // heads).to(tl.int64), (row % heads).to(tl.int64), first, tl.minimum(first + length, tokens)


@triton.jit
def _attended(real, n, last, b, real_b, real_n, lengths: tl.constexpr):
    """Which of the tokens n are before the last and real: (block_n,)."""
    attended = n < last
    if lengths:
        attended &= tl.load(real + b * real_b + n.to(tl.int64) * real_n, mask=attended, other=0) != 0
    return attended


@triton.jit
def _load_state(state, row, width: tl.constexpr, block_d: tl.constexpr):
    """The (d, d) and the (d,) of row `row` of states (rows, d + 1, d), 0 beyond the width."""
    c = tl.arange(0, block_d)
    state += row.to(tl.int64) * ((width + 1) * width)
    inside = (c[:, None] < width) & (c[None, :] < width)
    return (
        tl.load(state + c[:, None] * width + c[None, :], mask=inside, other=0),
        tl.load(state + width * width + c, mask=c < width, other=0),
    )


@triton.jit
def _store_state(state, row, of_v, of_one, width: tl.constexpr, block_d: tl.constexpr):
    c = tl.arange(0, block_d)
    state += row.to(tl.int64) * ((width + 1) * width)
    inside = (c[:, None] < width) & (c[None, :] < width)
    tl.store(state + c[:, None] * width + c[None, :], of_v, mask=inside)
    tl.store(state + width * width + c, of_one, mask=c < width)


@triton.jit(do_not_specialize=["chunks", "length", "tokens"])
def sum_kernel(
    qkv, real, state, heads, chunks, length, tokens, qkv_b, qkv_n, qkv_c, real_b, real_n,
    lengths: tl.constexpr, width: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Pass 1: phi(k)^T v and phi(k)^T 1 over a chunk -> state (B, H, chunks, d + 1, d)."""
    b, h, first, last = _place(heads, chunks, length, tokens)
    c = tl.arange(0, block_d)
    column = h * width + c[None, :]
    k_part = qkv + b * qkv_b + (column + heads * width) * qkv_c
    v_part = qkv + b * qkv_b + (column + 2 * heads * width) * qkv_c
    of_v = tl.zeros((block_d, block_d), tl.float32)
    of_one = tl.zeros((block_d,), tl.float32)
    for start in tl.range(first, last, block_n):
        n = start + tl.arange(0, block_n)
        attended = _attended(real, n, last, b, real_b, real_n, lengths)[:, None]
        at, inside = n.to(tl.int64)[:, None] * qkv_n, attended & (c[None, :] < width)
        k = tl.load(k_part + at, mask=inside, other=0)
        v = tl.load(v_part + at, mask=inside, other=0)
        k = tl.where(attended, _feature(k.to(tl.float32)), 0.0).to(k.dtype)
        of_v = tl.dot(tl.trans(k), v, of_v, input_precision="ieee")
        of_one += tl.sum(k.to(tl.float32), 0)  # of what was rounded for the product: the mean of a constant is exact
    _store_state(state, tl.program_id(0), of_v, of_one, width, block_d)


@triton.jit(do_not_specialize=["chunks", "length", "tokens"])
def mix_kernel(
    qkv, real, state, out, heads, chunks, length, tokens, qkv_b, qkv_n, qkv_c, real_b, real_n,
    lengths: tl.constexpr, less_v: tl.constexpr, width: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Pass 2: p M, less v or not, of a chunk -> out (B, N, D)."""
    b, h, first, last = _place(heads, chunks, length, tokens)
    c = tl.arange(0, block_d)
    column = h * width + c[None, :]
    q_part = qkv + b * qkv_b + column * qkv_c
    v_part = qkv + b * qkv_b + (column + 2 * heads * width) * qkv_c
    out += b * tokens * heads * width + column
    of_v, of_one = _load_state(state, tl.program_id(0) // chunks, width, block_d)
    mean = (of_v / _or_one(of_one)[:, None]).to(qkv.dtype.element_ty)
    for start in tl.range(first, last, block_n):
        n = start + tl.arange(0, block_n)
        at, inside = n.to(tl.int64)[:, None], (n < last)[:, None] & (c[None, :] < width)
        q = tl.load(q_part + at * qkv_n, mask=inside, other=0)
        p = _feature(q.to(tl.float32)) * of_one[None, :]
        p = (p / _or_one(tl.sum(p, 1))[:, None]).to(q.dtype)
        total = tl.sum(p.to(tl.float32), 1)  # 1 before p was rounded: rows of A sum to 1 in any dtype
        y = tl.dot(p, mean, input_precision="ieee") / _or_one(total)[:, None]
        if less_v:
            attended = _attended(real, n, last, b, real_b, real_n, lengths)[:, None]
            y -= tl.load(v_part + at * qkv_n, mask=attended & inside, other=0).to(tl.float32)
        tl.store(out + at * (heads * width), y.to(q.dtype), mask=inside)


@triton.jit(do_not_specialize=["chunks", "length", "tokens"])
def backward_q_kernel(
    grad, qkv, state, g_qkv, g_state, heads, chunks, length, tokens, grad_b, grad_n, grad_c, qkv_b, qkv_n, qkv_c,
    width: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Backward pass 1: the gradient of q -> g_qkv (B, N, 3 D), and T and t over a chunk -> g_state, as pass 1's."""
    b, h, first, last = _place(heads, chunks, length, tokens)
    c = tl.arange(0, block_d)
    column = h * width + c[None, :]
    q_part = qkv + b * qkv_b + column * qkv_c
    g_part = grad + b * grad_b + column * grad_c
    g_qkv += b * tokens * (3 * heads * width) + column
    of_v, of_one = _load_state(state, tl.program_id(0) // chunks, width, block_d)
    mean = tl.trans((of_v / _or_one(of_one)[:, None]).to(qkv.dtype.element_ty))
    t_of_v = tl.zeros((block_d, block_d), tl.float32)
    t_of_one = tl.zeros((block_d,), tl.float32)
    for start in tl.range(first, last, block_n):
        n = start + tl.arange(0, block_n)
        at, inside = n.to(tl.int64)[:, None], (n < last)[:, None] & (c[None, :] < width)
        q = tl.load(q_part + at * qkv_n, mask=inside, other=0)
        g = tl.load(g_part + at * grad_n, mask=inside, other=0)
        phi = _feature(q.to(tl.float32))
        p = phi * of_one[None, :]
        p = p / _or_one(tl.sum(p, 1))[:, None]
        along = tl.dot(g, mean, input_precision="ieee")
        mixed = tl.sum(p * along, 1)[:, None]
        t_of_v = tl.dot(tl.trans(p.to(q.dtype)), g, t_of_v, input_precision="ieee")
        t_of_one += tl.sum(p * mixed, 0)
        g_q = p / tl.maximum(phi, 1.0) * (along - mixed)
        tl.store(g_qkv + at * (3 * heads * width), g_q.to(q.dtype), mask=inside)
    _store_state(g_state, tl.program_id(0), t_of_v, t_of_one, width, block_d)


@triton.jit(do_not_specialize=["chunks", "length", "tokens"])
def backward_kv_kernel(
    grad, qkv, real, state, g_state, g_qkv, heads, chunks, length, tokens,
    grad_b, grad_n, grad_c, qkv_b, qkv_n, qkv_c, real_b, real_n,
    lengths: tl.constexpr, less_v: tl.constexpr, width: tl.constexpr, block_d: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Backward pass 2: the gradients of k and v of a chunk -> g_qkv (B, N, 3 D); 0 where no one attends."""
    b, h, first, last = _place(heads, chunks, length, tokens)
    c = tl.arange(0, block_d)
    column = h * width + c[None, :]
    k_part = qkv + b * qkv_b + (column + heads * width) * qkv_c
    v_part = qkv + b * qkv_b + (column + 2 * heads * width) * qkv_c
    g_part = grad + b * grad_b + column * grad_c
    g_qkv += b * tokens * (3 * heads * width) + column + heads * width
    _, of_one = _load_state(state, tl.program_id(0) // chunks, width, block_d)
    t_of_v, t_of_one = _load_state(g_state, tl.program_id(0) // chunks, width, block_d)
    # 1 / s is of the order of 1 / N and T of N: between them sqrt(N) keeps either within float16
    root = tl.sqrt(tl.full((), 1.0, tl.float32) * tokens)
    weight = tl.where(of_one == 0, 0.0, root / _or_one(of_one))[None, :]
    t = (t_of_v / root).to(qkv.dtype.element_ty)
    t_of_one = t_of_one[None, :] / root
    for start in tl.range(first, last, block_n):
        n = start + tl.arange(0, block_n)
        attended = _attended(real, n, last, b, real_b, real_n, lengths)[:, None]
        at, inside = n.to(tl.int64)[:, None], (n < last)[:, None] & (c[None, :] < width)
        k = tl.load(k_part + at * qkv_n, mask=attended & inside, other=0)
        v = tl.load(v_part + at * qkv_n, mask=attended & inside, other=0)
        g_k = tl.dot(v, tl.trans(t), input_precision="ieee") - t_of_one
        phi = tl.where(attended, _feature(k.to(tl.float32)), 0.0)
        g_k = tl.minimum(phi, 1.0) * weight * g_k
        g_v = tl.dot((phi * weight).to(k.dtype), t, input_precision="ieee")
        if less_v:
            g_v -= tl.load(g_part + at * grad_n, mask=attended & inside, other=0).to(tl.float32)
        to = g_qkv + at * (3 * heads * width)
        tl.store(to, g_k.to(k.dtype), mask=inside)
        tl.store(to + heads * width, g_v.to(k.dtype), mask=inside)


def split(rows: int, tokens: int, width: int, processors: int) -> tuple[int, int]:
    """(chunks, tokens a chunk) for `rows` = B H heads: four programs a multiprocessor where there is work for them.

    A chunk has at least 8 d tokens, so that a partial state, 4 d (d + 1) bytes, is about an eighth of the k and v that
    it sums in float16; and a multiple of 128, whole blocks.
    """
    wanted = min(4 * processors // rows, tokens // (8 * width))
    if wanted <= 1:  # said as a constant: a compiler that sees through it would keep a symbol that is always 1
        return 1, triton.cdiv(tokens, 128) * 128
    length = triton.cdiv(triton.cdiv(tokens, wanted), 128) * 128
    return triton.cdiv(tokens, length), length


def tiles(width: int, dtype: torch.dtype) -> dict[str, int]:
    """How a program is cut, so that no kernel spills registers on an H100; a product needs at least 16 columns.

    Products of float32 are not the tensor cores': loads ahead would keep whole operands of theirs in registers.
    """
    block_d = max(16, triton.next_power_of_2(width))
    exact = dtype == torch.float32
    block_n = (32 if exact else 64) // (2 if block_d > 64 else 1)
    warps, stages = 4 if block_d <= 32 else 8, 1 if exact else 3
    return {"width": width, "block_d": block_d, "block_n": block_n, "num_warps": warps, "num_stages": stages}


def _cut(qkv: Tensor, heads: int) -> tuple[int, int, tuple[int, ...], dict[str, int]]:
    """(chunks, programs, (H, chunks, tokens a chunk, N), tiles) of all kernels on this input."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], int(qkv.shape[2]) // (3 * heads)
    processors = torch.cuda.get_device_properties(qkv.device).multi_processor_count if qkv.is_cuda else 4
    chunks, length = split(batch * heads, tokens, width, processors)
    return chunks, batch * heads * chunks, (heads, chunks, length, tokens), tiles(width, qkv.dtype)


def _states(qkv: Tensor, heads: int, chunks: int) -> Tensor:
    width = qkv.shape[2] // (3 * heads)
    return qkv.new_empty(qkv.shape[0], heads, chunks, width + 1, width, dtype=torch.float32)


def _summed(states: Tensor) -> Tensor:
    """(B, H, chunks, d + 1, d) -> (B, H, d + 1, d), always in the same order."""
    return states[:, :, 0] if states.shape[2] == 1 else states.sum(dim=2)


def _lengths(real: Tensor | None, qkv: Tensor) -> tuple[Tensor, tuple[int, ...], dict[str, bool]]:
    """(pointer, strides, flag) of `real`; without it the pointer is never read."""
    return (qkv, (0, 0), {"lengths": False}) if real is None else (real, real.stride(), {"lengths": True})


@operator("ldn::linear_attention_fused", mutates_args=())
def _fused(qkv: Tensor, heads: int, real: Tensor | None, less_v: bool) -> tuple[Tensor, Tensor]:
    """(out (B, N, D), state (B, H, d + 1, d) in float32)."""
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    if qkv.numel() == 0:
        return out, _states(qkv, heads, 1).zero_()[:, :, 0]
    chunks, programs, cut, tile = _cut(qkv, heads)
    pointer, strides, lengths = _lengths(real, qkv)
    states = _states(qkv, heads, chunks)
    with torch.cuda.device_of(qkv):
        wrap_triton(sum_kernel)[(programs,)](
            qkv, pointer, states, *cut, *qkv.stride(), *strides, **lengths, **tile
        )  # fmt: skip
        state = _summed(states)
        wrap_triton(mix_kernel)[(programs,)](
            qkv, pointer, state, out, *cut, *qkv.stride(), *strides, **lengths, less_v=less_v, **tile
        )  # fmt: skip
    return out, state


@operator("ldn::linear_attention_fused_backward", mutates_args=())
def _fused_backward(grad: Tensor, qkv: Tensor, heads: int, real: Tensor | None, state: Tensor, less_v: bool) -> Tensor:
    """The gradient of qkv (B, N, 3 D)."""
    g_qkv = qkv.new_empty(qkv.shape)
    if qkv.numel() == 0:
        return g_qkv
    chunks, programs, cut, tile = _cut(qkv, heads)
    pointer, strides, lengths = _lengths(real, qkv)
    states = _states(qkv, heads, chunks)
    with torch.cuda.device_of(qkv):
        wrap_triton(backward_q_kernel)[(programs,)](
            grad, qkv, state, g_qkv, states, *cut, *grad.stride(), *qkv.stride(), **tile
        )  # fmt: skip
        wrap_triton(backward_kv_kernel)[(programs,)](
            grad, qkv, pointer, state, _summed(states), g_qkv, *cut, *grad.stride(), *qkv.stride(), *strides,
            **lengths, less_v=less_v, **tile,
        )  # fmt: skip
    return g_qkv


@_fused.register_fake
def _(qkv, heads, real, less_v):
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3), _states(qkv, heads, 1)[:, :, 0]


@_fused_backward.register_fake
def _(grad, qkv, heads, real, state, less_v):
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs, output):
    qkv, ctx.heads, real, ctx.less_v = inputs
    ctx.save_for_backward(qkv, real, output[1])


def _backward(ctx, grad, _):
    qkv, real, state = ctx.saved_tensors
    return _fused_backward(grad, qkv, ctx.heads, real, state, ctx.less_v), None, None, None


_fused.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.ldn.linear_attention_fused)
def _flops(qkv, heads, *args, **kwargs) -> int:
    """Two of the products of a state and, for the normaliser, one of a row."""
    batch, tokens, width = qkv[0], qkv[1], qkv[2] // 3
    return 2 * batch * tokens * width * (2 * width // heads + 1)


@register_flop_formula(torch.ops.ldn.linear_attention_fused_backward)
def _backward_flops(grad, qkv, heads, *args, **kwargs) -> int:
    return 2 * _flops(qkv, heads)


def refusal(qkv: Tensor, heads: int) -> str | None:
    """Why this input cannot be fused, in a few words; None if it can."""
    if not qkv.is_cuda and not INTERPRETED:
        return f"on {qkv.device.type}, not on a GPU"
    if qkv.dtype not in DTYPES:
        return f"{qkv.dtype} is not float32, float16 or bfloat16"
    if qkv.dim() != 3 or qkv.shape[2] % (3 * heads):
        return f"{tuple(qkv.shape)} is not (B, N, 3 D) of {heads} heads"
    if qkv.shape[2] // (3 * heads) > WIDEST:
        return f"heads of width {qkv.shape[2] // (3 * heads)}, above {WIDEST}"
    return None


def linear_attention(qkv: Tensor, heads: int, real: Tensor | None, less_v: bool) -> Tensor:
    """A v, or (A - I) v with `less_v`: qkv (B, N, 3 D), real (B, N) bool or None -> (B, N, D).

    Where `real` is False, k and v are never read: v counts as 0, no one attends, and their gradients are 0. Where no
    token of a row is real, A v is 0.
    """
    if why := refusal(qkv, heads):
        raise ValueError(f"linear_attention cannot be fused here: {why}")
    if real is not None and (real.shape != qkv.shape[:2] or real.dtype != torch.bool):
        raise ValueError(f"linear_attention takes real {tuple(qkv.shape[:2])} bool, not {tuple(real.shape)}")
    return _fused(qkv, heads, real, less_v)[0]
