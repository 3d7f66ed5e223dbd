"""What a run is: a frozen specification, its canonical content, and the identity that follows from it.

Identity is content. Two arms of the same content are one run, trained once. Labels, devices, compilation, number
of threads and the code's version are no part of it; they are recorded beside the results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from ldn.classifier import InputSpec, ModelConfig
from ldn.config import AtLeast, Below, Between, Config, refuse_unknown
from results.record import content_id
from studies import zoo
from studies.tasks.task import Task

SCHEMA = 1
C = TypeVar("C", bound=Config)


@dataclass(frozen=True, kw_only=True)
class Optimiser(Config):
    """AdamW; the rate rises linearly over the share `warmup` of the budget, then falls along a cosine to `final` of it.

    `clip` bounds the gradient's norm (0: not at all). Weight decay spares biases, norms and everything else of one
    dimension. With `graphs` a GPU replays every step as one CUDA graph instead of launching its operations one by one:
    the same up to rounding, and faster where launching is what takes the time. Without a GPU it changes nothing.
    """

    lr: Annotated[float, AtLeast(0)] = 1e-3
    weight_decay: Annotated[float, AtLeast(0)] = 0.05
    beta1: Annotated[float, AtLeast(0), Below(1)] = 0.9
    beta2: Annotated[float, AtLeast(0), Below(1)] = 0.98
    warmup: Annotated[float, Between(0, 1)] = 0.1
    final: Annotated[float, Between(0, 1)] = 0.0
    clip: Annotated[float, AtLeast(0)] = 1.0
    label_smoothing: Annotated[float, Between(0, 1)] = 0.0
    graphs: bool = False


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """How long to train: exactly one of steps, epochs, seconds and training GMACs (a step costs 3 forward passes).

    Zero steps is legal and trains nothing: the run yields parameters and GMACs. Runs budgeted in seconds depend on
    the machine and cannot repeat bit for bit. `evaluations` times in a run, evenly spaced, validation is measured.
    """

    steps: Annotated[int, AtLeast(0)] | None = None
    epochs: Annotated[int, AtLeast(1)] | None = None
    seconds: Annotated[float, AtLeast(0)] | None = None
    gmacs: Annotated[float, AtLeast(0)] | None = None
    evaluations: Annotated[int, AtLeast(1)] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f for f in ("steps", "epochs", "seconds", "gmacs") if getattr(self, f) is not None]
        if len(given) != 1:
            raise ValueError(f"a Budget has exactly one of steps, epochs, seconds, gmacs; given: {given or 'none'}")


@dataclass(frozen=True, kw_only=True)
class RunSpec(Config):
    """One training run: what is trained, on what, how, for how long, from which seed.

    The seed derives separate ones for initialisation, batch order, dropout and augmentation, so that two arms of
    one seed see the same examples in the same order. A run under the protocol "validation" never looks at test: that
    is how settings are found (`studies.tuning`).
    """

    model: ModelConfig
    task: Task
    optim: Optimiser = Optimiser()
    batch: Annotated[int, AtLeast(1)] = 64
    budget: Budget = Budget(steps=1000)
    precision: Literal["fp32", "bf16"] = "fp32"
    augment: Literal["none", "crop_flip"] = "none"
    protocol: Literal["test", "validation"] = "test"
    seed: Annotated[int, AtLeast(0)] = 0

    @property
    def run_id(self) -> str:
        """Sixteen hex digits of the hash of the canonical content."""
        return content_id(canonical(self))


def canonical(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain data without what makes no difference: the form that is hashed and stored.

    A field at the default it was introduced with is left out, so that a new field orphans no stored run (when a
    default changes, `metadata={"introduced": old}` keeps the old one's meaning); fields without effect beside the
    others are dropped. Raises ValueError for a part of a class that this form would confuse with another.
    """
    _refuse_confusable(spec)
    plain = {"schema": SCHEMA, **_plain(spec, set())}
    plain["model"] = canonical_model(spec.model, spec.task.input)
    plain["task"] = {"name": spec.task.name, **_plain(spec.task, set())}
    return plain


def _refuse_confusable(spec: RunSpec) -> None:
    known = {
        "optim": Optimiser,
        "budget": Budget,
        "model": zoo.by_name(zoo.MODELS).get(spec.model.name, type(spec.model)),
        "task": zoo.by_name(zoo.TASKS).get(spec.task.name, type(spec.task)),
    }
    for part, cls in known.items():
        given = type(getattr(spec, part))
        if given is not cls:
            raise ValueError(
                f"RunSpec.{part} is of class {given.__name__}, but would be stored and trained as {cls.__name__}: give "
                f"a model or task its own name and add it to studies/zoo.py; optim and budget allow no subclass"
            )


