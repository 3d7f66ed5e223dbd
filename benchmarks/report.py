"""How long does a report of 10 000 runs take, files read, tables and figures written? `python -m benchmarks.report`

The study has what training leaves on disk: records, curves of 20 evaluations, predictions of 4 000 test examples.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from results.entries import Attempt, CellEntry, ForwardCost
from results.files import file_checksum
from results.gather import gather
from results.record import Manifest, RunRecord, content_id, run_folder, write_manifest, write_record
from results.report import write_report
from results.summary import summarise

SEEDS = 20


def write_study(runs: Path, size: int) -> None:
    """Arms of 20 seeds each, in nine of ten cells done; with the fields that training records."""
    random = np.random.default_rng(0)
    labels = [f"width {8 * (i + 1)}" for i in range(size // SEEDS)]
    cells: list[CellEntry] = []
    for i, label in enumerate(labels):
        for seed in range(SEEDS):
            made = record(8 * (i + 1), seed, random)
            cells.append({"arm": label, "seed": seed, "run_id": made.run_id, "factors": {"model.width": 8 * (i + 1)}})
            write_curve_and_predictions(runs, made, random)
            write_record(runs, made)
    write_manifest(
        runs,
        Manifest(
            study="many", source="", question="How much?", reference=labels[0], metric="test.accuracy", direction="max",
            arms=[{"label": label, "reference": labels[0], "changes": {}, "note": ""} for label in labels], cells=cells,
        ),
    )  # fmt: skip


def write_curve_and_predictions(runs: Path, made: RunRecord, random: np.random.Generator) -> None:
    folder = run_folder(runs, made.run_id)
    folder.mkdir()
    rows = np.column_stack([np.arange(30, 601, 30), random.random((20, 4))])
    lines = [",".join(f"{value:.17g}" for value in row) for row in rows]
    (folder / "curve.csv").write_text(
        "\n".join(["step,lr,train_loss,valid_loss,valid_accuracy", *lines]) + "\n", encoding="utf-8"
    )
    predicted, label = random.integers(0, 10, (2, 4000))
    np.savez_compressed(folder / "predictions.npz", predicted=predicted, label=label, run_id=made.run_id)
    if made.metrics:
        made.metrics["test"]["accuracy"] = float((predicted == label).mean())
    made.files = {name: file_checksum(folder / name) for name in ("curve.csv", "predictions.npz")}


def record(width: int, seed: int, random: np.random.Generator) -> RunRecord:
    spec = {
        "schema": 1,
        "model": {"name": "ldn", "width": width, "depth": 6, "steps": 4, "kernel": "adaptive", "heads": 4},
        "task": {"name": "cued_digits", "length": 512},
        "optim": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.05, "warmup": 100},
        "batch": 64,
        "budget": {"steps": 600},
        "seed": seed,
    }
    attempt: Attempt = {
        "node": "node01", "device": "NVIDIA H200", "threads": 8, "commit": "0" * 12, "dirty": False, "seconds": 120.0,
        "started": 1.7e9, "first_step": 0, "python": "3.11.2", "torch": "2.13.0",
    }  # fmt: skip
    metrics = {split: dict(zip(("accuracy", "loss"), random.random(2), strict=True)) for split in ("valid", "test")}
    cost: ForwardCost = {
        "params": 50_000 + width,
        "gmac": 0.001,
        "elementwise_g": 1e-5,
        "by_operation": {"linear": 8e-4, "diffuse": 1e-4, "attention": 1e-4},
    }
    failed = random.random() < 0.1
    return RunRecord(
        run_id=content_id(spec), spec=spec, status="diverged" if failed else "done", metrics={} if failed else metrics,
        reason="loss is nan at step 40" if failed else "", cost=cost, steps=600, best_step=550,
        data={
            "fingerprint": "f" * 16, "floors": {"chance": 0.1, "most frequent class": 0.102}, "test_examples": 4000,
        },
        attempts=[attempt],
    )  # fmt: skip


def main(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        write_study(runs, size)
        start = time.perf_counter()
        frame = gather(runs, "many")
        gathered = time.perf_counter()
        summary = summarise(frame, "test.accuracy", "max")
        summarised = time.perf_counter()
        report = write_report(runs, "many", runs / "reports")
        end = time.perf_counter()
    print(f"{len(frame)} records of {frame.shape[1]} columns: gathered in {gathered - start:.2f} s")
    print(f"{len(summary)} arms summarised and tested in {summarised - gathered:.2f} s")
    print(f"the whole report, {len(report.files)} files, these two steps included, in {end - summarised:.2f} s")


if __name__ == "__main__":
    main(10_000)
