"""Does the meter count what a model costs? Closed forms, published figures and a second counter for every axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig, vit_b, vit_s, vit_ti
from ldn import InputSpec, LDNConfig, PaperSequenceConfig, PaperVisionConfig, TargetSpec
from ldn.classifier import Classifier, ModelConfig, Stem
from studies.meter import Cost, UncountedOperation, example, measure, parameters
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


# nothing passes uncounted


class Plain(nn.Module):
    """One linear map, and whatever `operation` does to its output."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map, self.operation = nn.Linear(3, 8), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.map(x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


UNCOVERED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a product of another kind": (lambda h: torch.baddbmm(h, h @ h.mT, h), "aten::baddbmm"),
    "a distance": (lambda h: torch.cdist(h, h), "aten::cdist"),
    "a transform": (lambda h: torch.fft.rfft(h).real, "aten::fft_rfft"),
    "a scan": (lambda h: h.cumsum(1), "aten::cumsum"),
    "an operation in place": (lambda h: h.mul_(2), "aten::mul_"),
    "a function of one's own": (Doubled.apply, "PythonOp.Doubled"),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_an_operation_without_a_known_cost_is_refused_by_name(case: str) -> None:
    operation, name = UNCOVERED[case]
    with pytest.raises(UncountedOperation, match=rf"no cost is known for .*{name}.*studies/meter.py"):
        measure(Plain(operation), PIXELS)


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
