"""In how many passes over memory are S diffusion steps done, and how does a program of each march?

Steps whose windows a thread's registers can hold are one pass (`ldn.kernels.march`): one read and one write. Where the
dilations of a pass have a common factor g, tokens of different residues modulo g never meet: the pass runs along every
g-th token. So multiscale steps 1, 2, 4, ..., 2048 need a few passes, not twelve. Nothing here is tuned at run time: the
plan is a function of shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

from ldn.kernels.march import Pair, Pass, Reach, backward, forward
from ldn.reference import Offset

# By this count, which leaves out pointers and what lives within a step: compiled for sm_90 by Triton 3.6 and 3.9 the
# bench's and the tests' programs take at most 200 registers of 255, so that 10 run at once, and spill none to memory.
MOST_REGISTERS = 132
INSTRUCTIONS_A_BYTE = 8  # take the time of a byte: an H200 issues 33.5e12 a second and copies 4.3e12 bytes
MOST_UNROLLED = 96  # steps of a token along a pair of edges that a kernel has written out: it is compiled in seconds
ROWS = (16, 8, 4, 2, 1)
COLUMNS = (1, 2, 4, 8, 16)  # of a 2-D grid
CHANNELS = (2, 1)
LARGEST = max(*ROWS, *COLUMNS)


@dataclass(frozen=True)
class Plan:
    """The passes of S steps, and why they are so many."""

    passes: tuple[Pass, ...]
    reason: str


@cache
def pairs(offsets: tuple[Offset, ...]) -> tuple[Pair, ...]:
    """The offsets, filed with their opposites; those that lead a token to itself move nothing and are left out."""
    found: list[Pair] = []
    for number, offset in enumerate(offsets):
        y, x = (offset[0], 0) if len(offset) == 1 else (offset[0], offset[1])
        later, is_ahead = max((y, x), (-y, -x)), (y, x) > (-y, -x)
        if (y, x) == (0, 0):
            continue
        for place, pair in enumerate(found):  # a repeated offset has a pair of its own
            if pair.offset == later and (pair.ahead if is_ahead else pair.back) < 0:
                found[place] = Pair(later, number if is_ahead else pair.ahead, pair.back if is_ahead else number)
                break
        else:
            found.append(Pair(later, number if is_ahead else -1, -1 if is_ahead else number))
    return tuple(found)


def enough(offsets: tuple[Offset, ...], dilations: tuple[int, ...]) -> int:
    """So many tokens along an axis that the plans of all longer ones are alike."""
    reach = max(abs(d) for offset in offsets for d in offset)
    return max(max(LARGEST, reach) * max(dilations), 8 * reach * sum(dilations)) + 1


@cache
def plan(
    offsets: tuple[Offset, ...], dilations: tuple[int, ...], grid: tuple[int, ...], numbers: int, of_gradients: bool
) -> Plan | None:
    """A step of each dilation in the passes that take the least time, mostly the fewest; None where none can be.

    `numbers`: how many coefficients each token has of its own. `of_gradients`: backward.
    """
    best: list[tuple[float, tuple[Pass, ...]] | None] = [(0.0, ())]
    for end in range(1, len(dilations) + 1):
        ways = []
        for start, before in enumerate(best):
            fitting = [] if before is None else _fitting(offsets, dilations[start:end], grid, numbers, of_gradients)
            if before is not None and fitting:
                cheapest = min(fitting, key=lambda part: part.cost)
                size = 2 + 2 * (start > 0) + 2 + 2 * (end < len(dilations))  # what lies between passes is float32
                bound = INSTRUCTIONS_A_BYTE * size * (1.5 if of_gradients else 1)
                ways.append((before[0] + max(cheapest.cost, bound), (*before[1], cheapest)))
        best.append(min(ways, key=lambda way: way[0], default=None))
    if best[-1] is None:
        return None
    passes = best[-1][1]
    each = "; ".join(
        f"{len(p.dilations)} of stride {p.stride} in {p.registers} registers, {p.cost:.0f} instructions an element"
        for p in passes
    )
    return Plan(passes, f"{len(dilations)} steps in {len(passes)} passes, each a read and a write: {each}")


def _fitting(
    offsets: tuple[Offset, ...], dilations: tuple[int, ...], grid: tuple[int, ...], numbers: int, of_gradients: bool
) -> list[Pass]:
    """These steps as one pass, in all ways that keep to the registers."""
    stride = math.gcd(*dilations)
    steps = tuple(d // stride for d in dilations)
    height, width = (math.ceil(n / stride) for n in (grid if len(grid) == 2 else (grid[0], 1)))
    # others leave the grid, wherever they start
    edges = tuple(pair for pair in pairs(offsets) if abs(pair.offset[0]) < height and abs(pair.offset[1]) < width)
    joining = [offset for pair in edges for offset in pair.directions()]
    up, down = _reach(y for y, _ in joining)
    found = []
    for columns in COLUMNS:
        left, right = (0, 0) if columns >= width else _reach(x for _, x in joining)
        reach = Reach(up, down, left, right)
        march = backward(steps, reach, columns) if of_gradients else forward(steps, reach, columns)
        lead = sum(steps) * (max(up, down) if of_gradients else up)
        for rows, channels in product(ROWS, CHANNELS):
            part = Pass(steps, stride, edges, march, lead, rows, channels, numbers, len(offsets), height)
            small = part.registers <= MOST_REGISTERS and (part.unrolled <= MOST_UNROLLED or rows == 1)
            if small and rows < 2 * height and columns < 2 * width:
                found.append(part)
    return found


def _reach(along: Iterable[int]) -> tuple[int, int]:
    """How far these reach, to lower and to higher coordinates."""
    listed = [0, *along]
    return -min(listed), max(listed)
