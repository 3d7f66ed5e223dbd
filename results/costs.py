"""What does each model cost, and how does it grow with the length? A frame of costs to tables, a page and a section."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from results.cost_frame import SERIES, exponents, mode, plain_key, read_costs
from results.figures.cost import length_scaling
from results.printing import print_notes, print_table, write_page
from results.record import RunRecord
from results.section import Gathered, Section
from results.summary import rounded
from results.tables import DASH

SETTING = ["device", "threads", "dtype"]  # times of different ones are not compared
SHORT = {"out of memory": "out of memory", "skipped": "too long", "refused": "refused", "failed": "failed"}
# left out where a terminal is narrow, in this order
EXPENDABLE = ("Passes", "Params (M)", "GMAC", "GB/s (share)", "Peak MB", "TFLOP/s (share)")


EXPONENT = (
    "Exponent: of time in N, log-log least squares over all lengths, in brackets the 95 % t interval of that line; "
    "where costs per token and per pair of tokens add up it grows with N, so at longer inputs it is higher."
)


def scaling_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: tokens a second of every model (rows) at every length (columns), then its exponent."""
    frame = frame[frame["task"] == "{}"]
    lengths = sorted(frame["tokens"].unique())
    fitted = exponents(frame).set_index(SERIES)
    rows = []
    for key, series in sorted(frame.groupby(SERIES, sort=False), key=lambda entry: entry[0][1:]):
        label, work, compiled = key
        cells = {row["tokens"]: _speed(row) for row in series.to_dict("records")}
        row = {"Model": label, "Pass": work, "Mode": mode(compiled)}
        row |= {f"{n:,}": cells.get(n, "") for n in lengths}
        rows.append(row | {"Exponent [95% interval]": print_exponent(fitted.loc[key])})
    return _without_one_mode(pd.DataFrame(rows))


def detail_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: one row a measurement, with its quartiles, memory, and shares of the device's ceilings."""
    rows = []
    for row in frame.to_dict("records"):
        done = row["status"] == "done"
        bound = "≥ " * bool(row["uncounted"])
        ms = [rounded(row[name] * 1e3, 4) for name in ("median", "low", "high")] if done else []
        rows.append(
            {
                "Model": row["label"],
                "N": f"{row['tokens']:,}",
                "Batch": str(row["batch"]),
                "Pass": row["work"],
                "Mode": mode(row["compiled"]),
                "Tokens/s": _speed(row),
                "ms [quartiles]": f"{ms[0]} [{ms[1]}, {ms[2]}]" if done else "",
                "Passes": str(row["iterations"]) if done else "",
                "Peak MB": f"{row['peak_bytes'] / 1e6:,.1f}" if row["peak_bytes"] else "",
                "Params (M)": rounded(row["params"] / 1e6, 3) if row["params"] else "",
                "GMAC": "" if math.isnan(row["gmac"]) else bound + rounded(row["gmac"], 3),
                "GB/s (share)": _share(row["gb_s"], row["gb_share"]),
                "TFLOP/s (share)": bound * (not math.isnan(row["tflop_s"]))
                + _share(row["tflop_s"], row["tflop_share"]),
            }
        )
    return _without_one_mode(pd.DataFrame(rows))


def notes(frame: pd.DataFrame) -> list[str]:
    """Where and how it was measured, what the columns mean, and why a cell holds no number."""
    return [
        *where(frame),
        "Times are medians of timed blocks with their quartiles, models in turns, random input, full-length examples; "
        "forward+backward is without the optimiser's step.",
        *([EXPONENT] if (frame["task"] == "{}").any() else []),
        "Peak: bytes of tensors at most (weights, input, activations, gradients), by the device's allocator; on a CPU "
        "by the profiler's record of every allocation. GMAC: one example, forward. TFLOP/s count 2 a multiply-add, "
        "backward as two forward passes. Shares are of the ceilings. "
        "GB/s count what eager operations read and write, each by itself; compiled "
        "code merges them, so there it is not known.",
        *lower_bounds(frame),
        *unmeasured(frame),
    ]


def where(frame: pd.DataFrame) -> list[str]:
    """On what it was measured, with what, and that device's ceilings."""
    said = []
    for (device, threads, dtype), rows in frame.groupby(SETTING, sort=False, dropna=False):
        first = rows.iloc[0]
        cuda = f", CUDA {first['cuda']}" if isinstance(first["cuda"], str) else ""
        dirty = " with changes that are in no commit" if rows["dirty"].eq(True).any() else ""
        batch = ", ".join(str(n) for n in sorted(rows["batch"].unique()))
        said.append(
            f"Measured on {device}, {threads} thread{'s' * (threads != 1)}, {dtype}, batch {batch}; "
            f"torch {first['torch']}{cuda}, commit {', '.join(map(str, rows['commit'].unique()))}{dirty}. "
            f"Ceilings of this device, measured beside: copy {rounded(first['copy_gb_s'], 3)} GB/s, "
            f"matmul {rounded(first['matmul_tflop_s'], 3)} TFLOP/s. Load when it began: {first['load']:g}."
        )
    if frame["device"].astype(str).str.startswith("cpu").any():
        said.append("On a shared CPU only ratios inside one run mean anything.")
    return said


