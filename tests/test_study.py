"""Which runs does a study ask for, at which widths, and how is it found by its name or its file?"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig, PaperSequenceConfig
from studies import catalogue
from studies.matching import matched_width
from studies.meter import measure, parameters
from studies.spec import Budget, Optimiser, RunSpec, field_value, with_field
from studies.study import Study, changes
from studies.tasks.digits import CuedDigits, Digits

FULL = RunSpec(model=LDNConfig(width=8, depth=1, heads=2), task=Digits(), budget=Budget(steps=5))
PLAIN = with_field(FULL, "model.steps", 0)


def study(**changed: Any) -> Study:
    return Study(**{"question": "Why?", "reference": "full", "arms": {"full": FULL}, "seeds": (0, 1), **changed})


def labels(asked: Study) -> list[str]:
    return [arm.label for arm in asked.expanded()]


# arms, factors, seeds


def test_declared_arms_follow_the_reference() -> None:
    asked = study(arms={"plain": PLAIN, "full": FULL})
    assert labels(asked) == ["full", "plain"]
    assert [arm.spec for arm in asked.expanded()] == [FULL, PLAIN]
    assert {arm.reference for arm in asked.expanded()} == {"full"}


def test_factors_vary_one_field_at_a_time_around_the_reference() -> None:
    factors = {"model.steps": [0, 2, 8], "model.local": [True, False], "optim.lr": [0.1]}
    asked = study(factors=factors)
    assert labels(asked) == ["full", "steps 0", "steps 8", "local off", "lr 0.1"]  # not what the reference already is
    for arm in asked.expanded():
        differing = changes(arm.spec, FULL)
        assert len(differing.keys() & factors.keys()) == (arm.label != "full")
        assert arm.factors == {path: field_value(arm.spec, path) for path in factors}


def test_crossed_factors_give_every_combination_once() -> None:
    asked = study(factors={"model.steps": [0, 2, 8], "optim.lr": [1e-3, 0.1]}, design="crossed")
    assert labels(asked) == [
        "full", "steps 0, lr 0.001", "steps 0, lr 0.1", "steps 2, lr 0.1", "steps 8, lr 0.001", "steps 8, lr 0.1",
    ]  # fmt: skip
    found = {(arm.factors["model.steps"], arm.factors["optim.lr"]) for arm in asked.expanded()}
    assert found == {(steps, lr) for steps in (0, 2, 8) for lr in (1e-3, 0.1)}
    assert all(arm.factors[path] == field_value(arm.spec, path) for arm in asked.expanded() for path in arm.factors)


def test_arms_and_factors_stand_side_by_side() -> None:
    asked = study(arms={"full": FULL, "linear": with_field(FULL, "model", LinearConfig())}, factors={"batch": [16]})
    assert labels(asked) == ["full", "batch 16", "linear"]


def test_cells_are_whole_rows_seed_by_seed() -> None:
    cells = study(arms={"full": FULL, "plain": PLAIN}, seeds=(3, 1)).cells()
    assert [(cell.arm, cell.seed) for cell in cells] == [("full", 3), ("plain", 3), ("full", 1), ("plain", 1)]
    assert all(cell.spec.seed == cell.seed for cell in cells)
    assert len({cell.spec.run_id for cell in cells}) == 4


def test_the_arms_of_a_panel_are_compared_with_its_own_reference() -> None:
    other = with_field(FULL, "task", CuedDigits())
    panels = {"one": {"full": FULL, "plain": PLAIN}, "two": {"full": other}}
    asked = study(arms={}, panels=panels, factors={"batch": [16]})
    found = {arm.label: (arm.reference, arm.spec) for arm in asked.expanded()}
    assert found == {
        "one: full": ("one: full", FULL),
        "one: batch 16": ("one: full", with_field(FULL, "batch", 16)),
        "one: plain": ("one: full", PLAIN),
        "two: full": ("two: full", other),
        "two: batch 16": ("two: full", with_field(other, "batch", 16)),
    }


def test_more_arms_seeds_and_factors_leave_the_runs_there_were() -> None:
    small = study(factors={"model.steps": [0]})
    large = study(
        arms={"linear": with_field(FULL, "model", LinearConfig()), "full": FULL},
        factors={"model.steps": [4, 0], "batch": [16]},
        seeds=(0, 1, 2),
    )
    before, after = ({cell.spec.run_id for cell in asked.cells()} for asked in (small, large))
    assert before < after and len(after) == len(large.cells())


def test_arms_of_one_content_share_their_run() -> None:
    cells = study(arms={"full": FULL, "the same": dataclasses.replace(FULL)}, seeds=[0]).cells()
    assert [cell.arm for cell in cells] == ["full", "the same"] and len({cell.spec.run_id for cell in cells}) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reference": "fulll"}, r"the reference 'fulll' is no arm; arms: 'full'"),
        ({"arms": {}}, r"the reference 'full' is no arm; arms: none"),
        ({"arms": {"full": FULL, "a, b": PLAIN}, "reference": "x"}, r"no arm; arms: 'full', 'a, b'$"),
        ({"design": "grid"}, r"Study.design must be one of 'one_at_a_time', 'crossed', not 'grid'"),
        ({"match": "flops"}, r"Study.match must be one of 'none', 'params', 'gmac', not 'flops'"),
        ({"sed": (1, 2)}, r"Study has no field 'sed'; known fields: question, reference, arms"),
        ({"metric": "test.acuracy"}, r"Study.metric must be one of 'test.accuracy', .*, not 'test.acuracy'"),
        ({"seeds": ()}, r"Study.seeds must be different numbers, at least one"),
        ({"seeds": 3}, r"^Study.seeds must be a list, not 3$"),
        ({"seeds": "012"}, r"^Study.seeds must be a list, not '012'$"),
        ({"seeds": {0, 1}}, r"^Study.seeds must be a list, not \{0, 1\}$"),
        ({"seeds": (0, "1")}, r"^Study.seeds\[1\] must be of type int, not '1'$"),
        ({"seeds": (-1, 0)}, r"^Study.seeds\[0\] must be at least 0, not -1$"),
        ({"seeds": (0, True)}, r"^Study.seeds\[1\] must be of type int, not True$"),
        ({"seeds": (1, 1)}, r"Study.seeds must be different numbers, at least one, not \[1, 1\]"),
        (
            {"arms": {"full": FULL, "gru": RNNConfig()}},
            r"^Study.arms\['gru'\] must be of type RunSpec, not RNNConfig\(\.\.\.\)$",
        ),
        ({"arms": [FULL]}, r"^Study.arms must be a dict, not \[RunSpec\(.{60,70}\.\.\.$"),
        ({"arms": FULL}, r"^Study.arms must be a dict, not RunSpec\(\.\.\.\)$"),
        ({"arms": {"full": FULL, 3: PLAIN}}, r"^a key of Study.arms must be of type str, not 3$"),
        ({"arms": {"full": FULL, "": PLAIN}}, r"Study.arms has the empty name ''"),
        ({"panels": {"": {"full": FULL}}}, r"Study.panels has the empty name ''"),
        ({"panels": {"one": {"full": 3}}}, r"^Study.panels\['one'\]\['full'\] must be of type RunSpec, not 3$"),
        ({"panels": {"one": FULL}}, r"^Study.panels\['one'\] must be a dict, not RunSpec\(\.\.\.\)$"),
        ({"factors": [0]}, r"^Study.factors must be a dict, not \[0\]$"),
        ({"factors": {"model.steps": 4}}, r"^Study.factors\['model.steps'\] must be a list, not 4$"),
        ({"factors": {"model.attention": "linear"}}, r"\['model.attention'\] must be a list, not 'linear'$"),
        ({"factors": {"model.steps": []}}, r"^Study.factors\['model.steps'\] is empty"),
        ({"factors": {"model.stepz": [1]}}, r"LDNConfig has no field 'stepz'; known fields: width"),
        ({"factors": {"model.steps": [-1]}}, r"LDNConfig.steps must be between 0 and 10000, not -1"),
        ({"factors": {"model.steps": [8, 8]}}, r"two arms have the label 'steps 8'"),
        ({"arms": {"full": FULL, "steps 8": FULL}, "factors": {"model.steps": [8]}}, r"label 'steps 8'; rename"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changed)


@pytest.mark.parametrize("seeds", [range(8), list(range(8)), tuple(range(8))])
def test_seeds_are_any_list_of_numbers(seeds: Any) -> None:
    assert list(study(seeds=seeds).seeds) == list(range(8)) and len(study(seeds=seeds).cells()) == 8


def test_the_values_of_a_factor_may_be_a_range_or_an_array() -> None:
    factors = {"model.steps": range(2), "optim.lr": np.logspace(-3, -1, 2)}
    assert labels(study(factors=factors)) == ["full", "steps 0", "steps 1", "lr 0.1"]


# what differs


def test_changes_are_exactly_the_fields_that_differ_and_matter() -> None:
    assert changes(FULL, FULL) == {}
    assert changes(with_field(FULL, "optim.lr", 0.1), FULL) == {"optim.lr": [1e-3, 0.1]}
    budget = changes(with_field(FULL, "budget", Budget(epochs=2)), FULL)
    assert budget == {"budget.steps": [5, None], "budget.epochs": [None, 2]}
    assert changes(with_field(FULL, "model.patch", 2), FULL) == {}  # there are no patches
    assert changes(PLAIN, FULL) == {
        "model.steps": [2, 0],
        "model.kernel": ["multiscale", None],
        "model.radius": [1, None],
        "model.symmetric": [True, None],
        "model.time_step": ["channel", None],
        "model.rate": [0.5, None],
        "model.grid": ["1d", None],
    }


def test_changes_between_two_kinds_of_model_name_both() -> None:
    found = changes(with_field(FULL, "model", TransformerConfig(width=8, depth=1, heads=2)), FULL)
    assert found.pop("model") == ["ldn", "transformer"]
    assert found.pop("model.ffn_ratio") == [2, 4]
    assert found["model.kernel"] == ["multiscale", None] and found["model.pool"] == [None, "mean"]
    assert not any(path.startswith(("task", "optim", "budget")) for path in found)


def test_an_optimiser_may_be_varied_as_a_whole() -> None:
    asked = study(arms={"full": FULL, "slow": with_field(FULL, "optim", Optimiser(lr=1e-4, warmup=0.5))})
    assert changes(asked.expanded()[1].spec, FULL) == {"optim.lr": [1e-3, 1e-4], "optim.warmup": [0.1, 0.5]}


# matched widths

REFERENCE = RunSpec(model=LDNConfig(width=32, depth=2), task=CuedDigits())
AS_IMAGE = with_field(REFERENCE, "task", CuedDigits(view="image"))
MATCHED = {
    "transformer": with_field(REFERENCE, "model", TransformerConfig(depth=2)),
    "transformer, 3 heads": with_field(REFERENCE, "model", TransformerConfig(depth=1, heads=3, width=3)),
    "lstm, both directions": with_field(REFERENCE, "model", RNNConfig()),
    "gru": with_field(REFERENCE, "model", RNNConfig(cell="gru", bidirectional=False)),
    "vit": with_field(AS_IMAGE, "model", ViTConfig(depth=2, heads=4, patch=4, width=4)),
    "paper-sequence": with_field(REFERENCE, "model", PaperSequenceConfig(depth=2)),
}


def cost(spec: RunSpec, by: str) -> float:
    if by == "gmac":
        return measure(spec.model.build(spec.task.input, spec.task.target), spec.task.input).gmac
    with torch.device("meta"):
        return parameters(spec.model.build(spec.task.input, spec.task.target))


@pytest.mark.parametrize("by", ["params", "gmac"])
@pytest.mark.parametrize("arm", MATCHED)
def test_a_matched_width_is_the_nearest_that_costs_at_most_a_tenth_more(arm: str, by: Any) -> None:
    spec, unit = MATCHED[arm], MATCHED[arm].model.width_unit()
    solved, wanted = matched_width(spec, REFERENCE, by), cost(REFERENCE, by)
    assert solved.width % unit == 0
    near = [width for i in range(-3, 4) if (width := solved.width + i * unit) > 0]
    shares = {width: cost(with_field(spec, "model.width", width), by) / wanted for width in near}
    assert solved.share == shares[solved.width] <= 1.1
    legal = {width: share for width, share in shares.items() if share <= 1.1}
    assert solved.width == min(legal, key=lambda width: abs(legal[width] - 1))
    assert list(shares.values()) == sorted(shares.values())  # so that no width further away can be nearer


@pytest.mark.parametrize(("by", "above"), [("params", 1.158), ("gmac", 1.308)])
def test_a_width_that_is_nearer_but_costs_more_than_a_tenth_above_is_not_chosen(by: Any, above: float) -> None:
    reference = RunSpec(model=LDNConfig(width=16, depth=1, heads=2), task=CuedDigits())
    spec = with_field(reference, "model", TransformerConfig(depth=1, heads=8))
    assert matched_width(spec, reference, by).width == 8 and matched_width(spec, reference, by).share < 0.5
    assert cost(with_field(spec, "model.width", 16), by) / cost(reference, by) == pytest.approx(above, abs=0.001)


def test_a_model_whose_smallest_width_costs_more_cannot_be_matched() -> None:
    tiny = RunSpec(model=LDNConfig(width=1, depth=1, heads=1), task=Digits())
    deep = with_field(tiny, "model", TransformerConfig(depth=50))
    with pytest.raises(ValueError, match=r"no width of transformer costs as little as the reference \(params: "):
        matched_width(deep, tiny, "params")


def test_a_model_whose_cost_does_not_depend_on_its_width_cannot_be_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = RunSpec(model=LDNConfig(width=16, depth=1, heads=2), task=Digits())
    spec = with_field(reference, "model", TransformerConfig(depth=1, heads=1))
    monkeypatch.setattr(TransformerConfig, "build", lambda *_: nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no width of transformer costs as much .*: params does not rise with it"):
        matched_width(spec, reference, "params")


@pytest.mark.parametrize("by", ["params", "gmac"])
def test_a_study_matches_models_of_another_kind_and_says_so(by: str) -> None:
    arms = {
        "ldn": REFERENCE,
        "wide ldn": with_field(REFERENCE, "model.width", 64),
        "linear": with_field(REFERENCE, "model", LinearConfig()),
        "transformer": with_field(REFERENCE, "model", TransformerConfig(depth=2)),
    }
    asked = study(arms=arms, reference="ldn", factors={"model.width": [16]}, match=by)
    found = {arm.label: arm for arm in asked.expanded()}
    assert {label for label, arm in found.items() if arm.note} == {"transformer"}
    assert all(found[label].spec == arms[label] for label in ("ldn", "wide ldn", "linear"))
    transformer = found["transformer"]
    solved = matched_width(arms["transformer"], REFERENCE, by)  # type: ignore[arg-type]
    assert transformer.spec == with_field(arms["transformer"], "model.width", solved.width)
    assert transformer.note == f"width {solved.width}: {solved.share:.2f}x the reference's {by}"
    assert all(cell.spec.model == found[cell.arm].spec.model for cell in asked.cells())


# finding studies

FILE = '''"""Does it work?

