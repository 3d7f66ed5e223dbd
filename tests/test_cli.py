"""Does the command line do what it says, and refuse what it cannot in one clear sentence?"""

from __future__ import annotations

import gzip
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from results.record import read_record, run_folder, study_folder
from studies import catalogue
from studies.drive import sole_driver

ROOT = Path(__file__).resolve().parent.parent

STUDY = """
'''Does mixing help?'''
from baselines import TransformerConfig
from ldn import LDNConfig
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tasks.images import FashionMNIST

ldn = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=5, evaluations=2),
)
STUDY = Study(
    question="Does mixing help?",
    reference="ldn",
    arms={"ldn": ldn, "attention [only]": with_field(ldn, "model", TransformerConfig(depth=1, heads=2))},
    factors={"model.steps": [0]},
    seeds=(0, 1),
    match="params",
)
"""
FASHION = STUDY.replace("task=CuedDigits(train=64, valid=32, test=32)", "task=FashionMNIST()")


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`python -m studies ...` in this process, its folders in tmp_path, where mine.py holds STUDY."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    for name, folder in (("LDN_RUNS", "runs"), ("LDN_DATA", "data"), ("LDN_REPORTS", "reports")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    (tmp_path / "mine.py").write_text(STUDY)

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["studies", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module("studies", run_name="__main__", alter_sys=True)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        code = end.value.code
        return Said(code if isinstance(code, int) else int(bool(code)), said.out, said.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def refused(said: Said, message: str) -> None:
    """Exit code 2, and one line that says `message`."""
    assert said.code == 2 and re.search(message, said.err), said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n")


def records(runs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in runs.glob("*/record.json")}


# list, show, run, status


def test_list_names_every_study_and_needs_no_torch() -> None:
    code = "import sys, runpy; sys.argv = ['studies', 'list']\ntry: runpy.run_module('studies', run_name='__main__')"
    code += "\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("0 False\n"), done.stderr
    for name, question in catalogue.shipped().items():
        assert name in done.stdout and question.split()[0] in done.stdout


def test_a_study_is_shown_run_and_asked_after(command: Command, tmp_path: Path) -> None:
    shown = command("show", "mine.py")
    assert shown.code == 0 and "Does mixing help?" in shown.out
    assert re.search(r"steps 0 +model.steps 0 +0/2", shown.out)
    assert re.search(
        r"attention \[only\] +model transformer.* \(width \d+: [01]\.\d\dx the reference's params\) +0/2", shown.out
    )
    assert "3 arms x 2 seeds; test.accuracy, maximised; widths matched by: params" in shown.out

    refused(command("status", "mine.py"), r"has no study 'mine' \(it has: none\); `python -m studies run` runs one, by")

    ran = command("run", "mine.py", "--on", "inline")
    assert ran.code == 0 and ran.err == ""
    assert ran.out.count("validation") == 6 and "6/6 attention [only], seed 1: validation" in ran.out
    assert re.search(r"steps 0 .* 2/2 ", ran.out) and "Written to reports/mine/: table.md" in ran.out
    assert {"table.md", "runs.csv", "arms.png"} <= {path.name for path in (tmp_path / "reports" / "mine").iterdir()}
    assert re.search(r"steps 0 .* 2/2", command("show", "mine.py").out)

    before = records(tmp_path / "runs")
    again = command("run", str(tmp_path / "mine.py"), "--on", "inline")  # the same file, by another path
    assert again.code == 0 and "validation 0" not in again.out and records(tmp_path / "runs") == before
    assert len(before) == 6

    asked = command("status", "mine.py")
    assert asked.code == 0 and all(
        re.search(rf"{arm} +2", asked.out) for arm in ("ldn", "steps 0", r"attention \[only\]")
    )


def test_folders_can_be_chosen_by_options(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STUDY.replace("steps=5", "steps=0").replace("(0, 1)", "[0]"))
    assert "\n3 arms x 1 seed; " in command("show", "mine.py").out
    there = str(tmp_path / "elsewhere")
    said = command("run", "mine.py", "--on", "inline", "--runs", f"{there}/runs", "--out", f"{there}/reports")
    found = [read_record(Path(there) / "runs", path.parent.name) for path in records(Path(there) / "runs")]
    assert said.code == 0 and len(found) == 3 and not (tmp_path / "runs").exists()
    table = (Path(there) / "reports" / "mine" / "table.md").read_text()
    assert all(record is not None and f"{record.cost['params']:,}" in table for record in found)  # no step is trained


# misfits in the study


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LDNConfig(width=8", "LDNConfig(widht=8", r"mine.py, line 11: LDNConfig has no field 'widht'; known"),
        ("heads=2),", "heads=3),", r"line 11: LDNConfig.width 8 does not divide into 3 heads"),
        ("depth=1", 'kernel="gauss"', r"line 11: LDNConfig.kernel must be one of 'fixed', .*, not 'gauss'"),
        ("batch=16", "batch=0", r"line 10: RunSpec.batch must be at least 1, not 0"),
        ("steps=5", "steps=-5", r"line 14: Budget.steps must be at least 0, not -5"),
        ('"model.steps"', '"model.stepz"', r"line 16: LDNConfig has no field 'stepz'"),
        ('reference="ldn"', 'reference="LDN"', r"the reference 'LDN' is no arm; arms: 'ldn', 'attention"),
        ("match=", "metric='test.acc', match=", r"Study.metric must be one of 'test.accuracy', .* not 'test.acc'"),
        ("STUDY = Study", "STUDY = = Study", r"mine.py, line 16: invalid syntax"),
        ("STUDY = Study", "study = Study", r"mine.py defines no STUDY"),
        ("import LDNConfig", "import LdnConfig", r"line 4: cannot import name 'LdnConfig'"),
    ],
)  # fmt: skip
def test_a_misfit_in_a_study_file_is_one_sentence(
    old: str, new: str, message: str, command: Command, tmp_path: Path
) -> None:
    assert old in STUDY
    (tmp_path / "mine.py").write_text(STUDY.replace(old, new, 1))
    for what in ("show", "run"):
        refused(command(what, "mine.py"), message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["show", "run", "tune", "bench"])
def test_a_task_that_no_run_could_find_is_refused_before_anything_is_begun(
    what: str, command: Command, tmp_path: Path
) -> None:
    own = "ldn = RunSpec\nclass Echo(CuedDigits):\n    name = 'echo'\n\nldn = RunSpec"
    (tmp_path / "mine.py").write_text(STUDY.replace("ldn = RunSpec", own).replace("task=CuedDigits", "task=Echo"))
    refused(command(what, "mine.py"), r"mine.py: arm 'ldn': no run could find the task Echo, .* add it there")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "axis"], r"there is no study 'axis'; known: .*axes"),
        (["run", "axis"], r"there is no study 'axis'; known: .*axes"),
        (["status", "axis"], r"there is no study 'axis'; known: .*axes"),
        (["run", "no/such.py"], r"there is no study file no/such.py"),
        (["status", "axes"], r"has no study 'axes'"),
        (["run", "mine.py", "--device", "tpu"], r"there is no device 'tpu'; known: auto, cpu, cuda"),
        (["run", "mine.py", "--device", "cuda:77"], r"there is no device 'cuda:77' here"),
        (["run", "mine.py", "--runs", "mine.py/x"], r"no folder mine.py/x/studies/mine \(Not a directory\): choose"),
        (
            ["run", "mine.py", "--runs", "/proc/x"],
            r"no folder /proc/x/studies/mine \(No such file or directory\): choose",
        ),
        (["run", "mine.py", "--out", "mine.py/x"], r"no folder mine.py/x/mine \(Not a directory\): choose"),
        (["bench", "--lengths", "64", "--runs", "/proc/x"], r"no folder /proc/x \(No such file or directory\): choose"),
        (["run", "mine.py", "--on", "slurm"], r"there is no slurm.toml, which says what to ask of SLURM: copy"),
        (["run", "mine.py", "--dry-run"], r"--dry-run plans jobs for --on slurm"),
        (["logs", "abc"], r"jobs on a cluster were given no run 'abc'"),
    ],
    ids=" ".join,
)
def test_a_name_or_place_that_is_not_there_is_one_sentence(
    arguments: list[str], message: str, command: Command
) -> None:
    refused(command(*arguments), message)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "mine.py", "--slots", "0"], ["run", "mine.py", "--lr", "1"], ["go"]]
)
def test_a_wrong_option_shows_the_usage(arguments: list[str], command: Command) -> None:
    said = command(*arguments)
    assert said.code == 2 and "Usage:" in said.err


