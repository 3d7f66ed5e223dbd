"""A real SLURM on this machine, for tests: munge, MariaDB, slurmdbd, slurmctld and two slurmd, in a folder of its own.

    python -m tests.slurm.machine start FOLDER     # prints the line to evaluate: export SLURM_CONF=FOLDER/slurm.conf
    python -m tests.slurm.machine status FOLDER
    python -m tests.slurm.machine stop FOLDER

It has its own key, sockets and ports, and touches no SLURM or munge of the system.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tests.slurm import processes
from tests.slurm.configuration import Configuration, Ports, gres_conf, slurm_conf, slurmdbd_conf

T = TypeVar("T")

INSTALL = "apt-get install -y --no-install-recommends munge mariadb-server slurmctld slurmd slurmdbd slurm-client"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
NODES = ("n1", "n2")
NOISE = (
    "mpi/pmix",
    "MPI:",
    "Unauthorized credential",
)  # plugins that are not installed, and what SLURM asks munge of old


def missing() -> str:
    """Why no SLURM can be started here, as one sentence; empty where one can."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    if os.geteuid() != 0:
        return f"only root can start a real SLURM here{f', after: {INSTALL}' if absent else ''}"
    if absent:
        return f"a real SLURM needs {', '.join(absent)}, which this installs: {INSTALL}"
    return ""


class SlurmError(RuntimeError):
    """Something of SLURM failed; the message ends with what the logs said last."""


