"""Remove the files that killed processes left in the folders of a study and of its runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from results import declarations
from results.files import CorruptFile
from results.locks import locked
from results.record import read_record, run_folder, study_folder
from studies.checkpoint import remove

STAGED = re.compile(r"\.[\w.-]+\.[a-z0-9_]{8}")  # what `write_atomically` has not renamed, as a process was killed
OF_OTHERS = ".probe.json."  # staged without the run's lock
OLD_SECONDS = 3600.0  # after which a file that is staged without a lock is being written by no process
UNTIL_ENDED = ("attempts.json", "progress.json", "prune")
CHECKPOINTS = ("checkpoint.pt", "checkpoint.former.pt", "checkpoint.new.pt")


def remove_leftovers(runs: Path, study: str, run_ids: Iterable[str]) -> None:
    """Remove staged files, and what a run keeps only until it has ended. The caller holds the study's lock.

    Files that another process may be writing stay: those of a run whose lock is held, and young ones that are written
    without a lock.
    """
    home = study_folder(runs, study)
    for folder in (home, home / declarations.FOLDER):
        for name in _staged(folder):
            (folder / name).unlink(missing_ok=True)
    for run_id in run_ids:
        folder = run_folder(runs, run_id)
        _remove_old(folder / "evals", _staged(folder / "evals"))
        names = _names(folder)
        _remove_old(folder, [name for name in names if name.startswith(OF_OTHERS)])
        if any(name in (*UNTIL_ENDED, *CHECKPOINTS) or STAGED.fullmatch(name) for name in names):
            with suppress(BlockingIOError), locked(folder / "lock", seconds=0):
                _remove_of_run(runs, run_id)


def _remove_of_run(runs: Path, run_id: str) -> None:
    folder = run_folder(runs, run_id)
    for name in _staged(folder):
        if not name.startswith(OF_OTHERS):
            (folder / name).unlink(missing_ok=True)
    with suppress(CorruptFile):
        record = read_record(runs, run_id)
        if record is None or record.status in ("lost", "cancelled"):  # it goes on from what is there
            return
        for name in UNTIL_ENDED:
            (folder / name).unlink(missing_ok=True)
        if record.status in ("done", "diverged"):
            remove(folder / "checkpoint.pt")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _staged(folder: Path) -> list[str]:
    return [name for name in _names(folder) if STAGED.fullmatch(name)]


def _remove_old(folder: Path, names: list[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            if time.time() - (folder / name).stat().st_mtime > OLD_SECONDS:
                (folder / name).unlink()
