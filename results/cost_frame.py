"""What was measured of costs, as a frame? Cost records to one row each, exponents in N, and what a run's step costs.

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
from scipy import stats

from results.files import CorruptFile
from results.record import CostRecord, RunRecord, read_cost
from results.summary import CONFIDENCE
from results.text import printable

BATCH = 64  # of a run whose spec, which leaves out what is at its default, names none
SERIES = ["label", "work", "compiled"]


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
        row |= {name: printable(row[name]) for name in ("label", "reason")}
        row |= {name: env.get(name) for name in ("device", "threads", "node", "torch", "cuda", "commit", "dirty")}
        row |= {name: env.get(name, math.nan) for name in ("load", "cache_bytes")}
        row["uncounted"] = ", ".join(record.uncounted)
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


def mode(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


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
        how = f"{row['device']}, {row['dtype']}, {mode(row['compiled'])}"
        return {
            "cost.examples_per_second": row["batch"] / row["median"],  # tokens of a patch and of a pixel do not compare
            "cost.peak_bytes": float(row["peak_bytes"]),
            "cost.measured_on": how,
        }


def _columns() -> Iterable[str]:
    names = [f.name for f in dataclasses.fields(CostRecord) if f.name not in ("env", "seconds")]
    where = ["device", "threads", "node", "torch", "cuda", "commit", "dirty", "load", "cache_bytes"]
    return [*names, *where, "blocks", "cost_id"]
