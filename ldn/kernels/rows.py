"""Rows: the tokens that a diffusion program keeps in registers; how they are loaded, kept and written.

A tuple of rows has a row of channels for each token of a window (`ldn.kernels.march`), in reading order. Every loop is
unrolled, so a tuple is so many registers. The first of the turn's new tokens, in the program's first column, is
(y, column) in a grid of H rows; neighbours lie "stride y" and "stride x" apart in it. Strides are constants: what is
added to a pointer is then part of the instruction. n: the number of a window. MASKED: some tokens may lie outside the
grid.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldn.kernels.constants import at, divides, of


@triton.jit
def within(y, column, H, PASS: tl.constexpr, n: tl.constexpr, FROM: tl.constexpr):
    """Of each token of window n from row FROM on, whether it is in the grid; a sequence is a grid of width 1."""
    W: tl.constexpr = of(PASS, "W")
    inside = ()
    for i in tl.static_range(FROM, of(PASS, "rows") - of(PASS, "delay", n)):
        at_y = y + i * of(PASS, "stride y")
        for j in tl.static_range(-of(PASS, "left", n), of(PASS, "columns", n) - of(PASS, "left", n)):
            at_x = column + j * of(PASS, "stride x")
            if W > 1:
                inside = inside + ((at_y >= 0) & (at_y < H) & (at_x >= 0) & (at_x < W),)
            else:
                inside = inside + ((at_y >= 0) & (at_y < H),)
    return inside


@triton.jit
def zeros(like, COUNT: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(like),)
    return rows


@triton.jit
def load(
    base, channels, y, column, end, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, STRIDE_D: tl.constexpr,
    PASS: tl.constexpr, n: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The turn's new rows of window n, as they are stored; 0 outside the grid and from row `end` on.

    `base` points to row 0 of the column.
    """
    D: tl.constexpr = of(PASS, "D")
    whole: tl.constexpr = divides(channels.shape[0], D)
    inside = within(y, column, end, PASS, n, 0)
    base += y.to(tl.int64) * STRIDE_Y + channels * STRIDE_D
    rows = ()
    for i in tl.static_range(of(PASS, "rows")):
        for j in tl.static_range(of(PASS, "columns", n)):
            right = (j - of(PASS, "left", n)) * of(PASS, "stride x") * STRIDE_X
            place = base + (i * of(PASS, "stride y") * STRIDE_Y + right)
            if MASKED:
                here = inside[i * of(PASS, "columns", n) + j]
                row = tl.load(place, channels < tl.where(here, D, 0), other=0.0)
            elif not whole:
                row = tl.load(place, channels < D, other=0.0)
            else:
                row = tl.load(place)
            rows = rows + (row,)
    return rows


@triton.jit
def load_numbers(
    base, y, column, end, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, PASS: tl.constexpr, n: tl.constexpr
):  # fmt: skip
    """One number of each token instead of a row."""
    inside = within(y, column, end, PASS, n, 0)
    base += y.to(tl.int64) * STRIDE_Y
    found = ()
    for i in tl.static_range(of(PASS, "rows")):
        for j in tl.static_range(of(PASS, "columns", n)):
            right = (j - of(PASS, "left", n)) * of(PASS, "stride x") * STRIDE_X
            place = base + (i * of(PASS, "stride y") * STRIDE_Y + right)
            found = found + (tl.load(place, inside[i * of(PASS, "columns", n) + j], other=0.0),)
    return found


@triton.jit
def store(
    base, rows, channels, y, column, first, last, PASS: tl.constexpr, n: tl.constexpr, MASKED: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Write FACTOR times window n, of which no row is carried, to (H, W, D).

    The rows from `first` to before `last`, if MASKED.
    """
    D: tl.constexpr = of(PASS, "D")
    W: tl.constexpr = of(PASS, "W")
    whole: tl.constexpr = divides(channels.shape[0], D)
    base += (y.to(tl.int64) * W + column) * D + channels
    for i in tl.static_range(-of(PASS, "delay", n), of(PASS, "rows") - of(PASS, "delay", n)):
        for j in tl.static_range(of(PASS, "columns", n)):
            place = base + (i * of(PASS, "stride y") * W + j * of(PASS, "stride x")) * D
            row = rows[at(PASS, n, i, j)]
            if FACTOR != 1:
                row = FACTOR * row
            row = row.to(base.dtype.element_ty)
            if MASKED:
                own = (y + i * of(PASS, "stride y") >= first) & (y + i * of(PASS, "stride y") < last)
                tl.store(place, row, channels < tl.where(own & (column + j * of(PASS, "stride x") < W), D, 0))
            elif not whole:
                tl.store(place, row, channels < D)
            else:
                tl.store(place, row)


@triton.jit
def store_sums(
    base, rows, y, column, first, last, STRIDE: tl.constexpr, PASS: tl.constexpr, n: tl.constexpr
):  # fmt: skip
    """Write each row's sum over its channels, a number of its token, to (H, W, STRIDE); rows as `store` has them."""
    W: tl.constexpr = of(PASS, "W")
    base += (y.to(tl.int64) * W + column) * STRIDE
    for i in tl.static_range(-of(PASS, "delay", n), of(PASS, "rows") - of(PASS, "delay", n)):
        for j in tl.static_range(of(PASS, "columns", n)):
            place = base + (i * of(PASS, "stride y") * W + j * of(PASS, "stride x")) * STRIDE
            own = (y + i * of(PASS, "stride y") >= first) & (y + i * of(PASS, "stride y") < last)
            tl.store(place, tl.sum(rows[at(PASS, n, i, j)], axis=0), own & (column + j * of(PASS, "stride x") < W))


@triton.jit
def exactly(rows):
    """The rows in float32."""
    found = ()
    for i in tl.static_range(len(rows)):
        found = found + (rows[i].to(tl.float32),)
    return found


@triton.jit
def halved(rows):
    """Half the rows in float32: the difference of two of them is finite."""
    found = ()
    for i in tl.static_range(len(rows)):
        found = found + (0.5 * rows[i].to(tl.float32),)
    return found


@triton.jit
def carried(rows, PASS: tl.constexpr, n: tl.constexpr):
    """Of all rows of window n, those that the next turn needs again."""
    COUNT: tl.constexpr = of(PASS, "carried", n) * of(PASS, "columns", n)
    found = ()
    for i in tl.static_range(len(rows) - COUNT, len(rows)):
        found = found + (rows[i],)
    return found


@triton.jit
def all_carried(windows, PASS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    """`carried` of the windows FROM to before TO."""
    found = ()
    for n in tl.static_range(FROM, TO):
        found = found + (carried(windows[n - FROM], PASS, n),)
    return found
