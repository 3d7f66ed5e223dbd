"""Run a command line so that every expected error ends as one sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import typer

from results.text import degrade_output, lacks_memory, print_error, unwritable

FAILED, INTERRUPTED = 2, 130  # exit codes
REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "choose another path or change its permissions",
    errno.EPERM: "choose another path or change its permissions",
    errno.EROFS: "choose a path that can be written",
}


def run_app(app: typer.Typer, name: str) -> NoReturn:
    """Run `app` on the command line's arguments and exit, with a code other than 0 where it failed.

    Bad input, files, memory, Ctrl-C and an output that cannot be written give one sentence; a fault in the program
    itself keeps its traceback.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        print_error("standard output is closed: redirect it to a file or to /dev/null")
        sys.exit(FAILED)
    output, sentence = sys.stdout, ""
    try:
        degrade_output()
        code: object = app(prog_name=name)
    except SystemExit as end:
        code, sentence = end.code, "interrupted" if end.code == INTERRUPTED else ""
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        code, sentence = FAILED, error_sentence(error)
        if not sentence:
            raise
    try:
        output.flush()
    except OSError as error:
        code, sentence = FAILED, unwritable(str(error.strerror))
        with open(os.devnull, "ab") as nowhere:
            os.dup2(nowhere.fileno(), output.fileno())  # Python flushes once more as it ends
    if sentence:
        with suppress(OSError):  # standard error cannot be written either
            print_error(sentence)
    sys.exit(code if isinstance(code, int) else FAILED if code else 0)


def error_sentence(error: BaseException) -> str:
    """What went wrong and what to do, on one line; empty for an error that nobody expects."""
    text = " ".join(str(error).split())
    if lacks_memory(error):
        return f"out of memory{f' ({text[:200]})' if text else ''}: ask for smaller or fewer inputs at a time"
    if isinstance(error, RecursionError):
        return f"nested too deeply ({text}): simplify the study file or delete the damaged JSON file"
    if isinstance(error, RuntimeError):
        return ""
    if isinstance(error, OSError) and error.strerror:
        if any(frame.f_globals["__name__"] == "rich.console" for frame, _ in traceback.walk_tb(error.__traceback__)):
            return unwritable(str(error.strerror))
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {REMEDIES.get(error.errno or 0, 'give another path')}"
    return text or type(error).__name__
