"""What tests ask of a SLURM: its commands, what they say as plain values, and waiting until they say it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.slurm.daemons import Daemons, SlurmError

T = TypeVar("T")

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


class Client:
    def __init__(self, folder: Path, daemons: Daemons) -> None:
        self.folder, self.daemons = folder, daemons
        self.conf = folder / "slurm.conf"
        self._complaint = ""  # of the command that was asked last

    def environment(self) -> dict[str, str]:
        """Of a client: this SLURM, and nothing that another left."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SACCT", "SQUEUE"))}
        return kept | {"PATH": PATH, "SLURM_CONF": str(self.conf)}

    def call(self, *command: str, timeout: float = 60, logs: bool = True) -> str:
        """What the command prints; raises with what it complains of."""
        line = " ".join(command)
        try:
            done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise SlurmError(f"no answer within {timeout} s of {line}\n{self.daemons.logs() if logs else ''}") from late
        if done.returncode:
            complaint = f"{line} failed with {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}"
            raise SlurmError(f"{complaint}\n{self.daemons.logs() if logs else ''}")
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """A batch job of these lines of bash; its id."""
        output = f"--output={self.folder}/tmp/%j.out"
        return self.call("sbatch", "--parsable", output, *options, f"--wrap={script}").strip()

    def job(self, job: str) -> dict[str, str]:
        """What slurmctld says of a job: JobState, Restarts, Reason, NodeList, ..."""
        fields = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def accounted(self, job: str, *fields: str) -> list[tuple[str, ...]]:
        """The rows of sacct, of all lives of a job that was requeued; steps are left out."""
        options = ("--noheader", "--parsable2", "--allocations", "--duplicates")
        lines = self.call("sacct", *options, f"--jobs={job}", f"--format={','.join(fields)}").splitlines()
        return [tuple(line.split("|")) for line in lines]

    def state(self, job: str) -> str:
        """Of a job's newest life, as sacct says, seconds late: PENDING, RUNNING, COMPLETED, ... or nothing."""
        rows = self.accounted(job, "State")
        return rows[-1][0].split()[0] if rows else ""  # CANCELLED by 0

    def wait_for(self, job: str, *states: str, timeout: float = 60) -> str:
        """Until the job is in one of the states; which."""
        what = f"job {job} is {' or '.join(states)}"
        return self.wait_until(lambda: state if (state := self.state(job)) in states else "", what, timeout)

    def node_state(self, node: str) -> str:
        """IDLE, MIXED, DOWN+NOT_RESPONDING, IDLE+DRAIN, ... (sinfo may call a node mixed that has no job any more)."""
        fields = self._answer("scontrol", "show", "node", "--oneliner", node).split()
        return next((field.removeprefix("State=") for field in fields if field.startswith("State=")), "")

    def wait_until(self, condition: Callable[[], T], what: str, timeout: float = 60, every: float = 0.2) -> T:
        """The condition's value once it holds; raises, with the queue and the logs, when it does not in time."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if ended := self.daemons.ended():
                raise SlurmError(f"{' and '.join(ended)} ended while waiting until {what}\n{self.daemons.logs()}")
            if time.monotonic() > deadline:
                complaint = self._complaint
                queue = self._answer("squeue", "--all") + self._answer("sinfo", "--all")
                raise SlurmError(f"not within {timeout:.0f} s: {what}\n{complaint}{queue}{self.daemons.logs()}")
            time.sleep(every)
        return value

    def _answer(self, *command: str) -> str:
        """What the command prints, nothing where it fails: then it is asked again, and an error says why it failed."""
        try:
            answer, self._complaint = self.call(*command, logs=False), ""
        except SlurmError as error:
            answer, self._complaint = "", f"{error}\n"
        return answer
