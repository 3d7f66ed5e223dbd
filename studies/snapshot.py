"""What code does a queued job run? A copy taken when it was submitted, so that editing afterwards changes nothing.

The copy's folder is named after its content: a thousand runs submitted from the same code share one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from results.files import UMASK, json_bytes
from studies.provenance import ROOT, STAMP, commit

ROOMS = ("ldn", "baselines", "studies", "results")


def snapshot(runs: Path) -> Path:
    """The folder under `runs` that holds a copy of this code and, in a file STAMP, of which commit it is."""
    sources = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    content = {path.relative_to(ROOT): path.read_bytes() for path in sources}
    content[Path(STAMP)] = json_bytes(commit())
    digest = hashlib.sha256()
    for path, data in content.items():
        digest.update(f"{path} {len(data)} ".encode() + data)
    folder = runs.resolve() / "code" / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        beside.chmod(0o777 & ~UMASK)
        for path, data in content.items():
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            (beside / path).write_bytes(data)
        os.rename(beside, folder)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not folder.exists():  # else another submission was faster
            raise
    return folder
