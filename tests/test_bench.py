"""Does `bench` measure what it says, keep what it measured, and survive what cannot be measured?"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from baselines import LinearConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig
from ldn.classifier import InputSpec, TargetSpec
from results import costs
from results.cost_frame import cost_frame, exponents, read_costs
from results.figures.cost import length_scaling
from results.files import CorruptFile
from results.gather import gather
from results.record import CostRecord, read_cost, write_cost
from results.report import write_report
from results.summary import summarise
from studies import bench as benching
from studies.__main__ import app
from studies.bench import Interrupted, Settings, bench, exclusive
from studies.isolated import Isolated, Workload, free_memory
from studies.roofline import Ceilings
from studies.subjects import MODELS, ModelSubject, of_length, of_study, parse_lengths, preset, tokens_of
from studies.timing import FEWEST, Timing, Traffic, Unmeasured, block, interleaved, peak_memory, warm_up
from studies.zoo import MODELS as ZOO
from tests.test_cli import STUDY

CPU = torch.device("cpu")
TEXT = InputSpec(kind="tokens", length=32, vocabulary=16)
CLASSES = TargetSpec(classes=4)
QUICK = Settings(seconds=0.01, longest=60)


def subject(model: object, tokens: int = 32, label: str = "one", input: InputSpec = TEXT) -> ModelSubject:
    return ModelSubject(label, model, dataclasses.replace(input, length=tokens), CLASSES, 2, tokens)  # type: ignore[arg-type]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lock of the test's own, and ceilings that take no time."""
    monkeypatch.setattr(benching, "exclusive", partial(exclusive, tmp_path / "lock"))
    monkeypatch.setattr(benching, "ceilings", lambda *_: Ceilings(10.0, 0.1))


# --- the core: a callable -> timings ------------------------------------------------------------


def test_work_takes_turns_and_is_timed_block_by_block() -> None:
    order: list[str] = []

    def turn(name: str, seconds: float, calls: int) -> float:
        order.append(name)
        return block(lambda: time.sleep(seconds), calls, CPU)

    turns = {name: partial(turn, name, seconds) for name, seconds in (("a", 0.002), ("b", 0.03))}
    timed = dict(interleaved(turns, {"a": 0.002, "b": 0.03}, seconds=0.4))
    a, b = timed["a"], timed["b"]
    assert isinstance(a, Timing) and isinstance(b, Timing)
    assert order[:6] == ["a", "b"] * 3
    assert (len(a.seconds), a.iterations) == (20, 200)
    assert (len(b.seconds), b.iterations) == (14, 14)
    low, median, high = b.quartiles
    assert 0.03 <= low <= median <= high


def test_slow_work_is_warmed_up_once_and_timed_a_few_times() -> None:
    calls: list[int] = []
    took = warm_up(lambda: (calls.append(1), time.sleep(0.02)), CPU, seconds=0.01)
    assert (len(calls), took >= 0.02) == (1, True)
    timed = dict(interleaved({"slow": lambda calls: 0.02}, {"slow": 0.02}, seconds=0.01))
    assert timed["slow"] == Timing([0.02] * FEWEST, FEWEST)


def test_work_that_fails_in_its_turn_leaves_the_others_alone() -> None:
    def breaks(calls: int) -> float:
        raise Unmeasured("failed", "it broke")

    timed = dict(interleaved({"a": breaks, "b": lambda calls: 1.0}, {"a": 1.0, "b": 1.0}, seconds=0.1))
    assert isinstance(timed["a"], Unmeasured) and timed["b"] == Timing([1.0] * FEWEST, FEWEST)


def test_ctrl_c_keeps_what_had_its_blocks() -> None:
    turns: list[int] = []

    def turn(calls: int) -> float:
        turns.append(calls)
        if len(turns) > 3 * FEWEST - 1:
            raise KeyboardInterrupt
        return 1.0

    timed: dict[str, Timing | Unmeasured] = {}
    with pytest.raises(KeyboardInterrupt):
        for key, outcome in interleaved(dict.fromkeys("abc", turn), dict.fromkeys("abc", 1.0), seconds=40):
            timed[key] = outcome
    assert timed == dict.fromkeys("ab", Timing([1.0] * FEWEST, 2 * FEWEST))  # of c a block was missing


