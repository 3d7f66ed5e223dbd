"""Is it said which finished runs were trained with other source or defaults, and are they replaced on request?"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baselines import LinearConfig
from ldn import LDNConfig
from results import sources
from results.gather import gather
from results.record import (
    TRAINED,
    RunRecord,
    discard,
    read_manifest,
    read_record,
    run_folder,
    write_record,
)
from results.sources import source_hash
from results.stale import difference
from studies.__main__ import app
from studies.evaluate import evaluations
from studies.provenance import run_sources, trained_with
from studies.spec import Budget, RunSpec, canonical, complete, flatten, from_plain, with_field, with_fields
from studies.stored import weights
from studies.tasks.digits import CuedDigits
from studies.train import Place, train

ROOT = Path(__file__).resolve().parent.parent
TASK = CuedDigits(train=16, valid=8, test=8)
SPEC = RunSpec(model=LDNConfig(width=8, depth=1, heads=2), task=TASK, batch=8, budget=Budget(steps=2, evaluations=1))
ARMS = {"ldn": SPEC, "linear": with_field(SPEC, "model", LinearConfig())}
FILE = """
from baselines import LinearConfig
from ldn import LDNConfig
from studies.spec import Budget, RunSpec
from studies.study import Study
from studies.tasks.digits import CuedDigits

run = dict(task=CuedDigits(train=16, valid=8, test=8), batch=8, budget=Budget(steps=2, evaluations=1))
arms = {
    "ldn": RunSpec(model=LDNConfig(width=8, depth=1, heads=2), **run), "linear": RunSpec(model=LinearConfig(), **run)
}
STUDY = Study(question="Is it new?", reference="ldn", arms=arms, seeds=(0, 1))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's file, its four finished runs and its report."""
    folder, file = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("study") / "fresh.py"
    file.write_text(FILE, encoding="utf-8")
    (folder / "fresh.py").symlink_to(file)  # copies of the folder are of the same study
    assert command(folder, "run", "--on", "inline").exit_code == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))


def command(folder: Path, name: str, *options: str):
    """`python -m studies NAME fresh.py` with its folders in `folder`."""
    out = ["--out", str(folder / "reports"), "--data", str(folder)] if name == "run" else []
    return CliRunner().invoke(app, [name, str(folder / "fresh.py"), "--runs", str(folder / "runs"), *out, *options])


def change_records(folder: Path, arm: str, **changes: object) -> list[str]:
    """Rewrite the records of an arm as if something had been different; their ids."""
    runs = folder / "runs"
    manifest = read_manifest(runs, "fresh")
    assert manifest is not None
    ids = [cell["run_id"] for cell in manifest.cells if cell["arm"] == arm]
    for run_id in ids:
        record = read_record(runs, run_id)
        assert record is not None
        write_record(runs, dataclasses.replace(record, **changes))  # type: ignore[arg-type]
    return ids


def text(output: str) -> str:
    return " ".join(output.split())


def mtimes(folder: Path, ids: list[str]) -> list[int]:
    return [(run_folder(folder / "runs", run_id) / "record.json").stat().st_mtime_ns for run_id in ids]


# what is stored


def test_a_record_holds_every_field_and_the_source(trained: Path) -> None:
    record = read_record(trained / "runs", SPEC.run_id)
    assert record is not None and record.config == json.loads(json.dumps(complete(SPEC)))
    model, optim = record.config["model"], record.config["optim"]
    assert model["name"] == "ldn" and set(model) == {"name", *(f.name for f in dataclasses.fields(LDNConfig))}
    assert (model["patch"], optim["beta1"], record.config["budget"]["epochs"]) == (4, 0.9, None)
    assert record.sources == run_sources(SPEC)
    assert [source.partition("@")[0] for source in record.sources.values()] == [
        "ldn.model", "studies.tasks.digits", "studies.train",
    ]  # fmt: skip


def test_the_columns_of_a_report_hold_what_the_spec_leaves_out(folder: Path) -> None:
    change_records(folder, "linear", config={}, sources={})  # as an earlier version wrote it
    frame = gather(folder / "runs", "fresh").set_index("arm")
    assert set(frame.loc["ldn", "optim.weight_decay"]) == {0.05} and set(frame.loc["ldn", "task.view"]) == {"rows"}
    assert frame.loc["linear", "optim.weight_decay"].isna().all()
    assert frame["spec.task"].nunique() == 1


# hashes of source


