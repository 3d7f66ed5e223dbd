"""Does diffusion keep its promises? Each property of the operator, for exactly the cases it is claimed for.

    x_i <- x_i + a_i sum_d w_d c_{i,i+d} (x_{i+d} - x_i)        0 <= a_i <= 1,  w_d >= 0,  sum_d w_d = 1,  0 <= c <= 1

All in float64, with parameters moved away from their initial values, so that no rate, stencil or conductance is
uniform by accident. Where a property is not claimed, a negative control shows that its test can fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from ldn import InputSpec, LDNConfig, PaperSequenceConfig, PaperVisionConfig, TargetSpec, diffuse, reference
from ldn.model import LDNLayer
from ldn.published import ConvHeat, DenseHeat
from ldn.reference import Offset
from ldn.stencil import traceable
from ldn.terms import DenseDiffusion, Diffusion, Kernel, TimeStep

N, D = 12, 3
GRID = (3, 4)
EPS = torch.finfo(torch.float64).eps
EXACT = {"rtol": 1e-12, "atol": 1e-12}

KERNELS, TIME_STEPS = get_args(Kernel), get_args(TimeStep)
STENCILS = tuple(kernel for kernel in KERNELS if kernel != "dense")
LARGEST_RATE = {"fixed": 1.0}  # the others are moved through (0, 1)
BOUNDED = tuple(time_step for time_step in TIME_STEPS if time_step != "raw")
SAME_FOR_ALL_TOKENS = tuple(time_step for time_step in TIME_STEPS if time_step != "token")

every_kernel = pytest.mark.parametrize(
    ("kernel", "grid"), [(kernel, "1d") for kernel in KERNELS] + [(kernel, "2d") for kernel in STENCILS]
)
every_stencil = pytest.mark.parametrize(("kernel", "grid"), [(k, g) for k in STENCILS for g in ("1d", "2d")])
every_time_step = pytest.mark.parametrize("time_step", TIME_STEPS)
every_bounded_time_step = pytest.mark.parametrize("time_step", BOUNDED)
symmetric_or_not = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Modules draw their initial values from torch's own generator."""
    torch.manual_seed(0)


def moved(module: nn.Module, spread: float = 1.0) -> nn.Module:
    """The module in float64, a seeded normal of that spread added to its parameters."""
    g = torch.Generator().manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return module.requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(kernel: str, time_step: str, grid: str = "1d", steps: int = 4, **changed: object) -> LDNConfig:
    """Layers of nothing but diffusion."""
    fields = {"width": D, "radius": 2, "local": False, "attention": "none", "ffn_ratio": 0, **changed}
    return LDNConfig(kernel=kernel, time_step=time_step, grid=grid, steps=steps, **fields)


def layer(
    kernel: str,
    time_step: str,
    grid: str = "1d",
    steps: int = 4,
    *,
    length: int = N,
    spread: float = 1.0,
    **changed: object,
) -> LDNLayer:
    """h (B, N, D), lengths -> (B, N, D): one layer of nothing but diffusion, its parameters moved."""
    cfg = config(kernel, time_step, grid, steps, **changed)
    return moved(LDNLayer(cfg, length, GRID if grid == "2d" else None), spread)


def matrices(diffusion: nn.Module, n: int = N, tokens: Tensor | None = None) -> Tensor:
    """The linear map that diffusion is, given the tokens it reads its coefficients from: (D, N, N)."""
    tokens = normal(1, n, D, seed=2) if tokens is None else tokens
    jacobian = torch.autograd.functional.jacobian(lambda h: diffusion(h, tokens, None), normal(1, n, D))
    jacobian = jacobian[0, :, :, 0]  # (N, D, N, D)
    within = torch.einsum("icjc->cij", jacobian)
    assert jacobian.count_nonzero() == within.count_nonzero(), "diffusion mixes no channels"
    return within


class Published(nn.Module):
    """h + update(h) of a term of the published code, with the signature of a diffusion term."""

    def __init__(self, term: nn.Module) -> None:
        super().__init__()
        self.term = term

    def forward(self, h: Tensor, u: Tensor, lengths: Tensor | None) -> Tensor:
        return h + self.term(h, lengths)


