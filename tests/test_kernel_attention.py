"""The fused linear attention against its formula: in Triton's interpreter without a GPU, compiled on one.

A tolerance is a ratio: at most twice the error that plain PyTorch makes in the same dtype, against float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from benchmarks.instructions import Job, compiled
from ldn.attention import formula
from ldn.kernels import attention
from ldn.kernels.attention import linear_attention, refusal, split, tiles

CUDA = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]  # the interpreter truncates bfloat16
WALL = 64


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA, reason="needs a GPU")(test))


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """An interpreter's time goes by blocks: four times as large, there are still several."""
    if not CUDA:
        monkeypatch.setattr(
            attention, "tiles", lambda *given: tiles(*given) | {"block_n": 4 * tiles(*given)["block_n"]}
        )


@pytest.fixture
def walls(monkeypatch):
    """All that the launchers allocate: NaN until written, and NaN on both sides, where nothing may be written."""
    allocated, original = [], torch.Tensor.new_empty

    def new_empty(self, *shape, dtype=None, device=None):
        if device is not None:  # the interpreter's own
            return original(self, *shape, device=device)
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        whole = torch.full((shape.numel() + 2 * WALL,), torch.nan, dtype=dtype or self.dtype, device=self.device)
        allocated.append(whole)
        return whole[WALL : WALL + shape.numel()].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    yield allocated
    for whole in allocated:
        assert whole[:WALL].isnan().all() and whole[-WALL:].isnan().all()


