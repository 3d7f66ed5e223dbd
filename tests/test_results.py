"""Does a report say what the runs' files say: every number, every missing run, in every kind of file?"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from results import tables
from results.__main__ import app
from results.cli import run_app
from results.files import read_json, write_json
from results.gather import curves, gather
from results.latex import SYMBOLS
from results.notes import bold_means, notes, reasons
from results.record import (
    Manifest,
    RunRecord,
    content_id,
    manifest_of,
    run_folder,
    study_folder,
    write_manifest,
    write_record,
)
from results.report import SECTIONS, print_report, write_report
from results.section import Gathered
from results.summary import cost_unit, summarise, title

REPORT = {
    "step": 120, "done": 0.2, "loss": 0.7, "accuracy": 0.5, "tokens_per_second": 9.0, "seconds_left": 60.0, "time": 0.0
}  # fmt: skip
HARD = r"50% of_all & #1 ~^\{}$"
NOTE = {"lost": "width 64 matches params"}
ACCURACY = {"full": (0.90, 0.92, 0.94), "no diffusion": (0.80, 0.83, 0.83), HARD: (0.95,)}


def spec_of(arm: str, seed: int) -> dict[str, Any]:
    return {
        "schema": 1, "model": {"name": "ldn", "kernel": {"radius": 2}}, "task": {"name": "cued_digits"}, "label": arm,
        "optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "batch": 64, "budget": {"steps": 600}, "seed": seed,
    }  # fmt: skip


def run_id_of(arm: str, seed: int) -> str:
    return content_id(spec_of(arm, seed))


def record(arm: str, seed: int, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": run_id_of(arm, seed),
        "spec": spec_of(arm, seed),
        "status": "done",
        "cost": {"params": 54_210, "gmac": 0.00112, "elementwise": 1e-4},
        "steps": 600,
        "data": {"fingerprint": "f00d"},
        "attempts": [
            {"node": "a", "device": "cpu", "commit": "0ld", "threads": 4, "seconds": 10.0},
            {"node": "b", "device": "cpu", "commit": "a1b2c3d", "dirty": False, "threads": 2, "seconds": 20.5},
        ],
    }  # fmt: skip
    return RunRecord(**(values | changes))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three arms of three seeds: 3 done; 3 done; 1 done, 1 diverged, 1 stopped. A fourth: not run, corrupt, failed."""
    runs = tmp_path / "runs"
    for arm, accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            metrics = {"valid": {"accuracy": accuracy + 0.01}, "test": {"accuracy": accuracy, "loss": 1 - accuracy}}
            write_record(runs, record(arm, seed, metrics=metrics))
            curve = "step,lr,train_loss,valid_loss,valid_accuracy\n300,0.001,1.2,1.3,0.5\n600,0.0,0.7,0.8,0.9\n"
            (run_folder(runs, run_id_of(arm, seed)) / "curve.csv").write_text(curve)
    diverged = {"status": "diverged", "reason": "loss is nan\nat step 40", "metrics": {"test": {"accuracy": 0.1}}}
    write_record(runs, record(HARD, 1, **diverged))
    write_json(run_folder(runs, run_id_of(HARD, 2)) / "progress.json", REPORT)
    run_folder(runs, run_id_of("lost", 1)).mkdir()
    (run_folder(runs, run_id_of("lost", 1)) / "record.json").write_text('{"run_id": ')
    write_record(runs, record("lost", 2, status="failed", reason="out of memory " * 20))
    arms = [*ACCURACY, "lost"]
    write_manifest(
        runs,
        Manifest(
            study="components", source="components.py", question="Which term carries the accuracy?", reference="full",
            metric="test.accuracy", direction="max",
            arms=[{"label": arm, "reference": "full", "changes": {}, "note": NOTE.get(arm, "")} for arm in arms],
            cells=[
                {"arm": arm, "seed": seed, "run_id": run_id_of(arm, seed), "factors": {"kernel": i or "off"}}
                for i, arm in enumerate(arms) for seed in range(3)
            ],
        ),
    )  # fmt: skip
    return runs


