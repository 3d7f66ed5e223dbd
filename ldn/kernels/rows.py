"""Rows: the tokens that a diffusion program keeps in registers, and what is done to all of a window at once.

A tuple of rows has a row of channels for each token of a window (`ldn.kernels.march`), in reading order. Every loop is
unrolled, so a tuple is so many registers. Tokens are named (i, j) by their distance to the first of the turn's new ones
in the program's first column, which is (y, x) in a grid of H rows; neighbours lie "stride y", "stride x" apart in it.
`inside` says of each token of the window "all" whether it is in the grid.

PASS: all constants of the launch as text, as `of` reads it. n: the number of a window, or of a step, which steps the
rows of the window of the same number. MASKED: some tokens may lie outside the grid; edges that leave it move nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def of(PASS, name, n=0):
    """Number n of the list of that name (`ldn.kernels.march.Pass.constants`)."""
    for field in PASS.split(";"):
        key, numbers = field.split("=")
        if key == name:
            return int(numbers.split(",")[n])
    raise KeyError(name)


@triton.constexpr_function
def at(PASS, n, i, j):
    """Where token (i, j) is among the rows of window n."""
    lists = dict(field.split("=") for field in PASS.split(";"))
    delay, carried, left, columns = (int(lists[key].split(",")[n]) for key in ("delay", "carried", "left", "columns"))
    assert 0 <= i + delay + carried < carried + int(lists["rows"]) and 0 <= j + left < columns, (n, i, j, PASS)
    return (i + delay + carried) * columns + j + left


@triton.constexpr_function
def at_new(PASS, n, i, j):
    """Where token (i, j) is among the new rows of window n."""
    lists = dict(field.split("=") for field in PASS.split(";"))
    delay, left, columns = (int(lists[key].split(",")[n]) for key in ("delay", "left", "columns"))
    return (i + delay) * columns + j + left


@triton.constexpr_function
def has_column(PASS, n, j):
    """Whether window n has column j. One that it has not lies outside the grid: `plan` sees to that."""
    lists = dict(field.split("=") for field in PASS.split(";"))
    left, columns = (int(lists[key].split(",")[n]) for key in ("left", "columns"))
    return -left <= j < columns - left


@triton.constexpr_function
def paired(PASS, s, i):
    """Whether step s adds to the sums of the tokens of row i."""
    lists = dict(field.split("=") for field in PASS.split(";"))
    return 0 <= i + int(lists["pairing"].split(",")[s]) < int(lists["rows"])


@triton.constexpr_function
def divides(block, D):
    """Whether every block of channels is full."""
    return D % block == 0


@triton.jit
def within(y, x, H, PASS: tl.constexpr, n: tl.constexpr, FROM: tl.constexpr):
    """Of each token of window n from row FROM on, whether it is in the grid; a sequence is a grid of width 1."""
    W: tl.constexpr = of(PASS, "W")
    inside = ()
    for i in tl.static_range(FROM, of(PASS, "rows") - of(PASS, "delay", n)):
        row = y + i * of(PASS, "stride y")
        for j in tl.static_range(-of(PASS, "left", n), of(PASS, "columns", n) - of(PASS, "left", n)):
            column = x + j * of(PASS, "stride x")
            if W > 1:
                inside = inside + ((row >= 0) & (row < H) & (column >= 0) & (column < W),)
            else:
                inside = inside + ((row >= 0) & (row < H),)
    return inside


@triton.jit
def zeros(like, COUNT: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(like),)
    return rows


@triton.jit
def load(
    base, channels, y, x, H, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, STRIDE_D: tl.constexpr,
    PASS: tl.constexpr, n: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The turn's new rows of window n, as they are stored, 0 outside the grid; `base` points to (0, x)."""
    D: tl.constexpr = of(PASS, "D")
    whole: tl.constexpr = divides(channels.shape[0], D)
    inside = within(y, x, H, PASS, n, 0)
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
    base, y, x, H, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, PASS: tl.constexpr, n: tl.constexpr
):  # fmt: skip
    """One number of each token instead of a row."""
    inside = within(y, x, H, PASS, n, 0)
    base += y.to(tl.int64) * STRIDE_Y
    found = ()
    for i in tl.static_range(of(PASS, "rows")):
        for j in tl.static_range(of(PASS, "columns", n)):
            right = (j - of(PASS, "left", n)) * of(PASS, "stride x") * STRIDE_X
            place = base + (i * of(PASS, "stride y") * STRIDE_Y + right)
            found = found + (tl.load(place, inside[i * of(PASS, "columns", n) + j], other=0.0),)
    return found


