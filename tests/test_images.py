"""Are the official image files read as they are, refused when they are not what they should be, and split as stated?"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from ldn.classifier import InputSpec, TargetSpec
from studies.tasks.digits import CuedDigits
from studies.tasks.image_files import check_labels, compare, missing_files, parse_batch, parse_idx, read_files
from studies.tasks.images import CIFAR10, VALID, FashionMNIST, ImageTask, grey
from studies.tasks.task import Data, Split, Task, loaded
from tests.image_data import idx, write_cifar10, write_fashion_mnist

VIEWS = [
    CIFAR10(view="grey"),
    CIFAR10(view="colour"),
    CIFAR10(view="patches"),
    FashionMNIST(),
    FashionMNIST(view="image"),
]
PATH = Path("folder/file")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Both data sets in official layout and size, with noise for pictures; labels go round, the first pixels count."""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which would keep these 230 MB
        write_cifar10(Path(name), 10_000)
        write_fashion_mnist(Path(name), 60_000, 10_000)
        yield Path(name)


def numbers(images: Tensor) -> list[int]:
    """Which image of the file each one is, from its first pixels; of colours (n, 3, H, W) or pixels (n, N, C)."""
    first = images.flatten(2)[:, 0, :4] if images.ndim == 4 else images[:, :4, 0]
    return first.numpy().copy().view("<u4")[:, 0].tolist()


class TestOfficialLayout:
    """What is loaded from files of official layout and size."""

    @pytest.mark.parametrize("task", VIEWS, ids=repr)
    def test_batches_are_as_the_spec_says(self, folder: Path, task: ImageTask) -> None:
        data, spec = task.load(folder), task.input
        train = 45_000 if isinstance(task, CIFAR10) else 55_000
        assert [len(data.train), len(data.valid), len(data.test)] == [train, VALID, 10_000]
        height, width = spec.grid or (0, 0)
        shapes = {
            "tokens": (spec.length,),
            "pixels": (spec.length, spec.channels),
            "image": (spec.channels, height, width),
        }
        for split in (data.train, data.valid, data.test):
            assert split.x.shape[1:] == shapes[spec.kind]
            assert (split.x.dtype, split.y.dtype, split.lengths) == (torch.uint8, torch.int64, None)
            assert split.x.is_contiguous()
        prepared = task.prepare(data.test.x[:100])
        assert prepared.shape == data.test.x[:100].shape
        assert prepared.dtype == (torch.uint8 if spec.kind == "tokens" else torch.float32)

    @pytest.mark.parametrize("task", [CIFAR10(view="patches"), CIFAR10(view="colour"), FashionMNIST()], ids=repr)
    def test_every_image_is_in_one_split_with_its_label(self, folder: Path, task: ImageTask) -> None:
        data = task.load(folder)
        train, valid, test = (numbers(split.x) for split in (data.train, data.valid, data.test))
        official = len(train) + len(valid)
        assert sorted(train + valid) == list(range(official))
        assert test == list(range(official, official + 10_000))
        for split in (data.train, data.valid, data.test):
            assert [number % 10 for number in numbers(split.x)] == split.y.tolist()

    def test_all_views_show_the_same_images(self, folder: Path) -> None:
        patches, colour, tokens = (
            CIFAR10(view=view, train=50).load(folder).train for view in ("patches", "colour", "grey")
        )
        assert torch.equal(colour.x.transpose(1, 2).reshape(-1, 3, 32, 32), patches.x)
        assert torch.equal(grey(patches.x).flatten(1), tokens.x)
        assert torch.equal(colour.y, tokens.y)
        pixels, image = (FashionMNIST(view=view, train=50).load(folder).train for view in ("pixels", "image"))
        assert torch.equal(pixels.x.reshape(-1, 1, 28, 28), image.x)

    def test_the_seed_decides_the_split_and_less_training_data_is_its_beginning(self, folder: Path) -> None:
        def load(**changes: int) -> Data:
            return CIFAR10(view="patches", **changes).load(folder)

        whole, few, other = load(), load(train=100), load(seed=1)
        assert torch.equal(few.train.x, whole.train.x[:100])
        assert torch.equal(few.valid.x, whole.valid.x)
        assert torch.equal(other.test.x, whole.test.x)
        assert not torch.equal(other.valid.x, whole.valid.x)
        assert numbers(whole.valid.x[:3]) == [11841, 19602, 45519]  # pinned: the same under every version of numpy
        assert len({data.provenance["fingerprint"] for data in (whole, few, other)}) == 3
        with pytest.raises(ValueError, match=r"CIFAR10\.train must be at most 45000, not 45001"):
            load(train=45_001)


