"""Which study file a study's folder belongs to. Both may be moved or copied: an absolute path is no identity."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "studies" / "ablations"
SUITE = "the suite's "


def source_of(path: Path) -> str:
    """What a manifest calls a study file: a study that ships by its name, any other by its absolute path."""
    path = path.resolve()
    return f"{SUITE}{path.stem}" if path.parent == SHIPPED else str(path)


def stored_source(source: str, folder: Path) -> str:
    """A source as it is written to a file in `folder`: relative, so that both can be moved together."""
    if not os.path.isabs(source):
        return source
    relative = os.path.relpath(source, folder.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def read_source(stored: str, folder: Path) -> str:
    """The source that a file in `folder` names."""
    return os.path.normpath(folder.resolve() / stored) if stored.startswith(".") else stored


def validate_source(path: Path, stored: str, source: str, alike: bool = True) -> None:
    """Raise ValueError if `path`, a file that belongs to the study of `stored`, is not one of the study of `source`.

    Two study files with the same text are one study. A study file that is gone was moved or is on another machine:
    then the study is the same if it is `alike`, that is, has runs in common with the one of `source`.
    """
    if stored == source:
        return
    both_there = Path(stored).is_file() and Path(source).is_file()
    if both_there and filecmp.cmp(stored, source, shallow=False):
        return
    if stored.startswith(SUITE) or Path(stored).is_file() or not alike:
        raise ValueError(
            f"{path} belongs to {stored}, not to {source}: rename the file, choose another --runs or, "
            f"if both are one study, delete {path}"
        )
