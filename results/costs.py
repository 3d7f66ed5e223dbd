"""What does each model cost, and how does it grow with the length? Cost records to frames, tables and a section.

A frame of costs has one row a record: what was measured (`label`, `model`, `task`, `tokens`, `batch`, `dtype`, `work`,
`compiled`), how it ended (`status`, `reason`), seconds a pass (`median`, quartiles `low` and `high`, `iterations`),
`peak_bytes`, `params`, `gmac`, and what follows from these: `tokens_per_second`, `gb_s` and `tflop_s`, with their
shares of the device's own measured ceilings. `model` and `task` are JSON: what a run's spec says, to join them by.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from results import tables
from results.figures.cost import length_scaling
from results.figures.style import encode
from results.files import CorruptFile, write_atomically
from results.record import CostRecord, RunRecord, read_cost
from results.section import Gathered, Section
from results.summary import rounded

CONFIDENCE = 0.95
BATCH = 64  # of a run whose spec, which leaves out what is at its default, names none
SETTING = ["device", "threads", "dtype"]  # times of different ones are not compared
SERIES = ["label", "work", "compiled"]
SHORT = {"out of memory": "out of memory", "skipped": "too long", "refused": "refused", "failed": "failed"}
DASH = "–"
EXPENDABLE = ("Passes", "GMAC", "GB/s (share)", "Peak MB", "TFLOP/s (share)")  # where a terminal is narrow, in order
TEXTUAL = ("Model", "Mode", "Kernel", "Variant")


def read_costs(runs: Path) -> tuple[pd.DataFrame, list[str]]:
    """All cost records in `runs`, and a sentence for every file that cannot be read."""
    records, unreadable = [], []
    for path in sorted(runs.glob("costs/*.json")):
        try:
            records.append(read_cost(path))
        except CorruptFile as error:
            unreadable.append(f"{error}.")
    return cost_frame(records), unreadable


def cost_frame(records: Iterable[CostRecord]) -> pd.DataFrame:
    """One row a record, in their order."""
    rows = []
    for record in records:
        row = dataclasses.asdict(record)
        env, seconds = row.pop("env"), row.pop("seconds")
        row |= {name: plain_key(row[name]) for name in ("model", "task", "input")}
        row |= {name: env.get(name) for name in ("device", "threads", "node", "torch", "cuda", "commit", "dirty")}
        row |= {name: env.get(name, math.nan) for name in ("load", "cache_bytes")}
        row |= {"blocks": len(seconds), "cost_id": record.cost_id}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else [*_columns()])
    passes = frame["work"].map({"forward": 1, "forward+backward": 3}).astype(float)  # a backward pass has two products
    seconds = frame["median"].astype(float)
    frame["tokens_per_second"] = frame["tokens"] * frame["batch"] / seconds
    frame["gb_s"] = frame["moved_bytes"].where(frame["moved_bytes"] > 0).astype(float) / seconds / 1e9
    frame["tflop_s"] = 2 * passes * frame["gmac"].astype(float) * frame["batch"] / seconds / 1e3
    frame["gb_share"] = frame["gb_s"] / frame["copy_gb_s"].astype(float)
    frame["tflop_share"] = frame["tflop_s"] / frame["matmul_tflop_s"].astype(float)
    return frame


def plain_key(plain: dict[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True)


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """For each model, pass and mode, the exponent a of time ~ N^a: least squares of log time over log N.

    `low` and `high` bound its 95 % t interval, NaN below three lengths; `exponent` is NaN below two. Only inputs of no
    task count: those of one length each belong to no series.
    """
    rows = []
    for key, series in frame[frame["task"] == "{}"].groupby(SERIES, sort=False):
        series = series[series["status"] == "done"].drop_duplicates("tokens")
        row = dict(zip(SERIES, key, strict=True)) | {"lengths": len(series), "exponent": math.nan}
        row |= {"low": math.nan, "high": math.nan}
        if len(series) >= 2:
            fit = stats.linregress(series["tokens"].map(math.log), series["median"].map(math.log))
            row["exponent"] = fit.slope
            if len(series) >= 3:
                half = fit.stderr * stats.t.ppf((1 + CONFIDENCE) / 2, len(series) - 2)
                row |= {"low": fit.slope - half, "high": fit.slope + half}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*SERIES, "lengths", "exponent", "low", "high"])


def scaling_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: tokens a second of every model (rows) at every length (columns), then its exponent."""
    frame = frame[frame["task"] == "{}"]
    lengths = sorted(frame["tokens"].unique())
    fitted = exponents(frame).set_index(SERIES)
    rows = []
    for key, series in sorted(frame.groupby(SERIES, sort=False), key=lambda entry: entry[0][1:]):
        label, work, compiled = key
        cells = {row["tokens"]: _speed(row) for row in series.to_dict("records")}
        row = {"Model": label, "Pass": work, "Mode": _mode(compiled)}
        row |= {f"{n:,}": cells.get(n, "") for n in lengths}
        rows.append(row | {"Exponent [95% interval]": print_exponent(fitted.loc[key])})
    return _without_one_mode(pd.DataFrame(rows))


