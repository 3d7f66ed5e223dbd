"""What is benched: the models of a preset table or the arms of a study, over inputs of many lengths.

A subject is anything that can be built and timed: a model, here, or an operator alone (`studies.operators`). All models
of the preset are equally wide and deep. What reads an image gets the same number of tokens, laid out as patches; the
values of every input are random.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig, PaperSequenceConfig, PaperVisionConfig
from ldn.classifier import InputSpec, ModelConfig, TargetSpec
from studies.isolated import Workload
from studies.meter import measure
from studies.spec import canonical, canonical_model
from studies.study import Study

Pass = Literal["forward", "forward+backward"]
PASSES: tuple[Pass, ...] = get_args(Pass)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDTH, DEPTH = 128, 2
LENGTHS = (1024, 2048, 4096, 8192, 16384)
LONGEST = 2**24  # tokens; no model here reads more in the memory of one machine
VOCABULARY, CHANNELS, CLASSES = 256, 3, 10  # bytes of a text; colours of an image

MODELS: dict[str, ModelConfig] = {
    "LDN": LDNConfig(width=WIDTH, depth=DEPTH),
    "LDN, adaptive": LDNConfig(width=WIDTH, depth=DEPTH, kernel="adaptive", time_step="token"),
    "LDN, dense kernel": LDNConfig(width=WIDTH, depth=DEPTH, kernel="dense"),
    "paper-sequence": PaperSequenceConfig(width=WIDTH, depth=DEPTH),
    "paper-vision": PaperVisionConfig(width=WIDTH, depth=DEPTH),
    "Transformer": TransformerConfig(width=WIDTH, depth=DEPTH),
    "ViT": ViTConfig(width=WIDTH, depth=DEPTH, heads=4, patch=4),
    "BiLSTM": RNNConfig(width=WIDTH, depth=DEPTH),
    "linear": LinearConfig(),
}


class Subject(Protocol):
    """What cost records are about: something that runs over one input, `tokens` of them in each of `batch` examples.

    `plain_model`, `plain_input` and `task` are what its records say of it as plain data; `task` is canonical, empty
    for an input of no task. `compilable`: whether torch.compile is asked of it too. `counted`: whether the traffic of
    its eager operations is.
    """

    @property
    def label(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def plain_model(self) -> dict[str, Any]: ...
    @property
    def plain_input(self) -> dict[str, Any]: ...
    @property
    def task(self) -> dict[str, Any]: ...
    @property
    def compilable(self) -> bool: ...
    @property
    def counted(self) -> bool: ...

    def least_bytes(self, work: Pass, dtype: str) -> int:
        """What a pass has to move however it is written; 0: not counted."""

    def build(self, device: str, dtype: str, compiled: bool) -> Workload:
        """Its passes, ready to be called; runs in the process that measures them. ValueError: it cannot be built."""


@dataclass(frozen=True)
class ModelSubject:
    """One model over one input."""

    label: str
    model: ModelConfig
    input: InputSpec
    target: TargetSpec
    batch: int
    tokens: int
    task: dict[str, Any] = field(default_factory=dict)

    @property
    def plain_model(self) -> dict[str, Any]:
        return canonical_model(self.model, self.input)

    @property
    def plain_input(self) -> dict[str, Any]:
        return dataclasses.asdict(self.input)

    @property
    def compilable(self) -> bool:
        return True

    @property
    def counted(self) -> bool:
        return True

    def least_bytes(self, work: Pass, dtype: str) -> int:
        return 0

    def build(self, device: str, dtype: str, compiled: bool) -> Workload:
        """The backward pass is of the cross-entropy, down to every parameter's gradient, without an optimiser step."""
        place = torch.device(device)
        torch.manual_seed(0)
        network = self.model.build(self.input, self.target)
        with torch.no_grad():
            cost = measure(network, self.input)
        network.to(place)
        x, lengths, y = self.example(place)
        call = torch.compile(network, dynamic=False) if compiled else network
        autocast = torch.autocast(place.type, torch.bfloat16, enabled=dtype == "bfloat16")
        parameters = list(network.parameters())

        def forward() -> None:
            if network.training:
                network.eval()
            with torch.no_grad(), autocast:
                call(x, lengths)

        def forward_backward() -> None:
            if not network.training:
                network.train()
            drop_gradients()
            with autocast:
                logits = call(x, lengths)
            cross_entropy(logits.float(), y).backward()

        def drop_gradients() -> None:
            for parameter in parameters:
                parameter.grad = None

        tensors = [*parameters, *network.buffers(), x, y, *([] if lengths is None else [lengths])]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        facts = {"params": cost.params, "gmac": cost.gmac, "uncounted": cost.uncounted}
        return Workload({"forward": forward, "forward+backward": forward_backward}, held, facts, drop_gradients)

    def example(self, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch (x, lengths, y) of random values, every sequence at full length."""
        generator = torch.Generator().manual_seed(0)
        shape: tuple[int, ...] = (self.batch, self.input.length)
        if self.input.kind == "tokens":
            x = torch.randint(self.input.vocabulary, shape, generator=generator)
        else:
            if self.input.kind == "pixels":
                shape = (*shape, self.input.channels)
            else:
                assert self.input.grid is not None
                shape = (self.batch, self.input.channels, *self.input.grid)
            x = torch.randn(shape, generator=generator)
        y = torch.randint(self.target.classes, (self.batch,), generator=generator)
        lengths = torch.full((self.batch,), self.input.length) if self.input.variable else None
        return x.to(device), None if lengths is None else lengths.to(device), y.to(device)


def parse_lengths(text: str, default: tuple[int, ...] = LENGTHS) -> tuple[int, ...]:
    """As in "1024,2048" or "1K,2K"; nothing is the default, "none" none at all. Raises ValueError."""
    if not text.strip():
        return default
    if text.strip() == "none":
        return ()
    lengths = []
    for part in text.split(","):
        digits, kilo = part.strip().upper().removesuffix("K"), part.strip().upper().endswith("K")
        length = int(digits) * (1024 if kilo else 1) if digits.isdecimal() and len(digits) < 10 else 0
        if not 1 <= length <= LONGEST:
            raise ValueError(
                f"--lengths takes numbers of tokens from 1 to {LONGEST}, as in 1024,2048 or 1K,2K, not {text[:80]!r}"
            )
        lengths.append(length)
    return tuple(sorted(set(lengths)))


def preset(lengths: Iterable[int], batch: int) -> list[ModelSubject]:
    """Every model of the table at every length."""
    target = TargetSpec(classes=CLASSES)
    subjects = []
    for n in lengths:
        text = InputSpec(kind="tokens", length=n, vocabulary=VOCABULARY)
        image = InputSpec(kind="image", length=n, channels=CHANNELS, grid=(1, n))  # laid out by `of_length`
        for label, model in MODELS.items():
            input = of_length(image if isinstance(model, ViTConfig) else text, model, n)
            subjects.append(ModelSubject(label, model, input, target, batch, n))
    return subjects


def of_study(study: Study, lengths: Iterable[int], batch: int) -> list[ModelSubject]:
    """Every arm's model on its task's own input and batch, then at every length, on input of that kind."""
    subjects = []
    arms = study.expanded()
    for arm in arms:
        spec = arm.spec
        tokens = tokens_of(spec.task.input, spec.model)
        task = canonical(spec)["task"]
        subjects.append(
            ModelSubject(arm.label, spec.model, spec.task.input, spec.task.target, spec.batch, tokens, task)
        )
    for n in lengths:
        for arm in arms:
            spec = arm.spec
            input = of_length(spec.task.input, spec.model, n)
            subjects.append(ModelSubject(arm.label, spec.model, input, spec.task.target, batch, n))
    return distinct(subjects)


def distinct(subjects: list[ModelSubject]) -> list[ModelSubject]:
    """Without those that measure what an earlier one does: arms that differ in their learning rate only, say."""
    found: list[ModelSubject] = []
    seen = []
    for subject in subjects:
        key = (subject.plain_model, subject.task, subject.input, subject.target, subject.batch)
        if key not in seen:
            seen.append(key)
            found.append(subject)
    return found


def tokens_of(input: InputSpec, model: ModelConfig) -> int:
    """How many tokens the model makes of an input: its length, of an image the number of patches."""
    return input.length // _patch(input, model) ** 2


def of_length(input: InputSpec, model: ModelConfig, tokens: int) -> InputSpec:
    """The same kind of input with another number of tokens; where they lie on a grid, one as square as divides it."""
    if input.grid is None:
        return dataclasses.replace(input, length=tokens)
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    patch = _patch(input, model)
    grid = (height * patch, tokens // height * patch)
    return dataclasses.replace(input, length=grid[0] * grid[1], grid=grid)


def _patch(input: InputSpec, model: ModelConfig) -> int:
    """The edge of a patch; a model that cuts no image reads pixels."""
    return getattr(model, "patch", 1) if input.kind == "image" else 1
