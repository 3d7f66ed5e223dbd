"""Which studies are there, and how is one found by its name or its file?"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from results.identity import SHIPPED
from results.text import lacks_memory

if TYPE_CHECKING:  # a study imports torch; listing the studies must not
    from studies.study import Study


def shipped() -> dict[str, str]:
    """The studies that ship: name -> the first line of the file's docstring, read without running it."""
    found = {}
    for path in sorted(SHIPPED.glob("[a-z]*.py")):
        found[path.stem] = (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
    return found


def source(name: str, besides: str = "") -> Path:
    """The file of a study: a shipped one by its name, any other by its path.

    Raises ValueError for a name that is not known, which ends in what is known `besides`, and FileNotFoundError for a
    path that is not there.
    """
    if "/" in name or name.endswith(".py"):
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise FileNotFoundError(f"there is no study file {name}{' (it is a folder)' if path.is_dir() else ''}")
        if path.suffix != ".py":
            raise ValueError(f"{name} is no study file: its name must end in .py")
        if not re.fullmatch(r"\w[\w-]*", path.stem):
            raise ValueError(f"a study is named after its file: call {path.name} by letters, digits, '_' and '-' only")
        return path
    if name not in shipped():
        raise ValueError(
            f"there is no study {name!r}; known: {', '.join(shipped())}, or give the path of your own study file"
            f"{besides}"
        )
    return SHIPPED / f"{name}.py"


def load(path: Path) -> Study:
    """The STUDY of a study file, with what tuning has found for it, if that lies beside.

    Raises ValueError with one sentence if the file does not give one, or if what was found no longer fits it.
    """
    from results.record import read_tuning
    from studies.tuning import misfit, tuned_file

    study = declared(path)
    tuned = read_tuning(tuned_file(path))
    if tuned is None:
        return study
    if why := misfit(tuned, study.tuning, study.declared()):
        raise ValueError(
            f"{tuned_file(path)} does not fit {path.name} any more, {why}: tune again "
            f"(`python -m studies tune`), or delete it"
        )
    study = dataclasses.replace(study, tuned=tuned)
    _check(path, study)
    return study


def declared(path: Path) -> Study:
    """The STUDY of a study file as it stands there. Raises ValueError with one sentence if it does not give one."""
    from studies.study import Study

    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks there for what its annotations mean
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise ValueError(f"{path}{line}: {error.msg}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{path}{_line_in(str(spec.origin), error)}: {_reason(error)}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"{path} defines no STUDY = Study(...)")
    _check(path, study)
    return study


def _check(path: Path, study: Study) -> None:
    from studies.checks import check_study

    try:
        check_study(study)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _reason(error: BaseException) -> str:
    """What an exception of a study file says; of one that says nothing, its type."""
    if isinstance(error, SystemExit):
        return "the file ends the program; a study file only defines STUDY"
    if lacks_memory(error):
        return "out of memory: make what the file builds smaller"
    with suppress(Exception):
        if text := str(error):
            return text
    return f"{type(error).__name__}, without a message"


def _line_in(file: str, error: BaseException) -> str:
    """The last line of `file` that the error passed through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f", line {line}"
