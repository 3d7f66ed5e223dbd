"""The two models as their author published them in code, so that "as published" is an arm of a study.

Linear Diffusion Networks, arXiv 2502.12381. Nothing here is bounded: the diffusion's scalar rate is free, and
the vision kernel's row sums grow with N. The LayerNorm after every sum hides it.

    H <- LayerNorm(H + diffusion(H) + local(H) + mixer(H) + attention(H))
    H <- LayerNorm(H + ffn(H))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, elu, softplus

from ldn.classifier import (
    Classifier,
    FeedForward,
    InputSpec,
    ModelConfig,
    Stem,
    TargetSpec,
    real_positions,
    zero_padding,
)
from ldn.config import AtLeast, Between


@dataclass(frozen=True, kw_only=True)
class PaperVisionConfig(ModelConfig):
    """The published image classifier: dense kernel softplus(Theta), a token mixer, patches of 4."""

    name: ClassVar[str] = "paper-vision"

    width: Annotated[int, AtLeast(1)] = 192
    depth: Annotated[int, Between(1, 10_000)] = 6
    patch: Annotated[int, AtLeast(1)] = 4

    def without_effect(self, input: InputSpec) -> set[str]:
        return {"patch"} if input.kind != "image" else set()

    def width_unit(self) -> int:
        return 1

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError for inputs of variable length."""
        if input.variable or input.causal:
            raise ValueError("paper-vision has a fixed length: it takes neither variable lengths nor causal inputs")
        stem = Stem(input, self.width, "learned", self.patch)
        width, n = self.width, stem.length
        layers = [PaperLayer(width, DenseHeat(n), TokenMixer(width, n)) for _ in range(self.depth)]
        return Classifier(stem, PaperStack(layers), target)


@dataclass(frozen=True, kw_only=True)
class PaperSequenceConfig(ModelConfig):
    """The published sequence classifier: depthwise convolutions of width 3 for kernel and mixer; any length."""

    name: ClassVar[str] = "paper-sequence"

    width: Annotated[int, AtLeast(1)] = 192
    depth: Annotated[int, Between(1, 10_000)] = 6
    patch: Annotated[int, AtLeast(1)] = 4

    def without_effect(self, input: InputSpec) -> set[str]:
        return {"patch"} if input.kind != "image" else set()

    def width_unit(self) -> int:
        return 1

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError for causal inputs."""
        if input.causal:
            raise ValueError("paper-sequence looks at both neighbours: it takes no causal inputs")
        stem = Stem(input, self.width, "sinusoidal", self.patch)
        layers = [PaperLayer(self.width, ConvHeat(self.width), ConvMixer(self.width)) for _ in range(self.depth)]
        return Classifier(stem, PaperStack(layers), target)


class DenseHeat(nn.Module):
    """dt (K H - rowsum(K) H), K = softplus(Theta) of shape N x N, dt a free scalar from 0.1."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(length, length))
        self.dt = nn.Parameter(torch.tensor(0.1))

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None or h.shape[1] != len(self.theta):
            raise ValueError(f"paper-vision has a fixed length of {len(self.theta)} tokens and takes no lengths")
        kernel = softplus(self.theta)
        return self.dt * (kernel @ h - kernel.sum(dim=1, keepdim=True) * h)


class TokenMixer(nn.Module):
    """LayerNorm over D, then Linear(N, N), GELU, Linear(N, N) along the tokens."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = FeedForward(length, length)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        return self.mix(self.norm(h).transpose(1, 2)).transpose(1, 2)


class DepthwiseConv(nn.Conv1d):
    """Depthwise convolution of width 3 along the tokens, zeros at both ends and in the padding."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)

    def along(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            h = torch.where(real_positions(lengths, h.shape[1])[..., None], h, 0)
        return conv1d(h.transpose(1, 2), self.weight, self.bias, padding=1, groups=self.groups).transpose(1, 2)


class ConvHeat(nn.Module):
    """dt (conv(H) - H), dt a free scalar from 0.1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv(width)
        self.dt = nn.Parameter(torch.tensor(0.1))

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        return self.dt * (self.conv.along(h, lengths) - h)


class ConvMixer(nn.Module):
    """LayerNorm over D, then depthwise convolution, GELU, depthwise convolution along the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = DepthwiseConv(width), DepthwiseConv(width)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        h = nn.functional.gelu(self.first.along(self.norm(h), lengths))
        return self.second.along(h, lengths)


class PaperAttention(nn.Module):
    """Single-head linear attention with biased q, k, v maps, no output map, and 1e-6 added to the normaliser."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        q, k = elu(q) + 1, elu(k) + 1
        if lengths is not None:
            real = real_positions(lengths, h.shape[1])[..., None]
            k, v = torch.where(real, k, 0), torch.where(real, v, 0)
        return (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(dim=1)[..., None] + 1e-6)


class PaperLayer(nn.Module):
    """All four updates read the same H."""

    def __init__(self, width: int, diffusion: nn.Module, mixer: nn.Module) -> None:
        super().__init__()
        self.diffusion, self.mixer = diffusion, mixer
        self.local, self.attention = FeedForward(width, width), PaperAttention(width)
        self.ffn = FeedForward(width, width)
        self.norm, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        update = self.diffusion(h, lengths) + self.local(h) + self.mixer(h, lengths) + self.attention(h, lengths)
        h = self.norm(h + update)
        return self.norm_ffn(h + self.ffn(h))


class PaperStack(nn.Module):
    """The stack of layers. h (B, N, D), lengths (B,) or None -> (B, N, D).

    Values in the padding, inf and NaN included, reach neither a real token nor a gradient.
    """

    def __init__(self, layers: list[PaperLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        h = zero_padding(h, lengths)
        for layer in self.layers:
            h = layer(h, lengths)
        return h