Longer.
"""
from ldn import LDNConfig
from studies.spec import RunSpec
from studies.study import Study
from studies.tasks.digits import Digits

STUDY = Study(question="Does it work?", reference="ldn", arms={"ldn": RunSpec(model=LDNConfig(), task=Digits())})
'''


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_study_that_ships_is_listed_with_its_question_and_loads() -> None:
    shipped = catalogue.shipped()
    assert "axes" in shipped and all(question.endswith((".", "?")) for question in shipped.values())
    asked = catalogue.load(catalogue.source("axes"))
    assert asked.question in shipped["axes"] and asked.reference == "ldn"


def test_a_study_file_of_ones_own_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, FILE)
    assert catalogue.load(catalogue.source(str(path))).question == "Does it work?"
    monkeypatch.chdir(tmp_path)
    assert catalogue.source("mine.py") == Path("mine.py")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"there is no study 'axis'; known: .*axes.*or give the path"):
        catalogue.source("axis")


@pytest.mark.parametrize("name", ["no/such.py", "such.py", "no/axes"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no study file {name}"):
        catalogue.source(name)


def test_a_file_whose_name_is_no_name_of_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call my study\.v2\.py by letters, digits"):
        catalogue.source(str(written(tmp_path, FILE, "my study.v2.py")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nSTUDY = (\n", r"mine.py, line 2: '\(' was never closed"),
        ("from ldn import LDNConfig\n\nLDNConfig(\n    widht=3)\n", r"mine.py, line 3: LDNConfig has no field 'widht'"),
        ("import nowhere_to_be_found\n", r"mine.py, line 1: No module named 'nowhere_to_be_found'"),
        (
            FILE.replace("'ldn'", "").replace('reference="ldn"', 'reference="x"'),
            r"line 10: the reference 'x' is no arm",
        ),
        ("def f():\n    return 1 / 0\nf()\n", r"mine.py, line 2: division by zero"),
        ("study = 3\n", r"mine.py defines no STUDY = Study\(\.\.\.\)"),
        ("STUDY = 3\n", r"mine.py defines no STUDY"),
        (FILE.replace("question=", "quesiton="), "mine.py, line 10: .*no field 'quesiton'; known fields: question"),
        ("\0", r"mine.py.*null bytes"),
    ],
)
def test_a_study_file_that_gives_no_study_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        catalogue.load(written(tmp_path, text))
    assert "\n" not in str(refusal.value)


OWN = """
from dataclasses import dataclass
from typing import ClassVar

