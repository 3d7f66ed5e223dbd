"""How do a study's arms do elsewhere: at other lengths and resolutions, on other data than they were trained on?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from results.figures.evals import accuracy_against_length
from results.files import CorruptFile
from results.printing import file_stem
from results.record import EvalRecord, read_evals
from results.section import Gathered, Section
from results.summary import scale, title
from results.tables import DASH
from results.text import printable, styled

TRAINED, CANNOT = "as trained", "cannot"


def section(gathered: Gathered) -> Section | None:
    """A table for every set of fields that was changed, and a figure where the length changed; None without any."""
    metric = gathered.manifest.metric.partition(".")[2]
    frame, torn = gather_evals(gathered, metric)
    if frame.empty:
        return Section("Evaluated elsewhere", torn) if torn else None
    made = Section("Evaluated elsewhere")
    for fields, rows in frame[frame["setting"] != TRAINED].groupby("fields", sort=False):
        own = frame[(frame["setting"] == TRAINED) & frame["run_id"].isin(rows["run_id"])]
        shown = pd.concat([own, rows]).sort_values("arm", kind="stable")
        stem = file_stem("evals_" + "_".join(str(fields).split(", ")))
        made.tables[stem] = table(shown, metric)
        if (figure := accuracy_against_length(shown, gathered.summary, metric)) is not None:
            made.figures[stem] = figure
    made.text = [_explained(frame, metric, made.tables.values()), *_failures(frame), *torn]
    return made


def gather_evals(gathered: Gathered, metric: str) -> tuple[pd.DataFrame, list[str]]:
    """One row an evaluation of a run that is done, and one ("as trained") for what its record says of its own test.

    Columns: arm, reference, seed, run_id, fields (that were changed), setting (to what), order, length,
    trained_length, status, reason, value (of the metric). Beside it a sentence for each file that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    torn: list[str] = []
    done = gathered.frame[gathered.frame["status"] == "done"]
    own = done.get(f"test.{metric}", pd.Series(math.nan, done.index))
    cells = done[["arm", "reference", "seed", "run_id"]].assign(own=own)
    for cell in cells.to_dict("records"):
        base = {name: cell[name] for name in ("arm", "reference", "seed", "run_id")}
        try:
            evals = read_evals(gathered.runs, cell["run_id"])
        except CorruptFile as error:
            torn.append(f"{cell['arm']}, seed {cell['seed']}: {error}.")
            continue
        weights = gathered.records[cell["run_id"]].weights_hash
        elsewhere = [record for record in evals if record.changes or record.split != "test"]
        if any(record.weights_hash != weights for record in elsewhere):
            elsewhere = [record for record in elsewhere if record.weights_hash == weights]
            torn.append(f"{cell['arm']}, seed {cell['seed']}: evaluations of former weights are left out.")
        rows += [base | row(record, metric) for record in elsewhere]
        if elsewhere:
            length, value = elsewhere[0].trained_length, cell["own"]
            trained = {"fields": "", "setting": TRAINED, "order": -1.0, "status": "done", "reason": "", "value": value}
            rows.append(base | trained | {"length": length, "trained_length": length})
    frame = pd.DataFrame(rows)
    if not frame.empty:
        frame["arm"] = frame["arm"].astype(gathered.frame["arm"].dtype)
    return frame, torn


def row(record: EvalRecord, metric: str) -> dict[str, Any]:
    """What `gather_evals` says of one evaluation."""
    numbers = [value for value in record.changes.values() if isinstance(value, int | float)]
    # what the run was trained on comes first, then numbers as they rise, then lengths
    order = -1.0 if eval_label(record) == TRAINED else float(numbers[0] if numbers else record.length)
    return {
        "fields": printable(", ".join(record.changes)) or record.split,
        "setting": eval_label(record),
        "order": order,
        "length": record.length,
        "trained_length": record.trained_length,
        "status": record.status,
        "reason": printable(record.reason),
        "value": record.metrics.get(metric, math.nan),
    }


def eval_label(record: EvalRecord) -> str:
    """What was asked, in a few words: "gap 3", "40x40", "digits, view image (valid)"."""
    words = []
    for name, value in record.changes.items():
        if name == "resolution":
            words.append("x".join(map(str, value)))
        else:
            words.append(str(value) if name == "task" else f"{name} {value}")
    split = f" ({record.split})" if record.split != "test" else ""
    return printable(", ".join(words) or TRAINED) + split


def table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Arms by settings: mean ± sd over seeds; where fewer seeds have a value than runs were evaluated, how many."""
    settings = rows.sort_values(["order", "setting"], kind="stable")["setting"].drop_duplicates()
    printed = []
    for arm, mine in rows.groupby("arm", observed=True, sort=False):
        line: dict[str, Any] = {"Arm": str(arm), "n": mine["run_id"].nunique()}
        for setting in settings:
            line[str(setting)] = _cell(mine[mine["setting"] == setting], metric, line["n"])
        printed.append(line)
    return pd.DataFrame(printed)


def print_evals(console: Console, records: Sequence[EvalRecord], labels: Mapping[str, str], metric: str) -> None:
    """The table of evaluations just made, `labels` saying what each run is called, and why what failed did."""
    rows = [{"arm": labels[one.run_id], "run_id": one.run_id, **row(one, metric)} for one in records]
    order = list(dict.fromkeys(labels.values()))
    frame = pd.DataFrame(rows).sort_values("arm", kind="stable", key=lambda arms: arms.map(order.index))
    printed = table(frame, metric)
    unit = " (%)" if scale(metric) == 100 else ""
    shown = Table(box=None, title=f"{metric}{unit}", title_justify="left")
    for name in printed.columns:
        shown.add_column(styled(name))
    for cells in printed.itertuples(index=False):
        shown.add_row(*(styled(str(cell)) for cell in cells))
    console.print(shown)
    for reason in dict.fromkeys(f"{labels[one.run_id]}: {one.reason}" for one in records if one.reason):
        console.print(styled(reason, "yellow"))


def _cell(rows: pd.DataFrame, metric: str, runs: int) -> str:
    if rows.empty:
        return DASH
    values = rows["value"][rows["status"] == "done"] * scale(metric)
    if values.empty:
        return CANNOT
    digits = 1 if scale(metric) == 100 else 3
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{round(values.mean(), 10):.{digits}f}{spread}" + (f" (n {len(values)})" if len(values) < runs else "")


def _explained(frame: pd.DataFrame, metric: str, tables: Iterable[pd.DataFrame]) -> str:
    """What the tables hold, and the signs in them."""
    evaluated = frame[frame["setting"] != TRAINED]["run_id"].nunique()
    cells = {str(cell) for table in tables for cell in table.to_numpy().flat}
    spread = ": mean ± standard deviation over seeds" if any("±" in cell for cell in cells) else ""
    signs = {CANNOT: "the model does not take that input", DASH: "not asked"}
    said = "; ".join(f"{sign}: {meaning}" for sign, meaning in signs.items() if sign in cells)
    return (
        f"{title('test.' + metric)} of the stored weights of {evaluated} runs, nothing trained anew{spread}. "
        f"{TRAINED.capitalize()}: the run's own test." + (f" {said}." if said else "")
    )


def _failures(frame: pd.DataFrame) -> list[str]:
    failed = frame[frame["status"] == "failed"].sort_values(["arm", "order"])
    said = []
    for (arm, reason), rows in failed.groupby(["arm", "reason"], observed=True, sort=False):
        said.append(f"{arm} at {', '.join(dict.fromkeys(rows['setting']))}: {reason}.")
    return said
