"""Is a replayed step the step itself? Its buffers, its warm-up and its learning rate, on a stream that any device has.

What a graph does to all that on a GPU is in `tests/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines import TransformerConfig
from ldn import InputSpec, LDNConfig, TargetSpec
from ldn.classifier import ModelConfig
from studies import checkpoint
from studies.spec import Optimiser
from studies.step import WARM_UP, Replayed, Step, Work, adamw

OPTIM = Optimiser(lr=1e-2, label_smoothing=0.1)
INPUT = InputSpec(kind="tokens", length=9, vocabulary=5, variable=True)
MODELS = [LDNConfig(width=8, depth=1, heads=2, dropout=0.2), TransformerConfig(width=8, depth=1, heads=2, dropout=0.2)]


class InPlace:
    """A stream on which all is done at once, and what was captured is done again when it is replayed."""

    def __init__(self) -> None:
        self.strict: list[bool] = []
        self.captured = 0

    def launch(self, work: Work, strictly: bool) -> None:
        self.strict.append(strictly)
        work()

    def capture(self, work: Work) -> Work:
        self.captured += 1
        return work


def step_of(model: ModelConfig, captured: bool = False) -> Step:
    torch.manual_seed(0)
    network = model.build(INPUT, TargetSpec(classes=3)).train()
    off = torch.autocast("cpu", enabled=False)
    return Step(network, network.parameters(), adamw(network, OPTIM), OPTIM, off, torch.zeros(()), captured)


def batches(count: int, size: int = 4) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randint(0, 5, (size, 9), generator=generator, dtype=torch.uint8)
        lengths = torch.randint(1, 10, (size,), generator=generator)
        yield x, lengths, torch.randint(0, 3, (size,), generator=generator)


def trained(step: Step, take: Step | Replayed, steps: int = 12) -> list[Tensor]:
    """Weights, the optimiser's state and the sum of losses after some steps, each at a rate of its own."""
    for i, batch in enumerate(batches(steps)):
        step.set_rate(1e-2 / (i + 1))
        torch.manual_seed(i)
        take(*batch)
    state = [value for held in step.optimiser.state.values() for value in held.values()]
    return [*step.parameters, *state, step.loss_sum]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_replayed_step_changes_what_the_step_itself_changes_bit_for_bit(model: ModelConfig) -> None:
    plain, replayed = step_of(model), step_of(model)
    expected = trained(plain, plain)
    found = trained(replayed, Replayed(replayed, InPlace()))
    assert len(found) == len(expected) and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(found, step_of(model).parameters, strict=False))


def test_a_shape_is_launched_a_few_times_then_captured_once_and_another_shape_has_a_graph_of_its_own() -> None:
    step, stream = step_of(MODELS[0]), InPlace()
    take = Replayed(step, stream)
    for batch in batches(WARM_UP):
        take(*batch)
    assert (stream.strict, stream.captured) == ([False] * (WARM_UP - 1) + [True], 0)
    for batch in batches(4):
        take(*batch)
    assert (len(stream.strict), stream.captured) == (WARM_UP, 1)
    for batch in batches(WARM_UP + 2, size=3):
        take(*batch)
    for batch in batches(2):
        take(*batch)
    assert (len(stream.strict), stream.captured) == (2 * WARM_UP, 2)


def test_a_replayed_step_reads_its_own_buffers_and_leaves_the_batch_alone() -> None:
    seen: list[tuple[Tensor, Tensor | None, Tensor]] = []
    take = Replayed(lambda x, lengths, y: seen.append((x, lengths, y)), InPlace())
    given = [(x, None, y) for x, _, y in batches(WARM_UP + 3)]
    kept = [x.clone() for x, _, _ in given]
    for i, batch in enumerate(given):
        take(*batch)
        assert torch.equal(seen[-1][0], kept[i]) and seen[-1][1] is None and torch.equal(seen[-1][2], batch[2])
    launched, replayed = seen[:WARM_UP], seen[WARM_UP:]
    assert all(mine[0] is batch[0] for mine, batch in zip(launched, given, strict=False))
    assert len({id(x) for x, _, _ in replayed}) == len({id(y) for _, _, y in replayed}) == 1
    assert all(torch.equal(x, before) for (x, _, _), before in zip(given, kept, strict=True))


def test_a_captured_step_reads_its_rate_from_one_tensor() -> None:
    plain, captured = step_of(MODELS[0]), step_of(MODELS[0], captured=True)
    rate = captured.rate
    assert rate is not None
    trained(plain, plain)
    trained(captured, Replayed(captured, InPlace()))
    # losses, not weights: the gradient of v's bias is nothing but rounding, which the optimiser makes large
    assert captured.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)
    assert captured.rate is rate and all(group["lr"] is rate for group in captured.optimiser.param_groups)


def test_what_outlives_a_step_stays_where_it_is() -> None:
    step = step_of(MODELS[0])
    trained(step, step, steps=1)
    held = [*step.parameters, step.loss_sum, *(v for state in step.optimiser.state.values() for v in state.values())]
    places = [tensor.data_ptr() for tensor in held]
    assert trained(step, step, steps=3) and [tensor.data_ptr() for tensor in held] == places
    assert step.loss_sum is held[len(step.parameters)]


def test_a_checkpoint_of_a_captured_step_goes_on_in_one_that_is_not(tmp_path: Path) -> None:
    captured, plain = step_of(MODELS[0], captured=True), step_of(MODELS[0])
    trained(captured, captured, steps=2)
    network = MODELS[0].build(INPUT, TargetSpec(classes=3))
    path, cpu = tmp_path / "checkpoint.pt", torch.device("cpu")
    checkpoint.save(path, checkpoint.Origin("", ""), network, captured.optimiser, checkpoint.State(step=2))
    checkpoint.load(path, network, plain.optimiser, cpu)
    again = Step(plain.forward, plain.parameters, plain.optimiser, OPTIM, plain.autocast, torch.zeros(()), False)
    again.set_rate(0.5)
    assert [(group["lr"], group["capturable"]) for group in plain.optimiser.param_groups] == [(0.5, False)] * 2
    trained(again, again, steps=1)
