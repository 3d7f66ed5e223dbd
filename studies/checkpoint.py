"""What a run leaves on disk while it runs: its attempts, its checkpoint and its curve."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from results.files import read_again, write_atomically

Weights = dict[str, Tensor]


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


def save(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Write the checkpoint, and keep the last one. Raises OSError; the two that were there are then intact."""
    plain = {f.name: getattr(state, f.name) for f in fields(state)}
    content = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "state": plain}
    new = path.with_suffix(".new.pt")
    write_atomically(new, lambda file: torch.save(content, file))
    if path.exists():
        path.replace(former(path))
    new.replace(path)


def remove(path: Path) -> None:
    for one in (path, former(path), path.with_suffix(".new.pt")):
        one.unlink(missing_ok=True)


def load(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> State | None:
    """Put the last whole checkpoint, if there is one, into network and optimiser; its state.

    Raises ValueError if there are some and none can be read.
    """
    damaged = None
    for one in (path, former(path)):
        try:
            state = _load(one, network, optimiser, device)
        except ValueError as error:
            damaged = damaged or error
            continue
        if state is not None:
            return state
    if damaged is not None:
        raise damaged
    return None


def _load(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> State | None:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        network.load_state_dict(content["network"])
        optimiser.load_state_dict(content["optimiser"])
        return State(**content["state"])
    except FileNotFoundError:
        return None
    except Exception as error:  # torch raises half a dozen types for a damaged file
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0].rstrip(": ")
        raise ValueError(f"{path} cannot be read ({reason}); delete it to start the run anew") from None


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
    """The rows that `write_curve` has written so far; none where there is no such file."""
    try:
        text = read_again(path.read_text)
    except FileNotFoundError:
        return []
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]


def weights_hash(weights: Weights) -> str:
    """Sixteen hex digits of the sha256 over names, shapes, dtypes and bytes: equal only for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
