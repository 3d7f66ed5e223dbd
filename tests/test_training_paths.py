"""Every task in every view, and every model with every value of its choices, is trained for two steps and evaluated.

A path that is only built and metered can fail at the first batch. Batches of two, on small files of the official
layout. Every model on CIFAR-10 and ListOps: `test_ablations`, by the study `comparison`.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from ldn import LDNConfig
from ldn.classifier import ModelConfig
from ldn.config import Config
from results.record import RunRecord
from studies.evaluate import evaluations
from studies.probe import probed
from studies.spec import Budget, RunSpec
from studies.subjects import ModelSubject
from studies.tasks import image_files, images
from studies.tasks.digits import CuedDigits
from studies.tasks.images import CIFAR10
from studies.tasks.listops import ListOps
from studies.tasks.task import Task
from studies.train import Place, train
from studies.zoo import MODELS, TASKS
from tests.image_data import write_cifar10, write_fashion_mnist

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = {"train": 4, "valid": 2, "test": 2, "min_length": 4, "max_length": 24}
TINY = {"width": 8, "depth": 1, "heads": 2, "patch": 4}
ODD = {"steps": 0, "radius": 2, "rate": 0.9, "ffn_ratio": 1, "dropout": 0.5, "patch": 2}  # values off the default
IMAGE = CuedDigits(view="image", train=4, valid=2, test=2)
LISTS = ListOps(min_length=4, max_length=24, train=4, valid=2, test=2)


def small(cls: type[Config], values: dict[str, Any], **changes: Any) -> Any:
    """A config of `cls` with those of `values` that it has fields for."""
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names} | changes)


def choices(cls: type[Config]) -> Iterator[tuple[str, Any]]:
    """Every field that is a choice or a flag, with each of its values."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        values = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
        yield from ((field.name, value) for value in values)


def views() -> list[Task]:
    """Every task in every view."""
    tasks = []
    for cls in TASKS:
        seen = [value for name, value in choices(cls) if name == "view"]
        tasks += [small(cls, SMALL, view=view) for view in seen] or [small(cls, SMALL)]
    return tasks


def variants(cls: type[ModelConfig]) -> list[ModelConfig]:
    """The model with each value of each choice, one at a time, and with odd numbers."""
    odd = [(name, value) for name, value in ODD.items() if name in {f.name for f in dataclasses.fields(cls)}]
    return [small(cls, TINY, **{name: value}) for name, value in [*choices(cls), *odd]] or [small(cls, TINY)]


def mixtures(cls: type[ModelConfig]) -> list[ModelConfig]:
    """The same values of the choices in few models: the next value of every field from one to the next."""
    values: dict[str, list[Any]] = {}
    for name, value in choices(cls):
        values.setdefault(name, []).append(value)
    count = max(map(len, values.values()), default=1)
    return [small(cls, TINY, **{name: known[i % len(known)] for name, known in values.items()}) for i in range(count)]


def fitting(models: list[ModelConfig], task: Task) -> list[ModelConfig]:
    """The models that can read the task's input."""
    found = []
    for model in models:
        try:
            with torch.device("meta"):
                model.build(task.input, task.target)
        except ValueError:
            continue
        found.append(model)
    return found


def spec_of(model: ModelConfig, task: Task, **changes: Any) -> RunSpec:
    return RunSpec(**{"model": model, "task": task, "batch": 2, "budget": Budget(steps=2, evaluations=1)} | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paths")
    write_cifar10(root, 10)
    write_fashion_mnist(root, 20, 10)
    return root


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    sizes = {"CIFAR10_BATCH": 10, "FASHION_MNIST_TRAIN": 20, "FASHION_MNIST_TEST": 10}
    for name, size in sizes.items():
        monkeypatch.setattr(image_files, name, size)
    monkeypatch.setattr(images, "VALID", 2)
    return Place(root / "runs", root)


def trained(specs: list[RunSpec], place: Place) -> list[RunRecord]:
    """The records of the specs, which must all be done."""
    records = [train(spec, place) for spec in {spec.run_id: spec for spec in specs}.values()]
    assert [(record.spec, record.reason) for record in records if record.status != "done"] == []
    return records


@pytest.mark.parametrize("task", views(), ids=repr)
def test_every_task_is_trained_evaluated_and_probed(task: Task, place: Place) -> None:
    """With what may happen to its images, in bf16, and without looking at test."""
    model = small(LDNConfig, TINY)
    augment = "none" if task.input.grid is None else "crop_flip"
    once, hidden = trained(
        [spec_of(model, task, augment=augment, precision="bf16"), spec_of(model, task, protocol="validation")], place
    )
    assert hidden.metrics.keys() == {"train", "valid"}
    (same,) = evaluations([once], place)
    assert same.status == "done" and same.metrics == once.metrics["test"]
    (inside,) = probed([once], place, examples=2)
    assert inside.trained["layers"]


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.name)
def test_every_value_of_a_models_choices_is_trained(cls: type[ModelConfig], place: Place) -> None:
    """On images in fp32, and on sequences of several lengths in bf16 by the models that read them."""
    on_images, on_lists = fitting(variants(cls), IMAGE), fitting(mixtures(cls), LISTS)
    assert on_images and (on_lists or cls.name in ("paper-vision", "vit", "linear"))
    specs = [spec_of(model, IMAGE) for model in on_images]
    trained(specs + [spec_of(model, LISTS, precision="bf16") for model in on_lists], place)
    subject = ModelSubject(cls.name, on_images[0], IMAGE.input, IMAGE.target, batch=2, tokens=16)
    for work in subject.build("cpu", "bfloat16", compiled=False).works.values():
        work()


def test_cifar10_trains_on_real_images(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"there is no {DATA} with the real images")
    pytest.importorskip("PIL", reason="the real images are unpacked by Pillow")
    subprocess.run([sys.executable, DATA / "unpack.py", tmp_path, "cifar10"], check=True)
    task, model = CIFAR10(train=64), LDNConfig(width=2, depth=1, steps=0, attention="none", local=False, ffn_ratio=0)
    (record,) = trained([spec_of(model, task, batch=64)], Place(tmp_path / "runs", tmp_path))
    assert record.data["test_examples"] == 10_000 and record.metrics["test"]["loss"] < 2.5
