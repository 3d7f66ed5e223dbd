"""What a run leaves on disk while it runs: its attempts, its checkpoint and its curve."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from results.files import CorruptFile, read_again, write_atomically

Weights = dict[str, Tensor]
MARK = b"\nsha256 "  # before the digest of all that stands in front of it
DIGEST = 32
TRAILER = len(MARK) + DIGEST


@dataclass
class State:
    """Where a run is, besides the network's and the optimiser's own state."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    loss_steps: int = 0
    best: Weights = field(default_factory=dict)
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


def former(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_suffix(".former.pt")


@dataclass(frozen=True)
class Origin:
    """What a checkpoint belongs to: a run, and the fingerprint of the data it was trained on ("": not known)."""

    run_id: str
    data: str


@dataclass(frozen=True)
class Loaded:
    """The state of a checkpoint that was put into network and optimiser; `note` says which, and what was refused."""

    state: State
    note: str


class OtherData(ValueError):
    """The data are not those that the checkpoint was trained on."""


class _Hashed:
    """A file for torch.save to write to; `digest` is that of all that was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        return self.file.write(part)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, origin: Origin, network: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Write the checkpoint, and keep the last one. Raises OSError; the two that were there are then intact."""
    content = asdict(origin) | {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "state": {f.name: getattr(state, f.name) for f in fields(state)},
    }

    def write(file: BinaryIO) -> None:
        hashed = _Hashed(file)
        torch.save(content, hashed)  # type: ignore[arg-type]  # write and flush are all that it calls
        file.write(MARK + hashed.digest.digest())  # behind the archive, which torch.load reads as before

    new = path.with_suffix(".new.pt")
    write_atomically(new, write)
    if path.exists():
        path.replace(former(path))
    new.replace(path)


def remove(path: Path) -> None:
    for one in (path, former(path), path.with_suffix(".new.pt")):
        one.unlink(missing_ok=True)


def load(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    origin: Origin | None = None,
) -> Loaded | None:
    """Put the last whole checkpoint of `origin` into network and optimiser; None if there is no checkpoint.

    Raises ValueError if there are some and none is whole, and OtherData if the data have changed.
    """
    refused: list[ValueError] = []
    for one in (path, former(path)):
        try:
            content, note = _content(one, device, origin)
            state = _restore(content, network, optimiser)
        except FileNotFoundError:
            continue
        except OtherData:
            raise
        except Exception as error:  # torch raises half a dozen types for a damaged file
            refused.append(ValueError(f"{one} cannot be used ({_reason(error)}); delete it to start the run anew"))
            continue
        return Loaded(state, "; ".join([f"{one.name}, step {state.step}{note}", *map(str, refused)]))
    if refused:
        raise refused[0]
    return None


def _content(path: Path, device: torch.device, origin: Origin | None) -> tuple[dict[str, Any], str]:
    """What a checkpoint holds, and a remark on it. Raises OtherData, and many another exception if it is not whole."""
    data = read_again(path.read_bytes)
    body, mark, digest = data[:-TRAILER], data[-TRAILER:-DIGEST], data[-DIGEST:]
    marked = mark == MARK
    if marked and hashlib.sha256(body).digest() != digest:
        raise ValueError("its checksum does not match its content")
    content = torch.load(io.BytesIO(body if marked else data), map_location=device, weights_only=True)
    if not isinstance(content, dict) or not content.keys() >= {"network", "optimiser", "state"}:
        raise ValueError("it holds no checkpoint")
    if not marked:
        if "run_id" in content:
            raise ValueError("its checksum is missing")
        return content, ", written by an older version, without a checksum"
    if origin is not None and content["run_id"] != origin.run_id:
        raise ValueError(f"it belongs to run {content['run_id']}")
    if origin is not None and content["data"] != origin.data:
        raise OtherData(
            f"the data have changed since {path} was written (fingerprint {content['data']}, now {origin.data}); "
            "restore them, or delete the checkpoints beside it to start the run anew"
        )
    return content, ""


def _restore(content: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer) -> State:
    state = State(**content["state"])
    taken = [int(one["step"]) for one in content["optimiser"]["state"].values() if "step" in one]
    if taken and max(taken) != state.step:
        raise ValueError(f"it is of step {state.step}, its optimiser of step {max(taken)}")
    network.load_state_dict(content["network"])
    optimiser.load_state_dict(content["optimiser"])
    return state


def _reason(error: Exception) -> str:
    text = f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return text.splitlines()[0].partition(". ")[0].rstrip(": ")


def write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """Write one row an evaluation; of no evaluations there is no file."""
    if not curve:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(curve[0]))
    writer.writeheader()
    writer.writerows(curve)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows that `write_curve` has written so far; none where there is no such file. Raises CorruptFile."""
    try:
        reader = csv.DictReader(io.StringIO(read_again(path.read_bytes).decode()), strict=True)
        rows = [{name: float(value) for name, value in row.items()} for row in reader]
        steps = [row["step"] for row in rows]
        if steps != sorted(set(steps)) or not all(math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("its steps do not ascend, or a value is not finite")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        remedy = "it is written again at the next evaluation"
        raise CorruptFile(f"{path} is no table of numbers ({error}); {remedy}") from None
    return rows


def weights_hash(weights: Weights) -> str:
    """Sixteen hex digits of the sha256 over names, shapes, dtypes and bytes: equal only for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
