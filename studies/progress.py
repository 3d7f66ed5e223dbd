"""How far is one run? Its last report, as `train` writes it beside the checkpoints, in words."""

from __future__ import annotations

import math
import time
from pathlib import Path

from results.entries import ProgressEntry
from results.files import CorruptFile
from results.record import read_progress

FRESH_SECONDS = 30.0  # a report so recent is of a run that goes on, though its lock is not seen from this machine


def progress_of(runs: Path, run_id: str) -> ProgressEntry | None:
    """The last report of a running run; None before the first, or if it cannot be read."""
    try:
        return read_progress(runs, run_id)
    except CorruptFile:
        return None


def is_fresh(where: ProgressEntry | None) -> bool:
    """Whether a report is so recent that its run goes on."""
    return where is not None and time.time() - where["time"] < FRESH_SECONDS


def progress_text(where: ProgressEntry | None) -> str:
    """As in "loss 0.693, valid 51.2%, 12,345 tokens/s, 60 s left"."""
    if not where:
        return "starting"
    parts = []
    if math.isfinite(where["loss"]):
        parts += [f"loss {where['loss']:.3f}", f"valid {where['accuracy']:.1%}"]
    parts.append(f"{where['tokens_per_second']:,.0f} tokens/s")
    if math.isfinite(where["seconds_left"]):
        parts.append(f"{where['seconds_left']:.0f} s left")
    return ", ".join(parts)
