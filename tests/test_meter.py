"""Does the meter count what a model costs? Closed forms, published figures and a second counter for every axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig, vit_b, vit_s, vit_ti
from ldn import InputSpec, LDNConfig, PaperSequenceConfig, PaperVisionConfig, TargetSpec
from ldn.classifier import Classifier, ModelConfig, Stem
from studies.meter import UNTRACED, Cost, UncountedOperation, exact_gmac, example, measure, parameters
from studies.zoo import MODELS

IMAGENET = InputSpec(kind="image", length=224 * 224, channels=3, grid=(224, 224))
CIFAR = InputSpec(kind="image", length=32 * 32, channels=3, grid=(32, 32))
IMAGE = InputSpec(kind="image", length=16 * 24, channels=2, grid=(16, 24))  # 4 x 6 patches of 4
TOKENS = InputSpec(kind="tokens", length=24, vocabulary=7)
VARIABLE = InputSpec(kind="tokens", length=24, vocabulary=7, variable=True)
PIXELS = InputSpec(kind="pixels", length=24, channels=3)
FIVE = TargetSpec(classes=5)


def cost(config: ModelConfig, spec: InputSpec = TOKENS, target: TargetSpec = FIVE) -> Cost:
    return measure(config.build(spec, target), spec)


def macs(config: ModelConfig, spec: InputSpec = TOKENS, target: TargetSpec = FIVE) -> int:
    """Exact: a count of this size in 10^9 loses nothing as a float."""
    return round(cost(config, spec, target).gmac * 1e9)


# closed forms, written down from the definition of each model: multiply-adds of products, biases aside


def around(config: Any, spec: InputSpec, target: TargetSpec = FIVE, patch: int | None = None) -> tuple[int, int]:
    """(tokens N, multiply-adds of stem and head): embedding is a look-up, pixels and patches are a linear map."""
    d = config.width
    if spec.kind == "image":
        p = patch or config.patch
        n = spec.length // p**2
        return n, n * spec.channels * p * p * d + d * target.classes
    return spec.length, (spec.length * spec.channels * d if spec.kind == "pixels" else 0) + d * target.classes


def ldn_macs(c: LDNConfig, spec: InputSpec) -> int:
    n, outside = around(c, spec)
    d = c.width
    attention = {
        "none": 0,
        "linear": 4 * d * d + 2 * d * d // c.heads + d,  # maps, the state written and read, the normaliser
        "softmax": 4 * d * d + 2 * n * d,
    }[c.attention.replace("diffusion", "linear")]
    token = attention + 2 * d * d * c.local + 2 * c.ffn_ratio * d * d
    edges = 2 * (2 if c.grid == "2d" else 1) * (c.radius if c.kernel in ("stationary", "multiscale") else 1)
    sub_step = n * d if c.kernel == "dense" else (edges + 1) * d
    token += c.steps * sub_step
    if c.steps:
        token += d * (c.time_step == "token") + 16 * d * (c.kernel == "adaptive")
    return c.depth * n * token + outside


AXES: dict[str, tuple[dict[str, Any], InputSpec]] = {
    "preset": ({}, TOKENS),
    "preset on pixels": ({}, PIXELS),
    "preset on an image": ({}, IMAGE),
    "preset on sequences of any length": ({}, VARIABLE),
    **{f"steps {s}": ({"steps": s}, TOKENS) for s in (0, 1, 3, 8, 16)},
    **{f"kernel {k}": ({"kernel": k}, TOKENS) for k in ("fixed", "stationary", "dense", "adaptive")},
    **{f"kernel {k} in 2-D": ({"kernel": k, "grid": "2d"}, IMAGE) for k in ("fixed", "multiscale", "adaptive")},
    "kernel dense on an image": ({"kernel": "dense"}, IMAGE),
    "radius 3": ({"radius": 3}, TOKENS),
    "stationary, radius 2, asymmetric": ({"kernel": "stationary", "radius": 2, "symmetric": False}, TOKENS),
    "radius 2 in 2-D": ({"radius": 2, "grid": "2d"}, IMAGE),
    **{f"time step {t}": ({"time_step": t}, TOKENS) for t in ("fixed", "learned", "token", "raw")},
    "adaptive, token, 4 steps": ({"kernel": "adaptive", "time_step": "token", "steps": 4}, TOKENS),
    "dense, token": ({"kernel": "dense", "time_step": "token"}, TOKENS),
    **{f"attention {a}": ({"attention": a}, TOKENS) for a in ("none", "linear", "softmax")},
    **{f"{h} heads": ({"heads": h}, TOKENS) for h in (1, 2, 8)},
    "no local": ({"local": False}, TOKENS),
    **{f"ffn ratio {r}": ({"ffn_ratio": r}, TOKENS) for r in (0, 1, 4)},
    "diffusion alone": ({"local": False, "attention": "none", "ffn_ratio": 0}, TOKENS),
    "nothing": ({"local": False, "attention": "none", "ffn_ratio": 0, "steps": 0}, TOKENS),
    "post-norm": ({"norm": "post"}, TOKENS),
    "dropout": ({"dropout": 0.3}, TOKENS),
    **{f"positions {p}": ({"positions": p}, TOKENS) for p in ("learned", "sinusoidal", "none")},
    "patch 2": ({"patch": 2}, IMAGE),
}


@pytest.mark.parametrize("axis", AXES)
def test_ldn_costs_what_its_terms_add_up_to(axis: str) -> None:
    changed, spec = AXES[axis]
    config = LDNConfig(**{"width": 16, "depth": 3, **changed})
    assert macs(config, spec) == ldn_macs(config, spec)


@pytest.mark.parametrize(("heads", "steps", "radius"), [(4, 2, 1), (1, 0, 1), (8, 8, 3)])
def test_a_layer_of_ldn_costs_10_d_squared_and_what_heads_and_sub_steps_add(
    heads: int, steps: int, radius: int
) -> None:
    layer = [LDNConfig(depth=depth, heads=heads, steps=steps, radius=radius) for depth in (2, 1)]
    per_token = (macs(layer[0]) - macs(layer[1])) / TOKENS.length
    assert per_token == pytest.approx(10 * 128**2 + 2 * 128**2 / heads + steps * (2 * radius + 1) * 128, rel=0.01)


def transformer_macs(c: TransformerConfig | ViTConfig, spec: InputSpec, target: TargetSpec = FIVE) -> int:
    n, outside = around(c, spec, target)
    n += c.pool == "cls"
    return c.depth * n * ((4 + 2 * c.ffn_ratio) * c.width**2 + 2 * n * c.width) + outside


def rnn_macs(c: RNNConfig, spec: InputSpec) -> int:
    n, outside = around(c, spec)
    hidden = c.width // 2 if c.bidirectional else c.width
    gates = {"lstm": 4, "gru": 3}[c.cell]
    return c.depth * n * (1 + c.bidirectional) * gates * hidden * (c.width + hidden) + outside


def vision_macs(c: PaperVisionConfig, spec: InputSpec) -> int:
    n, outside = around(c, spec)
    return c.depth * n * (9 * c.width**2 + 3 * n * c.width + c.width) + outside


def sequence_macs(c: PaperSequenceConfig, spec: InputSpec) -> int:
    n, outside = around(c, spec)
    convolutions = 3 * 3 * c.width  # of width 3: the kernel and the mixer's two
    return c.depth * n * (7 * c.width**2 + 2 * c.width**2 + c.width + convolutions) + outside


def linear_macs(c: LinearConfig, spec: InputSpec) -> int:
    return spec.length * (spec.vocabulary or spec.channels) * FIVE.classes


OTHERS: dict[str, tuple[Any, Callable[[Any, InputSpec], int], InputSpec]] = {
    "transformer": (TransformerConfig(width=16, depth=3), transformer_macs, TOKENS),
    "transformer, cls": (TransformerConfig(width=16, depth=2, ffn_ratio=2, pool="cls"), transformer_macs, IMAGE),
    "transformer on lengths": (TransformerConfig(width=8, depth=1, dropout=0.1), transformer_macs, VARIABLE),
    "vit": (ViTConfig(width=12, depth=2, patch=4), transformer_macs, IMAGE),
    "vit, mean": (ViTConfig(width=12, depth=1, patch=8, pool="mean"), transformer_macs, IMAGE),
    **{
        f"{cell}, {depth} layers, {1 + both} directions": (
            RNNConfig(cell=cell, bidirectional=both, width=12, depth=depth),
            rnn_macs,
            TOKENS,
        )
        for cell in ("lstm", "gru")
        for both in (True, False)
        for depth in (1, 3)
    },
    "rnn on patches": (RNNConfig(width=6), rnn_macs, IMAGE),
    "paper-vision": (PaperVisionConfig(width=16, depth=2), vision_macs, IMAGE),
    "paper-vision on pixels": (PaperVisionConfig(width=8, depth=1), vision_macs, PIXELS),
    "paper-sequence": (PaperSequenceConfig(width=16, depth=2), sequence_macs, TOKENS),
    "paper-sequence on patches": (PaperSequenceConfig(width=16, depth=1), sequence_macs, IMAGE),
    "linear on tokens": (LinearConfig(), linear_macs, TOKENS),
    "linear on pixels": (LinearConfig(), linear_macs, PIXELS),
    "linear on an image": (LinearConfig(), linear_macs, IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("model", OTHERS)
def test_a_model_costs_what_its_closed_form_says(model: str) -> None:
    config, closed_form, spec = OTHERS[model]
    assert macs(config, spec) == closed_form(config, spec)


def test_every_model_of_the_zoo_has_a_closed_form_here() -> None:
    assert {LDNConfig, *(type(config) for config, _, _ in OTHERS.values())} == set(MODELS)


# published figures


@pytest.mark.parametrize(
    ("config", "params", "gmac"),
    [(vit_ti(), 5_717_416, 1.26), (vit_s(), 22_050_664, 4.61), (vit_b(), 86_567_656, 17.58)],
    ids=["Ti", "S", "B"],
)
def test_deit_costs_what_is_published(config: ViTConfig, params: int, gmac: float) -> None:
    thousand = TargetSpec(classes=1000)
    found = cost(config, IMAGENET, thousand)
    assert found.params == params
    assert found.gmac == pytest.approx(gmac, rel=0.01)
    assert round(found.gmac * 1e9) == transformer_macs(config, IMAGENET, thousand)


def test_the_published_ldn_models_cost_what_their_layers_add_up_to() -> None:
    d, n = 192, 64
    assert macs(PaperVisionConfig(), CIFAR) == pytest.approx(6 * n * (9 * d**2 + 3 * n * d), rel=0.01)
    assert macs(PaperSequenceConfig(), CIFAR) == pytest.approx(6 * n * 9 * d**2, rel=0.02)  # 10 D of 9 D^2


# a second counter, where it is right: linear maps, convolutions and matrix products, counted as two operations each

BESIDE: dict[str, tuple[ModelConfig, InputSpec]] = {
    **{
        axis: (LDNConfig(**{"width": 16, "depth": 2, **changed}), spec)
        for axis, (changed, spec) in AXES.items()
        if axis in ("preset", "preset on an image", "kernel dense", "attention softmax", "attention none")
        or axis in ("adaptive, token, 4 steps", "radius 2 in 2-D", "dense, token", "8 heads")
    },
    **{name: (config, spec) for name, (config, _, spec) in OTHERS.items() if not isinstance(config, RNNConfig)},
}


def second_count(network: nn.Module, x: Tensor) -> float:
    # the plain implementation of attention is made of matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(x)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("model", BESIDE)
def test_a_second_counter_finds_the_same(model: str) -> None:
    config, spec = BESIDE[model]
    network = config.build(spec, FIVE)
    assert measure(network, spec).gmac * 1e9 == pytest.approx(second_count(network, example(spec)), rel=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_second_counter_finds_the_same_recurrence(cell: Any) -> None:
    """In float64, where it runs as matrix products: the fused one of float32 that counter does not see."""
    network = RNNConfig(cell=cell, width=12).build(TOKENS, FIVE).double()
    assert measure(network, TOKENS).gmac * 1e9 == pytest.approx(second_count(network, example(TOKENS)), rel=1e-9)


# operations of users' models


class Plain(nn.Module):
    """One linear map, and whatever `operation` does to its output."""

    def __init__(self, operation: Callable[[Tensor], Tensor], part: nn.Module | None = None) -> None:
        super().__init__()
        self.map, self.operation, self.part = nn.Linear(3, 8), operation, part

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.map(x))


def added(operation: Callable[[Tensor], Tensor], part: nn.Module | None = None) -> Cost:
    """The cost of what is done to a tensor (1, 24, 8)."""
    found = measure(Plain(operation, part), PIXELS)
    by_operation = dict(found.by_operation)
    linear = by_operation.pop("linear") * 1e9 - 24 * 3 * 8
    counts = {name: n * 1e9 for name, n in by_operation.items()} | ({"linear": linear} if linear else {})
    return Cost(found.params, found.gmac * 1e9 - 24 * 3 * 8, found.elementwise_g * 1e9, counts, found.uncounted)


def second_count_of(operation: Callable[[Tensor], Tensor]) -> float:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        operation(torch.zeros(1, 24, 8))
    return counter.get_total_flops() / 2


ORDINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "negation": lambda h: -h,
    "reversed operands": lambda h: 1 - h + 1 / h,
    "powers": lambda h: h**2 + h.sqrt() + h.rsqrt() + h.square(),
    "exp, log": lambda h: h.exp() + h.log() + h.abs(),
    "activations": lambda h: functional.silu(h) + h.tanh() + h.relu() + functional.glu(h).repeat(1, 1, 2),
    "more of them": lambda h: functional.mish(h) + functional.hardswish(h) + functional.leaky_relu(h),
    "selections": lambda h: torch.where(h > 0, h, 0).masked_fill(h < 0, 1.0).clamp(0, 1),
    "moves": lambda h: functional.pad(h, (1, 1)).flip(1).roll(1, 1)[:, ::2],
    "scans": lambda h: h.cumsum(1) + h.cumprod(1),
    "pools": lambda h: functional.max_pool1d(h, 2) + functional.avg_pool1d(h, 2),
    "norms": lambda h: functional.rms_norm(h, (8,)) + functional.group_norm(h.mT, 2).mT + functional.instance_norm(h),
    "normalised": lambda h: functional.normalize(h) + functional.log_softmax(h, -1),
    "reductions": lambda h: h.max(1)[0] + h.amin(1) + h.var(1) + h.logsumexp(1) + h.argmax(1),
    "order": lambda h: h.sort(1)[0][:, :2] + h.topk(2, 1)[0],
    "look-ups": lambda h: h.gather(1, torch.zeros(1, 2, 8, dtype=torch.long)) + h.index_select(1, torch.tensor([0, 1])),
    "scattered": lambda h: h.scatter_add(1, torch.zeros(1, 2, 8, dtype=torch.long), h),
    "in place": lambda h: h.mul_(2).add_(1),
    "assigned": lambda h: torch.zeros_like(h).index_put_((h > 0,), torch.tensor(1.0)),
    "dropout": lambda h: functional.dropout(h, 0.5, training=False),
    "interpolated": lambda h: functional.interpolate(h, scale_factor=2, mode="linear"),
    "complex": lambda h: torch.view_as_complex(h.view(1, 24, 4, 2)).abs(),
    "masks": lambda h: torch.tril(torch.ones(24, 24)).bool() & (h @ h.mT > 0),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_operations_have_a_count(case: str) -> None:
    found = added(ORDINARY[case])
    assert found.uncounted == []
    assert found.gmac == pytest.approx(24 * 24 * 8 if case == "masks" else 0)
    assert found.elementwise_g > 0 or case in ("moves", "look-ups", "dropout")


PRODUCTS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "one matrix for all heads": (lambda h: torch.ones(24, 24) @ h.view(1, 24, 2, 4).transpose(1, 2), 24 * 24 * 8),
    "matrix by vector": (lambda h: h @ torch.ones(8), 24 * 8),
    "vector by matrix": (lambda h: torch.ones(24) @ h, 24 * 8),
    "vector by vector": (lambda h: h[0, 0] @ h[0, 0], 8),
    "linear map to a number": (lambda h: functional.linear(h, torch.ones(8)), 24 * 8),
    "linear map of a vector": (lambda h: functional.linear(h[0, 0], torch.ones(5, 8)), 40),
    "addmm": (lambda h: torch.addmm(torch.ones(5), h[0], torch.ones(8, 5)), 24 * 40),
    "baddbmm": (lambda h: torch.baddbmm(h, torch.ones(1, 24, 6), torch.ones(1, 6, 8)), 24 * 48),
    "addbmm": (lambda h: torch.addbmm(torch.ones(8, 8), h.view(3, 8, 8), h.view(3, 8, 8)), 3 * 8**3),
    "addmv": (lambda h: torch.addmv(torch.ones(24), h[0], torch.ones(8)), 24 * 8),
    "outer": (lambda h: torch.outer(h[0, 0], h[0, 0]), 64),
    "tensordot": (lambda h: torch.tensordot(h, torch.ones(24, 8, 5), dims=([1, 2], [0, 1])), 24 * 8 * 5),
    "einsum without a contraction": (lambda h: torch.einsum("bnd,d->bnd", h, torch.ones(8)), 24 * 8),
    "einsum over all": (lambda h: torch.einsum("bnd,bnd->", h, h), 24 * 8),
    "einsum that sums one operand first": (lambda h: torch.einsum("bnd,ef->bnf", h, torch.ones(4, 5)), 24 * 5),
    "einsum with dots": (lambda h: torch.einsum("...d,de->...e", h, torch.ones(8, 5)), 24 * 40),
    "einsum that broadcasts": (
        lambda h: torch.einsum("...nd,...md->...nm", h[None], torch.ones(7, 1, 5, 8)), 7 * 24 * 40),
    "einsum with no result given": (lambda h: torch.einsum("ij,jk", h[0], torch.ones(8, 5)), 24 * 40),
    "einsum of a diagonal": (lambda h: torch.einsum("ii,ij->ij", torch.ones(24, 24), h[0]), 24 * 8),
    "einsum of three": (lambda h: torch.einsum("nd,de,ef->nf", h[0], torch.ones(8, 4), torch.ones(4, 5)), 24 * 52),
    "convolution": (lambda h: functional.conv1d(h.mT, torch.ones(6, 8, 3)), 22 * 6 * 8 * 3),
    "same padding, groups": (
        lambda h: functional.conv1d(h.mT, torch.ones(8, 2, 3), padding="same", groups=4, dilation=2), 24 * 8 * 6),
    "strided 2-D": (lambda h: functional.conv2d(h[None], torch.ones(5, 1, 3, 3), stride=2), 11 * 3 * 5 * 9),
    "transposed": (lambda h: functional.conv_transpose1d(h.mT, torch.ones(8, 5, 4), stride=2), 24 * 8 * 5 * 4),
    "transposed, groups": (lambda h: functional.conv_transpose1d(h.mT, torch.ones(8, 3, 4), groups=2), 24 * 8 * 3 * 4),
    "convolution of no batch": (lambda h: functional.conv1d(h[0].mT, torch.ones(6, 8, 3)), 22 * 6 * 24),
    "attention, fewer keys": (lambda h: attend(h, h[:, :7], h[:, :7, :4]), 24 * 7 * 12),
    "attention, one key for all heads": (
        lambda h: attend(h.view(1, 24, 2, 4).transpose(1, 2), h[:, None, :, :4], h[:, None, :, :4]), 24 * 24 * 16),
}  # fmt: skip


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_counts_its_multiply_adds_whatever_its_shapes(case: str) -> None:
    operation, wanted = PRODUCTS[case]
    found = added(operation)
    assert found.gmac == pytest.approx(wanted) and found.uncounted == []
    if case not in ("outer", "vector by vector", "attention, one key for all heads"):  # not counted there, or expanded
        assert second_count_of(operation) in (pytest.approx(wanted), 0)  # 0: it ran as an elementwise product


small = st.integers(1, 4)


@settings(max_examples=15, deadline=None)
@given(st.lists(small, max_size=2), st.lists(small, max_size=2), small, small, small, st.data())
def test_matmul_of_any_shapes(left: list[int], right: list[int], n: int, k: int, m: int, data: st.DataObject) -> None:
    """Batches that broadcast, and vectors on either side."""
    batch = max(left, right, key=len)
    left, right = (
        [data.draw(st.sampled_from([1, size])) for size in batch[len(batch) - len(own) :]] for own in (left, right)
    )
    a, b = torch.ones(*left, n, k), torch.ones(*right, k, m)
    if not left and data.draw(st.booleans()):
        a = a[0]
    if not right and data.draw(st.booleans()):
        b = b[:, 0]
    assert added(lambda h: h.sum() + a @ b).gmac == pytest.approx((a @ b).numel() * k)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_einsum_of_any_two_operands(data: st.DataObject) -> None:
    """The product of all sizes, but for what one operand alone has and the result does not."""
    sizes = dict(zip("abcde", data.draw(st.lists(small, min_size=5, max_size=5)), strict=True))
    operands = data.draw(st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=2, max_size=2))
    result = data.draw(st.sets(st.sampled_from(sorted(operands[0] | operands[1]))))
    subscripts = ["".join(sorted(letters)) for letters in (*operands, result)]
    tensors = [torch.ones([sizes[letter] for letter in subscript]) for subscript in subscripts[:2]]
    taken = (operands[0] & operands[1]) | result
    wanted = math.prod(sizes[letter] for letter in taken)
    equation = f"{subscripts[0]},{subscripts[1]}->{subscripts[2]}"
    assert added(lambda h: h.sum() + torch.einsum(equation, *tensors)).gmac == pytest.approx(wanted)


RECURRENCES: dict[str, tuple[nn.Module, int]] = {
    "lstm without biases": (nn.LSTM(8, 8, bias=False), 24 * 4 * 2 * 64),
    "gru of two layers without biases": (nn.GRU(8, 8, 2, bias=False), 24 * 2 * 3 * 2 * 64),
    "bidirectional lstm": (nn.LSTM(8, 5, bidirectional=True), 24 * 2 * 4 * 5 * (8 + 5)),
    "projected lstm": (nn.LSTM(8, 6, 2, proj_size=3), 24 * (4 * 6 * (8 + 3) + 3 * 6 + 4 * 6 * (3 + 3) + 3 * 6)),
    "elman": (nn.RNN(8, 5), 24 * 5 * (8 + 5)),
}


@pytest.mark.parametrize("case", RECURRENCES)
def test_recurrences_of_every_kind(case: str) -> None:
    network, wanted = RECURRENCES[case]
    assert added(lambda h: network(h)[0], network).by_operation == pytest.approx({"recurrence": wanted})


def test_a_packed_recurrence_counts_its_tokens() -> None:
    network = nn.GRU(8, 5, batch_first=True)
    packed = lambda h: network(pack_padded_sequence(h, torch.tensor([20]), batch_first=True))[0].data  # noqa: E731
    assert added(packed, network).gmac == pytest.approx(20 * 3 * 5 * (8 + 5))


@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "without"])
def test_multi_head_attention(weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    found = added(lambda h: attention(h, h, h, need_weights=weights)[0], attention)
    assert found.gmac == pytest.approx(24 * 4 * 64 + 2 * 24 * 24 * 8) and not found.uncounted


def test_a_transformer_layer_of_torch_is_counted_as_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert added(layer, layer).gmac == pytest.approx(24 * 4 * 64 + 2 * 24 * 24 * 8 + 2 * 24 * 8 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_fourier_transforms() -> None:
    """5 N log2 N operations for complex N, half of them for real ones, two operations a multiply-add."""
    complex_, real = round(8 * 2.5 * 24 * math.log2(24)), round(8 * 1.25 * 48 * math.log2(48))
    assert added(lambda h: torch.fft.fft(h, dim=1).real).by_operation == {"fft": pytest.approx(complex_)}
    padded = added(lambda h: torch.fft.irfft(torch.fft.rfft(h, n=2 * h.shape[1], dim=1), n=48, dim=1))
    assert padded.by_operation == {"fft": pytest.approx(2 * real)} and not padded.uncounted
    plane = added(lambda h: torch.fft.ifft2(torch.fft.fft2(h)).real)
    assert plane.by_operation == {"fft": pytest.approx(2 * round(2.5 * 192 * math.log2(192)))}


def test_a_complex_product_is_four_real_ones() -> None:
    w = torch.ones(8, 5, dtype=torch.complex64)
    assert added(lambda h: (h.to(torch.complex64) @ w).real).gmac == pytest.approx(4 * 24 * 40)
    assert added(lambda h: torch.einsum("bnd,de->bne", h.to(torch.complex64), w).real).gmac == pytest.approx(
        4 * 24 * 40
    )


# what is not counted is named


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


@torch.jit.script
def squared_often(h):  # type: ignore[no-untyped-def]
    for _ in range(3):
        h = h @ h.mT @ h
    return h


UNCOVERED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a distance": (lambda h: torch.cdist(h, h), "aten::cdist"),
    "a solver": (lambda h: torch.linalg.matrix_exp(h[:, :8]), "aten::linalg_matrix_exp"),
    "a function with its own gradient": (Doubled.apply, "prim::PythonOp.Doubled"),
    "a scripted function": (squared_often, "prim::CallFunction"),
    "a size that is not followed": (lambda h: torch.fft.rfft(h, n=h.shape[1] ** 2).abs(), "aten::fft_rfft"),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_an_operation_without_a_count_is_named_and_the_rest_is_counted(case: str) -> None:
    operation, name = UNCOVERED[case]
    found = measure(Plain(operation), PIXELS)
    assert found.uncounted == [name]
    assert found.by_operation == {"linear": 24 * 3 * 8 / 1e9}


def test_a_model_that_cannot_be_traced_is_counted_by_its_matrix_products() -> None:
    network = Plain(lambda h: h)
    network.map = torch.jit.script(network.map)
    found = measure(network, PIXELS)
    assert found.uncounted == [UNTRACED] and found.gmac == 24 * 3 * 8 / 1e9
    with pytest.raises(ZeroDivisionError):  # an error of the model's own is not one of its cost
        measure(Plain(lambda h: h / (1 // 0)), PIXELS)


def test_where_a_lower_bound_is_no_use_it_is_refused_by_name() -> None:
    assert exact_gmac(measure(Plain(lambda h: h), PIXELS), "a budget", "another") > 0
    with pytest.raises(UncountedOperation, match=r"^a budget needs all .* no count: aten::cdist; use another, or give"):
        exact_gmac(measure(Plain(lambda h: torch.cdist(h, h)), PIXELS), "a budget", "another")


def test_every_operation_of_a_covered_model_is_counted_once() -> None:
    found = measure(Plain(lambda h: h), PIXELS)
    assert found == Cost(8 * 3 + 8, 24 * 3 * 8 / 1e9, 0.0, {"linear": 24 * 3 * 8 / 1e9})
    found = measure(Plain(lambda h: torch.sigmoid(h) @ h.transpose(1, 2)), PIXELS)
    assert found.by_operation == {"linear": 24 * 3 * 8 / 1e9, "matmul": 24 * 24 * 8 / 1e9}
    assert found.elementwise_g == 24 * 8 / 1e9


# what a measurement is of, and what it leaves behind


def test_the_cost_is_the_sum_of_its_operations() -> None:
    found = cost(LDNConfig(width=16, depth=2, attention="softmax"))
    assert found.gmac == pytest.approx(sum(found.by_operation.values()))
    assert found.by_operation.keys() == {"linear", "attention", "diffuse"}
    assert found.by_operation["attention"] * 1e9 == 2 * 24 * (2 * 24 * 16)
    assert found.by_operation["diffuse"] * 1e9 == 2 * 24 * (2 * 3 * 16)
    assert found.elementwise_g > 0


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_network_as_it_was(training: bool) -> None:
    network = LDNConfig(width=16, depth=1, dropout=0.5).build(TOKENS, FIVE).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    assert measure(network, TOKENS) == measure(network, TOKENS)
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_parameters_shared_by_two_modules_count_once() -> None:
    stem = Stem(TOKENS, 8)
    twin = nn.Linear(8, 8)
    assert parameters(Classifier(stem, nn.Sequential(twin, twin), FIVE)) == 7 * 8 + 8 * 8 + 8 + 8 * 5 + 5


@pytest.mark.parametrize("spec", [TOKENS, PIXELS, IMAGE], ids=["tokens", "pixels", "image"])
def test_the_example_is_one_of_full_length(spec: InputSpec) -> None:
    shapes = {"tokens": (1, 24), "pixels": (1, 24, 3), "image": (1, 2, 16, 24)}
    assert example(spec).shape == shapes[spec.kind]
