"""What is an Optuna journal of ours? A file with one writer, put aside when it cannot be read, and then rebuilt.

`optuna-dashboard FILE` shows any of them as it is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

Direction = Literal["maximize", "minimize"]


@contextmanager
def quiet() -> Iterator[None]:
    """What Optuna calls experimental is so in name only: the versions in use are pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class Journal:
    """The Optuna studies in one file. `damaged` is where an unreadable file was put aside, if one was."""

    def __init__(self, path: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.damaged: Path | None = None
        for stale in path.parent.glob(f"{path.name}.lock*"):
            stale.unlink()  # of a driver that was killed while it wrote; this one is alone
        try:
            self.storage = self._open()
        except OSError:  # a full disk, say: no fault of the journal's
            raise
        except Exception:  # whatever a damaged file makes of the reader
            number = len(list(path.parent.glob(f"{path.stem}.damaged-*")))
            self.damaged = path.with_suffix(f".damaged-{number}")
            path.rename(self.damaged)
            self.storage = self._open()

    def _open(self) -> JournalStorage:
        *_, last = b"", *(self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else [])
        if last:  # a torn one Optuna would overlook, write on in the same line, and stumble over that
            if not last.endswith(b"\n"):
                raise ValueError(f"{self.path} ends in half a line")
            json.loads(last)
        with quiet():
            storage = JournalStorage(JournalFileBackend(str(self.path)))
        for study in storage.get_all_studies():
            storage.get_all_trials(study._study_id, deepcopy=False)
        return storage

    def study(self, name: str, directions: Sequence[Direction], **options: Any) -> optuna.Study:
        """The Optuna study of that name, a new one if there is none."""
        return optuna.create_study(
            storage=self.storage, study_name=name, directions=directions, load_if_exists=True, **options
        )

    @property
    def note(self) -> str:
        """What its reader must know of the damage; empty where there was none."""
        return f"the journal could not be read; it was put aside as {self.damaged} and rebuilt" if self.damaged else ""
