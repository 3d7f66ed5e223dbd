"""What is one training step, and how is it replayed from a CUDA graph instead of launched operation by operation?

The step of a small model is hundreds of operations, each done sooner than the processor can launch the next. Captured
once for a shape of batch it is one launch, with the same operations on the same memory: so whatever a step reads from
outside lies in tensors that stay where they are, and whatever outlives it is changed in place.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from results.text import error_text
from studies.spec import Optimiser

WARM_UP = 3  # steps of a shape that are launched before it is captured: what is compiled or tuned has then settled
Work = Callable[[], None]


def adamw(network: nn.Module, optim: Optimiser) -> torch.optim.AdamW:
    """AdamW in which only weights of two or more dimensions decay."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


class Step:
    """Forward, loss, backward, clipping, update, of a batch that the task has prepared; the loss goes to `loss_sum`.

    `captured` says that it will be replayed: the learning rate is then a tensor, since a graph keeps the numbers that
    it was captured with.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor | None], Tensor],
        parameters: Iterable[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        optim: Optimiser,
        autocast: AbstractContextManager[Any],
        loss_sum: Tensor,
        captured: bool,
    ) -> None:
        self.forward, self.parameters, self.optimiser = forward, list(parameters), optimiser
        self.optim, self.autocast, self.loss_sum = optim, autocast, loss_sum
        self.rate = torch.zeros((), device=loss_sum.device) if captured else None
        for group in optimiser.param_groups:
            group["capturable"] = captured  # a loaded checkpoint brings the flag of the device that it was written on

    def set_rate(self, rate: float) -> None:
        if self.rate is not None:
            self.rate.fill_(rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate if self.rate is None else self.rate

    def __call__(self, x: Tensor, lengths: Tensor | None, y: Tensor) -> None:
        with self.autocast:
            logits = self.forward(x, lengths)
        loss = cross_entropy(logits.float(), y, label_smoothing=self.optim.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.optim.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.optim.clip, foreach=True)
        self.optimiser.step()
        self.loss_sum += loss.detach()


class Stream(Protocol):
    """Where a step is launched and captured."""

    def launch(self, work: Work, strictly: bool) -> None:
        """Do it now; `strictly` refuses what could not be captured."""

    def capture(self, work: Work) -> Work:
        """What does it again at every call. Nothing is done yet."""


class Replayed:
    """A step that is launched WARM_UP times for every shape of batch, then captured, and from there on replayed.

    The launches before the capture are steps of the training like any other, so there is nothing to undo.
    """

    def __init__(self, step: Callable[[Tensor, Tensor | None, Tensor], None], stream: Stream) -> None:
        self.step, self.stream = step, stream
        self.launched: Counter[Any] = Counter()
        self.graphs: dict[Any, tuple[list[Tensor | None], Work]] = {}

    def __call__(self, x: Tensor, lengths: Tensor | None, y: Tensor) -> None:
        batch = (x, lengths, y)
        shape = tuple(None if part is None else (part.shape, part.dtype) for part in batch)
        if self.launched[shape] < WARM_UP:
            self.launched[shape] += 1
            self.stream.launch(partial(self.step, x, lengths, y), strictly=self.launched[shape] == WARM_UP)
            return
        if shape not in self.graphs:
            inputs = [None if part is None else part.clone() for part in batch]
            self.graphs[shape] = inputs, self.stream.capture(partial(self.step, *inputs))  # type: ignore[arg-type]
        inputs, replay = self.graphs[shape]
        for held, given in zip(inputs, batch, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        replay()


class SideStream:
    """A stream of a GPU beside the one that all else runs on: nothing is captured on that one."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def launch(self, work: Work, strictly: bool) -> None:
        """Raises ValueError where `strictly` finds work that waits for the device."""
        current, former = torch.cuda.current_stream(self.stream.device), torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # torch warns of a capturable optimiser that is not being captured; it will be
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            # found here, not by a capture that fails: that leaves a process in which little works any more
            torch.cuda.set_sync_debug_mode("error" if strictly else former)
            try:
                work()
            except RuntimeError as error:
                if strictly and "synchronizing" in str(error):
                    raise _refusal(error) from error
                raise
            finally:
                torch.cuda.set_sync_debug_mode(former)
        current.wait_stream(self.stream)

    def capture(self, work: Work) -> Work:
        """Raises ValueError where it cannot be captured."""
        graph, device = torch.cuda.CUDAGraph(), self.stream.device
        try:
            # the stream twice: when a capture fails, `graph` does not give the former one back
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                work()
        except Exception as error:
            # nor does it tell the generator, which would refuse every draw of the process' later runs
            torch.cuda.default_generators[device.index].graphsafe_set_state(torch.Generator(device))
            raise _refusal(error.__context__ or error) from error
        return graph.replay


def _refusal(error: BaseException) -> ValueError:
    return ValueError(
        f"optim.graphs: this model's step cannot be captured as a CUDA graph ({error_text(error)}); set it to False"
    )