def detail_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: one row a measurement, with its quartiles, memory, and shares of the device's ceilings."""
    rows = []
    for row in frame.to_dict("records"):
        done = row["status"] == "done"
        ms = [rounded(row[name] * 1e3, 4) for name in ("median", "low", "high")] if done else []
        rows.append(
            {
                "Model": row["label"],
                "N": f"{row['tokens']:,}",
                "Batch": str(row["batch"]),
                "Pass": row["work"],
                "Mode": _mode(row["compiled"]),
                "Tokens/s": _speed(row),
                "ms [quartiles]": f"{ms[0]} [{ms[1]}, {ms[2]}]" if done else "",
                "Passes": str(row["iterations"]) if done else "",
                "Peak MB": f"{row['peak_bytes'] / 1e6:,.1f}" if row["peak_bytes"] else "",
                "GMAC": "" if math.isnan(row["gmac"]) else f"{row['gmac']:,.3f}",
                "GB/s (share)": _share(row["gb_s"], row["gb_share"]),
                "TFLOP/s (share)": _share(row["tflop_s"], row["tflop_share"]),
            }
        )
    return _without_one_mode(pd.DataFrame(rows))


def notes(frame: pd.DataFrame) -> list[str]:
    """Where and how it was measured, what the columns mean, and why a cell holds no number."""
    return [
        *where(frame),
        "Times are medians of timed blocks with their quartiles, models in turns, random input, full-length examples; "
        "forward+backward is without the optimiser's step. Exponent: of time in N, log-log least squares, in brackets "
        "its 95 % t interval.",
        "Peak: bytes of tensors at most (weights, input, activations, gradients), by the device's allocator; on a CPU "
        "by the profiler's record of every allocation. GMAC: one example, forward. TFLOP/s count 2 a multiply-add, "
        "backward as two forward passes. Shares are of the ceilings. "
        "GB/s count what eager operations read and write, each by itself; compiled "
        "code merges them, so there it is not known.",
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


def write_page(folder: Path, frame: pd.DataFrame, csv: str, page: Section) -> list[Path]:
    """The frame as `csv`, every figure as .png and .pdf, and a table.md that shows tables, figures and text."""
    content = {csv: frame.to_csv(index=False).encode()}
    for name, figure in page.figures.items():
        content |= {f"{name}.{kind}": encode(figure, kind) for kind in ("png", "pdf")}
    parts = [f"# {tables.escape_markdown(page.title)}", *map(tables.plain_markdown, page.tables.values())]
    parts += [f"![{name}]({name}.png)" for name in page.figures] + list(map(tables.escape_markdown, page.text))
    content["table.md"] = ("\n\n".join(parts) + "\n").encode()
    for name, data in content.items():
        _write(folder / name, data)
    return [folder / name for name in content]


def print_costs(console: Console, frame: pd.DataFrame, title: str, files: list[Path]) -> None:
    """Throughput over lengths, then what each pass took and held, the notes, and where all of it was written."""
    for work, rows in frame.groupby("work", sort=False):
        if len(scaling := rows[rows["task"] == "{}"]):
            printed = scaling_table(scaling).drop(columns="Pass")
            print_table(console, printed, f"{title}: {work}, tokens a second over numbers of tokens")
    for work, rows in frame.groupby("work", sort=False):
        said_above = ["Tokens/s"] if (rows["task"] == "{}").all() else []
        printed = detail_table(rows).drop(columns=["Pass", *said_above])
        if printed["Batch"].nunique() == 1:
            printed = printed.drop(columns="Batch")
        print_table(console, printed, f"Every measurement, {work}", "N")
    print_notes(console, notes(frame), files)


def print_notes(console: Console, said: Iterable[str], files: list[Path]) -> None:
    for line in said:
        console.print(line, style="dim", markup=False, highlight=False)
    names = ", ".join(path.name for path in files)
    console.print(f"\nWritten to {files[0].parent}/: {names}", markup=False, highlight=False, soft_wrap=True)


class MeasuredRuns:
    """What a run's own training step costs, by its model, task and batch: the columns that `gather` adds."""

    def __init__(self, runs: Path) -> None:
        frame, _ = read_costs(runs)
        known = frame[(frame["task"] != "{}") & (frame["work"] == "forward+backward") & (frame["status"] == "done")]
        self.rows: dict[tuple[str, str, int], list[dict[Any, Any]]] = {}
        for row in known.sort_values("compiled", kind="stable").to_dict("records"):
            self.rows.setdefault((row["model"], row["task"], row["batch"]), []).append(row)

    def of(self, record: RunRecord) -> dict[str, Any]:
        """Throughput and peak memory, eager before compiled, on the run's own device where it was measured there."""
        spec = record.spec
        rows = self.rows.get((plain_key(spec["model"]), plain_key(spec["task"]), spec.get("batch", BATCH)), [])
        device = record.attempts[-1].get("device") if record.attempts else None
        row = next((row for row in rows if row["device"] == device), rows[0] if rows else None)
        if row is None:
            return {}
        how = f"{row['device']}, {row['dtype']}, {_mode(row['compiled'])}"
        return {
            "cost.tokens_per_second": row["tokens_per_second"],
            "cost.peak_bytes": float(row["peak_bytes"]),
            "cost.measured_on": how,
        }


def _fitting(printed: pd.DataFrame, width: int, expendable: Iterable[str]) -> pd.DataFrame:
    """Without the columns that a terminal has no room for, the least important ones first; the files hold them all."""
    for name in expendable:
        needed = 1 + sum(2 + max(map(len, [column, *map(str, cells)])) for column, cells in printed.items())
        if needed > width and name in printed:
            printed = printed.drop(columns=name)
    return printed


def print_table(
    console: Console, printed: pd.DataFrame, title: str, apart: str = "", expendable: Iterable[str] = EXPENDABLE
) -> None:
    """A table with an empty line wherever the column `apart`, if any, changes."""
    printed = _fitting(printed, console.width, expendable)
    table = Table(title=escape(title), title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for column in printed.columns:
        left = column in TEXTUAL
        table.add_column(escape(column), justify="left" if left else "right", no_wrap=column not in ("Model", "Kernel"))
    former = None
    for row in printed.to_dict("records"):
        if former and apart and row[apart] != former[apart]:
            table.add_row()
        table.add_row(*(escape(str(cell)) for cell in row.values()))
        former = row
    console.print(table)


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


def _columns() -> Iterable[str]:
    names = [f.name for f in dataclasses.fields(CostRecord) if f.name not in ("env", "seconds")]
    where = ["device", "threads", "node", "torch", "cuda", "commit", "dirty", "load", "cache_bytes"]
    return [*names, *where, "blocks", "cost_id"]


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


def _mode(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def _without_one_mode(table: pd.DataFrame) -> pd.DataFrame:
    """Whether it was compiled, only where both stand side by side or it was."""
    eager = len(table) and set(table["Mode"]) == {"eager"}
    return table.drop(columns="Mode") if eager else table


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))
