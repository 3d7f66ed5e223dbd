"""Does a study stay the same when its files are moved, copied or merged, and is another study of its name refused?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from results.declarations import undeclared_note
from results.identity import source_of
from results.record import (
    Manifest,
    RunRecord,
    TuningRecord,
    manifest_of,
    read_manifest,
    read_tuning,
    validate_owner,
    write_record,
    write_tuning,
)
from results.report import write_report
from studies.catalogue import SHIPPED
from studies.drive import declare
from studies.spec import canonical
from studies.status import look
from studies.study import Study
from tests.test_drive import study

TEXT = "STUDY = ..."


def declared(folder: Path, asked: Study, text: str = TEXT, name: str = "own.py", runs: str = "runs") -> Manifest:
    """The manifest of a study file, whose runs are all done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    declare(asked, "own", source_of(folder / name), folder / runs, asked.cells())
    for cell in asked.cells():
        record = RunRecord(run_id=cell.spec.run_id, spec=canonical(cell.spec), status="done")
        write_record(folder / runs, record)
    manifest = read_manifest(folder / runs, "own")
    assert manifest is not None
    return manifest


def note(folder: Path) -> str:
    return undeclared_note(folder / "runs", manifest_of(folder / "runs", "own"))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_project_goes_on_where_it_was_moved_to(absolute: bool, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "other" / "after"
    manifest = declared(before, study())
    path = before / "runs" / "studies" / "own" / "manifest.json"
    plain = json.loads(path.read_text())
    assert plain["source"] == "../../../own.py" and manifest.source == str(before / "own.py")
    if absolute:  # as older versions wrote it
        del plain["sha256"]
        path.write_text(json.dumps(plain | {"source": manifest.source, "schema": 1}))
    after.parent.mkdir()
    before.rename(after)
    assert manifest_of(after / "runs", str(after / "own.py")).cells == manifest.cells
    assert declared(after, study()).source == str(after / "own.py")
    assert note(after) == ""


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    declared(tmp_path / "a", study())
    other, runs = tmp_path / "b" / "own.py", "../a/runs"
    message = r"manifest.json belongs to .*/a/own.py, not to .*/b/own.py: rename the file, choose another --runs or, if"
    with pytest.raises(ValueError, match=message):
        declared(other.parent, study(), "STUDY = 1", runs=runs)  # even though both have runs in common
    for ask in (validate_owner, lambda runs, path: manifest_of(runs, str(path))):
        with pytest.raises(ValueError, match=message):
            ask(tmp_path / "a" / "runs", other)
    assert manifest_of(tmp_path / "a" / "runs", "own").source == str(tmp_path / "a" / "own.py")
    declared(other.parent, study(), TEXT, runs=runs)  # a second copy of the same study
    with pytest.raises(ValueError, match=r"belongs to .*, not to the suite's own"):
        declare(study(), "own", "the suite's own", tmp_path / "a" / "runs", study().cells())


def test_a_study_file_that_was_moved_goes_on_if_it_has_runs_in_common(tmp_path: Path) -> None:
    declared(tmp_path, study(seeds=[0]))
    moved = tmp_path / "studies" / "own.py"
    moved.parent.mkdir()
    (tmp_path / "own.py").rename(moved)
    foreign = study(seeds=[7])
    with pytest.raises(ValueError, match=r"if both are one study, delete .*manifest.json$"):
        declare(foreign, "own", source_of(moved), tmp_path / "runs", foreign.cells())
    validate_owner(tmp_path / "runs", moved)
    declare(study(seeds=[0, 7]), "own", source_of(moved), tmp_path / "runs", study(seeds=[0, 7]).cells())
    assert manifest_of(tmp_path / "runs", str(moved)).source == str(moved)
    (tmp_path / "runs" / "studies" / "own" / "manifest.json").unlink()
    declare(foreign, "own", source_of(moved), tmp_path / "runs", foreign.cells())  # as the message says
    assert "seed 0)" in note(tmp_path)


def test_a_study_that_ships_is_known_by_its_name() -> None:
    assert source_of(SHIPPED / "axes.py") == "the suite's axes"


def test_runs_of_two_machines_are_merged_and_none_is_forgotten(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    declared(here, study(seeds=[0, 1]))
    declared(there, study(seeds=[1, 2]))
    shutil.copytree(there / "runs", here / "runs", dirs_exist_ok=True)  # replaces the manifest
    assert {cell["seed"] for cell in manifest_of(here / "runs", "own").cells} == {1, 2}
    assert note(here).startswith("not shown: 3 finished runs (arms ldn, steps 0, linear; seed 0) that")
    assert note(here) in look(here / "runs", "own")[1]
    declared(here, study(seeds=[0, 1]))
    assert "seed 2)" in note(here)
    report = write_report(here / "runs", "own", here / "reports")
    assert any(line.startswith("Not shown: 3 finished runs") for line in report.notes)
    declared(here, study(seeds=[0, 1, 2]))
    assert note(here) == ""
    assert len(list((here / "runs" / "studies" / "own" / "declared").iterdir())) == 1  # the others are part of it


def test_a_study_that_declares_less_says_so(tmp_path: Path) -> None:
    declared(tmp_path, study(seeds=[0]))
    declared(tmp_path, study(seeds=[0], factors={}))
    assert "1 finished run (arm steps 0; seed 0)" in note(tmp_path)
    kept = next((tmp_path / "runs" / "studies" / "own" / "declared").iterdir())
    kept.write_text("{")
    assert note(tmp_path).startswith(f"{kept} is not valid JSON")
    declared(tmp_path, study(seeds=[0, 1], factors={}))  # it is left to its owner
    assert kept.exists()


def test_a_search_is_moved_with_its_project(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
        (folder / "own.py").write_text(folder.name)
    record = TuningRecord(
        study="own", source=source_of(before / "own.py"), space={}, trials=1, seeds=[0], objectives=["valid.accuracy"],
        pruner="none", commit="", dirty=False, arms={},
    )  # fmt: skip
    path = Path("runs/studies/own/trials.json")
    write_tuning(before / path, record)
    shutil.copytree(before / "runs", after / "runs")
    found = read_tuning(after / path)
    assert found is not None and found.source == str(after / "own.py")
    validate_owner(after / "runs", after / "own.py")
    with pytest.raises(ValueError, match=r"trials.json belongs to .*/before/own.py, not to .*/after/own.py"):
        validate_owner(before / "runs", after / "own.py")
