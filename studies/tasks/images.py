"""Which class does an image show, read as a sequence of pixels or cut into patches? Fashion-MNIST and CIFAR-10.

Both have 5 000 of the official training images set apart for validation, because neither comes with
a validation split. Batches are kept as bytes, a quarter of the memory of floats, and standardised when
they are used.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ldn.classifier import InputSpec, TargetSpec
from ldn.config import AtLeast, Between
from studies.tasks.image_files import Images, missing_cifar10, missing_fashion_mnist, read_cifar10, read_fashion_mnist
from studies.tasks.task import Data, Split, Task, fingerprint, floors

VALID = 5_000
Kind = Literal["tokens", "pixels", "image"]


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """What the two share. `seed` decides which images validate, `train` limits how many of the others train.

    `mean` and `deviation` of a channel are those of all official training images, pixels from 0 to 1.
    """

    edge: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]
    train: Annotated[int, AtLeast(1)] | None = None
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """How a model reads the image."""

    @abstractmethod
    def read(self, folder: Path) -> Images:
        """What the official files hold."""

    @property
    def input(self) -> InputSpec:
        length, grid = self.edge**2, (self.edge, self.edge)
        if self.kind == "tokens":
            return InputSpec(kind="tokens", length=length, vocabulary=256, grid=grid)
        return InputSpec(kind=self.kind, length=length, channels=len(self.mean), grid=grid)

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=10)

    def load(self, folder: Path) -> Data:
        images = self.read(folder)
        # RandomState, because its stream is frozen: the same images validate under every version of numpy
        order = np.random.RandomState(self.seed).permutation(len(images.train))
        available = len(order) - VALID
        if self.train is not None and self.train > available:
            raise ValueError(f"{type(self).__name__}.train must be at most {available}, not {self.train}")
        valid, train = order[:VALID], order[VALID:][: self.train]
        splits = (
            self._split(images.train[train], images.train_labels[train]),
            self._split(images.train[valid], images.train_labels[valid]),
            self._split(images.test, images.test_labels),
        )
        known = floors(splits[0], splits[2], self.target.classes)
        return Data(*splits, {"fingerprint": fingerprint(*splits), "files": images.files, **known})

    def _split(self, images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(laid_out(torch.from_numpy(images), self.kind), None, torch.from_numpy(labels.astype(np.int64)))

    def prepare(self, x: Tensor) -> Tensor:
        """Bytes -> standardised floats; token ids stay as they are."""
        if self.kind == "tokens":
            return x
        # not blocking, so that so small a copy does not hold up every batch
        moments = torch.tensor([self.mean, self.deviation]).to(x.device, non_blocking=True)
        mean, deviation = moments[:, :, None, None] if self.kind == "image" else moments
        return (x / 255 - mean) / deviation


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(ImageTask):
    """Grey images of clothes, 55 000 to train, read as 784 pixels (B, 784, 1) or as an image (B, 1, 28, 28)."""

    name: ClassVar[str] = "fashion_mnist"
    edge: ClassVar[int] = 28
    mean: ClassVar[tuple[float, ...]] = (0.2860,)
    deviation: ClassVar[tuple[float, ...]] = (0.3530,)
    view: Literal["pixels", "image"] = "pixels"

    @property
    def kind(self) -> Kind:
        return self.view

    def read(self, folder: Path) -> Images:
        return read_fashion_mnist(folder)

    def missing(self, folder: Path) -> str:
        return missing_fashion_mnist(folder)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(ImageTask):
    """Colour photographs, 45 000 to train, in one of three views.

    "grey": 1024 token ids (B, 1024), the brightness from 0 to 255, as in Long Range Arena · "colour":
    1024 pixels (B, 1024, 3) · "patches": an image (B, 3, 32, 32), which the model cuts.
    """

    name: ClassVar[str] = "cifar10"
    edge: ClassVar[int] = 32
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    deviation: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)
    view: Literal["grey", "colour", "patches"] = "grey"

    @property
    def kind(self) -> Kind:
        kinds: dict[str, Kind] = {"grey": "tokens", "colour": "pixels", "patches": "image"}
        return kinds[self.view]

    def read(self, folder: Path) -> Images:
        return read_cifar10(folder)

    def missing(self, folder: Path) -> str:
        return missing_cifar10(folder)


def laid_out(images: Tensor, kind: Kind) -> Tensor:
    """Images (n, C, H, W) as a model of this kind reads them, still bytes."""
    if kind == "tokens":
        # in parts, because the floats of all images at once would be a gigabyte
        return torch.cat([grey(part).flatten(1) for part in images.split(1_000)])
    return images.flatten(2).transpose(1, 2).contiguous() if kind == "pixels" else images


def grey(images: Tensor) -> Tensor:
    """Brightness (n, H, W) of colours (n, 3, H, W) as bytes, by TensorFlow's rgb_to_grayscale, as in Long Range Arena.

    Its steps are kept, in float32: bytes become 0 to 1; the weighted sum is multiplied by 255.5 and cut, not rounded.
    """
    red, green, blue = images.unbind(dim=1)
    brightness = red / 255 * 0.2989
    brightness += green / 255 * 0.5870
    brightness += blue / 255 * 0.1140
    return (brightness * 255.5).to(torch.uint8)
