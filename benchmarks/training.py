"""How fast does a run train, launched operation by operation, compiled, or replayed as a CUDA graph? And does it learn?

    python -m benchmarks.training               on a GPU about two minutes
    python -m benchmarks.training --steps 30    small enough for a CPU, where nothing is compiled or captured

The reference and the Transformer of the study `axes` as the study trains them, then the reference at a length of Long
Range Arena (random ids, bfloat16: only its time means anything). Timed is the loop of `studies.train` after its first
steps, in which all compiling, tuning and capturing is done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldn import InputSpec, LDNConfig, TargetSpec
from studies import catalogue
from studies.provenance import commit, device_name
from studies.schedule import Batches
from studies.spec import Budget, Optimiser, RunSpec, with_fields
from studies.tasks.task import Data, Split, Task
from studies.train import Place, train

SKIPPED = 10  # steps before the clock starts


@dataclass(frozen=True)
class Way:
    """How an arm is run: fields of its spec that are changed, and whether it is compiled; of `arms`, or of all."""

    label: str
    changed: dict[str, Any] = field(default_factory=dict)
    compile: bool = False
    arms: tuple[str, ...] = ()


# in the order of what matters most, should there be no time for all; an arm's ratios are to its first
WAYS = (
    Way("launched"),
    Way("plain operators", {"model.fused": False}, arms=("axes, ldn", "2K ids, ldn")),
    Way("graphs", {"optim.graphs": True}),
    Way("compiled", compile=True),
    Way("compiled, graphs", {"optim.graphs": True}, compile=True),
)


@dataclass(frozen=True, kw_only=True)
class RandomIds(Task):
    """Sequences of random ids with random labels: there is nothing to learn, only time to take."""

    name: ClassVar[str] = "random_ids"
    length: int = 2048
    train: int = 256
    padded: bool = True

    @property
    def input(self) -> InputSpec:
        return InputSpec(kind="tokens", length=self.length, vocabulary=256, variable=self.padded)

    @property
    def target(self) -> TargetSpec:
        return TargetSpec(classes=10)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def load(self, folder: Path) -> Data:
        generator = torch.Generator().manual_seed(0)

        def split(n: int) -> Split:
            x = torch.randint(256, (n, self.length), generator=generator)
            lengths = torch.randint(self.length // 2, self.length + 1, (n,), generator=generator)
            return Split(x, lengths if self.padded else None, torch.randint(10, (n,), generator=generator))

        return Data(split(self.train), split(32), split(32))


class Watch:
    """Given to `train` as its `stop`: the seconds from before step SKIPPED to before the last of `steps`."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.first, self.last, self.device = SKIPPED, steps - 1, device
        self.step = 0
        self.times: list[float] = []

    def __call__(self) -> bool:
        if self.step in (self.first, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.times.append(time.perf_counter())
        self.step += 1
        return False

    @property
    def seconds_a_step(self) -> float:
        began, ended = self.times
        return (ended - began) / (self.last - self.first)


def arms(steps: int, short: bool) -> dict[str, RunSpec]:
    """What is trained. No evaluation lies within the timed steps."""
    study = {arm.label: arm.spec for arm in catalogue.load(catalogue.source("axes")).expanded()}
    budget = Budget(steps=steps, evaluations=1)
    chosen = {f"axes, {label}": replace(study[label], budget=budget) for label in ("ldn", "Transformer")}
    if not short:
        chosen["2K ids, ldn"] = RunSpec(
            model=LDNConfig(width=128, depth=6),
            task=RandomIds(),
            optim=Optimiser(),
            batch=32,
            budget=Budget(steps=max(SKIPPED + 2, steps // 6), evaluations=1),
            precision="bf16",
        )
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="of a run (600: as the study has it)")
    parser.add_argument("--short", action="store_true", help="as on a CPU: neither compiled nor at the great length")
    parser.add_argument("--runs", type=Path, help="where the records are kept; by default nowhere")
    asked = parser.parse_args()
    if asked.steps < SKIPPED + 2:
        parser.error(f"--steps of at least {SKIPPED + 2}: the first {SKIPPED} are not timed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device_name(device)}, torch {torch.__version__}, commit {commit()['commit']}")
    if device.type == "cpu":
        print("Not measured on a GPU: here a step with graphs is the launched one.")
    print("\n| arm | way | steps/s | tokens/s | over launched | test accuracy | ended |\n|---|---|--:|--:|--:|--:|---|")
    short = asked.short or device.type == "cpu"
    launched: dict[str, float] = {}
    ended: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            place = Place(asked.runs or Path(scratch), Path(scratch), str(device), 1, way.compile)
            for label, spec in arms(asked.steps, short).items():
                if (way.compile and short) or (way.arms and label not in way.arms):
                    continue
                cells = trained(label, spec, way, place, launched)
                ended.add(cells[-1])
                print(f"| {' | '.join(cells)} |")
    sys.exit(0 if ended == {"done"} else 1)


def trained(label: str, spec: RunSpec, way: Way, place: Place, launched: dict[str, float]) -> list[str]:
    """Train it that way; its row of the table. `launched` holds the speeds that others are compared with."""
    spec = with_fields(spec, way.changed)
    assert spec.budget.steps is not None
    place = replace(place, runs=place.runs / way.label.replace(", ", "-"))  # a way is no part of a run's identity
    watch = Watch(spec.budget.steps, torch.device(place.device))
    record = train(spec, place, stop=watch)
    if record.status != "done":
        return [label, way.label, "", "", "", "", f"{record.status}: {record.reason}"]
    speed = 1 / watch.seconds_a_step
    launched.setdefault(label, speed)
    tokens = speed * Batches(spec.task.load(place.data).train, spec).tokens
    accuracy = "" if isinstance(spec.task, RandomIds) else f"{record.metrics['test']['accuracy']:.1%}"
    return [label, way.label, f"{speed:,.1f}", f"{tokens:,.0f}", f"{speed / launched[label]:.2f}x", accuracy, "done"]


if __name__ == "__main__":
    main()
