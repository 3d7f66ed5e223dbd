"""Does the user of a real SLURM learn what is wrong, and lose nothing, when a disk is full or a job cannot start?"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from results.record import read_record, run_folder
from studies import slurm
from studies.cluster import Cluster
from studies.jobs import arrays, cancel, in_queue, log_of, restarted
from studies.slurm import launch
from studies.train import Place
from tests.slurm.machine import NODES, Machine
from tests.slurm.test_launch import HOUR, LONG, finished, said, submitted
from tests.slurm.test_search import studies
from tests.test_drive import STUDY, call, ids, outcomes


def status(folder: Path) -> str:
    (folder / "s.py").touch()
    return studies(folder, "status", str(folder / "s.py")).communicate(timeout=60)[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_a_job_and_nothing_is_lost(machine: Machine, disk: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    call(whole, LONG)
    submitted(disk, LONG, HOUR)
    folders = [run_folder(disk / "runs", run_id) for run_id in ids(LONG)]
    machine.wait_until(lambda: all((f / "progress.json").exists() for f in folders), "both runs train", timeout=120)
    ballast = disk / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], capture_output=True)
    machine.wait_until(lambda: not in_queue("s"), "the job has ended", timeout=120)
    assert not finished(disk, LONG)
    ballast.unlink()
    told = status(disk)
    assert "lost: its job" in told and "No space left on device" in told, told
    launch(LONG, "s", "s.py", HOUR, Place(disk / "runs", disk / "data", "cpu"))
    machine.wait_until(lambda: finished(disk, LONG), "both runs have ended", timeout=120)
    assert outcomes(disk, LONG) == outcomes(whole, LONG), said(disk)


def test_a_damaged_record_is_left_to_its_owner_and_the_others_run(machine: Machine, tmp_path: Path) -> None:
    first, *others = ids(STUDY)
    damaged = run_folder(tmp_path / "runs", first) / "record.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"run_id": "')
    facts = Cluster(time="1:00:00", runs_per_job=6, cpus=2, memory=3)
    asked = launch(STUDY, "s", "s.py", facts, Place(tmp_path / "runs", tmp_path / "data", "cpu"))
    assert (asked.failed, len(asked.runs)) == (1, 5) and re.search(r"record.json is not valid JSON", asked.notes[0])
    machine.wait_until(lambda: all(read_record(tmp_path / "runs", i) for i in others), "the others end", timeout=120)
    assert damaged.read_text() == '{"run_id": "'
    assert re.search(r"corrupt: .*record.json is not valid JSON", status(tmp_path))
    damaged.unlink()
    launch(STUDY, "s", "s.py", facts, Place(tmp_path / "runs", tmp_path / "data", "cpu"))
    machine.wait_until(lambda: finished(tmp_path, STUDY), "the last run ends", timeout=120)


def test_a_job_that_does_not_start_says_why(machine: Machine, tmp_path: Path) -> None:
    held = Cluster(time="1:00:00", runs_per_job=6, cpus=2, memory=3, sbatch={"hold": True})
    (array,) = submitted(tmp_path, STUDY, held)
    told = status(tmp_path)
    assert "6 pending: JobHeldUser" in told, told
    assert f"1 job ({array.job_id}) will not begin by itself, JobHeldUser: `scontrol release JOB`, or" in told, told
    assert not log_of(tmp_path / "runs", "s", array, 0).exists()
    assert cancel(tmp_path / "runs", "s") == 1
    machine.wait_until(lambda: not in_queue("s"), "the job is gone")
    machine.wait_until(lambda: "6 cancelled" in status(tmp_path), "it is accounted as cancelled", timeout=60, every=2)
    with pytest.raises(ValueError, match=r"^SLURM refused: (?!sbatch).*(node configuration|Memory|memory)"):
        submitted(tmp_path, STUDY, Cluster(memory=10**6))
    assert len(arrays(tmp_path / "runs", "s")) == 1
    submitted(tmp_path, STUDY, Cluster(time="1:00:00", runs_per_job=6, cpus=2, memory=3))
    machine.wait_until(lambda: finished(tmp_path, STUDY), "all runs have ended", timeout=120)


def test_a_job_whose_launch_failed_is_named_and_goes_on_when_released(machine: Machine, tmp_path: Path) -> None:
    facts = Cluster(time="1:00:00", runs_per_job=6, cpus=2, memory=3)
    with machine.configured(extra=("Prolog=/bin/false",)):  # as on a node that is not in order, which SLURM drains
        (array,) = submitted(tmp_path, STUDY, facts)
        machine.wait_until(lambda: any(job.held for job in in_queue("s").values()), "the job is held", timeout=60)
    sentence = f"1 job ({array.job_id}) will not begin by itself, launch failed requeued held: `scontrol release JOB`"
    told = status(tmp_path)
    assert sentence in told and "6 pending: launch failed requeued held" in told, told
    again = launch(STUDY, "s", "s.py", facts, Place(tmp_path / "runs", tmp_path / "data", "cpu"))
    assert (again.queued, again.jobs) == (6, []) and again.notes[0].startswith(sentence)
    for node in NODES:
        if "DRAIN" in machine.node_state(node):
            machine.call("scontrol", "update", f"nodename={node}", "state=resume")
    machine.call("scontrol", "release", array.job_id)
    machine.wait_until(lambda: finished(tmp_path, STUDY), "all runs have ended", timeout=120)


def test_a_job_of_too_little_memory_is_not_queued_again_for_ever(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "QUICK_DEATHS", 3)
    (array,) = submitted(tmp_path, LONG, Cluster(time="1:00:00", runs_per_job=2, cpus=2, memory=0.1))
    told: list[str] = []

    def ended() -> bool:
        """Whether it has; meanwhile its restarts are told."""
        if not told and restarted().get(array.job_id):
            told.append(status(tmp_path))
        return not in_queue("s")

    machine.wait_until(ended, "the job has ended", timeout=120)
    assert re.search(rf"restarted [12] times?, `python -m studies logs {ids(LONG)[0]}` says why", told[0]), told[0]
    machine.wait_until(lambda: machine.state(array.job_id) == "FAILED", "it is accounted as failed")
    lost = status(tmp_path)
    assert lost.count(f"lost: its job {array.job_id} FAILED (out of memory: memory in slurm.toml)") == 2, lost
    assert "not queued again: it was killed (exit code 137) within 120 s of its start 3 times in a row" in lost, lost
    assert said(tmp_path).count("Starting with JobEnvironment") <= 3


def test_a_job_without_the_gpu_that_it_asked_for_says_so(machine: Machine, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA can be used here")
    facts = Cluster(time="1:00:00", runs_per_job=2, gpus=1, memory=3)
    launch(LONG, "s", "s.py", facts, Place(tmp_path / "runs", tmp_path / "data", "auto"))
    machine.wait_until(lambda: not in_queue("s"), "the job has ended", timeout=60)
    told = status(tmp_path)
    assert told.count("the job is to train on a GPU, but CUDA cannot be used on ") == 2 and "FAILED" in told, told
