"""What does every model or kernel cost, over lengths? One exclusive pass over all, in turns, into cost records.

At one length each subject waits in a process of its own; the timed blocks of all subjects, passes and modes take turns.
Parameters and multiply-adds come from `studies.meter`. What cannot be measured is a record too: out of memory,
refused by the model, or skipped because one pass would take too long.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from results.locks import locked
from results.record import CostRecord, write_cost
from studies.executors import devices, validate_compiler
from studies.isolated import Isolated, Metered
from studies.provenance import cores, provenance
from studies.roofline import Ceilings, ceilings
from studies.subjects import DTYPES, PASSES, Pass, Subject
from studies.timing import Timing, Unmeasured, interleaved

AT_ONCE = 24  # subjects that wait side by side; more are measured in several rounds
LOCK = Path(tempfile.gettempdir()) / "ldn-bench.lock"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is measured. `seconds` are those of one measurement's timed blocks (its warm-up takes as many); a pass
    expected to take more than `longest` seconds is skipped. `modes`: False is eager, True compiled."""

    device: str = "cpu"
    threads: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    modes: tuple[bool, ...] = (False,)
    seconds: float = 0.5
    longest: float = 10.0


def settings(device: str, threads: int | None, compile: bool | None, seconds: float, longest: float) -> Settings:
    """As the device wants it: float32, eager, on a CPU with all its cores; bfloat16, eager and compiled, on a GPU.

    Raises ValueError where there is no such device.
    """
    device = devices(device)[0]
    gpu = device != "cpu"
    if compile and not gpu:
        validate_compiler()
    return Settings(
        device=device,
        threads=threads or cores(),
        dtype="bfloat16" if gpu else "float32",
        modes=(False, True) if (gpu if compile is None else compile) else (False,),
        seconds=seconds,
        longest=longest,
    )


@dataclass(frozen=True)
class Point:
    """One measurement: a pass of a subject, eager or compiled."""

    subject: int  # its place in the round
    compiled: bool
    work: Pass


class Interrupted(KeyboardInterrupt):
    """A bench was stopped by Ctrl-C; `records` are what it had measured, all of them written."""

    def __init__(self, records: list[CostRecord]) -> None:
        super().__init__()
        self.records = records


@contextmanager
def exclusive(path: Path = LOCK) -> Iterator[None]:
    """Hold this machine's bench lock. Raises ValueError if another bench does: two would spoil each other's times."""
    if not path.exists():
        path.touch()
    with ExitStack() as held:
        try:
            held.enter_context(locked(path, seconds=0, mode="r"))  # another user's file may be read, not written
        except BlockingIOError:
            raise ValueError(
                f"another bench is measuring on this machine (it holds {path}); wait until it has ended: "
                "side by side, neither would measure anything"
            ) from None
        yield


def bench(
    subjects: Sequence[Subject], settings: Settings, runs: Path, report: Callable[[str], None] = lambda line: None
) -> list[CostRecord]:
    """Measure all subjects, those of one number of tokens together; the records, written after each round.

    Raises ValueError if another bench runs on this machine, OSError when a record cannot be written, and Interrupted
    on Ctrl-C.
    """
    with exclusive():
        report("the device's ceilings")
        device = torch.device(settings.device)
        env: Any = provenance(device, settings.threads)
        env |= {"load": round(os.getloadavg()[0], 2), **_versions(device)}
        try:
            most = ceilings(device, DTYPES[settings.dtype], settings.threads, settings.seconds)
        except Unmeasured:
            most = Ceilings(float("nan"), float("nan"))
        records: list[CostRecord] = []
        for group in _rounds(subjects):
            tokens = {subject.tokens for subject in group}
            report(f"{len(group)} subjects at {', '.join(f'{n:,}' for n in sorted(tokens))} tokens")
            measuring, interrupted = Round(group, settings, records, report), False
            try:
                measuring.measure()
            except KeyboardInterrupt:
                interrupted = True
            for record in measuring.known():
                record.env, record.copy_gb_s, record.matmul_tflop_s = env, most.copy_gb_s, most.matmul_tflop_s
                write_cost(runs, record)
                records.append(record)
            if interrupted:
                raise Interrupted(records)
        return records


