"""A real SLURM on this machine, for tests: munge, MariaDB, slurmdbd, slurmctld and two slurmd, in a folder of its own.

    python -m tests.slurm.machine start FOLDER     # prints the line to evaluate: export SLURM_CONF=FOLDER/slurm.conf
    python -m tests.slurm.machine status FOLDER
    python -m tests.slurm.machine stop FOLDER

It has its own key, sockets and ports, and touches no SLURM, munge or MariaDB of the system. What SLURM 22.05 was seen
to do on it, hardly to be guessed from its manual:

- Time limits, and the end of a preemption's grace, are looked at every 30 s: both may be so much later, and the signal
  of `--signal` so much earlier. One set further ahead than the limit is long comes at the job's very start.
- A preempted job's steps get SIGCONT and SIGTERM, its batch script nothing; at the end of the grace both get them, and
  after KillWait SIGKILL. The signal of `--signal` comes (instead of SIGTERM) under preempt_send_user_signal alone.
- After a preemption, the loss of a node and `scontrol requeue` the job starts again, 120 s later unless AuthInfo has a
  cred_expire, with SLURM_RESTART_COUNT; after a time limit it does not. Its former lives are PREEMPTED, NODE_FAIL and
  REQUEUED, in sacct with --duplicates alone. The file of --output begins anew unless --open-mode=append.
- A silent node is down after SlurmdTimeout and up to 30 s. If slurmd is back sooner, its lost jobs are RUNNING for some
  30 s more. Where slurmd alone died, jobs go on.
- A controller that is killed forgets what came after it last wrote its state, 5 s or more: a job that started since is
  started once more, then held ("launch failed requeued held"), and its node drained ("Duplicate jobid"). A job whose
  steps end while there is no controller stays in squeue (CG) up to a minute after it has COMPLETED.
- A job of more memory than it asked for is FAILED with 0:9 and not OUT_OF_MEMORY, for there are no cgroups here; under
  srun the step alone is killed, and the batch script goes on with srun's 137.
- sinfo may call a node mixed minutes after its last job; `scontrol show node` does not.
- Clients find slurmdbd's munge socket in AccountingStoragePass, not in AuthInfo.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.slurm import processes
from tests.slurm.client import PATH, Client
from tests.slurm.configuration import Configuration, Ports, gres_conf, slurm_conf, slurmdbd_conf
from tests.slurm.daemons import Daemons, SlurmError

INSTALL = "apt-get install -y --no-install-recommends munge mariadb-server slurmctld slurmd slurmdbd slurm-client"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
NODES = ("n1", "n2")
MARKER = "a-slurm-for-tests"  # in its folder, which is removed with all that it holds; says the owner
TEMPORARY = "ldn-slurm-"


def missing() -> str:
    """Why no SLURM can be started here, as one sentence; empty where one can."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    if os.geteuid() != 0:
        return f"only root can start a real SLURM here{f', after: {INSTALL}' if absent else ''}"
    if absent:
        return f"a real SLURM needs {', '.join(absent)}, which this installs: {INSTALL}"
    return ""


class Machine(Client):
    """Use it as a context manager, or call start and stop. What a killed owner left is ended by the next start."""

    def __init__(self, folder: Path | None = None, config: Configuration | None = None, owner: str = "") -> None:
        folder = Path(folder).absolute() if folder else Path(tempfile.mkdtemp(prefix=TEMPORARY, dir="/tmp"))
        if len(str(folder)) > 60:  # sockets lie below it, and their paths end at 108
            raise ValueError(f"the folder's path has to be shorter than 60 characters: {folder}")
        super().__init__(folder, Daemons(folder, owner or processes.identity(os.getpid())))
        self.config = config or Configuration()
        self._host = socket.gethostname().partition(".")[0]

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
        remove(self.folder)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends every process of the machine, jobs included, and removes its folder."""
        remove(self.folder)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MARKER).write_text(self.daemons.owner)
        for name in ("log", "state", "munge", "database", "tmp", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
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
        self.daemons.end("slurmctld", signal.SIGKILL if kill else signal.SIGTERM)

    def restart_controller(self, kill: bool = False) -> None:
        self.stop_controller(kill)
        self.start_controller()

    def start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=node)
        self.wait_until(lambda: self._serves(node), f"{node} is up", timeout=60)

    def kill_node(self, node: str) -> None:
        """As if its power was cut: slurmd, its steps and their jobs are gone at once, and no one is told."""
        self.daemons.end_node(node)

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone dies; the node's jobs go on."""
        self.daemons.end(node, signal.SIGKILL)

    def settle(self) -> None:
        """As after start: everything runs, no job is left, both nodes are idle."""
        running = self.daemons.running()
        if "slurmdbd" not in running:
            self.start_accounting()
        if "slurmctld" not in running:
            self.start_controller()
        for node in set(NODES) - set(running):
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
        self.daemons.end("slurmdbd", signal.SIGTERM)

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
        rebound = config.bound != self.config.bound
        self.config = config
        self._write_configuration()
        self.restart_controller()
        if rebound:  # a plugin is loaded when slurmd starts
            for node in NODES:
                self.kill_slurmd(node)
                self.start_node(node)
        self.call("scontrol", "reconfigure")

    # how

    def _serves(self, node: str) -> bool:
        base, *marks = self.node_state(node).split("+")
        return base in ("IDLE", "MIXED", "ALLOCATED") and "NOT_RESPONDING" not in marks

    def _is_settled(self) -> bool:
        idle = all(self.node_state(node) == "IDLE" for node in NODES)
        return idle and not self.call("squeue", "--noheader", logs=False).strip()

    def _write_configuration(self) -> None:
        self.conf.write_text(slurm_conf(self.folder, self._host, self._ports, self.config))
        (self.folder / "gres.conf").write_text(gres_conf(self.config))
        (self.folder / "slurmdbd.conf").write_text(slurmdbd_conf(self.folder, self._host, self._ports))
        (self.folder / "slurmdbd.conf").chmod(0o600)

    def _spawn(self, *command: str, name: str = "") -> None:
        self.daemons.spawn(*command, environment=self.environment(), name=name)


def end_abandoned() -> None:
    """Ends the machines whose owners live no more; also one that is half removed, and runs nothing."""
    owners = {daemon.folder: daemon.owner for daemon in processes.daemons()}
    for marker in Path("/tmp").glob(f"{TEMPORARY}*/{MARKER}"):
        with contextlib.suppress(FileNotFoundError):  # another start is at it
            owners[marker.parent] = marker.read_text()
    for folder, owner in owners.items():
        if owner and not processes.alive(owner):
            remove(folder)


def remove(folder: Path) -> None:
    """Ends what runs in the folder, and removes it; but never one that holds something else."""
    processes.end(folder)
    if (folder / MARKER).exists():
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # with the marker, for what is half removed is to be found
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else than a SLURM for tests")


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
        running = sorted(machine.daemons.running())
        if not running:
            print(f"# no SLURM runs in {machine.folder}")
            return 1
        print(f"export SLURM_CONF={machine.conf}  # {', '.join(running)} run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