# files that are wrong, or not there


def test_where_data_is_missing_nothing_is_begun_and_it_says_what_to_put_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FASHION)
    said = command("run", "mine.py", "--on", "inline", "--data", "nowhere")
    refused(said, r"nothing was begun: nowhere/fashion-mnist lacks train-images-idx3-ubyte, .*: download the four \.gz")
    assert not (tmp_path / "runs").exists() or not records(tmp_path / "runs")


def test_a_truncated_data_file_fails_its_run_and_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        content = gzip.compress(b"\0\0\x08" + bytes(999))
        (folder / f"{name}-ubyte.gz").write_bytes(content[: len(content) // 2])
    text = STUDY.replace("task=CuedDigits(train=64, valid=32, test=32)", "task=FashionMNIST()").replace("(0, 1)", "[0]")
    (tmp_path / "mine.py").write_text(text.replace('factors={"model.steps": [0]},', ""))
    said = command("run", "mine.py", "--on", "inline")
    refused(said, "2 of 2 runs failed")
    assert said.out.count("train-images-idx3-ubyte.gz is truncated or no gzip file") >= 2


@pytest.fixture
def finished(command: Command, tmp_path: Path) -> Path:
    assert command("run", "mine.py", "--on", "inline").code == 0
    return tmp_path / "runs"


def test_a_corrupt_record_is_named_and_left_alone_while_the_others_are_reported(
    finished: Path, command: Command
) -> None:
    path = min(records(finished))
    path.write_text('{"run_id": "')
    said = command("run", "mine.py", "--on", "inline", "--retry")
    refused(said, "1 of 6 runs failed")
    assert f"{path} is not valid JSON" in said.out and "delete it to run this run again" in said.out
    assert path.read_text() == '{"run_id": "' and re.search(r" 1/2 ", said.out)
    assert "corrupt" in command("status", "mine.py").out
    shown = command("show", "mine.py")
    assert shown.code == 0 and "record.json is not valid JSON" in shown.out and " 1/2" in shown.out
    path.unlink()
    assert command("run", "mine.py", "--on", "inline").code == 0


def test_a_corrupt_journal_or_manifest_is_rebuilt(finished: Path, command: Command) -> None:
    before, folder = records(finished), study_folder(finished, "mine")
    (folder / "journal.log").write_text("no journal\n")
    said = command("run", "mine.py", "--on", "inline")
    assert said.code == 0 and "the journal could not be read; it was put aside as" in said.out
    (folder / "manifest.json").write_text("{")
    refused(
        command("status", "mine.py"),
        r"manifest.json is not valid JSON .*; delete it and call `python -m studies run` again",
    )
    assert command("run", "mine.py", "--on", "inline").code == 0
    assert command("status", "mine.py").code == 0 and records(finished) == before


def test_a_second_driver_is_refused(command: Command, tmp_path: Path) -> None:
    with sole_driver(study_folder(tmp_path / "runs", "mine"), "mine"):
        refused(command("run", "mine.py"), rf"study mine is being driven by process {os.getpid()} on .* already")


def test_what_a_study_is_called_is_what_finds_it(finished: Path, command: Command, tmp_path: Path) -> None:
    with sole_driver(study_folder(finished, "mine"), "mine"):
        refused(command("run", str(tmp_path / "mine.py")), r"already; `python -m studies status mine\.py` shows")
    for name in ("mine", "mine.py"):
        asked = command("eval", name, "--arm", "ldn")
        assert asked.code == 0 and f"`python -m results {name}`" in asked.out
    refused(command("eval", "mine", "--arm", "nope"), r"no arm 'nope'; arms: 'ldn', 'steps 0', 'attention \[only\]'$")
    for path in records(finished):
        path.unlink()
    refused(command("eval", "mine"), r"no run of study 'mine' is done yet; `python -m studies run mine\.py` runs them")


def test_another_file_of_the_same_name_is_refused(command: Command, tmp_path: Path) -> None:
    text = STUDY.replace("steps=5", "steps=0").replace("(0, 1)", "[0]")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"# {folder}\n{text}")
    assert command("run", "a/mine.py", "--on", "inline").code == 0
    refused(
        command("run", "b/mine.py", "--on", "inline"),
        r"manifest.json belongs to .*a/mine.py, not to .*b/mine.py: rename the file, .*",
    )
    refused(
        command("status", "b/mine.py"), r"manifest.json belongs to .*a/mine.py, not to .*b/mine.py: rename the file, .*"
    )


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs Linux and root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_what_was_finished_is_kept(
    small_disk: Path, command: Command, tmp_path: Path
) -> None:
    runs, filler = small_disk / "runs", small_disk / "filler"
    arguments = ("run", "mine.py", "--on", "inline", "--runs", str(runs))
    finished: dict[Path, int] = {}
    counts = []
    for room in range(99):  # pages of 4 kB: there is always something else that no longer fits
        free = os.statvfs(small_disk).f_bavail
        filler.write_bytes(bytes(4096 * max(0, free - room)))
        said = command(*arguments)
        filler.unlink()
        now = records(runs)
        assert finished.items() <= now.items()
        assert all(read_record(runs, path.parent.name).status == "done" for path in now)  # type: ignore[union-attr]
        finished = now
        if said.code == 0:
            break
        refused(said, r"No space left on device")
        counts.append(len(finished))
    assert len(finished) == 6 and len(counts) > 5 and set(counts) & {1, 2, 3, 4, 5}

    assert command("run", "mine.py", "--on", "inline").code == 0  # with room enough, for comparison
    for path in records(runs):
        ours, theirs = (read_record(folder, path.parent.name) for folder in (runs, tmp_path / "runs"))
        assert ours is not None and theirs is not None
        assert (ours.metrics, ours.weights_hash) == (theirs.metrics, theirs.weights_hash)
    assert not list(small_disk.rglob(".*")), "half-written files are left"
    assert (run_folder(runs, path.parent.name) / "weights.pt").exists()
