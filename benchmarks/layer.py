"""What does one LDN layer cost beside a Transformer layer, and beside its own dense maps? Forward and backward.

    python -m benchmarks.layer             the ratios beside their targets (minutes)
    python -m benchmarks.layer --profile   where an eager and a compiled layer spend their time at 4K tokens

The layer is the preset's (width 128, 2 steps, 4 heads); a batch is one sequence. Its "dense maps" are the linear
maps and GELUs that it holds, each run alone on an input of its own: what a layer could cost at the least. All that
is compared runs in one process in turns, a turn of at least a quarter of a second each, and the medians over the
turns are compared. On a machine that does other work only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from statistics import linear_regression, median, quantiles

import torch
from torch import Tensor, nn
from torch.profiler import profile

from baselines.transformer import TransformerLayer
from ldn.model import LDNConfig, LDNLayer
from studies.provenance import commit, device_name

WIDTH, HEADS, TURNS, TURN_S = 128, 4, 12, 0.25
LENGTHS = (1024, 2048, 4096, 8192, 16384)
Step = Callable[[], object]


class DenseMaps(nn.Module):
    """The linear maps and GELUs of a layer, each on an input (B, N, D) of its own."""

    def __init__(self, layer: LDNLayer) -> None:
        super().__init__()
        assert layer.attention is not None and layer.local is not None and layer.ffn is not None
        self.maps = nn.ModuleList([layer.attention.qkv, layer.attention.out, layer.local, layer.ffn])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.maps, inputs, strict=True))


class WithoutLengths(nn.Module):
    """A layer as a function of its tokens alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x, None),)


def training_step(network: nn.Module, inputs: int, n: int, device: torch.device) -> Step:
    """Forward and backward, down to the gradients of parameters and inputs."""
    given = [torch.randn(1, n, WIDTH, device=device, requires_grad=True) for _ in range(inputs)]
    gradients = [torch.randn_like(y) for y in network(*given)]
    leaves = [*given, *network.parameters()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(network(*given), gradients)

    return step


def contestants(n: int, device: torch.device, compiled: bool, alone: bool = False) -> dict[str, Step]:
    """Training steps on n tokens by name: of the layer and, unless it is `alone`, of what it is compared with."""
    torch.manual_seed(0)
    layer = LDNLayer(LDNConfig(width=WIDTH, heads=HEADS), n, grid=None)
    networks: dict[str, tuple[nn.Module, int]] = {"ldn": (WithoutLengths(layer), 1)}
    if not alone:
        transformer = TransformerLayer(WIDTH, HEADS, ffn_ratio=4, dropout=0.0)
        networks |= {"dense": (DenseMaps(layer), 4), "transformer": (WithoutLengths(transformer), 1)}
    steps = {}
    for name, (network, inputs) in networks.items():
        network.to(device)
        if compiled:
            network = torch.compile(network, fullgraph=True, dynamic=False)  # type: ignore[assignment]
        steps[name] = training_step(network, inputs, n, device)
    return steps


def in_turns(steps: dict[str, Step], device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of each, turn by turn."""

    def run(step: Step, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    counts = {}
    for name, step in steps.items():
        run(step, 3)  # compilation, caches
        counts[name] = max(1, round(TURN_S / run(step, 2)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            seconds[name].append(run(step, counts[name]))
    return seconds


def print_ratio(label: str, over: list[float], under: list[float], target: str) -> None:
    ratio = median(over) / median(under)
    low, _, high = quantiles([one / other for one, other in zip(over, under, strict=True)], n=4)
    print(f"  {label:34} {ratio:5.2f}  (middle half of turns {low:.2f} to {high:.2f}; target {target})")


def compare(device: torch.device) -> None:
    for n, times in ((1024, "at least 1.50"), (4096, "at least 6.00")):
        for compiled in (False, True):
            seconds = in_turns(contestants(n, device, compiled), device)
            print(f"{n} tokens, {'compiled' if compiled else 'eager'}")
            for name, spent in seconds.items():
                print(f"  {name:34} {median(spent) * 1e3:8.2f} ms  {n / median(spent):9.0f} tokens/s")
            print_ratio("tokens/s over a Transformer layer", seconds["transformer"], seconds["ldn"], times)
            limit = f"at most {1.5 if compiled else 1.8:.2f}" if n == 4096 else "at 4096 only"
            print_ratio("time over its dense maps", seconds["ldn"], seconds["dense"], limit)


def scale(device: torch.device) -> None:
    """The exponent p of time ~ N^p, fitted by least squares of logarithms in every turn, which all lengths share."""
    for compiled in (False, True):
        steps = {str(n): contestants(n, device, compiled, alone=True)["ldn"] for n in LENGTHS}
        turns = list(zip(*in_turns(steps, device).values(), strict=True))
        lengths = [math.log(n) for n in LENGTHS]
        slopes = [linear_regression(lengths, [math.log(value) for value in turn]).slope for turn in turns]
        low, _, high = quantiles(slopes, n=4)
        print(f"exponent of time in N from 1K to 16K, {'compiled' if compiled else 'eager'}")
        for n, spent in zip(LENGTHS, zip(*turns, strict=True), strict=True):
            print(f"  {n:<34} {median(spent) * 1e3:8.2f} ms  {n / median(spent):9.0f} tokens/s")
        spread = f"(middle half of turns {low:.2f} to {high:.2f}; target at most 1.10)"
        print(f"  {'fitted':34} {median(slopes):5.2f}  {spread}")


def show_profile(device: torch.device) -> None:
    for compiled in (False, True):
        step = contestants(4096, device, compiled, alone=True)["ldn"]
        for _ in range(3):
            step()
        with profile() as recorded:
            for _ in range(5):
                step()
        print(f"5 steps of {'a compiled' if compiled else 'an eager'} layer at 4096 tokens")
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    asked = parser.parse_args()
    # one thread: on a shared machine a second one is not there for all turns alike
    torch._dynamo.config.recompile_limit = 64  # the same code is compiled once for every length
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = commit()
    print(
        "an LDN layer (the preset's) beside a Transformer layer and its own dense maps, forward and backward, float32"
    )
    print(
        f"{device_name(device)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"commit {state['commit']}{' and changes' if state['dirty'] else ''}"
    )
    if asked.profile:
        show_profile(device)
    else:
        compare(device)
        scale(device)


if __name__ == "__main__":
    main()
