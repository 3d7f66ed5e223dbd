"""Are a paper's tables right: what is bold, what stands apart, panels side by side, in LaTeX that compiles?"""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from results import tables
from results.apart import apart, sources
from results.effects import section
from results.figures.comparison import accuracy_against_cost
from results.figures.factors import factor_grid
from results.gather import gather, level_text
from results.notes import bold_means, caption, legend, notes, reasons
from results.record import Manifest, RunRecord, content_id, run_folder, write_manifest, write_record
from results.section import Gathered
from results.significance import over_examples
from results.significance import section as significance
from results.summary import MOST_ARMS, most_telling, summarise
from studies.tasks.digits import CuedDigits, Digits
from studies.tasks.listops import ListOps

FLOORS = {"data.floors.chance": 0.1, "data.floors.most frequent class": 0.17, "data.test_examples": 2000.0}
PANELS = {"CIFAR-10, grey": "cifar10", "ListOps": "listops"}


def study(seeds: int = 3, panels: dict[str, str] = PANELS) -> pd.DataFrame:
    """Two tasks, each with a reference, one arm 20 points better and one about equal, and a collapsed seed."""
    random, rows = np.random.default_rng(0), []
    for panel, task in panels.items():
        for i, (arm, mean) in enumerate({"ldn": 0.5, "ViT_50%": 0.7, "GRU": 0.5}.items()):
            for seed in range(seeds):
                collapsed = arm == "GRU" and panel == "ListOps" and seed == 0
                value = 0.17 if collapsed else mean + random.normal(0, 0.01)
                rows.append(
                    {
                        "arm": f"{panel}: {arm}",
                        "reference": f"{panel}: ldn",
                        "seed": seed,
                        "run_id": f"{task}-{i}-{seed}",
                    }
                    | {
                        "status": "done",
                        "reason": "",
                        "spec.task": f'{{"name": "{task}"}}',
                        "test.accuracy": value,
                        **FLOORS,
                    }
                    | {"cost.params": 50_000 * (i + 1), "cost.gmac": 0.1 * (i + 1), "valid.accuracy": value}
                    | {"env.device": "cpu (EPYC)", "env.torch": "2.13.0", "env.commit": "abc" if seed else "def"}
                )
    frame = pd.DataFrame(rows)
    return frame.assign(arm=pd.Categorical(frame["arm"], frame["arm"].unique(), ordered=True))