from baselines import LinearConfig

@dataclass(frozen=True, kw_only=True)
class Echo(Digits):
    name: ClassVar[str] = "echo"

@dataclass(frozen=True, kw_only=True)
class Mine(LinearConfig):
    name: ClassVar[str] = "linear"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task=Digits()", "task=Echo()", "find the task Echo, which is not in TASKS .* module under studies/tasks/"),
        ("LDNConfig()", "Mine()", "find the model Mine, which is not in MODELS .* module under baselines/ and add it"),
        ("arms={", "factors={'task': [Echo()]}, arms={", "the task Echo"),
        ("arms={", "panels={'p': {'ldn': RunSpec(model=Mine(), task=Digits())}}, arms={", "the model Mine"),
    ],
)
def test_a_task_or_model_that_no_run_could_find_by_its_name_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    head, line, tail = FILE.partition("STUDY")
    doc, imports = head.split("from ldn", 1)
    text = f"{doc}from __future__ import annotations\nfrom ldn{imports}{OWN}{line}{tail.replace(old, new, 1)}"
    path = written(tmp_path, text)
    for read in (catalogue.load, catalogue.declared):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{message}") as refusal:
            read(path)
        assert "\n" not in str(refusal.value)
    catalogue.load(written(tmp_path, text.replace(new, old)))  # the classes alone do no harm


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder, question in (("a", "Does it work?"), ("b", "Or not?")):
        (tmp_path / folder).mkdir()
        text = FILE.replace("Does it work?", question)
        assert catalogue.load(written(tmp_path / folder, text)).question == question
