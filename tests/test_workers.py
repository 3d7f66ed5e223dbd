"""Does a search's driver get its runs trained by jobs, whatever SLURM answers? Its commands are played by scripts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from results.record import study_folder
from studies import workers
from studies.cluster import Cluster
from studies.drive import Tally, tune
from studies.jobs import arrays, cancel
from studies.snapshot import snapshot
from studies.train import Place
from studies.workers import Workers, capacity, detached, foreseen
from tests.test_slurm import site as site
from tests.test_slurm import start
from tests.test_tuning import STUDY, call, listed, study
from tests.watchers import Silent

FACTS = Cluster(cpus=2)


def place(folder: Path) -> Place:
    return Place(folder / "runs", folder / "data")


def drive(folder: Path, slots: int | None = None) -> Tally:
    executor = Workers(STUDY, "s", FACTS, place(folder), slots)
    try:
        return tune(STUDY, "s", str(folder / "s.py"), folder / "runs", executor, Silent())[0]
    finally:
        executor.close()


def test_what_a_search_would_do(tmp_path: Path) -> None:
    lines = foreseen(study(trials=9), "s", FACTS, place(tmp_path), None)
    assert lines[0] == "18 trials x 1 seed: 0 over, 18 to go"
    assert lines[1] == "at most 6 runs at a time in 3 jobs of 2 slots"  # a quarter of each arm's
    call(tmp_path)
    assert foreseen(STUDY, "s", FACTS, place(tmp_path), 1)[0] == "6 trials x 1 seed: 6 over, 0 to go"
    assert capacity(study(trials=400, tuning_seeds=(8, 9)), Cluster(parallel=5), 3) == 15
    assert capacity(study(trials=400, tuning_seeds=(8, 9)), Cluster(), 3) == 400
    with pytest.raises(ValueError, match="declares no tuning"):
        foreseen(study(tuning=None), "s", FACTS, place(tmp_path), None)


def test_a_worker_trains_all_that_the_driver_asks_for(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ASK_SECONDS", 0.2)

    def play() -> None:
        """The jobs that are submitted, one after another."""
        for number in range(10):
            until = time.monotonic() + 60
            while len(found := arrays(tmp_path / "runs", "s")) <= number or not found[number].job_id:
                if over.wait(0.02) or time.monotonic() > until:
                    return
            queue = site / "queue"
            queue.write_text(f"s.{found[number].key}|{found[number].job_id}|N/A|RUNNING|None|n1|9:00\n")
            said.append(start(site, found[number], 0).communicate(timeout=120)[0])
            queue.write_text("")

    over, said = threading.Event(), list[str]()
    jobs = threading.Thread(target=play)
    jobs.start()
    try:
        tally = drive(tmp_path)
    finally:
        over.set()
        jobs.join(120)
    assert tally.done == tally.cells == 6 and not tally.fatal, said
    found = listed(tmp_path)
    assert Counter(trial["status"] for trial in found.history) == {"done": 6}
    assert [array.role for array in arrays(tmp_path / "runs", "s")] == ["worker"]
    assert said[0].count(" done") == 6 and not list((study_folder(tmp_path / "runs", "s") / "offered").glob("*/*.json"))


def test_a_refusal_ends_the_search_and_nothing_is_lost(site: Path, tmp_path: Path) -> None:
    (site / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    tally = drive(tmp_path)
    assert tally.fatal.startswith("SLURM refused: ") and "invalid account" in tally.fatal and tally.done == 0
    found, submitted = call(tmp_path)  # on this machine then
    assert Counter(trial["status"] for trial in found.history) == {"done": 6} and len(submitted) == 6


def test_workers_that_end_at_once_end_the_search(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ASK_SECONDS", 0.05)
    tally = drive(tmp_path)  # no submitted job is ever in the queue
    assert "4 jobs have ended before any of their runs had; the last one said: nothing" in tally.fatal
    assert len(arrays(tmp_path / "runs", "s")) == workers.BROKEN


def test_cancelling_ends_the_driver(site: Path, tmp_path: Path) -> None:
    def later() -> None:
        until = time.monotonic() + 60
        while not arrays(tmp_path / "runs", "s") and time.monotonic() < until:
            time.sleep(0.02)
        cancel(tmp_path / "runs", "s")

    thread = threading.Thread(target=later)
    thread.start()
    tally = drive(tmp_path)
    thread.join()
    assert not tally.fatal and tally.done == 0 and {t["status"] for t in listed(tmp_path).history} == {"running"}


@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("cuda", 1, "--device cuda needs GPUs, and jobs ask for none"),
        ("cpu", 3, "--threads 3 is more than a job has CPUs"),
    ],
)
def test_a_search_that_does_not_fit_into_jobs_is_refused(
    device: str, threads: int, message: str, site: Path, tmp_path: Path
) -> None:
    at = Place(tmp_path / "runs", tmp_path / "data", device, threads)
    for refused in (
        lambda: foreseen(STUDY, "s", FACTS, at, None),
        lambda: Workers(STUDY, "s", FACTS, at, None),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "runs").exists()
    assert foreseen(STUDY, "s", FACTS, place(tmp_path), 3)[-1] == "3 slots share the 2 CPUs of a job (cpus)"


def test_a_driver_job_without_a_cluster_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no SLURM on this machine \(sbatch is not on the PATH\)"):
        detached(STUDY, "s", "s.py", tmp_path / "s.py", FACTS, place(tmp_path), None, False)
    assert not (tmp_path / "runs").exists()


def test_a_second_driver_job_is_refused(site: Path, tmp_path: Path) -> None:
    facts = Cluster(cpus=8, gpus=1, memory=64, sbatch={"gres": "gpu:1"}, driver={"partition": "cpu"})
    asked = (STUDY, "s", "s.py", tmp_path / "s.py", facts, place(tmp_path), None, False)
    job = detached(*asked)
    (array,) = arrays(tmp_path / "runs", "s")
    script = (site / f"script-{job}.sh").read_text()
    assert array.role == "driver" and array.code == str(snapshot(tmp_path / "runs"))
    assert "--partition=cpu" in script and "--cpus-per-task=1" in script and "--mem=4096MB" in script
    assert "gres" not in script and "gpus" not in script
    (site / "queue").write_text(f"s.{array.key}|{job}|N/A|PENDING|Priority||1:00\n")
    with pytest.raises(ValueError, match=rf"job {job} drives the search of s already \(pending\)"):
        detached(*asked)
