"""What do LDN's operators cost alone, and how near is each to a copy? Cost records of operators to tables and a figure.

A frame of operators is one of costs (`results.cost_frame`) with, for each record, its `case` and `variant` (plain,
compiled, fused); `gb_s` and `gb_share` count the traffic that no implementation can do without (`least_bytes`);
`over_plain` and `over_compiled` are how many times faster it is than those variants, NaN beside itself;
`backward_ratio` is what forward+backward takes longer than forward, over forward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from results.cost_frame import cost_frame, exponents
from results.costs import SHORT, print_exponent, unmeasured, where
from results.figures.operators import copy_share
from results.printing import print_notes, print_table, write_page
from results.record import CostRecord
from results.section import Section
from results.summary import rounded
from results.tables import DASH

TITLE = "What LDN's kernels cost alone"
POINT = ["case", "tokens", "batch", "dtype", "device", "work"]  # where variants are compared
EXPENDABLE = ("Batch", "Peak MB", "vs compiled", "vs plain")  # of the table's columns in a narrow terminal, in order


def operator_frame(records: Iterable[CostRecord]) -> pd.DataFrame:
    """One row a record, in their order."""
    frame = cost_frame(records)
    models = frame["model"].map(json.loads)
    frame["case"] = [model["case"] for model in models]
    frame["variant"] = [
        "fused" if model["fused"] else "compiled" if compiled else "plain"
        for model, compiled in zip(models, frame["compiled"], strict=True)
    ]
    frame["sets"] = [json.loads(plain)["sets"] for plain in frame["input"]]
    frame["gb_s"] = frame["least_bytes"] / frame["median"].astype(float) / 1e9
    frame["gb_share"] = frame["gb_s"] / frame["copy_gb_s"].astype(float)
    for variant in ("plain", "compiled"):
        ratio = _beside(frame, frame[frame["variant"] == variant], POINT) / frame["median"]
        frame[f"over_{variant}"] = ratio.where(frame["variant"] != variant)
    forward = _beside(frame, frame[frame["work"] == "forward"], [*POINT[:-1], "variant"])
    frame["backward_ratio"] = ((frame["median"] - forward) / forward).where(frame["work"] != "forward")
    return frame


def _beside(frame: pd.DataFrame, others: pd.DataFrame, by: list[str]) -> pd.Series:
    """For each row the median of that one of the others which agrees with it in the columns `by`; NaN without one."""
    known = others.drop_duplicates(by).set_index(by)["median"]
    return pd.Series(known.reindex(pd.MultiIndex.from_frame(frame[by])).to_numpy(), index=frame.index)


def share_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: share of the copy's bandwidth at every length, then the exponent of a sequence's time in N."""
    lengths = sorted(frame["tokens"].unique())
    fitted = exponents(frame.assign(median=frame["median"] / frame["batch"])).set_index(["label", "work", "compiled"])
    rows = []
    for (case, variant, work), series in frame.groupby(["case", "variant", "work"], sort=False):
        cells = {row["tokens"]: _share(row) for row in series.to_dict("records")}
        first = series.iloc[0]
        row = {"Kernel": case, "Variant": variant, "Pass": work} | {f"{n:,}": cells.get(n, "") for n in lengths}
        fit = fitted.loc[(first["label"], work, first["compiled"])]
        rows.append(row | {"Exponent [95%]": print_exponent(fit)})
    return pd.DataFrame(rows).sort_values("Pass", kind="stable")


def detail_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Printed cells: one row a measurement; a variant's gain over the plain and the compiled operations."""
    rows = []
    for row in frame.to_dict("records"):
        done = row["status"] == "done"
        ms = [rounded(row[name] * 1e3, 3) for name in ("median", "low", "high")] if done else []
        cells = {
            "Kernel": row["case"],
            "N": f"{row['tokens']:,}",
            "Batch": str(row["batch"]),
            "Variant": row["variant"],
            "Pass": row["work"],
            "ms [quartiles]": f"{ms[0]} [{ms[1]}, {ms[2]}]" if done else SHORT.get(row["status"], row["status"]),
            "GB/s (share)": f"{rounded(row['gb_s'], 3)} ({_share(row)})" if done else "",
            "vs plain": _times(row["over_plain"]),
            "vs compiled": _times(row["over_compiled"]),
            "Backward": _times(row["backward_ratio"]),
            "Peak MB": f"{row['peak_bytes'] / 1e6:,.1f}" if done else "",
        }
        rows.append(cells)
    return pd.DataFrame(rows)


