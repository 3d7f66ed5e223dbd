"""What differs between the environments of users: the home folder, `~` in paths, folders for caches."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def expanded(path: Path) -> Path:
    """A path of the command line with `~` replaced, as no shell does in --runs=~/x or in a variable.

    Raises ValueError where there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {path}: give the full path") from None


def use_temporary_caches() -> None:
    """Without a home folder to write to, have Triton and Matplotlib keep their caches in a temporary one.

    Triton would fail, and Matplotlib warn at every start. Processes that are started later inherit this.
    """
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    folder = Path(tempfile.gettempdir()) / f"ldn-caches-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("TRITON_HOME", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(folder))
