"""The studies that ship: they load, say what they cost, and every arm can be trained, evaluated and reported."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from results.gather import gather
from results.report import write_report
from studies import catalogue
from studies.drive import drive
from studies.executors import Inline
from studies.spec import Budget, RunSpec, with_fields
from studies.study import Study
from studies.tasks import image_files, images
from studies.train import Place
from tests.image_data import write_cifar10
from tests.watchers import Silent

NAMES = sorted(catalogue.shipped())
REPORTED = ("axes", "comparison", "components")  # one of each design: one at a time, panels, crossed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Runs that the studies share where they ask for the same ones, and small files of the image data sets."""
    root = tmp_path_factory.mktemp("ablations")
    write_cifar10(root, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "CIFAR10_BATCH", 10)
        patch.setattr(images, "VALID", 2)
        yield Place(root / "runs", root)


def shortened(study: Study) -> Study:
    """The same study for two steps of two examples and one seed, its widths solved as at full depth."""
    solved = {arm.label: arm.spec for arm in study.expanded()}

    def short(arms: Mapping[str, RunSpec], prefix: str = "") -> dict[str, RunSpec]:
        return {label: two_steps(solved[prefix + label]) for label in arms}

    panels = {panel: short(arms, f"{panel}: ") for panel, arms in study.panels.items()}
    return dataclasses.replace(study, arms=short(study.arms), panels=panels, match="none", seeds=[0])


def two_steps(spec: RunSpec) -> RunSpec:
    """`spec` with four training examples, short ListOps, at most two layers, and narrow on long sequences."""
    small = {"train": 4, "valid": 2, "test": 2, "min_length": 8, "max_length": 40}
    changes: dict[str, Any] = {f"task.{f.name}": small[f.name] for f in fields(spec.task) if f.name in small}
    changes["batch"] = 2 if "task.train" in changes else spec.batch  # the size of Digits is fixed
    changes["budget"] = Budget(evaluations=1, **({"steps": 2} if spec.budget.epochs is None else {"epochs": 1}))
    if depth := getattr(spec.model, "depth", 0):
        changes["model.depth"] = min(depth, 2)
    if depth and spec.task.input.length > 512 and spec.task.input.kind == "tokens":
        changes["model.width"] = 4 * spec.model.width_unit()
    return with_fields(spec, changes)


def test_the_studies_of_the_mission_are_there():
    assert {"axes", "steps", "kernels", "attention", "components", "as_published", "comparison"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_file_says_what_it_asks_and_how_it_is_run(name):
    text = ast.get_docstring(ast.parse(catalogue.source(name).read_text()))
    assert text and "?" in text.partition("\n")[0]
    assert f"python -m studies run {name}" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_trained_and_evaluated(name: str, place: Place, tmp_path: Path) -> None:
    study = shortened(catalogue.load(catalogue.source(name)))
    tally = drive(study, name, "test", place.runs, Inline(place, lambda: False), Silent())
    assert (tally.done, tally.failed) == (len(study.cells()), 0)
    frame = gather(place.runs, name)
    assert frame["test.accuracy"].between(0, 1).all() and list(frame["arm"]) == [arm.label for arm in study.expanded()]
    if name in REPORTED:
        write_report(place.runs, name, tmp_path)
        table = (tmp_path / name / "table.md").read_text()
        assert all(arm.label.split(": ")[-1] in table for arm in study.expanded())


def test_the_main_job_has_the_arms_and_seeds_it_promises():
    study = catalogue.load(catalogue.source("axes"))
    labels = {arm.label for arm in study.expanded()}
    assert {"ldn", "no mixing", "linear", "Transformer", "BiLSTM", "ViT", "local off"} <= labels
    assert {"steps 0", "steps 8", "kernel fixed", "kernel dense", "kernel adaptive"} <= labels
    assert {"time_step fixed", "time_step token", "attention none", "attention linear", "attention softmax"} <= labels
    assert len(labels) >= 14 and len(study.seeds) >= 3