def copied_code(folder: Path) -> Path:
    for package in ("ldn", "baselines", "studies", "results"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    return folder


PARTS = {"model": "ldn.model", "task": "studies.tasks.images", "training": "studies.train"}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("ldn/model.py", ["model"]),
        ("ldn/terms.py", ["model"]),
        ("baselines/rnn.py", []),
        ("studies/tasks/image_files.py", ["task"]),
        ("studies/tasks/digits.py", []),
        ("studies/schedule.py", ["training"]),
        ("studies/zoo.py", []),
        ("studies/spec.py", []),
        ("studies/status.py", []),
    ],
)
def test_a_change_counts_for_the_parts_that_import_the_module(file: str, changed: list[str], tmp_path: Path) -> None:
    before = {part: source_hash(part, entry) for part, entry in PARTS.items()}
    root = copied_code(tmp_path)
    path = root / file
    path.write_text(path.read_text(encoding="utf-8") + "\n\nADDED = 1\n", encoding="utf-8")
    assert [part for part, entry in PARTS.items() if source_hash(part, entry, root) != before[part]] == changed


def test_comments_docstrings_and_formatting_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    one = '"""A model."""\nimport other\n\ndef f(x):\n    """Twice."""\n    return 2 * x  # fast\n'
    hashes = []
    for source in (one, "import other\ndef f( x ):\n    return (2*x)\n", one.replace("2 * x", "3 * x")):
        path.write_text(source, encoding="utf-8")
        sources._parsed.cache_clear()
        source_hash.cache_clear()
        hashes.append(source_hash("model", str(path)))
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "other.py").write_text("y = 1\n", encoding="utf-8")
    sources._parsed.cache_clear()
    source_hash.cache_clear()
    assert source_hash("model", str(path)) != hashes[2]  # the files beside it count
    assert source_hash("model", "ldn.no_such_module") == ""


def test_a_training_that_went_on_with_other_source_has_both_hashes() -> None:
    def attempt(digest: str, **more: object):
        return {"sources": {"model": f"ldn.model@{digest}"}, **more}

    assert trained_with([attempt("a"), attempt("a", first_step=3)]) == {"model": "ldn.model@a"}
    assert trained_with([attempt("a"), attempt("b", first_step=3)]) == {"model": "ldn.model@a+b"}
    assert trained_with([{}, attempt("b", first_step=3)]) == {"model": "ldn.model@unknown+b"}
    assert trained_with([attempt("a"), attempt("b", first_step=0)]) == {"model": "ldn.model@b"}
    replaced = attempt("a", first_step=0, replaced=True)
    assert trained_with([replaced, attempt("b"), attempt("b", first_step=3)]) == {"model": "ldn.model@b"}


# what is said


def test_nothing_is_said_of_runs_of_today(folder: Path) -> None:
    for name in ("show", "status"):
        assert "trained with" not in command(folder, name).output


def test_other_source_is_said_everywhere_with_the_command(folder: Path) -> None:
    old = {"model": "ldn.model@0123456789abcdef", "training": run_sources(SPEC)["training"]}
    change_records(folder, "ldn", sources=old)
    for name in ("show", "status", "run"):
        said = text(command(folder, name).output)
        assert "2 runs of arm ldn were trained with other source of: model." in said
        assert "fresh.py --retrain` trains them again" in said
    for page in ("table.md", "report.html"):
        assert "other source of: model" in (folder / "reports" / "fresh" / page).read_text(encoding="utf-8")


def test_other_defaults_are_said_with_both_values(folder: Path) -> None:
    record = read_record(folder / "runs", SPEC.run_id)
    assert record is not None
    model = record.config["model"] | {"ffn_ratio": 8, "patch": 2}  # the patch has no effect here
    change_records(folder, "ldn", config=record.config | {"model": model})
    for name in ("show", "status"):
        assert "with other defaults: model.ffn_ratio was 8, is 2." in text(command(folder, name).output)


def test_runs_without_recorded_source_are_counted_not_called_stale(folder: Path) -> None:
    change_records(folder, "linear", sources={}, config={})
    said = text(command(folder, "status").output)
    assert "2 runs were trained before the source was recorded" in said and "--retrain" not in said