class Machine:
    """Use it as a context manager, or call start and stop. What a killed owner left is ended by the next start."""

    def __init__(self, folder: Path | None = None, config: Configuration | None = None, owner: str = "") -> None:
        self.folder = Path(folder).absolute() if folder else Path(tempfile.mkdtemp(prefix="ldn-slurm-", dir="/tmp"))
        if len(str(self.folder)) > 60:  # sockets lie below it, and their paths end at 108
            raise ValueError(f"the folder's path has to be shorter than 60 characters: {self.folder}")
        self.config = config or Configuration()
        self.owner = owner or processes.identity(os.getpid())
        self.conf = self.folder / "slurm.conf"
        self._host = socket.gethostname().partition(".")[0]
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._complaint = ""  # of the client that was asked last

    def __enter__(self) -> Machine:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # whole

    def start(self) -> Machine:
        if reason := missing():
            raise SlurmError(reason)
        end_abandoned()
        if owners := {d.owner for d in processes.daemons() if d.folder == self.folder} - {processes.NOBODY}:
            raise ValueError(f"{self.folder} is in use by process {', '.join(sorted(owners))}")
        try:
            self._start()
        except BaseException:
            processes.end(self.folder)
            raise
        return self

    def stop(self) -> None:
        """Ends every process of the machine, jobs included, and removes its folder."""
        remove(self.folder)

    def _start(self) -> None:
        remove(self.folder)
        for name in ("log", "state", "munge", "database", "tmp", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self._ports = _free_ports()
        self._write_configuration()
        self._start_munge()
        self._start_database()
        self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o400)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/socket",
            f"--pid-file={folder}/pid", f"--log-file={self.folder}/log/munged.log", f"--seed-file={folder}/seed",
        )  # fmt: skip
        self.wait_until((folder / "socket").exists, "munged opens its socket", timeout=30)

    def _start_database(self) -> None:
        data = self.folder / "database"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
        self.call(*install, "--auth-root-authentication-method=normal", timeout=120)
        init = self.folder / "init.sql"
        init.write_text(
            "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';\nGRANT ALL ON accounting.* TO slurm@'127.0.0.1';\n"
        )
        self._spawn(
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={self.folder}/mariadb",
            f"--port={self._ports.database}", "--bind-address=127.0.0.1", f"--pid-file={self.folder}/mariadb.pid",
            f"--tmpdir={self.folder}/tmp", f"--init-file={init}", "--skip-name-resolve", "--skip-log-bin",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        self.wait_until(lambda: _listens(self._ports.database), "mariadbd listens", timeout=60)

    def _start_accounting(self) -> None:
        self.start_accounting()
        # known before slurmctld starts, or its first jobs are not accounted
        self.call("sacctmgr", "--immediate", "add", "cluster", "ldn")

    # parts, for tests that break them

    def start_controller(self) -> None:
        self._spawn("slurmctld", "-D")
        self.wait_until(lambda: "UP" in self._answer("scontrol", "ping"), "slurmctld answers", timeout=60)

    def stop_controller(self, kill: bool = False) -> None:
        """As an administrator does, or (kill) as a crash does."""
        self._end_daemon("slurmctld", signal.SIGKILL if kill else signal.SIGTERM)

    def restart_controller(self, kill: bool = False) -> None:
        self.stop_controller(kill)
        self.start_controller()

    def start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=node)
        self.wait_until(lambda: self._serves(node), f"{node} is up", timeout=60)

    def kill_node(self, node: str) -> None:
        """As if its power was cut: slurmd, its steps and their jobs are gone at once, and no one is told."""
        self._children.pop(node, None)
        processes.end(self.folder, node)

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone dies; the node's jobs go on."""
        self._end_daemon(node, signal.SIGKILL)

    def settle(self) -> None:
        """As after start: everything runs, no job is left, both nodes are idle."""
        running = {d.name for d in processes.daemons() if d.folder == self.folder}
        if "slurmdbd" not in running:
            self.start_accounting()
        if "slurmctld" not in running:
            self.start_controller()
        for node in set(NODES) - running:
            self.start_node(node)
        self.call("scancel", "--user=root")
        try:
            self.wait_until(self._is_settled, "no job is left", timeout=15)
        except SlurmError:  # a node that was drained, or a job whose end the controller waits for up to a minute
            for node in NODES:
                self.kill_node(node)
                self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=settle")
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
                self.start_node(node)
            self.wait_until(self._is_settled, "no job is left")

    def stop_accounting(self) -> None:
        self._end_daemon("slurmdbd", signal.SIGTERM)

    def start_accounting(self) -> None:
        self._spawn("slurmdbd", "-D")
        self.wait_until(
            lambda: "Cluster" in self._answer("sacctmgr", "show", "cluster"), "slurmdbd answers", timeout=60
        )

    @contextlib.contextmanager
    def configured(self, **changes: Any) -> Iterator[None]:
        """Other fields of Configuration for a while: slurm.conf is written again and the controller restarted."""
        before = self.config
        self._reconfigure(replace(before, **changes))
        try:
            yield
        finally:
            self._reconfigure(before)

    def _reconfigure(self, config: Configuration) -> None:
        self.config = config
        self._write_configuration()
        self.restart_controller()
        self.call("scontrol", "reconfigure")

    # what a client does

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
            raise SlurmError(f"no answer within {timeout} s of {line}\n{self.logs() if logs else ''}") from late
        if done.returncode:
            complaint = f"{line} failed with {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}"
            raise SlurmError(f"{complaint}\n{self.logs() if logs else ''}")
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
        """Of a job's newest life, as sacct says: PENDING, RUNNING, COMPLETED, ... or nothing, for a moment."""
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
            if ended := [name for name, child in self._children.items() if child.poll() is not None]:
                raise SlurmError(f"{' and '.join(ended)} ended while waiting until {what}\n{self.logs()}")
            if time.monotonic() > deadline:
                complaint = self._complaint
                queue = self._answer("squeue", "--all") + self._answer("sinfo", "--all")
                raise SlurmError(f"not within {timeout:.0f} s: {what}\n{complaint}{queue}{self.logs()}")
            time.sleep(every)
        return value

    def logs(self, lines: int = 12) -> str:
        """The last lines of every daemon's log, or of what it printed before it had one."""
        text = []
        for printed in sorted((self.folder / "log").glob("*.out")):
            log = printed.with_suffix(".log")
            told = (log if log.exists() else printed).read_text(errors="replace").splitlines()
            if last := [line for line in told if not any(noise in line for noise in NOISE)][-lines:]:
                text.append("\n".join((f"-- {printed.stem}", *last)))
        return "\n".join(text)

    # how

    def _serves(self, node: str) -> bool:
        base, *marks = self.node_state(node).split("+")
        return base in ("IDLE", "MIXED", "ALLOCATED") and "NOT_RESPONDING" not in marks

    def _is_settled(self) -> bool:
        idle = all(self.node_state(node) == "IDLE" for node in NODES)
        return idle and not self.call("squeue", "--noheader", logs=False).strip()

    def _answer(self, *command: str) -> str:
        """What the command prints, nothing where it fails: then it is asked again, and an error says why it failed."""
        try:
            answer, self._complaint = self.call(*command, logs=False), ""
        except SlurmError as error:
            answer, self._complaint = "", f"{error}\n"
        return answer

    def _write_configuration(self) -> None:
        self.conf.write_text(slurm_conf(self.folder, self._host, self._ports, self.config))
        (self.folder / "gres.conf").write_text(gres_conf(self.config))
        (self.folder / "slurmdbd.conf").write_text(slurmdbd_conf(self.folder, self._host, self._ports))
        (self.folder / "slurmdbd.conf").chmod(0o600)

    def _spawn(self, *command: str, name: str = "") -> None:
        name = name or command[0]
        marks = {processes.FOLDER: str(self.folder), processes.DAEMON: name, processes.OWNER: self.owner}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, env=self.environment() | marks, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, start_new_session=True,  # a Ctrl-C in the terminal is for the tests
            )  # fmt: skip

    def _end_daemon(self, name: str, with_signal: signal.Signals) -> None:
        running = [d.pid for d in processes.daemons() if d.folder == self.folder and d.name == name]
        child = self._children.pop(name, None)
        for pid in running:
            os.kill(pid, with_signal)
        if child:
            child.wait(timeout=60)
        self.wait_until(lambda: not any(processes.identity(pid) for pid in running), f"{name} has ended", timeout=60)


def end_abandoned() -> None:
    """Ends the machines whose owners live no more."""
    for folder in {d.folder for d in processes.daemons() if not processes.alive(d.owner)}:
        remove(folder)


def remove(folder: Path) -> None:
    processes.end(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports() -> Ports:
    """Below those that the system gives out by itself, for a daemon has to get its port again when it is restarted."""
    free = (port for port in random.sample(range(20000, 32000), 1000) if not _listens(port))
    return Ports(next(free), next(free), next(free), (next(free), next(free)))


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "stop", "status"))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    machine = Machine(chosen.folder, owner=processes.NOBODY)
    if chosen.command == "start":
        machine.start()
        print(f"export SLURM_CONF={machine.conf}")
    elif chosen.command == "stop":
        machine.stop()
    else:
        running = sorted(d.name for d in processes.daemons() if d.folder == machine.folder)
        if not running:
            print(f"# no SLURM runs in {machine.folder}")
            return 1
        print(f"export SLURM_CONF={machine.conf}  # {', '.join(running)} run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
