"""Real handwritten digits that need no download: one to recognise, or two with a cue that says which.

The 1797 digits of 8 x 8 pixels are those of scikit-learn (`load_digits`, from the UCI Optical Recognition of
Handwritten Digits data, Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ldn.classifier import InputSpec, TargetSpec
from ldn.config import AtLeast
from results.entries import DataFacts
from studies.tasks.task import Data, Split, Task, fingerprint, floors

View = Literal["rows", "pixels", "image"]
EDGE = 8
VALID, TEST = 200, 360  # of the 1797 digits; the rest is for training


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """One digit, as 8 rows of 8 pixels, as 64 pixels, or as an image.

    A linear model gets over 90 % of them right: this task shows that everything runs, and nothing more.
    """

    name: ClassVar[str] = "digits"

    view: View = "rows"
    seed: Annotated[int, AtLeast(0)] = 0

    @property
    def input(self) -> InputSpec:
        return _input(self.view, (EDGE, EDGE))

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=10)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def load(self, folder: Path) -> Data:
        images, labels = digits()
        parts = split_digits(len(labels), np.random.default_rng(self.seed))
        return _data([(images[part], labels[part], None) for part in parts], self.view)


@dataclass(frozen=True, kw_only=True)
class CuedDigits(Task):
    """A cue, a gap, then two digits; the label is the first or the second digit, as the cue says.

    Neither digit alone decides: a model that does not mix tokens, trained by cross-entropy, stays near one half (it
    names one of the two). The cue is the very first token; `gap` blank digits stand between it and the two digits:
    1 + 8 gap + 16 tokens as "rows", 1 + 64 gap + 128 as "pixels". As an "image" (8 columns,
    blocks of 8 x 8 below each other) the cue is a whole block. No digit appears in two splits.
    """

    name: ClassVar[str] = "cued_digits"

    view: View = "rows"
    gap: Annotated[int, AtLeast(0)] = 1
    train: Annotated[int, AtLeast(1)] = 16_000
    valid: Annotated[int, AtLeast(1)] = 2_000
    test: Annotated[int, AtLeast(1)] = 4_000
    seed: Annotated[int, AtLeast(0)] = 0

    @property
    def input(self) -> InputSpec:
        if self.view == "image":
            return _input("image", ((1 + self.gap + 2) * EDGE, EDGE))
        per_digit, channels = (EDGE, EDGE) if self.view == "rows" else (EDGE * EDGE, 1)
        return InputSpec(kind="pixels", length=1 + (self.gap + 2) * per_digit, channels=channels)

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=10)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def load(self, folder: Path) -> Data:
        images, labels = digits()
        rng = np.random.default_rng(self.seed)
        parts = split_digits(len(labels), rng)
        splits, either = [], 0.0
        for part, count in zip(parts, (self.train, self.valid, self.test), strict=True):
            first, second = rng.choice(part, (2, count))
            cue = rng.integers(0, 2, count)  # 0 asks for the first digit, 1 for the second
            x = self.arrange(cue, images[first], images[second])
            asked_for = np.where(cue == 0, first, second)
            y = labels[asked_for]
            splits.append((x, y, asked_for))  # few digits make many pairs
            either = float(((labels[first] == y) / 2 + (labels[second] == y) / 2).mean())  # of test, which is last
        return _data(splits, "as arranged", {"either digit, at random": either})

    def arrange(self, cue: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cue (n,) and digits (n, 8, 8) as this view lays them out. A cue is bright on one half, dark on the other."""
        n, bright = len(cue), np.where(cue == 0, 1.0, -1.0)
        blank = np.zeros((n, self.gap * EDGE, EDGE))
        digits = np.concatenate([blank, first, second], axis=1)  # (n, 8 gap + 16, 8)
        if self.view == "pixels":
            return np.concatenate([bright[:, None, None], digits.reshape(n, -1, 1)], axis=1)
        row = bright[:, None] * np.repeat([1.0, -1.0], EDGE // 2)  # (n, 8)
        height = EDGE if self.view == "image" else 1
        x = np.concatenate([np.repeat(row[:, None], height, axis=1), digits], axis=1)
        return x[:, None] if self.view == "image" else x


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits, brightness from -1 to 1 as float32 (1797, 8, 8), and their labels (1797,)."""
    from sklearn.datasets import load_digits  # imported where it is used: it takes a second

    bunch = load_digits()
    return (bunch.images / 8 - 1).astype(np.float32), bunch.target.astype(np.int64)


def split_digits(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Disjoint indices of the digits for training, validation and test."""
    order = rng.permutation(count)
    return [order[VALID + TEST :], order[:VALID], order[VALID : VALID + TEST]]


def _input(view: View, grid: tuple[int, int]) -> InputSpec:
    height, width = grid
    if view == "rows":
        return InputSpec(kind="pixels", length=height, channels=width)
    kind: Literal["pixels", "image"] = "pixels" if view == "pixels" else "image"
    return InputSpec(kind=kind, length=height * width, channels=1, grid=grid)


def _data(
    splits: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    view: str,
    shortcuts: dict[str, float] | None = None,
) -> Data:
    tensors = []
    for x, y, source in splits:
        if view == "pixels":
            x = x.reshape(len(x), -1, 1)
        elif view == "image":
            x = x[:, None]
        x = np.ascontiguousarray(x, dtype=np.float32)
        made_of = None if source is None else torch.from_numpy(source)
        tensors.append(Split(torch.from_numpy(x), None, torch.from_numpy(y), made_of))
    train, valid, test = tensors
    provenance: DataFacts = {"fingerprint": fingerprint(train, valid, test), **floors(train, test, 10, shortcuts)}
    return Data(train, valid, test, provenance)