def notes(frame: pd.DataFrame) -> list[str]:
    """Where it was measured, what exactly is counted, and what is not there."""
    said = where(frame)
    if not (frame["variant"] == "fused").any():
        said.append("Fused kernels run on a GPU only. Here there are none: not measured on a GPU.")
    widths = ", ".join(str(width) for width in sorted({json.loads(plain)["width"] for plain in frame["input"]}))
    said += [
        f"Width D {widths}, random input. Diffusion is by a symmetric stencil of radius 1 with weights and rates by "
        "channel, S steps; multiscale: with dilations 1, 2, 4, 8; adaptive: with rates and conductances by token. "
        "Attention is (A - I) v, linear in N, over 4 heads.",
        "GB/s count the least traffic, in tensors of B N D elements: diffusion reads "
        "x and writes the result (2), whatever S, backward it reads x and the result's gradient "
        "and writes x's (3); attention reads q, k, v and writes the result (4), backward it reads these and the "
        "result's gradient and writes three (7). Coefficients and the attention's state are not counted. In brackets: "
        "the share of what a copy reaches on the same device.",
        "Plain: PyTorch operations; compiled: the same under torch.compile; fused: Triton kernels. vs plain, "
        "vs compiled: how many times faster than these. Backward: what forward+backward takes longer than forward "
        "without gradients, over forward; down to the gradients of x and the weights, of the adaptive case those of "
        "rates and conductances too.",
        "Times are medians of timed blocks with their quartiles, all variants in turns. Peak: bytes of tensors at "
        "most, of one set of inputs. Exponent: of the time of one sequence in N, log-log least squares, in brackets "
        "its 95 % t interval.",
        *_of_launching(frame),
    ]
    return said + _of_caches(frame) + unmeasured(frame)


def write_operators(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """table.md, kernels.csv and, over several lengths, the figure."""
    page = Section(TITLE, notes(frame), {"share": share_table(frame), "detail": detail_table(frame)}, _figures(frame))
    return write_page(folder, frame, "kernels.csv", page)


def print_operators(console: Console, frame: pd.DataFrame, files: list[Path]) -> None:
    alone = ["Variant"] if (frame["variant"] == "plain").all() else []
    for work, rows in frame.groupby("work", sort=False):
        printed = share_table(rows).drop(columns=["Pass", *alone])
        print_table(console, printed, f"{TITLE}: {work}, share of the copy's bandwidth over numbers of tokens")
    for work, rows in frame.groupby("work", sort=False):
        left_out = ["Pass", "Backward"] if work == "forward" else ["Pass"]
        left_out += [*alone, "vs plain", "vs compiled"] if alone else []
        print_table(console, detail_table(rows).drop(columns=left_out), f"Every measurement, {work}", "N", EXPENDABLE)
    print_notes(console, notes(frame), files)


def _figures(frame: pd.DataFrame) -> dict[str, Any]:
    drawable = frame[frame["gb_share"].notna()]
    return {"copy_share": copy_share(drawable)} if drawable["tokens"].nunique() >= 2 else {}


def _of_launching(frame: pd.DataFrame) -> list[str]:
    """Whether the times of a GPU hold the time that launching from Python takes."""
    timed = frame[(frame["status"] == "done") & ~frame["device"].astype(str).str.startswith("cpu")]
    if timed.empty:
        return []
    launched = timed[timed["reason"] != ""].groupby("reason", sort=False)["label"].unique()
    others = "".join(f" Not so {', '.join(labels)}, launched call by call: {why}." for why, labels in launched.items())
    return [f"The calls of a block are captured as one CUDA graph: times are the GPU's, without launching.{others}"]


def _of_caches(frame: pd.DataFrame) -> list[str]:
    """Which inputs are so small that they may lie in a cache, where a copy's bandwidth is no limit."""
    taken = "Calls take turns over several sets of inputs, so that little of a call's own is in a cache when it begins."
    if frame["cache_bytes"].isna().all():
        return [f"{taken} A CPU's caches hold much of these small inputs all the same: shares can exceed 100 %."]
    cached = frame[frame["sets"] * frame["least_bytes"] < 2 * frame["cache_bytes"]]
    if cached.empty:
        return [taken]
    inputs = sorted(set(zip(cached["tokens"], cached["batch"], strict=True)))
    sizes = ", ".join(f"{n:,} x {batch}" for n, batch in inputs)
    cache = f"{cached['cache_bytes'].max() / 1e6:,.0f} MB"
    return [f"{taken} Not so at N x batch {sizes}: these lie partly in the cache ({cache}), beyond a copy's limit."]


def _share(row: dict[Any, Any]) -> str:
    if row["status"] != "done":
        return SHORT.get(row["status"], row["status"])
    return DASH if math.isnan(row["gb_share"]) else f"{row['gb_share']:.0%}"


def _times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:,.2f}x"