def inputs(batch, tokens, heads, width, dtype, device, seed=0):
    """(qkv, gradient of the result)."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=generator)
    grad = torch.randn(batch, tokens, heads * width, generator=generator)
    return qkv.to(device, dtype), grad.to(device, dtype)


def lengths(batch, tokens, device):
    """Row 0 whole, then shorter and shorter; the last row with holes."""
    real = torch.arange(tokens) < torch.tensor([max(tokens - b * tokens // batch, 1) for b in range(batch)])[:, None]
    real[-1, 1::3] = False
    return real.to(device)


def results(function, qkv, heads, real, less_v, grad):
    """(out, gradients of q, k and v)."""
    qkv = qkv.detach().requires_grad_()
    out = function(qkv, heads, real, less_v)
    (g_qkv,) = torch.autograd.grad(out, qkv, grad)
    return out.detach(), *g_qkv.chunk(3, dim=-1)


def agree(given, wanted, plain, cancels):
    """Plain PyTorch may hit a result exactly: one rounding is granted, of 1 where values of about 1 cancel."""
    for name, here, exact, there in zip(("out", "q", "k", "v"), given, wanted, plain, strict=True):
        assert here.dtype == there.dtype and here.shape == there.shape
        error, allowed = (here - exact).abs().max(), 2 * (there - exact).abs().max()
        rounding = torch.finfo(here.dtype).eps / 2 * (1 if cancels else exact.abs().max())
        assert error <= allowed + rounding, f"{name}: {error:.2e}, plain {allowed / 2:.2e}"


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"),
    [
        (2, 1, 1, 16),
        (1, 2, 2, 24),
        (1, 63, 4, 32),
        (2, 500, 1, 33),
        (1, 1000, 2, 48),
        (1, 4097, 1, 64),
        (1, 300, 1, 128),
        (6, 130, 2, 1),
    ],
)
@pytest.mark.parametrize(("padded", "less_v"), [(False, False), (True, True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_errs_at_most_twice_as_the_formula(batch, tokens, heads, width, padded, less_v, dtype, device, walls):
    qkv, grad = inputs(batch, tokens, heads, width, dtype, device)
    real = lengths(batch, tokens, device) if padded else None
    given = results(linear_attention, qkv, heads, real, less_v, grad)
    wanted = results(formula, qkv.double(), heads, real, less_v, grad.double())
    agree(given, wanted, results(formula, qkv, heads, real, less_v, grad), cancels=tokens <= 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_real_is_never_read_from_k_and_v(dtype, device, walls):
    qkv, grad = inputs(3, 150, 2, 24, dtype, device)
    real = lengths(3, 150, device)
    k_and_v = torch.arange(qkv.shape[-1], device=device) >= qkv.shape[-1] // 3
    padding = ~real[..., None] & k_and_v
    clean = results(linear_attention, qkv.masked_fill(padding, 0), 2, real, True, grad)
    for value in (torch.nan, torch.inf):
        dirty = results(linear_attention, qkv.masked_fill(padding, value), 2, real, True, grad)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert all(g[~real].abs().max() == 0 for g in clean[2:])


@pytest.mark.parametrize("less_v", [False, True])
def test_a_row_without_a_real_token_is_0_and_changes_no_other(less_v, device, walls):
    qkv, grad = inputs(3, 70, 2, 16, torch.float32, device)
    real = lengths(3, 70, device)
    real[1] = False
    given = results(linear_attention, qkv, 2, real, less_v, grad)
    others = results(linear_attention, qkv[::2], 2, real[::2], less_v, grad[::2])
    for all_rows, two in zip(given, others, strict=True):
        assert all_rows[1].abs().max() == 0
        torch.testing.assert_close(all_rows[::2], two)


def test_a_nan_that_is_real_is_shown(device):
    for part in range(3):
        qkv, _ = inputs(2, 70, 1, 16, torch.float32, device)
        qkv[0, 3, 16 * part] = torch.nan
        out = linear_attention(qkv, 1, None, False)
        assert out[0, 3].isnan().any() and not out[1].isnan().any()


def strided(x, how):
    """The same values in another layout; what lies between and around them is NaN."""
    b, n, c = x.shape
    if how == "slice":
        whole = x.new_full((b + 2, n + 3, c + 10), torch.nan)
        view = whole[1:-1, 1:-2, 3:-7]
    elif how == "tokens first":
        view = x.new_full((n, b, c), torch.nan).transpose(0, 1)
    elif how == "columns first":
        view = x.new_full((b, c, n), torch.nan).transpose(1, 2)
    else:
        view = x.new_full((b, n, 2 * c), torch.nan)[..., ::2]
    view.copy_(x)
    return view


@pytest.mark.parametrize("how", ["slice", "tokens first", "columns first", "every other"])
def test_any_layout_gives_the_same_bits(how, device, walls):
    qkv, grad = inputs(2, 150, 2, 16, torch.float16, device)
    real = lengths(2, 150, device)
    wanted = results(linear_attention, qkv, 2, real, True, grad)
    there = real.new_zeros(150, 2).transpose(0, 1).copy_(real)
    given = results(linear_attention, strided(qkv, how), 2, there, True, strided(grad, how))
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 32), (1, 150, 32), (1, 150, 1)], ids=str)
def test_an_expanded_gradient_gives_the_same_bits(shape, device, walls):
    qkv, grad = inputs(2, 150, 2, 16, torch.float32, device)
    grad = grad[: shape[0], : shape[1], : shape[2]].expand(2, 150, 32)
    given = results(linear_attention, qkv, 2, None, True, grad)
    wanted = results(linear_attention, qkv, 2, None, True, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


def test_expanded_rows_and_a_summed_loss(device, walls):
    qkv, _ = inputs(1, 150, 2, 16, torch.float32, device)
    real = lengths(1, 150, device).expand(3, 150)
    gradients = []
    for function in (linear_attention, formula):
        leaf = qkv.clone().requires_grad_()
        function(leaf.expand(3, -1, -1), 2, real, True).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_no_sum_overflows_in_float16(device, walls):
    qkv, grad = inputs(1, 4000, 1, 16, torch.float16, device)
    qkv[..., 16:32] += 30  # the sum of phi(k) is 120 thousand
    qkv[..., 32:] *= 100
    given = results(linear_attention, qkv, 1, None, False, grad)
    wanted = results(formula, qkv.double(), 1, None, False, grad.double())
    for here, exact in zip(given, wanted, strict=True):
        assert (here - exact).abs().max() <= 0.01 * exact.abs().max()


def test_features_may_be_tiny_in_float16(device, walls):
    qkv, grad = inputs(1, 200, 1, 16, torch.float16, device)
    qkv[..., :16] -= 40  # phi(q) is 1e-17
    qkv[..., 16:32] -= 6
    given = results(linear_attention, qkv, 1, None, False, grad)
    q, k, v = qkv.double().chunk(3, dim=-1)
    score = q.exp() @ k.exp().mT
    wanted = (score / score.sum(dim=-1, keepdim=True)) @ v
    assert (given[0] - wanted).abs().max() <= 0.002 * wanted.abs().max()
    assert all(gradient.isfinite().all() for gradient in given[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_a_constant_nothing_is_left(dtype, device, walls):
    """The rows of A - I sum to 0, in any dtype."""
    qkv, _ = inputs(2, 200, 2, 32, dtype, device)
    qkv[..., 128:] = qkv[:, :1, 128:]
    assert linear_attention(qkv, 2, None, True).abs().max() < 2e-6


def test_a_sequence_repeated_has_the_same_result_and_gradients(device, walls):
    qkv, grad = inputs(1, 128, 2, 16, torch.float32, device)
    once = results(linear_attention, qkv, 2, None, True, grad)
    often = results(linear_attention, qkv.repeat(1, 9, 1), 2, None, True, grad.repeat(1, 9, 1))
    for a, b in zip(once, often, strict=True):
        torch.testing.assert_close(a.repeat(1, 9, 1), b)


@pytest.mark.parametrize("batch, tokens", [(0, 5), (2, 0)])
def test_an_empty_input_has_an_empty_result(batch, tokens, device):
    qkv, grad = inputs(batch, tokens, 2, 16, torch.float32, device)
    out, *gradients = results(linear_attention, qkv, 2, None, True, grad)
    assert out.shape == grad.shape and all(g.shape == grad.shape for g in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_input_gives_the_same_bits(dtype, device, walls):
    qkv, grad = inputs(1, 600, 1, 32, dtype, device)
    once, again = (results(linear_attention, qkv, 2, None, True, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_chunks_cover_the_tokens_and_their_states_are_small():
    for rows, tokens, width in itertools.product(
        [1, 4, 100, 4096], [1, 127, 128, 1000, 16384, 10**6], [1, 16, 33, 128]
    ):
        chunks, length = split(rows, tokens, width, 132)
        assert (chunks - 1) * length < tokens <= chunks * length and length % 128 == 0
        state, keys_and_values = 4 * width * (width + 1), 2 * 2 * width * tokens
        assert chunks == 1 or chunks * state <= keys_and_values / 8 * (1 + 1 / width)
        assert chunks == 1 or rows * chunks <= 4 * 132
    assert split(4, 16384, 64, 132)[0] == 32 and split(4096, 16384, 64, 132)[0] == 1


def test_it_allocates_its_results_and_small_states(device, walls):
    batch, tokens, heads, width = 1, 2048, 2, 16
    qkv, grad = inputs(batch, tokens, heads, width, torch.float32, device)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        leaf = qkv.requires_grad_()
        out = linear_attention(leaf, heads, None, True)
    out.backward(grad)
    assert [tuple(x.shape) for x in packed] == [tuple(qkv.shape), (batch, heads, width + 1, width)]
    states = batch * heads * split(batch * heads, tokens, width, 4)[0] * width * (width + 1)
    if not CUDA:  # there are more chunks there
        assert [x.numel() - 2 * WALL for x in walls] == [grad.numel(), states, qkv.numel(), states]


def test_a_counter_reads_what_it_reads_of_the_formula(device):
    qkv, grad = inputs(2, 40, 2, 16, torch.float32, device)
    counts = []
    for function in (linear_attention, formula):
        leaf = qkv.clone().requires_grad_()
        with FlopCounterMode(display=False) as forward:
            out = function(leaf, 2, None, True)
        with FlopCounterMode(display=False) as backward:
            out.backward(grad)
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1] and counts[0][0] == 2 * 2 * 40 * 32 * (16 + 16 + 1)


@pytest.mark.parametrize("padded", [False, True])
def test_the_operators_are_registered_as_torch_wants_them(padded, device):
    qkv, grad = inputs(2, 20, 2, 16, torch.float32, device)
    real = lengths(2, 20, device) if padded else None
    forward = torch.ops.ldn.linear_attention_fused.default
    torch.library.opcheck(forward, (qkv.requires_grad_(), 2, real, True))
    _, state = forward(qkv.detach(), 2, real, True)
    backward = torch.ops.ldn.linear_attention_fused_backward.default
    torch.library.opcheck(backward, (grad, qkv.detach(), 2, real, state, True))


def test_a_refusal_says_why(device):
    qkv, _ = inputs(1, 4, 2, 16, torch.float32, device)
    assert refusal(qkv, 2) is None
    assert "float64" in refusal(qkv.double(), 2)
    assert "5 heads" in refusal(qkv, 5)
    assert "144" in refusal(qkv.new_zeros(1, 4, 3 * 144), 1)
    with pytest.raises(ValueError, match="float64"):
        linear_attention(qkv.double(), 2, None, True)
    with pytest.raises(ValueError, match="real"):
        linear_attention(qkv, 2, torch.ones(1, 5, dtype=torch.bool, device=device), True)


@on_gpu
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_compiler_sees_through_it(dtype, dynamic, device):
    compiled_one = torch.compile(lambda *given: linear_attention(*given) * 2, fullgraph=True, dynamic=dynamic)
    for tokens in (200, 300):
        qkv, grad = inputs(2, tokens, 2, 32, dtype, device)
        real = lengths(2, tokens, device)
        given = results(compiled_one, qkv, 2, real, True, grad / 2)
        for here, there in zip(given, results(linear_attention, qkv, 2, real, True, grad), strict=True):
            torch.testing.assert_close(here, there * 2 if here is given[0] else there)


@on_gpu
def test_a_graph_of_it_can_be_captured_and_replayed(device):
    qkv, grad = inputs(2, 1000, 2, 32, torch.bfloat16, device)
    real = lengths(2, 1000, device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results(linear_attention, qkv, 2, real, True, grad)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = results(linear_attention, qkv, 2, real, True, grad)
    for seed in (1, 2):
        for here, new in zip((qkv, grad), inputs(2, 1000, 2, 32, torch.bfloat16, device, seed), strict=True):
            here.copy_(new)
        graph.replay()
        for a, b in zip(captured, results(linear_attention, qkv, 2, real, True, grad), strict=True):
            assert torch.equal(a, b)


@on_gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_offsets_beyond_two_to_the_31(batch, device):
    """One long row, or long rows before the last: a sequence repeated has the result and gradients of one."""
    times = 2**31 // (batch * 1024 * 384) + 2
    qkv, grad = inputs(1, 1024, 2, 64, torch.bfloat16, device)
    once = results(linear_attention, qkv, 2, None, True, grad)
    qkv, grad = (x.repeat(batch, times, 1) for x in (qkv, grad))
    assert qkv.numel() > 2**31
    for a, b in zip(once, results(linear_attention, qkv, 2, None, True, grad), strict=True):
        for row in (0, -1):
            for part in (b[row, :1024], b[row, -1024:]):
                torch.testing.assert_close(part.float(), a[0].float(), rtol=0.02, atol=0.02 * a.abs().max().item())


@on_gpu
def test_a_pass_needs_no_memory_but_its_results_and_small_states(device):
    qkv, grad = inputs(4, 16384, 4, 64, torch.bfloat16, device)
    results(linear_attention, qkv, 4, None, True, grad)
    leaf = qkv.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = linear_attention(leaf, 4, None, True)
    assert torch.cuda.max_memory_allocated() - before <= 1.35 * out.nbytes  # a state of 260 KB for each of some chunks
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out.backward(grad)
    assert torch.cuda.max_memory_allocated() - before <= 1.1 * qkv.nbytes


CUT = {"heads": "i32", "chunks": "i32", "length": "i32", "tokens": "i32"}
GRAD = {"grad_b": "i32:16", "grad_n": "i32:16", "grad_c": "constexpr"}
QKV = {"qkv_b": "i32:16", "qkv_n": "i32:16", "qkv_c": "constexpr"}
REAL = {"real_b": "i32", "real_n": "constexpr"}
KERNELS = {
    "sum_kernel": ["qkv", "real", "state"],
    "mix_kernel": ["qkv", "real", "state", "out"],
    "backward_q_kernel": ["grad", "qkv", "state", "g_qkv", "g_state"],
    "backward_kv_kernel": ["grad", "qkv", "real", "state", "g_state", "g_qkv"],
}


def job(kernel, dtype, width):
    """The kernel as it is launched on contiguous input with lengths."""
    kinds = {"real": "*i1", "state": "*fp32", "g_state": "*fp32"}
    half = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    signature = {name: kinds.get(name, half) + ":16" for name in KERNELS[kernel]}
    signature |= CUT | (GRAD if "grad" in signature else {}) | QKV | (REAL if "real" in signature else {})
    tile = tiles(width, dtype)
    options = {key: tile.pop(key) for key in ("num_warps", "num_stages") if key in tile}
    flags = {"lengths": True, "less_v": True} if "out" in signature or "g_state" in signature else {"lengths": True}
    flags = flags if "real" in signature else {}
    strides = {name: 1 for name, kind in signature.items() if kind == "constexpr"}
    signature |= dict.fromkeys([*flags, *tile], "constexpr")
    return Job(f"ldn.kernels.attention:{kernel}", signature, strides | flags | tile, **options)


@pytest.mark.slow
def test_compiled_for_an_h100_no_kernel_spills():
    cases = list(itertools.product(KERNELS, [torch.bfloat16, torch.float32], [32, 64, 128]))
    for case, kernel in zip(cases, compiled([job(*case) for case in cases]), strict=True):
        assert kernel.spills == 0, (case, kernel[:3])
        assert kernel.shared <= 227 * 1024, (case, kernel[:3])
        if case[1] == torch.bfloat16:
            assert "mma" in kernel.ptx, case
            assert "ld.global.v4" in kernel.ptx or "cp.async" in kernel.ptx, case
