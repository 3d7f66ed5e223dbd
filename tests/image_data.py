"""Files in the official layout of CIFAR-10 and Fashion-MNIST, of any size, with noise for pictures."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_cifar10(folder: Path, count: int) -> None:
    """Six batches of `count` images. Labels go round 0 to 9; the first four pixels hold the image's number."""
    target = folder / "cifar-10-batches-bin"
    target.mkdir()
    random = np.random.default_rng(0)
    for batch in range(6):
        rows = random.integers(0, 256, (count, 3073), np.uint8)
        rows[:, 0] = np.arange(count) % 10
        rows[:, 1:5] = numbered(batch * count, count)
        rows.tofile(target / (f"data_batch_{batch + 1}.bin" if batch < 5 else "test_batch.bin"))


def write_fashion_mnist(folder: Path, train: int, test: int) -> None:
    """Images packed by gzip and labels unpacked; black apart from the first four pixels, which hold the number."""
    target = folder / "fashion-mnist"
    target.mkdir()
    for prefix, start, count in (("train", 0, train), ("t10k", train, test)):
        images = np.zeros((count, 784), np.uint8)
        images[:, :4] = numbered(start, count)
        packed = gzip.compress(idx(images.reshape(count, 28, 28)), compresslevel=1)
        (target / f"{prefix}-images-idx3-ubyte.gz").write_bytes(packed)
        (target / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))


def numbered(start: int, count: int) -> np.ndarray:
    """The numbers from `start` as 4 bytes each."""
    return np.arange(start, start + count, dtype="<u4")[:, None].view(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
