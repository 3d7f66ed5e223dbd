"""Everything a run can be made of: the models and the tasks, by name."""

from __future__ import annotations

from typing import TypeVar

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig
from ldn import Config, LDNConfig, ModelConfig, PaperSequenceConfig, PaperVisionConfig
from studies.tasks.digits import CuedDigits, Digits
from studies.tasks.images import CIFAR10, FashionMNIST
from studies.tasks.listops import ListOps
from studies.tasks.task import Task

C = TypeVar("C", bound=Config)

MODELS: tuple[type[ModelConfig], ...] = (
    LDNConfig,
    PaperVisionConfig,
    PaperSequenceConfig,
    TransformerConfig,
    RNNConfig,
    ViTConfig,
    LinearConfig,
)

TASKS: tuple[type[Task], ...] = (
    Digits,
    CuedDigits,
    ListOps,
    FashionMNIST,
    CIFAR10,
)


def by_name(table: tuple[type[C], ...]) -> dict[str, type[C]]:
    """The entries of MODELS or TASKS by their names."""
    return {entry.name: entry for entry in table}


def named(what: str, table: tuple[type[C], ...], name: str) -> type[C]:
    """The entry of MODELS or TASKS of that name; `what` it is. Raises ValueError listing the known ones."""
    known = by_name(table)
    if name not in known:
        raise ValueError(f"there is no {what} named {name!r}; known: {', '.join(known)}")
    return known[name]
