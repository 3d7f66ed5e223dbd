"""The daemons of one machine: started in the foreground with its mark, ended one by one, and what their logs say."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.slurm import processes

# plugins that Debian does not install, and a question of SLURM that munge always declines
NOISE = ("mpi/pmix", "MPI:", "Unauthorized credential")


class SlurmError(RuntimeError):
    """Something of SLURM failed; the message ends with what the logs said last."""


class Daemons:
    def __init__(self, folder: Path, owner: str) -> None:
        self.folder, self.owner = folder, owner
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, *command: str, environment: dict[str, str], name: str = "") -> None:
        name = name or command[0]
        marks = {processes.FOLDER: str(self.folder), processes.DAEMON: name, processes.OWNER: self.owner}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, env=environment | marks, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, start_new_session=True,  # a Ctrl-C in the terminal is for the tests
            )  # fmt: skip

    def running(self) -> dict[str, int]:
        return {daemon.name: daemon.pid for daemon in processes.daemons() if daemon.folder == self.folder}

    def ended(self) -> list[str]:
        """Those that ended though nothing here ended them."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def end(self, name: str, by: signal.Signals, timeout: float = 60) -> None:
        child, pid = self._children.pop(name, None), self.running().get(name)
        if pid:
            os.kill(pid, by)
        deadline = time.monotonic() + timeout
        while (child and child.poll() is None) or (pid and processes.identity(pid)):
            if time.monotonic() > deadline:
                raise SlurmError(f"{name} does not end within {timeout:.0f} s of {by.name}\n{self.logs()}")
            time.sleep(0.05)

    def end_node(self, node: str) -> None:
        """slurmd, its steps and their jobs."""
        self._children.pop(node, None)
        processes.end(self.folder, node)

    def logs(self, lines: int = 12) -> str:
        """The last lines of every log, or of what a daemon printed before it had one."""
        text = []
        for printed in sorted((self.folder / "log").glob("*.out")):
            log = printed.with_suffix(".log")
            told = (log if log.exists() else printed).read_text(errors="replace").splitlines()
            if last := [line for line in told if not any(noise in line for noise in NOISE)][-lines:]:
                text.append("\n".join((f"-- {printed.stem}", *last)))
        return "\n".join(text)
