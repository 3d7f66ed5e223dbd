"""Diffusion steps of a window's rows, their transposes, and what moves along each edge.

`inside` says of each token of the window "all" whether it is in the grid: MASKED, edges that leave it move nothing.
Multiply-adds are written as such, as a compiler may be told not to join a product and a sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldn.kernels.constants import at, at_new, has_column, of, paired
from ldn.kernels.rows import zeros


@triton.jit
def flow(
    changes, rows, ahead, back, of_ahead, of_back, inside, PASS: tl.constexpr, n: tl.constexpr, DY: tl.constexpr,
    DX: tl.constexpr, AHEAD: tl.constexpr, BACK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what flows along a pair of opposite edges to the new rows of window n + 1, from the rows of window n.

    `ahead` and `back` are the coefficients of the edges of these numbers, `of_ahead` and `of_back` the conductances.
    """
    added = ()
    for i in tl.static_range(-of(PASS, "delay", n + 1), of(PASS, "rows") - of(PASS, "delay", n + 1)):
        for j in tl.static_range(-of(PASS, "left", n + 1), of(PASS, "columns", n + 1) - of(PASS, "left", n + 1)):
            change = changes[at_new(PASS, n + 1, i, j)]
            if AHEAD >= 0 and has_column(PASS, n, j + DX):
                moved = rows[at(PASS, n, i + DY, j + DX)] - rows[at(PASS, n, i, j)]
                if MASKED:
                    both = inside[at(PASS, of(PASS, "all"), i, j)] & inside[at(PASS, of(PASS, "all"), i + DY, j + DX)]
                    moved = tl.where(both, moved, 0.0)
                if of(PASS, "conducting"):
                    moved = moved * of_ahead[at(PASS, of(PASS, "own"), i, j)]
                change = tl.fma(ahead, moved, change)
            if BACK >= 0 and has_column(PASS, n, j - DX):
                # the difference along the edge ahead of the token there, which the compiler finds again
                moved = rows[at(PASS, n, i, j)] - rows[at(PASS, n, i - DY, j - DX)]
                if MASKED:
                    both = inside[at(PASS, of(PASS, "all"), i - DY, j - DX)] & inside[at(PASS, of(PASS, "all"), i, j)]
                    moved = tl.where(both, moved, 0.0)
                if of(PASS, "conducting"):
                    moved = moved * of_back[at(PASS, of(PASS, "own"), i, j)]
                change = tl.fma(-back, moved, change)
            added = added + (change,)
    return added


@triton.jit
def newest(rows, PASS: tl.constexpr, n: tl.constexpr):
    """Of the rows of window n, those of the tokens that are new in window n + 1."""
    found = ()
    for i in tl.static_range(-of(PASS, "delay", n + 1), of(PASS, "rows") - of(PASS, "delay", n + 1)):
        for j in tl.static_range(-of(PASS, "left", n + 1), of(PASS, "columns", n + 1) - of(PASS, "left", n + 1)):
            found = found + (rows[at(PASS, n, i, j)],)
    return found


@triton.jit
def step(rows, coefficients, rates, conductances, inside, PASS: tl.constexpr, n: tl.constexpr, MASKED: tl.constexpr):
    """Step n of the rows of window n: the new ones of window n + 1."""
    P: tl.constexpr = of(PASS, "pairs")
    before = newest(rows, PASS, n)
    new = before
    if of(PASS, "of tokens"):
        new = zeros(rows[0], len(before))
    for p in tl.static_range(P):
        new = flow(
            new, rows, coefficients[of(PASS, "ahead", p)], coefficients[of(PASS, "back", p)],
            conductances[of(PASS, "ahead", p)], conductances[of(PASS, "back", p)], inside, PASS, n,
            of(PASS, "dy", n * P + p), of(PASS, "dx", n * P + p), of(PASS, "ahead", p), of(PASS, "back", p), MASKED,
        )  # fmt: skip
    if of(PASS, "of tokens"):
        after = ()
        for i in tl.static_range(-of(PASS, "delay", n + 1), of(PASS, "rows") - of(PASS, "delay", n + 1)):
            for j in tl.static_range(-of(PASS, "left", n + 1), of(PASS, "columns", n + 1) - of(PASS, "left", n + 1)):
                changed = rates[at(PASS, of(PASS, "own"), i, j)] * new[at_new(PASS, n + 1, i, j)]
                after = after + (rows[at(PASS, n, i, j)] + changed,)
        new = after
    return new


