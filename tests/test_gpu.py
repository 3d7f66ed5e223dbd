"""The same on a GPU: the operator, every model in bfloat16, a whole run. `pytest -m gpu` is the GPU check."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from baselines import RNNConfig, TransformerConfig
from ldn import InputSpec, LDNConfig, PaperSequenceConfig, TargetSpec, diffuse
from studies import kernels
from studies.kernels import KernelSubject
from studies.spec import Budget, RunSpec
from studies.tasks.digits import CuedDigits
from studies.train import Place, train

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


def test_a_plain_kernel_that_passes_for_a_fused_one_is_found(monkeypatch):
    call = kernels.Diffusion.call
    monkeypatch.setattr(kernels.Diffusion, "call", lambda case, fused, *given: call(case, False, *given))
    built = KernelSubject("diffusion S=2", 64, 2, 256, fused=True).build(DEVICE, "bfloat16", False)
    assert kernels.launched(built.works["forward"])
    with pytest.raises(ValueError, match="this case is not fused"):
        built.verify("forward")
