"""How are files written and read, that many processes and machines share, so that none is ever seen half written?

A file is written beside its place and renamed onto it: a reader sees the old one or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

CHECKSUM = "sha256"  # the key of a JSON file's checksum
FIRST_CHECKED = 2  # the first schema whose files must have one
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
    """Read a JSON object and verify its checksum; None if there is no such file.

    Raises CorruptFile (with `remedy`) unless the file is strict JSON with the right checksum. Files of versions that
    wrote no checksum are read as well, and only these may hold bare NaN and Infinity.
    """
    try:
        plain = json.loads(read_again(path.read_bytes), object_pairs_hook=_object)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(plain, dict):
        raise CorruptFile(f"{path} holds no JSON object; {remedy}")
    stored, schema = plain.pop(CHECKSUM, None), plain.get("schema")
    if stored is None and isinstance(schema, int) and schema >= FIRST_CHECKED:
        raise CorruptFile(f"{path} is damaged: its checksum is missing; {remedy}")
    if stored is not None and not _matches(stored, plain):
        raise CorruptFile(f"{path} is damaged or was edited: its checksum does not match its content; {remedy}")
    return plain


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) < len(pairs):
        raise ValueError("an object has the same key twice")
    return plain


def _matches(checksum: Any, plain: dict[str, Any]) -> bool:
    try:
        return bool(checksum == json_checksum(plain))
    except (ValueError, RecursionError):  # bare NaN or Infinity, or too deep
        return False


def write_json(path: Path, plain: Mapping[str, Any], flush: bool = True) -> None:
    """Write a JSON object with its checksum. Non-finite numbers become the strings "NaN", "Infinity", "-Infinity"."""
    content = json_bytes(plain)
    write_atomically(path, lambda file: file.write(content), flush)


def json_bytes(plain: Mapping[str, Any]) -> bytes:
    """What `write_json` writes."""
    try:
        text = json.dumps(plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(plain), allow_nan=False)
    plain = json.loads(text)  # keys are text from here on, as they are for the reader
    return (json.dumps({**plain, CHECKSUM: json_checksum(plain)}, indent=1) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def json_checksum(plain: Any) -> str:
    """The sha256 of the compact JSON text with sorted keys. Raises ValueError if a number is not finite."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """The sha256 of a file's bytes. A file is read once in a process, and again if its size or time has changed."""
    found = path.stat()
    return _checksum(path, found.st_size, found.st_mtime_ns)


@cache
def _checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, checksum: str | None, remedy: str) -> None:
    """Raise CorruptFile if the file has another checksum. None: not known, as of files of older versions."""
    if checksum is not None and file_checksum(path) != checksum:
        raise CorruptFile(f"{path} is damaged or was edited: its checksum is not that in its record; {remedy}")


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], flush: bool = True) -> None:
    """Let `write` fill a file beside `path`, then rename it onto `path`.

    With `flush` the content is on the disk before the rename, so that it also survives a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~UMASK)  # mkstemp makes files private; a shared folder is meant to be shared
        os.replace(beside, path)
    except BaseException as error:
        Path(beside).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror and not error.filename:  # a write does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def made_folder(folder: Path) -> Path:
    """The folder, made if it is not there. Raises OSError, in one sentence, where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"there can be no folder {folder} ({error.strerror}): choose another place") from None
    return folder
