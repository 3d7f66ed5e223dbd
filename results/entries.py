"""The parts that stored records are made of, as typed dictionaries: they state and check the file format."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from results.validation import Count, Fraction, Metrics, NonNegative, Real

Status = Literal["done", "diverged", "failed", "pruned", "cancelled", "lost"]
CLOSED = ConfigDict(extra="forbid")
OPEN = ConfigDict(extra="allow")  # what describes a machine, a task or a model's operations may grow


@with_config(OPEN)
class Attempt(TypedDict, total=False):
    """One start of a run: where, with which code, for how long, and from which step."""

    node: str
    device: str
    threads: Count
    cores: Count
    python: str
    torch: str
    commit: str
    dirty: bool
    diff: str
    slurm_job: str
    slurm_restarts: Count
    compile: bool
    graphs: bool
    started: NonNegative
    seconds: NonNegative
    first_step: Count
    checkpoint: str  # what was taken, or refused, of the checkpoints that were there
    sources: dict[str, str]  # as in RunRecord, of this start
    replaced: bool  # what was trained until then was deleted, to train the run anew


@with_config(CLOSED)
class Attempts(TypedDict):
    """The file attempts.json."""

    attempts: list[Attempt]


@with_config(OPEN)
class ForwardCost(TypedDict, total=False):
    """Parameters and 10^9 multiply-adds of one example's forward pass."""

    params: Count
    gmac: NonNegative
    elementwise_g: NonNegative
    by_operation: dict[str, NonNegative]


@with_config(OPEN)
class DataFacts(TypedDict, total=False):
    """What is known of the data: a fingerprint of the tensors, the accuracies that need no model, and what was read."""

    fingerprint: str
    floors: dict[str, Fraction]
    test_examples: Count
    generator: int
    files: dict[str, Any]


@with_config(CLOSED)
class ArmEntry(TypedDict):
    """An arm; `changes` maps a field to [the value of the arm it is compared with, this arm's value].

    `config` has every field with an effect by its dotted path, as the study declared it when it was last run.
    """

    label: str
    reference: str
    changes: dict[str, list[Any]]
    note: str
    config: NotRequired[dict[str, Any]]


@with_config(CLOSED)
class CellEntry(TypedDict):
    """An arm at a seed, the run that answers it, and the varied fields."""

    arm: str
    seed: int
    run_id: str
    factors: dict[str, Any]


@with_config(CLOSED)
class FrontEntry(TypedDict):
    """A trial that no other beats in all objectives."""

    trial: Count
    values: dict[str, Any]
    metrics: Metrics


@with_config(CLOSED)
class Outcome(TypedDict):
    """What came of an arm's trials: how many by status, of how many configurations, and the winner once there is one.

    `front` lists, of several objectives, the trials that no other beats in all.
    """

    counts: dict[str, Count]
    distinct: Count
    trial: NotRequired[Count]
    values: NotRequired[dict[str, Any]]
    metrics: NotRequired[Metrics]
    front: NotRequired[list[FrontEntry]]


@with_config(CLOSED)
class TunedArm(Outcome):
    """An arm's search: `base` is the identity of the arm without the fields searched, `left_out` the fields of the
    space without effect there, `planned` a number of trials.
    """

    base: str
    left_out: list[str]
    planned: Count


@with_config(CLOSED)
class TrialEntry(TypedDict):
    """One configuration of an arm; `metrics` are means over its seeds."""

    arm: str
    trial: Count
    values: dict[str, Any]
    run_ids: list[str]
    status: Literal["running", "done", "diverged", "failed", "pruned", "cancelled", "lost"]
    reason: str
    metrics: Metrics


@with_config(CLOSED)
class ProgressEntry(TypedDict):
    """The file progress.json: where a running run is. `done` is a share of the budget, `time` when it was written."""

    step: Count
    done: NonNegative
    loss: Real
    accuracy: Real
    tokens_per_second: NonNegative
    seconds_left: Real
    time: NonNegative


@with_config(OPEN)
class Layer(TypedDict):
    """What one depth of a network does to the tokens; the last three only where it diffuses."""

    depth: Count
    energy: Real
    spread: Real
    range: dict[str, Real]
    diffusion: NotRequired[dict[str, Real]]
    rate: NotRequired[dict[str, Real]]
    stencil: NotRequired[dict[str, Any]]


@with_config(CLOSED)
class ReceptiveField(TypedDict):
    """The mean gradient by offset from the centre token, and how many of how many tokens hold it."""

    offsets: list[int]
    gradient: list[Real]
    support: NonNegative
    tokens: NonNegative
    grid: list[Count] | None


@with_config(CLOSED)
class ProbedNetwork(TypedDict, total=False):
    """One state of a network, empty if it was not probed."""

    layers: list[Layer]
    field: ReceptiveField
