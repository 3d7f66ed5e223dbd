"""Journals: every change of a file is found, an incomplete transaction is dropped, and Optuna itself can read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from results.files import CorruptFile
from studies.journal import ChecksummedFile, Journal


def written(path: Path) -> Journal:
    """A journal of a study, a trial that has ended, one that goes on, and one that waits."""
    journal = Journal(path)
    study = journal.new_study("s", ["maximize"])
    with journal.transaction():
        first = study.ask()
        first.suggest_float("x", 0.0, 1.0)
    with journal.transaction():
        first.set_user_attr("run_ids", ["a", "b"])
        study.tell(first, 0.5)
    study.ask().suggest_float("x", 0.0, 1.0)
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.25, intermediate_values={9: 1.0, 10: 2.0}))
    study.enqueue_trial({"x": 0.25})
    return journal


def trials(storage: JournalStorage) -> list[tuple[Any, ...]]:
    loaded = optuna.load_study(study_name="s", storage=storage)
    return [(t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs) for t in loaded.get_trials()]


def test_optuna_and_a_second_opening_read_the_same_trials(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    expected = trials(written(path).storage)
    content = path.read_bytes()
    assert trials(JournalStorage(JournalFileBackend(str(path)))) == expected
    again = Journal(path)
    assert trials(again.storage) == expected and again.note == "" and path.read_bytes() == content


def test_every_changed_byte_is_found_or_belongs_to_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    written(path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CorruptFile, match=r"line \d+ of .* does not fit its checksum"):
            ChecksummedFile(path)
    path.write_bytes(content[:-1] + b"\x0b")  # the last line break
    assert len(ChecksummedFile(path).logs) == content.count(b"\n") - 1


def test_lines_that_are_missing_repeated_or_written_by_others_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    foreign = json.dumps({"op_code": 3, "worker_id": "w", "study_id": 0, "system_attr": {"note": "n"}}).encode() + b"\n"
    for changed in (lines[1:], lines[:2] + lines[3:], lines[:3] + lines[2:], [*lines, foreign], [foreign, *lines]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(CorruptFile, match=re.escape(str(path))):
            ChecksummedFile(path)


def test_a_file_cut_anywhere_has_all_complete_transactions_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    written(path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    ends = [0]  # of transactions
    for number, line in enumerate(lines):
        if not json.loads(line).get("pending", 0):
            ends.append(sum(map(len, lines[: number + 1])))
    assert len(ends) < len(lines)
    for cut in range(0, len(content), 5):
        path.write_bytes(content[:cut])
        ChecksummedFile(path)
        assert path.stat().st_size == max(end for end in ends if end <= cut)
    reopened = Journal(path)  # goes on where the file ends
    if reopened.study("s") is not None:
        reopened.study("s").enqueue_trial({})  # type: ignore[union-attr]
    assert Journal(path).note == ""


def test_a_transaction_that_raises_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal = written(path)
    content = path.read_bytes()
    with pytest.raises(ZeroDivisionError), journal.transaction():
        optuna.load_study(study_name="s", storage=journal.storage).ask()
        raise ZeroDivisionError
    assert path.read_bytes() == content


def test_a_file_of_an_older_version_gets_checksums_and_a_note(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    expected = trials(written(path).storage)
    old = [json.loads(line) for line in path.read_text().splitlines()]
    for log in old:
        log.pop("checksum"), log.pop("pending", None)
    path.write_text("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in old) + '{"op_code":4,"wor')
    first = Journal(path)
    assert first.note == f"{path} was written by an older version, without checksums; it is used as it is"
    assert trials(first.storage) == expected and all("checksum" in line for line in path.read_text().splitlines())
    assert Journal(path).note == ""
