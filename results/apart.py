"""Which rows stand in a table without being ranked? What needs no model, and what others published."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pandas as pd

LRA = Path(__file__).parent / "published" / "lra.csv"
FLOOR = "data.floors."
# The rows shown, by model and protocol: LRA's own Transformer and its two linear attentions; the same Transformer
# trained better; and two of the state-space models quoted most. Only verified rows are read.
CHOSEN = (
    ("Transformer", "tay2021"), ("Linear Transformer", "tay2021"), ("Performer", "tay2021"),
    ("Transformer (XFM, re-run)", "mega2022"), ("Mega", "mega2022"), ("S4-LegS", "s4-style"),
)  # fmt: skip
# A task of these that has LRA's own settings (all at their defaults, but for the seed) is that column of the file.
COLUMN = {"listops": "listops", "cifar10": "image"}
COLUMNS = ["reference", "kind", "label", "mean", "sd", "protocol", "source"]


def apart(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows to set apart, for each reference (and the arms compared with it): COLUMNS, accuracies as fractions.

    `kind` is "floor" (measured on the test split when the data was loaded, as the records say) or "published". Empty
    for another metric than test accuracy, and for records that say nothing.
    """
    done = frame[frame["status"] == "done"]
    rows: list[dict[str, object]] = []
    if metric == "test.accuracy":
        for reference, runs in done.groupby("reference", sort=False):
            rows += [{"reference": reference, **row} for row in (*_floors(runs), *_published(runs))]
    return pd.DataFrame(rows, columns=COLUMNS)


def sources(rows: pd.DataFrame) -> list[str]:
    """What the rows that stand apart are."""
    said = []
    if (rows["kind"] == "floor").any():
        said.append("Set apart, not ranked: what needs no model, measured on the same test examples.")
    published = rows[rows["kind"] == "published"].drop_duplicates(["label", "protocol"])
    if len(published):
        listed = published.groupby(["protocol", "source"], sort=False)["label"].agg(", ".join)
        by = "; ".join(f"{label} ({protocol}): {source}" for (protocol, source), label in listed.items())
        said.append(f"In italics, not ranked: published by others under the protocol named, not run here. {by}.")
    return said


def _floors(runs: pd.DataFrame) -> list[dict[str, object]]:
    """One row a floor; one for each value where the tasks of these runs have several (two test sets, say)."""
    rows: list[dict[str, object]] = []
    for name in (column for column in runs.columns if column.startswith(FLOOR)):
        label = name.removeprefix(FLOOR)
        rows += [{"kind": "floor", "label": label, "mean": value} for value in runs[name].dropna().round(6).unique()]
    return rows


def _published(runs: pd.DataFrame) -> list[dict[str, object]]:
    # the protocol is that of the others only where the task is at its defaults, which its canonical form leaves out
    tasks = [json.loads(text) for text in runs["spec.task"].unique()] if "spec.task" in runs else []
    names = {task["name"] for task in tasks}
    if len(names) != 1 or not names <= COLUMN.keys() or any(task.keys() - {"name", "seed"} for task in tasks):
        return []
    column = COLUMN[names.pop()]
    shown = _lra().reindex(list(CHOSEN)).dropna(subset=[column]).reset_index()
    per_cent = pd.DataFrame({"mean": shown[column], "sd": shown[f"std_{column}"]}).apply(pd.to_numeric) / 100
    labelled = shown[["model", "protocol", "source"]].rename(columns={"model": "label"})
    rows: list[dict[str, object]] = labelled.join(per_cent).assign(kind="published").to_dict("records")
    return rows


@cache
def _lra() -> pd.DataFrame:
    table = pd.read_csv(LRA)
    return table[table["verified"] == "yes"].set_index(["model", "protocol"])