def lower_bounds(frame: pd.DataFrame) -> list[str]:
    """Which multiply-adds are a lower bound, and for which operations."""
    bounds = frame.loc[frame["uncounted"] != "", ["label", "uncounted"]].drop_duplicates()
    return [
        f"≥: the GMAC and TFLOP/s of {label} are lower bounds, for these operations have no count: {names}."
        for label, names in bounds.itertuples(index=False)
    ]


def unmeasured(frame: pd.DataFrame) -> list[str]:
    """Why a cell holds no number."""
    said = []
    unknown = frame[frame["status"] != "done"]
    for (label, status, reason), rows in unknown.groupby(["label", "status", "reason"], sort=False):
        where = ", ".join(f"{n:,}" for n in sorted(rows["tokens"].unique()))
        works = " and ".join(rows["work"].unique())
        said.append(f"{label} at {where} tokens, {works}, {SHORT.get(status, status)}: {reason}.")
    return said


def section(gathered: Gathered) -> Section | None:
    """What `bench` measured of a study's arms, under the arms' labels; None where nothing was."""
    frame, unreadable = read_costs(gathered.runs)
    labels = _labels(gathered)
    frame = frame[frame["model"].isin(labels)]
    if frame.empty:
        return Section("Measured cost", unreadable) if unreadable else None
    tasks = {key for records in _first_records(gathered).values() for key in [plain_key(records.spec["task"])]}
    frame = frame[frame["task"].isin({"{}", *tasks})].assign(label=lambda rows: rows["model"].map(labels))
    references = gathered.summary["arm"][gathered.summary["is_reference"]]
    if not frame["label"][frame["task"] == "{}"].isin(references).any():  # an arm that some other bench has met
        frame = frame[frame["task"] != "{}"]
    if frame.empty:
        return None
    order = {label: place for place, label in enumerate(gathered.summary["arm"])}
    frame = frame.sort_values(["tokens", "work"], kind="stable").sort_values(
        "label", key=lambda column: column.map(order), kind="stable"
    )
    most = frame.groupby(SETTING, dropna=False).size().idxmax()
    chosen = frame[frame[SETTING].apply(tuple, axis=1) == most]
    text = notes(chosen) + unreadable
    if len(chosen) < len(frame):
        text.append(f"Left out: {len(frame) - len(chosen)} measurements on other devices, threads or dtypes.")
    return Section("Measured cost", text, _tables(chosen), _figures(chosen))


def write_costs(frame: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """A report of these costs alone: table.md, costs.csv, and the figure of length scaling where there is one."""
    return write_page(folder, frame, "costs.csv", Section(title, notes(frame), _tables(frame), _figures(frame)))


def print_costs(console: Console, frame: pd.DataFrame, title: str, files: list[Path]) -> None:
    """Throughput over lengths, then what each pass took and held, the notes, and where all of it was written."""
    for work, rows in frame.groupby("work", sort=False):
        if len(scaling := rows[rows["task"] == "{}"]):
            printed = scaling_table(scaling).drop(columns="Pass")
            print_table(console, printed, f"{title}: {work}, tokens a second over numbers of tokens", "", EXPENDABLE)
    for work, rows in frame.groupby("work", sort=False):
        said_above = ["Tokens/s"] if (rows["task"] == "{}").all() else []
        printed = detail_table(rows).drop(columns=["Pass", *said_above])
        if printed["Batch"].nunique() == 1:
            printed = printed.drop(columns="Batch")
        print_table(console, printed, f"Every measurement, {work}", "N", EXPENDABLE)
    print_notes(console, notes(frame), files)


def _tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    scaling = frame[frame["task"] == "{}"]
    return ({"length_scaling": scaling_table(scaling)} if len(scaling) else {}) | {"cost": detail_table(frame)}


def _figures(frame: pd.DataFrame) -> dict[str, Any]:
    scaling = frame[frame["task"] == "{}"]
    drawable = scaling[scaling["status"] == "done"]["tokens"].nunique() >= 2
    return {"length_scaling": length_scaling(scaling, exponents(scaling))} if drawable else {}


def _first_records(gathered: Gathered) -> dict[str, RunRecord]:
    """A run's record for each arm that has one."""
    found: dict[str, RunRecord] = {}
    for cell in gathered.manifest.cells:
        if cell["run_id"] in gathered.records:
            found.setdefault(cell["arm"], gathered.records[cell["run_id"]])
    return found


def _labels(gathered: Gathered) -> dict[str, str]:
    """Canonical model -> the arms that are it: arms that differ in training only cost the same."""
    arms: dict[str, list[str]] = {}
    for arm, record in _first_records(gathered).items():
        arms.setdefault(plain_key(record.spec["model"]), []).append(arm)
    return {model: names[0] for model, names in arms.items()}


def _speed(row: dict[Any, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f}" if row["status"] == "done" else SHORT.get(row["status"], row["status"])


def print_exponent(fit: pd.Series) -> str:
    if math.isnan(fit["exponent"]):
        return DASH
    return f"{fit['exponent']:.2f}" + ("" if math.isnan(fit["low"]) else f" [{fit['low']:.2f}, {fit['high']:.2f}]")


def _share(value: float, share: float) -> str:
    if math.isnan(value):
        return ""
    return rounded(value, 3) + ("" if math.isnan(share) else f" ({share:.0%})")


def _without_one_mode(table: pd.DataFrame) -> pd.DataFrame:
    """Whether it was compiled, only where both stand side by side or it was."""
    eager = len(table) and set(table["Mode"]) == {"eager"}
    return table.drop(columns="Mode") if eager else table