# a constant sequence is a fixed point; rows of L sum to zero


@every_time_step
@every_kernel
@symmetric_or_not
def test_a_constant_sequence_is_a_fixed_point(kernel: Kernel, time_step: TimeStep, grid: str, symmetric: bool) -> None:
    constant = normal(2, 1, D).expand(2, N, D)
    term = layer(kernel, time_step, grid, symmetric=symmetric).diffusion
    u = normal(2, N, D, seed=2)  # whatever the coefficients are read from
    torch.testing.assert_close(term(constant, u, None), constant, **EXACT)
    torch.testing.assert_close(layer(kernel, time_step, grid)(constant, None), constant, **EXACT)


@every_time_step
@every_kernel
@symmetric_or_not
def test_rows_of_l_sum_to_zero(kernel: Kernel, time_step: TimeStep, grid: str, symmetric: bool) -> None:
    step = matrices(layer(kernel, time_step, grid, steps=1, symmetric=symmetric).diffusion)
    l_matrix = step - torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(l_matrix.sum(-1), torch.zeros(D, N, dtype=torch.float64), **EXACT)
    if time_step != "raw":
        assert (l_matrix - torch.diag_embed(l_matrix.diagonal(dim1=1, dim2=2)) >= 0).all(), "no negative conductance"


def test_rows_of_l_sum_to_zero_in_paper_vision_too() -> None:
    step = matrices(Published(moved(DenseHeat(N))))
    l_matrix = step - torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(l_matrix.sum(-1), torch.zeros(D, N, dtype=torch.float64), **EXACT)


def test_paper_sequence_does_not_keep_a_constant_sequence() -> None:
    constant = normal(1, 1, D).expand(1, N, D)
    assert (Published(moved(ConvHeat(D)))(constant, constant, None) - constant).abs().max() > 0.1


# maximum principle over 1, 10, 1000 steps; 64 untrained layers stay within the input's range


def outside(x: Tensor, y: Tensor) -> float:
    """How far a channel of y (B, N, D) leaves the range it has in x."""
    over, under = y.amax(1) - x.amax(1), x.amin(1) - y.amin(1)
    return torch.maximum(over, under).max().item()


def extremes() -> Tensor:
    """(B, N, D) of nothing but -10 and 10: where a rate above 1 leaves the range in the first step."""
    return 10 * normal(2, N, D).sign()


WIDE = 4.0  # a spread of parameters that brings sigmoids and softmaxes close to 0 and 1


def rounding(steps: int, x: Tensor) -> float:
    """What `steps` convex combinations may err by: a few roundings each, at the size of x."""
    return 4 * steps * EPS * x.abs().max().item()


@pytest.mark.parametrize("steps", [1, 10, 1000])
@every_bounded_time_step
@every_kernel
def test_maximum_principle(kernel: Kernel, time_step: TimeStep, grid: str, steps: int) -> None:
    x = extremes()
    rate = LARGEST_RATE.get(time_step, 0.5)
    y = layer(kernel, time_step, grid, steps, spread=WIDE, symmetric=False, rate=rate)(x, None)
    assert outside(x, y) <= rounding(steps, x)


@pytest.mark.parametrize("params", ["untrained", "moved"])
@every_bounded_time_step
@every_kernel
def test_64_layers_stay_within_the_input_s_range(kernel: Kernel, time_step: TimeStep, grid: str, params: str) -> None:
    model = config(kernel, time_step, grid, depth=64).build(
        InputSpec(kind="pixels", length=N, channels=1, grid=GRID), TargetSpec(classes=2)
    )
    layers = model.backbone.layers.double() if params == "untrained" else moved(model.backbone.layers, WIDE)
    x = h = extremes()
    for one in layers:
        h = one(h, None)
        assert outside(x, h) <= rounding(64 * 4, x)


