"""Is what is seen inside a network what its definition says: energy, range, stencils and receptive field?"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from baselines import RNNConfig, TransformerConfig, ViTConfig
from baselines.rnn import RNN
from ldn import LDNConfig, PaperSequenceConfig, PaperVisionConfig
from ldn.classifier import Classifier, InputSpec, ModelConfig, Stem, TargetSpec, real_positions
from results.record import Manifest, read_probe, write_manifest
from results.report import write_report
from studies.probe import excess, field, layers, probed, smoothness, value_range
from studies.spec import Budget, RunSpec
from studies.tasks.digits import CuedDigits
from studies.train import Place, train

LINE = InputSpec(kind="pixels", length=21, channels=3)
GRID = InputSpec(kind="image", length=64, channels=1, grid=(8, 8))
PLAIN = LDNConfig(width=8, depth=2, steps=2, kernel="fixed", attention="none")


def network(model: ModelConfig, spec: InputSpec = LINE) -> Classifier:
    torch.manual_seed(0)
    built = model.build(spec, TargetSpec(classes=10)).eval()
    assert isinstance(built, Classifier)
    return built


def inputs(spec: InputSpec = LINE, n: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(n, spec.length, spec.channels) if spec.kind == "pixels" else torch.randn(n, 1, 8, 8)


def everywhere(h: torch.Tensor) -> torch.Tensor:
    return torch.ones(h.shape[:2], dtype=torch.bool)


def test_the_energy_of_a_constant_state_is_0() -> None:
    stem = Stem(LINE, 8)
    h = torch.randn(1, 1, 8).expand(3, 21, 8)
    found = smoothness(h, everywhere(h), stem)
    assert found["energy"] == 0 and found["spread"] == pytest.approx(0, abs=1e-12)


def test_the_energy_of_independent_tokens_is_1_and_a_smooth_line_has_little() -> None:
    stem, torch_rng = Stem(InputSpec(kind="pixels", length=400), 16), torch.Generator().manual_seed(0)
    noise = torch.randn(32, 400, 16, generator=torch_rng)
    assert smoothness(noise, everywhere(noise), stem)["energy"] == pytest.approx(1, abs=0.02)
    ramp = torch.linspace(-1, 1, 400)[None, :, None].expand(1, 400, 16)
    assert smoothness(ramp, everywhere(ramp), stem)["energy"] < 1e-3


def test_the_energy_on_a_line_is_half_of_von_neumanns_ratio() -> None:
    """Von Neumann 1941: the mean square successive difference over the variance, both unbiased."""
    x = np.random.default_rng(0).normal(size=50).cumsum()
    h = torch.tensor(x)[None, :, None]
    ratio = np.mean(np.diff(x) ** 2) / stats.tvar(x)
    found = smoothness(h, everywhere(h), Stem(InputSpec(kind="pixels", length=50), 1, positions="none"))
    assert found["energy"] == pytest.approx(ratio / 2)


def test_on_a_grid_the_neighbours_are_those_of_the_grid() -> None:
    spec = InputSpec(kind="pixels", length=64, grid=(8, 8))
    rows = torch.arange(8.0).repeat_interleave(8)[None, :, None]  # constant along a row, one step from row to row
    found = smoothness(rows, everywhere(rows), Stem(spec, 1))
    deviation = float(((rows - rows.mean()) ** 2).sum())
    assert found["energy"] == pytest.approx(63 * 56 / (2 * 112 * deviation))


def test_padding_is_not_looked_at() -> None:
    h = torch.randn(2, 21, 8)
    real = everywhere(h)
    real[:, 15:] = False
    before = smoothness(h, real, Stem(LINE, 8))
    h[:, 15:] = 1e6
    assert smoothness(h, real, Stem(LINE, 8)) == before
    assert excess(h, torch.where(real[..., None], h, 1e9), real) == 0


@pytest.mark.parametrize("kernel", ["fixed", "stationary", "multiscale", "adaptive", "dense"])
def test_the_range_never_grows_through_a_bounded_diffusion(kernel: Any) -> None:
    model = network(LDNConfig(width=8, depth=2, steps=3, kernel=kernel, radius=2, time_step="token", heads=2))
    found = layers(model, inputs(), None)
    assert [layer["depth"] for layer in found] == [0, 1, 2]
    for before, after in pairwise(found):
        assert after["diffusion"]["excess"] < 1e-5
        assert before["range"]["min"] - 1e-5 <= after["diffusion"]["min"]
        assert after["diffusion"]["max"] <= before["range"]["max"] + 1e-5


def test_a_raw_rate_and_the_published_dense_kernel_leave_the_range() -> None:
    raw = network(LDNConfig(width=8, depth=1, kernel="fixed", time_step="raw", heads=2))
    assert layers(raw, inputs(), None)[1]["diffusion"]["excess"] < 1e-5  # it starts at 0.1
    torch.nn.init.constant_(raw.backbone.layers[0].diffusion.rate.rate, 3.0)  # type: ignore[union-attr,index]
    assert layers(raw, inputs(), None)[1]["diffusion"]["excess"] > 0.1
    paper = network(PaperVisionConfig(width=8, depth=1), GRID)
    torch.nn.init.constant_(paper.backbone.layers[0].diffusion.dt, 1.0)  # type: ignore[union-attr,index]
    assert layers(paper, inputs(GRID), None)[1]["diffusion"]["excess"] > 0.1


def test_a_model_without_mixing_sees_one_token() -> None:
    found = field(network(LDNConfig(width=8, depth=3, steps=0, attention="none")), inputs(), None)
    assert found["support"] == 1 and found["tokens"] == 21
    assert [offset for offset, value in zip(found["offsets"], found["gradient"], strict=True) if value] == [0]


@pytest.mark.parametrize(("depth", "steps", "radius"), [(1, 1, 1), (2, 2, 1), (2, 1, 3)])
def test_diffusion_reaches_depth_times_steps_times_radius_and_no_further(depth: int, steps: int, radius: int) -> None:
    kernel: Any = "fixed" if radius == 1 else "stationary"
    config = LDNConfig(width=8, depth=depth, steps=steps, kernel=kernel, radius=radius, attention="none")
    found = field(network(config), inputs(), None)
    reached = [offset for offset, value in zip(found["offsets"], found["gradient"], strict=True) if value > 0]
    assert (min(reached), max(reached)) == (-depth * steps * radius, depth * steps * radius)


def test_the_field_is_the_jacobian() -> None:
    model, x = network(PLAIN), inputs(n=1)
    h = model.stem(x).detach()
    jacobian = torch.autograd.functional.jacobian(lambda state: model.backbone(state, None)[0, 10], h)  # (D, 1, N, D)
    expected = jacobian.abs().mean((0, 1, 3))  # type: ignore[union-attr]
    assert field(model, x, None)["gradient"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)


def test_with_lengths_the_centre_is_the_middle_of_the_real_tokens() -> None:
    found = field(network(PLAIN), inputs(n=2), torch.tensor([21, 9]))
    assert found["tokens"] == 15 and (found["offsets"][0], found["offsets"][-1]) == (-10, 10)


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (TransformerConfig(width=8, depth=2, heads=2, pool="cls"), LINE),
        (RNNConfig(width=8, depth=2), LINE),
        (ViTConfig(width=8, depth=2, heads=2, patch=2), GRID),
        (PaperSequenceConfig(width=8, depth=2), LINE),
        (PaperVisionConfig(width=8, depth=2, patch=2), GRID),
        (LDNConfig(width=8, depth=2, heads=2, patch=2, grid="2d"), GRID),
    ],
)
def test_every_model_has_energy_range_and_a_field(model: ModelConfig, spec: InputSpec) -> None:
    built = network(model, spec)
    found, seen = layers(built, inputs(spec), None), field(built, inputs(spec), None)
    assert len(found) == 3
    assert all(layer["energy"] > 0 and layer["range"]["min"] < layer["range"]["max"] for layer in found)
    assert ("stencil" in found[1]) == isinstance(model, LDNConfig | PaperSequenceConfig | PaperVisionConfig)
    assert seen["tokens"] == (16 if spec is GRID else 21) and seen["support"] >= 1
    assert not any(module._forward_hooks for module in built.modules())


@pytest.mark.parametrize("model", [RNNConfig(width=8, depth=3), RNNConfig(width=8, cell="gru", bidirectional=False)])
def test_the_layers_of_an_rnn_are_seen_one_by_one(model: RNNConfig) -> None:
    built, lengths = network(model), torch.tensor([21, 9, 5, 21])
    assert isinstance(built.backbone, RNN)
    with torch.no_grad():
        h = built.stem(inputs(), lengths)
        whole = built.backbone(h, lengths)
        for layer in built.backbone.layers():
            h = layer(h, lengths)
    torch.testing.assert_close(h, whole, rtol=0, atol=1e-7)
    found = layers(built, inputs(), lengths)
    assert [layer["depth"] for layer in found] == list(range(model.depth + 1))
    assert found[-1]["range"]["max"] == pytest.approx(value_range(whole, real_positions(lengths, 21))["max"])


def test_stencils_and_rates_are_those_of_the_layer() -> None:
    model = network(LDNConfig(width=8, depth=1, kernel="stationary", radius=2, rate=0.25, attention="none"))
    layer = layers(model, inputs(), None)[1]
    assert [weight["offset"] for weight in layer["stencil"]["weights"]] == [[1], [-1], [2], [-2]]
    assert sum(weight["mean"] for weight in layer["stencil"]["weights"]) == pytest.approx(1)
    assert layer["rate"]["median"] == pytest.approx(0.25) and layer["stencil"]["dilations"] == [1, 1]


def test_a_study_is_probed_stored_and_drawn(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path)
    task = CuedDigits(train=32, valid=16, test=16)
    arms = {
        f"radius {radius}": RunSpec(
            model=LDNConfig(width=8, depth=1, radius=radius, heads=2), task=task, batch=16, budget=Budget(steps=2)
        )
        for radius in range(1, 4)
    }
    records = [train(spec, place) for spec in arms.values()]
    first = list(probed(records, place, 8, untrained=True))
    stored = read_probe(tmp_path, records[0].run_id)
    assert stored == first[0] and stored is not None and stored.trained != stored.untrained
    before = (tmp_path / records[0].run_id / "probe.json").read_bytes()
    assert list(probed(records, place, 8)) == first
    assert (tmp_path / records[0].run_id / "probe.json").read_bytes() == before
    write_manifest(
        tmp_path,
        Manifest(
            study="mine", source="", question="?", reference="radius 1", metric="test.accuracy", direction="max",
            arms=[{"label": arm, "reference": "radius 1", "changes": {}, "note": ""} for arm in arms],
            cells=[{"arm": arm, "seed": 0, "run_id": spec.run_id, "factors": {}} for arm, spec in arms.items()],
        ),
    )  # fmt: skip
    report = write_report(tmp_path, "mine", tmp_path / "reports")
    names = {path.name for path in report.files}
    assert {"diffusion.csv", "energy.png", "range.pdf", "stencils.png", "rates.png", "receptive_field.png"} <= names
    assert "What diffusion does" in (report.folder / "table.md").read_text()
