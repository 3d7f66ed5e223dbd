"""Does the launcher plan, pack and submit what it says? Without a SLURM: its commands are played by small scripts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from results.record import RunRecord, read_record, run_folder, study_folder, write_record
from results.sources import source_hash
from studies import packed, snapshot
from studies.cluster import Cluster, read_cluster
from studies.executors import Ended, Executor
from studies.jobs import Array, arrays, squeue
from studies.meter import measure
from studies.packed import FixedSupply, pack
from studies.plan import modelled, plan, plan_lines, split
from studies.provenance import run_sources, slurm_job
from studies.retrain import runs_to_retrain
from studies.slurm import launch
from studies.spec import RunSpec, canonical, with_field
from studies.train import Place
from tests.test_drive import LINEAR, ROOT, STUDY, call, ids, outcomes, study

# slurm.toml


def test_the_example_is_valid_and_names_every_key() -> None:
    example = ROOT / "slurm.example.toml"
    assert read_cluster(example).time == "4:00:00"
    text = example.read_text()
    for name in (field.name for field in dataclasses.fields(Cluster)):
        assert re.search(rf"^(# )?(\[{name}\]|{name} = )", text, re.MULTILINE), name
    everything = re.sub(r"^# (?=\[?\w+\]?( = |$|   ))", "", text, flags=re.MULTILINE)
    assert everything != text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partion = "gpu"', r"has no field 'partion'; known fields: partition, account, .*sbatch"),
        ("cpus = 0", r"Cluster.cpus must be at least 1, not 0"),
        ('time = "soon"', r"time must be H:MM:SS or D-H:MM:SS, like 4:00:00, not 'soon'"),
        ('time = "0:01:00"', r"time 0:01:00 is no longer than signal_delay, 90 s"),
        ("time = ", r"is not valid TOML"),
        ("setup = 'module load cuda'", r"Cluster.setup must be a tuple"),
    ],
)
def test_a_misfit_in_slurm_toml_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "slurm.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_cluster(tmp_path / "slurm.toml")
    assert str(refused.value).startswith(f"{tmp_path / 'slurm.toml'}") and "\n" not in str(refused.value)


def test_where_there_is_no_slurm_toml_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*slurm.toml.*: copy slurm.example.toml to"):
        read_cluster(tmp_path / "slurm.toml")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("4:00:00", 240), ("30", 30), ("30:00", 30), ("1-12", 36 * 60), ("2-00:30:00", 2910), ("0:02:01", 3)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: str, minutes: int) -> None:
    assert Cluster(time=time).minutes == minutes


@pytest.mark.parametrize(
    ("asked", "slots"), [({}, 1), ({"cpus": 8}, 4), ({"cpus": 8, "gpus": 2}, 2), ({"gpus": 1, "slots": 6}, 6)]
)
def test_slots_follow_from_what_a_job_has(asked: dict[str, Any], slots: int) -> None:
    assert Cluster(**asked).slots_for(threads=2) == slots


@pytest.mark.parametrize(
    ("asked", "device", "found"),
    [
        ({}, "auto", "cpu"),
        ({"gpus": 1}, "auto", "cuda"),
        ({"gpus": 1}, "cpu", "cpu"),
        ({"gpus": 2}, "cuda:1", "cuda:1"),
        ({"sbatch": {"gres": "gpu:2"}}, "auto", "cuda"),
        ({"sbatch": {"gpus-per-task": 1}}, "cuda", "cuda"),
    ],
)
def test_the_device_of_a_job_s_runs_follows_from_what_it_asks_for(
    asked: dict[str, Any], device: str, found: str
) -> None:
    assert Cluster(**asked).device_for(device) == found


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("device", "threads", "message"),
    [
        ("cuda", 1, "^--device cuda needs GPUs, and jobs ask for none: set gpus in slurm.toml$"),
        ("cuda:0", 1, "--device cuda:0 needs GPUs"),
        ("gpu", 1, "there is no device 'gpu'; known: auto, cpu, cuda, cuda:N"),
        ("cpu", 3, "^--threads 3 is more than a job has CPUs: it asks for 2, by cpus in slurm.toml$"),
    ],
)
def test_what_does_not_fit_into_a_job_is_refused_before_anything_is_written(
    device: str, threads: int, message: str, dry: bool, tmp_path: Path
) -> None:
    place = Place(tmp_path / "runs", tmp_path / "data", device, threads)
    with pytest.raises(ValueError, match=message):
        launch(STUDY, "s", "s.py", Cluster(cpus=2, sbatch={"partition": "gpu"}), place, dry=dry)
    assert not (tmp_path / "runs").exists()


def test_what_a_job_lacks_or_leaves_idle_is_said() -> None:
    assert Cluster(cpus=4).misfits("cpu", 2, None) == Cluster(cpus=4, gpus=2).misfits("cuda", 2, 2) == []
    assert Cluster(cpus=4).misfits("cpu", 2, 3) == ["3 slots of 2 threads share the 4 CPUs of a job (cpus)"]
    assert Cluster(gpus=2).misfits("cuda", 1, None) == ["2 slots share the 1 CPU of a job (cpus)"]
    (idle,) = Cluster(gpus=4).misfits("cuda", 1, 1)
    assert idle == "3 of the 4 GPUs of a job stay idle (slots)"


# the plan


@pytest.mark.parametrize(("items", "size"), [(0, 3), (1, 3), (3, 3), (10, 3), (1001, 1000), (7, 1)])
def test_a_split_loses_nothing_and_is_even(items: int, size: int) -> None:
    parts = split(range(items), size)
    assert [item for part in parts for item in part] == list(range(items))
    assert len(parts) == -(-items // size)
    sizes = {len(part) for part in parts}
    assert not sizes or (max(sizes) <= size and max(sizes) - min(sizes) <= 1)


def test_a_plan_takes_what_is_neither_done_nor_queued(tmp_path: Path) -> None:
    call(tmp_path, stop_after=2)
    ran, queued = ids(STUDY)[:2], ids(STUDY)[4]
    found = plan(tmp_path / "runs", STUDY.cells(), Cluster(runs_per_job=2, cpus=4), 1, queued={queued}, max_array=1)
    assert (found.distinct, found.done, found.failed, found.queued, found.slots) == (6, 2, 0, 1, 4)
    assert [spec.run_id for spec in found.runs] == [i for i in ids(STUDY) if i not in [*ran, queued]]
    assert [[len(job) for job in array] for array in found.arrays] == [[1], [2]]
    lines = plan_lines(found)
    assert lines[0] == "6 runs: 2 done, 0 failed, 1 queued or running, 3 to submit"
    assert lines[1] == "2 jobs of 1 to 2 runs in 4 slots; 2 arrays (MaxArraySize 1)"
    # of one of these three an arm was measured, and by its multiply-adds the others are told
    assert re.match(r"hours: [\d.e-]+ of training, [\d.e-]+ of jobs; 1 run by finished ones .* on cpu \(", lines[2])
    assert lines[2].endswith("; 2 by budgets in seconds, or by multiply-adds beside those of finished runs")
    assert found.known.keys() | found.modelled.keys() == {spec.run_id for spec in found.runs}
    assert all(seconds > 0 for seconds in found.modelled.values())


@pytest.mark.parametrize("batch", [RunSpec.batch, 16])
def test_hours_are_modelled_whatever_the_batch(batch: int) -> None:
    spec = with_field(STUDY.cells()[0].spec, "batch", batch)
    done = RunRecord(run_id=spec.run_id, spec=canonical(spec), status="done", steps=6, cost={"gmac": 1e-6})
    done.attempts = [{"seconds": 3.0}]
    (seconds,) = modelled([spec], [done]).values()
    cost = measure(spec.model.build(spec.task.input, spec.task.target), spec.task.input)
    assert seconds == pytest.approx(3.0 * cost.gmac / 1e-6)


def test_what_was_never_measured_has_unknown_hours(tmp_path: Path) -> None:
    found = plan(tmp_path / "runs", STUDY.cells(), Cluster(), 1)
    assert plan_lines(found)[-1] == "hours: unknown, no run of this study was measured yet"
    assert "MaxArraySize unknown" in plan_lines(found)[1] and len(found.arrays) == 1


def test_a_run_that_two_arms_share_counts_once(tmp_path: Path) -> None:
    same = study(arms={"ldn": LINEAR, "again": LINEAR}, factors={})
    found = plan(tmp_path / "runs", same.cells(), Cluster(), 1)
    assert plan_lines(found)[0] == (
        "2 runs (2 of them shared by several arms): 0 done, 0 failed, 0 queued or running, 2 to submit"
    )
    spec, other = {cell.seed: cell.spec for cell in same.cells()}.values()
    damaged = run_folder(tmp_path / "runs", other.run_id) / "record.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    write_record(tmp_path / "runs", RunRecord(run_id=spec.run_id, spec=canonical(spec), status="done"))
    found = plan(tmp_path / "runs", same.cells(), Cluster(), 1)
    assert (found.distinct, found.done, found.failed, len(found.runs)) == (2, 1, 1, 0)


def test_failed_runs_are_planned_again_on_request_alone(tmp_path: Path) -> None:
    spec = STUDY.cells()[0].spec
    write_record(tmp_path / "runs", RunRecord(run_id=spec.run_id, spec=canonical(spec), status="failed", reason="x"))
    without, again = (plan(tmp_path / "runs", STUDY.cells(), Cluster(), 1, retry=retry) for retry in (False, True))
    assert (without.failed, len(without.runs), again.failed, len(again.runs)) == (1, 5, 0, 6)


def test_finished_runs_are_planned_again_where_they_are_retrained(tmp_path: Path) -> None:
    cells = STUDY.cells()
    for cell in cells:
        record = RunRecord(run_id=cell.spec.run_id, spec=canonical(cell.spec), status="done")
        record.sources = run_sources(cell.spec) | ({"model": "ldn.model@other"} if cell is cells[0] else {})
        write_record(tmp_path / "runs", record)
    for arms, expected in (((), [cells[0]]), ((cells[1].arm,), [cell for cell in cells if cell.arm == cells[1].arm])):
        chosen = runs_to_retrain(tmp_path / "runs", cells, arms)
        found = plan(tmp_path / "runs", cells, Cluster(), 1, retrain=chosen)
        assert [spec.run_id for spec in found.runs] == chosen == [cell.spec.run_id for cell in expected]
        assert found.done == len(cells) - len(expected)


# the copy of the code


def test_a_snapshot_runs_alone_and_knows_its_commit(tmp_path: Path) -> None:
    folder = snapshot.snapshot(tmp_path / "runs")
    assert folder.parent == tmp_path / "runs" / "code"
    assert snapshot.snapshot(tmp_path / "runs") == folder and len(list(folder.parent.iterdir())) == 1
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2e6
    code = (
        "import studies.train, studies.provenance as p; from results.sources import source_hash as hash_of;"
        "print(studies.train.__file__, p.commit()['commit'], hash_of('model', 'ldn.model'))"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    expected = [str(folder / "studies" / "train.py"), snapshot.commit()["commit"], source_hash("model", "ldn.model")]
    assert said.stdout.split() == expected, said.stderr


def test_another_code_is_another_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = snapshot.snapshot(tmp_path / "runs")
    monkeypatch.setattr(snapshot, "commit", lambda: {"commit": "another", "dirty": True, "diff": "abc"})
    second = snapshot.snapshot(tmp_path / "runs")
    assert second != first and json.loads((second / "commit.json").read_text())["diff"] == "abc"


def test_an_attempt_in_a_job_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert slurm_job() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm_job() == {"slurm_job": "17", "slurm_restarts": 0}
    for name, value in (("ARRAY_JOB_ID", "12"), ("ARRAY_TASK_ID", "3"), ("RESTART_COUNT", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm_job() == {"slurm_job": "12_3", "slurm_restarts": 2}


# several runs in one job


class Scripted(Executor):
    """Slots in which nothing is trained: a run lasts so many looks, and ends as its script says."""

    def __init__(self, runs: Path, slots: int, lasts: dict[str, int], dies: Counter[str] | None = None) -> None:
        self.runs, self.slots, self.lasts, self.dies = runs, slots, lasts, dies or Counter()
        self.running: dict[str, tuple[RunSpec, int]] = {}
        self.submitted: list[str] = []
        self.asked = False

    def free(self) -> int:
        return self.slots - len(self.running)

    def submit(self, spec: RunSpec) -> None:
        self.submitted.append(spec.run_id)
        self.running[spec.run_id] = spec, self.lasts.get(spec.run_id, 1)

    def ended(self, seconds: float) -> list[Ended]:
        over = []
        for run_id, (spec, left) in list(self.running.items()):
            self.running[run_id] = spec, left - 1
            if left > 1 and not self.asked:
                continue
            del self.running[run_id]
            if self.asked:
                over.append(Ended(run_id, stopped=True))
            elif self.dies[run_id]:
                self.dies[run_id] -= 1
                over.append(Ended(run_id, error="its process died of SIGKILL"))
            else:
                write_record(self.runs, RunRecord(run_id=run_id, spec=canonical(spec), status="done"))
                over.append(Ended(run_id))
        return over

    def stop(self) -> None:
        self.asked = True

    def close(self) -> None:
        pass


SPECS = [with_field(LINEAR, "seed", seed) for seed in range(8)]
IDS = [spec.run_id for spec in SPECS]


def test_a_long_run_does_not_hold_the_others(tmp_path: Path) -> None:
    executor = Scripted(tmp_path, 2, {IDS[0]: 7})
    said: list[str] = []
    assert pack(FixedSupply(SPECS), executor, tmp_path, say=said.append) == []
    assert executor.submitted == IDS
    assert [line.split()[1] for line in said if line.endswith("done")][:6] == IDS[1:7]


def test_what_has_a_record_is_not_run_in_a_job(tmp_path: Path) -> None:
    for spec, status in zip(SPECS, ("done", "failed"), strict=False):
        write_record(tmp_path, RunRecord(run_id=spec.run_id, spec=canonical(spec), status=status))  # type: ignore[arg-type]
    damaged = run_folder(tmp_path, IDS[2]) / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    executor = Scripted(tmp_path, 2, {})
    assert pack(FixedSupply(SPECS), executor, tmp_path) == [] and executor.submitted == IDS[3:]
    assert damaged.read_text() == "{"


def test_a_run_whose_process_dies_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    executor = Scripted(tmp_path, 2, {}, Counter({IDS[1]: 2, IDS[3]: 99}))
    assert pack(FixedSupply(SPECS), executor, tmp_path) == []
    records = [read_record(tmp_path, run_id) for run_id in IDS]
    assert [record and record.status for record in records] == ["done"] * 3 + ["lost"] + ["done"] * 4
    assert records[3] is not None and records[3].reason == "its process died of SIGKILL, 4 times"
    assert Counter(executor.submitted) == Counter(IDS) + Counter({IDS[1]: 2, IDS[3]: packed.LOSSES})


def test_a_job_that_is_stopped_says_what_is_left(tmp_path: Path) -> None:
    executor = Scripted(tmp_path, 2, {IDS[2]: 9, IDS[3]: 9})
    left = pack(FixedSupply(SPECS), executor, tmp_path, lambda: len(executor.submitted) >= 4)
    assert sorted(left) == sorted(IDS[2:]) and executor.submitted == IDS[:4]


# a whole job, its commands played by scripts

PACKED = Cluster(runs_per_job=2, cpus=2)

COMMANDS = {
    "srun": 'while [[ "$1" == -* ]]; do case "$1" in --output|--error) shift;; esac; shift; done; exec "$@"',
    "sbatch": 'cp "$1" "$FAKE/script-$(($(ls "$FAKE" | grep -c script) + 7)).sh"\n'
    'echo "Submitted batch job $(($(ls "$FAKE" | grep -c script) + 6))"',
    "scontrol": 'if [ "$1" = show ]; then echo "MaxArraySize            = 2"; else echo "$@" >> "$FAKE/requeued"; fi',
    "squeue": 'cat "$FAKE/queue" 2>/dev/null || true',
    "sacct": "true",
    "scancel": 'echo "$@" >> "$FAKE/cancelled"',
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays a SLURM: job scripts are kept, and run when a test says so."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, body in COMMANDS.items():
        script = folder / name
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def submitted(folder: Path, cluster: Cluster = PACKED, **options: Any) -> list[Array]:
    launch(options.pop("asked", STUDY), "s", "s.py", cluster, Place(folder / "runs", folder / "data", "cpu"), **options)
    return arrays(folder / "runs", "s")


def start(site: Path, array: Array, index: int, **more: str) -> subprocess.Popen[str]:
    """The job as SLURM would start it, from its script."""
    alone = len(array.jobs) == 1
    environment = {"SLURM_JOB_ID": array.job_id if alone else str(100 + index), "SLURM_PROCID": "0"}
    if not alone:
        environment |= {"SLURM_ARRAY_JOB_ID": array.job_id, "SLURM_ARRAY_TASK_ID": str(index)}
    command = ["bash", str(site / f"script-{array.job_id}.sh")]
    return subprocess.Popen(
        command,
        cwd=site,
        env=os.environ | environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_study_submitted_and_run_equals_one_driven_here(site: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    call(whole)
    found = submitted(tmp_path, Cluster(runs_per_job=3, cpus=2))
    assert [len(array.jobs) for array in found] == [2]
    assert sorted(run_id for array in found for job in array.jobs for run_id in job) == sorted(ids(STUDY))
    script = (site / f"script-{found[0].job_id}.sh").read_text()
    assert "#SBATCH --array=0-1%2" in script and "#SBATCH --requeue" in script and "#SBATCH --cpus-per-task=2" in script
    for array in found:
        for index in range(len(array.jobs)):
            said, _ = (job := start(site, array, index)).communicate(timeout=120)
            assert job.returncode == 0, said
            assert said.count(" done") == 3 and "begins: " in said and "2 slots on cpu" in said
    assert outcomes(tmp_path) == outcomes(whole)
    for run_id in ids(STUDY):
        (attempt,) = read_record(tmp_path / "runs", run_id).attempts  # type: ignore[union-attr]
        assert attempt["slurm_job"] in {f"{found[0].job_id}_0", f"{found[0].job_id}_1"}
        assert attempt["diff"] == snapshot.commit()["diff"]
    assert not (site / "requeued").exists()
    assert len(submitted(tmp_path)) == 1  # nothing is left to submit


@pytest.mark.slow
def test_a_job_told_to_stop_leaves_checkpoints_and_is_queued_again(site: Path, tmp_path: Path) -> None:
    long = study(arms={"ldn": with_field(LINEAR, "budget.steps", 1500)}, factors={})
    whole = tmp_path / "whole"
    call(whole, long)
    (array,) = submitted(tmp_path, asked=long)
    job = start(site, array, 0)
    folders = [run_folder(tmp_path / "runs", run_id) for run_id in ids(long)]
    _until(lambda: all((folder / "progress.json").exists() for folder in folders))
    for child in _family(job.pid):
        os.kill(child, signal.SIGUSR2)
    said, _ = job.communicate(timeout=60)
    assert (site / "requeued").read_text().split() == ["requeue", array.job_id], said
    assert job.returncode == 255 and said.count(" stopped") == 2
    assert all((folder / "checkpoint.pt").exists() for folder in folders)
    again = start(site, array, 0)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and outcomes(tmp_path, long) == outcomes(whole, long), said
    for run_id in ids(long):
        first, second = read_record(tmp_path / "runs", run_id).attempts  # type: ignore[union-attr]
        assert second["first_step"] > 0 and first["slurm_job"] == second["slurm_job"] == array.job_id


def test_a_job_that_is_killed_is_queued_again_one_that_fails_is_not(site: Path, tmp_path: Path) -> None:
    long = study(arms={"ldn": with_field(LINEAR, "budget.steps", 1500)}, factors={})
    (array,) = submitted(tmp_path, asked=long)
    job = start(site, array, 0)
    _until(lambda: all((run_folder(tmp_path / "runs", run_id) / "attempts.json").exists() for run_id in ids(long)))
    os.kill(min(_family(job.pid)), signal.SIGKILL)
    assert job.wait(60) == 137 and (site / "requeued").read_text().split() == ["requeue", array.job_id]
    (site / "requeued").unlink()
    shutil.rmtree(array.code)  # a job whose code is gone cannot begin
    assert start(site, array, 0).wait(60) == 1 and not (site / "requeued").exists()


def test_a_job_killed_soon_after_its_start_too_often_is_not_queued_again(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "srun").write_text("#!/bin/bash\nkill -9 $$\n")
    first, array = submitted(tmp_path)  # a job alone, and an array of two

    def dies(index: int, seconds: int = 0, job: Array = array, code: int = 137) -> tuple[bool, str]:
        """Whether the job was queued again, and what it said."""
        monkeypatch.setenv("SECONDS", str(seconds))  # with which a shell begins to count
        (site / "requeued").unlink(missing_ok=True)
        said, _ = (started := start(site, job, index)).communicate(timeout=60)
        assert started.returncode == code, said
        return (site / "requeued").exists(), said

    for seconds in (0, 0, 0, 0, 0, 500, 119, 0, 0, 0, 0):
        assert dies(0, seconds)[0]
    assert dies(1)[0] and dies(0, job=first)[0]  # each job counts for itself
    again, said = dies(0)
    assert not again
    assert "not queued again: it was killed (exit code 137) within 120 s of its start 6 times in a row" in said
    (site / "srun").write_text("#!/bin/bash\nexit 255\n")  # as one that was told to stop
    assert not dies(1, code=255)[0]
    assert [path.name for path in (study_folder(tmp_path / "runs", "s") / "slurm").glob("*/deaths-*")] != []
    (site / "srun").write_text("#!/bin/bash\nkill -9 $$\n")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "100")
    again, said = dies(1)
    assert not again and "it was killed (exit code 137) and was queued again 100 times already" in said


def test_a_job_that_was_to_have_a_gpu_trains_on_nothing_else(site: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA can be used here")
    place = Place(tmp_path / "runs", tmp_path / "data", "auto")
    launch(STUDY, "s", "s.py", Cluster(runs_per_job=6, gpus=1), place)
    (array,) = arrays(tmp_path / "runs", "s")
    said, _ = (job := start(site, array, 0)).communicate(timeout=60)
    assert job.returncode == 1 and "Traceback" not in said, said
    sentence = said.splitlines()[-1]
    assert re.fullmatch(r"the job is to train on a GPU, but CUDA cannot be used on .+: .+", sentence)
    assert not any(run_folder(tmp_path / "runs", run_id).exists() for run_id in ids(STUDY))


def _family(pid: int) -> list[int]:
    """The processes below a job's shell."""
    below = [int(i) for i in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*below, *(child for one in below for child in _family(one))]


