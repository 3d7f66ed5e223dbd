"""Do two benches agree? Target: within 10 % on every model's time over the reference's.

    python -m benchmarks.bench_repeats

Runs `bench` twice, one after the other, on a few models at two lengths, and compares the ratios to LDN at the same
length and pass. Only ratios inside one run are compared, each the median over turns of two blocks timed one shortly
after the other: on a shared machine, whose speed changes within a run, nothing else repeats.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from studies.bench import bench, settings
from studies.provenance import commit, device_name
from studies.subjects import Subject, preset

TARGET = 0.10
REFERENCE = "LDN"
COMPARED = (REFERENCE, "LDN, adaptive", "paper-sequence", "Transformer", "BiLSTM")
LENGTHS = (1024, 4096)
Case = tuple[str, int, str]


def ratios(subjects: Sequence[Subject], seconds: float) -> dict[Case, float]:
    """Time over the reference's for every other model, length and pass, from one run of `bench`."""
    # one thread: on a shared machine a second one is not there for all turns alike
    how = settings("auto", 1, False, seconds, 60)
    with tempfile.TemporaryDirectory() as folder:
        records = bench(subjects, how, Path(folder))
    lacking = [f"{record.label}: {record.reason}" for record in records if record.status != "done"]
    if lacking:
        raise RuntimeError(f"not everything was measured; {'; '.join(lacking)}")
    blocks = {(record.label, record.tokens, record.work): record.seconds for record in records}
    return {
        (label, tokens, work): median(
            theirs / ours for theirs, ours in zip(seconds, blocks[REFERENCE, tokens, work], strict=False)
        )
        for (label, tokens, work), seconds in blocks.items()
        if label != REFERENCE
    }


def main(seconds: float) -> None:
    subjects = [subject for subject in preset(LENGTHS, batch=1) if subject.label in COMPARED]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"two runs of `bench`, time over {REFERENCE}'s; target: within {TARGET:.0%} of each other")
    print(
        f"{device_name(device)}, torch {torch.__version__}, commit {commit()['commit']}, load {os.getloadavg()[0]:.2f}"
    )
    first, second = ratios(subjects, seconds), ratios(subjects, seconds)
    worst = 0.0
    for case, one in first.items():
        label, tokens, work = case
        apart = abs(second[case] / one - 1)
        worst = max(worst, apart)
        print(f"{label:16} {tokens:>6,} {work:17} {one:7.2f}x {second[case]:7.2f}x   {apart:5.1%}")
    print(f"largest disagreement: {worst:.1%}, load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main(seconds=4.0)
