"""What sbatch is given for a job: its options, and the defaults that the environment holds for the others."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from studies.cluster import Cluster

KEY = "KEY"  # stands for a submission's key where nothing is submitted
SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")  # a job does not set these by itself
SECRET = ("SLURM_JWT",)  # shown without its value
# sbatch's variables whose name is not that of the option
OPTIONS = {
    "array-inx": "array", "mem-per-cpu": "mem", "mem-per-gpu": "mem", "mem-per-node": "mem", "no-requeue": "requeue",
    "timelimit": "time",
}  # fmt: skip
OWN = {"array", "wait"}  # options that only the suite decides on: it submits and returns


def submit_parameters(cluster: Cluster, name: str) -> dict[str, Any]:
    """The keyword arguments of submitit's executor. Without `wckey`, submitit would ask for one called submitit."""
    return cluster.parameters(name) | {"wckey": None, "additional_parameters": {"requeue": True, **cluster.sbatch}}


def sbatch_options(parameters: dict[str, Any], folder: Path, jobs: int) -> list[str]:
    """Return the sbatch options of a submission, as its script holds them."""
    script = _make_sbatch_string("", folder, map_count=jobs if jobs > 1 else None, **parameters)
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def sbatch_environment(options: Iterable[str]) -> dict[str, str]:
    """SLURM's variables that reach sbatch: the user's and the site's, without those of the job that this runs in.

    To sbatch a variable comes before an option of the script, so those of the given options are left out.
    """
    given = OWN | {option.removeprefix("--").partition("=")[0] for option in options}
    in_job = "SLURM_JOB_ID" in os.environ
    kept = {}
    for name, value in os.environ.items():
        option = name.removeprefix("SBATCH_").lower().replace("_", "-")
        if name.startswith("SBATCH_"):
            wanted = OPTIONS.get(option, option) not in given and not (in_job and "-bind" in option)
        else:
            wanted = name in SITE or (not in_job and name.startswith(("SLURM_", "SRUN_")))
        if wanted:
            kept[name] = value
    return kept


def sbatch_lines(cluster: Cluster, folder: Path, jobs: int) -> list[str]:
    """What a submission from a study's folder gives to sbatch, for a person."""
    options = sbatch_options(submit_parameters(cluster, f"{folder.name}.{KEY}"), folder / "slurm" / KEY, jobs)
    kept = sbatch_environment(options)
    shown = [n if n in SECRET else f"{n}={shlex.quote(v)}" for n, v in sorted(kept.items())]
    return ["sbatch: " + " ".join(options), *(["environment: " + " ".join(shown)] if shown else [])]


def refuse_site(runs: Path, cluster: Cluster) -> None:
    """Raise ValueError where jobs could not be found again, or their logs could not be written."""
    if "SBATCH_CLUSTERS" in os.environ or {"clusters", "cluster", "M"} & cluster.sbatch.keys():
        raise ValueError(
            "jobs sent to another cluster by SBATCH_CLUSTERS or by clusters in slurm.toml could not be found again: "
            "set SLURM_CLUSTERS to its name instead, which squeue and scancel follow too"
        )
    clusters = os.environ.get("SLURM_CLUSTERS", "")
    if "," in clusters or clusters == "all":
        raise ValueError(f"SLURM_CLUSTERS is {clusters!r}: set it to one cluster, where the jobs are to run")
    if set("%\\\n") & set(str(runs)):
        raise ValueError(f"SLURM replaces % and \\ in the paths of logs: choose another --runs than {runs}")