@triton.jit
def states(
    held, loaded, coefficients, rates, conductances, inside, PASS: tl.constexpr, STEPS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """All rows of the windows before each of so many steps, and of the one after them."""
    found = ()
    new = loaded
    for n in tl.static_range(STEPS):
        rows = held[n] + new
        found = found + (rows,)
        new = step(rows, coefficients, rates, conductances, inside, PASS, n, MASKED)
    return found + (held[STEPS] + new,)


@triton.jit
def shares(rows, coefficient, rates, of_edge, PASS: tl.constexpr, n: tl.constexpr):
    """Gradients, in window n, times all that the flow to their tokens along an edge is multiplied by."""
    found = ()
    for i in tl.static_range(-of(PASS, "delay", n) - of(PASS, "carried", n), of(PASS, "rows") - of(PASS, "delay", n)):
        for j in tl.static_range(-of(PASS, "left", n), of(PASS, "columns", n) - of(PASS, "left", n)):
            row = coefficient * rows[at(PASS, n, i, j)]
            if of(PASS, "of tokens"):
                row = row * rates[at(PASS, of(PASS, "own"), i, j)]
            if of(PASS, "conducting"):
                row = row * of_edge[at(PASS, of(PASS, "own"), i, j)]
            found = found + (row,)
    return found


@triton.jit
def flow_back(
    changes, of_ahead, of_back, inside, PASS: tl.constexpr, n: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    AHEAD: tl.constexpr, BACK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The transpose of `flow`: what gradients, of window n, gain and lose along a pair of edges of these `shares`.

    The gradient of the difference along an edge is gained where it ends and lost where it starts.
    """
    added = ()
    for i in tl.static_range(-of(PASS, "delay", n + 1), of(PASS, "rows") - of(PASS, "delay", n + 1)):
        for j in tl.static_range(-of(PASS, "left", n + 1), of(PASS, "columns", n + 1) - of(PASS, "left", n + 1)):
            change = changes[at_new(PASS, n + 1, i, j)]
            if has_column(PASS, n, j - DX):
                gained = tl.zeros_like(change)
                if AHEAD >= 0:
                    gained += of_ahead[at(PASS, n, i - DY, j - DX)]
                if BACK >= 0:
                    gained -= of_back[at(PASS, n, i, j)]
                if MASKED:
                    both = inside[at(PASS, of(PASS, "all"), i - DY, j - DX)] & inside[at(PASS, of(PASS, "all"), i, j)]
                    gained = tl.where(both, gained, 0.0)
                change += gained
            if has_column(PASS, n, j + DX):
                lost = tl.zeros_like(change)
                if AHEAD >= 0:
                    lost += of_ahead[at(PASS, n, i, j)]
                if BACK >= 0:
                    lost -= of_back[at(PASS, n, i + DY, j + DX)]
                if MASKED:
                    both = inside[at(PASS, of(PASS, "all"), i, j)] & inside[at(PASS, of(PASS, "all"), i + DY, j + DX)]
                    lost = tl.where(both, lost, 0.0)
                change -= lost
            added = added + (change,)
    return added


@triton.jit
def flow_back_amid(
    changes, rows, ahead, back, PASS: tl.constexpr, n: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    AHEAD: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """`flow_back` where all tokens are there and have the same coefficients: an instruction less."""
    added = ()
    for i in tl.static_range(-of(PASS, "delay", n + 1), of(PASS, "rows") - of(PASS, "delay", n + 1)):
        for j in tl.static_range(-of(PASS, "left", n + 1), of(PASS, "columns", n + 1) - of(PASS, "left", n + 1)):
            change = changes[at_new(PASS, n + 1, i, j)]
            if AHEAD >= 0:
                change = tl.fma(-ahead, rows[at(PASS, n, i, j)] - rows[at(PASS, n, i - DY, j - DX)], change)
            if BACK >= 0:
                change = tl.fma(back, rows[at(PASS, n, i + DY, j + DX)] - rows[at(PASS, n, i, j)], change)
            added = added + (change,)
    return added


@triton.jit
def step_back(
    rows, coefficients, rates, conductances, inside, PASS: tl.constexpr, n: tl.constexpr, s: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The transpose of step s, of the rows of window n: the new ones of window n + 1."""
    P: tl.constexpr = of(PASS, "pairs")
    new = newest(rows, PASS, n)
    for p in tl.static_range(P):
        ahead, back = coefficients[of(PASS, "ahead", p)], coefficients[of(PASS, "back", p)]
        if MASKED or of(PASS, "of tokens") or of(PASS, "conducting") or not of(PASS, "beside"):
            of_ahead = shares(rows, ahead, rates, conductances[of(PASS, "ahead", p)], PASS, n)
            of_back = shares(rows, back, rates, conductances[of(PASS, "back", p)], PASS, n)
            new = flow_back(
                new, of_ahead, of_back, inside, PASS, n, of(PASS, "dy", s * P + p), of(PASS, "dx", s * P + p),
                of(PASS, "ahead", p), of(PASS, "back", p), MASKED,
            )  # fmt: skip
        else:
            new = flow_back_amid(
                new, rows, ahead, back, PASS, n, of(PASS, "dy", s * P + p), of(PASS, "dx", s * P + p),
                of(PASS, "ahead", p), of(PASS, "back", p),
            )  # fmt: skip
    return new


@triton.jit
def moved_along(
    sums, rows, gradients, inside, y, first, last, PASS: tl.constexpr, s: tl.constexpr, n: tl.constexpr,
    DY: tl.constexpr, DX: tl.constexpr, BACK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add gradient times difference along an edge in step s: to each token's own sum, or to one where none has numbers.

    Rows are those of window s, gradients of window n. The edge leads to (DY, DX), or BACK from there, the second of a
    pair, whose differences are those of the first one, turned round. MASKED: of tokens from row `first` to before
    `last` alone.
    """
    N: tl.constexpr = of(PASS, "sums")
    ALL: tl.constexpr = of(PASS, "all")
    APART: tl.constexpr = of(PASS, "of tokens") or of(PASS, "conducting")
    total = sums
    found = ()
    for i in tl.static_range(-of(PASS, "delay", N) - of(PASS, "carried", N), of(PASS, "rows") - of(PASS, "delay", N)):
        for j in tl.static_range(of(PASS, "columns", N)):
            if APART:
                total = sums[at(PASS, N, i, j)]
            if paired(PASS, s, i) and has_column(PASS, s, j + DX * (1 - 2 * BACK)):
                along = rows[at(PASS, s, i + DY * (1 - BACK), j + DX * (1 - BACK))]
                along -= rows[at(PASS, s, i - DY * BACK, j - DX * BACK)]
                if MASKED:
                    both = inside[at(PASS, ALL, i + DY * (1 - BACK), j + DX * (1 - BACK))]
                    both &= inside[at(PASS, ALL, i - DY * BACK, j - DX * BACK)]
                    both &= (y + i * of(PASS, "stride y") >= first) & (y + i * of(PASS, "stride y") < last)
                    along = tl.where(both, along, 0.0)
                if BACK:
                    total = tl.fma(-gradients[at(PASS, n, i, j)], along, total)
                else:
                    total = tl.fma(gradients[at(PASS, n, i, j)], along, total)
            if APART:
                found = found + (total,)
    if not APART:
        found = total
    return found