def compiled(tables_: str, folder: Path) -> None:
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        pytest.skip("pdflatex is not installed")
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("booktabs is not installed")
    page = (
        f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}\n{tables_}\\end{{document}}\n"
    )
    (folder / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Misplaced" not in done.stdout


def test_a_paper_table_compiles_with_panels_floors_and_published_rows(tmp_path: Path) -> None:
    frame = study()
    summary, others = summarise(frame, "test.accuracy", "max"), apart(frame, "test.accuracy")
    above, below = caption("Is 5% & more_ better?", "test.accuracy", frame, summary), legend(summary)
    long = tables.latex(summary, "test.accuracy", above, "tab:x", [*below, *sources(others)], others)
    panels = {"test.accuracy": tables.by_panel(summary, "ldn", others)}
    panels["valid.accuracy"] = tables.by_panel(summarise(frame, "valid.accuracy", "max"), "ldn")
    aside = caption("Is it?", "test.accuracy", frame, summary, differences=False)
    wide = tables.latex_by_panel(panels, aside, "tab:y", below)
    compiled(long + "\\clearpage\n" + wide, tmp_path)
    assert wide.count(r"\multicolumn{3}{c}") == 2
    assert r"\cmidrule(lr){2-4} \cmidrule(lr){5-7}" in wide
    assert "Overfull \\hbox" not in (tmp_path / "page.log").read_text()
    assert wide.count(r"ViT\_50\% &") == 1  # one row for both panels
    assert wide.count("most frequent class &") == 1
    assert wide.count(r"\textit{S4-LegS, s4-style}") == 1
    for said in ("over 3 seeds", "3 pairs can attain no p below 0.25", "device cpu (EPYC)", "torch 2.13.0", "commit"):
        assert said in above
    assert r"\textit{Transformer, tay2021} & \textit{36.4}" in long


def test_what_stands_apart_is_neither_ranked_nor_bold() -> None:
    frame = study()
    frame["test.accuracy"] /= 10  # so that every published row and floor is better
    summary, others = summarise(frame, "test.accuracy", "max"), apart(frame, "test.accuracy")
    printed = tables.markdown(summary, "test.accuracy", others)
    assert printed.count("**") == 2 * 2  # one a panel
    assert "*S4-LegS, s4-style*" in printed
    lines = printed.splitlines()
    assert next(i for i, line in enumerate(lines) if "chance" in line) == 2 + 3 + 1  # under a gap, after its panel
    assert set(others["kind"]) == {"floor", "published"}
    assert (others["reference"].value_counts() > 5).all()
    assert "published by others under the protocol named, not run here" in " ".join(sources(others))
    assert apart(frame, "test.loss").empty


def test_only_a_task_with_lras_own_settings_has_published_rows() -> None:
    frame = study()
    frame["spec.task"] = frame["spec.task"].str.replace('"listops"', '"listops", "max_length": 100')
    kinds = apart(frame, "test.accuracy").groupby("reference")["kind"].agg(set)
    assert kinds["ListOps: ldn"] == {"floor"}
    assert kinds["CIFAR-10, grey: ldn"] == {"floor", "published"}
    old = frame.drop(columns=[*FLOORS])
    assert set(apart(old, "test.accuracy")["kind"]) == {"published"}
    assert not summarise(old, "test.accuracy", "max")["collapsed"].any()


def test_collapsed_seeds_are_flagged() -> None:
    summary = summarise(study(), "test.accuracy", "max")
    assert summary["collapsed"].tolist() == [0, 0, 0, 0, 0, 1]
    printed = tables.markdown(summary, "test.accuracy")
    assert printed.count("†") == 1
    assert "1 of 3 seeds no better than the most frequent class" in printed
    assert "ListOps: GRU: 1 of 3 seeds no better than the most frequent class; its mean includes them." in reasons(
        summary
    )
    assert any(line.startswith("†") for line in legend(summary))


def test_p_is_a_column_where_seeds_can_show_something() -> None:
    few, many = (summarise(study(seeds), "test.accuracy", "max") for seeds in (3, 10))
    assert "p (Holm)" not in tables.markdown(few, "test.accuracy")
    assert "p (Holm)" in tables.markdown(many, "test.accuracy")
    assert many["tied"].sum() == 2  # the better arm of each panel, alone
    assert "0.0039" in tables.markdown(many, "test.accuracy")  # 2 x 2 / 2^10
    assert "Holm-corrected" in " ".join(bold_means(many))


def test_throughput_and_memory_are_columns_where_measured() -> None:
    summary = summarise(study(), "test.accuracy", "max")
    assert "ex/s" not in tables.markdown(summary, "test.accuracy")
    summary = summary.assign(examples_per_second=[1500.0, *[np.nan] * 5], peak_bytes=3 * 2.0**20)
    printed = tables.markdown(summary, "test.accuracy")
    assert "ex/s |" in printed
    assert "| 1,500 |   3 |" in printed


def test_mixed_commits_are_flagged_with_the_pairs_they_touch() -> None:
    frame = study()
    assert any("differ in the commit" in line and "No pair compared does." in line for line in notes(frame))
    frame.loc[frame["arm"] == "ListOps: GRU", "env.commit"] = "other"
    assert any("So do 3 of 12 pairs compared." in line for line in notes(frame))


def test_figures_of_many_arms_show_those_best_on_validation() -> None:
    names = [f"arm {i}" for i in range(60)]
    frame = pd.DataFrame({"arm": pd.Categorical(names, names, ordered=True), "reference": "arm 5", "seed": 0})
    frame = frame.assign(status="done", reason="", **{"valid.accuracy": np.arange(60) / 60, "test.accuracy": 0.5})
    shown = most_telling(frame, summarise(frame, "test.accuracy", "max"), "max", "test.accuracy")
    assert shown["arm"].tolist() == ["arm 5", *names[61 - MOST_ARMS :]]


def test_predictions_say_how_sure_a_difference_is_over_examples(tmp_path: Path) -> None:
    frame, random = study(), np.random.default_rng(1)
    label = random.integers(0, 10, 500)
    for arm, run_id in zip(frame["arm"].astype(str), frame["run_id"], strict=True):
        right = random.random(500) < (0.7 if "ViT" in arm else 0.5)
        run_folder(tmp_path, run_id).mkdir()
        if run_id != "listops-2-1":  # one run without predictions: its arm has no interval
            predicted = np.where(right, label, (label + 1) % 10)
            np.savez(run_folder(tmp_path, run_id) / "predictions.npz", predicted=predicted, label=label)
    table = over_examples(tmp_path, frame, "test.accuracy", {}, unusable := [])
    assert not unusable
    losses = over_examples(tmp_path, frame, "test.loss", {}, [])
    assert losses.isna().all(axis=None)  # predictions tell of accuracy alone
    better = table.loc["ListOps: ViT_50%"]
    assert 0.1 < better["example_low"] < 0.2 < better["example_high"] < 0.3
    assert better["example_p"] < 0.001 > better["mcnemar_p"]
    assert table.loc["CIFAR-10, grey: GRU", "example_p"] > 0.01
    assert table.loc[["ListOps: GRU", "ListOps: ldn"]].isna().all(axis=None)
    summary = summarise(frame, "test.accuracy", "max").join(table, on="arm")
    printed = significance(Gathered(tmp_path, manifest("ldn"), frame, summary))
    assert printed is not None
    assert list(printed.tables["significance"]["bootstrap"]).count("") == 1
    data = printed.data["significance"].set_index("arm")
    assert len(data) == len(printed.tables["significance"]) and set(data.drop(columns="reference").dtypes) <= {
        np.dtype("float64"),
        np.dtype("int64"),
    }
    assert data.loc["ListOps: ViT_50%", "p_mcnemar"] == better["mcnemar_p"] and data["p_bootstrap"].isna().sum() == 1
    assert data.loc["ListOps: ViT_50%", "example_low"] == better["example_low"]
    assert data["difference"].tolist() == summary.set_index("arm").loc[data.index, "difference"].tolist()


def manifest(reference: str) -> Manifest:
    return Manifest(
        study="x", source="", question="?", reference=reference, metric="test.accuracy", direction="max", arms=[],
        cells=[],
    )  # fmt: skip


def crossed() -> pd.DataFrame:
    """Two factors of 2 and 3 levels: depth 4 adds 10 points, kernel b 5, both together 3 more; c nothing."""
    rows = []
    for depth in (2, 4):
        for kernel in "abc":
            for seed in range(4):
                value = 0.5 + 0.1 * (depth == 4) + 0.05 * (kernel == "b") + 0.03 * (depth == 4 and kernel == "b")
                value += 0.02 * seed + 0.001 * ((seed * 7 + depth + ord(kernel)) % 3)
                rows.append(
                    {
                        "arm": "ldn" if (depth, kernel) == (2, "a") else f"{depth}{kernel}",
                        "reference": "ldn",
                        "seed": seed,
                    }
                    | {"factor.model.depth": depth, "factor.model.kernel": kernel, "status": "done", "reason": ""}
                    | {"test.accuracy": value, "valid.accuracy": value}
                )
    rows += [
        dict(rows[0], arm="linear", seed=seed) | {"factor.model.depth": None, "factor.model.kernel": None}
        for seed in range(4)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(arm=pd.Categorical(frame["arm"], frame["arm"].unique(), ordered=True))


def test_a_crossed_study_has_effects_heat_map_and_importances() -> None:
    frame = crossed()
    made = section(Gathered(Path(), manifest("ldn"), frame, summarise(frame, "test.accuracy", "max")))
    assert made is not None
    effects = made.tables["effects"].set_index("Effect")
    assert list(effects.index) == [
        "model.depth 4 − 2", "model.kernel b − a", "model.kernel c − a",
        "model.depth 4 × model.kernel b", "model.depth 4 × model.kernel c",
    ]  # fmt: skip
    numbers = effects["Estimate"].str.replace("−", "-").astype(float)
    assert numbers.tolist() == pytest.approx([11, 6.5, 0, 3, 0], abs=0.35)
    assert effects["cells"].tolist() == ["12/12", "8/8", "8/8", "4/4", "4/4"]
    data = made.data["effects"].set_index("effect")
    assert data.index.equals(effects.index) and all(data.dtypes.map(pd.api.types.is_numeric_dtype))
    assert (data["estimate"] * 100).tolist() == pytest.approx(numbers.tolist(), abs=0.005)
    assert set(made.figures) == {"factors", "importance"}
    shares = made.tables["importance"].set_index("Factor")
    assert shares["PED-ANOVA"].sum() == pytest.approx(1, abs=0.002)
    assert 0.9 < shares["fANOVA"].sum() < 1  # the rest is of both together, and of seeds
    assert any("Factors of ldn interact" in text for text in made.text)
    assert shares.loc["model.depth", "fANOVA"] > shares.loc["model.kernel", "fANOVA"]  # 10 points against 5
    annotated = [text.get_text() for text in made.figures["factors"].axes[0].texts]
    assert len(annotated) == 6
    assert all(text.endswith("n = 4") for text in annotated)


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        ((None, 0.5), ["None", "0.5"]),
        ((True, 1, "1x"), ["on", "1", "1x"]),
        ((math.nan, 1.0), ["NaN", "1"]),
        (([1, 2], [1, 3]), ["[1, 2]", "[1, 3]"]),
        ((0.1234567, 0.1234568), ["0.1234567", "0.1234568"]),
        ((2**70, 0), [str(2**70), "0"]),
    ],
)
def test_every_level_of_a_factor_has_its_effects(levels: tuple[Any, ...], shown: list[str], tmp_path: Path) -> None:
    """Written as a study writes them, read back, and crossed with a second factor."""
    arms, cells = [], []
    for i, level in enumerate(levels):
        for steps in (1, 2):
            label = f"{i}, {steps}"
            arms.append({"label": label, "reference": "0, 1", "changes": {}, "note": ""})
            for seed in (0, 1, 2):
                accuracy = 0.5 + 0.1 * i + 0.01 * steps + 0.003 * ((seed + steps + i) % 3)
                spec = {"model": {"name": "ldn", "level": i, "steps": steps}, "task": {"name": "digits"}, "seed": seed}
                run_id = content_id(spec)
                metrics = {"test": {"accuracy": accuracy}, "valid": {"accuracy": accuracy}}
                write_record(tmp_path, RunRecord(run_id=run_id, spec=spec, status="done", metrics=metrics))
                factors = {"model.level": level, "model.steps": steps}
                cells.append({"arm": label, "seed": seed, "run_id": run_id, "factors": factors})
    write_manifest(tmp_path, dataclasses.replace(manifest("0, 1"), arms=arms, cells=cells))
    frame = gather(tmp_path, "x")
    made = section(Gathered(tmp_path, manifest("0, 1"), frame, summarise(frame, "test.accuracy", "max")))
    assert made is not None
    expected = [f"model.level {level} − {shown[0]}" for level in shown[1:]]
    assert made.tables["effects"]["Effect"].tolist()[: len(expected)] == expected
    estimates = [float(text.replace("−", "-")) for text in made.tables["effects"]["Estimate"][: len(expected)]]
    assert estimates == pytest.approx([10 * i for i in range(1, len(shown))], abs=0.3)
    assert len(made.figures["factors"].axes[0].texts) == 2 * len(shown)
    assert made.tables["importance"].set_index("Factor")["fANOVA"].idxmax() == "model.level"
    assert set(frame["factor.model.level"].map(level_text)) == set(shown)
    frame.to_parquet(tmp_path / "runs.parquet")


