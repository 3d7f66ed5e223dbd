"""The recurrent baselines: stacked LSTM and GRU, one direction or both.

Hochreiter and Schmidhuber 1997; Cho et al. 2014 (arXiv 1406.1078); both directions as in Schuster and Paliwal 1997.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ldn.classifier import Classifier, InputSpec, ModelConfig, Positions, Stem, TargetSpec, check_lengths
from ldn.config import AtLeast, Between


@dataclass(frozen=True, kw_only=True)
class RNNConfig(ModelConfig):
    """`depth` stacked layers whose output is `width` wide: with both directions, each has half of it.

    A recurrence counts the positions itself, so by default none are added.
    """

    name: ClassVar[str] = "rnn"

    cell: Literal["lstm", "gru"] = "lstm"
    bidirectional: bool = True
    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, Between(1, 10_000)] = 2
    dropout: Annotated[float, Between(0, 1)] = 0.0
    positions: Positions = "none"
    patch: Annotated[int, AtLeast(1)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional and self.width % 2:
            raise ValueError(f"RNNConfig.width {self.width} does not divide into two directions")

    def without_effect(self, input: InputSpec) -> set[str]:
        return ({"patch"} if input.kind != "image" else set()) | ({"dropout"} if self.depth == 1 else set())

    def width_unit(self) -> int:
        return 2 if self.bidirectional else 1

    def build(self, input: InputSpec, target: TargetSpec) -> Classifier:
        """The network. Raises ValueError for causal inputs that would be read in both directions."""
        if input.causal and self.bidirectional:
            raise ValueError("a bidirectional RNN reads ahead: causal inputs need bidirectional=False")
        return Classifier(Stem(input, self.width, self.positions, self.patch), RNN(self), target)


class RNN(nn.Module):
    """h (B, N, D), lengths (B,) or None -> (B, N, D); each direction starts at a sequence's own end."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        c = self.config = config
        self.rnn = (nn.LSTM if c.cell == "lstm" else nn.GRU)(
            c.width,
            c.width // 2 if c.bidirectional else c.width,
            num_layers=c.depth,
            batch_first=True,
            bidirectional=c.bidirectional,
            dropout=c.dropout if c.depth > 1 else 0.0,
        )

    def layers(self) -> list[RNN]:
        """Copies of the layers, each as an RNN of one layer: one after the other they compute what this does."""
        copies = []
        for depth in range(self.config.depth):
            layer = RNN(dataclasses.replace(self.config, depth=1))
            state = {
                re.sub(rf"_l{depth}(?=_|$)", "_l0", name): value
                for name, value in self.rnn.state_dict().items()
                if re.search(rf"_l{depth}(_|$)", name)
            }
            layer.rnn.load_state_dict(state)
            copies.append(layer.to(next(self.parameters()).device).train(self.training))
        return copies

    def forward(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return self.rnn(h)[0]
        lengths = lengths.cpu()
        check_lengths(lengths, h.shape[0], h.shape[1])
        packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=h.shape[1])[0]
