"""Kill a driver at every file operation; started again, each study must end as an undisturbed one.

    python -m tests.kill_sweep                  # all points of all scenarios (make kill-sweep)
    python -m tests.kill_sweep --points 2       # two of each scenario, evenly spaced

A point is a moment before a file is opened for writing, flushed, renamed, truncated or removed, or a folder is made. A
journal has one more in each write, at which its last line is incomplete. The drivers are forked from this process,
which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from baselines import LinearConfig
from ldn import LDNConfig
from results.locks import is_held
from studies import train
from studies.drive import drive, tune
from studies.executors import Executor, Inline, Local
from studies.packed import LATE
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.train import Place
from studies.tuning import Tuning, freeze
from tests.watchers import Silent

RESTARTS = 6
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
SPEC = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=3, evaluations=3),
)
LINEAR = with_field(SPEC, "model", LinearConfig())
FAST = with_field(LINEAR, "budget", Budget(steps=4, evaluations=4))


def study(trials: int = 0, **options: Any) -> Study:
    arms = {"ldn": SPEC, "linear": LINEAR} if not options else {"ldn": FAST}
    space = {"optim.lr": (1e-4, 1e-1, "log")}
    tuning = Tuning(space=space, trials=trials, **options) if trials else None
    return Study(question="Why?", reference="ldn", arms=arms, seeds=(0,), tuning=tuning)


# --- points -----------------------------------------------------------------------------------


class Points:
    """Counts the file operations below a folder, of this process and its children, and kills at one of them."""

    def __init__(self) -> None:
        self.counter = mmap.mmap(-1, 8)  # shared with forked processes
        self.folder, self.kill_at = "", 0
        self.fsync = os.fsync
        sys.addaudithook(self.audit)
        os.fsync = self.flush  # type: ignore[assignment]  # there is no audit event for it

    def arm(self, folder: Path, kill_at: int) -> None:
        self.folder, self.kill_at = f"{folder}/", kill_at
        self.counter[:] = struct.pack("q", 0)

    @property
    def count(self) -> int:
        return struct.unpack("q", self.counter[:])[0]

    def reached(self) -> bool:
        if not self.folder:
            return False
        self.counter[:] = struct.pack("q", self.count + 1)
        return self.count == self.kill_at

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and str(arguments[0]).startswith(self.folder) and self.reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(self, file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.startswith(self.folder):
            if path.endswith(".log") and self.reached():
                os.ftruncate(file, os.fstat(file).st_size - 9)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.reached():
                os.kill(os.getpid(), signal.SIGKILL)
        self.fsync(file)


# --- scenarios --------------------------------------------------------------------------------


def run(asked: Study, slots: int, folder: Path) -> bool:
    """`python -m studies run`; whether everything is done."""
    with_executor = _executor(folder, slots)
    tally = drive(asked, "s", str(folder / "s.py"), folder / "runs", with_executor, Silent())
    with_executor.close()
    return tally.done == tally.cells


def search(asked: Study, slots: int, folder: Path) -> bool:
    """`python -m studies tune`; whether all trials have ended."""
    with_executor = _executor(folder, slots)
    _, found = tune(asked, "s", str(folder / "s.py"), folder / "runs", with_executor, Silent())
    with_executor.close()
    if found.left:
        return False
    freeze(found, folder / "s.py")
    return True


def _executor(folder: Path, slots: int) -> Executor:
    place = Place(folder / "runs", folder / "data")
    return Local([place] * slots, "fork") if slots else Inline(place, lambda: False)


@dataclasses.dataclass(frozen=True)
class Scenario:
    command: Callable[[Study, int, Path], bool]
    study: Study
    slots: int = 0  # 0: in the driver's own process

    def start(self, folder: Path, points: Points, kill_at: int = 0) -> int:
        """Fork a driver; its exit code, negative for a signal. 0: everything is done, 3: something is left."""
        points.arm(folder, kill_at)
        driver = os.fork()
        if not driver:
            train.CHECKPOINT_SECONDS = train.REPORT_SECONDS = 0.0
            code = 4
            try:
                code = 0 if self.command(self.study, self.slots, folder) else 3
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])
        while is_held(folder / "runs/studies/s/driver.lock"):  # by slots, which were forked with its file open
            time.sleep(0.02)
        return code

    def outcome(self, folder: Path) -> dict[str, Any]:
        """All that must not depend on a kill. With several slots, trials depend on the order in which runs end."""
        several = self.slots > 1
        if self.command is search and several:
            trials = _plain(folder / "runs/studies/s/trials.json")["history"]
            numbers = sorted((trial["arm"], trial["trial"], trial["status"]) for trial in trials)
            return {"trials": numbers, "runs": len({run_id for trial in trials for run_id in trial["run_ids"]})}
        found: dict[str, Any] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = str(path.relative_to(folder))
            if path.suffix == ".json":
                found[name] = _timeless(_plain(path))
            elif path.suffix == ".log":
                found[name] = _trials(path, with_order=self.command is search)
            elif "checkpoint" in name:  # it holds times
                found[name] = "there"
            elif path.name not in ("driver.lock", "lock") and not (several and path.name.startswith(".")):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


SCENARIOS = {
    "run inline": Scenario(run, study()),
    "run in 2 slots": Scenario(run, study(), slots=2),
    "tune inline": Scenario(search, study(3)),
    "tune inline, pruned": Scenario(search, study(6, pruner="median")),
    "tune inline, 2 objectives": Scenario(search, study(3, objectives=("valid.loss", "cost.params"))),
    "tune in 2 slots": Scenario(search, study(3), slots=2),
}


def _plain(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _timeless(plain: Any) -> Any:
    """JSON without times, attempts and what hashes them."""
    if isinstance(plain, dict):
        left_out = ("attempts", "train.seconds", "commit", "dirty", "sha256", "diff")
        return {name: _timeless(value) for name, value in plain.items() if name not in left_out}
    return [_timeless(value) for value in plain] if isinstance(plain, list) else plain


def _trials(path: Path, with_order: bool) -> Any:
    """The trials of a journal; of a queue, which may begin a run several times, only those that were completed."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    trials = {
        study.study_name: [
            (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs)
            for t in storage.get_all_trials(study._study_id)
        ]
        for study in storage.get_all_studies()
    }
    if with_order:
        return trials
    return {n: sorted(str(t[1:]) for t in ts if t[1] == "COMPLETE") for n, ts in trials.items()}


