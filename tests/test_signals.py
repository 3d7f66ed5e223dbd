"""A signal ends a command in one sentence at any moment, and an interrupted run is neither failed nor lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldn import LDNConfig
from results.locks import locked
from results.record import read_record, run_folder
from studies.drive import drive
from studies.executors import Inline
from studies.leftovers import OLD_SECONDS
from studies.spec import Budget, RunSpec
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.train import Place, Stopped, train
from tests.watchers import Silent

ROOT = Path(__file__).resolve().parent.parent
SPEC = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=2, evaluations=1),
)


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [["studies", "show", "axes"], ["results", "axes"]])
def test_a_signal_during_imports_ends_a_command_in_one_sentence(arguments: list[str], number: signal.Signals) -> None:
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not handles(process.pid, signal.SIGTERM):
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert (said, errors) == ("", f"error: ended by {number.name}; what was finished is kept\n")
    assert process.returncode == 128 + number


TWICE = """
import multiprocessing, time
from results.signals import REPEAT_SECONDS, stop_on_signals

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
with stop_on_signals() as stopping:
    child.start()
    print(child.pid, flush=True)
    while not stopping():
        time.sleep(0.01)
    time.sleep(REPEAT_SECONDS)
    print("asked", flush=True)
    time.sleep(60)
"""


def test_the_first_ctrl_c_asks_to_stop_and_the_second_ends_the_process_and_its_children() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", TWICE], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as `timeout` does
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines() == [
        "stopping; another Ctrl-C ends it at once",
        "error: ended by SIGINT; what was finished is kept",
    ]
    with pytest.raises(ProcessLookupError):
        while True:  # until it is reaped
            os.kill(child, 0)
            time.sleep(0.01)


def test_an_error_while_a_run_is_asked_to_stop_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a compiler that the run has started was ended by the same signal."""
    asked: list[bool] = []

    def build(*arguments: object) -> None:
        asked.append(True)
        raise RuntimeError("the compiler was killed")

    monkeypatch.setattr(LDNConfig, "build", build)
    with pytest.raises(Stopped):
        train(SPEC, Place(tmp_path, tmp_path), stop=lambda: bool(asked))
    assert read_record(tmp_path, SPEC.run_id) is None
    assert train(SPEC, Place(tmp_path, tmp_path)).status == "failed"


def test_a_run_that_waits_for_another_process_hears_that_it_is_to_stop(tmp_path: Path) -> None:
    run_folder(tmp_path, SPEC.run_id).mkdir()
    with locked(run_folder(tmp_path, SPEC.run_id) / "lock"), pytest.raises(Stopped, match="before it began"):
        train(SPEC, Place(tmp_path, tmp_path), stop=lambda: True)


def test_files_that_killed_processes_left_are_removed_and_those_being_written_are_not(tmp_path: Path) -> None:
    study = Study(question="Why?", reference="ldn", arms={"ldn": SPEC}, seeds=(0, 1))

    def call() -> None:
        drive(study, "s", "s.py", tmp_path, Inline(Place(tmp_path, tmp_path), lambda: False), Silent())

    call()
    done, held = (run_folder(tmp_path, cell.spec.run_id) for cell in study.cells())
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    names = ["checkpoint.pt", "checkpoint.former.pt", "progress.json", "attempts.json", "prune"]
    staged = [".record.json.abcdef_0", ".checkpoint.new.pt.12345678"]
    for name in [*names, *staged]:
        (done / name).touch()
        (held / name).touch()
    for name in (".probe.json.abcdefgh", "evals/.a.json.abcdefgh", "evals/.b.json.abcdefgh"):
        (done / name).parent.mkdir(exist_ok=True)
        (done / name).touch()
    old = time.time() - OLD_SECONDS - 1
    os.utime(done / "evals/.b.json.abcdefgh", (old, old))
    (tmp_path / "studies" / "s" / ".trials.json.abcdefgh").touch()
    with locked(held / "lock"):
        call()
    young = {done / ".probe.json.abcdefgh", done / "evals/.a.json.abcdefgh"}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == (
        kept | young | {held / name for name in [*names, *staged]}
    )
    call()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept | young
