"""What a SLURM under test is configured as, and the text of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Partition:
    """A partition over both nodes; jobs of a higher tier preempt, by requeue, those of a lower one."""

    name: str
    tier: int = 1
    grace: int = 0  # seconds from the notice of a preemption to the kill
    max_time: str = "INFINITE"  # "5" is 5 minutes

    def line(self, default: bool) -> str:
        return (
            f"PartitionName={self.name} Nodes=ALL Default={'YES' if default else 'NO'} State=UP PreemptMode=REQUEUE "
            f"PriorityTier={self.tier} GraceTime={self.grace} MaxTime={self.max_time}"
        )


@dataclass(frozen=True)
class Configuration:
    """Two nodes that claim to have more than the machine has, so that jobs which only wait run side by side."""

    partitions: tuple[Partition, ...] = (Partition("low", grace=5), Partition("high", tier=2))  # the first is default
    max_array_size: int = 1001  # the largest index is one less
    cpus: int = 8  # of each node
    memory: int = 16000  # MB, of each node
    gpus: int = 2  # of each node, at most 4; they do not exist, and share the names of their devices
    default_memory: int = 500  # MB for each CPU of a job that asks for nothing
    kill_wait: int = 5  # seconds from SIGTERM to SIGKILL at a time limit
    requeue_delay: int = 5  # seconds that a requeued job waits at least; SLURM's default is 120
    node_timeout: int = 10  # seconds until a silent node is down
    warn_of_preemption: bool = True  # by the signal of sbatch --signal; SLURM's default is not to
    bound: bool = False  # steps are bound to the cores that they ask for; with `cpus` that exist
    extra: tuple[str, ...] = ()  # further lines of slurm.conf


@dataclass(frozen=True)
class Ports:
    controller: int
    accounting: int
    database: int
    nodes: tuple[int, int]


def slurm_conf(folder: Path, host: str, ports: Ports, config: Configuration) -> str:
    lines = [
        "ClusterName=ldn",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports.controller}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge/socket,cred_expire={config.requeue_delay}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/%n.log",
        "ProctrackType=proctrack/linuxproc",
        *(("TaskPlugin=task/affinity", "TaskPluginParam=Cores") if config.bound else ("TaskPlugin=task/none",)),
        "MpiDefault=none",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=1",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        f"DefMemPerCPU={config.default_memory}",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"SlurmctldParameters={'preempt_send_user_signal' if config.warn_of_preemption else ''}",
        "SlurmdParameters=config_overrides",
        f"SlurmdTimeout={config.node_timeout}",
        f"KillWait={config.kill_wait}",
        f"MaxArraySize={config.max_array_size}",
        "ReturnToService=2",
        "JobRequeue=1",
        "MinJobAge=300",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=1",
        "JobAcctGatherParams=OverMemoryKill",
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports.accounting}",
        f"AccountingStoragePass=socket={folder}/munge/socket",  # where AuthInfo is not looked at
        "GresTypes=gpu",
        "AccountingStorageTRES=gres/gpu",
        *(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={config.cpus} "
            f"RealMemory={config.memory}{f' Gres=gpu:{config.gpus}' if config.gpus else ''} State=UNKNOWN"
            for i, port in enumerate(ports.nodes, start=1)
        ),
        *(partition.line(default=i == 0) for i, partition in enumerate(config.partitions)),
        *config.extra,
    ]
    return "\n".join(line for line in lines if not line.endswith("=")) + "\n"


def slurmdbd_conf(folder: Path, host: str, ports: Ports) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports.accounting}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports.database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
"""


def gres_conf(config: Configuration) -> str:
    """slurmd wants a device for each GPU, whichever: a job gets its number in CUDA_VISIBLE_DEVICES."""
    devices = ("null", "zero", "full", "random")[: config.gpus]
    return "".join(f"Name=gpu File=/dev/{device}\n" for device in devices)