@pytest.mark.parametrize("coordinates", [1, 2])
def test_maximum_principle_of_causal_stencils(coordinates: int) -> None:
    grid, offsets = ((N,), [(-1,), (-3,)]) if coordinates == 1 else (GRID, [(-1, 0), (0, -1), (-1, -1)])
    x = normal(2, *grid, D)
    weights, rate = normal(len(offsets), D, seed=2).softmax(0), normal(D, seed=3).sigmoid()
    y = diffuse(x, offsets, weights, rate, 100)
    assert outside(x.flatten(1, -2), y.flatten(1, -2)) <= rounding(100, x)


@every_kernel
def test_the_maximum_principle_breaks_with_a_raw_rate_of_3(kernel: Kernel, grid: str) -> None:
    free = layer(kernel, "raw", grid, steps=1)
    free.diffusion.rate.rate.fill_(3.0)
    x = normal(2, N, D)
    assert outside(x, free(x, None)) > 0.1


def test_the_maximum_principle_breaks_in_paper_vision() -> None:
    """As it starts, on 64 tokens. (Of paper-sequence, which does not even keep a constant, it is clear.)"""
    published = Published(DenseHeat(64).double())
    x = normal(2, 64, D)
    assert outside(x, published(x, x, None)) > 0.1


@every_bounded_time_step
@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_no_finite_value_overflows(kernel: Kernel, time_step: TimeStep, grid: str, dtype: torch.dtype) -> None:
    """The difference of two values near the largest has no finite size, and their convex combinations have."""
    largest = 0.99 * torch.finfo(dtype).max
    x = (largest * normal(2, N, D).sign()).to(dtype)
    one = layer(kernel, time_step, grid, symmetric=False, rate=LARGEST_RATE.get(time_step, 0.5)).to(dtype)
    u = normal(2, N, D, seed=2).to(dtype)  # what coefficients are read from: not normalised here
    y = one.diffusion(x, u, None)
    assert y.isfinite().all() and y.abs().max() <= torch.finfo(dtype).max


def test_no_finite_value_overflows_along_one_edge() -> None:
    """The largest step: each token takes the value of the next; also as plain operations, and as the definition."""
    x = torch.tensor([3e38, -3e38, 3e38, -3e38])[None, :, None]
    wanted = torch.tensor([-3e38, 3e38, -3e38, -3e38])[None, :, None]
    given = [(1,)], torch.ones(1, 1), torch.ones(1)
    assert torch.equal(diffuse(x, *given, 1), wanted)
    assert torch.equal(reference.diffuse(x, *given, 1), wanted)
    assert torch.equal(traceable(x, *given[:2], torch.ones(1, 1, 1), [1], None), wanted)


def test_gradients_of_large_values_are_finite() -> None:
    x = (3e38 * normal(1, N, D).sign()).float().requires_grad_()
    weights, rate = torch.full((2, D), 0.5, requires_grad=True), torch.full((D,), 0.5, requires_grad=True)
    y = diffuse(x, [(1,), (-1,)], weights, rate, 2)
    gradients = torch.autograd.grad(y, [x, weights, rate], torch.full_like(y, 1e-3))
    assert all(gradient.isfinite().all() for gradient in gradients)


# the Dirichlet energy of the kernel's own Laplacian never rises


@pytest.mark.parametrize("lengths", [None, torch.tensor([N, 5])], ids=["full", "padded"])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("kernel", STENCILS)
def test_conductances_are_undirected(kernel: Kernel, dilation: int, lengths: Tensor | None) -> None:
    """c_{i,j} = c_{j,i}, learned or a wall, on which the energy and the mean depend."""
    term = layer(kernel, "channel").diffusion
    offsets = [(dilation * d,) for (d,) in term.offsets]
    c = term.conductances(normal(2, N, D), offsets, lengths)
    if c is None:
        assert kernel != "adaptive" and lengths is None
        return
    for e, (d,) in enumerate(offsets):
        opposite = offsets.index((-d,))
        for i, j in edges((d,), 1, (N,)):
            assert torch.equal(c[:, i, e], c[:, j, opposite])