class Round:
    """The subjects that are measured in turns, each in its own process for each mode."""

    def __init__(
        self, subjects: Sequence[Subject], settings: Settings, former: list[CostRecord], report: Callable[[str], None]
    ) -> None:
        self.subjects, self.settings, self.former, self.report = subjects, settings, former, report
        self.children: dict[tuple[int, bool], Isolated] = {}
        self.records: dict[Point, CostRecord] = {}
        self.ended: set[Point] = set()
        self.metered: dict[Point, Metered] = {}

    def known(self) -> list[CostRecord]:
        """The records of what was measured, or is known not to be measurable."""
        return [record for point, record in self.records.items() if point in self.ended]

    def measure(self) -> None:
        """Prepare all, then time all. Raises KeyboardInterrupt; what had been timed long enough is known then."""
        try:
            for index, subject in enumerate(self.subjects):
                for compiled in self.settings.modes if subject.compilable else (False,):
                    self.report(f"{subject.label}, {subject.tokens:,} tokens{', compiled' if compiled else ''}")
                    self._prepare(index, compiled)
            self.report("timed blocks, all in turns")
            turns = {p: partial(self.children[p.subject, p.compiled].turn, p.work) for p in self.metered}
            took = {point: metered.took for point, metered in self.metered.items()}
            for point, outcome in interleaved(turns, took, self.settings.seconds):
                if not self.children[point.subject, point.compiled].closed:  # else it was interrupted
                    self._end(point, self._verified(point, outcome))
        finally:
            for child in self.children.values():
                child.close()

    def _prepare(self, index: int, compiled: bool) -> None:
        """Start the process of a subject and let it make its first calls."""
        settings = self.settings
        counted = self.subjects[index].counted and not compiled
        points = {work: Point(index, compiled, work) for work in PASSES}
        for point in points.values():
            self.records[point] = self._record(point)
        if all([self._too_long(point) for point in points.values()]):  # both are asked: each says why
            return
        try:
            facts = self._start(index, compiled).facts()
        except Unmeasured as fault:
            for point in points.values():
                self._end(point, fault)
            return
        for point in points.values():
            record = self.records[point]
            record.params, record.gmac = facts["params"], facts["gmac"]
            record.uncounted = facts.get("uncounted", [])
            if record.status == "skipped":
                continue
            try:
                child = self.children[index, compiled]
                self.metered[point] = metered = child.meter(point.work, settings.seconds, counted)
                record.peak_bytes, record.moved_bytes = metered.peak_bytes, metered.moved_bytes
                record.reason = metered.launched
            except Unmeasured as fault:
                self._end(point, fault)

    def _start(self, index: int, compiled: bool) -> Isolated:
        settings = self.settings
        build = partial(self.subjects[index].build, settings.device, settings.dtype, compiled)
        compiles = compiled or not self.subjects[index].counted
        patience = 10 * settings.longest + (600 if compiles else 60)
        try:
            child = Isolated(build, torch.device(settings.device), settings.threads, patience)
        except (AttributeError, TypeError, ImportError) as error:  # what pickle raises
            raise Unmeasured("failed", f"the model's class cannot be sent to another process ({error})") from None
        self.children[index, compiled] = child
        return child

    def _verified(self, point: Point, outcome: Timing | Unmeasured) -> Timing | Unmeasured:
        """The timing, unless what was timed turns out to be something else."""
        if isinstance(outcome, Timing):
            try:
                self.children[point.subject, point.compiled].verify(point.work)
            except Unmeasured as fault:
                return fault
        return outcome

    def _end(self, point: Point, outcome: Timing | Unmeasured) -> None:
        record = self.records[point]
        self.ended.add(point)
        if isinstance(outcome, Unmeasured):
            record.status, record.reason = outcome.status, outcome.reason
            return
        record.status, record.seconds, record.iterations = "done", outcome.seconds, outcome.iterations
        record.low, record.median, record.high = outcome.quartiles

    def _record(self, point: Point) -> CostRecord:
        subject = self.subjects[point.subject]
        return CostRecord(
            label=subject.label, model=subject.plain_model, task=subject.task,
            input=subject.plain_input, tokens=subject.tokens, batch=subject.batch,
            dtype=self.settings.dtype, work=point.work, compiled=point.compiled, status="failed",
            least_bytes=subject.least_bytes(point.work, self.settings.dtype),
        )  # fmt: skip

    def _too_long(self, point: Point) -> bool:
        """Whether a pass would take longer than allowed, by the times of the same model at smaller lengths.

        Between lengths time is taken to grow as it last did, at least linearly, at most as the square.
        """
        record, longest = self.records[point], self.settings.longest
        same = [
            r for r in self.former
            if not r.task and r.tokens < record.tokens and (r.label, r.model, r.batch, r.work, r.compiled)
            == (record.label, record.model, record.batch, record.work, record.compiled)
        ]  # fmt: skip
        if record.task or not same:
            return False
        same.sort(key=lambda r: r.tokens)
        last = same[-1]
        if last.status == "skipped":
            self._end(point, Unmeasured("skipped", last.reason))
        elif last.status == "done":
            expected = last.median * (record.tokens / last.tokens) ** _growth(same)
            if expected > longest:
                why = (
                    f"one pass over {record.tokens:,} tokens would take about {expected:.0f} s (--longest {longest:g})"
                )
                self._end(point, Unmeasured("skipped", why))
        return record.status == "skipped"


def _rounds(subjects: Sequence[Subject]) -> list[Sequence[Subject]]:
    """Subjects on inputs of their tasks, then those of each length from the shortest on, so many at a time."""
    groups = [[s for s in subjects if s.task]]
    groups += [[s for s in subjects if not s.task and s.tokens == n] for n in sorted({s.tokens for s in subjects})]
    return [group[i : i + AT_ONCE] for group in groups for i in range(0, len(group), AT_ONCE)]


def _growth(records: list[CostRecord]) -> float:
    """The exponent between the last two lengths that were measured; 1 where only one was."""
    done = [record for record in records if record.status == "done"]
    if len(done) < 2:
        return 1.0
    before, last = done[-2:]
    return min(2.0, max(1.0, math.log(last.median / before.median) / math.log(last.tokens / before.tokens)))


def _versions(device: torch.device) -> dict[str, Any]:
    """What else a time on a GPU depends on."""
    if device.type != "cuda":
        return {}
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return {"cuda": torch.version.cuda, "triton": version("triton"), "cache_bytes": cache}
