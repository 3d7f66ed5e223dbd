"""File locks between processes and machines; the system releases the lock of a process that died."""

from __future__ import annotations

import errno
import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, seconds: float = math.inf, mode: str = "a+") -> Iterator[IO[str]]:
    """Hold the lock `path`, after waiting up to `seconds` for another holder; the open file.

    Raises BlockingIOError if it is still held, and OSError, in one sentence, where the file cannot be opened or locked.
    """
    until = time.monotonic() + seconds
    with _opened(path, mode) as file:
        while not _flock(file, fcntl.LOCK_EX):
            if time.monotonic() >= until:
                raise BlockingIOError(f"{path} is held by another process")
            time.sleep(POLL_SECONDS)
        yield file


def is_held(path: Path) -> bool:
    """Whether a process holds this lock. Where there are no locks, no process can hold one."""
    try:
        with path.open(encoding="utf-8") as file:
            return not _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise


def _flock(file: IO[str], operation: int) -> bool:
    """Whether the file could be locked. Raises OSError, in one sentence, where its file system has no locks."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # without the file's name
        advice = "choose a folder on a file system with file locks"
        raise OSError(error.errno, f"it cannot be locked ({error.strerror}): {advice}", file.name) from None
    return True


def _opened(path: Path, mode: str) -> IO[str]:
    try:
        return path.open(mode, encoding="utf-8")
    except PermissionError as error:
        owner = path.stat().st_uid if path.exists() else path.parent.stat().st_uid
        raise PermissionError(error.errno, f"it belongs to user {owner} ({error.strerror})", str(path)) from None
