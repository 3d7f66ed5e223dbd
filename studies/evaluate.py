"""How good are stored weights elsewhere: at another length or resolution, or on other data?

The network is built for the input it was trained on, given its weights, and fed the other input. Sinusoidal positions
go on; learned ones on a grid are interpolated; the dilations of a multiscale kernel stay those of the trained length.
What cannot read the other input is a result as well: an evaluation that failed, with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ldn.classifier import Classifier, InputSpec
from ldn.terms import Diffusion
from results.record import EvalRecord, RunRecord, read_eval, write_eval
from results.text import lacks_memory
from studies.provenance import provenance
from studies.spec import RunSpec, canonical, from_plain, with_fields
from studies.stored import restored, weights
from studies.tasks.task import Data, Split, Task, loaded
from studies.train import Place, evaluate
from studies.zoo import TASKS, named

SplitName = Literal["valid", "test"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class EvalRequest:
    """Which task and split to evaluate on; with a resolution, its images are resized to that (H, W)."""

    task: Task
    split: SplitName = "test"
    resolution: Grid | None = None

    @property
    def input(self) -> InputSpec:
        """What the model is fed."""
        own = self.task.input
        if self.resolution is None:
            return own
        return dataclasses.replace(own, grid=self.resolution, length=self.resolution[0] * self.resolution[1])


# --- what is asked ------------------------------------------------------------------------------


def asked_of(
    spec: RunSpec, task: str | None, overrides: Sequence[str], resolution: str | None, split: SplitName
) -> list[EvalRequest]:
    """All that is asked of one run: `overrides` such as "task.gap=1,3" are crossed, each value with each.

    Raises ValueError for an unknown task or field (listing the known ones), a value out of range, and data that do
    not fit what the model was trained on.
    """
    size = None if resolution is None else _size(resolution)
    base = spec.task
    if task is not None and task != base.name:
        base = named("task", TASKS, task)()
    choices = [_choices(override) for override in overrides]
    asked = []
    for chosen in itertools.product(*choices):
        changed = with_fields(base, dict(chosen))
        asked.append(EvalRequest(changed, split, None if size == changed.input.grid else size))
        _refuse_misfit(spec, asked[-1])
    return asked


def _size(text: str) -> Grid:
    height, cross, width = text.partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise ValueError(f"a resolution is written as 40x40 (height x width in pixels), not {text!r}")
    return int(height), int(width)


def _choices(override: str) -> list[tuple[str, Any]]:
    """ "task.gap=1,3" -> [("gap", 1), ("gap", 3)]; what is no JSON is text."""
    path, equals, values = override.partition("=")
    head, _, rest = path.partition(".")
    if not equals or head != "task" or not rest:
        raise ValueError(f"--set takes task.FIELD=VALUE or several values, task.FIELD=1,3,7, not {override!r}")
    return [(rest, _value(text.strip())) for text in values.split(",")]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuse_misfit(spec: RunSpec, asked: EvalRequest) -> None:
    """Raise ValueError unless the other task feeds the same kind of input and asks for as many classes."""
    ours, theirs = spec.task.input, asked.task.input
    trained, other = f"the model was trained on {spec.task.name}", asked.task.name
    for what in ("kind", "channels", "vocabulary", "causal"):
        if getattr(ours, what) != getattr(theirs, what):
            raise ValueError(
                f"{trained} with input {what} {getattr(ours, what)}, but {other} has {what} {getattr(theirs, what)}; "
                "another view of it may fit (--set task.view=...)"
            )
    if spec.task.target != asked.task.target:
        raise ValueError(
            f"{trained} with {spec.task.target.classes} classes, but {other} has {asked.task.target.classes}"
        )
    if (ours.grid is None) != (theirs.grid is None):
        raise ValueError(f"{trained}, and only one of that and {other} has its tokens on a grid")
    if asked.resolution is not None and theirs.grid is None:
        raise ValueError(f"--resolution resizes images, and the input of {other} as it is read here lies on no grid")


def changes(spec: RunSpec, asked: EvalRequest) -> dict[str, Any]:
    """The fields of the task (and the resolution) that differ from what the run was trained on; empty if none does."""
    new, old = asked.task, spec.task
    differs: dict[str, Any] = {}
    if type(new) is not type(old):
        differs["task"] = new.name
    for f in dataclasses.fields(new):
        before = getattr(old, f.name) if type(new) is type(old) else f.default
        if (value := getattr(new, f.name)) != before:
            differs[f.name] = value
    if asked.resolution is not None and asked.resolution != old.input.grid:
        differs["resolution"] = list(asked.resolution)
    return differs


# --- evaluating ---------------------------------------------------------------------------------


def evaluations(
    records: Sequence[RunRecord],
    place: Place,
    task: str | None = None,
    overrides: Sequence[str] = (),
    resolution: str | None = None,
    split: SplitName = "test",
) -> Iterator[EvalRecord]:
    """Evaluate every run on all that is asked, data set by data set; what was evaluated before is read.

    All misfits raise ValueError before the first evaluation.
    """
    jobs: dict[Task, list[tuple[RunRecord, RunSpec, EvalRequest]]] = {}
    for record in records:
        spec = from_plain(record.spec)
        for asked in asked_of(spec, task, overrides, resolution, split):
            jobs.setdefault(asked.task, []).append((record, spec, asked))
    torch.set_num_threads(place.threads)
    for other, here in jobs.items():
        data: Data | None = None
        for record, spec, asked in here:
            stored = read_eval(place.runs, record.run_id, _eval_id(record, spec, asked))
            if stored is None or stored.status == "failed":  # whether it still fails costs little to ask
                data = loaded(other, place.data) if data is None else data
                stored = _evaluated(record, spec, asked, data, place)
                write_eval(place.runs, stored)
            yield stored


def _eval_id(record: RunRecord, spec: RunSpec, asked: EvalRequest) -> str:
    content = [record.weights_hash, _canonical(spec, asked.task), asked.split, asked.resolution]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _canonical(spec: RunSpec, task: Task) -> dict[str, Any]:
    return canonical(dataclasses.replace(spec, task=task))["task"]


def _evaluated(record: RunRecord, spec: RunSpec, asked: EvalRequest, data: Data, place: Place) -> EvalRecord:
    device = torch.device(place.device)
    result = EvalRecord(
        eval_id=_eval_id(record, spec, asked),
        run_id=record.run_id,
        task=_canonical(spec, asked.task),
        split=asked.split,
        resolution=list(asked.resolution or ()),
        changes=changes(spec, asked),
        length=asked.input.length,
        trained_length=spec.task.input.length,
        status="failed",
        weights_hash=record.weights_hash,
        data=data.provenance,
        provenance={**provenance(device, place.threads), "started": time.time()},
    )
    network = restored(spec, weights(place.runs, record))
    part: Split = getattr(data, asked.split)
    if asked.resolution is not None:
        part = dataclasses.replace(part, x=resized(part.x, asked.task.input, asked.resolution))
    # longer inputs in smaller batches: a batch holds no more tokens than in training
    batch = max(1, spec.batch * result.trained_length // max(result.length, result.trained_length))
    elsewhere = dataclasses.replace(spec, task=asked.task, batch=batch, augment="none")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16")
    try:
        move_to(network, asked.input)
        result.metrics, _ = evaluate(network.to(device), part.to(device), elsewhere, autocast)
    except (ValueError, RuntimeError) as error:
        result.reason = _reason(error, result)
    else:
        result.status, result.examples = "done", len(part)
    result.provenance["seconds"] = round(time.time() - result.provenance["started"], 3)
    return result


def move_to(network: nn.Module, input: InputSpec) -> None:
    """Let a network whose tokens lie on a grid read inputs of another one. Raises ValueError if it cannot."""
    if not isinstance(network, Classifier) or input.grid is None or input.grid == network.stem.spec.grid:
        return
    network.stem.move_to(input)
    for module in network.modules():
        if isinstance(module, Diffusion) and module.grid is not None:
            module.grid = network.stem.grid


def resized(x: Tensor, input: InputSpec, size: Grid) -> Tensor:
    """Stored images (n, ...) of any view at another size: bilinear, antialiased where they shrink.

    Ids on a grid are grey values; bytes are rounded.
    """
    assert input.grid is not None
    shape = (len(x), -1, *input.grid)
    images = x.transpose(1, 2).reshape(shape) if input.kind == "pixels" else x.reshape(shape)
    parts = [interpolate(part.float(), size, mode="bilinear", antialias=True) for part in images.split(1_000)]
    scaled = torch.cat([part if x.is_floating_point() else part.round().clamp(0, 255).to(x.dtype) for part in parts])
    if input.kind == "image":
        return scaled
    flat = scaled.flatten(2)
    return flat[:, 0] if input.kind == "tokens" else flat.transpose(1, 2).contiguous()


def _reason(error: Exception, result: EvalRecord) -> str:
    """One sentence. What torch says of shapes that do not fit helps nobody, so it is told what that means."""
    text = str(error).partition("\n")[0]
    if isinstance(error, ValueError):
        return text
    if lacks_memory(error):
        return f"out of memory at {result.length} positions"
    if "shape" in text or "size" in text:
        return f"the model has a fixed length of {result.trained_length} positions"
    raise error
