"""Are stored weights evaluated elsewhere as they should be, and is what does not fit said in one sentence?"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from baselines import LinearConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig, PaperSequenceConfig, PaperVisionConfig
from ldn.classifier import InputSpec, ModelConfig, Stem, TargetSpec
from results.evals import row
from results.record import EvalRecord, Manifest, RunRecord, read_evals, write_manifest, write_record
from results.report import write_report
from studies.__main__ import app
from studies.evaluate import asked_of, evaluations, move_to, resized
from studies.spec import Budget, RunSpec, from_plain
from studies.stored import find_runs
from studies.tasks.digits import CuedDigits, Digits
from studies.tasks.images import CIFAR10
from studies.train import Place, train

TASK = CuedDigits(train=64, valid=32, test=48)
ARMS: dict[str, ModelConfig] = {
    "ldn": LDNConfig(width=8, depth=1, heads=2),
    "dense": LDNConfig(width=8, depth=1, heads=2, kernel="dense"),
    "paper-sequence": PaperSequenceConfig(width=8, depth=1),
    "paper-vision": PaperVisionConfig(width=8, depth=1),
    "linear": LinearConfig(),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Five arms trained for two steps, as the study "lengths"; and one run on images."""
    runs = tmp_path_factory.mktemp("runs")
    place = Place(runs, runs / "data")
    specs = {arm: RunSpec(model=model, task=TASK, batch=16, budget=Budget(steps=2)) for arm, model in ARMS.items()}
    for spec in specs.values():
        assert train(spec, place).status == "done"
    cells = [{"arm": arm, "seed": 0, "run_id": spec.run_id, "factors": {}} for arm, spec in specs.items()]
    cells.append({"arm": "ldn", "seed": 1, "run_id": "0" * 16, "factors": {}})
    arms = [{"label": arm, "reference": "ldn", "changes": {}, "note": ""} for arm in specs]
    write_manifest(
        runs,
        Manifest(
            study="lengths", source="", question="How far?", reference="ldn", metric="test.accuracy", direction="max",
            arms=arms, cells=cells,
        ),
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def images(place: Place) -> RunRecord:
    model = LDNConfig(width=8, depth=1, heads=2, patch=2, grid="2d")
    return train(RunSpec(model=model, task=Digits(view="image"), batch=64, budget=Budget(steps=2)), place)


def test_on_the_task_itself_the_metrics_are_exactly_the_records(place: Place, images: RunRecord) -> None:
    for record in (*find_runs(place.runs, "lengths").records, images):
        (same,) = evaluations([record], place)
        assert same.metrics == record.metrics["test"]
        assert same.changes == {} and same.weights_hash == record.weights_hash
        assert same.data["fingerprint"] == record.data["fingerprint"]
        (valid,) = evaluations([record], place, split="valid")
        assert valid.metrics == record.metrics["valid"] and valid.eval_id != same.eval_id


def test_a_sweep_of_lengths_gives_a_record_each_and_asks_no_run_twice(place: Place) -> None:
    found = find_runs(place.runs, "lengths")
    assert (len(found.records), found.left) == (5, 1)
    made = list(evaluations(found.records, place, overrides=["task.gap=1,3,7"]))
    assert [one.length for one in made] == [25] * 5 + [41] * 5 + [73] * 5
    for one in made:
        arm = found.labels[one.run_id]
        assert one.trained_length == 25 and one.changes == ({} if one.length == 25 else {"gap": (one.length - 17) // 8})
        if one.length == 25 or arm in ("ldn", "paper-sequence"):
            assert one.status == "done" and one.examples == 48 and 0 <= one.metrics["accuracy"] <= 1
        else:
            assert one.status == "failed" and re.search("fixed length of 25|learned for 25", one.reason)
            assert not one.metrics and "\n" not in one.reason
    again = list(evaluations(found.records, place, overrides=["task.gap=1,3,7"]))
    assert [one for one in again if one.status == "done"] == [one for one in made if one.status == "done"]
    assert {one.eval_id for one in read_evals(place.runs, made[0].run_id)} >= {
        one.eval_id for one in made if one.run_id == made[0].run_id
    }


def test_the_report_has_a_table_and_a_figure_of_lengths(place: Place, tmp_path: Path) -> None:
    list(evaluations(find_runs(place.runs, "lengths").records, place, overrides=["task.gap=3"]))
    report = write_report(place.runs, "lengths", tmp_path)
    text = (report.folder / "table.md").read_text()
    assert "## Evaluated elsewhere" in text and re.search(r"\| dense +\| +1 \| [\d.]+ +\| cannot", text)
    assert "linear at gap 3" in text and (report.folder / "evals_gap.png").stat().st_size > 10_000


def test_what_the_network_does_elsewhere_is_what_it_would_do_alone(place: Place) -> None:
    (record,) = find_runs(place.runs, "lengths", ["ldn"]).records
    (one,) = evaluations([record], place, overrides=["task.gap=5"])
    task = dataclasses.replace(TASK, gap=5)
    network = from_plain(record.spec).model.build(TASK.input, TASK.target).eval()
    network.load_state_dict(torch.load(place.runs / record.run_id / "weights.pt", weights_only=True))
    test = task.load(place.data).test
    with torch.no_grad():
        accuracy = (network(test.x).argmax(-1) == test.y).double().mean()
    assert one.metrics["accuracy"] == accuracy.item()


def test_images_of_another_resolution_are_read(place: Place, images: RunRecord) -> None:
    (larger,) = evaluations([images], place, resolution="16x12")
    assert (larger.status, larger.length, larger.changes) == ("done", 192, {"resolution": [16, 12]})
    (odd,) = evaluations([images], place, resolution="9x8")
    assert odd.status == "failed" and odd.reason == "an image of 9 x 8 does not divide into patches of 2"
    (same,) = evaluations([images], place, resolution="8x8")
    assert same.changes == {} and same.metrics == images.metrics["test"]


def test_learned_positions_are_interpolated_and_a_class_token_keeps_its_own() -> None:
    spec = InputSpec(kind="image", length=64, grid=(8, 8))
    stem = Stem(spec, 4, "learned", patch=2, cls=True)
    with torch.no_grad():  # a plane: one step from row to row, four from column to column
        stem.positions[1:] = torch.arange(16.0).view(4, 4).T.flatten()[:, None]
    before = stem.positions.detach().clone()
    stem.move_to(InputSpec(kind="image", length=256, grid=(16, 16)))
    assert stem.positions.shape == (65, 4) and stem.length == 65
    assert torch.equal(stem.positions[0], before[0])
    plane = stem.positions[1:, 0].view(8, 8).detach()
    across, down = plane.diff(dim=1)[:, 2:5].mean().item(), plane.diff(dim=0)[2:5].mean().item()
    assert (across, down) == (pytest.approx(2, abs=0.25), pytest.approx(0.5, abs=0.06))
    assert stem(torch.zeros(1, 1, 16, 16)).shape == (1, 65, 4)
    with pytest.raises(ValueError, match="a sequence has none"):
        stem.move_to(InputSpec(kind="pixels", length=9))


def test_models_of_images_and_of_pixels_move_to_another_grid() -> None:
    for model, kind, patch in (
        (ViTConfig(width=6, depth=1, patch=4), "image", 4),
        (TransformerConfig(width=8), "pixels", 1),
        (LDNConfig(width=8, depth=1, patch=4, positions="sinusoidal"), "image", 4),
    ):
        spec = InputSpec(kind=kind, length=64, grid=(8, 8))  # type: ignore[arg-type]
        other = InputSpec(kind=kind, length=192, grid=(16, 12))  # type: ignore[arg-type]
        network = model.build(spec, TargetSpec(classes=3)).eval()
        move_to(network, other)
        x = torch.zeros(2, 1, 16, 12) if kind == "image" else torch.zeros(2, 192, 1)
        assert network(x).shape == (2, 3)
        assert network.stem.token_grid == (16 // patch, 12 // patch)  # type: ignore[union-attr]


def test_every_view_of_an_image_is_resized_alike() -> None:
    image = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    grid = (8, 8)
    small = resized(image, InputSpec(kind="image", length=64, grid=grid), (4, 6))
    pixels = resized(image.flatten(2).transpose(1, 2), InputSpec(kind="pixels", length=64, grid=grid), (4, 6))
    ids = resized(image.flatten(1), InputSpec(kind="tokens", length=64, vocabulary=256, grid=grid), (4, 6))
    assert small.dtype == torch.uint8 and small.shape == (3, 1, 4, 6)
    assert torch.equal(pixels[..., 0], small.flatten(1)) and torch.equal(ids, small.flatten(1))
    flat = torch.full((1, 1, 8, 8), 7, dtype=torch.uint8)
    assert torch.equal(resized(flat, InputSpec(kind="image", length=64, grid=grid), (5, 5)).unique(), torch.tensor([7]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"overrides": ["task.gpa=3"]}, r"CuedDigits has no field 'gpa'; known fields: view, gap"),
        ({"overrides": ["task.gap=-1"]}, r"CuedDigits\.gap must be at least 0"),
        ({"overrides": ["gap=3"]}, r"--set takes task\.FIELD=VALUE"),
        ({"overrides": ["task.view=pixels"]}, r"input channels 8, but cued_digits has channels 1"),
        ({"overrides": ["task.view=image"]}, r"input kind pixels, but cued_digits has kind image"),
        ({"task": "listops"}, r"trained on cued_digits with input kind pixels, but listops has kind tokens"),
        ({"task": "imagenet"}, r"there is no task named 'imagenet'; known: digits"),
        ({"resolution": "40"}, r"a resolution is written as 40x40"),
        ({"resolution": "40x40"}, r"lies on no grid"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(asked: dict[str, object], message: str) -> None:
    spec = RunSpec(model=ARMS["ldn"], task=TASK)
    given = {"task": None, "overrides": [], "resolution": None, "split": "test", **asked}
    with pytest.raises(ValueError, match=message) as error:
        asked_of(spec, **given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_other_data_of_the_same_kind_is_read(place: Place, images: RunRecord) -> None:
    (other,) = evaluations([images], place, task="cued_digits", overrides=["task.view=image", "task.test=20"])
    assert other.status == "done" and other.length == 256 and other.examples == 20
    assert other.changes == {"task": "cued_digits", "view": "image", "test": 20}
    with pytest.raises(ValueError, match="channels 1, but cifar10 has channels 3"):
        asked_of(from_plain(images.spec), "cifar10", ["task.view=patches"], None, "test")
    assert CIFAR10.name == "cifar10"


def test_runs_are_found_by_prefix_study_and_arm_and_nothing_else(place: Place, tmp_path: Path) -> None:
    (run,) = find_runs(place.runs, "lengths", ["linear"]).records
    assert find_runs(place.runs, run.run_id[:9]).records == [run]
    for name, arms, message in (
        ("zzz", (), "neither a study nor a run 'zzz'; it has . runs with a record, and the studies: lengths"),
        ("lengths", ("lin",), "no arm 'lin'; arms: 'ldn', 'dense"),
        (run.run_id, ("linear",), "--arm chooses from a study"),
        ("", (), r"'' begins the ids of . runs \("),
    ):
        with pytest.raises(ValueError, match=message):
            find_runs(place.runs, name, arms)
    unfinished = dataclasses.replace(run, status="diverged", reason="the loss is nan")
    write_record(tmp_path, unfinished)
    with pytest.raises(ValueError, match="is not done but diverged"):
        find_runs(tmp_path, run.run_id[:9])


def test_weights_that_are_gone_torn_or_others_are_refused(place: Place, tmp_path: Path) -> None:
    spec = RunSpec(model=ARMS["linear"], task=TASK, batch=16, budget=Budget(steps=1))
    here = dataclasses.replace(place, runs=tmp_path)
    record = train(spec, here)
    path = tmp_path / record.run_id / "weights.pt"
    with pytest.raises(ValueError, match="holds other weights than its record says"):
        list(evaluations([dataclasses.replace(record, weights_hash="0")], here))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
        list(evaluations([record], here))
    path.unlink()
    with pytest.raises(ValueError, match="no weights kept"):
        list(evaluations([record], here))
    untrained = train(dataclasses.replace(spec, budget=Budget(steps=0)), here)
    with pytest.raises(ValueError, match="budget is 0 steps"):
        list(evaluations([untrained], here))


def test_the_commands_print_what_was_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDN_RUNS", str(place.runs))
    monkeypatch.setenv("LDN_DATA", str(place.data))
    said = CliRunner().invoke(app, ["eval", "lengths", "--set", "task.gap=1,3", "--device", "cpu"])
    assert said.exit_code == 0, said.output
    assert re.search(r"as trained +gap 3", said.output) and re.search(r"dense +1 +[\d.]+ +cannot", said.output)
    assert "1 of the study's runs not done" in said.output and "python -m results lengths" in said.output
    said = CliRunner().invoke(app, ["probe", "lengths", "--arm", "ldn", "--arm", "linear", "--device", "cpu"])
    assert said.exit_code == 0, said.output
    assert re.search(r"ldn +1 +0\.\d+ to", said.output) and "'linear' has no tokens" in said.output


def test_text_of_an_evaluation_can_be_written_to_any_file() -> None:
    record = EvalRecord(
        eval_id="0", run_id="0", task={}, split="test", resolution=[], changes={"g\ud800p": "\udfff"}, length=1,
        trained_length=1, status="failed", reason="no \ud800\n", weights_hash="",
    )  # fmt: skip
    told = row(record, "accuracy")
    assert (told["fields"], told["setting"], told["reason"]) == (r"g\ud800p", r"g\ud800p \udfff", r"no \ud800\n")
