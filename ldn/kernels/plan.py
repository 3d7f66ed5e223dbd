"""In how many passes over memory are S diffusion steps done, and how is each cut into tiles?

A program of a pass keeps a tile of tokens in registers, with a halo as wide as its steps reach, takes all steps there
and writes the tile. Where the dilations of a pass have a common factor g, tokens of different residues modulo g never
meet: the pass runs along every g-th token, and its halo shrinks by g. So multiscale steps 1, 2, 4, ..., 2048 need a few
passes, not twelve. Nothing here is tuned at run time: the plan is a function of shapes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

from ldn.reference import Offset

# Of the 255 registers of a thread, what a program keeps of its states: compiled for sm_90 by Triton 3.6 and 3.9,
# no state is spilled to memory (one step's backward has 8 bytes of stack), and 8 steps' gradients take one pass.
MOST_FORWARD, MOST_BACKWARD = 120, 168
CHANNELS_FORWARD, CHANNELS_BACKWARD = 2, 1  # of a row that a thread has, in a register each
LINES = ((8, 1), (16, 1), (32, 1), (64, 1))  # tiles of a sequence
SQUARES = ((2, 2), (4, 2), (4, 4), (8, 4), (8, 8))  # and of a 2-D grid
LARGEST = max(LINES[-1][0], *SQUARES[-1])
NEAR = 1.1  # a larger tile must save more than this factor: it takes longer to compile and leaves fewer programs


@dataclass(frozen=True)
class Pair:
    """Two opposite edges, which share the difference x[i + offset] - x[i]; `ahead`, `back` number them, -1 is none."""

    offset: tuple[int, int]
    ahead: int
    back: int


@dataclass(frozen=True)
class Pass:
    """One launch: consecutive steps of these `dilations`, in units of `stride`, on every `stride`-th token.

    `reach` is how far the stencil reaches up, down, left and right, 0 where a tile is as large as the grid.
    `registers` are kept at once; `excess` is all rows that are read and stepped over those that the tile owns.
    """

    dilations: tuple[int, ...]
    stride: int
    tile: tuple[int, int]
    reach: tuple[int, int, int, int]
    registers: int
    excess: float

    @cached_property
    def reaches(self) -> tuple[int, ...]:
        """How many reaches lie around the tile before each step, and after the last."""
        return tuple(sum(self.dilations[s:]) for s in range(len(self.dilations) + 1))


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


@cache
def plan(
    offsets: tuple[Offset, ...], dilations: tuple[int, ...], grid: tuple[int, ...], numbers: int, backward: bool
) -> Plan | None:
    """The fewest passes for a step of each dilation, of those the ones of the least excess; None where none can be.

    `numbers`: how many coefficients each token has of its own. `backward` plans gradients, for which a program keeps
    the states before all steps of its pass.
    """
    best: list[tuple[int, float, tuple[Pass, ...]] | None] = [(0, 0.0, ())]
    for end in range(1, len(dilations) + 1):
        ways = []
        for start, before in enumerate(best):
            part = None if before is None else _pass(offsets, dilations[start:end], grid, numbers, backward)
            if before is not None and part is not None:
                ways.append((before[0] + 1, before[1] + part.excess, (*before[2], part)))
        best.append(min(ways, key=lambda way: way[:2], default=None))
    if best[-1] is None:
        return None
    count, _, passes = best[-1]
    most = MOST_BACKWARD if backward else MOST_FORWARD
    kept = ", ".join(f"{len(p.dilations)} of stride {p.stride} in {p.registers}" for p in passes)
    return Plan(passes, f"{len(dilations)} steps in {count} passes, {most} registers at most: {kept}")


def _pass(
    offsets: tuple[Offset, ...], dilations: tuple[int, ...], grid: tuple[int, ...], numbers: int, backward: bool
) -> Pass | None:
    """These steps as one pass, in the smallest tile whose excess is near the least; None if all need too much."""
    stride = math.gcd(*dilations)
    steps = tuple(d // stride for d in dilations)
    extent = tuple(math.ceil(n / stride) for n in grid)
    found: list[Pass] = []
    for tile in LINES if len(grid) == 1 else SQUARES:
        up, down = _reach(offsets, 0, tile[0], extent[0], backward)
        left, right = _reach(offsets, 1, tile[1], extent[1], backward) if len(grid) == 2 else (0, 0)
        reaches = [sum(steps[s:]) for s in range(len(steps) + 1)]
        sizes = [(tile[0] + k * (up + down)) * (tile[1] + k * (left + right)) for k in reaches]
        if backward:  # the states, the gradient, and what moves along each edge where tokens differ
            registers = CHANNELS_BACKWARD * (sum(sizes[:-1]) + sizes[0] + (len(offsets) * sizes[-1] if numbers else 0))
        else:
            registers = CHANNELS_FORWARD * sizes[0]
        registers += numbers * sizes[0]
        if registers <= (MOST_BACKWARD if backward else MOST_FORWARD):
            excess = sum(sizes) / (tile[0] * tile[1] * len(sizes))
            found.append(Pass(steps, stride, tile, (up, down, left, right), registers, excess))
    least = min((p.excess for p in found), default=0.0)
    return next((p for p in found if p.excess <= NEAR * least), None)


def _reach(offsets: tuple[Offset, ...], axis: int, tile: int, extent: int, both_ways: bool) -> tuple[int, int]:
    """How far the offsets reach along an axis, to lower and to higher coordinates; gradients flow both ways."""
    if tile >= extent:
        return 0, 0
    along = [0, *(offset[axis] for offset in offsets)]
    back, ahead = -min(along), max(along)
    return (max(back, ahead),) * 2 if both_ways else (back, ahead)