@pytest.fixture
def frame(runs: Path) -> pd.DataFrame:
    return gather(runs, "components")


@pytest.fixture
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    return summarise(frame, "test.accuracy", "max")


def test_every_cell_is_a_row_whatever_became_of_it(frame: pd.DataFrame) -> None:
    assert frame[["arm", "seed"]].astype({"arm": str}).to_records(index=False).tolist() == [
        (arm, seed) for arm in [*ACCURACY, "lost"] for seed in range(3)
    ]
    assert list(frame["status"]) == ["done"] * 7 + ["diverged", "stopped", "missing", "corrupt", "failed"]
    why = frame["reason"].tolist()
    assert why[7:10] == ["loss is nan at step 40", "stopped at step 120 (20%)", "not run yet"]
    assert f"{run_id_of('lost', 1)}/record.json is not valid JSON" in why[10]


def test_columns_are_grouped_by_prefix_and_nested_fields_joined_by_dots(frame: pd.DataFrame) -> None:
    first = frame.iloc[0]
    assert list(frame)[:6] == ["arm", "reference", "seed", "run_id", "status", "reason"]
    assert (first["model.kernel.radius"], first["spec.batch"], first["budget.steps"]) == (2, 64, 600)
    assert first["optim.betas"] == "[0.9, 0.95]"
    assert (first["test.loss"], first["cost.elementwise"]) == (pytest.approx(0.1), 1e-4)
    assert (first["env.node"], first["env.attempts"], first["env.seconds"]) == ("b", 2, 30.5)
    assert list(frame["factor.kernel"].unique()) == ["off", "1", "2", "3"]


def test_a_held_lock_tells_a_running_run_from_a_stopped_one(runs: Path) -> None:
    folder = run_folder(runs, run_id_of(HARD, 2))
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        row = gather(runs, "components").iloc[8]
        assert (row["status"], row["reason"]) == ("running", "running, at step 120 (20%)")
    assert gather(runs, "components").loc[8, "status"] == "stopped"
    (folder / "progress.json").unlink()
    assert gather(runs, "components").loc[8, "status"] == "missing"
    (folder / "checkpoint.pt").touch()
    assert gather(runs, "components").loc[8, "reason"] == "stopped before its first report"
    (folder / "progress.json").write_text("{")
    assert gather(runs, "components").loc[8, "status"] == "corrupt"


def test_curves_are_long_and_a_torn_one_is_named(runs: Path, frame: pd.DataFrame) -> None:
    long = curves(runs, frame, {})
    assert list(long)[:6] == ["arm", "reference", "seed", "run_id", "step", "lr"]
    assert len(long) == 14
    assert long["arm"].dtype == frame["arm"].dtype
    assert curves(runs, frame[frame["arm"] == "lost"], {}).empty
    (run_folder(runs, run_id_of("full", 1)) / "curve.csv").write_text('step,lr\n1,2,3,4\n"')
    with pytest.raises(ValueError, match=rf"{run_id_of('full', 1)}/curve\.csv"):
        curves(runs, frame, {})


