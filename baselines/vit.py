"""The Vision Transformer baseline: patches, a class token, learned positions.

Dosovitskiy et al. 2021 (arXiv 2010.11929), in the sizes Ti, S and B of DeiT (Touvron et al. 2021, arXiv 2012.12877).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from baselines.transformer import Transformer
from ldn.classifier import Classifier, InputSpec, ModelConfig, Stem, TargetSpec
from ldn.config import AtLeast, Between


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """The defaults are ViT-Ti/16; `vit_ti`, `vit_s` and `vit_b` are the three published sizes."""

    name: ClassVar[str] = "vit"

    width: Annotated[int, AtLeast(1)] = 192
    depth: Annotated[int, Between(1, 10_000)] = 12
    heads: Annotated[int, AtLeast(1)] = 3
    ffn_ratio: Annotated[int, AtLeast(1)] = 4
    patch: Annotated[int, AtLeast(1)] = 16
    pool: Literal["cls", "mean"] = "cls"
    dropout: Annotated[float, Between(0, 1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"ViTConfig.width {self.width} does not divide into {self.heads} heads")

    def without_effect(self, input: InputSpec) -> set[str]:
        return set()

    def width_unit(self) -> int:
        return self.heads

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError for anything but an image, and for causal inputs."""
        if input.kind != "image":
            raise ValueError(f"ViT reads images; this task's input is of kind {input.kind!r} (choose its image view)")
        if input.causal:
            raise ValueError("ViT attends to all patches: it takes no causal inputs")
        stem = Stem(input, self.width, "learned", self.patch, cls=self.pool == "cls")
        backbone = Transformer(self.width, self.depth, self.heads, self.ffn_ratio, self.dropout)
        return Classifier(stem, backbone, target, self.pool)


def vit_ti(patch: int = 16) -> ViTConfig:
    return ViTConfig(width=192, heads=3, patch=patch)


def vit_s(patch: int = 16) -> ViTConfig:
    return ViTConfig(width=384, heads=6, patch=patch)


def vit_b(patch: int = 16) -> ViTConfig:
    return ViTConfig(width=768, heads=12, patch=patch)
