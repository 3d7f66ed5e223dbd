"""Train one run: a function of its spec. Stopped anywhere and called again, it ends in the same record.

All randomness of a step is drawn from seeds made of (the run's seed, a role, the step), so a checkpoint holds no
generator's state; on a CPU, at the same number of threads, an interrupted run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from results.entries import Attempt
from results.files import file_checksum, write_atomically
from results.locks import locked
from results.record import RunRecord, read_attempts, read_record, run_folder, write_attempts, write_record
from results.text import error_text
from studies import checkpoint
from studies.augment import crop_and_flip
from studies.meter import exact_gmac, measure
from studies.provenance import provenance, run_sources, trained_with
from studies.schedule import Batches, Clock, derived_seed, learning_rate_factor
from studies.spec import RunSpec, canonical, complete
from studies.step import Replayed, SideStream, Step, adamw
from studies.tasks.task import Split, loaded

CHECK_EVERY = 20  # steps between two looks at whether the loss is finite: each look waits for the device
CHECKPOINT_SECONDS = 20.0
REPORT_SECONDS = 0.5
FILES = ("curve.csv", "predictions.npz", "weights.pt")  # what a run leaves beside its record
LOCK_SECONDS = 1.0  # between two looks at whether a run that waits for its lock is to stop
STOP_SECONDS = 0.2  # within which a signal that ended a child process has reached this one
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Place:
    """Where a run runs; no part of its identity. `threads` are those of the CPU."""

    runs: Path
    data: Path
    device: str = "cpu"
    threads: int = 1
    compile: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a run is: `done` of 1, training loss and validation accuracy of the last evaluation, speed, time left."""

    step: int
    done: float
    loss: float
    accuracy: float
    tokens_per_second: float
    seconds_left: float


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written, and it goes on from there when called again."""


class Diverged(Exception):
    """The loss is no longer finite."""


class Pruned(Exception):
    """The run's folder holds a file `prune`: whoever compares runs sees no hope for this one. It may be continued."""