def test_every_number_of_the_summary(summary: pd.DataFrame) -> None:
    full, without, hard, lost = summary.to_dict("records")
    assert (full["mean"], full["sd"]) == (pytest.approx(0.92), pytest.approx(0.02))
    assert math.isnan(full["difference"])
    assert full["pairs"] == 0
    assert (without["mean"], without["sd"]) == (pytest.approx(0.82), pytest.approx(math.sqrt(0.0003)))
    assert without["difference"] == pytest.approx(-0.1)
    # differences -0.10, -0.09, -0.11: sd 0.01, t of 2 degrees of freedom 4.302653
    assert without["low"] == pytest.approx(-0.1 - 4.302653 * 0.01 / math.sqrt(3), abs=1e-7)
    assert without["high"] == pytest.approx(-0.1 + 4.302653 * 0.01 / math.sqrt(3), abs=1e-7)
    assert (hard["mean"], hard["n"], hard["planned"], hard["pairs"]) == (0.95, 1, 3, 1)
    assert hard["difference"] == pytest.approx(0.05)
    assert all(math.isnan(hard[name]) for name in ("sd", "low", "high"))
    assert (lost["n"], lost["planned"], lost["params"]) == (0, 3, 54_210)
    assert math.isnan(lost["mean"])
    assert list(summary["best"]) == [True, False, False, False]  # one seed of three is no match
    assert "Bold: the best mean of arms with all their seeds, " in " ".join(bold_means(summary))
    assert hard["missing"] == "1 diverged: loss is nan at step 40; 1 stopped at step 120 (20%)"
    assert lost["missing"].startswith("1 not run yet; 1 corrupt record; 1 failed: out of memory out")
    assert len(lost["missing"]) < 130


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 7))
    rows = [(arm, seed, values[i, seed]) for i, arm in enumerate("ab") for seed in range(7) if (i, seed) != (0, 3)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "test.loss"]).assign(status="done", reason="")
    frame = frame.assign(arm=pd.Categorical(frame["arm"], ["a", "b"], ordered=True), reference="a")
    row = summarise(frame, "test.loss", "min").iloc[1]
    common = np.delete(values, 3, axis=1)
    expected = stats.ttest_rel(common[1], common[0]).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["pairs"], row["n"]) == (6, 7)
    assert "(over 6 of 7)" in tables.markdown(summarise(frame, "test.loss", "min"), "test.loss")


def test_each_arm_is_compared_with_its_own_reference(frame: pd.DataFrame) -> None:
    frame.loc[frame["arm"].isin([HARD, "lost"]), "reference"] = HARD
    summary = summarise(frame, "test.accuracy", "max")
    assert summary["difference"].tolist() == pytest.approx([math.nan, -0.1, math.nan, math.nan], nan_ok=True)
    assert list(summary["best"]) == [True, False, False, False]
    assert list(summary["is_reference"]) == [True, False, True, False]
    assert tables.latex(summary, "test.accuracy", "", "tab:x", []).count("\n\\addlinespace 50") == 1
    assert tables.markdown(summary, "test.accuracy").count("**") == 2


def test_a_wrong_metric_lists_the_right_ones(frame: pd.DataFrame) -> None:
    with pytest.raises(
        ValueError, match=r"no run has the metric 'test\.acuracy'; metrics: .*test\.accuracy, test\.loss"
    ):
        summarise(frame, "test.acuracy", "max")


def test_a_study_without_results_still_has_a_table(runs: Path) -> None:
    for path in runs.glob("*/record.json"):
        path.unlink()
    summary = summarise(gather(runs, "components"), "test.accuracy", "max")
    assert not summary["best"].any() and bold_means(summary) == ["Nothing is bold: no arm has all its seeds yet."]
    assert list(summary["n"]) == [0] * 4
    assert re.search(r"\| full \(reference\) +\| – +\| 0/3 \|", tables.markdown(summary, "test.accuracy"))


def test_notes_say_what_was_not_the_same(runs: Path, frame: pd.DataFrame) -> None:
    said = "\n".join(notes(frame))
    assert "7 of 12 runs are done; seeds planned per arm: 3." in said
    assert "lost, seed 1:" in said
    assert "The runs differ" not in said
    other = [{"device": "H200", "commit": "fffffff", "dirty": True, "threads": 8, "seconds": 1.0}]
    data = {"fingerprint": "x", "files": {"a.bin": {"official": False}, "b.bin": {"official": True}}}
    write_record(runs, record("full", 0, metrics={"test": {"accuracy": 0.9}}, data=data, attempts=other))
    said = "\n".join(notes(gather(runs, "components")))
    assert "The runs differ in the commit: fffffff (1 run), a1b2c3d (6 runs)." in said
    assert "1 of these runs ran code that is in no commit." in said
    assert "the device: H200 (1 run)" in said
    assert "the number of threads: 8" in said
    assert "the fingerprint of the data: x (1 run)" in said
    assert "Not the official bytes, by their md5: a.bin." in said


