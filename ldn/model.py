"""The Linear Diffusion Network: its config, one layer, the stack. Start here.

    H <- H + diffusion(H) + local(H) + attention(H)
    H <- H + ffn(H)

Linear Diffusion Networks, arXiv 2502.12381; every term can be varied or switched off, which the ablations do.
The paper's published models are arms of their own, in `ldn/published.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from ldn.classifier import Classifier, FeedForward, InputSpec, ModelConfig, Positions, Stem, TargetSpec, zero_padding
from ldn.config import AtLeast, Between
from ldn.terms import Attention, AttentionKind, DenseDiffusion, Diffusion, Kernel, TimeStep


@dataclass(frozen=True, kw_only=True)
class LDNConfig(ModelConfig):
    """The preset `ldn`; each field is an axis of the ablation. A term that is off costs no parameters and no time.

    width, depth: D and the number of layers.
    steps: explicit diffusion sub-steps a layer, 0 for none.
    kernel: along what they go. "fixed": both neighbours alike. "stationary": learned weights of the offsets up to
        `radius`, for each channel. "multiscale": the same, dilated by 1, 2, 4, ... from sub-step to sub-step. "dense":
        a learned N x N matrix. "adaptive": the neighbours, with conductances that follow from the tokens.
    radius, symmetric: of learned stencils; a symmetric one weighs both directions alike.
    time_step: the rate a, in (0, 1), starting at `rate`. "fixed": it stays there. "learned": one a layer. "channel":
        one a channel. "token": from each token. "raw": one a layer without bounds, as published.
    attention, heads: "linear": A v with the feature map elu + 1. "diffusion": (A - I) v of the same A, whose rows sum
        to zero. "softmax": scaled dot products. "none".
    local: the per-token term, on or off.
    grid: "1d" diffuses along the sequence, "2d" to the neighbours on an image's grid.
    norm: "pre" normalises what local, attention and ffn read, never what diffuses; "post" after each sum, as published.
    ffn_ratio: hidden width of the ffn over the width, 0 for no ffn.
    dropout: behind local and ffn.
    positions, patch: of the `Stem`.
    fused: on a GPU, diffusion and linear attention by kernels of their own; elsewhere it changes nothing.

    Raises ValueError for a width that does not divide into the heads, and a learned rate that starts at 0 or 1.
    """

    name: ClassVar[str] = "ldn"

    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, Between(1, 10_000)] = 6
    steps: Annotated[int, Between(0, 10_000)] = 2
    kernel: Kernel = "multiscale"
    radius: Annotated[int, Between(1, 10_000)] = 1
    symmetric: bool = True
    time_step: TimeStep = "channel"
    rate: Annotated[float, Between(0, 1)] = 0.5
    attention: AttentionKind = "diffusion"
    heads: Annotated[int, AtLeast(1)] = 4
    local: bool = True
    grid: Literal["1d", "2d"] = "1d"
    norm: Literal["pre", "post"] = "pre"
    ffn_ratio: Annotated[int, AtLeast(0)] = 2
    dropout: Annotated[float, Between(0, 1)] = 0.0
    positions: Positions = "auto"
    patch: Annotated[int, AtLeast(1)] = 4
    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention != "none" and self.width % self.heads:
            raise ValueError(f"LDNConfig.width {self.width} does not divide into {self.heads} heads")
        if self.time_step != "fixed" and self.rate in (0.0, 1.0):
            raise ValueError("LDNConfig.rate of exactly 0 or 1 needs time_step='fixed': a learned one would never move")

    def without_effect(self, input: InputSpec) -> set[str]:
        """Fields that change nothing beside the others' values: they are no part of a run's identity."""
        idle = set()
        if self.steps == 0:
            idle |= {"kernel", "radius", "symmetric", "time_step", "rate", "grid"}
        if self.kernel not in ("stationary", "multiscale"):
            idle |= {"radius", "symmetric"}
        if self.kernel == "dense":
            idle |= {"grid"}
        if self.time_step == "raw":
            idle |= {"rate"}
        if self.attention == "none":
            idle |= {"heads"}
        if not self.local and self.ffn_ratio == 0:
            idle |= {"dropout"}
        if input.kind != "image":
            idle |= {"patch"}
        if (self.steps == 0 or self.kernel == "dense") and self.attention in ("none", "softmax"):
            idle |= {"fused"}
        return idle

    def width_unit(self) -> int:
        """The width is a multiple of this."""
        return self.heads if self.attention != "none" else 1

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError where input and config do not fit."""
        if input.causal:
            raise ValueError("causal LDN models are not built yet; use a task whose input is not causal")
        stem = Stem(input, self.width, self.positions, self.patch)
        return Classifier(stem, LDN(self, stem.length, stem.grid, input.variable), target)


