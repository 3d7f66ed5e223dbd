"""A pass of diffusion steps as a march: what a program holds, and what that costs it.

A program marches along an axis of the grid, U rows of tokens in a turn, and takes each of them through all steps of the
pass. The state before step s is known up to the row that lies s reaches behind the newest one, for a step looks ahead:
so it lags, and for looking back some of its rows are held. What is held of one state is a `Window`: the windows lie
behind one another, and nothing is computed twice but the rows at the ends of those that a program owns, as many as all
steps reach, and at the sides of its columns.

    loaded                   0 0 0 0 | 0 0 0 0       U = 4 new rows, and those carried from the turn before
    after one step         1 1 1 1 | 1 1 1 1         lag by one row
    after two steps          2 2 2 2                 are written

Backward the states' steps are taken again. A gradient after the last step is known where a state before the first one
is: gradients lag the more the earlier their step. Where both are known, step s pairs its gradient with its differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

TURN = 12  # instructions of a turn beside its rows'


@dataclass(frozen=True)
class Pair:
    """Two opposite edges, which share the difference x[i + offset] - x[i]; `ahead`, `back` number them, -1 is none."""

    offset: tuple[int, int]
    ahead: int
    back: int

    def directions(self) -> list[tuple[int, int]]:
        """The offsets of the edges that there are."""
        y, x = self.offset
        return [(y, x)] * (self.ahead >= 0) + [(-y, -x)] * (self.back >= 0)


@dataclass(frozen=True)
class Reach:
    """How far a step of dilation 1 looks along both axes."""

    up: int
    down: int
    left: int
    right: int

    def both_ways(self) -> Reach:
        """As gradients flow: against the edges, too."""
        y, x = max(self.up, self.down), max(self.left, self.right)
        return Reach(y, y, x, x)


@dataclass(frozen=True)
class Window:
    """Rows of one state: U new ones, the last of which lies `delay` rows behind the newest loaded, and those `carried`.

    They have `columns` columns, of which `left` lie left of the program's own.
    """

    delay: int
    carried: int
    left: int
    columns: int

    def rows(self, new: int) -> int:
        """Rows of channels that it takes, with `new` new ones for each column."""
        return (self.carried + new) * self.columns


@dataclass(frozen=True)
class March:
    """The windows of a pass, whatever the rows of a turn.

    `states` before each step; `gradients` after each step, that of the last one first; the `result`; all tokens that
    these touch; what tokens have of their `own`; their `sums` of what moved along an edge, to which step s adds
    `pairing[s]` rows behind the newest, and those of them that are settled. Forward there is neither gradient nor sum.
    """

    states: tuple[Window, ...]
    gradients: tuple[Window, ...]
    result: Window
    own: Window
    sums: tuple[Window, ...] = ()
    pairing: tuple[int, ...] = ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """All of them, in the order in which kernels number them."""
        held = (*self.states, *self.gradients, self.result)
        touched = max(window.delay + window.carried for window in held)
        return (*held, Window(0, touched, self.own.left, self.own.columns), self.own, *self.sums)

    @property
    def tail(self) -> int:
        """How many rows behind the newest the last result lies."""
        return max(window.delay for window in self.windows)

    @property
    def stepped(self) -> int:
        """Tokens stepped for each row; backward those of states but the last, of gradients, and paired ones."""
        forward = sum(window.columns for window in self.states[1:])
        if not self.gradients:
            return forward + self.result.columns
        back = sum(window.columns for window in self.gradients[1:]) + self.result.columns
        return forward + back + len(self.states) * self.result.columns


def forward(steps: tuple[int, ...], reach: Reach, columns: int) -> March:
    """The march of steps of these dilations, of a program that owns so many columns."""
    done = [0, *accumulate(steps)]  # reaches behind the newest row, before each step and after the last
    up, down, left, right = reach.up, reach.down, reach.left, reach.right
    halo = [done[-1] - d for d in done]
    states = [
        Window(down * done[s], (up + down) * d, left * halo[s], columns + (left + right) * halo[s])
        for s, d in enumerate(steps)
    ]
    own = Window(0, down * done[-1], states[0].left, states[0].columns)
    return March(tuple(states), (), Window(down * done[-1], 0, 0, columns), own)


def backward(steps: tuple[int, ...], reach: Reach, columns: int) -> March:
    """The march of these steps' gradients."""
    up, left = reach.both_ways().up, reach.both_ways().left
    done, last = [0, *accumulate(steps)], len(steps) - 1
    total = done[-1]
    lag = [up * done[s] for s in range(len(steps))]  # of the state before step s
    g_lag = [up * (total - done[s + 1]) for s in range(len(steps))]  # of the gradient after step s
    pairing = [max(lag[s] + up * d, g_lag[s]) for s, d in enumerate(steps)]  # differences look ahead
    states, gradients = [], []
    for s, d in enumerate(steps):
        back = max(pairing[s] + up * d, 0 if s == last else lag[s] + 2 * up * d)
        halo = left * (total - done[s])
        states.append(Window(lag[s], back - lag[s], halo, columns + 2 * halo))
        halo = left * done[s + 1]
        gradients.append(Window(g_lag[s], max(2 * up * d, pairing[s] - g_lag[s]), halo, columns + 2 * halo))
    asked = max(*pairing, *(up * (total - done[s] + d) for s, d in enumerate(steps)))
    own = Window(0, asked, states[0].left, states[0].columns)
    sums = Window(min(pairing), max(pairing) - min(pairing), 0, columns), Window(max(pairing), 0, 0, columns)
    return March(
        tuple(states), tuple(reversed(gradients)), Window(up * total, 0, 0, columns), own, sums, tuple(pairing)
    )  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One launch: consecutive steps of these `dilations`, in units of `stride`, on every `stride`-th token.

    A program takes `rows` rows of the grid in a turn, and a thread has `channels` of each row. `lead` rows before those
    that it owns it must load. `numbers`: how many coefficients each token has of its own, `edges`: how many offsets.
    `height`: rows of the grid, or enough of them.
    """

    dilations: tuple[int, ...]
    stride: int
    pairs: tuple[Pair, ...]
    march: March
    lead: int
    rows: int
    channels: int
    numbers: int
    edges: int
    height: int

    @property
    def columns(self) -> int:
        """Of the grid, that a program owns."""
        return self.march.result.columns

    @cached_property
    def registers(self) -> int:
        """Of a thread, for its windows, and for what is loaded for the next turn (two channels of 16 bits in one)."""
        march, new = self.march, self.rows * self.march.own.columns
        kept = sum(window.rows(0) for window in march.states) + 2 * new
        raw = new
        if march.gradients:
            kept = sum(window.rows(self.rows) for window in (*march.states, *march.gradients)) + new
            kept += self.edges * march.sums[0].rows(self.rows) if self.numbers else 0
            raw = 2 * new
        return self.channels * kept + raw + self.numbers * march.own.rows(self.rows)

    @property
    def warps_at_once(self) -> int:
        """Programs that a multiprocessor runs: they have 65 536 registers, and some 56 each that are not counted."""
        return 65_536 // (32 * (self.registers + 56))

    @property
    def unrolled(self) -> int:
        """How many times a step of a token along a pair of edges is written out in a kernel."""
        return self.rows * self.march.stepped * len(self.pairs)

    @cached_property
    def cost(self) -> float:
        """Instructions for each element that a program owns, by which passes are compared.

        A difference and two multiply-adds a step and pair, loads, stores and conversions, what a turn costs besides,
        and, where tokens have numbers of their own, gradients summed over a warp; all of it also for the rows beside
        its own, of which a program has four times as many if there are so many.
        """
        march, backward = self.march, bool(self.march.gradients)
        memory = (1 + backward) * march.own.columns / self.columns * (4 / self.channels - 0.5) + 1 / self.channels + 0.5
        stepped = march.stepped * len(self.pairs)
        moved = sum(window.rows(0) for window in (*march.states, *march.gradients))  # to the next turn's registers
        turn = stepped + moved + TURN / self.channels
        of_numbers = self.numbers * (10 / self.channels if backward else 1)
        beside = self.lead + march.tail
        own = min(self.height, max(1, 4 * beside))
        return (memory + of_numbers + (3 * stepped + turn / self.rows) / self.columns) * (own + beside) / own

    @cached_property
    def constants(self) -> dict[str, Sequence[int]]:
        """What kernels ask for by name (`ldn.kernels.constants.of`); windows in the order of `March.windows`."""
        march, windows, steps = self.march, self.march.windows, len(self.dilations)
        along = [(d * pair.offset[0], d * pair.offset[1]) for d in self.dilations for pair in self.pairs]
        everything = steps + len(march.gradients) + 1
        return {
            "rows": [self.rows], "columns owned": [self.columns], "lead": [self.lead], "tail": [march.tail],
            "head": [min(march.pairing, default=march.tail)],  # the least delay of what is owned
            # whether tokens that no end of the grid is near have all their neighbours in a row
            "beside": [not any(x for _, x in along) or march.own.columns > self.columns],
            "steps": [steps], "pairing": march.pairing, "edges": [self.edges], "pairs": [len(self.pairs)],
            "ahead": [pair.ahead for pair in self.pairs], "back": [pair.back for pair in self.pairs],
            "edge": [edge for pair in self.pairs for edge in (pair.ahead, pair.back)],
            "dy": [y for y, _ in along], "dx": [x for _, x in along],
            "all": [everything], "own": [everything + 1], "sums": [everything + 2], "settled": [everything + 3],
            "delay": [window.delay for window in windows], "carried": [window.carried for window in windows],
            "left": [window.left for window in windows], "columns": [window.columns for window in windows],
        }  # fmt: skip


@cache
def as_text(part: Pass, others: tuple[tuple[str, int], ...]) -> str:
    """The pass's constants and these others, as kernels take them: Triton hands on no tuple to a function, but text."""
    constants = {**part.constants, **{name: [number] for name, number in others}}
    return ";".join(f"{name}={','.join(str(int(n)) for n in numbers)}" for name, numbers in constants.items())
