"""What does a search cost beside its runs, and does it lose any? Targets: under 50 ms a trial; none lost, none twice.

    python -m benchmarks.tuning

First trials whose runs cost nothing: an executor that writes a record and a curve of 10 evaluations at once takes
their place. All that is left is the driver: asking, reporting, telling, the journal and trials.json. It is timed beside
the records and curves alone, over 200 trials of one arm, and over the last 500 of 5 000 of 25 arms. (TPE looks at all
former trials of an arm: of thousands in one arm it is what takes longest.)

Then 200 trials of a linear model in a pool of 4 processes, one of which is killed now and then; in the end every trial
must be there once.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import torch

from baselines import LinearConfig
from results.record import RunRecord, TuningRecord, read_record, run_folder, write_record
from studies.checkpoint import write_curve
from studies.drive import Tally, tune
from studies.executors import Ended, Executor, Local
from studies.provenance import commit, device_name
from studies.spec import Budget, RunSpec, canonical
from studies.study import Cell, Study
from studies.tasks.digits import CuedDigits
from studies.train import Place
from studies.tuning import Tuning

TARGET = 0.050
TRIALS, WORKERS, KILLS = 200, 4, 6
ARMS, LAST = 25, 500
SPEC = RunSpec(
    model=LinearConfig(),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=300, evaluations=10),
)


def study(arms: int, trials: int = TRIALS) -> Study:
    batches = {"linear" if batch == 16 else f"batch {batch}": batch for batch in range(16, 16 + arms)}
    return Study(
        question="What does a search cost?",
        reference="linear",
        arms={label: RunSpec(**{**vars(SPEC), "batch": batch}) for label, batch in batches.items()},
        tuning=Tuning(
            space={"optim.lr": (1e-4, 1e-1, "log"), "optim.weight_decay": (1e-3, 1.0, "log")},
            trials=trials // arms,
            pruner="median",
        ),
    )


class Silent:
    """A watcher that notes when each trial ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def tick(self, tally: Tally) -> None:
        pass

    def finished(self, tally: Tally, cell: Cell, record: RunRecord | None, ended: Ended) -> None:
        self.ended.append(time.perf_counter())


class Instant(Executor):
    """Ends every run as it is submitted, with a curve that depends on its learning rate; no training."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.over: list[Ended] = []
        self.seconds = 0.0

    def free(self) -> int:
        return 1 - len(self.over)

    def submit(self, spec: RunSpec) -> None:
        began = time.perf_counter()
        accuracy = 1 / (1 + abs(spec.optim.lr - 3e-3) * 100)
        rows = [{"step": 30.0 * i, "valid_accuracy": accuracy * i / 10} for i in range(1, 11)]
        run_folder(self.runs, spec.run_id).mkdir(parents=True)
        write_curve(run_folder(self.runs, spec.run_id) / "curve.csv", rows)
        metrics = {"train": {"loss": 1.0}, "valid": {"accuracy": accuracy, "loss": 1 - accuracy}}
        record = RunRecord(run_id=spec.run_id, spec=canonical(spec), status="done", metrics=metrics, steps=300)
        write_record(self.runs, record)
        self.over.append(Ended(spec.run_id))
        self.seconds += time.perf_counter() - began

    def ended(self, seconds: float) -> list[Ended]:
        over, self.over = self.over, []
        return over

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def overhead(runs: Path, arms: int, last: int) -> None:
    trials = TRIALS * arms
    executor, watcher = Instant(runs), Silent()
    began = time.perf_counter()
    tally, found = tune(study(arms, trials), "overhead", "benchmark", runs, executor, watcher)
    if (tally.done, found.left) != (trials, 0):
        raise RuntimeError(f"{tally.done} of {trials} trials are done")
    each = [later - earlier for earlier, later in zip([began, *watcher.ended], watcher.ended, strict=False)][-last:]
    low, _, high = quantiles(each, n=4)
    theirs = executor.seconds / trials
    ours, middle, low, high = ((t - theirs) * 1e3 for t in (sum(each) / last, median(each), low, high))
    print(
        f"{trials:,} trials of {arms} arms, of no cost, the last {last}: {ours:.1f} ms a trial beside the "
        f"{theirs * 1e3:.1f} ms of its record and curve;"
    )
    print(f"median {middle:.1f} ms, middle half {low:.1f} to {high:.1f} ms (target: less than {TARGET * 1e3:.0f} ms)")


def killed(runs: Path) -> None:
    pool, over = Local([Place(runs, runs)] * WORKERS), threading.Event()
    victims: list[str] = []
    chance = random.Random(0)

    def kill() -> None:
        while len(victims) < KILLS and not over.wait(chance.uniform(1, 3)):
            busy = [(s.run_id, s.process) for s in pool.slots if s.run_id is not None and s.process is not None]
            training = [(i, p) for i, p in busy if (run_folder(runs, i) / "attempts.json").exists() and p.pid]
            if training:
                run_id, process = chance.choice(training)
                os.kill(process.pid, signal.SIGKILL)
                victims.append(run_id)

    killer = threading.Thread(target=kill)
    killer.start()
    began = time.perf_counter()
    try:
        tally, found = tune(study(4), "killed", "benchmark", runs, pool, Silent())
    finally:
        over.set()
        pool.close()
        killer.join()
    seconds = time.perf_counter() - began
    print(
        f"{TRIALS} trials x {WORKERS} workers, {len(victims)} of them killed: {seconds:.0f} s; {verdict(runs, found)}"
    )
    print(f"{tally.done} runs ended well, {tally.failed} did not")


def verdict(runs: Path, found: TuningRecord) -> str:
    """How many trials are lost and how many were there twice."""
    ids = Counter(run_id for trial in found.history for run_id in trial["run_ids"])
    records = [read_record(runs, run_id) for run_id in ids]
    ended = sum(record is not None and record.status in ("done", "pruned") for record in records)
    again = sum(record is not None and len(record.attempts) > 1 for record in records)
    pruned = sum(record is not None and record.status == "pruned" for record in records)
    twice = sum(count - 1 for count in ids.values())
    return f"lost {TRIALS - ended}, twice {twice}, begun again after a kill {again}, pruned {pruned} (target: 0, 0)"


def main() -> None:
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, commit {commit()['commit']}")
    for arms, last in ((1, TRIALS), (ARMS, LAST)):
        with tempfile.TemporaryDirectory() as folder:
            overhead(Path(folder), arms, last)
    with tempfile.TemporaryDirectory() as folder:
        killed(Path(folder))


if __name__ == "__main__":
    main()
