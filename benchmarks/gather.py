"""How long does a report wait for 10 000 runs to be gathered and summarised? `python -m benchmarks.gather`"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from results.gather import gather
from results.record import Manifest, RunRecord, write_manifest, write_record
from results.notes import notes
from results.summary import summarise

SEEDS = 20


def write_study(runs: Path, size: int) -> None:
    """Arms of 20 seeds each, in nine of ten cells done; with the fields that training records."""
    random = np.random.default_rng(0)
    labels = [f"width {8 * (i + 1)}" for i in range(size // SEEDS)]
    cells = []
    for i, label in enumerate(labels):
        for seed in range(SEEDS):
            run_id = f"{random.integers(2**63):016x}"
            cells.append({"arm": label, "seed": seed, "run_id": run_id, "factors": {"model.width": 8 * (i + 1)}})
            write_record(runs, record(run_id, 8 * (i + 1), seed, random))
    write_manifest(
        runs,
        Manifest(
            study="many", source="", question="How much?", reference=labels[0], metric="test.accuracy", direction="max",
            arms=[{"label": label, "reference": labels[0], "changes": {}, "note": ""} for label in labels], cells=cells,
        ),
    )  # fmt: skip


def record(run_id: str, width: int, seed: int, random: np.random.Generator) -> RunRecord:
    spec = {
        "schema": 1,
        "model": {"name": "ldn", "width": width, "depth": 6, "steps": 4, "kernel": "adaptive", "heads": 4},
        "task": {"name": "cued_digits", "length": 512},
        "optim": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.05, "warmup": 100},
        "batch": 64,
        "budget": {"steps": 600},
        "seed": seed,
    }
    attempt = {
        "node": "node01", "device": "NVIDIA H200", "threads": 8, "commit": "0" * 12, "dirty": False, "seconds": 120.0,
        "started": 1.7e9, "first_step": 0, "python": "3.11.2", "torch": "2.13.0",
    }  # fmt: skip
    metrics = {split: dict(zip(("accuracy", "loss"), random.random(2), strict=True)) for split in ("valid", "test")}
    cost = {
        "params": 50_000 + width,
        "gmac": 0.001,
        "elementwise_g": 1e-5,
        "by_operation": {"linear": 8e-4, "diffuse": 1e-4, "attention": 1e-4},
    }
    failed = random.random() < 0.1
    return RunRecord(
        run_id=run_id, spec=spec, status="diverged" if failed else "done", metrics={} if failed else metrics,
        reason="loss is nan at step 40" if failed else "", cost=cost, steps=600, best_step=550,
        data={"fingerprint": "f" * 16}, attempts=[attempt],
    )  # fmt: skip


def main(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        write_study(runs, size)
        start = time.perf_counter()
        frame = gather(runs, "many")
        gathered = time.perf_counter()
        summary = summarise(frame, "test.accuracy", "max")
        said = notes(frame)
        end = time.perf_counter()
    print(f"{len(frame)} records of {frame.shape[1]} columns: gathered in {gathered - start:.2f} s")
    print(f"{len(summary)} arms summarised, with {len(said)} notes, in {end - gathered:.2f} s")


if __name__ == "__main__":
    main(10_000)