def edges(offset: Offset, dilation: int, grid: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(i, j) for every edge i -> j = i + dilation * offset that lies within the grid, tokens counted row by row."""
    shape = (1, *grid)[-2:]
    dy, dx = (dilation * d for d in (0, *offset)[-2:])
    for y in range(shape[0]):
        for x in range(shape[1]):
            if 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]:
                yield y * shape[1] + x, (y + dy) * shape[1] + x + dx


def sub_steps(diffusion: Diffusion, u: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each sub-step, in turn: the matrix it multiplies by and the matrix of its own Dirichlet energy, (D, N, N).

    The energy x' E x is the sum over edges of w c (x_i - x_j)^2, written out edge by edge.
    """
    grid = diffusion.grid or (N,)
    weights = torch.full((len(diffusion.offsets), 1), 1 / len(diffusion.offsets), dtype=torch.float64)
    weights = (weights if diffusion.weights is None else diffusion.weights()).expand(-1, D)
    rate = diffusion.rate(u)
    a = rate.expand(1, N, D)[0]
    state = x = normal(1, N, D)
    for dilation in diffusion.dilations():
        offsets = [tuple(dilation * d for d in offset) for offset in diffusion.offsets]
        c = diffusion.conductances(u.view(1, *grid, D), offsets, None)
        laplacian = torch.zeros(D, N, N, dtype=torch.float64)  # of the step: x + a * (laplacian @ x)
        energy = torch.zeros(D, N, N, dtype=torch.float64)
        for e, offset in enumerate(diffusion.offsets):
            for i, j in edges(offset, dilation, grid):
                flow = weights[e] if c is None else weights[e] * c.view(N, -1)[i, e]
                laplacian[:, i, j] += flow
                laplacian[:, i, i] -= flow
                energy[:, i, i] += flow
                energy[:, j, j] += flow
                energy[:, i, j] -= flow
                energy[:, j, i] -= flow
        step = torch.eye(N, dtype=torch.float64) + a.T[:, :, None] * laplacian
        state = torch.einsum("cij,bjc->bic", step, state)
        yield step, energy
    torch.testing.assert_close(diffusion(x, u, None), state, **EXACT)  # the steps above are those of the layer


def steepest_rise(step: Tensor, energy: Tensor) -> float:
    """The most that the energy of any x of norm 1 rises in a step; not above 0 if it rises for none."""
    return torch.linalg.eigvalsh(step.mT @ energy @ step - energy).max().item()


@every_bounded_time_step
@every_stencil
def test_the_dirichlet_energy_never_rises(kernel: Kernel, time_step: TimeStep, grid: str) -> None:
    term = layer(kernel, time_step, grid, rate=LARGEST_RATE.get(time_step, 0.5)).diffusion
    taken = [steepest_rise(*sub_step) for sub_step in sub_steps(term, normal(1, N, D, seed=2))]
    assert len(taken) == 4
    assert max(taken) <= 1e-13


@every_stencil
def test_the_dirichlet_energy_may_rise_with_a_raw_rate_of_3(kernel: Kernel, grid: str) -> None:
    free = layer(kernel, "raw", grid, steps=1).diffusion
    free.rate.rate.fill_(3.0)
    assert max(steepest_rise(*sub_step) for sub_step in sub_steps(free, normal(1, N, D, seed=2))) > 0.1


def test_the_dirichlet_energy_may_rise_with_an_asymmetric_stencil() -> None:
    """A stencil that mostly copies from the second token to the right: the few that cannot stay behind."""
    lopsided = layer("stationary", "fixed", steps=1, rate=1.0, symmetric=False).diffusion
    weights = torch.tensor([0.1, 1e-9, 0.9, 1e-9], dtype=torch.float64)  # of offsets 1, -1, 2, -2
    lopsided.weights.logits.copy_(weights.log()[:, None])
    assert max(steepest_rise(*sub_step) for sub_step in sub_steps(lopsided, normal(1, N, D, seed=2))) > 0.05


def test_the_dirichlet_energy_may_rise_with_the_dense_kernel() -> None:
    """Its energy, as every kernel's, is the sum over i and j of K_ij (x_i - x_j)^2; its rows are made peaked here."""
    dense = layer("dense", "fixed", steps=1, rate=1.0).diffusion
    dense.logits.mul_(10)
    kernel = torch.softmax(dense.logits, dim=-1)
    energy = torch.diag(kernel.sum(0) + kernel.sum(1)) - kernel - kernel.mT
    assert steepest_rise(matrices(dense), energy) > 0.1


# the mean over tokens is kept; with token rates sum_i x_i / a_i


@pytest.mark.parametrize("time_step", SAME_FOR_ALL_TOKENS)
@every_stencil
def test_the_mean_over_tokens_is_kept(kernel: Kernel, time_step: TimeStep, grid: str) -> None:
    h = normal(2, N, D)
    torch.testing.assert_close(layer(kernel, time_step, grid)(h, None).mean(1), h.mean(1), **EXACT)


@every_stencil
def test_with_token_rates_the_sum_of_x_over_a_is_kept(kernel: Kernel, grid: str) -> None:
    h, u = normal(2, N, D), normal(2, N, D, seed=2)
    term = layer(kernel, "token", grid).diffusion
    a = term.rate(u)
    y = term(h, u, None)
    torch.testing.assert_close((y / a).sum(1), (h / a).sum(1), rtol=1e-12, atol=N * 8 * EPS / a.min().item())
    assert (y.mean(1) - h.mean(1)).abs().max() > 0.01, "and the mean itself is not"


@pytest.mark.parametrize("grid", ["1d", "2d"])
@pytest.mark.parametrize("kernel", ["stationary", "multiscale"])
def test_an_asymmetric_stencil_does_not_keep_the_mean(kernel: Kernel, grid: str) -> None:
    h = normal(2, N, D)
    assert (layer(kernel, "channel", grid, symmetric=False)(h, None).mean(1) - h.mean(1)).abs().max() > 0.01


def test_the_dense_kernel_does_not_keep_the_mean() -> None:
    h = normal(2, N, D)
    assert (layer("dense", "channel")(h, None).mean(1) - h.mean(1)).abs().max() > 0.01


# reversing the sequence commutes with the operator


def flipped(h: Tensor, grid: str, axes: list[int]) -> Tensor:
    if grid == "1d":
        return h.flip(1)
    return h.unflatten(1, GRID).flip(axes).flatten(1, 2)


@pytest.mark.parametrize(
    ("grid", "axes"),
    [("1d", [1]), ("2d", [1]), ("2d", [2]), ("2d", [1, 2])],
    ids=["1d", "2d top-bottom", "2d left-right", "2d both"],
)
@every_time_step
@pytest.mark.parametrize("kernel", STENCILS)
def test_reversing_the_sequence_commutes(kernel: Kernel, time_step: TimeStep, grid: str, axes: list[int]) -> None:
    h = normal(2, N, D)
    symmetric = layer(kernel, time_step, grid)
    there, back = symmetric(flipped(h, grid, axes), None), flipped(symmetric(h, None), grid, axes)
    torch.testing.assert_close(there, back, **EXACT)


@pytest.mark.parametrize("grid", ["1d", "2d"])
@pytest.mark.parametrize("kernel", ["stationary", "multiscale"])
def test_reversing_the_sequence_does_not_commute_with_an_asymmetric_stencil(kernel: Kernel, grid: str) -> None:
    h = normal(2, N, D)
    lopsided = layer(kernel, "channel", grid, symmetric=False)
    there, back = lopsided(flipped(h, grid, [1]), None), flipped(lopsided(h, None), grid, [1])
    assert (there - back).abs().max() > 0.01


# closed form in the DCT-II


def dct(n: int) -> Tensor:
    """Row k: cos(pi k (i + 1/2) / n), the k-th vector of the DCT-II."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return torch.cos(torch.pi * k * (i + 0.5) / n)


def assert_coefficients(got: Tensor, factor: Tensor, before: Tensor) -> None:
    """got = factor * before, to the rounding of the largest (an unbounded `raw` rate lets some of them grow)."""
    largest = max(1.0, factor.abs().max().item())
    torch.testing.assert_close(got, factor * before, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("time_step", SAME_FOR_ALL_TOKENS)
def test_closed_form_1d(time_step: TimeStep, steps: int) -> None:
    """S steps multiply the k-th DCT-II coefficient by (1 - a (1 - cos(pi k / N)))^S."""
    h = normal(2, N, D)
    one = layer("fixed", time_step, steps=steps)
    a = one.diffusion.rate(h)  # (1,) or (D,)
    k = torch.arange(N, dtype=torch.float64)[:, None]
    factor = (1 - a * (1 - torch.cos(torch.pi * k / N))) ** steps  # (N, D)
    assert_coefficients(dct(N) @ one(h, None), factor, dct(N) @ h)


@pytest.mark.parametrize("steps", [1, 2, 16])
@pytest.mark.parametrize("time_step", SAME_FOR_ALL_TOKENS)
def test_closed_form_2d(time_step: TimeStep, steps: int) -> None:
    """S steps multiply coefficient (k, l) by (1 - a (1 - (cos(pi k / H) + cos(pi l / W)) / 2))^S."""
    h = normal(2, N, D)
    one = layer("fixed", time_step, "2d", steps=steps)
    a = one.diffusion.rate(h)
    height, width = GRID
    k, m = torch.arange(height, dtype=torch.float64)[:, None, None], torch.arange(width, dtype=torch.float64)[:, None]
    factor = (1 - a * (1 - (torch.cos(torch.pi * k / height) + torch.cos(torch.pi * m / width)) / 2)) ** steps

    def coefficients(x: Tensor) -> Tensor:
        return torch.einsum("ki,lj,bijc->bklc", dct(height), dct(width), x.unflatten(1, GRID))

    assert_coefficients(coefficients(one(h, None)), factor, coefficients(h))


# padded positions change nothing at real ones; a padded batch equals its sequences run alone

LENGTHS = torch.tensor([N, 7, 1])


def mask(lengths: Tensor) -> Tensor:
    return (torch.arange(N) < lengths[:, None])[..., None]


@symmetric_or_not
@every_time_step
@pytest.mark.parametrize("kernel", STENCILS)
def test_padded_positions_change_nothing_at_real_ones(kernel: Kernel, time_step: TimeStep, symmetric: bool) -> None:
    one = layer(kernel, time_step, symmetric=symmetric)
    real = mask(LENGTHS)
    h = normal(3, N, D)
    garbage = torch.where(real, h, 1e6 * normal(3, N, D, seed=2))
    ours, theirs = one(h, LENGTHS), one(garbage, LENGTHS)
    assert torch.equal(torch.where(real, ours, 0), torch.where(real, theirs, 0))


@symmetric_or_not
@every_time_step
@pytest.mark.parametrize("kernel", STENCILS)
def test_a_padded_batch_equals_its_sequences_run_alone(kernel: Kernel, time_step: TimeStep, symmetric: bool) -> None:
    one = layer(kernel, time_step, symmetric=symmetric)
    h = normal(3, N, D)
    together = one(h, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(together[b : b + 1, :n], one(h[b : b + 1, :n], None), **EXACT)


def test_a_padded_batch_of_paper_sequence_equals_its_sequences_run_alone() -> None:
    spec = InputSpec(kind="pixels", length=N, channels=2, variable=True)
    model = moved(PaperSequenceConfig(width=D, depth=3).build(spec, TargetSpec(classes=2)))
    x = normal(3, N, 2)
    garbage = torch.where(mask(LENGTHS), x, 1e6 * normal(3, N, 2, seed=2))
    together = model(garbage, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(together[b : b + 1], model(x[b : b + 1, :n]), **EXACT)


@every_time_step
def test_padding_counts_where_it_is_not_declared(time_step: TimeStep) -> None:
    """The control: without lengths, the same garbage does reach the real positions."""
    one = layer("fixed", time_step)
    h = normal(3, N, D)
    garbage = torch.where(mask(LENGTHS), h, 1e6)
    assert not torch.equal(one(h, None)[1, :7], one(garbage, None)[1, :7])


@every_time_step
def test_the_dense_kernel_refuses_lengths(time_step: TimeStep) -> None:
    with pytest.raises(ValueError, match="fixed length of 12 tokens and takes no lengths"):
        layer("dense", time_step)(normal(3, N, D), LENGTHS)
    with pytest.raises(ValueError, match="fixed length"):
        layer("dense", time_step)(normal(3, N - 1, D), None)


@pytest.mark.parametrize("kernel", STENCILS)
def test_a_2d_grid_refuses_lengths(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="fixed length and takes no lengths"):
        layer(kernel, "channel", "2d")(normal(3, N, D), LENGTHS)


def test_paper_vision_refuses_lengths() -> None:
    spec = InputSpec(kind="pixels", length=N, channels=2)
    model = PaperVisionConfig(width=D, depth=1).build(spec, TargetSpec(classes=2)).double()
    with pytest.raises(ValueError, match="fixed length of 12 tokens and takes no lengths"):
        model(normal(3, N, 2), LENGTHS)


# S sub-steps in one call equal S calls of one step (gradcheck is in test_diffuse.py)


@pytest.mark.parametrize("conductance", [False, True], ids=["all edges open", "conductance"])
@pytest.mark.parametrize(
    ("grid", "offsets"),
    [((N,), [(1,), (-1,), (3,), (-3,)]), ((N,), [(-1,), (-2,)]), (GRID, [(0, 1), (0, -1), (1, 0), (-1, 0)])],
    ids=["1-D", "causal", "2-D"],
)
def test_s_sub_steps_in_one_call_equal_s_calls_of_one_step(
    grid: tuple[int, ...], offsets: list[Offset], conductance: bool
) -> None:
    c = normal(2, *grid, len(offsets), seed=4).sigmoid() if conductance else None
    coefficients = [normal(len(offsets), D, seed=2).softmax(0), normal(*grid, 1, seed=3).sigmoid()]
    coefficients += [c] if c is not None else []
    x = normal(2, *grid, D)
    inputs = [t.requires_grad_() for t in (x, *coefficients)]
    at_once = diffuse(x, offsets, *coefficients[:2], 8, c)
    in_turn = x
    for _ in range(8):
        in_turn = diffuse(in_turn, offsets, *coefficients[:2], 1, c)
    torch.testing.assert_close(at_once, in_turn, **EXACT)
    cotangent = normal(*x.shape, seed=5)
    gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (at_once, in_turn))
    for once, turns in zip(*gradients, strict=True):
        torch.testing.assert_close(once, turns, **EXACT)


# reach: with dilations cycling over log2 N sub-steps, every token reaches every token


@symmetric_or_not
@every_bounded_time_step
@pytest.mark.parametrize("n", [1, 2, 16, 21])
def test_reach_of_multiscale_in_log2_n_sub_steps(n: int, time_step: TimeStep, symmetric: bool) -> None:
    steps = max(1, math.ceil(math.log2(n)))
    term = layer("multiscale", time_step, steps=steps, length=n, radius=1, symmetric=symmetric).diffusion
    assert (matrices(term, n) > 0).all()


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (8, 2), (3, 5)])
def test_reach_of_multiscale_in_2d(grid: tuple[int, int]) -> None:
    """The dilations start over once they span the longer edge, so log2 H + log2 W sub-steps reach every token."""
    height, width = grid
    steps = math.ceil(math.log2(height)) + math.ceil(math.log2(width))
    one = moved(LDNLayer(config("multiscale", "channel", "2d", steps, radius=1), height * width, grid))
    assert (matrices(one.diffusion, height * width) > 0).all()


@pytest.mark.parametrize("kernel", ["fixed", "adaptive"])
def test_the_other_stencils_do_not_reach_as_far(kernel: Kernel) -> None:
    reached = matrices(layer(kernel, "channel", steps=4, length=16).diffusion, 16) != 0
    i = torch.arange(16)
    assert torch.equal(reached, ((i[:, None] - i).abs() <= 4).expand(D, 16, 16))


def test_the_dilations_start_over_once_they_span_the_sequence() -> None:
    """Past that, an edge would leave the sequence from everywhere and the sub-step would do nothing."""
    term = layer("multiscale", "channel", steps=16, length=16).diffusion
    assert term.dilations() == [1, 2, 4, 8] * 4


def test_a_dense_kernel_reaches_every_token_in_one_step() -> None:
    term = layer("dense", "channel", steps=1).diffusion
    assert isinstance(term, DenseDiffusion)
    assert (matrices(term) > 0).all()
