"""Do the models do what their configs say? Axes, parameter counts, the batch contract, compilation, refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, cross_entropy, elu, gelu, layer_norm, linear, softplus

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig, vit_b, vit_s, vit_ti
from ldn import LDN, InputSpec, LDNConfig, PaperSequenceConfig, PaperVisionConfig, TargetSpec, reference
from ldn.attention import LinearAttention, formula
from ldn.classifier import ModelConfig, Stem, mean_pool, sinusoids
from ldn.model import LDNLayer
from ldn.terms import Attention, Kernel, TimeStep
from studies.zoo import MODELS, named

CIFAR = InputSpec(kind="image", length=32 * 32, channels=3, grid=(32, 32))
IMAGENET = InputSpec(kind="image", length=224 * 224, channels=3, grid=(224, 224))
TOKENS = InputSpec(kind="tokens", length=16, vocabulary=16)
VARIABLE = InputSpec(kind="tokens", length=16, vocabulary=16, variable=True)
CAUSAL = InputSpec(kind="tokens", length=16, vocabulary=16, causal=True)
PIXELS = InputSpec(kind="pixels", length=16, channels=2)
IMAGE = InputSpec(kind="image", length=8 * 8, channels=1, grid=(8, 8))
TEN, THREE = TargetSpec(classes=10), TargetSpec(classes=3)

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64 through a whole model


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def counted(config: ModelConfig, spec: InputSpec = CIFAR, target: TargetSpec = TEN) -> int:
    return parameters(config.build(spec, target))


def built(config: ModelConfig, spec: InputSpec = VARIABLE, target: TargetSpec = THREE, seed: int = 0) -> nn.Module:
    """In float64 and for evaluation, its parameters moved away from their initial values (zeros, ones)."""
    torch.manual_seed(seed)
    model = config.build(spec, target).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def inputs(spec: InputSpec, batch: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if spec.kind == "tokens":
        return torch.randint(0, spec.vocabulary, (batch, spec.length), generator=g)
    shape = (spec.channels, *spec.grid) if spec.kind == "image" else (spec.length, spec.channels)
    return torch.randn(batch, *shape, generator=g, dtype=torch.float64).to(dtype)


# every axis value builds and learns

AXES: dict[str, tuple[dict[str, Any], InputSpec]] = {
    **{f"steps {s}": ({"steps": s}, TOKENS) for s in (0, 1, 2, 4, 8, 16)},
    **{f"{k}, {t}": ({"kernel": k, "time_step": t}, TOKENS) for k in get_args(Kernel) for t in get_args(TimeStep)},
    **{f"{k} in 2-D": ({"kernel": k, "grid": "2d"}, IMAGE) for k in get_args(Kernel)},
    "radius 2": ({"kernel": "stationary", "radius": 2}, TOKENS),
    "asymmetric": ({"kernel": "multiscale", "symmetric": False}, TOKENS),
    "radius 2, asymmetric, 2-D": ({"kernel": "multiscale", "radius": 2, "symmetric": False, "grid": "2d"}, IMAGE),
    **{f"attention {a}": ({"attention": a}, TOKENS) for a in ("none", "linear", "diffusion", "softmax")},
    **{f"{h} heads": ({"heads": h}, TOKENS) for h in (1, 2, 8)},
    "no local": ({"local": False}, TOKENS),
    "no ffn": ({"ffn_ratio": 0}, TOKENS),
    "post-norm": ({"norm": "post"}, TOKENS),
    "post-norm, adaptive, token": ({"norm": "post", "kernel": "adaptive", "time_step": "token"}, TOKENS),
    "diffusion alone": ({"local": False, "attention": "none", "ffn_ratio": 0}, TOKENS),
    "dropout": ({"dropout": 0.2}, TOKENS),
    **{f"positions {p}": ({"positions": p}, TOKENS) for p in ("learned", "sinusoidal", "none")},
    "image, patch 2": ({"patch": 2}, IMAGE),
    "pixels": ({}, PIXELS),
}

LEARNERS: dict[str, tuple[ModelConfig, InputSpec]] = {
    **{axis: (LDNConfig(**{"width": 8, "depth": 2, **changed}), spec) for axis, (changed, spec) in AXES.items()},
    "paper-vision": (PaperVisionConfig(width=8, depth=2), IMAGE),
    "paper-sequence": (PaperSequenceConfig(width=8, depth=2), TOKENS),
    "transformer": (TransformerConfig(width=8, depth=2), TOKENS),
    "transformer, cls": (TransformerConfig(width=8, depth=2, pool="cls"), IMAGE),
    "vit": (ViTConfig(width=6, depth=2, patch=4), IMAGE),
    "vit, mean": (ViTConfig(width=6, depth=2, patch=4, pool="mean"), IMAGE),
    **{
        f"{cell}{', bidirectional' * both}": (RNNConfig(cell=cell, bidirectional=both, width=8), TOKENS)
        for cell in ("lstm", "gru")
        for both in (True, False)
    },
    "linear on tokens": (LinearConfig(), TOKENS),
    "linear on an image": (LinearConfig(), IMAGE),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", LEARNERS)
def test_forward_and_backward_give_every_parameter_a_gradient(model: str, dtype: torch.dtype) -> None:
    config, spec = LEARNERS[model]
    torch.manual_seed(0)
    network = config.build(spec, THREE).to(dtype)
    logits = network(inputs(spec, dtype=dtype))
    assert logits.shape == (3, 3) and logits.dtype == dtype
    cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("model", ["adaptive, token", "adaptive in 2-D", "post-norm", "paper-sequence", "gru"])
def test_autocast_to_bfloat16_stays_close_to_float32(model: str) -> None:
    """Mixed precision, as in training: parameters and what diffuses stay in float32."""
    config, spec = LEARNERS[model]
    torch.manual_seed(0)
    network = config.build(spec, THREE)
    x = inputs(spec, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
    exact, plain = (
        network.double()(x.double() if x.is_floating_point() else x),
        network.bfloat16()(x.bfloat16() if x.is_floating_point() else x),
    )
    assert (logits - exact).square().mean() <= 4 * (plain - exact).square().mean()


# a term that is off has no parameters

D, DEPTH, LENGTH = 8, 3, 16
ATTENTION = 4 * D * D + 4 * D  # q, k, v and output maps with biases
LOCAL = 2 * D * D + 2 * D
FFN = 4 * D * D + 3 * D + 2 * D  # hidden width 2 D, and its LayerNorm
NORM = 2 * D
PRESET_LAYER = D + ATTENTION + LOCAL + FFN + NORM  # D rates; a symmetric stencil of radius 1 has nothing to learn


def per_layer(**changed: Any) -> float:
    """Parameters of a layer of LDN on 16 tokens, D = 8, depth 3: what does not grow with the depth subtracted."""
    spec = IMAGE if changed.get("grid") == "2d" else TOKENS
    model = LDNConfig(**{"width": D, "depth": DEPTH, **changed}).build(spec, THREE)
    return parameters(model.backbone.layers) / DEPTH


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, PRESET_LAYER),
        ({"attention": "none"}, PRESET_LAYER - ATTENTION),
        ({"attention": "linear"}, PRESET_LAYER),
        ({"attention": "softmax"}, PRESET_LAYER),
        ({"heads": 8}, PRESET_LAYER),
        ({"local": False}, PRESET_LAYER - LOCAL),
        ({"local": False, "attention": "none"}, PRESET_LAYER - LOCAL - ATTENTION - NORM),  # nothing reads LayerNorm(H)
        ({"ffn_ratio": 0}, PRESET_LAYER - FFN),
        ({"ffn_ratio": 4}, PRESET_LAYER + 4 * D * D + 2 * D),
        ({"local": False, "attention": "none", "ffn_ratio": 0, "steps": 0}, 0),
        ({"local": False, "attention": "none", "ffn_ratio": 0}, D),
        ({"steps": 0}, PRESET_LAYER - D),
        ({"steps": 0, "kernel": "dense"}, PRESET_LAYER - D),
        ({"steps": 16}, PRESET_LAYER),
        ({"time_step": "fixed"}, PRESET_LAYER - D),
        ({"time_step": "learned"}, PRESET_LAYER - D + 1),
        ({"time_step": "raw"}, PRESET_LAYER - D + 1),
        ({"time_step": "token"}, PRESET_LAYER + 1),  # Linear(D, 1)
        ({"kernel": "fixed"}, PRESET_LAYER),
        ({"kernel": "stationary"}, PRESET_LAYER),
        ({"radius": 3}, PRESET_LAYER + 3 * D),  # a weight for each distance and channel
        ({"radius": 3, "symmetric": False}, PRESET_LAYER + 6 * D),
        ({"kernel": "stationary", "symmetric": False}, PRESET_LAYER + 2 * D),
        ({"grid": "2d"}, PRESET_LAYER + 2 * D),  # vertical and horizontal
        ({"grid": "2d", "symmetric": False}, PRESET_LAYER + 4 * D),
        ({"grid": "2d", "kernel": "fixed"}, PRESET_LAYER),
        ({"kernel": "dense"}, PRESET_LAYER + LENGTH**2),
        ({"kernel": "adaptive"}, PRESET_LAYER + 16 * D + 16 + 1),  # projection to 16, and one bias
        ({"norm": "post"}, PRESET_LAYER),
        ({"norm": "post", "local": False, "attention": "none"}, PRESET_LAYER - LOCAL - ATTENTION),
    ],
    ids=str,
)
def test_a_layer_has_exactly_the_parameters_of_its_terms(changed: dict[str, Any], expected: int) -> None:
    assert per_layer(**changed) == expected


def test_the_final_norm_belongs_to_pre_norm_alone() -> None:
    pre, post = (LDNConfig(norm=norm).build(TOKENS, THREE).backbone for norm in ("pre", "post"))
    assert parameters(pre.norm) == 2 * 128 and parameters(post.norm) == 0


@pytest.mark.parametrize(
    ("spec", "positions", "expected"),
    [
        (TOKENS, "auto", 16 * 8),  # sinusoidal
        (TOKENS, "none", 16 * 8),
        (TOKENS, "learned", 16 * 8 + 16 * 8),
        (PIXELS, "auto", 2 * 8 + 8),  # a sequence: sinusoidal
        (dataclasses.replace(PIXELS, grid=(4, 4)), "auto", 2 * 8 + 8 + 16 * 8),  # an image, pixel by pixel: learned
        (IMAGE, "auto", 1 * 4 * 4 * 8 + 8 + 4 * 8),
        (IMAGE, "sinusoidal", 1 * 4 * 4 * 8 + 8),
    ],
)
def test_the_stem_has_exactly_the_parameters_of_its_parts(spec: InputSpec, positions: Any, expected: int) -> None:
    assert parameters(Stem(spec, 8, positions)) == expected


# exact counts

# One row for each model of the zoo, at its default config on 32 x 32 x 3 images of 10 classes (ViT's own patch is 16).
# A new model: build it, derive its count by hand as below, and add its row.
PINNED = {
    # 10 D^2 + 14 D a layer, D = 128, of 6; patches 49 D, positions 64 D, final norm 2 D, head 10 D + 10
    "ldn": 6 * (10 * 128**2 + 14 * 128) + (49 + 64 + 2 + 10) * 128 + 10,
    "paper-vision": 1_661_392,  # derived below
    # the same without positions; Theta and token mixer (4 096 + 2 * 4 160) become three convolutions, 4 D each
    "paper-sequence": 1_661_392 - 64 * 192 - 6 * (4_096 + 8_320) + 6 * (3 * 4 * 192),
    # 12 D^2 + 13 D a layer, of 6, and the same stem, norm and head as ldn
    "transformer": 6 * (12 * 128**2 + 13 * 128) + (49 + 64 + 2 + 10) * 128 + 10,
    # two bidirectional LSTM layers of 6 D^2 + 8 D; no positions, no norm
    "rnn": 2 * (6 * 128**2 + 8 * 128) + (49 + 10) * 128 + 10,
    # ViT-Ti: 12 layers of 12 D^2 + 13 D, D = 192; patches 16 x 16 x 3 D + D; a class token and 4 patches
    "vit": 12 * (12 * 192**2 + 13 * 192) + (769 + 1 + 5 + 2 + 10) * 192 + 10,
    "linear": 3 * 32 * 32 * 10 + 10,
}


def test_every_model_of_the_zoo_has_a_pinned_count() -> None:
    missing = {model.name for model in MODELS} ^ set(PINNED)
    assert not missing, f"PINNED and studies.zoo.MODELS differ by {sorted(missing)}"


@pytest.mark.parametrize("model", PINNED)
def test_pinned_counts(model: str) -> None:
    assert counted(named("model", MODELS, model)()) == PINNED[model]


@pytest.mark.parametrize(("width", "depth"), [(128, 6), (64, 2), (256, 1)])
def test_the_preset_has_10_d_squared_and_14_d_parameters_a_layer(width: int, depth: int) -> None:
    expected = depth * (10 * width**2 + 14 * width) + (49 + 64 + 2 + 10) * width + 10
    assert counted(LDNConfig(width=width, depth=depth)) == expected


def test_paper_vision_counted_by_hand() -> None:
    patches = 192 * (3 * 4 * 4) + 192  # 9 408: a convolution with bias
    positions = 64 * 192  # 12 288: 8 x 8 patches
    theta, dt = 64 * 64, 1
    local = 2 * (192 * 192 + 192)  # 74 112: D-D-D
    mixer = 2 * 192 + 2 * (64 * 64 + 64)  # 8 704: LayerNorm over D, N-N-N along the tokens
    attention = 3 * (192 * 192 + 192)  # 111 168: q, k, v with bias, no output map
    ffn = local
    norms = 2 * (2 * 192)
    layer = theta + dt + local + mixer + attention + ffn + norms
    assert layer == 4_096 + 1 + 74_112 + 8_704 + 111_168 + 74_112 + 768 == 272_961
    head = 192 * 10 + 10
    assert patches + positions + 6 * layer + head == 1_661_392
    assert counted(PaperVisionConfig()) == 1_661_392


def test_paper_sequence_counted_by_hand() -> None:
    embedding = 16 * 192  # positions are sinusoidal
    conv, dt = 192 * 3 + 192, 1  # depthwise, width 3, bias
    local = ffn = 2 * (192 * 192 + 192)
    mixer = 2 * 192 + 2 * conv
    attention = 3 * (192 * 192 + 192)
    norms = 2 * (2 * 192)
    layer = conv + dt + local + mixer + attention + ffn + norms
    assert layer == 768 + 1 + 74_112 + 1_920 + 111_168 + 74_112 + 768 == 262_849
    head = 192 * 10 + 10
    assert embedding + 6 * layer + head == 1_582_096
    assert counted(PaperSequenceConfig(), TOKENS) == 1_582_096


@pytest.mark.parametrize(
    ("config", "expected"), [(vit_ti(), 5_717_416), (vit_s(), 22_050_664), (vit_b(), 86_567_656)], ids=["Ti", "S", "B"]
)
def test_vit_has_the_published_counts(config: ViTConfig, expected: int) -> None:
    with torch.device("meta"):
        assert counted(config, IMAGENET, TargetSpec(classes=1000)) == expected


@pytest.mark.parametrize(("width", "depth", "ratio"), [(128, 6, 4), (64, 3, 2)])
def test_transformer_in_closed_form(width: int, depth: int, ratio: int) -> None:
    attention, ffn, norms = 4 * width**2 + 4 * width, 2 * ratio * width**2 + (ratio + 1) * width, 4 * width
    embedding, final_norm, head = 16 * width, 2 * width, 10 * width + 10
    config = TransformerConfig(width=width, depth=depth, ffn_ratio=ratio)
    assert counted(config, TOKENS) == embedding + depth * (attention + ffn + norms) + final_norm + head


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both directions", "one direction"])
@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize(("width", "depth"), [(128, 2), (64, 1), (32, 3)])
def test_rnn_in_closed_form(cell: Any, gates: int, bidirectional: bool, width: int, depth: int) -> None:
    directions = 2 if bidirectional else 1
    hidden = width // directions
    layer = directions * gates * (width * hidden + hidden**2 + 2 * hidden)  # input, recurrent, two biases
    config = RNNConfig(cell=cell, bidirectional=bidirectional, width=width, depth=depth)
    assert counted(config, TOKENS) == 16 * width + depth * layer + 10 * width + 10


@pytest.mark.parametrize(
    ("spec", "features"), [(TOKENS, 16 * 16), (PIXELS, 16 * 2), (CIFAR, 3 * 32 * 32)], ids=["tokens", "pixels", "image"]
)
def test_linear_in_closed_form(spec: InputSpec, features: int) -> None:
    assert counted(LinearConfig(), spec) == features * 10 + 10


# the paper presets equal a second transcription of their description


def mlp(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = gelu(linear(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"]))
    return linear(hidden, p[f"{name}.2.weight"], p[f"{name}.2.bias"])


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def paper_attention(p: dict[str, Tensor], h: Tensor) -> Tensor:
    """Single head, biased q, k, v, no output map, 1e-6 added to the normaliser: token by token."""
    q, k, v = linear(h, p["attention.qkv.weight"], p["attention.qkv.bias"]).split(h.shape[-1], dim=-1)
    score = (elu(q) + 1) @ (elu(k) + 1).mT  # (B, N, N)
    return (score @ v) / (score.sum(-1, keepdim=True) + 1e-6)


def depthwise(p: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    """y_i = w_0 h_{i-1} + w_1 h_i + w_2 h_{i+1} + b, channel by channel, zeros beyond both ends."""
    w, zero = p[f"{name}.weight"][:, 0], torch.zeros_like(h[:, :1])
    before, after = torch.cat([zero, h[:, :-1]], dim=1), torch.cat([h[:, 1:], zero], dim=1)
    return w[:, 0] * before + w[:, 1] * h + w[:, 2] * after + p[f"{name}.bias"]


def part(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in p.items() if name.startswith(prefix)}


def vision_terms(p: dict[str, Tensor], h: Tensor) -> Tensor:
    kernel = softplus(p["diffusion.theta"])
    diffusion = torch.zeros_like(h)
    for i in range(h.shape[1]):
        for j in range(h.shape[1]):
            diffusion[:, i] += kernel[i, j] * (h[:, j] - h[:, i])
    mixed = mlp(p, "mixer.mix", norm(p, "mixer.norm", h).mT).mT
    return p["diffusion.dt"] * diffusion + mixed


def sequence_terms(p: dict[str, Tensor], h: Tensor) -> Tensor:
    diffusion = p["diffusion.dt"] * (depthwise(p, "diffusion.conv", h) - h)
    return diffusion + depthwise(p, "mixer.second", gelu(depthwise(p, "mixer.first", norm(p, "mixer.norm", h))))


def paper_forward(p: dict[str, Tensor], h: Tensor, depth: int, terms: Any) -> Tensor:
    for i in range(depth):
        q = part(p, f"backbone.layers.{i}.")
        h = norm(q, "norm", h + terms(q, h) + mlp(q, "local", h) + paper_attention(q, h))
        h = norm(q, "norm_ffn", h + mlp(q, "ffn", h))
    return linear(h.mean(1), p["head.weight"], p["head.bias"])


def test_paper_vision_equals_a_transcription_of_its_description() -> None:
    model = built(PaperVisionConfig(width=6, depth=2), IMAGE)
    x, p = inputs(IMAGE), dict(model.named_parameters())
    patches = conv2d(x, p["stem.embed.weight"], p["stem.embed.bias"], stride=4)  # (B, D, 2, 2)
    h = torch.stack([patches[:, :, i, j] for i in range(2) for j in range(2)], dim=1) + p["stem.positions"]
    torch.testing.assert_close(model(x), paper_forward(p, h, 2, vision_terms), **EXACT)


def test_paper_sequence_equals_a_transcription_of_its_description() -> None:
    model = built(PaperSequenceConfig(width=6, depth=2), TOKENS)
    x, p = inputs(TOKENS), dict(model.named_parameters())
    position = [
        [(math.sin if c % 2 == 0 else math.cos)(i / 10000 ** ((c - c % 2) / 6)) for c in range(6)] for i in range(16)
    ]
    h = p["stem.embed.weight"][x] + torch.tensor(position, dtype=torch.float64)
    # the model's table of sines is made in float32
    torch.testing.assert_close(model(x), paper_forward(p, h, 2, sequence_terms), rtol=1e-5, atol=1e-5)
    exact = p["stem.embed.weight"][x] + sinusoids(16, 6).double()
    torch.testing.assert_close(model(x), paper_forward(p, exact, 2, sequence_terms), **EXACT)


def test_paper_presets_start_as_published() -> None:
    torch.manual_seed(0)
    vision = PaperVisionConfig(depth=1).build(CIFAR, TEN)
    layer = vision.backbone.layers[0]
    assert layer.diffusion.dt.item() == pytest.approx(0.1)
    assert abs(layer.diffusion.theta.mean()) < 0.05 and abs(layer.diffusion.theta.std() - 1) < 0.05
    assert abs(vision.stem.positions.std() - 0.02) < 0.001
    assert PaperSequenceConfig(depth=1).build(TOKENS, TEN).backbone.layers[0].diffusion.dt.item() == pytest.approx(0.1)
    # so that dt times the row sums, of which stability asks for at most 1, is about 5
    assert 4.5 < 0.1 * softplus(layer.diffusion.theta).sum(1).mean() < 6


def test_depthwise_of_the_transcription_is_a_convolution() -> None:
    p = {"c.weight": torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0)), "c.bias": torch.arange(5.0)}
    h = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    expected = conv1d(h.mT, p["c.weight"], p["c.bias"], padding=1, groups=5).mT
    torch.testing.assert_close(depthwise(p, "c", h), expected)


# attention


def qkv(heads: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, heads, 9, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]


both_ways = pytest.mark.parametrize("attend", [LinearAttention.apply, formula], ids=["by hand", "formula"])


def pack(x: list[Tensor]) -> Tensor:
    """q, k, v (B, H, N, d) -> (B, N, 3 H d), as a linear map leaves them."""
    return torch.cat([part.transpose(1, 2).flatten(2) for part in x], dim=-1)


def reference_attention(x: list[Tensor], real: Tensor | None, less_v: bool) -> Tensor:
    v = x[2] if real is None else torch.where(real[:, None, :, None], x[2], 0)
    mixed = reference.linear_attention(x[0], x[1], v, real)
    return (mixed - v if less_v else mixed).transpose(1, 2).flatten(2)


@both_ways
@pytest.mark.parametrize("less_v", [False, True], ids=["A v", "(A - I) v"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_linear_attention_equals_the_reference(padded: bool, heads: int, less_v: bool, attend: Any) -> None:
    inputs_ = qkv(heads)
    real = torch.arange(9) < torch.tensor([[9], [4], [0]]) if padded else None
    ours, theirs = attend(pack(inputs_), heads, real, less_v), reference_attention(inputs_, real, less_v)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, wanted in zip(*(torch.autograd.grad(y, inputs_, cotangent) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_gradcheck_of_linear_attention() -> None:
    real = torch.arange(9) < torch.tensor([[9], [4], [0]])
    x = pack([t.detach() for t in qkv()]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LinearAttention.apply(x, 2, real, True), x)


def test_linear_attention_of_one_token_leaves_its_input_as_it_was() -> None:
    x = torch.randn(1, 1, 12, dtype=torch.double, requires_grad=True)  # laid out as by head already: no copy is due
    before = x.detach().clone()
    wanted = torch.autograd.grad(formula(x, 2, None, False).sum(), x)[0]
    got = torch.autograd.grad(LinearAttention.apply(x, 2, None, False).sum(), x)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("strided", ["gradient", "input"])
def test_linear_attention_reads_by_strides(strided: str) -> None:
    inputs_ = qkv()
    x, theirs = pack(inputs_), reference_attention(inputs_, None, True)
    if strided == "input":
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
    ours = LinearAttention.apply(x, 2, None, True)
    if strided == "gradient":  # that of a sum is expanded
        ours, theirs = ours.sum(), theirs.sum()
    cotangent = torch.ones_like(ours)
    for got, wanted in zip(*(torch.autograd.grad(y, inputs_, cotangent) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_attention_errs_at_most_twice_as_much_as_the_reference(dtype: torch.dtype, attend: Any) -> None:
    rounded = [t.detach().to(dtype).double().requires_grad_() for t in qkv(heads=8)]

    def run(f: Any, in_dtype: torch.dtype) -> list[Tensor]:
        y = f([t.to(in_dtype) for t in rounded])
        return [y, *torch.autograd.grad(y.double().square().sum(), rounded)]

    exact = run(lambda x: reference_attention(x, None, False), torch.float64)
    theirs = run(lambda x: reference_attention(x, None, False), dtype)
    ours = run(lambda x: attend(pack(x), 8, None, False), dtype)
    for true, plain, mine in zip(exact, theirs, ours, strict=True):
        assert (mine - true).square().mean() <= 4 * (plain - true).square().mean()


@both_ways
def test_linear_attention_ignores_what_stands_in_the_padding(attend: Any) -> None:
    q, k, v = (t.detach() for t in qkv())
    real = torch.tensor([[True] * 5 + [False] * 4] * 3)
    expected = attend(pack([q, k, v]), 2, real, False)
    v[:, :, 5:] = torch.inf
    k[:, :, 5:] = 1e6
    assert torch.equal(attend(pack([q, k, v]), 2, real, False), expected)


def test_a_key_far_below_zero_still_counts() -> None:
    """elu(-40) + 1 rounds to 0 in float32, and 0 over 0 is no mean; exp(-40) is a small number."""
    x = torch.full((1, 5, 12), -40.0)
    x[..., 8:] = torch.arange(5.0)[:, None]
    assert torch.equal(LinearAttention.apply(x, 2, None, False), torch.full((1, 5, 4), 2.0))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_layer_compiles_into_one_graph_and_equals_itself(padded: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = LDNLayer(LDNConfig(width=8, heads=2, steps=3), 16, None).double()
    x, lengths = torch.randn(2, 16, 8, dtype=torch.float64), torch.tensor([16, 5]) if padded else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled):
        given = x.clone().requires_grad_()
        y = run(given, lengths)
        gradients = torch.autograd.grad(y.square().sum(), [given, *layer.parameters()])
        results.append([y, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", ["linear", "softmax", "diffusion"])
def test_attention_of_a_constant_value_is_that_value_and_as_diffusion_zero(kind: Any) -> None:
    """A is row-stochastic, so that the rows of A - I sum to zero."""
    torch.manual_seed(0)
    attention = Attention(8, 2, kind).double()
    with torch.no_grad():  # values that do not depend on the token
        attention.qkv.weight[16:] = 0
    u = torch.randn(2, 9, 8, dtype=torch.float64)
    value = torch.zeros(8, dtype=torch.float64) if kind == "diffusion" else attention.qkv.bias[16:]
    torch.testing.assert_close(attention(u, None), attention.out(value).expand(2, 9, 8), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "softmax", "diffusion"])
def test_attention_of_a_padded_batch_equals_its_sequences_alone(kind: Any) -> None:
    torch.manual_seed(0)
    attention, u = Attention(8, 2, kind).double(), torch.randn(3, 9, 8, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 1])
    together = attention(u, lengths)
    for b, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[b : b + 1, :n], attention(u[b : b + 1, :n], None), rtol=1e-12, atol=1e-12)


# the batch contract: (x, lengths)

ANY_LENGTH: dict[str, ModelConfig] = {
    "ldn": LDNConfig(width=8, depth=2),
    **{
        f"ldn {name}": LDNConfig(width=8, depth=2, **changed)
        for name, changed in {
            "post-norm": {"norm": "post"},
            "adaptive, token": {"kernel": "adaptive", "time_step": "token"},
            "stationary, asymmetric": {"kernel": "stationary", "radius": 3, "symmetric": False},
            "16 steps": {"steps": 16},
            "0 steps": {"steps": 0},
            "raw": {"time_step": "raw"},
            "softmax": {"attention": "softmax"},
            "linear": {"attention": "linear"},
            "no attention": {"attention": "none"},
        }.items()
    },
    "paper-sequence": PaperSequenceConfig(width=8, depth=2),
    "transformer": TransformerConfig(width=8, depth=2),
    "transformer, cls": TransformerConfig(width=8, depth=2, pool="cls"),
    **{
        f"{cell}{', bidirectional' * both}": RNNConfig(cell=cell, bidirectional=both, width=8)
        for cell in ("lstm", "gru")
        for both in (True, False)
    },
}
FIXED_LENGTH: dict[str, tuple[ModelConfig, InputSpec]] = {
    "ldn dense": (LDNConfig(width=8, depth=1, kernel="dense"), TOKENS),
    "ldn 2-D": (LDNConfig(width=8, depth=1, grid="2d"), dataclasses.replace(PIXELS, grid=(4, 4))),
    "paper-vision": (PaperVisionConfig(width=8, depth=1), PIXELS),
    "linear": (LinearConfig(), TOKENS),
}
LENGTHS = torch.tensor([16, 5, 1])


@pytest.mark.parametrize("model", ANY_LENGTH)
def test_the_logits_of_a_padded_batch_equal_those_of_its_sequences_run_alone(model: str) -> None:
    network, x = built(ANY_LENGTH[model]), inputs(VARIABLE)
    together = network(x, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(together[b : b + 1], network(x[b : b + 1, :n]), **EXACT)


@pytest.mark.parametrize("model", ANY_LENGTH)
def test_what_stands_in_the_padding_changes_no_logit(model: str) -> None:
    network, x = built(ANY_LENGTH[model]), inputs(VARIABLE)
    other = torch.where(torch.arange(16) < LENGTHS[:, None], x, inputs(VARIABLE, seed=2))
    assert not torch.equal(x, other)
    assert torch.equal(network(x, LENGTHS), network(other, LENGTHS))
    assert not torch.equal(network(x), network(other)), "and without lengths it does"


@pytest.mark.parametrize("model", ANY_LENGTH)
def test_padding_gets_no_gradient(model: str) -> None:
    spec = InputSpec(kind="pixels", length=16, channels=2, variable=True)
    network, x = built(ANY_LENGTH[model], spec), inputs(spec).requires_grad_()
    network(x, LENGTHS).square().sum().backward()
    padding = torch.arange(16) >= LENGTHS[:, None]
    assert x.grad[padding].count_nonzero() == 0
    assert (x.grad[~padding].abs().sum(-1) > 0).all()


PADDED_IMAGES: dict[str, ModelConfig] = {  # in patches, of which there are 4
    "ldn": LDNConfig(width=8, depth=1, heads=2),
    "rnn": RNNConfig(width=8, depth=1),
    "vit": ViTConfig(width=6, depth=1, patch=4),
    "vit, mean": ViTConfig(width=6, depth=1, patch=4, pool="mean"),
}
HOSTILE: list[tuple[str, InputSpec, ModelConfig, float]] = [
    (f"{model}, padding of {value}", dataclasses.replace(PIXELS, variable=True), config, value)
    for model, config in ANY_LENGTH.items()
    for value in (math.inf, math.nan, 1e30)
]
HOSTILE += [(f"{model} on an image", IMAGE, config, math.nan) for model, config in PADDED_IMAGES.items()]


@pytest.mark.parametrize(("spec", "config", "value"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_no_value_in_the_padding_reaches_a_logit_or_a_gradient(spec: InputSpec, config: Any, value: float) -> None:
    network, x = built(config, spec), inputs(spec)
    lengths = torch.tensor([4, 2, 1]) if spec.kind == "image" else LENGTHS
    hostile = x.clone()
    for b, n in enumerate(lengths.tolist()):
        if spec.kind == "image":  # 2 x 2 patches of 4 x 4
            for patch in range(n, 4):
                hostile[b, :, patch // 2 * 4 :, patch % 2 * 4 :][..., :4, :4] = value
        else:
            hostile[b, n:] = value
    results = []
    for given in (x, hostile):
        given = given.clone().requires_grad_()
        logits = network(given, lengths)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [given, *network.parameters()])])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_ids_in_the_padding_may_be_anything() -> None:
    network, x = built(ANY_LENGTH["ldn"]), inputs(VARIABLE)
    ignored = torch.where(torch.arange(16) < LENGTHS[:, None], x, -100)
    assert torch.equal(network(ignored, LENGTHS), network(x, LENGTHS))


@pytest.mark.parametrize("attention", ["linear", "diffusion", "softmax"])
def test_no_value_in_the_padding_of_a_stack_reaches_a_real_token(attention: Any) -> None:
    config = LDNConfig(width=8, depth=2, heads=2, kernel="adaptive", time_step="token", attention=attention)
    stack = LDN(config, 16).double()
    h, real = torch.randn(3, 16, 8, dtype=torch.float64), torch.arange(16) < LENGTHS[:, None]
    hostile = torch.where(real[..., None], h, torch.nan)
    assert torch.equal(stack(h, LENGTHS)[real], stack(hostile, LENGTHS)[real])


@both_ways
def test_no_gradient_of_linear_attention_comes_from_keys_and_values_in_the_padding(attend: Any) -> None:
    q, k, v = (t.detach() for t in qkv())
    real = torch.tensor([[True] * 5 + [False] * 4] * 3)
    k[:, :, 5:] = v[:, :, 5:] = torch.nan
    x = pack([q, k, v]).requires_grad_()
    (gradient,) = torch.autograd.grad(attend(x, 2, real, True).square().sum(), x)
    assert gradient.isfinite().all() and not gradient[:, 5:, 8:].any()


@pytest.mark.parametrize("model", FIXED_LENGTH)
def test_models_of_fixed_length_refuse_lengths(model: str) -> None:
    config, spec = FIXED_LENGTH[model]
    with pytest.raises(ValueError, match="takes no lengths"):
        built(config, spec)(inputs(spec), LENGTHS)
    with pytest.raises(ValueError, match="length"):
        config.build(dataclasses.replace(spec, variable=True), THREE)


@pytest.mark.parametrize("model", sorted(ANY_LENGTH))
def test_sequences_longer_than_the_spec_run_where_positions_are_sinusoidal(model: str) -> None:
    network = built(ANY_LENGTH[model])
    x = torch.cat([inputs(VARIABLE)] * 2, dim=1)
    assert network(x).shape == (3, 3)


def test_learned_positions_refuse_longer_sequences() -> None:
    network = built(LDNConfig(width=8, depth=1, positions="learned"))
    with pytest.raises(ValueError, match="32 tokens, but positions were learned for 16"):
        network(torch.zeros(1, 32, dtype=torch.int64))


# refusals


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (LDNConfig(), CAUSAL),
        (PaperVisionConfig(), CAUSAL),
        (PaperSequenceConfig(), CAUSAL),
        (TransformerConfig(), CAUSAL),
        (RNNConfig(bidirectional=True), CAUSAL),
        (ViTConfig(patch=4), dataclasses.replace(IMAGE, causal=True)),
        (LinearConfig(), CAUSAL),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_causal_inputs_raise_where_a_model_reads_ahead(config: ModelConfig, spec: InputSpec) -> None:
    with pytest.raises(ValueError, match="causal"):
        config.build(spec, THREE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_rnn_of_one_direction_takes_causal_inputs_and_reads_nothing_ahead(cell: Any) -> None:
    network = built(RNNConfig(cell=cell, bidirectional=False, width=8), CAUSAL)
    h = torch.randn(1, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(network.backbone(h, None)[0, 6].sum(), h)
    assert gradient[0, 7:].count_nonzero() == 0 and gradient[0, :7].count_nonzero() > 0


@pytest.mark.parametrize("spec", [TOKENS, PIXELS], ids=["tokens", "pixels"])
def test_a_2d_grid_needs_an_input_on_a_grid(spec: InputSpec) -> None:
    with pytest.raises(ValueError, match="tokens lie on a grid"):
        LDNConfig(grid="2d").build(spec, THREE)
    LDNConfig(grid="2d", steps=0, width=8, depth=1).build(spec, THREE)  # nothing diffuses, so nothing misfits


def test_vit_reads_images_only() -> None:
    with pytest.raises(ValueError, match="reads images"):
        ViTConfig().build(TOKENS, THREE)


@pytest.mark.parametrize("config", [LDNConfig(width=8, depth=1), LinearConfig()], ids=["ldn", "linear"])
@pytest.mark.parametrize(
    ("spec", "x", "sentence"),
    [
        (TOKENS, torch.zeros(2, 16), r"'tokens' is integers \(B, N\), not torch.float32 \(2, 16\)"),
        (TOKENS, torch.zeros(16, dtype=torch.long), r"'tokens' is integers \(B, N\), not torch.int64 \(16,\)"),
        (TOKENS, torch.zeros(2, 0, dtype=torch.long), r"at least one token, not the shape \(2, 0\)"),
        (TOKENS, torch.zeros(0, 16, dtype=torch.long), r"at least one token, not the shape \(0, 16\)"),
        (PIXELS, torch.zeros(2, 16, 2, dtype=torch.uint8), r"'pixels' is floats \(B, N, 2\), not torch.uint8"),
        (PIXELS, torch.zeros(2, 16, 7), r"'pixels' is floats \(B, N, 2\), not torch.float32 \(2, 16, 7\)"),
        (IMAGE, torch.zeros(2, 8, 8, 1), r"'image' is floats \(B, 1, 8, 8\), not torch.float32 \(2, 8, 8, 1\)"),
    ],
)
def test_a_batch_of_another_kind_is_refused(config: ModelConfig, spec: InputSpec, x: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config.build(spec, THREE)(x)


def test_lengths_are_one_a_sequence_and_a_linear_map_reads_all_or_nothing() -> None:
    with pytest.raises(ValueError, match=r"integers of shape \(3,\), one a sequence, not \(2,\) of torch.int64"):
        LDNConfig(width=8, depth=1).build(VARIABLE, THREE)(inputs(VARIABLE), torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="a fixed length of 16 tokens and takes no lengths"):
        LinearConfig().build(TOKENS, THREE)(inputs(TOKENS)[:, :9])


@pytest.mark.parametrize("bad", [0, -1, 17])
@pytest.mark.parametrize("model", ["ldn", "paper-sequence", "transformer, cls", "lstm"])
def test_lengths_outside_the_sequence_are_refused(model: str, bad: int) -> None:
    network, lengths = built(ANY_LENGTH[model]), torch.tensor([16, bad, 1])
    low, high = lengths.min(), lengths.max()
    with pytest.raises(
        ValueError, match=rf"^lengths are from 1 to 16, the number of tokens; these go from {low} to {high}$"
    ):
        network(inputs(VARIABLE), lengths)
    if model != "transformer, cls":  # whose class token is one more token to its stack
        with pytest.raises(ValueError, match="lengths are from 1 to 16"):
            network.backbone(torch.zeros(3, 16, 8, dtype=torch.float64), lengths)


def test_lengths_are_integers() -> None:
    with pytest.raises(ValueError, match="lengths are integers"):
        built(ANY_LENGTH["ldn"])(inputs(VARIABLE), LENGTHS.double())


@pytest.mark.parametrize("model", ["ldn", "transformer", "linear"])
@pytest.mark.parametrize("bad", [-1, 16])
def test_ids_outside_the_vocabulary_are_refused(model: str, bad: int) -> None:
    config = named("model", MODELS, model)()
    x = torch.zeros(1, 16, dtype=torch.int8)
    x[0, 3] = bad
    with pytest.raises(ValueError, match=r"^token ids are from 0 to 15; this input has"):
        config.build(TOKENS, THREE)(x)


def test_a_mean_over_many_tokens_is_exact_in_half_precision() -> None:
    """bfloat16 has no 1001, and float16 no 70000."""
    h = torch.full((1, 70_001, 1), 0.5)
    for dtype, length in ((torch.bfloat16, 1001), (torch.float16, 70_000)):
        assert mean_pool(h.to(dtype), torch.tensor([length])).item() == 0.5


def test_an_image_that_does_not_divide_into_patches_raises() -> None:
    with pytest.raises(ValueError, match="8 x 8 does not divide into patches of 3"):
        LDNConfig(patch=3).build(IMAGE, THREE)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_an_unknown_field_raises_and_lists_the_known_ones(model: type[ModelConfig]) -> None:
    known = ", ".join(field.name for field in dataclasses.fields(model))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{model.__name__} has no field 'widht'; known fields: {known}$"):
        model(widht=8)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (LDNConfig, {"kernel": "heat"}, "'fixed', 'stationary', 'multiscale', 'dense', 'adaptive', not 'heat'"),
        (LDNConfig, {"time_step": "free"}, "'fixed', 'learned', 'channel', 'token', 'raw', not 'free'"),
        (LDNConfig, {"attention": None}, "'none', 'linear', 'diffusion', 'softmax', not None"),
        (LDNConfig, {"grid": "3d"}, "'1d', '2d', not '3d'"),
        (LDNConfig, {"norm": "layer"}, "'pre', 'post', not 'layer'"),
        (LDNConfig, {"steps": -1}, "LDNConfig.steps must be between 0 and 10000, not -1"),
        (LDNConfig, {"rate": 1.5}, "LDNConfig.rate must be between 0 and 1, not 1.5"),
        (LDNConfig, {"rate": 1.0}, "needs time_step='fixed'"),
        (LDNConfig, {"width": 10, "heads": 4}, "LDNConfig.width 10 does not divide into 4 heads"),
        (TransformerConfig, {"width": 10, "heads": 4}, "TransformerConfig.width 10 does not divide into 4 heads"),
        (ViTConfig, {"width": 10, "heads": 4}, "ViTConfig.width 10 does not divide into 4 heads"),
        (RNNConfig, {"width": 9}, "RNNConfig.width 9 does not divide into two directions"),
        (RNNConfig, {"cell": "rnn"}, "'lstm', 'gru', not 'rnn'"),
        (TransformerConfig, {"pool": "max"}, "'mean', 'cls', not 'max'"),
    ],
)
def test_a_value_that_is_not_allowed_raises_and_names_what_is(model: Any, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        model(**values)
    assert "\n" not in str(raised.value)


def test_an_unknown_model_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no model named 'lnd'; known: ldn, "):
        named("model", MODELS, "lnd")


def test_off_terms_do_not_constrain_the_others() -> None:
    LDNConfig(attention="none", width=10)  # no heads to divide into
    LDNConfig(time_step="fixed", rate=1.0)


# fields without effect

IDLE_VALUES: dict[str, Any] = {
    "kernel": "stationary",
    "radius": 3,
    "symmetric": False,
    "time_step": "token",
    "rate": 0.25,
    "grid": "2d",
    "heads": 2,
    "patch": 2,
}


@pytest.mark.parametrize(
    ("changed", "spec"),
    [
        ({}, TOKENS),
        ({"steps": 0}, dataclasses.replace(PIXELS, grid=(4, 4))),
        ({"kernel": "fixed"}, TOKENS),
        ({"kernel": "adaptive"}, TOKENS),
        ({"kernel": "dense"}, dataclasses.replace(PIXELS, grid=(4, 4))),
        ({"time_step": "raw"}, TOKENS),
        ({"attention": "none"}, TOKENS),
    ],
    ids=str,
)
def test_fields_without_effect_change_nothing(changed: dict[str, Any], spec: InputSpec) -> None:
    plain = LDNConfig(**{"width": 8, "depth": 1, **changed})
    x = inputs(spec)
    idle = plain.without_effect(spec)
    assert idle, "patch, at the least"
    for name in idle:
        other = dataclasses.replace(plain, **{name: IDLE_VALUES[name]})
        assert other != plain
        assert torch.equal(built(other, spec)(x), built(plain, spec)(x)), name


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_width_unit_is_what_the_width_is_a_multiple_of(model: type[ModelConfig]) -> None:
    unit = model().width_unit()
    if unit:
        assert dataclasses.replace(model(), width=5 * unit).width == 5 * unit  # type: ignore[type-var, attr-defined]
    if unit > 1:
        with pytest.raises(ValueError, match="does not divide"):
            dataclasses.replace(model(), width=5 * unit + 1)  # type: ignore[type-var]


# compiled equals eager


@pytest.mark.parametrize(
    ("changed", "backend", "padded"),
    [
        ({"kernel": "multiscale"}, "aot_eager", False),
        ({"kernel": "adaptive", "time_step": "token"}, "aot_eager", True),
        ({"kernel": "stationary", "radius": 2, "attention": "softmax", "norm": "post"}, "aot_eager", True),
        # the C++ of inductor takes a quarter of a minute to build for a whole layer: here diffusion alone
        pytest.param(
            {"kernel": "multiscale", "symmetric": False, "local": False, "attention": "none", "ffn_ratio": 0},
            "inductor",
            True,
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value["kernel"] if isinstance(value, dict) else str(value),
)
def test_compiled_equals_eager_without_a_graph_break(changed: dict[str, Any], backend: str, padded: bool) -> None:
    torch._dynamo.reset()
    network = built(LDNConfig(width=8, depth=1, **changed))
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x, lengths = inputs(VARIABLE), LENGTHS if padded else None
    results = []
    for run in (network, compiled):
        logits = run(x, lengths)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(network.parameters()))])
    for eager, got in zip(*results, strict=True):
        torch.testing.assert_close(got, eager, **EXACT)
