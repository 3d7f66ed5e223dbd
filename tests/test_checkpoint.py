"""Is a checkpoint that is damaged or does not belong to the run refused, and the one before it taken?"""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldn.model import LDNConfig
from results.record import RunRecord
from studies import checkpoint
from studies.spec import Budget, RunSpec
from studies.tasks.digits import CuedDigits
from studies.train import Place, Stopped, train

TASK = CuedDigits(view="image", train=70, valid=32, test=48)
SPEC = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2), task=TASK, batch=8, budget=Budget(steps=6, evaluations=1), seed=1
)
OTHER = dataclasses.replace(SPEC, seed=7)
Edit = Callable[[bytes], bytes]


def stopped(spec: RunSpec, where: Place, steps: int) -> Path:
    """Train for some steps from the current state, then stop. Return the checkpoint's path."""
    asked = itertools.count()
    with pytest.raises(Stopped):
        train(spec, where, stop=lambda: next(asked) >= steps)
    return where.runs / spec.run_id / "checkpoint.pt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The run's checkpoints of the steps 2 and 4, another run's of step 4, and the whole run in `whole`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    where = Place(folder / "runs", folder / "data")
    for spec in (SPEC, OTHER):
        stopped(spec, where, 2)
        stopped(spec, where, 2)
    train(SPEC, Place(folder / "whole", where.data))
    return where


def resumed(place: Place, folder: Path, edit: Edit, names: tuple[str, ...] = ("checkpoint.pt",)) -> RunRecord:
    """The run's record, trained on from a copy in which these checkpoints are edited."""
    shutil.copytree(place.runs / SPEC.run_id, folder / SPEC.run_id)
    for name in names:
        path = folder / SPEC.run_id / name
        path.write_bytes(edit(path.read_bytes()))
    return train(SPEC, Place(folder, place.data))


def bit_flipped(content: bytes) -> bytes:
    """The exponent of one weight is changed, which the archive of torch does not notice."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]


def block_zeroed(content: bytes) -> bytes:
    return content[:4096] + bytes(4096) + content[8192:]


def shortened(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_checksum(content: bytes) -> bytes:
    return content[: -checkpoint.TRAILER]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (bit_flipped, "its checksum does not match its content"),
        (block_zeroed, "its checksum does not match its content"),
        (shortened, "cannot be used"),
        (without_checksum, "its checksum is missing"),
        (lambda content: b"", "cannot be used"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(
    edit: Edit, reason: str, place: Place, tmp_path: Path
) -> None:
    record = resumed(place, tmp_path, edit)
    whole = train(SPEC, Place(place.runs.parent / "whole", place.data))
    assert (record.status, record.weights_hash, record.files) == ("done", whole.weights_hash, whole.files)
    note = record.attempts[-1]["checkpoint"]
    assert note.startswith("checkpoint.former.pt, step 2; ") and reason in note
    assert record.attempts[-1]["first_step"] == 2


def test_a_checkpoint_of_another_run_is_refused(place: Place, tmp_path: Path) -> None:
    foreign = (place.runs / OTHER.run_id / "checkpoint.pt").read_bytes()
    record = resumed(place, tmp_path, lambda content: foreign)
    assert f"it belongs to run {OTHER.run_id}" in record.attempts[-1]["checkpoint"]
    assert record.attempts[-1]["first_step"] == 2


def test_where_no_checkpoint_is_whole_it_is_said_what_to_do(place: Place, tmp_path: Path) -> None:
    record = resumed(place, tmp_path, bit_flipped, ("checkpoint.pt", "checkpoint.former.pt"))
    path = tmp_path / SPEC.run_id / "checkpoint.pt"
    assert record.status == "failed" and path.exists()
    assert record.reason == (
        f"ValueError: {path} cannot be used (its checksum does not match its content); delete it to start the run anew"
    )


def of_an_older_version(content: bytes, **changes: Any) -> bytes:
    """The same checkpoint as it was written before it had a checksum; `changes` are those of its state."""
    plain = torch.load(io.BytesIO(content), weights_only=True)
    plain["state"] |= changes
    file = io.BytesIO()
    torch.save({name: plain[name] for name in ("network", "optimiser", "state")}, file)
    return file.getvalue()


def test_a_checkpoint_of_an_older_version_is_read_with_a_note(place: Place, tmp_path: Path) -> None:
    record = resumed(place, tmp_path, of_an_older_version)
    whole = train(SPEC, Place(place.runs.parent / "whole", place.data))
    assert record.weights_hash == whole.weights_hash
    assert record.attempts[-1]["checkpoint"] == "checkpoint.pt, step 4, written by an older version, without a checksum"


def test_an_edited_step_does_not_fit_the_optimiser(place: Place, tmp_path: Path) -> None:
    record = resumed(place, tmp_path, lambda content: of_an_older_version(content, step=10**6))
    assert "it is of step 1000000, its optimiser of step 4" in record.attempts[-1]["checkpoint"]


def test_data_that_have_changed_between_two_starts_are_noticed(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.runs / SPEC.run_id, tmp_path / SPEC.run_id)
    network = SPEC.model.build(TASK.input, TASK.target)
    optimiser = torch.optim.AdamW(network.parameters())
    path = tmp_path / SPEC.run_id / "checkpoint.pt"
    checkpoint.save(path, checkpoint.Origin(SPEC.run_id, "f00d"), network, optimiser, checkpoint.State(step=4))
    record = train(SPEC, Place(tmp_path, place.data))
    assert record.status == "failed" and path.exists()
    assert "the data have changed since" in record.reason and "fingerprint f00d, now " in record.reason