@triton.jit
def store(base, rows, channels, y, x, first, last, PASS: tl.constexpr, n: tl.constexpr, MASKED: tl.constexpr):
    """Write window n, of which no row is carried, to (H, W, D): the rows from `first` to before `last`, if MASKED."""
    D: tl.constexpr = of(PASS, "D")
    W: tl.constexpr = of(PASS, "W")
    whole: tl.constexpr = divides(channels.shape[0], D)
    base += (y.to(tl.int64) * W + x) * D + channels
    for i in tl.static_range(-of(PASS, "delay", n), of(PASS, "rows") - of(PASS, "delay", n)):
        for j in tl.static_range(of(PASS, "columns", n)):
            place = base + (i * of(PASS, "stride y") * W + j * of(PASS, "stride x")) * D
            row = rows[at(PASS, n, i, j)].to(base.dtype.element_ty)
            if MASKED:
                own = (y + i * of(PASS, "stride y") >= first) & (y + i * of(PASS, "stride y") < last)
                tl.store(place, row, channels < tl.where(own & (x + j * of(PASS, "stride x") < W), D, 0))
            elif not whole:
                tl.store(place, row, channels < D)
            else:
                tl.store(place, row)


@triton.jit
def store_sums(
    base, rows, y, x, first, last, STRIDE: tl.constexpr, PASS: tl.constexpr, n: tl.constexpr
):  # fmt: skip
    """Write each row's sum over its channels, a number of its token, to (H, W, STRIDE); rows as `store` has them."""
    W: tl.constexpr = of(PASS, "W")
    base += (y.to(tl.int64) * W + x) * STRIDE
    for i in tl.static_range(-of(PASS, "delay", n), of(PASS, "rows") - of(PASS, "delay", n)):
        for j in tl.static_range(of(PASS, "columns", n)):
            place = base + (i * of(PASS, "stride y") * W + j * of(PASS, "stride x")) * STRIDE
            own = (y + i * of(PASS, "stride y") >= first) & (y + i * of(PASS, "stride y") < last)
            tl.store(place, tl.sum(rows[at(PASS, n, i, j)], axis=0), own & (x + j * of(PASS, "stride x") < W))


@triton.jit
def exactly(rows):
    """The rows in float32."""
    found = ()
    for i in tl.static_range(len(rows)):
        found = found + (rows[i].to(tl.float32),)
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
                change += ahead * moved
            if BACK >= 0 and has_column(PASS, n, j - DX):
                # the difference along the edge ahead of the token there, which the compiler finds again
                moved = rows[at(PASS, n, i, j)] - rows[at(PASS, n, i - DY, j - DX)]
                if MASKED:
                    both = inside[at(PASS, of(PASS, "all"), i - DY, j - DX)] & inside[at(PASS, of(PASS, "all"), i, j)]
                    moved = tl.where(both, moved, 0.0)
                if of(PASS, "conducting"):
                    moved = moved * of_back[at(PASS, of(PASS, "own"), i, j)]
                change -= back * moved
            added = added + (change,)
    return added


@triton.jit
def newest(rows, PASS: tl.constexpr, n: tl.constexpr):
    """Of the rows of window n those of the tokens that are the new ones of window n + 1."""
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
    changes, rows, ahead, back, of_ahead, of_back, inside, PASS: tl.constexpr, n: tl.constexpr, DY: tl.constexpr,
    DX: tl.constexpr, AHEAD: tl.constexpr, BACK: tl.constexpr, MASKED: tl.constexpr,
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
                change -= ahead * (rows[at(PASS, n, i, j)] - rows[at(PASS, n, i - DY, j - DX)])
            if BACK >= 0:
                change += back * (rows[at(PASS, n, i + DY, j + DX)] - rows[at(PASS, n, i, j)])
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
                new, rows, ahead, back, of_ahead, of_back, inside, PASS, n, of(PASS, "dy", s * P + p),
                of(PASS, "dx", s * P + p), of(PASS, "ahead", p), of(PASS, "back", p), MASKED,
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
                    total -= gradients[at(PASS, n, i, j)] * along
                else:
                    total += gradients[at(PASS, n, i, j)] * along
            if APART:
                found = found + (total,)
    if not APART:
        found = total
    return found