class LDNLayer(nn.Module):
    """One layer: the sum of its terms, then the ffn. h (B, N, D), lengths (B,) or None -> (B, N, D).

    Finite values in the padding reach no real token. Only the stack, `LDN`, replaces inf and NaN there.
    """

    def __init__(self, config: LDNConfig, length: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        c, width = config, config.width
        self.diffusion: Diffusion | DenseDiffusion | None = None
        if c.steps and c.kernel == "dense":
            self.diffusion = DenseDiffusion(length, width, steps=c.steps, time_step=c.time_step, rate=c.rate)
        elif c.steps:
            self.diffusion = Diffusion(
                length, width, steps=c.steps, kernel=c.kernel, time_step=c.time_step, rate=c.rate, radius=c.radius,
                symmetric=c.symmetric, grid=grid, fused=c.fused,
            )  # fmt: skip
        self.local = FeedForward(width, width, c.dropout) if c.local else None
        self.attention = Attention(width, c.heads, c.attention, c.fused) if c.attention != "none" else None
        self.ffn = FeedForward(width, c.ffn_ratio * width, c.dropout) if c.ffn_ratio else None
        self.pre = c.norm == "pre"
        read = self.local or self.attention or (self.diffusion is not None and self.diffusion.reads_tokens)
        # pre: before the terms that read it; post: after the sum
        self.norm = nn.LayerNorm(width) if read or not self.pre else None
        self.norm_ffn = nn.LayerNorm(width) if c.ffn_ratio else None

    def forward(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        u = self.norm(h) if self.pre and self.norm is not None else h
        # diffusion moves h itself: on a normalised copy its bound would be lost
        out = h if self.diffusion is None else self.diffusion(h, u, lengths)
        if self.local is not None:
            out = out + self.local(u)
        if self.attention is not None:
            out = out + self.attention(u, lengths)
        if not self.pre and self.norm is not None:
            out = self.norm(out)
        if self.ffn is None or self.norm_ffn is None:
            return out
        return out + self.ffn(self.norm_ffn(out)) if self.pre else self.norm_ffn(out + self.ffn(out))


class LDN(nn.Module):
    """The stack of layers, of pre-norm ones with a final LayerNorm. h (B, N, D), lengths (B,) or None -> (B, N, D).

    `length` is the largest N it is meant for: multiscale dilations and a dense kernel follow it. `grid` is the (H, W)
    on which the tokens lie, if they do; `variable` says that lengths vary. Values in the padding, inf and NaN included,
    reach neither a real token nor a gradient. Raises ValueError where the arguments and the config do not fit, and for
    lengths on the CPU outside 1 to N.
    """

    def __init__(
        self, config: LDNConfig, length: int, grid: tuple[int, int] | None = None, variable: bool = False
    ) -> None:
        super().__init__()
        if config.steps and config.kernel == "dense" and variable:
            raise ValueError("the dense kernel has a fixed length; this task's sequences vary in length")
        grid = grid if config.grid == "2d" and config.steps else None
        if config.grid == "2d" and config.steps and grid is None:
            raise ValueError("grid='2d' needs a task whose tokens lie on a grid (an image); this one's do not")
        if grid is not None and variable:
            raise ValueError("grid='2d' has a fixed length; this task's inputs vary in length")
        self.layers = nn.ModuleList(LDNLayer(config, length, grid) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()

    def forward(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        h = zero_padding(h, lengths)
        for layer in self.layers:
            h = layer(h, lengths)
        return self.norm(h)