def canonical_model(model: ModelConfig, input: InputSpec) -> dict[str, Any]:
    """The model's part of the canonical content, for what it is fed."""
    return {"name": model.name, **_plain(model, model.without_effect(input))}


def _plain(config: Any, dropped: set[str]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in dropped:
            continue
        if isinstance(value, Config):  # its own fields know what they were introduced with
            if inner := _plain(value, set()):
                plain[f.name] = inner
        elif value != f.metadata.get("introduced", f.default):
            plain[f.name] = list(value) if isinstance(value, tuple) else value
    return plain


def complete(spec: RunSpec) -> dict[str, Any]:
    """Every field with its value as nested plain data, also what is at its default or without effect."""

    def plain(value: Any) -> Any:
        if isinstance(value, Config):
            return _named(value) | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain(spec)


def _named(config: Config) -> dict[str, Any]:
    return {"name": config.name} if config.name else {}


def from_plain(plain: dict[str, Any]) -> RunSpec:
    """The RunSpec of canonical data. Raises ValueError for unknown fields, names and newer schemas."""
    plain = dict(plain)
    schema = plain.pop("schema", SCHEMA)
    if schema > SCHEMA:
        raise ValueError(f"this run was specified by a newer version (schema {schema}, known up to {SCHEMA})")
    refuse_unknown(RunSpec, plain)
    model, task = dict(plain["model"]), dict(plain["task"])
    plain["model"] = _config(zoo.named("model", zoo.MODELS, model.pop("name")), model)
    plain["task"] = _config(zoo.named("task", zoo.TASKS, task.pop("name")), task)
    plain["optim"] = _config(Optimiser, plain.get("optim", {}))
    plain["budget"] = _config(Budget, plain.get("budget", {}))
    return _config(RunSpec, plain)


def _config(cls: type[C], plain: dict[str, Any]) -> C:
    refuse_unknown(cls, plain)
    introduced = {f.name: f.metadata["introduced"] for f in dataclasses.fields(cls) if "introduced" in f.metadata}
    return cls(**{**introduced, **plain})


def refuse_unstorable(spec: RunSpec) -> None:
    """Raise ValueError if the stored form of `spec` does not give back an equal spec of the same classes and types."""
    again = from_plain(json.loads(json.dumps(canonical(spec), allow_nan=False)))
    dropped = {f"model.{name}" for name in spec.model.without_effect(spec.task.input)}
    if path := _difference(spec, again, "", dropped):
        raise ValueError(f"{path} changes when the run is stored and read back: give it a plain value")


def _difference(one: Any, other: Any, path: str, dropped: set[str]) -> str:
    """Find the first field whose value or type differs between two specs. Return its dotted path, or ""."""
    if type(one) is not type(other) or not isinstance(one, Config):
        return "" if type(one) is type(other) and one == other else path or type(one).__name__
    for f in dataclasses.fields(one):
        inner = f"{path}.{f.name}" if path else f.name
        if inner not in dropped and (
            found := _difference(getattr(one, f.name), getattr(other, f.name), inner, dropped)
        ):
            return found
    return ""


def with_field(spec: C, path: str, value: Any) -> C:
    """`spec` with the field at a dotted path changed: with_field(run, "model.steps", 0).

    Raises ValueError for an unknown field, listing the known ones, and for a value out of range.
    """
    head, _, rest = path.partition(".")
    inner = _field(spec, head)
    return dataclasses.replace(spec, **{head: with_field(inner, rest, value) if rest else value})


def with_fields(spec: C, changes: Mapping[str, Any]) -> C:
    """The same with several fields, one after another: with_fields(run, {"model.steps": 0, "optim.lr": 1e-3})."""
    for path, value in changes.items():
        spec = with_field(spec, path, value)
    return spec


def field_value(spec: Any, path: str) -> Any:
    """The value at a dotted path. Raises ValueError for an unknown field, listing the known ones."""
    for part in path.split("."):
        spec = _field(spec, part)
    return spec


def _field(spec: Any, name: str) -> Any:
    if not isinstance(spec, Config):
        raise ValueError(f"{spec!r} is a value and has no field {name!r}")
    refuse_unknown(type(spec), [name])
    return getattr(spec, name)


def flatten(spec: RunSpec) -> dict[str, Any]:
    """Every field that has an effect, by its dotted path: {"model.width": 128, ...}."""
    dropped = {f"model.{name}" for name in spec.model.without_effect(spec.task.input)}
    flat: dict[str, Any] = {"model": spec.model.name, "task": spec.task.name}
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if not dataclasses.is_dataclass(value):
            flat[f.name] = value
            continue
        for inner in dataclasses.fields(value):
            if (path := f"{f.name}.{inner.name}") not in dropped:
                flat[path] = getattr(value, inner.name)
    return flat