def test_levels_that_are_numbers_ascend_in_a_heat_map() -> None:
    """The reference's level, 2, is first in a grid; the words stay in the study's order."""
    y = np.array([[[0.2, 0.3], [0.1, 0.15], [0.8, 0.9]]])
    figure = factor_grid({"steps": ["2", "1", "16"], "kernel": ["b", "a"]}, y, "test.accuracy")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "16"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "a"]
    assert [text.get_text().split()[0] for text in axes.texts] == ["10.0", "15.0", "20.0", "30.0", "80.0", "90.0"]


def test_missing_cells_are_counted_and_other_designs_have_no_effects() -> None:
    frame = crossed()
    frame.loc[(frame["arm"] == "4b") & (frame["seed"] == 0), "status"] = "diverged"
    made = section(Gathered(Path(), manifest("ldn"), frame, summarise(frame, "test.accuracy", "max")))
    assert made is not None
    assert made.tables["effects"]["cells"].tolist() == ["11/12", "7/8", "8/8", "3/4", "4/4"]
    alone = frame[~frame["arm"].isin(["4b", "4c"])]  # one factor at a time: the differences are the effects
    alone = alone.assign(arm=alone["arm"].cat.remove_unused_categories())
    assert section(Gathered(Path(), manifest("ldn"), alone, summarise(alone, "test.accuracy", "max"))) is None


