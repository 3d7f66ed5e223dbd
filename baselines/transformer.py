"""The Transformer encoder baseline: pre-norm, on `scaled_dot_product_attention`.

Vaswani et al. 2017 (arXiv 1706.03762) with the normalisation before each block (Xiong et al. 2020, arXiv 2002.04745).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ldn.classifier import (
    Classifier,
    FeedForward,
    InputSpec,
    ModelConfig,
    Positions,
    Stem,
    TargetSpec,
    real_positions,
    zero_padding,
)
from ldn.config import AtLeast, Between


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """A Transformer encoder of `depth` layers; `ffn_ratio` is the hidden width of the ffn over the width."""

    name: ClassVar[str] = "transformer"

    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, Between(1, 10_000)] = 6
    heads: Annotated[int, AtLeast(1)] = 4
    ffn_ratio: Annotated[int, AtLeast(1)] = 4
    dropout: Annotated[float, Between(0, 1)] = 0.0
    positions: Positions = "auto"
    pool: Literal["mean", "cls"] = "mean"
    patch: Annotated[int, AtLeast(1)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"TransformerConfig.width {self.width} does not divide into {self.heads} heads")

    def without_effect(self, input: InputSpec) -> set[str]:
        return {"patch"} if input.kind != "image" else set()

    def width_unit(self) -> int:
        return self.heads

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError for causal inputs."""
        if input.causal:
            raise ValueError("the Transformer baseline is an encoder: it takes no causal inputs")
        stem = Stem(input, self.width, self.positions, self.patch, cls=self.pool == "cls")
        backbone = Transformer(self.width, self.depth, self.heads, self.ffn_ratio, self.dropout)
        return Classifier(stem, backbone, target, self.pool)


class SelfAttention(nn.Module):
    """u (B, N, D), lengths (B,) or None -> (B, N, D); finite values in the padding reach no real token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        batch, n, width = u.shape
        q, k, v = self.qkv(u).view(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        mask = None if lengths is None else real_positions(lengths, n)[:, None, None]  # (B, 1, 1, N)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, n, width))


class TransformerLayer(nn.Module):
    def __init__(self, width: int, heads: int, ffn_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FeedForward(width, ffn_ratio * width, dropout)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        h = h + self.dropout(self.attention(self.norm(h), lengths))
        return h + self.ffn(self.norm_ffn(h))


class Transformer(nn.Module):
    """The stack and its final LayerNorm. h (B, N, D), lengths (B,) or None -> (B, N, D).

    Values in the padding, inf and NaN included, reach neither a real token nor a gradient.
    """

    def __init__(self, width: int, depth: int, heads: int, ffn_ratio: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, ffn_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        h = zero_padding(h, lengths)
        for layer in self.layers:
            h = layer(h, lengths)
        return self.norm(h)