@dataclass(frozen=True, kw_only=True)
class AllBytes(Task):
    """One example of each byte in turn, as ids of a type of its own, with its length as a byte."""

    type_: str
    input: ClassVar[InputSpec] = InputSpec(kind="tokens", length=256, vocabulary=256)  # type: ignore[misc]
    target: ClassVar[TargetSpec] = TargetSpec(classes=2)  # type: ignore[misc]

    def load(self, folder: Path) -> Data:
        ids = torch.arange(256).to(getattr(torch, self.type_))[None]
        split = Split(ids, torch.tensor([255], dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        return Data(split, split, split)

    def prepare(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("type_", ["uint8", "int16", "uint16", "uint32", "int64"])
def test_ids_of_any_integer_type_are_compared_with_the_vocabulary(type_: str, tmp_path: Path) -> None:
    """A vocabulary and a length of 256 would each wrap to 0 in a byte."""
    assert torch.equal(loaded(AllBytes(type_=type_), tmp_path).train.x.long()[0], torch.arange(256))


def test_files_that_are_not_the_official_ones_are_used_and_recorded(folder: Path) -> None:
    files = CIFAR10(train=10).load(folder).provenance["files"]
    assert len(files) == 6
    assert all(len(file["md5"]) == 32 and file["official"] is False for file in files.values())


def test_official_files_are_recorded_as_official() -> None:
    md5 = "900150983cd24fb0d6963f7d28e17f72"  # of "abc", from RFC 1321
    assert compare({"file": b"abc"}, {"file": md5}) == {"file": {"md5": md5, "official": True}}


def test_missing_files_are_asked_for(tmp_path: Path) -> None:
    wanted = "fashion-mnist lacks train-images-idx3-ubyte, .*download .*github.com/zalandoresearch.* LDN_DATA or --data"
    with pytest.raises(FileNotFoundError, match=wanted):
        FashionMNIST().load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_1.bin, .*cifar-10-binary.tar.gz and unpack it in "):
        CIFAR10().load(tmp_path)
    assert CIFAR10().missing(tmp_path).endswith("by LDN_DATA or --data") and not CuedDigits().missing(tmp_path)
    (tmp_path / "a").touch()
    said = missing_files(tmp_path, ("a", "b"), "get it")
    assert "lacks b: get it, or name another data folder" in said
    (tmp_path / "b.gz").touch()
    assert not missing_files(tmp_path, ("a", "b"), "get it")
    with pytest.raises(FileNotFoundError, match="lacks b: get it"):
        read_files(tmp_path, ("a", "b"), said)


def test_a_packed_and_an_unpacked_file_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content"))
    assert read_files(tmp_path, ["a"]) == {"a": b"content"}
    (tmp_path / "a").write_bytes(b"unpacked")
    assert read_files(tmp_path, ["a"]) == {"a": b"unpacked"}


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: str) -> None:
    content = bytearray(gzip.compress(bytes(range(256)) * 10))
    if damage == "truncated":
        content = content[:-9]
    elif damage == "altered":
        content[-6] ^= 1  # the checksum
    else:
        content = bytearray(b"<html>404</html>")
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.gz is truncated or no gzip file"):
        read_files(tmp_path, ["a"])


def test_idx_files() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(parse_idx(idx(array), (2, 3, 4), PATH), array)
    for foreign in (b"", b"\x89PNG\r\n", idx(array.reshape(2, 4, 3)), idx(array.reshape(6, 4))):
        with pytest.raises(ValueError, match=r"folder/file does not begin like an idx file of \(2, 3, 4\) bytes"):
            parse_idx(foreign, (2, 3, 4), PATH)
    for wrong in (idx(array)[:-1], idx(array) + b"x"):
        with pytest.raises(ValueError, match=f"folder/file holds {len(wrong)} bytes, not 40"):
            parse_idx(wrong, (2, 3, 4), PATH)


def test_batches() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3073), np.uint8)
    images, labels = parse_batch(rows.tobytes(), 5, PATH)
    assert labels.tolist() == rows[:, 0].tolist()
    assert images[2, 1, 7, 30] == rows[2, 1 + 1 * 1024 + 7 * 32 + 30]  # green, row 7, column 30
    with pytest.raises(ValueError, match="folder/file holds 15364 bytes, not 15365: it is truncated"):
        parse_batch(rows.tobytes()[:-1], 5, PATH)


