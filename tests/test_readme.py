"""The README is true: its links lead somewhere, its example is a study, its table is the one that was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from studies import catalogue

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))))
def test_a_link_leads_to_a_file(link):
    assert (ROOT / link).exists()


EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_of_a_model_runs():
    (example,) = [one for one in EXAMPLES if "logits" in one]
    names = {}
    exec(example, names)
    assert names["logits"].shape == (8, 10) and names["logits"].isfinite().all()


def test_the_example_of_a_mixer_runs():
    (example,) = [one for one in EXAMPLES if "mixer" in one]
    names = {}
    exec(example, names)
    assert names["h"].shape == (8, 1024, 64) and names["h"].isfinite().all()


def test_the_example_is_a_study(tmp_path):
    (example,) = [one for one in EXAMPLES if "STUDY" in one]
    path = tmp_path / "depth.py"
    path.write_text(example)
    assert len(catalogue.load(path).expanded()) == 9


def test_the_table_is_the_one_that_was_measured():
    measured = (ROOT / "results/measured/axes/table.md").read_text()
    rows = [line for line in measured.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(rows) > 14 and all(row in TEXT for row in rows)


def test_every_study_that_ships_is_named():
    assert all(f"| `{name}` |" in TEXT for name in catalogue.shipped())


def test_every_make_target_it_names_exists():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {"ablation", "test", "test-slow", "test-slurm", "kill-sweep", "bench", "gpu-check"}
    assert set(re.findall(r"\bmake ([\w-]+)", TEXT)) - named == set()
    assert named <= set(targets)


@pytest.mark.parametrize("study", ["axes", "digits", "kernels", "steps"])
def test_a_measured_table_follows_from_its_runs(study):
    folder = ROOT / "results/measured" / study
    runs = pd.read_csv(folder / "runs.csv").groupby("arm")["test.accuracy"]
    cells = {}
    for line in (folder / "table.md").read_text().partition("\n## ")[0].splitlines():
        if line.startswith("|"):
            arm, accuracy = (cell.strip() for cell in line.split("|")[1:3])
            cells[arm.removesuffix(" (reference)")] = accuracy.replace("*", "")
    assert set(runs.groups) <= set(cells)
    for arm, mean in runs.mean().items():
        assert cells[arm] == f"{round(100 * mean, 10):.1f} ± {round(100 * runs.std()[arm], 10):.1f}"
