"""Checks of a study before anything is trained: every run can be stored, read back and built."""

from __future__ import annotations

from functools import cache

import torch

from ldn.classifier import InputSpec, ModelConfig, TargetSpec
from studies import zoo
from studies.meter import Cost, exact_gmac, measure
from studies.spec import RunSpec, refuse_unstorable
from studies.study import Arm, Study


def check_study(study: Study) -> None:
    """Raise ValueError, naming the arm, for a run that could not be stored, read back, built or measured as asked."""
    objectives = study.tuning.objectives if study.tuning else ()
    for arm in study.unmatched():
        _check(arm, built=True)
        _refuse_lower_bound(arm, "cost.gmac" in objectives)
    for arm in study.expanded():
        _check(arm, built=False)  # only the width differs, and it was found by building


def study_notes(study: Study) -> list[str]:
    """Sentences on arms that do not differ in any run, and on values that a run never uses."""
    arms = study.expanded()
    groups: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        groups.setdefault((arm.reference, arm.spec.run_id), []).append(repr(arm.label))
    notes = [
        f"The arms {', '.join(labels)} are the same runs: what differs between them has no effect."
        for labels in groups.values()
        if len(labels) > 1
    ]
    if seeded := [repr(arm.label) for arm in arms if arm.spec.seed != RunSpec.seed]:
        notes.append(f"The seed set in {', '.join(seeded)} is not used: Study.seeds sets the seeds of all runs.")
    return notes


def _check(arm: Arm, built: bool) -> None:
    spec = arm.spec
    try:
        _refuse_unlisted(spec)
        refuse_unstorable(spec)
        if built:
            refuse_unbuildable(spec)
    except ValueError as error:
        raise ValueError(f"arm {arm.label!r}: {error}") from error


def _refuse_unlisted(spec: RunSpec) -> None:
    """Raise ValueError for a task or model in no table: a run is started and read by their names alone."""
    for what, part, table, listed, folder in (
        ("task", spec.task, "TASKS", zoo.TASKS, "studies/tasks/"),
        ("model", spec.model, "MODELS", zoo.MODELS, "baselines/"),
    ):
        if type(part) not in listed:
            raise ValueError(
                f"no run could find the {what} {type(part).__name__}, which is not in {table} of studies/zoo.py: put "
                f"the class into a module under {folder} and add it there"
            )


def refuse_unbuildable(spec: RunSpec) -> None:
    """Raise ValueError if the model cannot be built for the task, or the augmentation cannot read it."""
    if spec.augment == "crop_flip" and spec.task.input.grid is None:
        raise ValueError("augment='crop_flip' needs inputs that lie on a grid, and those of this task are a sequence")
    if fault := _build_fault(spec.model, spec.task.input, spec.task.target):
        raise ValueError(fault)


def _refuse_lower_bound(arm: Arm, objective: bool) -> None:
    """Raise ValueError where the budget or the tuning needs multiply-adds and the model's are only a lower bound."""
    spec = arm.spec
    needed = {
        "a budget in gmacs": ("one in steps, epochs or seconds", spec.budget.gmacs is not None),
        "the objective cost.gmac": ("cost.params or train.seconds", objective),
    }
    for purpose, (instead, is_needed) in needed.items():
        if is_needed:
            try:
                exact_gmac(_measured(spec.model, spec.task.input, spec.task.target), purpose, instead)
            except ValueError as error:
                raise ValueError(f"arm {arm.label!r}: {error}") from error


@cache
def _measured(model: ModelConfig, input: InputSpec, target: TargetSpec) -> Cost:
    return measure(model.build(input, target), input)


@cache
def _build_fault(model: ModelConfig, input: InputSpec, target: TargetSpec) -> str:
    """Why the model cannot be built for this input and target; empty if it can. Allocates no weights."""
    try:
        with torch.device("meta"):
            model.build(input, target)
    except ValueError as error:
        return str(error)
    except Exception as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        return f"{model.name} cannot be built for this task: {why}"
    return ""
