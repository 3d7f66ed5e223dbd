"""A study whose driver is killed anywhere ends as an undisturbed one: a sample of `make kill-sweep`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_study_killed_at_any_file_operation_ends_as_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "tests.kill_sweep", "--points", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" points, 0 differences\n") == 6