def _until(ready: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_queued_is_not_submitted_again(site: Path, tmp_path: Path) -> None:
    first, second = submitted(tmp_path)  # of three jobs, two an array at most
    assert [len(array.jobs) for array in (first, second)] == [1, 2]
    assert "--array" not in (site / f"script-{first.job_id}.sh").read_text()
    lines = [f"s.{second.key}|{second.job_id}|{index}|PENDING|Priority||1:00" for index in (0, 1)]
    (site / "queue").write_text("\n".join([*lines, "other.12345678|3|N/A|RUNNING|None|n1|2:00"]) + "\n")
    third = submitted(tmp_path)[2]
    assert third.jobs == first.jobs and len(arrays(tmp_path / "runs", "s")) == 3


def test_jobs_that_slurm_holds_are_named_and_not_submitted_again(site: Path, tmp_path: Path) -> None:
    first, second = submitted(tmp_path)
    held = [f"s.{second.key}|{second.job_id}|{index}|PENDING|launch failed requeued held||1:00" for index in (0, 1)]
    never = f"s.{first.key}|{first.job_id}|N/A|PENDING|PartitionTimeLimit||1:00"
    (site / "queue").write_text("\n".join([*held, never]))
    place = Place(tmp_path / "runs", tmp_path / "data", "cpu")
    for dry in (True, False):
        asked = launch(STUDY, "s", "s.py", PACKED, place, dry=dry)
        assert asked.queued == 6 and not asked.jobs and len(arrays(tmp_path / "runs", "s")) == 2
        assert asked.notes == [
            f"2 jobs ({second.job_id}_0, {second.job_id}_1) will not begin by themselves, launch failed requeued held: "
            f"`scontrol release JOB`, or `python -m studies cancel NAME` and `python -m studies run NAME --on slurm`",
            f"1 job ({first.job_id}) will not begin by itself, PartitionTimeLimit: "
            f"after a change of slurm.toml `python -m studies cancel NAME` and `python -m studies run NAME --on slurm`",
        ]


def test_a_failed_run_is_submitted_again_with_its_attempts(site: Path, tmp_path: Path) -> None:
    spec = STUDY.cells()[0].spec
    failed = RunRecord(run_id=spec.run_id, spec=canonical(spec), status="failed", reason="x", attempts=[{"node": "n"}])
    write_record(tmp_path / "runs", failed)
    assert spec.run_id not in {i for array in submitted(tmp_path) for job in array.jobs for i in job}
    again = submitted(tmp_path, retry=True)
    assert spec.run_id in {i for array in again for job in array.jobs for i in job}
    assert read_record(tmp_path / "runs", spec.run_id) is None
    assert json.loads((run_folder(tmp_path / "runs", spec.run_id) / "attempts.json").read_text())["attempts"]


def test_a_refusal_of_slurm_s_is_one_sentence_and_leaves_no_array(
    site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ("invalid partition specified: gpux", "Batch job submission failed: Invalid partition name specified")
    complaints = "\n".join(f"echo 'sbatch: error: {line}' >&2" for line in lines)
    (site / "sbatch").write_text(f"#!/bin/bash\n{complaints}\nexit 1\n")
    with pytest.raises(ValueError) as refused:
        submitted(tmp_path)
    assert str(refused.value) == f"SLURM refused: {lines[0]}; {lines[1]}"
    assert capfd.readouterr().err == ""  # told once
    assert arrays(tmp_path / "runs", "s") == []


def test_without_slurm_it_is_refused_and_planned_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no SLURM on this machine .* or run here with --on local"):
        submitted(tmp_path)
    assert not (tmp_path / "runs").exists()
    assert submitted(tmp_path, dry=True) == [] and not (tmp_path / "runs").exists()


def test_a_thousand_runs_take_little_room(site: Path, tmp_path: Path) -> None:
    (site / "scontrol").write_text("#!/bin/bash\necho 'MaxArraySize = 400'\n")
    found = submitted(tmp_path, Cluster(), asked=study(arms={"ldn": LINEAR}, factors={}, seeds=range(1000)))
    assert [len(array.jobs) for array in found] == [333, 333, 334]
    blocks = sum(path.stat().st_blocks * 512 for path in (tmp_path / "runs").rglob("*"))
    assert blocks < 50e6 and not list((tmp_path / "runs" / "code").glob("*/*/measured/*.csv"))
    assert len(list((study_folder(tmp_path / "runs", "s") / "slurm").rglob("*_submitted.pkl"))) == 1000


# the environment of a site


@pytest.fixture
def seen(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sbatch writes which of SLURM's variables it sees."""
    body = f'env | grep -E "^S(LURM|BATCH|RUN)_" > "$FAKE/seen" || true\n{COMMANDS["sbatch"]}'
    (site / "sbatch").write_text(f"#!/bin/bash\n{body}\n")
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        monkeypatch.delenv(name)
    return site / "seen"


SITE = {
    "SLURM_JWT": "secret",
    "SBATCH_ACCOUNT": "proj",
    "SBATCH_MEM_PER_CPU": "2G",
    "SLURM_CLUSTERS": "big",
    "SLURM_CONF": "/etc/slurm.conf",
}
OVERRULED = {"SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "short", "SBATCH_ARRAY_INX": "0-9", "SBATCH_WAIT": "1"}
OF_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "64", "SRUN_CPUS_PER_TASK": "64", "SBATCH_CPU_BIND": "none"}


@pytest.mark.parametrize("in_job", [False, True])
def test_the_site_s_defaults_reach_sbatch_unless_slurm_toml_or_a_surrounding_job_sets_them(
    in_job: bool, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SITE | OVERRULED | (OF_A_JOB if in_job else {"SLURM_HINT": "nomultithread"})).items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(partition="gpu", runs_per_job=8)
    dry = launch(STUDY, "s", "s.py", cluster, Place(tmp_path / "runs", tmp_path / "data"), dry=True)
    (array,) = submitted(tmp_path, cluster)
    expected = SITE | ({} if in_job else {"SLURM_HINT": "nomultithread"})
    assert dict(line.split("=", 1) for line in seen.read_text().splitlines()) == expected
    options, environment = dry.sbatch
    shown = [f"{name}={value}" for name, value in sorted(expected.items())]
    assert environment == f"environment: {' '.join(shown)}".replace("SLURM_JWT=secret", "SLURM_JWT")
    script = (seen.parent / f"script-{array.job_id}.sh").read_text()
    given = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert options.replace("KEY", array.key) == "sbatch: " + " ".join(given)  # all of it, and nothing else
    assert "wckey" not in options and "--signal=USR2@90" in options


@pytest.mark.parametrize(
    ("environment", "asked", "runs", "message"),
    [
        ({"SBATCH_CLUSTERS": "big"}, {}, "runs", "set SLURM_CLUSTERS to its name instead"),
        ({}, {"sbatch": {"clusters": "big"}}, "runs", "set SLURM_CLUSTERS to its name instead"),
        ({"SLURM_CLUSTERS": "big,small"}, {}, "runs", "^SLURM_CLUSTERS is 'big,small': set it to one cluster"),
        ({}, {}, "100%j", "choose another --runs than .*100%j$"),
        ({}, {}, "a\\b", "choose another --runs than"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_where_jobs_or_their_logs_would_be_lost_it_is_refused(
    environment: dict[str, str], asked: dict[str, Any], runs: str, message: str, dry: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        launch(STUDY, "s", "s.py", Cluster(**asked), Place(tmp_path / runs, tmp_path / "data", "cpu"), dry=dry)
    assert not (tmp_path / runs).exists()


def test_a_step_of_fewer_cores_than_its_job_asked_for_says_so_in_any_folder(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "place" $HOME'
    asked = study(factors={})
    (array,) = submitted(folder, Cluster(runs_per_job=8, cpus=2), asked=asked)
    srun = COMMANDS["srun"].replace("exec", f"exec taskset -c {min(os.sched_getaffinity(0))}")
    (site / "srun").write_text(f"#!/bin/bash\n{srun}\n")
    said, _ = start(site, array, 0, SLURM_CPUS_PER_TASK="2").communicate(timeout=120)
    assert "the job asked for 2 CPUs, but its slots share 1" in said
    for run_id in ids(asked):
        record = read_record(folder / "runs", run_id)
        assert record is not None and record.status == "done" and record.attempts[0]["cores"] == 1


def test_without_a_user_name_the_queue_is_asked_for_all_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert squeue()[-2:] == ["--user", str(os.getuid())]
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert "--user" not in squeue()
