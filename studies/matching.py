"""Which width makes a baseline cost what the reference arm costs?

Long Range Arena's own rule (Tay et al. 2021, arXiv 2011.04006, section 3.1 as their code applies it): as near the
reference as whole heads allow, and at most 10 % above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from studies.meter import exact_gmac, measure, parameters
from studies.spec import RunSpec, with_field

ABOVE = 1.1


@dataclass(frozen=True)
class MatchedWidth:
    """A solved width and what it costs, as a share of the reference."""

    width: int
    share: float
    by: str

    def __str__(self) -> str:
        return f"width {self.width}: {self.share:.2f}x the reference's {self.by}"


@cache
def matched_width(spec: RunSpec, reference: RunSpec, by: Literal["params", "gmac"]) -> MatchedWidth:
    """The width of `spec`'s model whose cost is nearest to the reference's and at most 10 % above it.

    Raises ValueError if even the smallest width costs more, or if the cost does not depend on the width.
    """
    wanted, unit = _cost(reference, by), spec.model.width_unit()

    def cost(units: int) -> float:
        return _cost(with_field(spec, "model.width", units * unit), by)

    high = 1
    while cost(high) <= wanted:
        high *= 2
        if cost(high) <= cost(high // 2):
            raise ValueError(
                f"no width of {spec.model.name} costs as much as the reference: {by} does not rise with it"
            )
    low = high // 2  # cost(low) <= wanted < cost(high); low is 0 where even one unit costs more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= wanted else (low, middle)
    shares = {units: cost(units) / wanted for units in (low, high) if units}
    legal = {units: share for units, share in shares.items() if share <= ABOVE}
    if not legal:
        raise ValueError(f"no width of {spec.model.name} costs as little as the reference ({by}: {wanted:g})")
    units = min(legal, key=lambda units: abs(legal[units] - 1))
    return MatchedWidth(units * unit, legal[units], by)


@cache
def _cost(spec: RunSpec, by: str) -> float:
    if by == "params":
        with torch.device("meta"):
            return parameters(spec.model.build(spec.task.input, spec.task.target))
    cost = measure(spec.model.build(spec.task.input, spec.task.target), spec.task.input)
    return exact_gmac(cost, f"matching {spec.model.name} by gmac", 'match="params"')