# --- the sweep --------------------------------------------------------------------------------


def fault_of(scenario: Scenario, points: Points, folder: Path, kill_at: int, expected: dict[str, Any]) -> str:
    """What is wrong after a kill at one point; empty if nothing is."""
    code = scenario.start(folder, points, kill_at)
    if code not in (0, 3, -signal.SIGKILL):
        return f"exit code {code}"
    paths = list((folder / "runs").glob("*/record.json"))
    before = {path: path.stat().st_mtime_ns for path in paths if _plain(path)["status"] == "done"}
    for _ in range(RESTARTS):
        code = scenario.start(folder, points)
        if code == 0:
            break
        if code != 3:
            return f"exit code {code} when started again"
    else:
        return f"not done after {RESTARTS} starts"
    if again := [str(path) for path, written in before.items() if path.stat().st_mtime_ns != written]:
        return f"run again: {', '.join(again)}"
    found = scenario.outcome(folder)
    return "; ".join(
        f"{name} was {expected.get(name)}, is {found.get(name)}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    )


def sweep(name: str, scenario: Scenario, points: Points, home: Path, wanted: int) -> int:
    """Kill at `wanted` points of a scenario (0: all). Return the number of points with a difference."""
    folder = home / "s"  # always the same: files name it
    if scenario.start(folder, points) != 0:
        raise RuntimeError(f"{name}: the undisturbed driver fails")
    total, expected = points.count, scenario.outcome(folder)
    step = max(1, total // wanted) if wanted else 1
    chosen = list(range(1 + step // 2 if wanted else 1, total + 1, step))[: wanted or None]
    wrong = 0
    for kill_at in chosen:
        shutil.rmtree(folder)
        if fault := fault_of(scenario, points, folder, kill_at, expected):
            wrong += 1
            print(f"{name}, killed at point {kill_at} of {total}: {fault[:2000]}", flush=True)
    shutil.rmtree(folder)
    print(f"{name}: {len(chosen)} of {total} points, {wrong} differences", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=0, help="of each scenario; 0: all")
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    options = parser.parse_args()
    for module in LATE:  # else every driver would import them
        importlib.import_module(module)
    points = Points()
    with tempfile.TemporaryDirectory() as home:
        chosen = [options.only] if options.only else list(SCENARIOS)
        wrong = sum(sweep(name, SCENARIOS[name], points, Path(home).resolve(), options.points) for name in chosen)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
