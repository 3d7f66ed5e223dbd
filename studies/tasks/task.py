"""What a task is: a frozen config that says what goes in and out, and loads tensors onto a device.

A task knows no model. Its test set and whatever it generates are fixed by its own `seed`, never by
a run's; a run's seed decides only initialisation, batch order and augmentation.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ldn.classifier import InputSpec, TargetSpec
from ldn.config import Config
from results.entries import DataFacts


@dataclass(frozen=True)
class Split:
    """Examples of one split: x (n, ...), lengths (n,) or None where nothing is padded, y (n,) int64.

    `source` (n,) int64 says what each was made of, where several are made of the same: they are not independent.
    """

    x: Tensor
    lengths: Tensor | None
    y: Tensor
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Split(self.x.to(device), lengths, self.y.to(device), self.source)


@dataclass(frozen=True)
class Data:
    """A loaded task: its three splits, and where they came from.

    `provenance` goes into the record as it is: a fingerprint of the tensors, how many test examples there are, what
    needs no model (`floors`), and for data read from files what their checksums said.
    """

    train: Split
    valid: Split
    test: Split
    provenance: DataFacts = field(default_factory=DataFacts)

    def to(self, device: torch.device) -> Data:
        return Data(self.train.to(device), self.valid.to(device), self.test.to(device), self.provenance)


class Task(Config, ABC):
    """Base of every task. Subclasses are frozen, keyword-only dataclasses with a class-level `name`."""

    @property
    @abstractmethod
    def input(self) -> InputSpec:
        """What a batch's x looks like, known without loading anything."""

    @property
    @abstractmethod
    def target(self) -> TargetSpec:
        """What is asked, known without loading anything."""

    @abstractmethod
    def load(self, folder: Path) -> Data:
        """The data, on the CPU. `folder` is where downloaded files lie and caches are kept.

        Raises FileNotFoundError or ValueError with one sentence that says what to put where.
        """

    def missing(self, folder: Path) -> str:
        """Which of its files are not there and what to do, in one sentence; empty where all are."""
        return ""

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """A batch as stored -> as the model reads it (standardised, say); runs on the device, after augmentation."""


def loaded(task: Task, folder: Path) -> Data:
    """The task's data, on the CPU. Raises as `load` does, and ValueError where the data are not what the task says."""
    data = task.load(folder)
    for name in ("train", "valid", "test"):
        if fault := _fault(getattr(data, name), task.input, task.target):
            raise ValueError(f"the {name} split of task {task.name!r} {fault}")
    return data


def _fault(split: Split, input: InputSpec, target: TargetSpec) -> str:
    """What is wrong with a split, which on a GPU would be a failed assertion or a wrong number; empty if nothing is."""
    x, lengths, y = split.x, split.lengths, split.y
    if len(y) == 0 or not len(x) == len(y) == (len(y) if lengths is None else len(lengths)):
        counts = f"{len(x)} inputs, {len(y)} labels" + ("" if lengths is None else f", {len(lengths)} lengths")
        return f"has {counts}; it needs as many of each, and at least one"
    if y.dtype != torch.int64 or y.min() < 0 or y.max() >= target.classes:
        return f"has {y.dtype} labels from {y.min()} to {y.max()}; they must be int64, from 0 to {target.classes - 1}"
    if lengths is not None:
        shortest, longest = _bounds(lengths)
        if shortest < 1 or longest > x.shape[1]:
            return f"has lengths from {shortest} to {longest}; they must be from 1 to {x.shape[1]}"
    if input.kind == "tokens" and not x.is_floating_point():
        lowest, highest = _bounds(x)
        if lowest < 0 or highest >= input.vocabulary:
            return f"has ids from {lowest} to {highest}; they must be from 0 to {input.vocabulary - 1}"
    if x.is_floating_point() and not x.isfinite().all():
        return f"has {int((~x.isfinite()).sum())} values that are not finite"
    return ""


def _bounds(values: Tensor) -> tuple[int, int]:
    """Smallest and largest value, as Python integers: a comparison with a uint8 tensor would wrap 256 to 0."""
    array = values.numpy()  # torch has no min and max for uint16, uint32 and uint64
    return int(array.min()), int(array.max())


def floors(train: Split, test: Split, classes: int, shortcuts: Mapping[str, float] | None = None) -> DataFacts:
    """What accuracy on `test` needs no model, for the record: {"floors": {name: accuracy}, "test_examples": n}.

    "chance" names any class; "most frequent class" always names the one that is most frequent in `train`.
    `shortcuts` are a task's own: what one may reach without doing what it asks.
    """
    commonest = int(torch.bincount(train.y, minlength=classes).argmax())
    frequent = (test.y == commonest).double().mean().item()
    named = {"chance": 1 / classes, "most frequent class": frequent, **(shortcuts or {})}
    return {"floors": named, "test_examples": len(test)}


def fingerprint(*splits: Split) -> str:
    """Hash of the examples, whatever device or process loaded them: sha256 over shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.lengths, split.y):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
