"""Does it work where the environment lacks something: a home, cores, locks, a compiler, a file's permissions?"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from torch._inductor import cpp_builder
from typer.testing import CliRunner

from results.environment import expanded
from results.locks import is_held, locked
from studies import catalogue, snapshot
from studies.cluster import read_cluster
from studies.drive import sole_driver
from studies.executors import places
from studies.provenance import cores
from tests.test_drive import ROOT

HOMELESS = """
from results.environment import use_temporary_caches
use_temporary_caches()
import os, matplotlib
print(os.environ["TRITON_HOME"], matplotlib.get_cachedir())
"""


@pytest.mark.parametrize("home", ["/dev/null", "/nonexistent/home"])
def test_caches_go_elsewhere_where_there_is_no_home_and_nothing_is_complained_of(home: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": home, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", HOMELESS], env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(Path(folder).is_relative_to(tmp_path) and Path(folder).is_dir() for folder in done.stdout.split())


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    app, seen = typer.Typer(), []

    @app.command()
    def show(runs: Path = typer.Option(Path("~/default"), envvar="LDN_RUNS", callback=expanded)) -> None:  # noqa: B008
        seen.append(runs)

    for arguments, variables in (([], {}), (["--runs=~/a"], {}), ([], {"LDN_RUNS": "~/b"})):
        assert CliRunner().invoke(app, arguments, env=variables).exit_code == 0
    assert seen == [tmp_path / "default", tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match=r"^there is no home folder for ~nobody_of_that_name/x: give the full path$"):
        expanded(Path("~nobody_of_that_name/x"))
    (tmp_path / "own.py").touch()
    assert catalogue.source("~/own.py") == tmp_path / "own.py"
    (tmp_path / "slurm.toml").write_text('[sbatch]\nchdir = "~/work"\nnice = 5\n')
    assert read_cluster(tmp_path / "slurm.toml").sbatch == {"chdir": f"{tmp_path}/work", "nice": 5}


def test_slots_are_counted_by_the_cores_that_the_process_may_use(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        assert (cores(), len(places(tmp_path, tmp_path, "cpu", None, 1, False))) == (1, 1)
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() <= len(allowed)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    wanted = rf"it cannot be locked \({os.strerror(code)}\).*driver.lock"
    with pytest.raises(OSError, match=wanted) as refused, sole_driver(tmp_path / "studies" / "s", "s"):
        pass
    assert refused.value.errno == code
    assert not is_held(tmp_path / "studies" / "s" / "driver.lock")


def test_a_lock_file_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()

    def denied(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)  # a test may run as root, who may open all files
    wanted = rf"it belongs to user {os.getuid()} \(Permission denied\): '.*lock'"
    with pytest.raises(PermissionError, match=wanted), locked(lock):
        pass


def test_without_a_compiler_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()  # of a compiler that an earlier test has found
    with pytest.raises(ValueError, match=r"^torch.compile finds no C\+\+ compiler here: install g\+\+, .* --compile$"):
        places(tmp_path, tmp_path, "cpu", None, 1, compile=True)


def test_a_copy_of_the_code_is_shared_as_the_umask_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "UMASK", 0o002)
    assert snapshot.snapshot(tmp_path).stat().st_mode & 0o777 == 0o775
