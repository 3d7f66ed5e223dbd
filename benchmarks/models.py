"""How fast does an LDN train beside a Transformer of equal width, and what do CUDA graphs give a small one?

    python -m benchmarks.models            on a GPU about two minutes
    python -m benchmarks.models --short    the same, tiny: that it runs

Whole training steps of compiled models of 6 layers in bfloat16, on random ids without padding, so that
FlashAttention, the only attention of PyTorch's that is allowed here on a GPU, can be the Transformer's: only time and
memory mean anything. Timed as in `benchmarks.training`.
Targets, on an H200: 1.3 times the Transformer's tokens a second at 1K tokens and 8 times at 16K, with at most 0.7 of
its memory; 64K tokens train; graphs give twice the speed of launching at width 64 and 1K tokens. Not measured on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines import TransformerConfig
from benchmarks.training import SKIPPED, RandomIds, Watch
from ldn import LDNConfig
from ldn.classifier import ModelConfig
from studies.provenance import commit, device_name
from studies.spec import Budget, RunSpec, with_field
from studies.train import Place, train

TIMED = 20  # steps, after those in which all is compiled


class Size(NamedTuple):
    width: int
    depth: int
    tokens: int  # of a batch
    lengths: tuple[int, int, int]  # the longest for the LDN alone
    small: int  # width of the model that is replayed


FULL, SHORT = Size(256, 6, 2**15, (1024, 16384, 65536), 64), Size(16, 1, 128, (32, 64, 128), 8)


@dataclass(frozen=True)
class Trained:
    tokens_a_second: float
    peak_bytes: int  # 0 on a CPU
    fault: str = ""


def spec(model: ModelConfig, n: int, tokens: int) -> RunSpec:
    """A run long enough to be timed."""
    return RunSpec(
        model=model,
        task=RandomIds(length=n, padded=False),
        batch=max(1, tokens // n),
        budget=Budget(steps=SKIPPED + TIMED, evaluations=1),
        precision="bf16",
    )


def trained(asked: RunSpec, device: torch.device, compiled: bool) -> Trained:
    """Tokens a second of a training step, and the most memory that it held."""
    watch = Watch(SKIPPED + TIMED, device)
    torch.compiler.reset()  # the network before is held by what was compiled for it
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device.type == "cuda" else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, flash:
        record = train(asked, Place(Path(scratch), Path(scratch), str(device), 1, compiled), stop=watch)
    if record.status != "done":
        return Trained(float("nan"), 0, f"{record.status}: {record.reason}")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Trained(asked.batch * asked.task.input.length / watch.seconds_a_step, peak)


def row(what: str, n: int, one: Trained, over: str = "", target: str = "") -> None:
    memory = f"{one.peak_bytes / 1e9:,.2f}" if one.peak_bytes else ""
    speed = one.fault or f"{one.tokens_a_second:,.0f}"
    print(f"| {what} | {n:,} | {speed} | {memory} | {over} | {target} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="tiny, and nothing is compiled")
    short = parser.parse_args().short or not torch.cuda.is_available()
    device, size = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SHORT if short else FULL
    print(f"{device_name(device)}, torch {torch.__version__}, commit {commit()['commit']}")
    if device.type == "cpu":
        print("Not measured on a GPU: this only shows that it runs.")
    print("\n| model | tokens | tokens/s | peak GB | over the other | target |\n|---|--:|--:|--:|---|---|")
    ended = []
    ldn = LDNConfig(width=size.width, depth=size.depth)
    transformer = TransformerConfig(width=size.width, depth=size.depth)
    small = spec(LDNConfig(width=size.small, depth=size.depth), size.lengths[0], size.tokens)
    launched = trained(small, device, False)
    row(f"LDN, width {size.small}, launched", size.lengths[0], launched)
    replayed = trained(with_field(small, "optim.graphs", True), device, False)
    over = f"{replayed.tokens_a_second / launched.tokens_a_second:.2f}x"
    row(f"LDN, width {size.small}, graphs", size.lengths[0], replayed, over, "2x")
    for n, target in zip(size.lengths, ("1.3x", "8x, memory 0.7x", "it trains"), strict=True):
        theirs = None
        if n != size.lengths[-1]:
            theirs = trained(spec(transformer, n, size.tokens), device, not short)
            row("Transformer", n, theirs)
        ours = trained(spec(ldn, n, size.tokens), device, not short)
        over = ""
        if theirs is not None:
            over = f"{ours.tokens_a_second / theirs.tokens_a_second:.2f}x"
            over += f", memory {ours.peak_bytes / theirs.peak_bytes:.2f}x" if theirs.peak_bytes else ""
        row("LDN", n, ours, over, target)
        ended += [ours, *([theirs] if theirs is not None else [])]
    sys.exit(0 if not any(one.fault for one in (*ended, launched, replayed)) else 1)


if __name__ == "__main__":
    main()