def test_markdown_is_one_well_formed_table(summary: pd.DataFrame) -> None:
    summary["missing"] = summary["missing"].str.replace("not run", "not|run")
    lines = tables.markdown(summary, "test.accuracy").splitlines()
    assert len(lines) == 2 + len(summary)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "| **92.0** ± 2.0 " in lines[2]
    assert "| 82.0 ± 1.7 " in lines[3]
    assert "−10.0 [−12.5, −7.5]" in lines[3]
    assert "| 95.0 " in lines[4]
    assert "1/3 | \u2007+5.0 " in lines[4]
    assert "54,210 | 1.12 |" in lines[4]
    assert r"50% of_all & #1 \~^\\{}\$" in lines[4]


def test_numbers_of_a_column_have_their_points_below_each_other(summary: pd.DataFrame) -> None:
    summary.loc[1, "mean"] = 0.0712
    printed = tables.cells(summary, "test.accuracy", str, str)[title("test.accuracy")]
    assert {text.index(".") for text in printed[:3]} == {2}


def test_losses_are_no_per_cents_and_costs_choose_their_unit(frame: pd.DataFrame, summary: pd.DataFrame) -> None:
    table = tables.markdown(summarise(frame, "test.loss", "min"), "test.loss")
    assert "| **0.080** ± 0.020 " in table
    assert "Test loss" in table
    costs = ([1.2, 17.0], [2e-3, 0.0], [1e-6, math.nan])
    assert [cost_unit(pd.Series(cost)) for cost in costs] == ["GMAC", "MMAC", "kMAC"]
    assert "Params (M)" in tables.markdown(summary.assign(params=86_567_656), "test.accuracy")


def test_what_prints_the_same_is_bold_together(summary: pd.DataFrame) -> None:
    summary.loc[1, "mean"] = 0.9198
    assert tables.markdown(summary, "test.accuracy").count("**92.0**") == 2


def test_latex_escapes_what_it_must(summary: pd.DataFrame) -> None:
    summary.loc[0, ["params", "gmac", "difference"]] = [999, 0.5, -0.5]
    text = tables.latex(summary, "test.accuracy", "100% & more", "tab:x", reasons(summary))
    assert r"50\% of\_all \& \#1 \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$ &" in text
    assert r"\caption{100\% \& more}" in text
    assert text.isascii()
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\llap{\textbf{92.0}}"))