def test_labels_are_0_to_9_and_balanced() -> None:
    labels = np.arange(30, dtype=np.uint8) % 10
    check_labels(labels, 3, PATH)
    for label in (0, 10, 255):
        with pytest.raises(ValueError, match=r"3 images of each class 0 to 9, but the labels are .*5: 2"):
            check_labels(np.where(np.arange(30) == 5, label, labels).astype(np.uint8), 3, PATH)


def test_grey_is_the_conversion_of_long_range_arena() -> None:
    """Pixel by pixel in Python's doubles; they and float32 may cut differently only where the value is nearly whole."""
    colours = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    colours[0] = torch.arange(64).view(8, 8) * 4  # greys stay as they are
    converted = grey(colours)
    assert torch.equal(converted[0], colours[0, 0])
    for (n, i, j), byte in np.ndenumerate(converted.numpy()):
        red, green, blue = colours[n, :, i, j].tolist()
        exact = (0.2989 * red + 0.5870 * green + 0.1140 * blue) / 255 * 255.5
        assert byte == int(exact) or abs(exact - round(exact)) < 1e-4
    assert grey(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).item() == 255


def test_prepare_standardises_every_channel_alike_in_every_view() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    prepared = CIFAR10(view="patches").prepare(images)
    assert prepared[1, 2, 3, 4].item() == pytest.approx((images[1, 2, 3, 4].item() / 255 - 0.4465) / 0.2616, abs=1e-6)
    pixels = CIFAR10(view="colour").prepare(images.flatten(2).transpose(1, 2))
    assert torch.equal(pixels.transpose(1, 2).reshape(prepared.shape), prepared)
    assert CIFAR10(view="grey").prepare(images) is images


def real(name: str) -> Path:
    """The folder with the real files, or the test is skipped."""
    folder = os.environ.get("LDN_DATA")
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip(f"LDN_DATA names no folder with {name}")
    return Path(folder)


def moments(task: ImageTask, folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all official training images, pixels from 0 to 1."""
    images = torch.from_numpy(task.read(folder).train)
    histogram = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    share, value = histogram / histogram.sum(1, keepdim=True).double(), torch.arange(256) / 255
    mean = share @ value.double()
    return mean, (share @ value.double() ** 2 - mean**2).sqrt()


@pytest.mark.parametrize(("task", "name"), [(FashionMNIST(), "fashion-mnist"), (CIFAR10(), "cifar-10-batches-bin")])
def test_the_constants_are_those_of_the_real_images(task: ImageTask, name: str) -> None:
    mean, deviation = moments(task, real(name))
    assert mean.tolist() == pytest.approx(task.mean, abs=6e-5)
    assert deviation.tolist() == pytest.approx(task.deviation, abs=6e-5)


def test_real_fashion_mnist_is_the_official_one() -> None:
    provenance = FashionMNIST().load(real("fashion-mnist")).provenance
    assert all(file["official"] for file in provenance["files"].values())
    assert provenance["fingerprint"] == "28a2cf63b829f4b8"
