"""Is the operator what its definition says? `ldn.diffuse` against `ldn.reference.diffuse`, compiled too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldn import diffuse, reference
from ldn.reference import Offset
from ldn.stencil import traceable

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64, sums of a few dozen terms of size 1


class Stencil(NamedTuple):
    grid: tuple[int, ...]
    offsets: list[Offset]


STENCILS = {
    "radius 1": Stencil((7,), [(1,), (-1,)]),
    "radius 2": Stencil((7,), [(1,), (-1,), (2,), (-2,)]),
    "radius 4": Stencil((7,), [(d,) for d in (1, -1, 2, -2, 3, -3, 4, -4)]),
    "dilation 4": Stencil((7,), [(4,), (-4,)]),
    "causal": Stencil((7,), [(-1,), (-3,)]),
    "against the order": Stencil((7,), [(-2,), (1,), (2,), (-1,)]),
    "repeated, and onto itself": Stencil((7,), [(1,), (1,), (0,), (-1,)]),
    "larger than the grid": Stencil((7,), [(7,), (-9,), (6,), (-6,)]),
    "all edges leave the grid": Stencil((7,), [(7,), (-7,)]),
    "one token": Stencil((1,), [(1,), (-1,)]),
    "4 neighbours": Stencil((4, 5), [(0, 1), (0, -1), (1, 0), (-1, 0)]),
    "diagonals": Stencil((4, 5), [(1, -1), (-1, 1), (1, 2), (-2, 0)]),
    "2-D causal": Stencil((4, 5), [(-1, 0), (0, -1), (-1, 1)]),
    "2-D, larger than the grid": Stencil((4, 5), [(4, 0), (0, -5), (3, 4), (-1, 0)]),
    "one row": Stencil((1, 5), [(0, 1), (0, -1), (1, 0), (-1, 0)]),
}


class Case(NamedTuple):
    """What diffuse takes, without the number of steps."""

    x: Tensor
    offsets: list[Offset]
    weights: Tensor
    rate: Tensor
    conductance: Tensor | None

    def __call__(self, operator: Callable[..., Tensor], steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
        x, weights, rate = (t.to(dtype) for t in (self.x, self.weights, self.rate))
        conductance = None if self.conductance is None else self.conductance.to(dtype)
        return operator(x, self.offsets, weights, rate, steps, conductance)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.weights, self.rate, self.conductance) if t is not None]


def case(
    stencil: str = "radius 2",
    *,
    batch: int = 2,
    width: int = 3,
    shared_weights: bool = False,
    rate: Sequence[int] = (),
    conductance: bool = False,
    seed: int = 0,
) -> Case:
    """Seeded coefficients within the bounds of stability, float64, all asking for gradients."""
    grid, offsets = STENCILS[stencil]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *grid, width, generator=g, dtype=torch.float64)
    weights = torch.randn(len(offsets), 1 if shared_weights else width, generator=g, dtype=torch.float64).softmax(0)
    a = torch.rand(tuple(rate), generator=g, dtype=torch.float64)
    c = torch.rand(batch, *grid, len(offsets), generator=g, dtype=torch.float64) if conductance else None
    made = Case(x, offsets, weights, a, c)
    for tensor in made.tensors():
        tensor.requires_grad_()
    return made


def values_and_gradients(c: Case, operator: Callable[..., Tensor], steps: int) -> list[Tensor]:
    """The output and the gradients of x, weights, rate and conductance, for one fixed gradient of the output."""
    y = c(operator, steps)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    # where no edge lies within the grid, the reference never touches the coefficients
    return [y, *torch.autograd.grad(y, c.tensors(), cotangent, materialize_grads=True)]


def assert_equals_reference(c: Case, steps: int) -> None:
    ours = values_and_gradients(c, diffuse, steps)
    theirs = values_and_gradients(c, reference.diffuse, steps)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("stencil", STENCILS)
def test_values_and_gradients_equal_the_reference(stencil: str, steps: int, conductance: bool) -> None:
    grid = STENCILS[stencil].grid
    assert_equals_reference(case(stencil, rate=(*grid, 1), conductance=conductance), steps)


@pytest.mark.parametrize("shared_weights", [False, True], ids=["weights (E, D)", "weights (E, 1)"])
@pytest.mark.parametrize("stencil", ["radius 2", "causal", "4 neighbours"])
def test_weights_of_every_shape(stencil: str, shared_weights: bool) -> None:
    assert_equals_reference(case(stencil, rate=(3,), shared_weights=shared_weights, conductance=True), steps=2)


def broadcastable(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every shape that broadcasts to `shape`."""
    shapes: list[tuple[int, ...]] = [()]
    for n in reversed(shape):
        shapes += [(m, *s) for s in shapes if len(s) == len(shapes[-1]) for m in (1, n)]
    return shapes


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize("rate", broadcastable((2, 7, 3)), ids=str)
def test_rates_of_every_shape_1d(rate: tuple[int, ...], conductance: bool) -> None:
    assert_equals_reference(case("radius 1", rate=rate, conductance=conductance), steps=2)