def test_peak_memory_is_what_tensors_held_at_most() -> None:
    with peak_memory(CPU, before=100) as held:
        first = torch.ones(1000)
        second = first + 1  # 8000 bytes now
        del first
        second.add_(1)
    assert 100 + 8000 <= held.bytes < 100 + 8000 + 1000  # and a few scalars


def test_traffic_is_what_is_read_and_written_and_views_are_free() -> None:
    x, w = torch.ones(10, 20), torch.ones(20, 30)
    with Traffic() as traffic:
        x.t().view(20, 10)
        torch.mm(x, w)
    assert traffic.bytes == 4 * (10 * 20 + 20 * 30 + 10 * 30)
    with Traffic() as traffic:
        w.add_(1)  # reads and writes it
    assert traffic.bytes >= 2 * 4 * 20 * 30


def test_a_training_pass_holds_weights_gradients_and_activations() -> None:
    built = subject(TransformerConfig(width=16, depth=1, heads=2)).build("cpu", "float32", False)
    weights = 4 * built.facts["params"]
    peaks = {}
    for name, work in built.works.items():
        built.tidy()
        with peak_memory(CPU, built.held) as held:
            work()
        peaks[name] = held.bytes
    assert weights < peaks["forward"] < peaks["forward+backward"]
    assert peaks["forward+backward"] > 2 * weights


# --- the child: nothing takes the machine down --------------------------------------------------


def hungry(gigabytes: float) -> Workload:
    return Workload({"take": lambda: torch.ones(int(gigabytes * 2.5e8)).sum()})


def dying(signal: int) -> Workload:
    os.kill(os.getpid(), signal)
    raise AssertionError


def sleeping() -> Workload:
    return Workload({"sleep": lambda: time.sleep(60)})


def captured() -> Workload:
    return Workload({"take": lambda: torch.ones(4).sum()}, captured={"take"})


def refusing() -> Workload:
    raise ValueError("this model reads images")


@pytest.mark.parametrize(
    ("build", "status", "reason"),
    [
        (partial(hungry, 1e5), "out of memory", "is not enough"),
        (partial(dying, 9), "out of memory", "the system killed its process"),
        (partial(dying, 11), "failed", "exit code -11"),
        (sleeping, "skipped", "had not ended after 1 s"),
        (refusing, "refused", "this model reads images"),
    ],
)
def test_what_cannot_be_measured_says_why(build, status, reason) -> None:
    child = Isolated(build, CPU, 1, patience=1 if build is sleeping else 60)
    with pytest.raises(Unmeasured) as caught:
        child.meter("sleep" if build is sleeping else "take", 0.01, True)
    child.close()
    assert caught.value.status == status and reason in caught.value.reason
    assert not child.process.is_alive()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device that captures")
def test_what_cannot_be_captured_is_launched_and_says_so() -> None:
    child = Isolated(captured, CPU, 1, patience=60)
    assert "CUDAGraph" in child.meter("take", 0.01, True).launched and child.turn("take", 3) > 0
    child.close()


def test_a_child_may_hold_most_of_the_free_memory_and_no_more() -> None:
    free = free_memory()
    if free is None:
        pytest.skip("this system does not tell its free memory")
    child = Isolated(partial(hungry, 1.2 * free / 1e9), CPU, 1, patience=60)
    with pytest.raises(Unmeasured, match="out of memory"):
        child.meter("take", 0.01, True)
    child.close()


# --- subjects -----------------------------------------------------------------------------------


def test_the_preset_has_every_model_of_the_zoo_equally_wide() -> None:
    assert {type(model) for model in MODELS.values()} == set(ZOO)
    assert {model.width for model in MODELS.values() if not isinstance(model, LinearConfig)} == {128}  # type: ignore[attr-defined]