def test_a_default_changed_in_the_source_is_seen_by_a_new_process(trained: Path, tmp_path: Path) -> None:
    """The same study under a copy of the code in which a default differs: the stored record stays what it was."""
    code = copied_code(tmp_path)
    model = code / "ldn" / "model.py"
    changed = model.read_text(encoding="utf-8").replace("AtLeast(0)] = 2\n    dropout", "AtLeast(0)] = 8\n    dropout")
    model.write_text(changed, encoding="utf-8")
    call = [sys.executable, "-m", "studies", "show", str(trained / "fresh.py"), "--runs", str(trained / "runs")]
    shown = subprocess.run(call, cwd=code, env={"PYTHONPATH": str(code)}, capture_output=True, encoding="utf-8")
    wanted = "2 runs of arm ldn were trained with other source of: model; other defaults: model.ffn_ratio was 2, is 8."
    assert wanted in text(shown.stdout), shown.stderr


@pytest.mark.parametrize("changes", [{}, {"budget": Budget(gmacs=1e300)}, {"model.patch": 2}, {"optim.clip": 1e-9}])
def test_a_run_of_today_does_not_differ(changes: dict[str, Any]) -> None:
    """Neither by fields without effect, nor by the seed."""
    spec = with_fields(SPEC, changes)
    config = json.loads(json.dumps(complete(spec)))
    record = RunRecord(run_id=spec.run_id, spec={}, status="done", config=config, sources=run_sources(spec))
    assert not difference(record, flatten(with_field(from_plain(canonical(spec)), "seed", 5)))


# replacing


def test_retrain_replaces_what_differs_and_nothing_else(folder: Path) -> None:
    runs = folder / "runs"
    old = change_records(folder, "ldn", sources={"model": "ldn.model@0123456789abcdef"})
    kept = [spec.run_id for spec in (ARMS["linear"], with_field(ARMS["linear"], "seed", 1))]
    (record,) = [read_record(runs, SPEC.run_id)]
    assert record is not None
    assert [one.status for one in evaluations([record], Place(runs, folder))] == ["done"]
    before = mtimes(folder, old), mtimes(folder, kept)
    assert command(folder, "run", "--on", "inline", "--retrain").exit_code == 0
    assert (
        all(a != b for a, b in zip(mtimes(folder, old), before[0], strict=True)) and mtimes(folder, kept) == before[1]
    )
    new = read_record(runs, SPEC.run_id)
    assert new is not None and new.sources == run_sources(SPEC) and new.metrics == record.metrics
    assert [attempt.get("replaced", False) for attempt in new.attempts] == [True, False]
    assert not (run_folder(runs, SPEC.run_id) / "evals").exists()
    assert "trained with" not in command(folder, "status").output


def test_retrain_of_an_arm_replaces_all_its_runs(folder: Path) -> None:
    ids = [spec.run_id for spec in (ARMS["linear"], with_field(ARMS["linear"], "seed", 1))]
    others, before = mtimes(folder, [SPEC.run_id]), mtimes(folder, ids)
    assert command(folder, "run", "--on", "inline", "--retrain", "--arm", "linear").exit_code == 0
    assert all(a != b for a, b in zip(mtimes(folder, ids), before, strict=True))
    assert mtimes(folder, [SPEC.run_id]) == others


@pytest.mark.parametrize(
    ("options", "said"), [(["--arm", "ldn"], "give both"), (["--retrain", "--arm", "x"], "no arm 'x'")]
)
def test_an_arm_that_cannot_be_meant_is_refused(folder: Path, options: list[str], said: str) -> None:
    result = command(folder, "run", "--on", "inline", *options)
    assert result.exit_code != 0 and said in str(result.exception or result.output)
    assert read_record(folder / "runs", SPEC.run_id) is not None


@pytest.mark.parametrize("deleted", range(len(TRAINED) + 1))
def test_a_kill_between_two_deletions_ends_in_the_same_result(
    deleted: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `run` finds the old result or trains anew; nothing of the old one is left beside the new one."""
    place, unlink, calls = Place(folder / "runs", folder), Path.unlink, []
    before = train(SPEC, place)

    def dying(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) > deleted:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with suppress(KeyboardInterrupt):
        discard(place.runs, SPEC.run_id)
    monkeypatch.undo()
    after = train(SPEC, place)
    assert (after.status, after.metrics, after.weights_hash) == ("done", before.metrics, before.weights_hash)
    assert len(after.attempts) == (1 if deleted <= TRAINED.index("record.json") else 2)
    assert weights(place.runs, after) and (run_folder(place.runs, SPEC.run_id) / "curve.csv").exists()
