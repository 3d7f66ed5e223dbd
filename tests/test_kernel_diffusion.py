"""The fused diffusion against its definition: in Triton's interpreter without a GPU, compiled on one.

A tolerance is a ratio: at most twice the error of the plain operator in the same dtype, against float64; or four
roundings of the result, which a sum over tokens makes in one order as well as in another.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from benchmarks.instructions import compiled, launches
from ldn import kernels, ops
from ldn.kernels.diffusion import MULTIPROCESSORS, _chunk
from ldn.kernels.plan import MOST_REGISTERS, enough, pairs, plan
from ldn.reference import Offset

CUDA = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]  # the interpreter truncates bfloat16
BOTH: list[Offset] = [(1,), (-1,)]
CROSS: list[Offset] = [(0, 1), (0, -1), (1, 0), (-1, 0)]
FAR: list[Offset] = [(d,) for d in (1, -1, 2, -2, 3, -3)]


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA, reason="needs a GPU")(test))


def slow(value):
    """A parameter that only `make test-slow` tests."""
    return pytest.param(value, marks=pytest.mark.slow)


class Case(NamedTuple):
    """What is diffused; `rate` is its shape, with 0 where it is to be the size of x there."""

    grid: tuple[int, ...] = (20,)
    offsets: list[Offset] = BOTH
    dilations: tuple[int, ...] = (1,)
    width: int = 5
    batch: int = 2
    rate: tuple[int, ...] = (0,)
    shared_weights: bool = False
    conducting: bool = False

    def tensors(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        """x in `dtype`; weights, rate and conductance in float32, as they are while training."""
        g = torch.Generator().manual_seed(0)
        shape = (self.batch, *self.grid, self.width)
        sizes = [m or n for m, n in zip(self.rate, shape[len(shape) - len(self.rate) :], strict=True)]
        made = [torch.randn(shape, generator=g).to(dtype)]
        made.append(torch.randn(len(self.offsets), 1 if self.shared_weights else self.width, generator=g).softmax(0))
        made.append(torch.rand(sizes, generator=g))
        if self.conducting:
            c = torch.rand(*shape[:-1], len(self.offsets), generator=g)
            made.append(c * (torch.rand(c.shape, generator=g) > 0.2))  # some of them walls
        return [tensor.to(device).requires_grad_() for tensor in made]


CASES = {
    "one token": Case((1,)),
    "two tokens": Case((2,), dilations=(1, 1)),
    "63 tokens": Case((63,), dilations=(1, 1)),
    "two steps at 1 and 2": Case((70,), dilations=(1, 2), width=33, batch=1),
    "8 steps": Case((50,), dilations=(1,) * 8, batch=1),
    "multiscale": Case((40,), dilations=(1, 2, 4, 8, 16), batch=1),
    "dilation 16": Case((40,), dilations=(16,), batch=1),
    "radius 3": Case((20,), FAR, (1, 1), batch=1),
    "radius 3, dilation 4": Case((24,), FAR, (4,), batch=1),
    "causal": Case((20,), [(-1,), (-3,)], (1, 1), batch=1),
    "against the order, repeated, onto itself": Case((20,), [(-2,), (1,), (1,), (0,), (-1,)], (1,), batch=1),
    "larger than the grid": Case((7,), [(7,), (-9,), (6,), (-6,)], (1, 1)),
    "wider than a block": Case((20,), dilations=(1, 1), width=300, batch=1),
    "weights of all channels": Case(shared_weights=True, rate=(1,), dilations=(1, 1)),
    "rates of sequences": Case(rate=(0, 1, 0), dilations=(1, 1)),
    "rates of tokens": Case(rate=(0, 0, 1), dilations=(1, 1)),
    "rates of tokens, the same for all sequences": Case(rate=(0, 1), dilations=(1, 1)),
    "rates of everything": Case(rate=(0, 0, 0), dilations=(1, 2), batch=1),
    "walls": Case(conducting=True, dilations=(1, 1), batch=1),
    "walls and rates of tokens": Case(conducting=True, rate=(0, 0, 1), dilations=(2, 2), batch=1),
    "walls, causal": Case(offsets=[(-1,), (-2,)], conducting=True, rate=(0, 0, 0), dilations=(1, 1), batch=1),
    "4 neighbours": Case((9, 6), CROSS, (1, 1), batch=1),
    "a grid of one tile": Case((4, 4), CROSS, (1,) * 3),
    "one row": Case((1, 11), CROSS, (1, 1)),
    "diagonals": Case((5, 9), [(1, -1), (-1, 1), (1, 2), (-2, 0)], (1,)),
    "one column, of which every other row": Case((11, 1), CROSS, (2,)),
    "one column, rates of tokens": Case((9, 1), CROSS, (2,), rate=(0, 0, 0, 1), batch=1),
    "multiscale on a grid": Case((5, 6), CROSS, (1, 2, 4), batch=1),
    "4 neighbours, walls and rates of tokens": Case((3, 4), CROSS, (1, 1), rate=(0, 0, 0, 1), conducting=True, batch=1),
}
COSTLY = ["8 steps", "multiscale on a grid", "diagonals", "4 neighbours, walls and rates of tokens"]  # interpreted


def cotangent(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)


def fused(case: Case, tensors: list[Tensor]) -> Tensor:
    x, weights, rate, *conductance = tensors
    return kernels.diffuse(x, case.offsets, weights, rate, case.dilations, *conductance)


def plain(case: Case, tensors: list[Tensor]) -> Tensor:
    x, weights, rate, *rest = tensors
    conductance = rest[0] if rest else None
    if conductance is not None and set(case.dilations) != {1}:  # which takes no dilations beside a conductance
        offsets = [tuple(case.dilations[0] * d for d in offset) for offset in case.offsets]
        return ops.diffuse(x, offsets, weights, rate, len(case.dilations), conductance, fused=False)
    steps = len(case.dilations)
    return ops.diffuse(x, case.offsets, weights, rate, steps, conductance, case.dilations, fused=False)


def values_and_gradients(operator, case: Case, tensors: list[Tensor]) -> list[Tensor]:
    y = operator(case, tensors)
    return [y, *torch.autograd.grad(y, tensors, cotangent(y))]


def assert_as_good_as_plain(case: Case, device: str, dtype: torch.dtype) -> None:
    tensors = case.tensors(device, dtype)
    ours, theirs = (values_and_gradients(operator, case, tensors) for operator in (fused, plain))
    exact = values_and_gradients(plain, case, [t.detach().double().requires_grad_() for t in tensors])
    for name, one, other, true in zip(("y", "x", "weights", "rate", "conductance"), ours, theirs, exact):  # noqa: B905
        assert one.dtype == other.dtype and one.shape == other.shape
        error, allowed = ((t.double() - true).abs().max() / true.abs().max().clamp(min=1e-9) for t in (one, other))
        floor = 4 * torch.finfo(one.dtype).eps
        assert error <= max(2 * allowed, floor), f"{name}: {error:.1e}, plain {allowed:.1e}"


@pytest.mark.parametrize("name", [slow(name) if name in COSTLY else name for name in CASES])
def test_values_and_gradients(name: str, device: str) -> None:
    assert_as_good_as_plain(CASES[name], device, torch.float32)


@pytest.mark.parametrize("name", ["two tokens", "rates of tokens", "walls and rates of tokens"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(name: str, dtype: torch.dtype, device: str) -> None:
    assert_as_good_as_plain(CASES[name], device, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [500, 1000])  # 4097 takes the interpreter minutes
def test_lengths_of_many_tiles(tokens: int, device: str) -> None:
    assert_as_good_as_plain(Case((tokens,), dilations=(1,), batch=1), device, torch.float32)


@on_gpu
@pytest.mark.parametrize("width", [1, 24, 128, 513])
@pytest.mark.parametrize("tokens", [1, 2, 63, 500, 1000, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(tokens: int, width: int, dtype: torch.dtype, device: str) -> None:
    assert_as_good_as_plain(Case((tokens,), dilations=(1, 2), width=width, batch=3), device, dtype)


@pytest.fixture
def walls(monkeypatch):
    """All that a launch allocates is NaN until written, and NaN on both sides, where nothing may be written."""
    allocated, original = [], torch.empty

    def empty(shape, *, dtype, device):
        size, wall = torch.Size(shape).numel(), 64
        whole = torch.full((size + 2 * wall,), torch.nan, dtype=dtype, device=device)
        allocated.append((whole[:wall], whole[-wall:]))
        return whole[wall:-wall].view(shape)

    monkeypatch.setattr("ldn.kernels.diffusion.torch.empty", empty)
    yield allocated
    monkeypatch.setattr("ldn.kernels.diffusion.torch.empty", original)
    assert all(side.isnan().all() for sides in allocated for side in sides)


@pytest.mark.parametrize("name", ["two steps at 1 and 2", "walls and rates of tokens", slow("diagonals")])
def test_every_result_is_written_and_nothing_else(name: str, device: str, walls: list) -> None:
    case = CASES[name]
    for result in values_and_gradients(fused, case, case.tensors(device, torch.float32)):
        assert result.isfinite().all()
    assert walls


@pytest.mark.slow
def test_strided_and_expanded_inputs_and_gradients(device: str) -> None:
    case = Case((11,), dilations=(1, 2), width=6)
    x, weights, rate = (tensor.detach() for tensor in case.tensors(device, torch.float32))
    rows = torch.stack([x, x], dim=2).flatten(1, 2)[:, ::2]  # every other token of twice as many
    columns = torch.stack([x, x], dim=-1).flatten(2)[..., ::2]  # channels apart from one another
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    for given in (rows, columns, turned):
        assert not given.is_contiguous()
        tensors = [given.requires_grad_(), weights.requires_grad_(), rate.requires_grad_()]
        for of_sum in (False, True):  # the gradient of a sum is expanded: all its strides are 0
            results = []
            for operator in (fused, plain):
                y = operator(case, tensors)
                loss = y.sum() if of_sum else (y * cotangent(y)).sum()
                results.append([y, *torch.autograd.grad(loss, tensors)])
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    one_for_all = x[:1].expand(3, -1, -1)
    torch.testing.assert_close(fused(case, [one_for_all, weights, rate]), plain(case, [one_for_all, weights, rate]))


def test_strided_coefficients(device: str) -> None:
    case = Case((11,), dilations=(1, 2), width=6, rate=(0, 0, 0), batch=1)
    x, weights, rate = (tensor.detach() for tensor in case.tensors(device, torch.float32))
    apart = [torch.stack([t, t.flip(-1)], dim=-1).flatten(-2)[..., ::2].requires_grad_() for t in (weights, rate)]
    assert not any(tensor.is_contiguous() for tensor in apart)
    results = [
        values_and_gradients(fused, case, [x.requires_grad_(), *given])
        for given in (apart, case.tensors(device, torch.float32)[1:])
    ]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_same_input_gives_the_same_bits(device: str) -> None:
    case = CASES["walls and rates of tokens"]
    tensors = case.tensors(device, torch.float16)
    for one, other in zip(*(values_and_gradients(fused, case, tensors) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


def test_only_what_is_learned_gets_a_gradient(device: str) -> None:
    case = CASES["two tokens"]
    x, weights, rate = case.tensors(device, torch.float32)
    fused(case, [x, weights.detach(), rate.detach()]).sum().backward()
    alone = x.grad
    x.grad = None
    fused(case, [x, weights, rate]).sum().backward()
    assert torch.equal(alone, x.grad) and weights.grad is not None and rate.grad is not None


def test_walls_without_a_gradient_change_no_other(device: str) -> None:
    case = CASES["walls and rates of tokens"]
    *learned, walls = case.tensors(device, torch.float32)
    alone = torch.autograd.grad(fused(case, [*learned, walls.detach()]).sum(), learned)
    beside = torch.autograd.grad(fused(case, [*learned, walls]).sum(), [*learned, walls])
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=False))


@pytest.mark.parametrize("name", ["two tokens", slow("walls and rates of tokens")])
def test_opcheck(name: str, device: str) -> None:
    case = CASES[name]
    x, weights, rate, *rest = case.tensors(device, torch.float32)
    flat = [d for offset in case.offsets for d in offset]
    rate = rate.detach().view((1,) * (x.dim() - rate.dim()) + rate.shape).requires_grad_()
    given = (x, flat, weights, rate, rest[0] if rest else None, list(case.dilations))
    torch.library.opcheck(torch.ops.ldn.diffuse_fused.default, given)
    given = [tensor.detach() if isinstance(tensor, Tensor) else tensor for tensor in given]
    for asked in ((False, False), (True, bool(rest))):  # learning, conducting
        torch.library.opcheck(torch.ops.ldn.diffuse_fused_backward.default, (cotangent(x), *given, *asked))


@pytest.mark.parametrize("operator", [fused, plain])
def test_no_counter_reads_zero(operator, device: str) -> None:
    case = Case((8,), dilations=(1, 2), width=4, batch=1)
    with FlopCounterMode(display=False) as counted:
        values_and_gradients(operator, case, case.tensors(device, torch.float32))
    step = 2 * 3 * 8 * 4  # multiply-adds of two edges and the token itself, in operations
    assert counted.get_total_flops() == 2 * step + 3 * 2 * step


@pytest.mark.parametrize(
    "case",
    [Case((200,), [(150,), (-1,)]), Case((6,), [(0,)]), Case((0,)), Case((6,), BOTH, (1, 1))],
    ids=["reaches 150 tokens", "moves nothing", "no tokens", "float64"],
)
def test_what_kernels_cannot_do_the_plain_operator_does(case: Case, device: str) -> None:
    dtype = torch.float64 if case.dilations == (1, 1) else torch.float32
    tensors = case.tensors(device, dtype)
    ours, theirs = (values_and_gradients(operator, case, tensors) for operator in (fused, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# The properties of diffusion (Linear Diffusion Networks, arXiv 2502.12381, made exact), of the kernels too.


def bounded(case: Case, device: str) -> list[Tensor]:
    """Symmetric weights of sum 1 and one rate, which all properties below allow."""
    x, _, _ = (tensor.detach() for tensor in case.tensors(device, torch.float32))
    pairs = torch.rand(len(case.offsets) // 2, case.width, generator=torch.Generator().manual_seed(2))
    weights = (pairs / pairs.sum(0) / 2).repeat_interleave(2, dim=0)
    return [x, weights.to(device), torch.full((1,), 0.9, device=device)]


PROPERTIES = Case((40,), [(1,), (-1,), (2,), (-2,)], (1,) * 3, width=4, batch=1)


def test_a_constant_sequence_is_a_fixed_point_exactly(device: str) -> None:
    x, weights, rate = bounded(PROPERTIES, device)
    x = torch.full_like(x, 1 / 3)
    assert torch.equal(fused(PROPERTIES, [x, weights, rate]), x)


@pytest.mark.parametrize("rate", [(), (1, 0, 1)], ids=["one rate", "rates of tokens"])
def test_no_finite_value_overflows(rate: tuple[int, ...], device: str) -> None:
    """Values near the largest, whose differences float32 cannot hold."""
    case = Case((9,), dilations=(1, 1), width=2, batch=1, rate=rate)
    x, *coefficients = case.tensors(device, torch.float32)
    tensors = [(3e38 * x.detach().sign()).requires_grad_(), *coefficients]
    y = fused(case, tensors)
    torch.testing.assert_close(y, plain(case, tensors), rtol=1e-5, atol=1e32)
    assert y.isfinite().all() and y.abs().max() <= 3.01e38
    gradients = torch.autograd.grad(y, tensors, torch.full_like(y, 1e-3))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_maximum_principle_mean_and_energy(device: str) -> None:
    x, weights, rate = bounded(PROPERTIES, device)
    y = fused(PROPERTIES, [x, weights, rate])
    assert y.max() <= x.max() and y.min() >= x.min()
    torch.testing.assert_close(y.mean(1), x.mean(1), rtol=0, atol=1e-6)

    def energy(of: Tensor) -> Tensor:
        return sum((w * (of[:, d:] - of[:, :-d]) ** 2).sum() for d, w in ((1, weights[0]), (2, weights[2])))

    assert energy(y) < energy(x)


def test_reversing_the_sequence_commutes(device: str) -> None:
    x, weights, rate = bounded(PROPERTIES, device)
    there, back = fused(PROPERTIES, [x.flip(1), weights, rate]), fused(PROPERTIES, [x, weights, rate]).flip(1)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-6)


def test_closed_form(device: str) -> None:
    """S steps of the heat stencil multiply the k-th cosine by (1 - a (1 - cos(pi k / N)))^S."""
    n, k, steps, rate = 40, 3, 4, 0.5
    case = Case((n,), BOTH, (1,) * steps, width=1, batch=1)
    angle = torch.tensor(torch.pi * k / n, dtype=torch.float64)
    wave = torch.cos(angle * (torch.arange(n, dtype=torch.float64) + 0.5))[None, :, None]
    given = [wave.float(), torch.full((2, 1), 0.5), torch.full((1,), rate)]
    y = fused(case, [tensor.to(device) for tensor in given])
    expected = wave * (1 - rate * (1 - torch.cos(angle))) ** steps
    torch.testing.assert_close(y.double().cpu(), expected, rtol=0, atol=1e-6)


def test_steps_at_once_equal_steps_in_turn(device: str) -> None:
    x, weights, rate = bounded(PROPERTIES, device)
    in_turn = x
    for _ in PROPERTIES.dilations:
        in_turn = fused(PROPERTIES._replace(dilations=(1,)), [in_turn, weights, rate])
    torch.testing.assert_close(fused(PROPERTIES, [x, weights, rate]), in_turn, rtol=0, atol=1e-6)


def test_walls_part_packed_sequences(device: str) -> None:
    """Three sequences and an empty one in one row, a padded rest: each is as if alone, and padding stays as it is."""
    case = Case((32,), BOTH, (1, 1), width=3, batch=1, conducting=True)
    x, weights, rate, _ = (tensor.detach() for tensor in case.tensors(device, torch.float32))
    starts = [0, 7, 8, 8, 20]  # tokens from 20 on are padding
    owner = torch.bucketize(torch.arange(32), torch.tensor(starts[1:]), right=True)
    ends = torch.arange(32)[:, None] + torch.tensor([1, -1])
    inside = (ends >= 0) & (ends < 32)
    same = owner[ends.clamp(0, 31)] == owner[:, None]
    open_ = (inside & same & (torch.arange(32) < 20)[:, None]).float()[None].to(device)
    packed = fused(case, [x, weights, rate, open_])
    assert torch.equal(packed[:, 20:], x[:, 20:])
    for start, end in itertools.pairwise(starts):
        if end > start:
            alone = fused(case._replace(grid=(end - start,)), [x[:, start:end], weights, rate])
            torch.testing.assert_close(packed[:, start:end], alone, rtol=0, atol=1e-6)


# How S steps become passes.


@pytest.mark.parametrize("steps", range(1, 17))
def test_up_to_16_steps_are_one_read_and_one_write(steps: int) -> None:
    forward = plan(((1,), (-1,)), (1,) * steps, (4096,), 0, False)
    assert forward is not None
    assert [len(part.dilations) for part in forward.passes] == [steps], forward.reason


def test_multiscale_passes_run_along_every_so_manyth_token() -> None:
    dilations = tuple(2**s for s in range(12))
    forward = plan(((1,), (-1,)), dilations, (4096,), 0, False)
    assert forward is not None and len(forward.passes) == 3, forward.reason
    assert [d * part.stride for part in forward.passes for d in part.dilations] == list(dilations)
    assert f"{len(dilations)} steps in 3 passes" in forward.reason


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("numbers", [0, 3])
@pytest.mark.parametrize("grid", [(1,), (30,), (5000,), (3, 4), (32, 32)])
def test_a_plan_keeps_to_its_registers(grid: tuple[int, ...], numbers: int, backward: bool) -> None:
    offsets = tuple(BOTH if len(grid) == 1 else CROSS)
    found = plan(offsets, (1, 2, 4, 1), grid, numbers, backward)
    assert found is not None
    assert all(part.registers <= MOST_REGISTERS for part in found.passes)
    steps = [d * part.stride for part in found.passes for d in part.dilations]
    assert steps == [1, 2, 4, 1]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dilations", [(1,), (1,) * 8, (1, 2, 4, 8), (3, 6), (16,)])
def test_all_plans_of_long_sequences_are_alike(dilations: tuple[int, ...], backward: bool) -> None:
    least = enough(((1,), (-1,)), dilations)
    plans = [plan(((1,), (-1,)), dilations, (n,), 0, backward) for n in (least, least + 1, 2 * least, 10**6)]
    assert plans[0] is not None and len({one and one.reason for one in plans}) == 1


@pytest.mark.parametrize("warps", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("stride", [1, 32768])
def test_programs_own_no_more_rows_than_there_are_and_are_as_many_as_run_at_once(stride: int, warps: int) -> None:
    """Rows times the stride stay below 2^31 then, however large the batch."""
    planned = plan(((1,), (-1,)), (stride,), (65536,), 0, False)
    assert planned is not None
    part, rows = planned.passes[0], 65536 // stride
    chunk = _chunk(part, rows, warps)
    programs = -(-rows // chunk) * warps
    at_once = MULTIPROCESSORS * part.warps_at_once
    assert 1 <= chunk <= rows and (programs <= 4 * at_once or chunk == rows)


def test_pairs() -> None:
    listed = [(pair.offset, pair.ahead, pair.back) for pair in pairs(((-2,), (1,), (1,), (0,), (-1,)))]
    assert listed == [((2, 0), -1, 0), ((1, 0), 1, 4), ((1, 0), 2, -1)]


COMPILED = {
    "1 step": Case((4096,), width=512),
    "2 steps, multiscale": Case((4096,), dilations=(1, 2), width=512),
    "4 steps": Case((4096,), dilations=(1,) * 4, width=512),
    "8 steps": Case((4096,), dilations=(1,) * 8, width=512),
    "adaptive": Case((4096,), dilations=(1, 1), width=128, rate=(0, 0, 1), conducting=True),
    "adaptive, wide": Case((4096,), dilations=(1, 1), width=512, rate=(0, 0, 1), conducting=True),
    "4 neighbours": Case((32, 32), CROSS, (1,), width=192),
}


@pytest.mark.slow
def test_compiled_for_hopper_nothing_is_spilled() -> None:
    """And none takes more than 200 registers, of which 10 warps are at once on a multiprocessor."""
    names, jobs = [], []
    for name in ("2 steps, multiscale", "8 steps", "adaptive, wide", "4 neighbours"):
        case = COMPILED[name]
        x, weights, rate, *rest = (t.to("meta") for t in case._replace(batch=1).tensors("cpu", torch.bfloat16))
        for part, job in launches(x, case.offsets, weights, rate, case.dilations, *rest):
            names.append((name, part))
            jobs.append(job)
    for (name, part), found in zip(names, compiled(jobs), strict=True):
        assert found.spills == 0 and found.registers <= 200, (name, part)


# On a GPU only.


@on_gpu
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile(name: str, device: str) -> None:
    case = COMPILED[name]._replace(batch=2)
    tensors = case.tensors(device, torch.bfloat16)
    call = torch.compile(lambda *given: fused(case, list(given)) * 2, fullgraph=True)
    y = call(*tensors)
    torch.testing.assert_close(y, fused(case, tensors) * 2)
    for one, other in zip(
        torch.autograd.grad(y.float().square().sum(), tensors),
        torch.autograd.grad((fused(case, tensors) * 2).float().square().sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@on_gpu
def test_cuda_graph(device: str) -> None:
    case = COMPILED["2 steps, multiscale"]
    tensors = [tensor.detach() for tensor in case.tensors(device, torch.bfloat16)]
    fused(case, tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fused(case, tensors)
    tensors[0].normal_()
    graph.replay()
    assert torch.equal(y, fused(case, tensors))


@on_gpu
def test_beyond_two_to_the_31_elements(device: str) -> None:
    case = Case((4096,), dilations=(1, 2), width=512, batch=1)
    x, weights, rate = (tensor.detach() for tensor in case.tensors(device, torch.bfloat16))
    batch = 2**31 // x.numel() + 2
    big = torch.zeros(batch, *x.shape[1:], dtype=x.dtype, device=device)
    big[-1] = x[0]
    y = fused(case, [big, weights, rate])
    assert torch.equal(y[-1], fused(case, [x, weights, rate])[0]) and not y[:-1].any()


@on_gpu
@pytest.mark.parametrize(("steps", "width"), [(3, 64), (3, 200), (8, 64)])  # compiling takes most of it
def test_many_steps(steps: int, width: int, device: str) -> None:
    dilations = tuple(2 ** (s % 10) for s in range(steps))
    assert_as_good_as_plain(Case((1000,), dilations=dilations, width=width), device, torch.bfloat16)
