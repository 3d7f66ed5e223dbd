"""Rows: the tokens that a diffusion program keeps in registers, and what is done to all of them at once.

A program has a tile of TY x TX tokens with K times the stencil's reach (UP, DOWN, LEFT, RIGHT) around it; y0, x0 is the
tile's first token in a grid of H x W, and neighbours in the tile lie SY and SX apart. A tuple of rows has a row of
channels for each of these tokens, in reading order. Every loop is unrolled, so a tuple is so many registers. Pointers
are to the tile's first token, and strides are constants: what is added to a pointer is then part of the instruction.
`inside` says of each token whether it is in the grid; it is F reaches wide, as wide as any rows of the program.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def at(i, j, K, TX, UP, LEFT, RIGHT):
    """Where row (i, j) lies among the rows; the tile's own first token is (0, 0)."""
    return (i + K * UP) * (TX + K * (LEFT + RIGHT)) + j + K * LEFT


@triton.constexpr_function
def known(i, j, K, TY, TX, UP, DOWN, LEFT, RIGHT):
    """Whether row (i, j) is held. A neighbour that is not lies outside the grid: `plan` sees to that."""
    return -K * UP <= i < TY + K * DOWN and -K * LEFT <= j < TX + K * RIGHT


@triton.constexpr_function
def divides(block, D):
    """Whether every block of channels is full."""
    return D % block == 0


@triton.jit
def origin(tile, tiles_y, tiles_x, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr):
    """First token of a tile; tiles count along x, then y, then over the SY * SX sets of tokens that never meet."""
    residue = tile // (tiles_x * tiles_y)
    y = residue // SX + tile // tiles_x % tiles_y * (TY * SY)
    return y, residue % SX + tile % tiles_x * (TX * SX)


