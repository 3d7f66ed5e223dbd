"""The same on a GPU: the operator, every model in bfloat16, a whole run. `pytest -m gpu` is the GPU check."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.functional import dropout

from baselines import RNNConfig, TransformerConfig
from ldn import InputSpec, LDNConfig, PaperSequenceConfig, TargetSpec, diffuse
from results.record import run_folder
from studies import checkpoint, operators
from studies.operators import OperatorSubject
from studies.spec import Budget, Optimiser, RunSpec, with_field
from studies.step import WARM_UP, Replayed, SideStream
from studies.tasks.digits import CuedDigits
from studies.train import Place, Stopped, train
from tests.test_train import Padded, at

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICE = "cuda"
SPEC = InputSpec(kind="tokens", length=40, vocabulary=16, variable=True)
SMALL = LDNConfig(width=32, depth=2)
MODELS = {
    "ldn": SMALL,
    "adaptive": dataclasses.replace(SMALL, kernel="adaptive", time_step="token"),
    "paper-sequence": PaperSequenceConfig(width=32, depth=2),
    "transformer": TransformerConfig(width=32, depth=2),
    "bilstm": RNNConfig(width=32),
}


@pytest.mark.parametrize("conducting", [False, True], ids=["", "conductance"])
@pytest.mark.parametrize("offsets", [[(1,), (-1,)], [(1,), (4,)], [(0, 1), (0, -1), (2, 0), (-2, 0)]], ids=str)
def test_the_operator_and_its_gradients_equal_the_cpu(offsets, conducting):
    torch.manual_seed(0)
    grid = (9,) if len(offsets[0]) == 1 else (5, 6)
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    weights, rate = torch.rand(len(offsets), 8).double() / len(offsets), torch.rand(8).double()
    conductance = torch.rand(2, *grid, len(offsets)).double() if conducting else None
    results = []
    for device in ("cpu", DEVICE):
        given = [x, weights, rate, *([] if conductance is None else [conductance])]
        given = [tensor.to(device).requires_grad_() for tensor in given]
        y = diffuse(given[0], offsets, given[1], given[2], 3, given[3] if conducting else None)
        gradients = torch.autograd.grad(y.square().sum(), given)
        results.append([tensor.cpu() for tensor in (y, *gradients)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_bfloat16_batch_learns(name):
    torch.manual_seed(0)
    network = MODELS[name].build(SPEC, TargetSpec(classes=4)).to(DEVICE)
    x, y = torch.randint(0, 16, (8, 40), device=DEVICE), torch.randint(0, 4, (8,), device=DEVICE)
    lengths = torch.tensor([40, 31, 22, 13, 7, 3, 2, 1], device=DEVICE)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(60):
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = network(x, lengths)
        loss = torch.nn.functional.cross_entropy(logits.float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_run_ends_in_a_record(tmp_path: Path, compile):
    spec = RunSpec(
        model=SMALL, task=CuedDigits(train=256, valid=64, test=64), budget=Budget(steps=30), precision="bf16"
    )
    record = train(spec, Place(tmp_path / "runs", tmp_path, device=DEVICE, compile=compile))
    assert (record.status, record.reason) == ("done", "")
    assert record.metrics["test"]["loss"] < 4


# a step replayed as one CUDA graph

# every step is evaluated, so a row of the curve tells the loss of one step: of a launched, a captured, a replayed one
EACH = RunSpec(
    model=SMALL,
    task=CuedDigits(train=256, valid=64, test=64),
    optim=Optimiser(lr=1e-2, graphs=True),
    budget=Budget(steps=30, evaluations=30),
)
DROPPING = with_field(EACH, "model.dropout", 0.5)


def curve(spec: RunSpec, folder: Path, stop=lambda: False, **where) -> list[dict[str, float]]:
    """Of a run trained to its end, or to where it is stopped and from there on."""
    place = Place(folder / "runs", folder, device=DEVICE, **where)
    try:
        record = train(spec, place, stop=stop)
    except Stopped:
        record = train(spec, place)
    assert (record.status, record.reason) == ("done", "")
    assert all(attempt["graphs"] is spec.optim.graphs for attempt in record.attempts)
    return checkpoint.read_curve(run_folder(place.runs, spec.run_id) / "curve.csv")


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]], rel: float = 1e-3) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        same = [{name: row[name] for name in ("step", "lr", "train_loss", "valid_loss")} for row in (ours, theirs)]
        assert same[0] == pytest.approx(same[1], rel=rel)


@pytest.mark.parametrize(("precision", "compile"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_graphed_run_is_the_launched_one_up_to_rounding_at_every_step(tmp_path: Path, precision, compile):
    spec = with_field(EACH, "precision", precision)
    launched = with_field(spec, "optim.graphs", False)
    found, expected = (curve(one, tmp_path, compile=compile) for one in (spec, launched))
    assert_close(found, expected, rel=1e-3 if precision == "fp32" else 2e-2)
    assert expected[-1]["train_loss"] < expected[0]["train_loss"]  # or a step that does nothing would pass


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_graphed_run_clips_smooths_and_crops_as_the_launched_one(tmp_path: Path, clip):
    task = CuedDigits(view="image", train=256, valid=64, test=64)
    optim = Optimiser(lr=1e-2, graphs=True, clip=clip, label_smoothing=0.1)
    spec = dataclasses.replace(EACH, task=task, optim=optim, augment="crop_flip")
    assert_close(curve(spec, tmp_path), curve(with_field(spec, "optim.graphs", False), tmp_path))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bilstm"])
def test_a_graphed_run_takes_sequences_of_different_lengths(tmp_path: Path, name):
    spec = dataclasses.replace(EACH, model=MODELS[name], task=Padded(), batch=8)
    assert_close(curve(spec, tmp_path), curve(with_field(spec, "optim.graphs", False), tmp_path))


@pytest.mark.parametrize("name", ["transformer", "bilstm"])
def test_a_graphed_baseline_is_the_launched_one(tmp_path: Path, name):
    spec = dataclasses.replace(EACH, model=MODELS[name])
    assert_close(curve(spec, tmp_path), curve(with_field(spec, "optim.graphs", False), tmp_path))


def test_dropout_of_a_replayed_step_follows_the_seed_alone():
    """Launched or replayed, the same seed draws the same mask, and another seed another."""
    out, x, y = torch.zeros(4096, device=DEVICE), torch.ones(4096, device=DEVICE), torch.zeros(1, device=DEVICE)
    take = Replayed(lambda x, lengths, y: out.copy_(dropout(x, 0.5)), SideStream(torch.device(DEVICE)))

    def mask(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        take(x, None, y)
        return out.clone()

    seeds = range(WARM_UP + 5)
    first, again = [mask(seed) for seed in seeds], [mask(seed) for seed in reversed(seeds)][::-1]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert len({tuple(one.tolist()) for one in first}) == len(seeds)
    for seed, drawn in zip(seeds, first, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(dropout(x, 0.5), drawn)


def test_two_graphed_runs_with_dropout_are_equal_and_so_is_one_that_was_stopped(tmp_path: Path):
    whole = curve(DROPPING, tmp_path / "whole")
    assert_close(curve(DROPPING, tmp_path / "again"), whole, rel=1e-4)
    for step in (1, WARM_UP, 17):
        assert_close(curve(DROPPING, tmp_path / f"stopped-{step}", stop=at(step)), whole, rel=1e-4)
    assert_close(curve(with_field(DROPPING, "optim.graphs", False), tmp_path), whole)
    other = curve(with_field(DROPPING, "model.dropout", 0.4), tmp_path)
    seen = [abs(ours["train_loss"] / theirs["train_loss"] - 1) for ours, theirs in zip(other, whole, strict=True)]
    assert max(seen) > 3e-3  # other masks show in the losses, or all this would show nothing


def test_a_graphed_run_warns_of_nothing(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(capturable|AccumulateGrad|[Gg]raph).*")
        curve(EACH, tmp_path)


def test_a_step_that_waits_for_the_device_is_refused_in_one_sentence_and_the_process_goes_on(tmp_path: Path):
    spec = dataclasses.replace(EACH, model=MODELS["bilstm"], task=Padded(), batch=8)  # packing wants lengths on the CPU
    record = train(spec, Place(tmp_path / "runs", tmp_path, device=DEVICE))
    assert record.status == "failed" and "optim.graphs: this model's step cannot be captured" in record.reason
    assert torch.cuda.get_sync_debug_mode() == 0
    curve(DROPPING, tmp_path)


def test_a_capture_that_fails_is_refused_in_one_sentence_and_the_process_goes_on(tmp_path: Path):
    device = torch.device(DEVICE)
    before, x = torch.cuda.current_stream(), torch.ones(8, device=device)

    def work() -> None:
        dropout(x, 0.5)
        raise RuntimeError("of all the moments\nto choose")

    with pytest.raises(ValueError, match=r"optim.graphs: .* \(of all the moments\); set it to False"):
        SideStream(device).capture(work)
    assert torch.cuda.current_stream() == before
    curve(DROPPING, tmp_path)


def test_a_plain_kernel_that_passes_for_a_fused_one_is_found(monkeypatch):
    call = operators.DiffusionCase.call
    monkeypatch.setattr(operators.DiffusionCase, "call", lambda case, fused, *given: call(case, False, *given))
    built = OperatorSubject("diffusion S=2", 64, 2, 256, fused=True).build(DEVICE, "bfloat16", False)
    assert operators.launched(built.works["forward"])
    with pytest.raises(ValueError, match="this case is not fused"):
        built.verify("forward")
