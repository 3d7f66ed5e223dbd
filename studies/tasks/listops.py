"""Can a model evaluate nested lists of operators? ListOps of Long Range Arena, generated here and kept in a cache.

An example is an expression such as `[MAX 4 3 [MIN 2 3 ] 1 0 ]`, read token by token, and its class is
its value, here 4. Most of the accuracy in the literature needs no nesting: the most frequent class
alone scores 17 %, the first operator alone 36 %.

The official generator has no seed, so no two copies of ListOps hold the same examples; this one has.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldn.classifier import InputSpec, TargetSpec
from ldn.config import AtLeast, Between
from results.entries import DataFacts
from results.files import write_atomically
from studies.tasks.task import Data, Split, Task, fingerprint, floors

# A token's id is its place here. There are no parentheses: they are redundant, and Long Range Arena drops them too.
VOCABULARY = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
GENERATOR = 1  # raise it when the same config gives other examples; caches of the old ones are then left alone
Stored = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids of all examples one after the other, lengths, answers


@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """Expressions with `min_length` < tokens < `max_length`, no two alike, padded to `max_length` with id 0.

    The test split is drawn first and the training split last, so that more training data leaves the
    other two as they are.
    """

    name: ClassVar[str] = "listops"
    min_length: Annotated[int, AtLeast(0)] = 500
    max_length: Annotated[int, AtLeast(2)] = 2000
    max_depth: Annotated[int, AtLeast(1)] = 10
    max_args: Annotated[int, AtLeast(2)] = 10
    operator_probability: Annotated[float, Between(0, 1)] = 0.25
    train: Annotated[int, AtLeast(1)] = 96_000
    valid: Annotated[int, AtLeast(1)] = 2_000
    test: Annotated[int, AtLeast(1)] = 2_000
    seed: Annotated[int, AtLeast(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length - self.min_length < 2:
            raise ValueError(f"ListOps: no length lies strictly between {self.min_length} and {self.max_length}")

    @property
    def input(self) -> InputSpec:
        return InputSpec(kind="tokens", length=self.max_length, vocabulary=len(VOCABULARY), variable=True)

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=10)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def load(self, folder: Path) -> Data:
        """The three splits, from the cache in `folder / "listops"` or generated (seconds) and put there."""
        key = hashlib.sha256(f"{GENERATOR} {self!r}".encode()).hexdigest()[:16]
        path = folder / "listops" / f"{key}.npz"
        stored = _read(path, key) or self._generate(path, key)
        x, lengths, y = _padded(*stored, self.max_length)

        def part(start: int, size: int) -> Split:
            here = slice(start, start + size)
            return Split(x[here], lengths[here], y[here])

        test, valid = part(0, self.test), part(self.test, self.valid)
        train = part(self.test + self.valid, self.train)
        known = floors(train, test, self.target.classes, {"first operator": by_first_token(train, test)})
        provenance: DataFacts = {"fingerprint": fingerprint(train, valid, test), "generator": GENERATOR, **known}
        return Data(train, valid, test, provenance)

    def _generate(self, path: Path, key: str) -> Stored:
        from studies.tasks.listops_generator import generate  # here, because it imports and compiles with numba

        made = generate(self, self.test + self.valid + self.train)
        stored = made.tokens, made.lengths, made.answers
        content: Any = {
            "tokens": stored[0],
            "lengths": stored[1],
            "answers": stored[2],
            "sha256": _checksum(key, stored),
        }
        try:
            write_atomically(path, lambda file: np.savez(file, **content))
        except OSError as error:
            warnings.warn(f"ListOps could not be kept ({error}); it is generated anew at every start", stacklevel=3)
        return stored


def by_first_token(train: Split, test: Split) -> float:
    """Accuracy of naming the class most frequent in `train` among expressions with the same first token.

    That token is the outermost operator (or the digit that is the whole expression): 36 % at full size, no nesting.
    """
    counts = torch.zeros(len(VOCABULARY), 10, dtype=torch.long)
    counts.index_put_((train.x[:, 0].long(), train.y), torch.ones_like(train.y), accumulate=True)
    return (counts.argmax(dim=1)[test.x[:, 0].long()] == test.y).double().mean().item()


def _checksum(key: str, stored: Stored) -> np.ndarray:
    digest = hashlib.sha256(key.encode())
    for part in stored:
        digest.update(f"{part.shape} {part.dtype}".encode() + part.tobytes())
    return np.array(digest.hexdigest())


def _read(path: Path, key: str) -> Stored | None:
    """Read a cache. Return None if it is missing, damaged or changed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stored, checksum = (file["tokens"], file["lengths"], file["answers"]), file["sha256"]
        if str(checksum) != str(_checksum(key, stored)):
            raise ValueError("its checksum does not match its content")
        return stored
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path} cannot be read ({error}); it is generated anew", stacklevel=3)
        return None


def _padded(tokens: np.ndarray, lengths: np.ndarray, answers: np.ndarray, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (n, width) as bytes, an eighth of what int64 would take on the device; the stem widens a batch at a time."""
    x = np.zeros((len(lengths), width), np.uint8)
    x[np.arange(width) < lengths[:, None]] = tokens
    return torch.from_numpy(x), torch.from_numpy(lengths), torch.from_numpy(answers.astype(np.int64))
