"""The studies that ship: they load, say what they cost, and every one of their arms can be built and metered."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from results.report import write_report
from studies import catalogue
from studies.drive import drive
from studies.executors import Inline
from studies.spec import Budget, with_field
from studies.study import Study
from studies.train import Place
from tests.watchers import Silent

NAMES = sorted(catalogue.shipped())


def untrained(study: Study) -> Study:
    """The same study with a budget of zero steps and one seed: parameters and GMACs of every arm."""

    def zero(arms):
        return {label: with_field(spec, "budget", Budget(steps=0)) for label, spec in arms.items()}

    panels = {panel: zero(arms) for panel, arms in study.panels.items()}
    return dataclasses.replace(study, arms=zero(study.arms), panels=panels, seeds=[0])


def test_the_studies_of_the_mission_are_there():
    assert {"axes", "steps", "kernels", "attention", "components", "as_published", "comparison"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_file_says_what_it_asks_and_how_it_is_run(name):
    text = ast.get_docstring(ast.parse(catalogue.source(name).read_text()))
    assert text and "?" in text.partition("\n")[0]
    assert f"python -m studies run {name}" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_built_metered_and_reported(name, tmp_path):
    study = untrained(catalogue.load(catalogue.source(name)))
    place = Place(tmp_path / "runs", tmp_path / "no data")
    tally = drive(study, name, "test", place.runs, Inline(place, lambda: False), Silent())
    assert (tally.done, tally.failed) == (len(study.cells()), 0)
    report = write_report(place.runs, name, tmp_path / "reports")
    table = (Path(tmp_path) / "reports" / name / "table.md").read_text()
    assert report and all(arm.label.split(": ")[-1] in table for arm in study.expanded())


def test_the_main_job_has_the_arms_and_seeds_it_promises():
    study = catalogue.load(catalogue.source("axes"))
    labels = {arm.label for arm in study.expanded()}
    assert {"ldn", "no mixing", "linear", "Transformer", "BiLSTM", "ViT", "local off"} <= labels
    assert {"steps 0", "steps 8", "kernel fixed", "kernel dense", "kernel adaptive"} <= labels
    assert {"time_step fixed", "time_step token", "attention none", "attention linear", "attention softmax"} <= labels
    assert len(labels) >= 14 and len(study.seeds) >= 3
