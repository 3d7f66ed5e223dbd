"""Does `bench operators` count what a kernel has to move, compare variants, and say what was not measured?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.text
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from results.figures.operators import copy_share
from results.operators import detail_table, notes, operator_frame, share_table
from results.record import CostRecord, read_cost
from studies import bench as benching
from studies import operators as declared
from studies.__main__ import app
from studies.bench import Settings, bench, exclusive
from studies.isolated import Workload
from studies.operators import CASES, SETS, OperatorSubject, operators, size
from studies.roofline import Ceilings
from studies.timing import peak_memory

CPU = torch.device("cpu")
MEDIANS = {"plain": 12e-3, "compiled": 4e-3, "fused": 1e-3}  # seconds of a forward pass
BACKWARD = 2.5  # times these


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lock of the test's own, and ceilings that take no time."""
    monkeypatch.setattr(benching, "exclusive", partial(exclusive, tmp_path / "lock"))
    monkeypatch.setattr(benching, "ceilings", lambda *_: Ceilings(10.0, 0.1))


def record(variant: str, work: str, n: int = 4096, case: str = "diffusion S=4", **other: Any) -> CostRecord:
    """As measured on an imaginary GPU, of the headline's size."""
    one = OperatorSubject(case, 512, 2**16 // n, n, variant == "fused")
    seconds = MEDIANS[variant] * (1 if work == "forward" else 1 + BACKWARD)
    known: dict[str, Any] = {
        "label": one.label, "model": one.plain_model, "task": {}, "input": one.plain_input, "tokens": n,
        "batch": one.batch, "dtype": "bfloat16", "work": work, "compiled": variant == "compiled", "status": "done",
        "seconds": [seconds], "median": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "iterations": 9,
        "peak_bytes": 10**8, "least_bytes": one.least_bytes(work, "bfloat16"), "copy_gb_s": 200.0,  # type: ignore[arg-type]
        "env": {"device": "gpu", "threads": 1, "torch": "2", "commit": "abc", "load": 0.1, "cache_bytes": 5 * 10**7},
    }  # fmt: skip
    return CostRecord(**(known | other))


def measured(lengths: tuple[int, ...] = (4096,), **other: Any) -> pd.DataFrame:
    works = ("forward", "forward+backward")
    return operator_frame([record(v, work, n, **other) for n in lengths for v in MEDIANS for work in works])


# --- what is run, and what is counted -----------------------------------------------------------


def test_the_least_traffic_is_that_of_a_count_by_hand() -> None:
    tensor = 16 * 4096 * 512 * 2  # bytes of x in bfloat16 at the headline's size
    assert tensor == 67_108_864
    counts = {"diffusion S=1": (2, 5), "diffusion S=8": (2, 5), "adaptive S=2": (2, 5)}
    for case, (forward, both) in {**counts, "attention": (4, 11)}.items():
        one = OperatorSubject(case, 512, 16, 4096, fused=True)
        assert one.least_bytes("forward", "bfloat16") == forward * tensor
        assert one.least_bytes("forward+backward", "bfloat16") == both * tensor
        assert one.least_bytes("forward", "float32") == 2 * forward * tensor


def test_the_cases_are_those_named_and_tokens_are_shared_out() -> None:
    assert [case.steps for case in CASES.values() if hasattr(case, "steps")] == [1, 2, 4, 8, 4, 2]
    on_gpu = operators(size("cuda").lengths, None, "cuda")
    assert {one.batch * one.tokens for one in on_gpu} == {65536} and max(one.tokens for one in on_gpu) == 65536
    assert any((one.width, one.batch, one.tokens, one.fused) == (512, 16, 4096, True) for one in on_gpu)
    assert not any(one.fused for one in operators((64,), None, "cpu"))
    assert {one.batch for one in operators((64, 8192), 3, "cpu")} == {3}
    assert [one.batch for one in operators((8192,), None, "cpu")] == [1] * len(CASES)
    identities = {json.dumps(one.plain_model) for one in operators((64,), None, "cuda")}
    assert len(identities) == 2 * len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_case_runs_on_inputs_in_turn_and_yields_the_gradients_asked_for(case: str, monkeypatch) -> None:
    asked: list[list[torch.Tensor]] = []
    given = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda y, to, g: (asked.append(to), given.append(g), grad(y, to, g)))
    built = OperatorSubject(case, 8, 2, 32, fused=False).build("cpu", "bfloat16", False)
    for _ in range(SETS + 1):
        built.works["forward"]()
        built.works["forward+backward"]()
    names = {"adaptive S=2": [(2, 32, 8), (2, 8), (2, 32, 1), (2, 32, 2)]}
    plain = [(2, 32, 24)] if case.startswith("attention") else [(2, 32, 8), (2, 8)]
    assert [tuple(tensor.shape) for tensor in asked[0]] == names.get(case, plain)
    assert asked[0][0].dtype == torch.bfloat16 and all(tensor.float().std() > 0.1 for tensor in (asked[0][0], given[0]))


def test_sets_that_wait_are_no_part_of_the_peak() -> None:
    built = OperatorSubject("diffusion S=1", 8, 2, 32, fused=False).build("cpu", "float32", False)
    with peak_memory(CPU, built.held) as held:
        built.works["forward"]()
    x = 4 * 2 * 32 * 8
    assert built.held - built.idle == 2 * x + 4 * (2 * 8 + 8)  # x and the result's gradient, weights and rates
    assert 3 * x <= held.bytes - built.idle < 10 * x


def test_a_fused_kernel_is_refused_where_none_can_run() -> None:
    with pytest.raises(ValueError, match="run on a GPU only"):
        OperatorSubject("diffusion S=1", 8, 2, 32, fused=True).build("cpu", "float32", False)