def test_floors_are_measured_on_the_test_split(tmp_path: Path) -> None:
    data = CuedDigits().load(tmp_path)
    floors = data.provenance["floors"]
    assert floors["chance"] == 0.1
    assert floors["either digit, at random"] == pytest.approx(0.55, abs=0.01)
    commonest = data.train.y.bincount().argmax()
    assert floors["most frequent class"] == pytest.approx((data.test.y == commonest).double().mean().item())
    assert data.provenance["test_examples"] == 4000
    assert set(Digits().load(tmp_path).provenance["floors"]) == {"chance", "most frequent class"}
    lists = ListOps(min_length=5, max_length=60, train=4000, valid=10, test=2000).load(tmp_path).provenance["floors"]
    assert 0.13 < lists["most frequent class"] < 0.22
    assert lists["most frequent class"] + 0.05 < lists["first operator"] < 0.45


def test_a_cost_that_is_a_lower_bound_is_shown_as_one_and_explained() -> None:
    frame = study(panels={"ListOps": "listops"})
    names = frame["arm"].eq("ListOps: GRU").map({True: '["aten::cdist", "aten::bilinear"]', False: "[]"})
    summary = summarise(frame.assign(**{"cost.uncounted": names}), "test.accuracy", "max")
    printed = tables.markdown(summary, "test.accuracy")
    assert "| ≥ 0.30 |" in printed and "|   0.20 |" in printed
    assert r"$\geq$ 0.30" in tables.latex(summary, "test.accuracy", "", "tab:x", [])
    assert any("ListOps: GRU (aten::cdist, aten::bilinear)" in line for line in legend(summary))
    drawn = accuracy_against_cost(summary, "test.accuracy")
    assert drawn.axes[0].get_xlabel().endswith("; ≥: a lower bound")
    assert [line.get_label() for line in drawn.axes[0].lines if "≥" in str(line.get_label())] == ["ListOps: GRU (≥)"]
    assert not any("lower bound" in line for line in legend(summarise(frame, "test.accuracy", "max")))