def test_latex_compiles(summary: pd.DataFrame, tmp_path: Path) -> None:
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        pytest.skip("pdflatex is not installed")
    if not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).stdout:
        pytest.skip("booktabs is not installed")
    known = "".join(map(chr, range(32, 127))) + "".join(SYMBOLS)
    summary["arm"] = summary["arm"].cat.rename_categories({"full": f"[{known}", "no diffusion": "*"})
    table = tables.latex(summary, "test.accuracy", known, "tab:x", reasons(summary))
    document = (
        f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}\n{table}\\end{{document}}\n"
    )
    (tmp_path / "page.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_terminal_shows_it_in_80_columns_and_reads_no_label_as_markup(summary: pd.DataFrame) -> None:
    summary["arm"] = summary["arm"].cat.rename_categories({"full": "[red]"})
    file = StringIO()
    Console(file=file, width=80).print(tables.terminal(summary, "test.accuracy", "[bold]What[/]?"))
    shown = file.getvalue()
    assert "[bold]What[/]?" in shown
    assert re.search(r"\[red\] \(reference\) +92\.0 ± 2\.0 +3/3 +54,210 +1\.12", shown)


def test_a_report_writes_what_it_says(runs: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    report = write_report(runs, "components", tmp_path / "reports")
    written = {path.name for path in report.folder.iterdir()}
    assert written == {path.name for path in report.files}
    assert {"table.md", "table.tex", "runs.csv", "runs.parquet", "arms.png", "training_curves.pdf"} <= written
    assert all(path.stat().st_size > 100 for path in report.files)
    pd.testing.assert_frame_equal(pd.read_parquet(report.folder / "runs.parquet"), frame)
    csv = pd.read_csv(report.folder / "runs.csv")
    assert list(csv) == list(frame)
    assert csv["test.accuracy"].tolist() == pytest.approx(frame["test.accuracy"].tolist(), nan_ok=True)
    before = {path: path.read_bytes() for path in report.files}
    assert {path: path.read_bytes() for path in write_report(runs, "components", tmp_path / "reports").files} == before


def test_a_torn_curve_withholds_itself_only(runs: Path, tmp_path: Path) -> None:
    (run_folder(runs, run_id_of("full", 1)) / "curve.csv").write_text('step,lr\n1,2,3,4\n"')
    report = write_report(runs, "components", tmp_path)
    assert {"table.md", "training_curves.png", "significance.csv"} <= {path.name for path in report.files}
    written = pd.read_csv(report.folder / "significance.csv").drop(columns=["arm", "reference"])
    assert all(written.dtypes.map(pd.api.types.is_numeric_dtype)) and {"difference", "low", "high"} <= set(written)
    file = StringIO()
    print_report(Console(file=file, width=200), report)
    assert f"{run_id_of('full', 1)}/curve.csv is no table of numbers" in file.getvalue()
    assert not report.errors


def test_a_section_that_fails_is_named_and_withholds_nothing_else(
    invoke: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gathered: Gathered) -> None:
        raise KeyError("odd [red]")

    monkeypatch.setitem(SECTIONS, "tuning", fail)
    result = invoke("components")
    assert result.exit_code == 2
    said = "Not in this report, by an error in the suite: section tuning: KeyError: 'odd [red]' (test_results.py, line"
    assert said in result.output and said in result.stderr
    assert "report.html" in result.output and "no diffusion" in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"study": "../../outside"}, "belongs to study ../../outside, not to components"),
        ({"cells": []}, "has no cells"),
        ({"arms": []}, "has cells and arms that do not match"),
    ],
)
def test_an_odd_manifest_is_refused_in_one_sentence(
    runs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    manifest = manifest_of(runs, "components")
    write_json(study_folder(runs, "components") / "manifest.json", dataclasses.asdict(manifest) | changes)
    with pytest.raises(ValueError, match=said):
        write_report(runs, "components", tmp_path / "reports")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"test": {"accuracy": "high"}}},
        {"metrics": {"test": {"accuracy": -5.0}}},
        {"metrics": {"test": {"accuracy": None}}},
        {"metrics": {"test": "good"}},
        {"cost": None},
        {"cost": {"params": "many", "gmac": []}},
        {"attempts": [1]},
        {"attempts": [{"seconds": None}]},
        {"data": {"floors": {"chance": "low"}}},
        {"spec": []},
        {"steps": 1.5},
        {"reason": 7},
    ],
    ids=str,
)
def test_a_record_that_is_wrong_inside_is_a_corrupt_row(runs: Path, changes: dict[str, Any]) -> None:
    path = run_folder(runs, gather(runs, "components")["run_id"][1]) / "record.json"
    write_json(path, (read_json(path, "") or {}) | changes)
    frame = gather(runs, "components")
    row = frame.iloc[1]
    assert row["status"] == "corrupt" and str(path) in row["reason"]
    assert summarise(frame, "test.accuracy", "max")["n"].tolist() == [2, 3, 1, 0]