def test_every_model_gets_the_same_number_of_tokens_and_no_zeros() -> None:
    for one in preset((96, 128), batch=2):
        assert tokens_of(one.input, one.model) == one.tokens
        x, lengths, y = one.example(CPU)
        assert x.float().std() > 0.1 and len(x) == len(y) == 2
        assert lengths is None


def test_a_grid_is_as_square_as_divides_it() -> None:
    image = InputSpec(kind="image", length=64, channels=3, grid=(8, 8))
    assert of_length(image, ViTConfig(patch=4), 32).grid == (16, 32)
    assert of_length(image, ViTConfig(patch=4), 7).grid == (4, 28)
    assert of_length(TEXT, LDNConfig(), 7).length == 7


@pytest.mark.parametrize(("text", "lengths"), [("1K,512", (512, 1024)), ("none", ()), ("64, 64", (64,))])
def test_lengths_are_read(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["many", "0", "1.5K", "12,"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--lengths takes numbers of tokens"):
        parse_lengths(text)


# --- the bench ----------------------------------------------------------------------------------


def test_a_bench_leaves_records_that_are_replaced_when_it_is_repeated(quick: None, tmp_path: Path) -> None:
    models = {"ldn": LDNConfig(width=8, depth=1, heads=2), "vit": ViTConfig(width=8, depth=1, heads=2)}
    subjects = [subject(model, n, label) for n in (16, 32) for label, model in models.items()]
    records = bench(subjects, QUICK, tmp_path)
    assert len(records) == 8 == len(list(tmp_path.glob("costs/*.json")))
    done = [record for record in records if record.status == "done"]
    assert {record.label for record in done} == {"ldn"} and len(done) == 4
    assert {record.reason for record in records if record.label == "vit"} == {
        "ViT reads images; this task's input is of kind 'tokens' (choose its image view)"
    }
    for record in done:
        assert 0 < record.low <= record.median <= record.high
        assert record.iterations >= 3 and record.params > 0 and record.gmac > 0
        assert record.peak_bytes > 4 * record.params and record.moved_bytes > 0
        assert {"commit", "torch", "device", "threads", "node"} <= record.env.keys()
        assert read_cost(tmp_path / "costs" / f"{record.cost_id}.json") == record
    bench(subjects[:2], QUICK, tmp_path)
    assert len(list(tmp_path.glob("costs/*.json"))) == 8


def test_an_interrupted_bench_keeps_what_it_has_measured(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: Counter[Isolated] = Counter()

    def turn(self: Isolated, name: str, calls: int) -> float:
        turns[self] += 1
        if len(turns) == 2 and turns[self] == 2 * FEWEST + 2:  # of the second length
            raise KeyboardInterrupt
        return float(self._ask("turn", name, calls))

    monkeypatch.setattr(Isolated, "turn", turn)
    subjects = [subject(LinearConfig(), n) for n in (16, 32, 64)]
    with pytest.raises(Interrupted) as stop:
        bench(subjects, dataclasses.replace(QUICK, seconds=0.5), tmp_path)
    kept = [(record.tokens, record.work, len(record.seconds)) for record in stop.value.records]
    assert kept[2:] == [(32, "forward", FEWEST + 1), (32, "forward+backward", FEWEST)] and len(kept) == 4
    assert len(list(tmp_path.glob("costs/*.json"))) == 4


def test_a_compiled_pass_is_a_record_of_its_own(quick: None, tmp_path: Path) -> None:
    eager, compiled = (
        [r for r in bench([subject(LinearConfig())], dataclasses.replace(QUICK, modes=(False, True)), tmp_path)
         if r.work == "forward+backward" and r.compiled is mode]
        for mode in (False, True)
    )  # fmt: skip
    assert (eager[0].status, compiled[0].status) == ("done", "done"), compiled[0].reason
    assert eager[0].cost_id != compiled[0].cost_id
    assert compiled[0].moved_bytes == 0 < eager[0].moved_bytes


def test_a_pass_that_would_take_too_long_is_skipped_and_says_so(quick: None, tmp_path: Path) -> None:
    model = TransformerConfig(width=8, depth=1, heads=2)
    subjects = [subject(model, n) for n in (32, 64, 128)]
    records = bench(subjects, dataclasses.replace(QUICK, longest=1e-6), tmp_path)
    assert [record.status for record in records if record.work == "forward"] == ["done", "skipped", "skipped"]
    assert "one pass over 64 tokens would take about" in records[-1].reason


def test_two_benches_refuse_each_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock), pytest.raises(ValueError, match="another bench is measuring"), exclusive(lock):
        pass
    with exclusive(lock):
        pass


# --- what is made of the records ----------------------------------------------------------------


def made(label: str, tokens: int, seconds: float, **other: object) -> CostRecord:
    known: dict[str, object] = {
        "label": label, "model": {"name": label}, "task": {}, "input": {"kind": "tokens"}, "tokens": tokens,
        "batch": 1, "dtype": "float32", "work": "forward", "compiled": False, "status": "done",
        "seconds": [seconds], "median": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "iterations": 3,
        "peak_bytes": 1000, "moved_bytes": 2 * 10**9, "params": 10, "gmac": 0.5, "copy_gb_s": 10.0,
        "matmul_tflop_s": 0.1, "env": {"device": "cpu (x)", "threads": 1, "torch": "2", "commit": "abc", "load": 0.1},
    }  # fmt: skip
    return CostRecord(**(known | other))  # type: ignore[arg-type]


def test_an_exponent_is_fitted_with_its_interval() -> None:
    random = np.random.default_rng(0)
    lengths = [2**i for i in range(10, 15)]
    frame = cost_frame(
        [made("square", n, 1e-8 * n**2 * math.exp(random.normal(0, 0.02))) for n in lengths]
        + [made("line", n, 1e-5 * n) for n in lengths[:2]]
        + [made("once", 1024, 1.0), made("never", 1024, math.nan, status="out of memory", reason="too large")]
    )
    fits = exponents(frame).set_index("label")
    assert fits.loc["square", "low"] < 2 < fits.loc["square", "high"]
    assert fits.loc["square", "high"] - fits.loc["square", "low"] < 0.1
    assert fits.loc["line", "exponent"] == pytest.approx(1) and math.isnan(fits.loc["line", "low"])
    assert fits.loc[["once", "never"], "exponent"].isna().all()


def test_the_interval_covers_the_true_exponent_as_often_as_it_says() -> None:
    random, lengths, hits = np.random.default_rng(1), [2**i for i in range(10, 15)], 0
    for _ in range(60):
        frame = cost_frame([made("a", n, n**1.5 * math.exp(random.normal(0, 0.1))) for n in lengths])
        fit = exponents(frame).iloc[0]
        hits += fit["low"] <= 1.5 <= fit["high"]
    assert 52 <= hits <= 60


def test_tables_state_shares_and_what_has_no_number() -> None:
    frame = cost_frame(
        [made("a [b]", 1024, 1.0), made("a [b]", 2048, math.nan, status="out of memory", reason="8 GB is not enough")]
    )
    assert frame.loc[0, ["tokens_per_second", "gb_s", "gb_share"]].tolist() == [1024, 2, 0.2]
    assert frame.loc[0, ["tflop_s", "tflop_share"]].tolist() == pytest.approx([0.001, 0.01])
    (row,) = costs.scaling_table(frame).to_dict("records")
    assert (row["1,024"], row["2,048"]) == ("1,024", "out of memory")
    assert costs.detail_table(frame)["GB/s (share)"].tolist() == ["2 (20%)", ""]
    said = " ".join(costs.notes(frame))
    assert "a [b] at 2,048 tokens, forward, out of memory: 8 GB is not enough." in said
    assert "only ratios inside one run" in said


def test_the_figure_marks_what_has_no_time_and_dashes_what_is_compiled() -> None:
    records = [made(m, n, n / 1e5, compiled=c) for m in "ab" for n in (1024, 2048, 4096) for c in (False, True)]
    records.append(made("a", 8192, math.nan, status="out of memory"))
    frame = cost_frame(records)
    figure = length_scaling(frame, exponents(frame))
    both = pd.concat([frame, frame.assign(work="forward+backward", median=frame["median"] * frame["tokens"])])
    backward = length_scaling(both, exponents(both)).legends[1].get_texts()
    assert backward[0].get_text() == "a: N^2.00 [2.00, 2.00]"
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert {"compiled", "out of memory", "8K"} <= set(texts)
    assert texts.count("a: N^1.00 [1.00, 1.00]") == 1
    assert {line.get_linestyle() for line in figure.axes[0].lines} >= {"-", "--", "None"}


def test_a_damaged_record_is_named_and_hides_no_other(tmp_path: Path) -> None:
    write_cost(tmp_path, made("a", 1024, 1.0))
    (tmp_path / "costs" / "torn.json").write_text('{"label": ')
    frame, unreadable = read_costs(tmp_path)
    assert len(frame) == 1 and "torn.json is not valid JSON" in unreadable[0]
    (tmp_path / "costs" / "torn.json").write_text('{"label": "a", "color": 1}')
    with pytest.raises(CorruptFile, match="unknown fields"):
        read_cost(tmp_path / "costs" / "torn.json")


# --- the whole way ------------------------------------------------------------------------------


def test_a_study_is_benched_and_its_report_says_what_it_costs(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixing.py").write_text(STUDY.replace("seeds=(0, 1)", "seeds=(0,)"))
    ran = CliRunner().invoke(app, ["run", "mixing.py", "--on", "inline"])
    assert ran.exit_code == 0, ran.output
    options = ["--lengths", "16,32", "--seconds", "0.01", "--threads", "1", "--device", "cpu"]
    said = CliRunner().invoke(app, ["bench", "mixing.py", *options])
    assert said.exit_code == 0, (said.output, said.exception)
    assert "attention [only]" in said.output and "Exponent [95% interval]" in said.output
    written = {path.name for path in Path("reports/bench-mixing").iterdir()}
    assert written == {"table.md", "costs.csv", "length_scaling.png", "length_scaling.pdf"}

    frame = gather(Path("runs"), "mixing")
    assert (frame["cost.examples_per_second"] > 0).all() and (frame["cost.peak_bytes"] > 0).all()
    summary = summarise(frame, "test.accuracy", "max")
    assert summary["examples_per_second"].notna().all() and summary["peak_bytes"].notna().all()
    report = write_report(Path("runs"), "mixing", Path("reports"))
    page = (report.folder / "table.md").read_text()
    assert "## Measured cost" in page and "length_scaling.png" in page


def test_arms_that_differ_in_training_only_are_measured_once() -> None:
    from studies import catalogue
    from studies.spec import with_field

    study = catalogue.load(catalogue.source("digits"))
    label, spec = next(iter(study.arms.items()))
    more = dataclasses.replace(study, arms={**study.arms, "faster": with_field(spec, "optim.lr", 0.5)})
    assert len(of_study(more, (64,), 1)) == len(of_study(study, (64,), 1))
    assert all(one.label != "faster" for one in of_study(more, (64,), 1)) and label


class Custom(nn.Module):
    """Only here so that a network of one's own can be timed with the same core."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


def test_the_core_times_any_callable() -> None:
    network, x = Custom(), torch.randn(100)
    took = warm_up(lambda: network(x), CPU, 0.001)
    timed = dict(interleaved({"sin": partial(block, lambda: network(x), device=CPU)}, {"sin": took}, 0.005))["sin"]
    assert isinstance(timed, Timing) and timed.quartiles[1] > 0
