"""What does a cluster's SLURM have to be told? The facts of one site, in `slurm.toml`, as slurm.example.toml says."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from ldn.config import AtLeast, Config, refuse_unknown

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d\d))?(?::(?P<seconds>\d\d))?")

DRIVER_MEMORY = 4  # GB


@dataclass(frozen=True, kw_only=True)
class Cluster(Config):
    """One job's share of a cluster, and how runs are laid into jobs.

    A job asks for `cpus`, `gpus` and `memory` (GB) for `time` and is given `runs_per_job` runs, which its `slots` take
    one after another (by default one a GPU, or as many as the CPUs have room for). `parallel` jobs of an array run at
    once. `signal_delay` seconds before its time is over a job is told to write its checkpoints and is queued again, at
    most `requeues` times. `setup` are lines of shell that a job begins with, `sbatch` any further options of sbatch.
    `driver` holds what the job of a search's driver wants different: it asks for one CPU and no GPU.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "4:00:00"
    gpus: Annotated[int, AtLeast(0)] = 0
    cpus: Annotated[int, AtLeast(1)] = 1
    memory: Annotated[float, AtLeast(0.001)] | None = None
    parallel: Annotated[int, AtLeast(1)] = 256
    runs_per_job: Annotated[int, AtLeast(1)] = 1
    slots: Annotated[int, AtLeast(1)] | None = None
    signal_delay: Annotated[int, AtLeast(1)] = 90
    requeues: Annotated[int, AtLeast(0)] = 100
    setup: tuple[str, ...] = ()
    sbatch: dict = field(default_factory=dict)
    driver: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "driver" in self.driver:
            raise ValueError("[driver] cannot hold a further driver")
        refuse_unknown(Cluster, self.driver)
        if self.minutes * 60 <= self.signal_delay:
            raise ValueError(
                f"time {self.time} is no longer than signal_delay, {self.signal_delay} s: a job would stop as it starts"
            )

    @property
    def minutes(self) -> int:
        """The time limit as SLURM counts it, in whole minutes. ValueError if `time` is in none of SLURM's forms."""
        found = TIME.fullmatch(self.time)
        if found is None or (found["seconds"] and not found["minutes"]):
            raise ValueError(f"time must be H:MM:SS or D-H:MM:SS, like 4:00:00, not {self.time!r}")
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        if not found["days"] and not found["seconds"]:  # "30" and "30:00" are minutes to SLURM
            hours, minutes, seconds = 0, hours, minutes
        return -(-(((days * 24 + hours) * 60 + minutes) * 60 + seconds) // 60)

    @property
    def grace(self) -> float:
        """Seconds that runs get for their checkpoints when their job is told to stop; the rest is for its end."""
        return self.signal_delay * 0.7

    def slots_for(self, threads: int) -> int:
        """How many runs a job trains at a time."""
        return self.slots or self.gpus or max(1, self.cpus // threads)

    @property
    def has_gpus(self) -> bool:
        """Whether a job is given GPUs: by `gpus`, or by an option of sbatch's."""
        return self.gpus > 0 or any(
            name.startswith("gpus") or (name.startswith(("gres", "tres")) and "gpu" in str(value))
            for name, value in self.sbatch.items()
        )

    def device_for(self, device: str) -> str:
        """Where the runs of a job train: "auto" is a GPU where jobs are given some, and only there.

        Raises ValueError for a GPU that no job is given.
        """
        kind = device.partition(":")[0]
        if kind not in ("auto", "cpu", "cuda"):
            raise ValueError(f"there is no device {device!r}; known: auto, cpu, cuda, cuda:N")
        if kind == "cuda" and not self.has_gpus:
            raise ValueError(f"--device {device} needs GPUs, and jobs ask for none: set gpus in slurm.toml")
        return device if kind != "auto" else "cuda" if self.has_gpus else "cpu"

    def refuse(self, threads: int) -> None:
        """Raise ValueError if a run's threads are more than a job's CPUs."""
        if threads > self.cpus:
            raise ValueError(
                f"--threads {threads} is more than a job has CPUs: it asks for {self.cpus}, by cpus in slurm.toml"
            )

    def misfits(self, device: str, threads: int, slots: int | None) -> list[str]:
        """What a job will lack, or leave idle, a sentence each."""
        count, said = slots or self.slots_for(threads), []
        if count * threads > self.cpus:
            each = f" of {threads} threads" if threads > 1 else ""
            said.append(f"{count} slots{each} share the {self.cpus} CPU{'s'[: self.cpus > 1]} of a job (cpus)")
        if device == "cuda" and count < self.gpus:
            said.append(f"{self.gpus - count} of the {self.gpus} GPUs of a job stay idle (slots)")
        return said

    def for_driver(self) -> Cluster:
        """What the job of a search's driver asks for."""
        little: dict[str, Any] = {"gpus": 0, "cpus": 1, "memory": self.memory and DRIVER_MEMORY, "constraint": None}
        return replace(self, **little | {"sbatch": {}, "driver": {}} | self.driver)

    def parameters(self, name: str) -> dict[str, Any]:
        """What submitit is told of a job, by its own names."""
        asked: dict[str, Any] = {
            "job_name": name, "partition": self.partition, "account": self.account, "qos": self.qos,
            "constraint": self.constraint, "time": self.minutes, "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus, "mem": None if self.memory is None else f"{round(self.memory * 1024)}MB",
            "array_parallelism": self.parallel, "signal_delay_s": self.signal_delay, "stderr_to_stdout": True,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value is not None}


def read_cluster(path: Path) -> Cluster:
    """The facts in a slurm.toml. Raises ValueError in one sentence for what is unknown, unfit, or not there at all."""
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"there is no {path}, which says what to ask of SLURM: copy slurm.example.toml to {path} and change what "
            f"your cluster wants different"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        refuse_unknown(Cluster, plain)
        cluster = Cluster(**plain)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # sbatch does not replace ~ by the home folder
    options = {
        name: os.path.expanduser(value) if isinstance(value, str) else value for name, value in cluster.sbatch.items()
    }
    return replace(cluster, sbatch=options)
