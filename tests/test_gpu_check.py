"""Does the check of a GPU say how each part ended, whatever happens to it, and leave one archive?"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, models
from benchmarks.gpu_check import NO_GPU, ROOT, Part, check, interpreter, parts
from benchmarks.training import WAYS, arms
from studies.spec import with_field

GPU = {"gpu": True, "xdist": True}
FACTS = {"interpreter": sys.executable, "gpu": False, "device": "a toaster", "commit": "abc"}


def archived(out: Path) -> dict[str, str]:
    """What the archive holds, by name; nothing else lies beside it."""
    assert [path.name for path in out.iterdir()] == ["gpu-check.tar.gz"]
    with tarfile.open(out / "gpu-check.tar.gz") as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        return {name: file.read().decode(errors="replace") for name, file in files.items() if file is not None}


def python(code: str, seconds: float = 30.0, name: str = "") -> Part:
    return Part(name or code.split("(")[0], ["-c", code], seconds)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts of a check on no machine in particular, to be filled."""
    plan: list[Part] = []
    monkeypatch.setattr(gpu_check, "parts", lambda facts, quick, folder: plan)
    monkeypatch.setattr(gpu_check, "asked_machine", lambda python: FACTS)
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.0)
    return plan


@pytest.mark.slow
def test_the_command_runs_for_real(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "new/out"), "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    files = archived(tmp_path / "new/out")
    text = files["gpu-check/summary.md"]
    assert "| tests | passed |" in text and "| training | passed |" in text and "still to come" not in text
    assert f"torch {torch.__version__}" in text and "commit" in text
    assert torch.cuda.is_available() or (f"**{NO_GPU}**" in text and NO_GPU in done.stdout)
    assert "| axes, ldn | launched |" in text and "| axes, Transformer | graphs |" in text
    assert sum(name.endswith("record.json") for name in files) == 5 and not any(n.endswith(".pt") for n in files)


def test_a_part_that_fails_or_hangs_stops_no_other(tmp_path: Path, planned: list[Part]) -> None:
    child = tmp_path / "child"
    forking = (
        "import subprocess, sys, time; print('before'); "
        f"child = subprocess.Popen(['sleep', '60']); open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    planned += [
        python("raise SystemExit('what | went wrong')", name="failing"),
        python(forking, seconds=1.5, name="hanging"),
        python("print('all is well')", name="fine"),
    ]
    assert check(tmp_path / "out", quick=False) is False
    files = archived(tmp_path / "out")
    rows = [line for line in files["gpu-check/summary.md"].splitlines() if line.startswith("| ")][1:]
    ends = [[cell.strip() for cell in row.replace("\\|", "/").split("|")[1:-1]] for row in rows]
    assert [(row[0], row[1], row[4]) for row in ends] == [
        ("failing", "failed (exit code 1)", "what / went wrong"),
        ("hanging", "cut off after 2 s", "KeyboardInterrupt"),  # it was asked to end
        ("fine", "passed", "all is well"),
    ]
    assert files["gpu-check/logs/3-fine.txt"] == "all is well\n"
    command = Path(f"/proc/{child.read_text()}/cmdline")
    deadline = time.monotonic() + 5
    while command.exists() and command.read_bytes():  # what the part had started has ended with it
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_archive_is_there_after_every_part(tmp_path: Path, planned: list[Part]) -> None:
    archive, copy = tmp_path / "gpu-check.tar.gz", tmp_path.with_name("copy") / "gpu-check.tar.gz"
    copy.parent.mkdir()
    planned += [
        python("print('first')", name="one"),
        python(f"import shutil; shutil.copy({str(archive)!r}, {str(copy)!r})", name="two"),
    ]
    assert check(tmp_path, quick=False) is True
    between, after = (archived(folder)["gpu-check/summary.md"] for folder in (copy.parent, tmp_path))
    assert "1 parts are still to come" in between and "| one | passed |" in between and "| two |" not in between
    assert "still to come" not in after and "| two | passed |" in after


def test_what_no_time_is_left_for_is_said(tmp_path: Path, planned: list[Part], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LIMIT", -1.0)
    planned.append(python("print('never')", name="late"))
    assert check(tmp_path, quick=False) is False
    text = archived(tmp_path)["gpu-check/summary.md"]
    assert "| late | left out: no time was left |" in text and "never" not in text.partition("## late")[0]


def test_nothing_is_installed_and_the_built_environment_is_used_only_where_this_python_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "sees_gpu", lambda: False)
    assert interpreter() == sys.executable
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_module"))
    assert interpreter() == sys.executable  # and its parts say what is missing
    built = tmp_path / ".venv/bin/python"
    built.parent.mkdir(parents=True)
    built.touch()
    assert interpreter() == str(built)
    monkeypatch.setattr(gpu_check, "sees_gpu", lambda: True)  # which the built one may not
    assert interpreter() == sys.executable


def test_time_on_a_gpu_is_not_spent_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "sees_gpu", lambda: True)
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_module"))
    assert not check(tmp_path / "out", quick=True)
    assert "sees a GPU but lacks no_such_module: install them first" in capsys.readouterr().out


def test_a_python_without_torch_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)  # where there is no such module
    facts = gpu_check.asked_machine(sys.executable)
    assert facts["gpu"] is False and facts["fault"].startswith("ModuleNotFoundError: ")
    assert facts["fault"] in gpu_check.summary(facts, [], 3, 1.0)


def test_on_a_gpu_what_must_be_right_comes_first_and_what_takes_longest_last(tmp_path: Path) -> None:
    plan = parts(GPU, False, tmp_path)
    assert [part.name for part in plan] == [
        "compiling", "tests of kernels", "bench of operators", "models", "tests", "training", "bench at 1K",
        "one layer",
    ]  # fmt: skip
    assert sum(part.seconds for part in plan[:4]) + 50 < gpu_check.LIMIT < 8 * 60  # some training always
    files = [word for part in plan for word in part.command if word.startswith("tests/")]
    assert "tests/test_gpu.py" in files and all((ROOT / file).is_file() for file in files)
    assert not any("-n" in part.command for part in parts({"gpu": False, "xdist": True}, False, tmp_path))


def test_models_are_trained_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["models", "--short"])
    with pytest.raises(SystemExit) as ended:
        models.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.count("| LDN | ") == 3 and said.count("| Transformer | ") == 2
    assert "| 8x, memory 0.7x |" in said and "nan" not in said


def test_every_way_of_training_names_fields_that_there_are() -> None:
    trained = arms(60, short=False)
    assert len({way.label for way in WAYS}) == len(WAYS) and WAYS[0].changed == {} and not WAYS[0].compile
    for way in WAYS:
        assert set(way.arms) <= trained.keys()
        for label in way.arms or trained:
            spec = trained[label]
            for path, value in way.changed.items():
                spec = with_field(spec, path, value)
            assert spec.budget.evaluations == 1
