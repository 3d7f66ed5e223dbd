"""What does the training loop cost beside a bare one? Target: at most 1.10 times the bare loop's time a step.

    python -m benchmarks.train_loop

The bare loop has the same model, optimiser, batches and clipping, and nothing else: no schedule, seeds, checks,
progress or checkpoints. Both run in one process in turns of 10 steps, and medians over the turns are compared, so
that whatever else the machine does meets both. Evaluation and what happens once a run are not part of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from studies import catalogue
from studies.provenance import commit, device_name
from studies.spec import Budget, RunSpec, with_field, with_fields
from studies.train import Place, Stopped, adamw, train

TARGET = 1.10
BLOCK, BLOCKS = 10, 16


class Turns:
    """Given to `train` as its `stop`: times its steps block by block, and after each runs as many of the bare loop."""

    def __init__(self, bare: Callable[[int], None], device: torch.device) -> None:
        self.bare, self.device = bare, device
        self.step = 0
        self.since = 0.0
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def __call__(self) -> bool:
        if self.step % BLOCK == 0:
            began = self.now()
            self.ours.append((began - self.since) / BLOCK)
            for i in range(BLOCK):
                self.bare(self.step + i)
            self.since = self.now()
            self.theirs.append((self.since - began) / BLOCK)
        self.step += 1
        return len(self.ours) > BLOCKS + 1

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def bare_loop(spec: RunSpec, device: torch.device, folder: Path) -> Callable[[int], None]:
    """One step of a loop that does nothing but train."""
    network = spec.model.build(spec.task.input, spec.task.target).to(device).train()
    optimiser = adamw(network, spec.optim)
    data = spec.task.load(folder).to(device).train
    order = torch.randperm(len(data)).to(device)
    per_epoch = len(data) // spec.batch

    def step(i: int) -> None:
        start = i % per_epoch * spec.batch
        chosen = order[start : start + spec.batch]
        loss = cross_entropy(network(data.x[chosen]), data.y[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), spec.optim.clip)
        optimiser.step()

    return step


def compare(spec: RunSpec, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds a step of `train` and of the bare loop, turn by turn."""
    spec = with_field(spec, "budget", Budget(steps=BLOCK * (BLOCKS + 9), evaluations=1))
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(bare_loop(spec, device, Path(folder)), device)
        with suppress(Stopped):
            record = train(spec, Place(Path(folder), Path(folder), str(device)), stop=turns)
            raise RuntimeError(f"the run was to be stopped, but it is {record.status}: {record.reason}")
    return turns.ours[2:], turns.theirs[2:]  # the first turn only began, the second was the warm-up


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"a step of studies.train beside one of a bare loop; target: at most {TARGET:.2f} times its time")
    print(f"{device_name(device)}, 1 thread, torch {torch.__version__}, commit {commit()['commit']}")
    reference = catalogue.load(catalogue.source("axes")).arms["ldn"]
    large = with_fields(reference, {"model.width": 128, "model.depth": 6})
    for label, spec in (("axes, reference arm", reference), ("width 128, depth 6", large)):
        ours, theirs = compare(spec, device)
        low, _, high = quantiles([one / other for one, other in zip(ours, theirs, strict=True)], n=4)
        ratio = median(ours) / median(theirs)
        print(
            f"{label:20}  {median(ours) * 1e3:7.2f} ms  bare {median(theirs) * 1e3:7.2f} ms  ratio {ratio:.3f} "
            f"(middle half of {len(ours)} turns: {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
