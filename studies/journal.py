"""Optuna journals with one writer: checksums in every line, transactions, and recovery of damaged files.

The format is Optuna's own, so that `optuna-dashboard FILE` shows any of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from results.files import CorruptFile, write_atomically

Direction = Literal["maximize", "minimize"]
CHECKSUM_KEY = b',"checksum":"'
CHECKSUM_LENGTH = 16  # hex digits


class JournalMismatch(ValueError):
    """A journal contradicts the records of its trials."""


@contextmanager
def quiet() -> Iterator[None]:
    """What Optuna calls experimental is so in name only: the versions in use are pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class ChecksummedFile(BaseJournalBackend):
    """The journal file of one `JournalStorage`, which is its only writer.

    Each line is a JSON object with an operation of Optuna's and two more keys, which Optuna ignores: `checksum`, of
    the line and of all lines before it, and `pending`, how many lines of the same transaction follow (absent: none).
    Opening a file drops an incomplete transaction at its end, which a killed writer left there. Lines of an older
    version, which wrote no checksums, are accepted if no line has one, and get theirs.

    Raises CorruptFile if anything else does not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        content = path.read_bytes()
        lines = _whole_lines(path, content)
        self.unchecked = bool(lines) and not any(CHECKSUM_KEY in line for line in lines)
        self.logs = _committed(path, lines if self.unchecked else _verified(path, lines))  # not read yet
        self.first = 0  # the number of the first of `logs`
        self.buffer: list[dict[str, Any]] | None = None  # the operations of an open transaction
        del lines[len(self.logs) :]
        self.last = _checksum_of(lines[-1]) if lines and not self.unchecked else ""
        if (size := sum(len(line) + 1 for line in lines)) < len(content):
            os.truncate(path, size)

    def add_checksums(self) -> None:
        """Rewrite a file of an older version."""
        text, self.last = _encoded(self.path.read_bytes().splitlines(), "")
        write_atomically(self.path, lambda file: file.write(text))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        self.logs = self.logs[log_number_from - self.first :]
        self.first = log_number_from
        yield from self.logs

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.buffer is None:
            self._write(logs)
        else:
            self.buffer += logs
        self.logs += logs

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all operations of this block at once, at its end; none of them if it raises."""
        if self.buffer is not None:  # part of an outer transaction
            yield
            return
        self.buffer = []
        try:
            yield
            logs = self.buffer
        finally:
            self.buffer = None
        if logs:
            self._write(logs)

    def _write(self, logs: list[dict[str, Any]]) -> None:
        marked = [
            {**log, "pending": pending} if pending else log
            for pending, log in zip(reversed(range(len(logs))), logs, strict=True)
        ]
        text, last = _encoded([json.dumps(log, separators=(",", ":")).encode() for log in marked], self.last)
        with self.path.open("ab", buffering=0) as file:
            file.write(text)
            os.fsync(file.fileno())
        self.last = last


def _encoded(bodies: list[bytes], last: str) -> tuple[bytes, str]:
    """The lines with their checksums, after a line whose checksum is `last`; and the checksum of the last of them."""
    lines = []
    for body in bodies:
        last = _chained(last, body)
        lines.append(body[:-1] + CHECKSUM_KEY + last.encode() + b'"}\n')
    return b"".join(lines), last


def _whole_lines(path: Path, content: bytes) -> list[bytes]:
    """All lines but an incomplete last one. Raises CorruptFile if that is not the beginning of an operation."""
    *lines, rest = content.split(b"\n")
    if rest and not rest.startswith(b"{"):
        raise CorruptFile(f"{path} ends in something that is no part of a journal")
    return lines


def _verified(path: Path, lines: list[bytes]) -> list[bytes]:
    """The lines without their checksums. Raises CorruptFile for the first line whose checksum does not fit."""
    bodies, last = [], ""
    for number, line in enumerate(lines, start=1):
        body, _, _ = line.rpartition(CHECKSUM_KEY)
        bodies.append(body + b"}")
        last = _chained(last, bodies[-1])
        if line != body + CHECKSUM_KEY + last.encode() + b'"}':
            raise CorruptFile(f"line {number} of {path} does not fit its checksum")
    return bodies


def _committed(path: Path, bodies: list[bytes]) -> list[dict[str, Any]]:
    """The operations of all complete transactions. Raises CorruptFile for a line that is no JSON object."""
    logs: list[dict[str, Any]] = []
    whole = 0
    for number, body in enumerate(bodies, start=1):
        try:
            log = json.loads(body)
        except ValueError as error:
            raise CorruptFile(f"line {number} of {path} is not valid JSON ({error})") from None
        if not isinstance(log, dict):
            raise CorruptFile(f"line {number} of {path} holds no JSON object")
        logs.append(log)
        whole = whole if log.pop("pending", 0) else number
    return logs[:whole]


def _chained(last: str, body: bytes) -> str:
    return hashlib.sha256(last.encode() + body).hexdigest()[:CHECKSUM_LENGTH]


def _checksum_of(line: bytes) -> str:
    return line.rpartition(CHECKSUM_KEY)[2][:CHECKSUM_LENGTH].decode()


class Journal:
    """The Optuna studies in one file. A file that cannot be used is put aside; `note` says so, and is else empty."""

    def __init__(self, path: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.note = path, ""
        for stale in path.parent.glob(f"{path.name}.lock*"):
            stale.unlink()  # of an older version's driver that was killed while it wrote; this one is alone
        try:
            self._open()
        except OSError:  # a full disk, say: no fault of the journal's
            raise
        except Exception:  # whatever a damaged file makes of the reader
            self.put_aside("could not be read")

    def put_aside(self, fault: str) -> None:
        """Keep the file under another name and begin an empty journal; `fault` says what is wrong with it."""
        number = len(list(self.path.parent.glob(f"{self.path.stem}.damaged-*")))
        damaged = self.path.with_suffix(f".damaged-{number}")
        self.path.rename(damaged)
        self._open()
        self.note = f"the journal {fault}; it was put aside as {damaged} and rebuilt"

    def _open(self) -> None:
        self.file = ChecksummedFile(self.path)
        with quiet():
            self.storage = JournalStorage(self.file)
        for study in self.storage.get_all_studies():
            self.storage.get_all_trials(study._study_id, deepcopy=False)
        if self.file.unchecked:
            self.file.add_checksums()
            self.note = f"{self.path} was written by an older version, without checksums; it is used as it is"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all changes of this block at once: a process that is killed leaves all of them or none."""
        with self.file.transaction():
            yield

    def study(self, name: str, **options: Any) -> optuna.Study | None:
        """Return the Optuna study of that name, or None."""
        if name not in [study.study_name for study in self.storage.get_all_studies()]:
            return None
        return optuna.load_study(study_name=name, storage=self.storage, **options)

    def new_study(self, name: str, directions: list[Direction], **options: Any) -> optuna.Study:
        return optuna.create_study(storage=self.storage, study_name=name, directions=directions, **options)
