"""Are files that were damaged, edited or written by an older version told apart, in one sentence?"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from results.files import CorruptFile, read_json, write_json
from results.record import (
    CostRecord,
    Manifest,
    RunRecord,
    content_id,
    older_files,
    read_attempts,
    read_cost,
    read_manifest,
    read_progress,
    read_record,
    run_folder,
    study_folder,
    write_cost,
    write_manifest,
    write_record,
)

SPEC = {"schema": 1, "model": {"name": "ldn"}, "seed": 3}
RECORD = RunRecord(
    run_id=content_id(SPEC), spec=SPEC, status="done", metrics={"test": {"accuracy": 0.5, "loss": 0.7}},
    attempts=[{"node": "n", "seconds": 1.5}],
)  # fmt: skip
MANIFEST = Manifest(
    study="s", source="the suite's s", question="?", reference="a", metric="test.accuracy", direction="max",
    arms=[{"label": "a", "reference": "a", "changes": {}, "note": ""}],
    cells=[{"arm": "a", "seed": 3, "run_id": RECORD.run_id, "factors": {}}],
)  # fmt: skip


def test_json_is_strict_and_numbers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [0.1, math.nan, -math.inf], "b": {1: "NaN"}})
    text = path.read_text()
    assert "NaN," in text.replace('"', "") and json.loads(text, parse_constant=pytest.fail)
    assert read_json(path, "") == {"a": [0.1, "NaN", "-Infinity"], "b": {"1": "NaN"}}
    record = CostRecord(
        label="x", model={}, task={}, input={}, tokens=1, batch=1, dtype="float32", work="forward", compiled=False,
        status="refused", reason="?",
    )  # fmt: skip
    found = read_cost(write_cost(tmp_path, record))
    assert math.isnan(found.median) and dataclasses.replace(found, **dict.fromkeys(NOT_MEASURED, 0.0)) == (
        dataclasses.replace(record, **dict.fromkeys(NOT_MEASURED, 0.0))
    )


NOT_MEASURED = ("median", "low", "high", "gmac", "copy_gb_s", "matmul_tflop_s")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": 1, "a": 2}', "is not valid JSON .an object has the same key twice"),
        ('{"a": ' * 100_000, "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON"),
        ("[1]", "holds no JSON object"),
        ("", "is not valid JSON"),
        ('{"a": NaN, "sha256": "0"}', "its checksum does not match its content"),
        ('{"a": 1, "sha256": [1]}', "its checksum does not match its content"),
        ('{"a": 1, "schema": 2}', "its checksum is missing"),
    ],
)
def test_what_is_no_whole_json_object_is_one_sentence_with_the_remedy(
    content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CorruptFile, match=rf"^.*a\.json .*{reason}.*; do this$"):
        read_json(tmp_path / "a.json", "do this")


def test_every_edit_of_a_record_is_noticed(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    path = run_folder(tmp_path, RECORD.run_id) / "record.json"
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        try:
            assert read_record(tmp_path, RECORD.run_id) == RECORD, i  # a space became another one
        except CorruptFile as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attempts": [1]}, "attempts.0: Input should be a valid dictionary"),
        ({"attempts": [{"seconds": None}]}, "attempts.0.seconds: Input should be a valid number"),
        ({"attempts": [{"seconds": "1"}]}, "attempts.0.seconds: Input should be a valid number"),
        ({"metrics": {"test": {"accuracy": "high"}}}, "metrics.test.accuracy: Input should be a valid number"),
        ({"metrics": {"test": {"accuracy": -5}}}, "accuracy must be between 0 and 1, not -5"),
        ({"metrics": {"valid": {"loss": -0.1}}}, "loss must not be negative"),
        ({"steps": True}, "steps: Input should be a valid integer"),
        ({"steps": -1}, "steps: Input should be greater than or equal to 0"),
        ({"status": "finished"}, "status: Input should be 'done'"),
        ({"color": 1}, r"unknown fields \['color'\]"),
        ({"schema": 99}, r"newer version \(schema 99"),
        ({"spec": SPEC | {"seed": 4}}, "holds another spec than that of run"),
        ({"run_id": "f" * 16}, "belongs to run f"),
    ],
)
def test_a_record_that_is_wrong_inside_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = run_folder(tmp_path, RECORD.run_id) / "record.json"
    write_json(path, vars(RECORD) | changes)
    with pytest.raises(CorruptFile, match=reason):
        read_record(tmp_path, RECORD.run_id)


@pytest.mark.parametrize("changes", [{"cells": [1]}, {"arms": [{"label": 1}]}, {"tuning": {"a": 1}}, {"study": "t"}])
def test_a_manifest_that_is_wrong_inside_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path, "s") == MANIFEST
    write_json(study_folder(tmp_path, "s") / "manifest.json", vars(MANIFEST) | changes)
    with pytest.raises(CorruptFile, match=r"manifest\.json"):
        read_manifest(tmp_path, "s")


def test_what_a_running_run_writes_is_checked(tmp_path: Path) -> None:
    for name, read in (("progress.json", read_progress), ("attempts.json", read_attempts)):
        assert read(tmp_path, "x") is None
        for content in ('{"a": 1}', '{"attempts": [1]}', "[1]"):
            path = run_folder(tmp_path, "x") / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            with pytest.raises(CorruptFile, match=rf"{name} .*; delete it"):
                read(tmp_path, "x")
        path.unlink()


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    plain = dataclasses.asdict(RECORD) | {"schema": 1, "metrics": {"train": {"loss": math.nan}}}
    del plain["files"]
    path = run_folder(tmp_path, RECORD.run_id) / "record.json"
    path.parent.mkdir()
    path.write_text(json.dumps(plain))
    found = read_record(tmp_path, RECORD.run_id)
    assert found is not None and (found.schema, found.files) == (1, {}) and math.isnan(found.metrics["train"]["loss"])
    assert older_files([found, RECORD]) == ["Records written by an older version, without checksums: 1."]
    write_record(tmp_path, found)
    found = read_record(tmp_path, RECORD.run_id)
    assert found is not None and found.schema == 2
