"""What a model costs: parameters and multiply-adds of a forward pass.

fvcore traces the network, and `studies.macs` has a count for each operation. An operation without one is named in
`Cost.uncounted`; the counts are then lower bounds.

`gmac` counts fused multiply-adds in 10^9 (what papers call GFLOPs) of products: linear maps, convolutions, matrix
products, attention, recurrences, Fourier transforms, and diffusion as (E + 1) D a token and sub-step for E edges,
whichever implementation runs. Elementwise work (norms, activations, softmax, sums, pools) is counted apart, for all
models alike.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldn.classifier import InputSpec
from studies.macs import UNCOUNTED, handles

UNTRACED = "all but matrix products and convolutions (torch.jit cannot trace the model)"


@dataclass(frozen=True)
class Cost:
    """Of one forward pass over one example of full length.

    gmac: 10^9 multiply-adds. elementwise_g: 10^9 elements of elementwise operations.
    by_operation: gmac by operation.
    uncounted: operations whose cost is not known; if there are any, the counts are lower bounds.
    """

    params: int
    gmac: float
    elementwise_g: float
    by_operation: dict[str, float]
    uncounted: list[str] = field(default_factory=list)


class UncountedOperation(ValueError):
    """An exact count is needed, and the network uses an operation whose cost is not known."""


def measure(network: nn.Module, spec: InputSpec) -> Cost:
    """The cost of `network` on one example of `spec`, at its full length."""
    device = next(network.parameters()).device
    training, fast_path = network.training, torch.backends.mha.get_fastpath_enabled()
    network.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which hides its operations
    try:
        counts = _count(network, example(spec).to(device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        network.train(training)
    uncounted = sorted(name.removeprefix(UNCOUNTED) for name in counts if name.startswith(UNCOUNTED))
    elementwise = counts.pop("elementwise", 0)
    products = {name: n for name, n in sorted(counts.items()) if n and not name.startswith(UNCOUNTED)}
    by_operation = {name: n / 1e9 for name, n in products.items()}
    return Cost(parameters(network), sum(products.values()) / 1e9, elementwise / 1e9, by_operation, uncounted)


def exact_gmac(cost: Cost, purpose: str, instead: str) -> float:
    """`cost.gmac`. Raises UncountedOperation where it is a lower bound, for which `purpose` has no use."""
    if cost.uncounted:
        raise UncountedOperation(
            f"{purpose} needs all multiply-adds of a model, and these operations have no count: "
            f"{', '.join(cost.uncounted)}; use {instead}, or give them one in studies/macs.py"
        )
    return cost.gmac


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def example(spec: InputSpec) -> Tensor:
    """One example of full length, as a batch of one."""
    if spec.kind == "tokens":
        return torch.zeros(1, spec.length, dtype=torch.long)
    if spec.kind == "pixels":
        return torch.zeros(1, spec.length, spec.channels)
    assert spec.grid is not None
    return torch.zeros(1, spec.channels, *spec.grid)


class _Opaque(nn.Module):
    """A network as one module: fvcore then puts no hooks on its parts, which scripted modules would refuse."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.parts = [network]  # in a list, it is not registered

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """What the tracer takes as parameters."""
        return self.parts[0].state_dict(*args, **options)

    def forward(self, x: Tensor) -> Any:
        return self.parts[0](x)


def _count(network: nn.Module, x: Tensor) -> Counter[str]:
    """Counts by operation; with the prefix UNCOUNTED, the operations that have none."""
    analysis = FlopCountAnalysis(_Opaque(network), (x,)).clear_op_handles()
    analysis.set_op_handle(*(argument for item in handles().items() for argument in item))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing specialises on shapes, which is what is wanted here
        try:
            counts = Counter(analysis.by_operator())
        except Exception as error:  # scripted, compiled or checkpointed parts, say
            logging.getLogger(__name__).info("the network cannot be traced: %s", error)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(x)  # raises what the network itself raises
            return Counter({"products": counter.get_total_flops() / 2, UNCOUNTED + UNTRACED: 1})
    return counts + Counter({UNCOUNTED + name: n for name, n in analysis.unsupported_ops().items()})