@pytest.mark.parametrize("rate", broadcastable((2, 4, 5, 3)), ids=str)
def test_rates_of_every_shape_2d(rate: tuple[int, ...]) -> None:
    assert_equals_reference(case("diagonals", rate=rate, conductance=True), steps=1)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6),
    offsets=st.lists(st.integers(-7, 7), min_size=1, max_size=5),
    steps=st.integers(1, 2),
    conductance=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_list_of_offsets(n: int, offsets: list[int], steps: int, conductance: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    e = len(offsets)
    c = torch.rand(1, n, e, generator=g, dtype=torch.float64, requires_grad=True) if conductance else None
    x = torch.randn(1, n, 2, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(e, 2, generator=g, dtype=torch.float64, requires_grad=True)
    rate = torch.randn(n, 1, generator=g, dtype=torch.float64, requires_grad=True)
    assert_equals_reference(Case(x, [(d,) for d in offsets], weights, rate, c), steps)


NON_CONTIGUOUS = {
    "transposed": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "every second token": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "channels of a wider tensor": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "expanded over the batch": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("view", NON_CONTIGUOUS)
@pytest.mark.parametrize("stencil", ["radius 2", "4 neighbours"])
def test_x_need_not_be_contiguous(stencil: str, view: str) -> None:
    c = case(stencil, rate=(3,), conductance=True)
    strided = c._replace(x=NON_CONTIGUOUS[view](c.x.detach()).requires_grad_())
    assert not strided.x.is_contiguous()
    assert_equals_reference(strided, steps=2)


@pytest.mark.parametrize("stencil", ["radius 2", "4 neighbours"])
def test_coefficients_need_not_be_contiguous(stencil: str) -> None:
    c = case(stencil, rate=(*STENCILS[stencil].grid, 1), conductance=True)
    assert c.conductance is not None
    rate = c.rate.detach()[None].expand(2, *c.rate.shape)
    weights = c.weights.detach()[:, :1].expand_as(c.weights)
    conductance = c.conductance.detach().transpose(0, -1).contiguous().transpose(0, -1)
    strided = Case(c.x, c.offsets, *(t.requires_grad_() for t in (weights, rate, conductance)))
    assert not any(t.is_contiguous() for t in strided.tensors()[1:])
    assert_equals_reference(strided, steps=2)


@pytest.mark.parametrize("stencil", ["radius 2", "4 neighbours"])
def test_an_expanded_gradient_is_read_by_its_strides(stencil: str) -> None:
    c = case(stencil, rate=(3,), conductance=True)
    ours = torch.autograd.grad(c(diffuse, 2).sum(), c.tensors())
    theirs = torch.autograd.grad(c(reference.diffuse, 2).sum(), c.tensors())
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize("stencil", ["radius 1", "causal", "diagonals"])
def test_gradcheck(stencil: str, conductance: bool) -> None:
    c = case(stencil, batch=1, width=2, rate=(*STENCILS[stencil].grid, 1), conductance=conductance)

    def operator(x: Tensor, weights: Tensor, rate: Tensor, c_: Tensor | None = None) -> Tensor:
        return diffuse(x, c.offsets, weights, rate, 2, c_)

    assert torch.autograd.gradcheck(operator, c.tensors())


@pytest.mark.parametrize("needs", ["x", "weights", "rate", "conductance"])
def test_one_input_alone_may_need_a_gradient(needs: str) -> None:
    c = case(rate=(3,), conductance=True)
    alone = Case(*(t.detach() if isinstance(t, Tensor) else t for t in c))
    wanted = getattr(alone, needs).requires_grad_()
    (got,) = torch.autograd.grad(alone(diffuse, 2).sum(), [wanted])
    (expected,) = torch.autograd.grad(alone(reference.diffuse, 2).sum(), [wanted])
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize("stencil", ["radius 2", "4 neighbours"])
def test_opcheck(stencil: str, conductance: bool) -> None:
    c = case(stencil, rate=(*(1 for _ in STENCILS[stencil].grid), 1, 3), conductance=conductance)
    flat = [d for offset in c.offsets for d in offset]
    torch.library.opcheck(torch.ops.ldn.diffuse.default, (c.x, flat, c.weights, c.rate, 2, c.conductance, [1, 1]))
    x, weights, rate, conductances = (None if t is None else t.detach() for t in (*c[:1], *c[2:]))
    asked = (True, conductances is not None)
    arguments = (torch.ones_like(x), x, flat, weights, rate, conductances, [1, 1], *asked)
    torch.library.opcheck(torch.ops.ldn.diffuse_backward.default, arguments)


@pytest.mark.parametrize(
    ("stencil", "backend"),
    [
        ("radius 2", "aot_eager"),
        ("4 neighbours", "aot_eager"),
        pytest.param("radius 1", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(stencil: str, backend: str) -> None:
    torch._dynamo.reset()
    c = case(stencil, rate=(3,), conductance=True)
    compiled = torch.compile(diffuse, fullgraph=True, backend=backend)
    eager, ours = values_and_gradients(c, diffuse, 2), values_and_gradients(c, compiled, 2)
    for got, wanted in zip(ours, eager, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize("stencil", ["radius 1", "radius 4", "4 neighbours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_at_most_twice_that_of_the_reference_in_the_same_dtype(
    dtype: torch.dtype, stencil: str, conductance: bool
) -> None:
    """Root mean square over the values, and over each gradient, against float64 on the same rounded inputs."""
    # rates of x's own shape: many independent entries of every gradient, so that the mean is no accident
    c = case(stencil, batch=8, width=16, rate=(8, *STENCILS[stencil].grid, 16), conductance=conductance)
    rounded = Case(*(t.detach().to(dtype).double().requires_grad_() if isinstance(t, Tensor) else t for t in c))

    def run(operator: Callable[..., Tensor], in_dtype: torch.dtype) -> list[Tensor]:
        y = rounded(operator, 3, in_dtype)
        return [y, *torch.autograd.grad(y.double().square().sum(), rounded.tensors())]

    exact, plain, ours = run(reference.diffuse, torch.float64), run(reference.diffuse, dtype), run(diffuse, dtype)
    for true, theirs, mine in zip(exact, plain, ours, strict=True):
        assert mine.isfinite().all()
        assert (mine - true).square().mean() <= 4 * (theirs - true).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_have_the_dtypes_of_their_inputs(dtype: torch.dtype) -> None:
    c = case(rate=(3,), conductance=True)
    x = c.x.detach().to(dtype).requires_grad_()
    y = diffuse(x, c.offsets, c.weights, c.rate, 2, c.conductance)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert all(t.grad.dtype == torch.float64 for t in (c.weights, c.rate, c.conductance))


@pytest.mark.parametrize("steps", [1, 3])
def test_one_sided_offsets_are_causal(steps: int) -> None:
    c = case("causal", batch=1, width=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: diffuse(x, c.offsets, c.weights, c.rate, steps), c.x)
    later = jacobian[0, :, 0, 0, :, 0].triu(1)
    assert torch.equal(later, torch.zeros_like(later))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "traceable"])
@pytest.mark.parametrize("stencil", ["radius 2", "causal", "4 neighbours"])
def test_a_cycle_of_dilations_is_one_step_after_another(stencil: str, compiled: bool) -> None:
    """With 5 sub-steps over 3 dilations, the last of which leaves the grid from everywhere but its ends."""
    torch._dynamo.reset()
    c = case(stencil, rate=(3,))
    call = torch.compile(diffuse, fullgraph=True, backend="aot_eager") if compiled else diffuse

    def at_once(x: Tensor, offsets: list[Offset], weights: Tensor, rate: Tensor, steps: int, _: None) -> Tensor:
        return call(x, offsets, weights, rate, steps, dilations=[1, 2, 3])

    def in_turn(x: Tensor, offsets: list[Offset], weights: Tensor, rate: Tensor, steps: int, _: None) -> Tensor:
        for dilation in [1, 2, 3, 1, 2]:
            dilated = [tuple(dilation * d for d in offset) for offset in offsets]
            x = reference.diffuse(x, dilated, weights, rate, 1)
        return x

    for got, wanted in zip(values_and_gradients(c, at_once, 5), values_and_gradients(c, in_turn, 5), strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("stencil", STENCILS)
def test_what_a_compiler_is_given_equals_the_reference(stencil: str) -> None:
    c = case(stencil, rate=(*STENCILS[stencil].grid, 1), conductance=True)

    def operator(x: Tensor, offsets: list[Offset], weights: Tensor, rate: Tensor, steps: int, e: Tensor) -> Tensor:
        return traceable(x, offsets, weights, rate[None], [1] * steps, e)

    ours, theirs = values_and_gradients(c, operator, 2), values_and_gradients(c, reference.diffuse, 2)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_a_conductance_of_zero_is_a_wall() -> None:
    """Two sequences packed into one with a wall between them diffuse as each alone."""
    c = case("radius 1", rate=(3,))
    open_edges = torch.ones(2, 7, 2, dtype=torch.float64)
    open_edges[:, 3, 0] = open_edges[:, 4, 1] = 0  # between tokens 3 and 4
    packed = diffuse(c.x, c.offsets, c.weights, c.rate, 5, open_edges)
    alone = [diffuse(part, c.offsets, c.weights, c.rate, 5) for part in (c.x[:, :4], c.x[:, 4:])]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **EXACT)


def test_zero_steps_and_zero_offsets_return_x() -> None:
    c = case()
    assert c(diffuse, 0) is c.x
    assert diffuse(c.x, [], torch.zeros(0, 3, dtype=torch.float64), c.rate, 2) is c.x


def test_x_is_not_written_to() -> None:
    c = case("all edges leave the grid")
    before = c.x.detach().clone()
    y = c(diffuse, 1)
    assert y.data_ptr() != c.x.data_ptr()
    assert torch.equal(c.x, before) and torch.equal(y, before)


X = torch.zeros(2, 7, 3)
IMAGE = torch.zeros(2, 4, 5, 3)
WEIGHTS = torch.zeros(2, 3)
RATE = torch.zeros(1)
PAIR = [(1,), (-1,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], PAIR, WEIGHTS, RATE, 1), r"x \(B, N, D\) or \(B, H, W, D\)"),
        ((IMAGE[None], PAIR, WEIGHTS, RATE, 1), r"x \(B, N, D\) or \(B, H, W, D\)"),
        ((X, [(1, 0), (-1, 0)], WEIGHTS, RATE, 1), "offsets of 1 coordinates"),
        ((IMAGE, PAIR, WEIGHTS, RATE, 1), "offsets of 2 coordinates"),
        ((X, PAIR, WEIGHTS[:1], RATE, 1), r"weights \(2, 3 or 1\), not \(1, 3\)"),
        ((X, PAIR, WEIGHTS[:, :2], RATE, 1), r"weights \(2, 3 or 1\), not \(2, 2\)"),
        ((X, PAIR, WEIGHTS[0], RATE, 1), r"weights \(2, 3 or 1\), not \(3,\)"),
        ((X, PAIR, WEIGHTS, torch.zeros(7), 1), r"rate that broadcasts to x \(2, 7, 3\), not \(7,\)"),
        ((X, PAIR, WEIGHTS, torch.zeros(4, 7, 3), 1), r"rate that broadcasts to x \(2, 7, 3\), not \(4, 7, 3\)"),
        ((X, PAIR, WEIGHTS, torch.zeros(1, 2, 7, 3), 1), r"rate that broadcasts to x"),
        ((X, PAIR, WEIGHTS, RATE, -1), "at least 0 steps, not -1"),
        ((X, PAIR, WEIGHTS, RATE, 1, torch.zeros(2, 7)), r"conductance \(2, 7, 2\), not \(2, 7\)"),
        ((X, PAIR, WEIGHTS, RATE, 1, torch.zeros(1, 7, 2)), r"conductance \(2, 7, 2\), not \(1, 7, 2\)"),
        ((IMAGE, [(0, 1)], WEIGHTS[:1], RATE, 1, torch.zeros(2, 20, 1)), r"conductance \(2, 4, 5, 1\)"),
        ((X, PAIR, WEIGHTS, RATE, 2, None, []), r"dilations of at least 1, and at least one of them, not \[\]"),
        ((X, PAIR, WEIGHTS, RATE, 2, None, [1, 0]), r"dilations of at least 1, .* not \[1, 0\]"),
        ((X, PAIR, WEIGHTS, RATE, 2, torch.ones(2, 7, 2), [1, 2]), "one dilation with a conductance"),
    ],
)
def test_wrong_shapes_raise_one_clear_sentence(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffuse(*arguments)