@dataclass(frozen=True)
class Mislabelled(OperatorSubject):
    """Says after the timing that its forward pass was something else."""

    def build(self, device: str, dtype: str, compiled: bool) -> Workload:
        def verify(name: str) -> None:
            if name == "forward":
                raise ValueError("it is not fused")

        return Workload({"forward": int, "forward+backward": int}, 0, {"params": 0, "gmac": math.nan}, verify=verify)


def test_what_was_not_what_it_is_called_has_no_time(quick: None, tmp_path: Path) -> None:
    subject = Mislabelled("diffusion S=1", 8, 2, 32, fused=True)
    forward, both = bench([subject], Settings(seconds=0.01), tmp_path)
    assert (forward.status, forward.reason) == ("refused", "it is not fused")
    assert math.isnan(forward.median) and not forward.seconds
    assert both.status == "done" and both.median > 0


# --- what is made of the records ----------------------------------------------------------------


def test_the_table_states_share_gains_and_what_the_backward_pass_costs() -> None:
    frame = measured()
    rows = {(row["Variant"], row["Pass"]): row for row in detail_table(frame).to_dict("records")}
    fused = rows["fused", "forward"]
    assert fused["GB/s (share)"] == "134 (67%)"  # 2 x 67.1 MB in 1 ms, beside 200 GB/s
    assert (fused["vs plain"], fused["vs compiled"], fused["Backward"]) == ("12.00x", "4.00x", "")
    assert fused["ms [quartiles]"] == "1 [0.9, 1.1]"
    assert (rows["plain", "forward"]["vs plain"], rows["plain", "forward"]["vs compiled"]) == ("", "0.33x")
    assert rows["fused", "forward+backward"]["Backward"] == "2.50x"
    assert rows["fused", "forward+backward"]["GB/s (share)"] == "95.9 (48%)"  # 5 x 67.1 MB in 3.5 ms
    said = " ".join(notes(frame))
    assert "not measured on a GPU" not in said and "lie partly in the cache" not in said


def test_the_exponent_is_of_one_sequence_whatever_the_batch() -> None:
    frame = measured((1024, 4096, 16384))  # as many tokens and as much time at every length
    for row in share_table(frame).to_dict("records"):
        assert row["Exponent [95%]"] == "1.00 [1.00, 1.00]"
    assert share_table(frame)["1,024"].tolist()[:3] == ["6%", "17%", "67%"]


def test_what_is_missing_says_why() -> None:
    lost = record("fused", "forward", status="refused", reason="this case is not fused", median=math.nan)
    frame = operator_frame([record("plain", "forward"), lost])
    assert share_table(frame)["4,096"].tolist() == ["6%", "refused"]
    assert "diffusion S=4, fused at 4,096 tokens, forward, refused: this case is not fused." in " ".join(notes(frame))
    without = operator_frame([record("plain", "forward", least_bytes=10**6)])
    said = " ".join(notes(without))
    assert "not measured on a GPU" in said and "Not so at N x batch 4,096 x 16" in said


def test_times_of_a_gpu_are_without_launching_where_they_could_be_captured() -> None:
    said = " ".join(notes(operator_frame([record("fused", "forward"), record("plain", "forward", reason="it waits")])))
    assert "captured as one CUDA graph" in said and "Not so diffusion S=4, launched call by call: it waits." in said


def test_the_figure_has_a_panel_for_each_variant_and_pass() -> None:
    figure = copy_share(measured((1024, 4096)))
    assert len(figure.axes) == 6
    texts = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
    assert {"Fused, forward", "Plain, forward+backward", "diffusion S=4", "a copy", "4K"} <= texts


# --- the whole way ------------------------------------------------------------------------------


def test_operators_are_benched_by_their_name(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("multiscale S=4", "adaptive S=2", "attention")
    monkeypatch.setattr(declared, "CASES", {case: CASES[case] for case in few})
    options = ["--lengths", "32,64", "--batch", "1", "--seconds", "0.01", "--threads", "1", "--device", "cpu"]
    said = CliRunner().invoke(app, ["bench", "operators", *options], env={"COLUMNS": "140"})
    assert said.exit_code == 0, (said.output, said.exception)
    assert "multiscale S=4" in said.output and "not measured on a GPU" in said.output
    assert "subjects at 32 tokens" in said.output  # without a terminal, a line for each thing it is at
    folder = Path("reports/bench-operators")
    assert {path.name for path in folder.iterdir()} == {
        "table.md", "kernels.csv", "copy_share.png", "copy_share.pdf",
    }  # fmt: skip
    page = (folder / "table.md").read_text()
    assert "| Kernel " in page and "share of what a copy reaches" in page
    records = [read_cost(path) for path in Path("runs/costs").glob("*.json")]
    assert len(records) == 2 * 2 * len(few) and {one.status for one in records} == {"done"}
    assert {one.moved_bytes for one in records} == {0} and all(one.peak_bytes > one.least_bytes / 3 for one in records)
    again = operator_frame(records)
    assert again["gb_share"].gt(0).all() and again["backward_ratio"].notna().sum() == 2 * len(few)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    asked = CliRunner().invoke(app, ["bench", "kernel", "--device", "cpu"])
    assert isinstance(asked.exception, ValueError)
    assert "'kernel'; known:" in str(asked.exception) and "'operators' stands for LDN's operators" in str(
        asked.exception
    )
    nothing = CliRunner().invoke(app, ["bench", "operators", "--lengths", "none", "--device", "cpu"])
    assert "there is nothing to measure" in str(nothing.exception)
