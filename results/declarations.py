"""What a study has declared so far, here or on another machine: one manifest for each set of cells.

`manifest.json` holds only the last one, and a copy of the folder from elsewhere replaces it. These files are named
after their content, so a merge of two folders keeps both, and no finished run is forgotten silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from results.files import CorruptFile
from results.record import Manifest, read_manifest, read_record, study_folder, write_manifest
from results.text import printable

FOLDER = "declared"
LISTED = 5  # arms, or seeds, that a note names


def keep_declaration(runs: Path, manifest: Manifest) -> None:
    """Write a manifest under a name made of its cells; remove those of which it holds all cells."""
    folder, cells = _folder(runs, manifest.study), _cells(manifest)
    digest = hashlib.sha256(json.dumps(sorted(cells)).encode()).hexdigest()[:16]
    if (folder / f"{digest}.json").exists():
        return
    write_manifest(runs, manifest, f"{FOLDER}/{digest}.json")
    for path, former in _former(runs, manifest.study):
        if isinstance(former, Manifest) and _cells(former) < cells:
            path.unlink(missing_ok=True)


def undeclared_note(runs: Path, manifest: Manifest) -> str:
    """Which finished runs the study has declared that the manifest does not hold; empty if there are none."""
    declared = {cell["run_id"] for cell in manifest.cells}
    finished: dict[str, tuple[str, int]] = {}
    for _, former in _former(runs, manifest.study):
        if isinstance(former, CorruptFile):
            return str(former)
        for cell in former.cells:
            run_id = cell["run_id"]
            if run_id not in declared and run_id not in finished and _is_done(runs, run_id):
                finished[run_id] = printable(cell["arm"]), cell["seed"]
    if not finished:
        return ""
    arms, seeds = (list(dict.fromkeys(values)) for values in zip(*finished.values(), strict=True))
    return (
        f"not shown: {len(finished)} finished run{'s'[: len(finished) > 1]} ({_listed('arm', arms)}; "
        f"{_listed('seed', sorted(seeds))}) that this study declared before or on another machine and does not declare "
        f"now; declare them again, or delete {_folder(runs, manifest.study)} to forget them"
    )


def _folder(runs: Path, study: str) -> Path:
    return study_folder(runs, study) / FOLDER


def _former(runs: Path, study: str) -> Iterator[tuple[Path, Manifest | CorruptFile]]:
    for path in sorted(_folder(runs, study).glob("[!.]*.json")):
        try:
            former = read_manifest(runs, study, f"{FOLDER}/{path.name}")
        except CorruptFile as error:
            yield path, error
            continue
        if former is not None:  # else it was removed just now
            yield path, former


def _cells(manifest: Manifest) -> set[tuple[str, int, str]]:
    return {(cell["arm"], cell["seed"], cell["run_id"]) for cell in manifest.cells}


def _is_done(runs: Path, run_id: str) -> bool:
    try:
        record = read_record(runs, run_id)
    except CorruptFile:
        return False
    return record is not None and record.status == "done"


def _listed(what: str, values: Sequence[object]) -> str:
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return f"{what}{'s'[: len(values) > 1]} {', '.join(map(str, values[:LISTED]))}{more}"
