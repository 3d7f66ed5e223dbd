"""Does every expected error of a command end as one sentence on standard error, with an exit code other than 0?"""

from __future__ import annotations

import errno
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import typer

from results.cli import error_sentence, run_app
from results.files import write_atomically
from results.text import error_text

ROOT = Path(__file__).resolve().parent.parent
STUDY = """
from ldn import LDNConfig
from studies.spec import Budget, RunSpec
from studies.study import Study
from studies.tasks.digits import Digits
ARM = RunSpec(model=LDNConfig(width=8, depth=1, heads=2), task=Digits(), budget=Budget(steps=2))
STUDY = Study(question="?", reference="ldn", arms={"ldn": ARM})
"""
Refuse = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """What `python -m studies ...` (or another module) says as it refuses, called in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    (tmp_path / "mine.py").write_text(STUDY)

    def call(*arguments: str, module: str = "studies", lines: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        said = capfd.readouterr()
        assert end.value.code in (2, 130) and "Traceback" not in said.err, said
        assert lines != 1 or (said.err.startswith("error: ") and said.err.count("\n") == 1), said.err
        return said.err

    return call


# study files

FILES: dict[str, tuple[bytes | str, str]] = {
    "exits": ("import sys\nsys.exit(0)", "line 2: the file ends the program; a study file only defines STUDY"),
    "asserts": ("assert 1 == 2", "line 1: AssertionError, without a message"),
    "raises": ("raise ValueError", "line 1: ValueError, without a message"),
    "memory": ("x = [0] * 10**15", "line 1: out of memory: make what the file builds smaller"),
    "recursion": ("def f(): f()\nf()", "line 1: maximum recursion depth exceeded"),
    "base": ("raise BaseException('stop')", "line 1: stop"),
    "faulty": ("class E(Exception):\n  def __str__(self): return 1 / 0\nraise E", "line 3: E, without a message"),
    "nested": ("x = " + "(" * 300 + ")" * 300, "too many nested parentheses"),
    "class": (STUDY + "STUDY = Study\n", "defines no STUDY = Study"),
    "import": ("import nowhere_to_be_found", "line 1: No module named"),
    "latin": (b'x = "\xff\xfe"', "can't decode byte 0xff"),
    "nul": (b"x = 1\0", "mine_nul.py: source code string cannot contain null bytes"),
    "interrupted": ("raise KeyboardInterrupt", "interrupted"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_study_file_that_fails_is_one_sentence(name: str, tmp_path: Path, refused: Refuse) -> None:
    text, message = FILES[name]
    path = tmp_path / f"mine_{name}.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused("show", path.name)


def test_a_path_that_is_no_study_file_is_one_sentence(tmp_path: Path, refused: Refuse) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "mine.txt").write_text(STUDY)
    assert "there is no study file folder.py (it is a folder)" in refused("show", "folder.py")
    assert "./mine.txt is no study file: its name must end in .py" in refused("show", "./mine.txt")
    (tmp_path / "secret.py").symlink_to("/proc/1/mem")  # not readable, not even by root
    assert "secret.py" in refused("show", "secret.py")


# arguments


@pytest.mark.parametrize("run_id", ["/etc", "..", "", "*", "g", "0" * 17])
def test_logs_takes_the_beginning_of_an_id_only(run_id: str, refused: Refuse) -> None:
    assert f"{run_id!r} is no run's id" in refused("logs", run_id)


@pytest.mark.parametrize("lengths", [f"{10**18}", "9" * 5000, "-5", "0", "1e3", "8,,16", "none,8", str(2**24 + 1)])
def test_lengths_are_numbers_that_a_model_could_read(lengths: str, refused: Refuse) -> None:
    assert "--lengths takes numbers of tokens from 1 to 16777216" in refused("bench", "--lengths", lengths)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["run", "mine.py", "--slots", "1000000000"], "--slots"),
        (["run", "mine.py", "--threads", "100000"], "--threads"),
        (["eval", "mine.py", "--threads", "100000"], "--threads"),
        (["bench", "mine.py", "--threads", "100000"], "--threads"),
        (["bench", "mine.py", "--seconds", "inf"], "--seconds"),
        (["bench", "mine.py", "--longest", "nan"], "--longest"),
        (["status", "mine.py", "--watch", "--every", "nan"], "--every"),
        (["status", "mine.py", "--watch", "--every", "inf"], "--every"),
    ],
)
def test_an_option_out_of_range_is_refused(arguments: list[str], option: str, refused: Refuse) -> None:
    assert f"Invalid value for '{option}'" in refused(*arguments, lines=5)


@pytest.mark.parametrize("folder", ["mine.py", "/dev/null/x", "/proc/x"])
@pytest.mark.parametrize("command", ["run", "status", "cancel", "logs", "bench", "eval", "probe", "results"])
def test_a_folder_that_cannot_be_used_is_one_sentence(command: str, folder: str, refused: Refuse) -> None:
    name = "abc" if command == "logs" else "mine.py"
    more = {"run": ["--on", "inline"], "bench": ["--lengths", "8"]}.get(command, [])
    if command == "results":
        refused(name, "--runs", folder, module="results")
    else:
        refused(command, name, "--runs", folder, *more)


def test_the_name_of_a_study_is_no_path(refused: Refuse) -> None:
    for name in ("/etc", "/etc/passwd", "some/"):
        assert f"runs has no study {name!r}" in refused(name, module="results")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def fill(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as raised:
        write_atomically(tmp_path / "some.json", fill)
    assert error_sentence(raised.value) == f"{tmp_path}/some.json: No space left on device; make room on its disk"


def test_out_of_memory_comes_first_in_the_reason_of_a_run() -> None:
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    assert error_text(error).startswith("out of memory ([enforce fail")
    assert error_text(MemoryError()) == "out of memory (MemoryError)"


# errors of commands


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: ask for smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), r"out of memory \(DefaultCPU"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OSError(errno.EROFS, "Read-only file system", "x/y"), "x/y: Read-only file system; choose a path that can"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; give another path"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=repr,
)
def test_an_expected_error_is_one_sentence(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as end:
        run_app(app, "x")
    said = capfd.readouterr().err
    assert end.value.code in (2, 130) and said.startswith("error: ") and said.count("\n") == 1
    assert re.search(message, said)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(RuntimeError, match="shapes"):
        run_app(app, "x")


# output that cannot be written


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        ("> /dev/full", "standard output cannot be written (No space left on device): redirect it elsewhere"),
        (">&-", "standard output is closed: redirect it to a file or to /dev/null"),
        ("| sleep 0", "standard output cannot be written (Broken pipe): redirect it elsewhere"),
        ("> /dev/full 2> /dev/full", ""),
        ("nope 2>&-", ""),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(redirection: str, message: str) -> None:
    # what follows the pipe has ended before anything is written to it
    command = f"set -o pipefail; {sys.executable} -c '{WAITING}' list {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, 1), done
    assert done.stderr == (f"error: {message}\n" if message else "")


WAITING = 'import runpy, sys, time; time.sleep(0.3); runpy.run_module("studies", run_name="__main__")'
