"""Does status say of every run where it is, from its files and from what SLURM answers?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from results.files import read_json, write_json
from results.record import Manifest as Declared
from results.record import (
    RunRecord,
    TuningRecord,
    content_id,
    run_folder,
    study_folder,
    write_manifest,
    write_record,
    write_tuning,
)
from studies import jobs, search_status, status
from studies.drive import sole_driver
from studies.jobs import Array, InQueue
from studies.status import logs, look, show_status

REPORT = {"step": 40, "done": 0.4, "loss": 0.25, "accuracy": 0.5, "tokens_per_second": 9.0, "seconds_left": 60.0}


def declared(runs: Path, count: int) -> list[str]:
    """A study `s` of one arm and so many seeds; the ids of its runs."""
    ids = [content_id({"seed": seed}) for seed in range(count)]
    cells = [{"arm": "ldn", "seed": seed, "run_id": run_id, "factors": {}} for seed, run_id in enumerate(ids)]
    arm = {"label": "ldn", "reference": "ldn", "changes": {}, "note": ""}
    about = {"source": "s.py", "question": "?", "metric": "test.accuracy", "direction": "max"}
    write_manifest(runs, Declared(study="s", reference="ldn", arms=[arm], cells=cells, **about))  # type: ignore[arg-type]
    return ids


def submitted(runs: Path, jobs: list[list[str]], key: str = "abcd0123", job_id: str = "12") -> Path:
    """An array of these jobs; where their logs lie."""
    folder = study_folder(runs, "s") / "slurm" / key
    write_json(folder / "array.json", vars(Array(key, jobs, time.time(), "code", 2, job_id)))
    return folder


def answers(
    monkeypatch: pytest.MonkeyPatch,
    queue: dict[tuple[str, int], InQueue],
    ends: dict[str, str],
    restarts: dict[str, int] | None = None,
) -> None:
    monkeypatch.setattr(status, "in_queue", lambda name: queue)
    monkeypatch.setattr(status, "ended_jobs", lambda ids: {i: ends[i] for i in ids if i in ends})
    monkeypatch.setattr(status, "restarted", lambda: restarts or {})


def printed(runs: Path) -> str:
    console = Console(width=200, record=True, quiet=False, force_terminal=False)
    with console.capture() as said:
        show_status(console, runs, "s")
    return said.get()


def test_every_run_of_a_submitted_study_is_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = declared(tmp_path, 10)
    folder = submitted(tmp_path, [ids[:4], ids[4:6], ids[6:7], ids[7:8]])
    write_record(tmp_path, RunRecord(run_id=ids[0], spec={"seed": 0}, status="done"))
    write_record(tmp_path, RunRecord(run_id=ids[1], spec={"seed": 1}, status="failed", reason="KeyError: 'x'"))
    write_json(run_folder(tmp_path, ids[2]) / "progress.json", REPORT | {"time": time.time()})
    write_json(run_folder(tmp_path, ids[8]) / "progress.json", REPORT | {"time": 0.0})
    (folder / "12_2_0_log.out").write_text("one\ntwo\nthree\nMemoryError: out of it\n")
    queue = {
        ("abcd0123", 0): InQueue("12_0", "RUNNING", "None", "n2", "3:00:00"),
        ("abcd0123", 1): InQueue("12_1", "PENDING", "Priority", "", "4:00:00"),
    }
    answers(monkeypatch, queue, {"12_2": "NODE_FAIL", "12_3": "CANCELLED"})
    states, note = look(tmp_path, "s")
    assert note == "" and [state.status for state in states] == [
        "done", "failed", "running", "waiting", "pending", "pending", "lost", "cancelled", "stopped", "missing",
    ]  # fmt: skip
    said = printed(tmp_path)
    assert said.splitlines()[1].split() == ["ldn", "1", "1", "3", "2", "1", "1", "1"]
    assert "ldn, seed 1: failed: KeyError: 'x'" in said
    assert (
        "ldn, seed 2: running, step 40, loss 0.250, valid 50.0%, 9 tokens/s, 60 s left, on n2, job 12_0 (3:00:00"
        in said
    )
    assert "1 waiting: for a slot of job 12_0 on n2" in said and "2 pending: Priority" in said
    assert "ldn, seed 6: lost: its job 12_2 NODE_FAIL\n    two\n    three\n    MemoryError: out of it" in said
    assert "1 cancelled: `run` submits them again" in said and "stopped at step 40 (40%)" in said


def test_restarts_and_jobs_that_slurm_holds_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = declared(tmp_path, 6)
    submitted(tmp_path, [ids[:2], ids[2:4], ids[4:5], ids[5:]])
    write_json(run_folder(tmp_path, ids[2]) / "progress.json", REPORT | {"time": time.time()})
    queue = {
        ("abcd0123", 0): InQueue("12_0", "PENDING", "BeginTime", "", "4:00:00"),
        ("abcd0123", 1): InQueue("12_1", "RUNNING", "None", "n2", "3:00:00"),
        ("abcd0123", 2): InQueue("12_2", "PENDING", "JobHeldAdmin", "", "4:00:00"),
        ("abcd0123", 3): InQueue("12_3", "PENDING", "Priority", "", "4:00:00"),
        ("ffff0123", 0): InQueue("17", "PENDING", "JobHeldUser", "", "4:00:00"),  # of the study's search, say
    }
    answers(monkeypatch, queue, {}, {"12_0": 4, "12_1": 1})
    said = printed(tmp_path)
    assert f"2 pending: BeginTime; the job was restarted 4 times, `python -m studies logs {ids[0]}` says why\n" in said
    assert re.search(rf"on n2, job 12_1 .*; the job was restarted 1 time, `.* logs {ids[2]}` says why {ids[2]}\n", said)
    assert re.search(rf"1 waiting: for a slot of job 12_1 .*restarted 1 time, `.* logs {ids[3]}` says why\n", said)
    assert "1 pending: Priority\n" in said and "1 pending: JobHeldAdmin\n" in said
    assert said.endswith(
        "1 job (12_2) will not begin by itself, JobHeldAdmin: `scontrol release JOB`, "
        "or `python -m studies cancel NAME` and `python -m studies run NAME --on slurm`\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: StepId=3.0 exceeded memory limit (300000000 > 104857600), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks have been OOM Killed.",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ],
)
def test_a_job_that_wanted_memory_is_said_to_have(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = declared(tmp_path, 1)
    folder = submitted(tmp_path, [ids])
    (folder / "12_0_log.out").write_text("\n".join([line, "srun: one", "srun: two", "srun: three"]))
    answers(monkeypatch, {}, {"12": "FAILED"})
    said = printed(tmp_path)
    assert "ldn, seed 0: lost: its job 12 FAILED (out of memory: memory in slurm.toml)\n    srun: one\n" in said
    answers(monkeypatch, {}, {"12": "OUT_OF_MEMORY"})
    assert "lost: its job 12 OUT_OF_MEMORY\n" in printed(tmp_path)


def test_a_run_given_to_a_second_job_is_that_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = declared(tmp_path, 1)
    submitted(tmp_path, [ids])
    submitted(tmp_path, [ids], "ffff0123", "13")
    answers(monkeypatch, {("ffff0123", 0): InQueue("13", "PENDING", "Resources", "", "1:00")}, {"12": "FAILED"})
    assert [(state.status, state.text) for state in look(tmp_path, "s")[0]] == [("pending", "Resources")]


def test_where_slurm_does_not_answer_the_files_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = declared(tmp_path, 2)
    submitted(tmp_path, [ids])
    write_record(tmp_path, RunRecord(run_id=ids[0], spec={"seed": 0}, status="done"))
    monkeypatch.setenv("PATH", str(tmp_path))
    states, note = look(tmp_path, "s")
    assert [state.status for state in states] == ["done", "missing"]
    assert note.startswith("the cluster could not be asked, so what is pending is not known: there is no SLURM")


def test_a_study_that_no_cluster_has_seen_asks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared(tmp_path, 1)
    monkeypatch.setattr(jobs, "ask", lambda *command: pytest.fail(f"asked {command}"))
    assert printed(tmp_path).splitlines()[1].split() == ["ldn", "1"]


def test_what_squeue_says_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["s.abcd0123|12|3|RUNNING|None|n1|1-00:00:00", "s.ffff0123|14|N/A|PENDING|Priority||4:00:00"]
    monkeypatch.setattr(jobs, "ask", lambda *command: "\n".join([*lines, "s2.eeee0123|15|1|PENDING|None||1:00"]))
    assert jobs.in_queue("s") == {
        ("abcd0123", 3): InQueue("12_3", "RUNNING", "None", "n1", "1-00:00:00"),
        ("ffff0123", 0): InQueue("14", "PENDING", "Priority", "", "4:00:00"),
    }
    counts = [
        "12                  3                   0         ",
        "14                  N/A                 7         ",
    ]
    monkeypatch.setattr(jobs, "ask", lambda *command: "\n".join(counts))
    assert jobs.restarted() == {"12_3": 0, "14": 7}
    monkeypatch.setattr(jobs, "ask", lambda *command: "12_[1-9%2]|CANCELLED by 0\n12_0|NODE_FAIL\n")
    assert jobs.ended_jobs(["12_0", "12_1"]) == {"12": "CANCELLED", "12_0": "NODE_FAIL"}


def test_logs_are_those_of_the_jobs_a_run_was_given_to(tmp_path: Path) -> None:
    ids = [content_id({"seed": seed}) for seed in (0, 7)]  # both begin with "b"
    first = submitted(tmp_path, [ids[:1], ids[1:]])
    second = submitted(tmp_path, [ids[:1]], "ffff0123", "13")
    (second / "13_0_log.out").write_text("begins\nends\n")
    failed = RunRecord(run_id=ids[0], spec={"seed": 0}, status="failed", traceback="Traceback:\n  here")
    write_record(tmp_path, failed)
    paths, lines = logs(tmp_path, ids[0][:6], 1)
    assert paths == [first / "12_0_0_log.out", second / "13_0_log.out"]
    assert lines == ["ends", "Traceback:", "  here"]
    for prefix, message in (("b", "2 runs that begin with 'b'"), ("9", "no run '9'")):
        with pytest.raises(ValueError, match=message):
            logs(tmp_path, prefix, 1)


def test_watching_ends_with_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_id,) = declared(tmp_path, 1)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            write_record(tmp_path, RunRecord(run_id=run_id, spec={"seed": 0}, status="done"))

    monkeypatch.setattr(status.time, "sleep", sleep)
    show_status(Console(force_terminal=False), tmp_path, "s", every=3)
    assert looks == [3, 3]


def test_a_search_is_shown_with_its_driver_and_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = submitted(tmp_path, [[], []], key="abcd0123")
    write_json(folder / "array.json", (read_json(folder / "array.json", "") or {}) | {"role": "worker"})
    ids = [f"{i:016x}" for i in range(4)]
    history = [
        {"arm": "ldn", "trial": i, "values": {}, "run_ids": [run_id], "status": status, "reason": why, "metrics": {}}
        for i, (run_id, status, why) in enumerate(
            zip(ids, ("done", "failed", "running", "running"), ("", "KeyError: x", "", ""), strict=True)
        )
    ]
    found = {"counts": {}, "distinct": 0, "metrics": {"valid.accuracy": 0.75}}
    arms = {"ldn": {"base": "b", "left_out": [], "planned": 9, **found}}
    write_tuning(
        study_folder(tmp_path, "s") / "trials.json",
        TuningRecord(
            study="s", source="s.py", space={}, trials=9, seeds=[1], objectives=["valid.accuracy"], pruner="none",
            arms=arms, commit="c", dirty=False, history=history,
        ),
    )  # fmt: skip
    write_json(run_folder(tmp_path, ids[2]) / "progress.json", REPORT | {"time": time.time()})
    queue = {
        ("abcd0123", 0): InQueue("12_0", "RUNNING", "None", "n2", "3:00:00"),
        ("abcd0123", 1): InQueue("12_1", "PENDING", "JobHeldUser", "", "4:00:00"),
    }
    monkeypatch.setattr(search_status, "in_queue", lambda name: queue)
    monkeypatch.setattr(search_status, "restarted", lambda: {"12_0": 2, "12_1": 0})
    with sole_driver(study_folder(tmp_path, "s"), "s"):
        said = printed(tmp_path)
    assert re.search(r"ldn +1 +2 +5 +1 +valid.accuracy 0.75", said), said
    assert "ldn, trial 1: failed: KeyError: x 0000000000000001" in said
    assert "ldn, trial 2: step 40, loss 0.250" in said and "ldn, trial 3: waiting for a free slot" in said
    assert f"driven by process {os.getpid()} on " in said
    assert "1 worker job running" in said and "1 worker job pending (JobHeldUser)" in said
    assert f"job 12_0 was restarted 2 times, {folder / '12_0_0_log.out'} says why" in said
    assert "1 job (12_1) will not begin by itself, JobHeldUser: `scontrol release JOB`" in said
    assert "7 trials to go, and nobody drives: `tune` goes on" in printed(tmp_path)


def test_looking_does_not_wait_for_torch() -> None:
    code = "import sys; import studies.status, studies.search_status; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False"]