def train(
    spec: RunSpec,
    place: Place,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """Train `spec` to its end, from its checkpoint if there is one, and write its record, whatever happens.

    A run that is done is not run again. Divergence and errors become a record with status, reason and traceback; so
    does, without a traceback, a run that is pruned, which keeps its checkpoint and goes on from it when called again.
    Raises Stopped when `stop` says so, and OSError when there is no room left to write.
    """
    folder = run_folder(place.runs, spec.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock", spec, stop):
        former = read_record(place.runs, spec.run_id)
        if former is not None and former.status == "done":
            return former
        if former is not None and former.status == "pruned":
            (folder / "prune").unlink(missing_ok=True)  # it has done its work
        record = RunRecord(run_id=spec.run_id, spec=canonical(spec), config=complete(spec), status="failed")
        record.attempts = _former_attempts(place.runs, spec.run_id, former)
        record.attempts.append(provenance(torch.device(place.device), place.threads))
        graphs = spec.optim.graphs and torch.device(place.device).type == "cuda"  # a CPU takes the step as it is
        record.attempts[-1] |= {"compile": place.compile, "graphs": graphs, "started": time.time()}
        record.attempts[-1]["sources"] = run_sources(spec)
        began = time.perf_counter()
        try:
            write_attempts(place.runs, spec.run_id, record.attempts)
            _run(spec, place, folder, record, report, stop)
            record.status = "done"
        except Diverged as divergence:
            record.status, record.reason = "diverged", str(divergence)
        except Pruned as pruning:
            record.status, record.reason = "pruned", str(pruning)
        except Exception as error:
            if isinstance(error, Stopped) or (isinstance(error, OSError) and error.errno in NO_ROOM):
                raise
            if _asked_meanwhile(stop):  # a signal to all processes may have ended one that this run was waiting for
                raise Stopped(f"run {spec.run_id} was stopped") from error
            record.reason = error_text(error)
            record.traceback = traceback.format_exc()
        finally:
            record.attempts[-1]["seconds"] = round(time.perf_counter() - began, 3)
            write_attempts(place.runs, spec.run_id, record.attempts)
        record.sources = trained_with(record.attempts)
        record.files = {name: file_checksum(folder / name) for name in FILES if (folder / name).exists()}
        write_record(place.runs, record)
        # of a failed or pruned run the checkpoint stays: a retry goes on from it
        kept = record.status in ("failed", "pruned")
        for name in ("attempts.json", "progress.json", "prune"):
            (folder / name).unlink(missing_ok=True)
        if not kept:
            checkpoint.remove(folder / "checkpoint.pt")
        return record


@contextmanager
def _locked(path: Path, spec: RunSpec, stop: Callable[[], bool]) -> Iterator[None]:
    """Hold a run's lock. Raises Stopped if that is asked for while another process holds it."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path, LOCK_SECONDS))
                break
            except BlockingIOError:
                if stop():
                    raise Stopped(f"run {spec.run_id} was stopped before it began") from None
        yield


def _asked_meanwhile(stop: Callable[[], bool]) -> bool:
    """Whether the run is to stop, or is told so within a moment."""
    until = time.monotonic() + STOP_SECONDS
    while not (asked := stop()) and time.monotonic() < until:
        time.sleep(0.02)
    return asked


def _run(
    spec: RunSpec,
    place: Place,
    folder: Path,
    record: RunRecord,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> None:
    """Everything between the first and the last line of a run; fills `record`."""
    device = torch.device(place.device)
    torch.set_num_threads(place.threads)
    torch.manual_seed(derived_seed(spec.seed, "init"))
    network = spec.model.build(spec.task.input, spec.task.target)
    cost = measure(network, spec.task.input)
    record.cost = dataclasses.asdict(cost)  # type: ignore[assignment]  # the same fields
    if spec.budget.gmacs is not None:
        exact_gmac(cost, "a budget in gmacs", "one in steps, epochs or seconds")
    if spec.budget.steps == 0:
        record.attempts[-1]["first_step"] = 0
        return
    data = loaded(spec.task, place.data)
    record.data = data.provenance
    data = data.to(device)
    network.to(device)
    optimiser = adamw(network, spec.optim)
    origin = checkpoint.Origin(spec.run_id, data.provenance.get("fingerprint", ""))
    loaded_checkpoint = checkpoint.load(folder / "checkpoint.pt", network, optimiser, device, origin)
    if loaded_checkpoint is None:
        state = checkpoint.State(loss_sum=torch.zeros((), device=device))
    else:
        state, record.attempts[-1]["checkpoint"] = loaded_checkpoint.state, loaded_checkpoint.note
    record.attempts[-1]["first_step"] = first_step = state.step
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16")
    if place.compile:
        torch.compiler.reset()  # of all networks of a process eight are compiled, unless the others are forgotten
    forward = torch.compile(network) if place.compile else network
    graphs = record.attempts[-1]["graphs"]
    step = Step(forward, network.parameters(), optimiser, spec.optim, autocast, state.loss_sum, captured=graphs)
    take = Replayed(step, SideStream(device)) if graphs else step
    batches = Batches(data.train, spec)
    clock = Clock(spec.budget, batches.per_epoch, 3 * cost.gmac * batches.size)
    saved = reported = started = time.perf_counter()
    checkpoint.write_curve(folder / "curve.csv", state.curve)  # an earlier start may have come further

    done = clock.done(state.step, state.seconds)
    while done < 1:
        if state.curve and state.curve[-1]["step"] == state.step:  # at an evaluation, also when going on from there
            speed = (state.step - first_step) * batches.tokens / max(time.perf_counter() - started, 1e-9)
            report(_progress(state, done, speed))
            if (folder / "prune").exists():
                checkpoint.save(folder / "checkpoint.pt", origin, network, optimiser, state)
                _note_validation(record, state)
                raise Pruned(f"pruned at step {state.step}, {done:.0%} of its budget")
        if stop():
            checkpoint.save(folder / "checkpoint.pt", origin, network, optimiser, state)
            raise Stopped(f"run {spec.run_id} was stopped at step {state.step}")
        began = time.perf_counter()
        network.train()
        lr = spec.optim.lr * learning_rate_factor(done, spec.optim)
        step.set_rate(lr)
        x, lengths, y = batches[state.step]
        if spec.augment == "crop_flip":
            x = crop_and_flip(x, spec.task.input, derived_seed(spec.seed, "augment", state.step))
        torch.manual_seed(derived_seed(spec.seed, "dropout", state.step))
        with autocast:
            x = spec.task.prepare(x)
        take(x, lengths, y)

        state.step += 1
        state.loss_steps += 1
        if state.step % CHECK_EVERY == 0:
            _refuse_divergence(state.loss_sum.item(), state.step)
        now = time.perf_counter()
        state.seconds += now - began
        before, done = done, clock.done(state.step, state.seconds)
        if clock.evaluation_due(before, done):
            _evaluate_and_keep_the_best(network, data.valid, spec, autocast, lr, state)
            checkpoint.write_curve(folder / "curve.csv", state.curve)
        if now - reported > REPORT_SECONDS:
            speed = (state.step - first_step) * batches.tokens / (now - started)
            report(_progress(state, done, speed))
            reported = now
        if now - saved > CHECKPOINT_SECONDS:
            checkpoint.save(folder / "checkpoint.pt", origin, network, optimiser, state)
            saved = time.perf_counter()

    _note_validation(record, state)
    record.weights_hash = checkpoint.weights_hash(state.best)
    write_atomically(folder / "weights.pt", lambda file: torch.save(state.best, file))
    if spec.protocol == "validation":
        return
    network.load_state_dict(state.best)
    metrics, predicted = evaluate(network, data.test, spec, autocast)  # the only time that test is touched
    record.metrics["test"] = metrics
    answers: dict[str, Any] = {
        "predicted": predicted, "label": data.test.y.cpu().numpy(), "run_id": np.array(spec.run_id)
    }  # fmt: skip
    if data.test.source is not None:
        answers["source"] = data.test.source.numpy()
    write_atomically(folder / "predictions.npz", lambda file: np.savez_compressed(file, **answers))


def _note_validation(record: RunRecord, state: checkpoint.State) -> None:
    record.metrics = {"train": {"loss": state.curve[-1]["train_loss"]}, "valid": state.best_metrics}
    record.steps, record.best_step = state.step, state.best_step


@torch.no_grad()
def evaluate(
    network: nn.Module, split: Split, spec: RunSpec, autocast: AbstractContextManager[Any]
) -> tuple[dict[str, float], np.ndarray]:
    """Loss and accuracy over all of `split`, the incomplete last batch included, and the classes predicted."""
    network.eval()
    loss, predicted = torch.zeros((), dtype=torch.float64, device=split.y.device), []
    for start in range(0, len(split), 2 * spec.batch):
        part = slice(start, start + 2 * spec.batch)
        lengths = None if split.lengths is None else split.lengths[part]
        with autocast:
            logits = network(spec.task.prepare(split.x[part]), lengths)
        loss += cross_entropy(logits.double(), split.y[part], reduction="sum")
        predicted.append(logits.argmax(dim=-1))
    chosen = torch.cat(predicted)
    accuracy = (chosen == split.y).double().mean().item()
    return {"loss": loss.item() / len(split), "accuracy": accuracy}, chosen.cpu().numpy()


def _evaluate_and_keep_the_best(
    network: nn.Module,
    valid: Split,
    spec: RunSpec,
    autocast: AbstractContextManager[Any],
    lr: float,
    state: checkpoint.State,
) -> None:
    metrics, _ = evaluate(network, valid, spec, autocast)
    train_loss = state.loss_sum.item() / state.loss_steps
    row = {"step": state.step, "lr": lr, "train_loss": train_loss}
    state.curve.append(row | {f"valid_{name}": value for name, value in metrics.items()})
    state.loss_sum.zero_()  # in place: a captured step adds to this tensor and no other
    state.loss_steps = 0
    _refuse_divergence(train_loss + metrics["loss"], state.step)
    best = state.best_metrics
    if not best or (metrics["accuracy"], -metrics["loss"]) > (best["accuracy"], -best["loss"]):
        state.best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        state.best_step, state.best_metrics = state.step, metrics


def _refuse_divergence(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"the loss is no longer finite by step {step}")


def _progress(state: checkpoint.State, done: float, speed: float) -> Progress:
    last = state.curve[-1] if state.curve else {}
    left = state.seconds * (1 - done) / done if done else math.inf
    loss, accuracy = last.get("train_loss", math.nan), last.get("valid_accuracy", math.nan)
    return Progress(state.step, done, loss, accuracy, speed, left)


def _former_attempts(runs: Path, run_id: str, former: RunRecord | None) -> list[Attempt]:
    """What is known of earlier starts: of an interrupted run from its own file, of a failed one from its record."""
    interrupted = read_attempts(runs, run_id)
    if interrupted is not None:
        return interrupted
    return [] if former is None else former.attempts
