"""What do the official files of Fashion-MNIST and CIFAR-10 hold, and are they the official ones?

A missing file raises FileNotFoundError and one that is no such data set ValueError, each saying what
to download and where to put it. A file of the right structure but with other bytes, a
reconstruction say, is used, and the record and the report say so.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# The md5 of every file, unpacked. Published are those of Fashion-MNIST's .gz files and of CIFAR-10's archive
# (c32a1d4ab5d03f1284b67883e8d87530); those of their contents are what projects that check both have written down.
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
CIFAR10_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
FASHION_MNIST_TRAIN, FASHION_MNIST_TEST = 60_000, 10_000  # images in the files
CIFAR10_BATCH = 10_000  # images in each file
CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Images (n, C, H, W) and labels (n,) as bytes; `files` has each file's md5 and whether it is official."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    files: dict[str, dict[str, Any]]


def missing_fashion_mnist(folder: Path) -> str:
    """Which files are not there, and what to do; empty where all are."""
    place = folder / "fashion-mnist"
    remedy = f"download the four .gz files of https://github.com/zalandoresearch/fashion-mnist into {place}"
    return missing_files(place, FASHION_MNIST_MD5, remedy)


def read_fashion_mnist(folder: Path) -> Images:
    """The idx files in `folder / "fashion-mnist"`, packed by gzip or not."""
    place = folder / "fashion-mnist"
    contents = read_files(place, FASHION_MNIST_MD5, missing_fashion_mnist(folder))

    def idx(name: str, *shape: int) -> np.ndarray:
        return parse_idx(contents[name], shape, place / name)

    n, m = FASHION_MNIST_TRAIN, FASHION_MNIST_TEST
    train, train_labels = idx("train-images-idx3-ubyte", n, 28, 28), idx("train-labels-idx1-ubyte", n)
    test, test_labels = idx("t10k-images-idx3-ubyte", m, 28, 28), idx("t10k-labels-idx1-ubyte", m)
    check_labels(train_labels, n // CLASSES, place)
    check_labels(test_labels, m // CLASSES, place)
    return Images(train[:, None], train_labels, test[:, None], test_labels, compare(contents, FASHION_MNIST_MD5))


def missing_cifar10(folder: Path) -> str:
    """Which files are not there, and what to do; empty where all are."""
    remedy = f"download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and unpack it in {folder}"
    return missing_files(folder / "cifar-10-batches-bin", CIFAR10_MD5, remedy)


def read_cifar10(folder: Path) -> Images:
    """The batches of the binary version in `folder / "cifar-10-batches-bin"`."""
    place = folder / "cifar-10-batches-bin"
    contents = read_files(place, CIFAR10_MD5, missing_cifar10(folder))
    batches = [parse_batch(content, CIFAR10_BATCH, place / name) for name, content in contents.items()]
    *train, test = (images for images, _ in batches)
    *train_labels, test_labels = (labels for _, labels in batches)
    check_labels(np.concatenate(train_labels), len(train) * CIFAR10_BATCH // CLASSES, place)
    check_labels(test_labels, CIFAR10_BATCH // CLASSES, place)
    files = compare(contents, CIFAR10_MD5)
    return Images(np.concatenate(train), np.concatenate(train_labels), test, test_labels, files)


def missing_files(place: Path, names: Iterable[str], remedy: str) -> str:
    """Which of the files `names` are not in `place`, and the remedy, in one sentence; empty where all are."""
    absent = [name for name, path in _paths(place, names).items() if not path.exists()]
    said = f"{place} lacks {', '.join(absent)}: {remedy}, or name another data folder by LDN_DATA or --data"
    return said if absent else ""


def read_files(place: Path, names: Iterable[str], missing: str = "") -> dict[str, bytes]:
    """The contents of the files `names` in `place`, unpacked where a file lies there as .gz.

    Raises FileNotFoundError with what is `missing`, if anything is.
    """
    if missing:
        raise FileNotFoundError(missing)
    return {name: unpacked(path) for name, path in _paths(place, names).items()}


def _paths(place: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: place / name if (place / name).exists() else place / f"{name}.gz" for name in names}


def unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}); download it again") from None


def parse_idx(content: bytes, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """The array of bytes in an idx file, which must have this shape."""
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)  # 08: unsigned bytes; then the dimensions
    if not content.startswith(header):
        raise ValueError(f"{path} does not begin like an idx file of {shape} bytes; put the official file there")
    check_size(len(content), len(header) + math.prod(shape), path)
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()


def parse_batch(content: bytes, count: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of a CIFAR-10 batch: per image a label, then all red, green and blue."""
    check_size(len(content), count * 3073, path)
    rows = np.frombuffer(content, np.uint8).reshape(count, 3073)
    return rows[:, 1:].copy().reshape(count, 3, 32, 32), rows[:, 0].copy()


def check_size(size: int, expected: int, path: Path) -> None:
    if size != expected:
        raise ValueError(
            f"{path} holds {size} bytes, not {expected}: it is truncated or another file; download it again"
        )


def check_labels(labels: np.ndarray, each: int, place: Path) -> None:
    """Every class from 0 to 9 has `each` images, and there are no others."""
    counts = np.bincount(labels, minlength=10)
    if counts.tolist() != [each] * 10:
        found = ", ".join(f"{label}: {count}" for label, count in enumerate(counts) if count)
        raise ValueError(f"{place} is to hold {each} images of each class 0 to 9, but the labels are {found}")


def compare(contents: dict[str, bytes], official: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The md5 of every file and whether it is the official one, for the record; the report names those that are not."""
    files = {}
    for name, content in contents.items():
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        files[name] = {"md5": md5, "official": md5 == official[name]}
    return files
