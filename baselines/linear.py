"""The floor of every table: one linear map from the whole input to the classes, without a network in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldn.classifier import InputSpec, ModelConfig, TargetSpec


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ModelConfig):
    """Multinomial logistic regression on the raw input (token ids one-hot, position by position); nothing to set."""

    name: ClassVar[str] = "linear"

    def without_effect(self, input: InputSpec) -> set[str]:
        return set()

    def width_unit(self) -> int:
        return 0

    def build(self, input: InputSpec, target: TargetSpec) -> nn.Module:
        """The network. Raises ValueError for inputs of variable length and for causal ones."""
        if input.variable or input.causal:
            raise ValueError("the linear baseline reads the whole input: neither variable lengths nor causal inputs")
        return Linear(input, target)


class Linear(nn.Module):
    """forward(x, lengths=None): x as the task gives it -> logits (B, C). Refuses lengths."""

    def __init__(self, input: InputSpec, target: TargetSpec) -> None:
        super().__init__()
        self.input = input
        self.vocabulary = input.vocabulary if input.kind == "tokens" else 0
        self.map = nn.Linear(input.length * (self.vocabulary or input.channels), target.classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        n = self.input.length
        self.input.check(x)
        if lengths is not None or (self.input.kind != "image" and x.shape[1] != n):
            raise ValueError(f"the linear baseline has a fixed length of {n} tokens and takes no lengths")
        if self.vocabulary:
            self.input.check_ids(x)
            x = nn.functional.one_hot(x.long(), self.vocabulary).to(self.map.weight.dtype)
        return self.map(torch.flatten(x, 1))