def test_hostile_text_is_escaped_in_every_file_and_corrupt_files_withhold_no_other(runs: Path, tmp_path: Path) -> None:
    ids = gather(runs, "components")["run_id"]
    for run_id, text in {ids[0]: "[" * 200_000, ids[1]: '{"status": "done"}', ids[3]: '{"x": 1e400}'}.items():
        (run_folder(runs, run_id) / "record.json").write_text(text)
    (study_folder(runs, "components") / "trials.json").write_text("[")
    manifest = manifest_of(runs, "components")
    label = "=x\n|<b>\u2028$\\input{a}\x1b[31m"
    plain = json.loads(json.dumps(dataclasses.asdict(manifest)).replace('"full"', json.dumps(label)))
    write_manifest(runs, Manifest(**plain | {"question": "two\nlines\udc80"}))
    report = write_report(runs, "components", tmp_path)
    assert not report.errors
    shown = "=x\\n|<b>\\u2028$\\input{a}\\x1b[31m"
    assert set(gather(runs, "components")["reference"]) == {shown}
    assert pd.read_csv(report.folder / "runs.csv")["arm"][0] == f"'{shown}"
    markdown, latex = ((report.folder / f"table.{kind}").read_text(encoding="utf-8") for kind in ("md", "tex"))
    assert markdown.startswith("# components: two lines\\\\udc80\n") and "\x1b" not in markdown + latex
    assert r"=x\\n\|\<b>\\u2028\$\\input{a}\\x1b[31m (reference)" in markdown
    assert r"=x\textbackslash{}n$|$$<$b$>$\textbackslash{}u2028\$\textbackslash{}input\{a\}" in latex
    file = StringIO()
    print_report(Console(file=file, width=200), report)
    assert shown in file.getvalue()
    assert pd.read_csv(report.folder / "runs.csv")["status"].tolist().count("corrupt") == 4
    assert f"{shown}: 2 corrupt record." in report.missing
    assert any("Not in this report: section tuning: " in line and "trials.json" in line for line in report.missing)
    assert "Not in this report: section tuning" in markdown


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    exit_code: int
    output: str
    stderr: str


@pytest.fixture
def invoke(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    def call(*arguments: str) -> Ended:
        for name, value in {"LDN_RUNS": runs, "LDN_REPORTS": tmp_path / "reports", "COLUMNS": 200}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(sys, "argv", ["results", *arguments])
        with pytest.raises(SystemExit) as end:
            run_app(app, "python -m results")
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    return call


def test_the_command_takes_a_name_or_a_file(invoke: Callable[..., Ended]) -> None:
    for name in ("components", "studies/ablations/components.py"):
        result = invoke(name)
        assert result.exit_code == 0, result.output
        assert "no diffusion" in result.output
        assert "lost: width 64 matches params." in result.output
        assert "reports/components/: table.md" in result.output


def test_the_users_mistake_is_one_sentence(invoke: Callable[..., Ended], runs: Path) -> None:
    result = invoke("mine/other.py")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "has no study 'mine/other.py' (it has: components)" in result.stderr
    assert result.stderr.startswith("error: ") and "run mine/other.py" not in result.stderr  # there is no such file
    assert "`python -m studies run` runs one, by its name (`python -m studies list`) or its file" in result.stderr
    result = invoke(__file__)
    assert f"`python -m studies run {__file__}` runs it" in result.stderr
    result = invoke("components", "--out", f"{__file__}/x")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"there can be no folder {__file__}/x/components (Not a directory): choose another place" in result.stderr
    manifest = runs / "studies" / "components" / "manifest.json"
    write_json(manifest, (read_json(manifest, "") or {}) | {"metric": "test.f1"})
    result = invoke("components")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no run has the metric 'test.f1'" in result.stderr


def test_reading_records_loads_no_heavy_library() -> None:
    heavy = "{'pandas', 'torch', 'matplotlib', 'scipy'}"
    subprocess.run(
        [sys.executable, "-c", f"import results.record, sys; assert not {heavy} & set(sys.modules)"], check=True
    )
