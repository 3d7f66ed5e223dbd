"""How are files written and read, that many processes and machines share, so that none is ever seen half written?

A file is written beside its place and renamed onto it: a reader sees the old one or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

STALE = 5  # times that a file is read again which was replaced just then
T = TypeVar("T")
UMASK = os.umask(0)
os.umask(UMASK)


class CorruptFile(ValueError):
    """A file of ours that cannot be read; the message says which, why, and what to do."""


def read_again(read: Callable[[], T]) -> T:
    """What `read` gives, however often another machine replaces the file meanwhile: NFS then calls it stale."""
    for _ in range(STALE):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The JSON object in `path`, None if there is no such file; CorruptFile (with `remedy`) if it holds none."""
    try:
        plain = json.loads(read_again(path.read_bytes))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(plain, dict):
        raise CorruptFile(f"{path} holds no JSON object; {remedy}")
    return plain


def write_json(path: Path, plain: dict[str, Any]) -> None:
    text = json.dumps(plain, indent=1, allow_nan=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it onto `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~UMASK)  # mkstemp makes files private; a shared folder is meant to be shared
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def made_folder(folder: Path) -> Path:
    """The folder, made if it is not there. Raises OSError, in one sentence, where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"there can be no folder {folder} ({error.strerror}): choose another place") from None
    return folder
