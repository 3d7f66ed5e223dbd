"""What all models share: the specs of input and target, the stem, the feed-forward block, pooling and head.

What differs between two models is then only what mixes the tokens. House letters for shapes:
B batch, N tokens, D width, C classes, H and W the edges of an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ldn.config import AtLeast, Config

Positions = Literal["auto", "learned", "sinusoidal", "none"]


@dataclass(frozen=True, kw_only=True)
class InputSpec(Config):
    """What a task feeds a model.

    kind "tokens": ids, x (B, N) of any integer type · "pixels": vectors, x (B, N, channels) ·
    "image": x (B, channels, H, W).
    `length` is the number of positions (the longest sequence; H * W of an image), `grid` the (H, W)
    on which they lie, if they do. `variable` inputs come with `lengths` (B,) and padding at the end.
    """

    kind: Literal["tokens", "pixels", "image"]
    length: Annotated[int, AtLeast(1)]
    channels: Annotated[int, AtLeast(1)] = 1
    vocabulary: Annotated[int, AtLeast(0)] = 0
    grid: tuple[int, int] | None = None
    variable: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "tokens" and not self.vocabulary:
            raise ValueError("InputSpec of kind 'tokens' needs a vocabulary of at least 1")
        if self.kind == "image" and self.grid is None:
            raise ValueError("InputSpec of kind 'image' needs a grid (H, W)")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.length:
            raise ValueError(f"InputSpec.grid {self.grid} does not hold length {self.length} positions")

    def check(self, x: Tensor) -> None:
        """Raise ValueError if the shape or type of x is not that of a batch of such inputs. Values are not read."""
        shape = tuple(x.shape)
        if self.kind == "tokens":
            wanted, fits = "integers (B, N)", len(shape) == 2 and _is_integer(x)
        elif self.kind == "pixels":
            wanted = f"floats (B, N, {self.channels})"
            fits = x.is_floating_point() and len(shape) == 3 and shape[2] == self.channels
        else:
            sides = (self.channels, *(self.grid or ()))
            wanted = f"floats (B, {', '.join(map(str, sides))})"
            fits = x.is_floating_point() and shape[1:] == sides
        if not fits:
            raise ValueError(f"an input of kind {self.kind!r} is {wanted}, not {x.dtype} {shape}")
        if 0 in shape:
            raise ValueError(f"an input of kind {self.kind!r} has at least one token, not the shape {shape}")

    def check_ids(self, ids: Tensor) -> None:
        """Raise ValueError for ids outside the vocabulary. Ids on a GPU are not read."""
        if is_readable(ids):
            low, high = (int(end) for end in ids.aminmax())
            if low < 0 or high >= self.vocabulary:
                raise ValueError(f"token ids are from 0 to {self.vocabulary - 1}; this input has {low} to {high}")


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def is_readable(x: Tensor) -> bool:
    """Whether the values of x can be checked at once: it is on the CPU, and no graph is being traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def check_lengths(lengths: Tensor, batch: int, n: int) -> None:
    """Raise ValueError unless lengths are integers (B,) from 1 to N. The values of lengths on a GPU are not read."""
    if lengths.shape != (batch,) or not _is_integer(lengths):
        raise ValueError(
            f"lengths are integers of shape ({batch},), one a sequence, not {tuple(lengths.shape)} of {lengths.dtype}"
        )
    if is_readable(lengths):
        low, high = (int(end) for end in lengths.aminmax())
        if low < 1 or high > n:
            raise ValueError(f"lengths are from 1 to {n}, the number of tokens; these go from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class TargetSpec(Config):
    """What a task asks of a model: one of `classes` classes (cross-entropy; metrics loss and accuracy)."""

    kind: Literal["class"] = "class"
    classes: Annotated[int, AtLeast(2)]


class ModelConfig(Config, ABC):
    """What every model's config can do besides holding its fields."""

    @abstractmethod
    def build(self, input: InputSpec, target: TargetSpec) -> nn.Module:
        """The network, `forward(x, lengths=None) -> logits (B, C)`. Raises ValueError where input and config misfit."""

    @abstractmethod
    def without_effect(self, input: InputSpec) -> set[str]:
        """Fields that change nothing beside the others' values: they are no part of a run's identity."""

    @abstractmethod
    def width_unit(self) -> int:
        """What the width is a multiple of; 0 if the model has no width."""


class Stem(nn.Module):
    """Input, lengths -> tokens (B, N, D) with positions added, for every kind of input.

    Ids are embedded, pixels mapped linearly, images cut into patches by a strided convolution with
    bias. `positions` "auto" learns them for inputs that lie on a grid (images, however they are read) and
    uses sinusoids for sequences. With `cls` a learned token is put in front and `grid` no longer describes the tokens.

    Attributes: `length` (tokens N of a full input), `token_grid` (the (H, W) on which they lie, apart from a class
    token in front; None for sequences), `grid` (the same, None with a class token).
    Raises ValueError if an image does not divide into patches.
    """

    def __init__(
        self, spec: InputSpec, width: int, positions: Positions = "auto", patch: int = 4, cls: bool = False
    ) -> None:
        super().__init__()
        self.width, self.patch = width, patch if spec.kind == "image" else 1
        self.embed: nn.Module
        if spec.kind == "tokens":
            self.embed = nn.Embedding(spec.vocabulary, width)
        elif spec.kind == "pixels":
            self.embed = nn.Linear(spec.channels, width)
        else:
            self.embed = nn.Conv2d(spec.channels, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(width)) if cls else None
        self._lay_out(spec)
        if positions == "auto":
            positions = "sinusoidal" if spec.grid is None else "learned"
        self.positions_kind = positions
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(self.length, width))
            nn.init.trunc_normal_(self.positions, std=0.02)
        elif positions == "sinusoidal":
            self.register_buffer("positions", sinusoids(self.length, width), persistent=False)

    def _lay_out(self, spec: InputSpec) -> None:
        """Take such inputs from now on."""
        token_grid = None
        if spec.grid is not None:
            if spec.grid[0] % self.patch or spec.grid[1] % self.patch:
                height, width = spec.grid
                raise ValueError(f"an image of {height} x {width} does not divide into patches of {self.patch}")
            token_grid = (spec.grid[0] // self.patch, spec.grid[1] // self.patch)
        self.spec, self.token_grid = spec, token_grid
        self.grid = token_grid if self.cls is None else None
        self.length = spec.length // self.patch**2 + (self.cls is not None)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.spec.check(x)
        if self.spec.kind == "tokens":
            x = x.long()  # ids are stored as small as they fit, and widened only here
        if lengths is not None:
            x = self._without_padding(x, lengths)
        if self.spec.kind == "tokens":
            self.spec.check_ids(x)
        h = self.embed(x)  # (B, N, D), of an image (B, D, H, W)
        if self.spec.kind == "image":
            h = h.flatten(2).transpose(1, 2)
        if self.cls is not None:
            h = torch.cat([self.cls.to(h.dtype).expand(h.shape[0], 1, -1), h], dim=1)
        if self.positions_kind == "none":
            return h
        n = h.shape[1]
        if n <= len(self.positions):
            return h + self.positions[:n]
        if self.positions_kind == "learned":
            raise ValueError(f"{n} tokens, but positions were learned for {self.length}; use positions='sinusoidal'")
        return h + sinusoids(n, self.width).to(h)

    def _without_padding(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x with 0 in its padding; of an image, the patches behind the first `lengths` are padding."""
        if self.spec.kind != "image":
            return zero_padding(x, lengths)
        assert self.token_grid is not None
        n = self.token_grid[0] * self.token_grid[1]
        check_lengths(lengths, len(x), n)
        real = real_positions(lengths, n).view(-1, 1, *self.token_grid)
        real = real.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
        return torch.where(real, x, 0)

    def move_to(self, spec: InputSpec) -> None:
        """Read inputs of another grid from now on, for evaluation: learned positions are interpolated to it.

        Bicubic in two dimensions, a class token's own position apart, as ViTs do it (Dosovitskiy et al. 2021,
        arXiv 2010.11929, section 3.2). Raises ValueError if one of the two has no grid, or an image does not
        divide into patches.
        """
        if spec.grid is None or self.token_grid is None:
            raise ValueError("positions are interpolated from one grid to another, and a sequence has none")
        before, front = self.token_grid, 0 if self.cls is None else 1
        self._lay_out(spec)
        if self.positions_kind == "learned":
            image = self.positions[front:].detach().T.view(1, self.width, *before)
            moved = interpolate(image, size=self.token_grid, mode="bicubic", align_corners=False)[0].flatten(1).T
            self.positions = nn.Parameter(torch.cat([self.positions[:front].detach(), moved]))


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions (N, D) of Vaswani et al. 2017, section 3.5: sines and cosines alternate."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


class FeedForward(nn.Sequential):
    """Linear(D, hidden), GELU, Linear(hidden, D), token by token."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)]
        super().__init__(*layers, *([nn.Dropout(dropout)] if dropout else []))


def real_positions(lengths: Tensor, n: int) -> Tensor:
    """Which of `n` positions hold real tokens: bool (B, N) from lengths (B,)."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, N, ...) with 0 behind each sequence's length. Raises ValueError for lengths that do not fit x.

    Padding is replaced before any arithmetic, so that even inf and NaN reach neither a token nor a gradient.
    """
    if lengths is None:
        return x
    check_lengths(lengths, x.shape[0], x.shape[1])
    real = real_positions(lengths, x.shape[1])
    return torch.where(real.view(*real.shape, *(1,) * (x.dim() - 2)), x, 0)


def mean_pool(h: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the real tokens: (B, N, D) -> (B, D)."""
    if lengths is None:
        return h.mean(dim=1)
    real = real_positions(lengths, h.shape[1])[..., None]
    # half precision counts only small numbers exactly
    total = torch.where(real, h, 0).sum(dim=1, dtype=torch.promote_types(h.dtype, torch.float32))
    return (total / real.sum(dim=1)).to(h.dtype)


class Classifier(nn.Module):
    """Stem, backbone (whatever mixes tokens), pooling, linear head.

    The batch contract is (x, lengths, y): `forward(x, lengths)` gives logits (B, C); `lengths` (B,)
    is None where nothing is padded. The logits of a padded batch equal those of its sequences run
    alone, and neither they nor any gradient depend on the values in the padding, inf and NaN included.

    Raises ValueError for an x of another kind or shape, for lengths where the backbone has a fixed length, and for
    ids outside the vocabulary and lengths outside 1 to N where these are on the CPU. On a GPU, reading them would
    wait for it: there a length above N counts as N, and one below 1 gives logits of NaN, or with a class token
    logits that ignore x.
    """

    def __init__(
        self, stem: Stem, backbone: nn.Module, target: TargetSpec, pool: Literal["mean", "cls"] = "mean"
    ) -> None:
        super().__init__()
        self.stem, self.backbone, self.pool = stem, backbone, pool
        self.head = nn.Linear(stem.width, target.classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        h = self.stem(x, lengths)
        if lengths is not None and self.stem.cls is not None:
            lengths = lengths.long() + 1
        h = self.backbone(h, lengths)
        return self.head(h[:, 0] if self.pool == "cls" else mean_pool(h, lengths))