@triton.jit
def within(
    y0, x0, H, W, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr,
    DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """`inside`."""
    inside = ()
    for i in tl.static_range(-F * UP, TY + F * DOWN):
        in_column = (y0 + i * SY >= 0) & (y0 + i * SY < H)
        for j in tl.static_range(-F * LEFT, TX + F * RIGHT):
            if TX == 1:
                inside = inside + (in_column,)
            else:
                inside = inside + (in_column & (x0 + j * SX >= 0) & (x0 + j * SX < W),)
    return inside


@triton.jit
def row_load(place, here, channels, D: tl.constexpr, MASKED: tl.constexpr):
    """A row in float32; MASKED, it is 0 unless `here`."""
    whole: tl.constexpr = divides(channels.shape[0], D)
    if MASKED:
        row = tl.load(place, channels < tl.where(here, D, 0), other=0.0)
    elif not whole:
        row = tl.load(place, channels < D, other=0.0)
    else:
        row = tl.load(place)
    return row.to(tl.float32)


@triton.jit
def load(
    base, inside, channels, D: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, SY: tl.constexpr,
    SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The rows in float32, F reaches wide, 0 outside the grid."""
    rows = ()
    for i in tl.static_range(-F * UP, TY + F * DOWN):
        for j in tl.static_range(-F * LEFT, TX + F * RIGHT):
            place = base + (i * SY * STRIDE_Y + j * SX * STRIDE_X)
            rows = rows + (row_load(place, inside[at(i, j, F, TX, UP, LEFT, RIGHT)], channels, D, MASKED),)
    return rows


@triton.jit
def store(
    base, rows, inside, channels, D: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, SY: tl.constexpr,
    SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the rows of a tile with nothing around it."""
    whole: tl.constexpr = divides(channels.shape[0], D)
    for i in tl.static_range(TY):
        for j in tl.static_range(TX):
            place = base + (i * SY * STRIDE_Y + j * SX * STRIDE_X)
            row = rows[i * TX + j].to(base.dtype.element_ty)
            here = inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
            if MASKED:
                tl.store(place, row, channels < tl.where(here, D, 0))
            elif not whole:
                tl.store(place, row, channels < D)
            else:
                tl.store(place, row)


@triton.jit
def numbers(
    base, inside, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """One number of each token instead of a row, 0 outside the grid."""
    found = ()
    for i in tl.static_range(-F * UP, TY + F * DOWN):
        for j in tl.static_range(-F * LEFT, TX + F * RIGHT):
            place = base + (i * SY * STRIDE_Y + j * SX * STRIDE_X)
            here = inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
            found = found + (tl.load(place, here, other=0.0).to(tl.float32),)
    return found


@triton.jit
def store_sums(
    base, rows, inside, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """Write each row's sum over its channels, a number of its token."""
    for i in tl.static_range(TY):
        for j in tl.static_range(TX):
            place = base + (i * SY * STRIDE_Y + j * SX * STRIDE_X)
            here = inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
            tl.store(place, tl.sum(rows[i * TX + j], axis=0), here)


@triton.jit
def zeros(like, COUNT: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(like),)
    return rows


@triton.constexpr_function
def count(K, TY, TX, UP, DOWN, LEFT, RIGHT):
    """How many rows there are."""
    return (TY + K * (UP + DOWN)) * (TX + K * (LEFT + RIGHT))


@triton.jit
def products(
    rows, factors, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Rows, L reaches wide, times factors, K reaches wide."""
    scaled = ()
    for i in tl.static_range(-L * UP, TY + L * DOWN):
        for j in tl.static_range(-L * LEFT, TX + L * RIGHT):
            scaled = scaled + (rows[at(i, j, L, TX, UP, LEFT, RIGHT)] * factors[at(i, j, K, TX, UP, LEFT, RIGHT)],)
    return scaled


@triton.jit
def middle(
    rows, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Of rows, K reaches wide, those that lie L reaches wide."""
    found = ()
    for i in tl.static_range(-L * UP, TY + L * DOWN):
        for j in tl.static_range(-L * LEFT, TX + L * RIGHT):
            found = found + (rows[at(i, j, K, TX, UP, LEFT, RIGHT)],)
    return found


@triton.jit
def sums(
    rows, changes, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Rows, K reaches wide, plus changes, L reaches wide, as wide as these."""
    new = ()
    for i in tl.static_range(-L * UP, TY + L * DOWN):
        for j in tl.static_range(-L * LEFT, TX + L * RIGHT):
            new = new + (rows[at(i, j, K, TX, UP, LEFT, RIGHT)] + changes[at(i, j, L, TX, UP, LEFT, RIGHT)],)
    return new


@triton.jit
def flow(
    changes, rows, inside, ahead, back, of_ahead, of_back, AHEAD: tl.constexpr, BACK: tl.constexpr, DY: tl.constexpr,
    DX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, F: tl.constexpr, K: tl.constexpr, L: tl.constexpr, CONDUCTING: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add what flows along a pair of opposite edges: to `changes`, L reaches wide, from `rows`, K reaches wide.

    `ahead` and `back` are the edges' coefficients; `of_ahead`, `of_back` their conductances, F reaches wide.
    """
    added = ()
    for i in tl.static_range(-L * UP, TY + L * DOWN):
        for j in tl.static_range(-L * LEFT, TX + L * RIGHT):
            change, here = changes[at(i, j, L, TX, UP, LEFT, RIGHT)], rows[at(i, j, K, TX, UP, LEFT, RIGHT)]
            if AHEAD >= 0 and known(i + DY, j + DX, K, TY, TX, UP, DOWN, LEFT, RIGHT):
                difference = rows[at(i + DY, j + DX, K, TX, UP, LEFT, RIGHT)] - here
                if MASKED:
                    both = inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
                    both &= inside[at(i + DY, j + DX, F, TX, UP, LEFT, RIGHT)]
                    difference = tl.where(both, difference, 0.0)
                if CONDUCTING:
                    difference = difference * of_ahead[at(i, j, F, TX, UP, LEFT, RIGHT)]
                change += ahead * difference
            if BACK >= 0 and known(i - DY, j - DX, K, TY, TX, UP, DOWN, LEFT, RIGHT):
                # the difference along the edge ahead of the token there, which the compiler finds again
                difference = here - rows[at(i - DY, j - DX, K, TX, UP, LEFT, RIGHT)]
                if MASKED:
                    both = inside[at(i - DY, j - DX, F, TX, UP, LEFT, RIGHT)]
                    both &= inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
                    difference = tl.where(both, difference, 0.0)
                if CONDUCTING:
                    difference = difference * of_back[at(i, j, F, TX, UP, LEFT, RIGHT)]
                change -= back * difference
            added = added + (change,)
    return added


@triton.jit
def flow_back(
    changes, rows, inside, weight, conductance, DY: tl.constexpr, DX: tl.constexpr, TY: tl.constexpr,
    TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
    K: tl.constexpr, L: tl.constexpr, CONDUCTING: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The transpose of flow along one edge: a token's gradient gains from those that look at it, and loses its own."""
    added = ()
    for i in tl.static_range(-L * UP, TY + L * DOWN):
        for j in tl.static_range(-L * LEFT, TX + L * RIGHT):
            change = changes[at(i, j, L, TX, UP, LEFT, RIGHT)]
            if known(i - DY, j - DX, K, TY, TX, UP, DOWN, LEFT, RIGHT):
                gained = weight * rows[at(i - DY, j - DX, K, TX, UP, LEFT, RIGHT)]
                if CONDUCTING:
                    gained = gained * conductance[at(i - DY, j - DX, F, TX, UP, LEFT, RIGHT)]
                if MASKED:
                    both = inside[at(i - DY, j - DX, F, TX, UP, LEFT, RIGHT)]
                    both &= inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
                    gained = tl.where(both, gained, 0.0)
                change += gained
            if known(i + DY, j + DX, F, TY, TX, UP, DOWN, LEFT, RIGHT):
                lost = weight * rows[at(i, j, K, TX, UP, LEFT, RIGHT)]
                if CONDUCTING:
                    lost = lost * conductance[at(i, j, F, TX, UP, LEFT, RIGHT)]
                if MASKED:
                    both = inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
                    both &= inside[at(i + DY, j + DX, F, TX, UP, LEFT, RIGHT)]
                    lost = tl.where(both, lost, 0.0)
                change -= lost
            added = added + (change,)
    return added


@triton.jit
def moved_along(
    moved, START: tl.constexpr, rows, grads, inside, BACK: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    F: tl.constexpr, K: tl.constexpr, L: tl.constexpr, APART: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add gradient times difference along an edge: over all tokens, or for each of them APART.

    Rows are K reaches wide, gradients L. BACK: the edge is the second of a pair, whose differences are those of the
    first one, turned round.
    """
    total = moved[START]
    apart = ()
    for i in tl.static_range(TY):
        for j in tl.static_range(TX):
            if APART:
                total = moved[START + i * TX + j]
            if known(i + DY, j + DX, K, TY, TX, UP, DOWN, LEFT, RIGHT):
                here, there = rows[at(i, j, K, TX, UP, LEFT, RIGHT)], rows[at(i + DY, j + DX, K, TX, UP, LEFT, RIGHT)]
                difference = here - there if BACK else there - here
                if MASKED:
                    both = inside[at(i + DY, j + DX, F, TX, UP, LEFT, RIGHT)]
                    both &= inside[at(i, j, F, TX, UP, LEFT, RIGHT)]
                    difference = tl.where(both, difference, 0.0)
                if BACK:
                    total -= grads[at(i, j, L, TX, UP, LEFT, RIGHT)] * difference
                else:
                    total += grads[at(i, j, L, TX, UP, LEFT, RIGHT)] * difference
            if APART:
                apart = apart + (total,)
    if not APART:
        apart = (total,)
    return apart
