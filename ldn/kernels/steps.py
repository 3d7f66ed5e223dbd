"""A program's march along the grid, S diffusion steps or their gradients: two kernels, made of `rows` and `flow`.

In every turn it loads the next turn's rows before it steps this one's, so that loads are under way while it computes.
Turns that touch neither an end of the grid nor one of the program's own rows, most of them where it owns many, are
compiled apart, without masks: half the instructions. What tokens have of their own are rates, numbers or rows of them,
and for each edge conductances; a tuple of these is empty where tokens have none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldn.kernels.constants import at, of
from ldn.kernels.flow import moved_along, states, step_back
from ldn.kernels.rows import all_carried, carried, exactly, halved, load, load_numbers, store, store_sums, within, zeros

SIZES = ("B", "H", "chunk", "chunks", "tiles_x", "blocks")  # for whose values no kernel is compiled anew


@triton.jit
def _place(blocks, tiles_x, chunks, chunk, H, PASS: tl.constexpr):
    """(block of channels, row of the batch, the program's number there, its first column, `first`, `last`).

    It owns the rows from `first` to before `last`: of each `chunk` that lie "stride y" apart. Blocks come first, then
    columns: programs that share rows run side by side.
    """
    SY: tl.constexpr = of(PASS, "stride y")
    SX: tl.constexpr = of(PASS, "stride x")
    program = tl.program_id(0)
    block, place = program % blocks, program // blocks
    b, number = place // (tiles_x * chunks * (SY * SX)), place % (tiles_x * chunks * (SY * SX))
    residue = number // (tiles_x * chunks)
    first = number // tiles_x % chunks * chunk * SY + residue // SX
    last = tl.maximum(tl.minimum(first + chunk * SY, H), first)
    column = number % tiles_x * (of(PASS, "columns owned") * SX) + residue % SX
    return block, b.to(tl.int64), number, column, first, last


@triton.jit
def _turns(first, last, PASS: tl.constexpr):
    """How many turns the march takes: until the last rows that it owns have come as far as the result."""
    count = tl.cdiv(last - first, of(PASS, "stride y"))
    turns = tl.cdiv(count + of(PASS, "lead") + of(PASS, "tail"), of(PASS, "rows"))
    return tl.where(count > 0, turns, 0)


@triton.jit
def _amid(y, column, first, last, needed, PASS: tl.constexpr):
    """Whether no token of a turn is outside the grid, nor of the next one's to be loaded, and all results are owned."""
    U: tl.constexpr = of(PASS, "rows")
    SY: tl.constexpr = of(PASS, "stride y")
    amid = (y >= of(PASS, "carried", of(PASS, "all")) * SY) & (y + (2 * U - 1) * SY < needed)
    amid = amid & (y - of(PASS, "tail") * SY >= first) & (y + (U - 1 - of(PASS, "head")) * SY < last)
    if of(PASS, "W") > 1:
        SX: tl.constexpr = of(PASS, "stride x")
        right = of(PASS, "columns") - of(PASS, "left") - 1
        amid = amid & (column >= of(PASS, "left") * SX) & (column + right * SX < of(PASS, "W"))
    return amid


@triton.jit
def _coefficients(
    weights, rate, channels, W_E: tl.constexpr, W_D: tl.constexpr, R_D: tl.constexpr, PASS: tl.constexpr
):  # fmt: skip
    """The weights of all edges, times the rate if that is the same for all tokens."""
    real = channels < of(PASS, "D")
    found = ()
    for e in tl.static_range(of(PASS, "edges")):
        weight = tl.load(weights + e * W_E + channels * W_D, real, other=0.0).to(tl.float32)
        if not of(PASS, "of tokens"):
            weight = weight * tl.load(rate + channels * R_D, real, other=0.0).to(tl.float32)
        found = found + (weight,)
    return found


@triton.jit
def _load_own(
    rate, conductance, channels, y, column, end, R_Y: tl.constexpr, R_X: tl.constexpr, R_D: tl.constexpr,
    PASS: tl.constexpr,
):  # fmt: skip
    """(rates, conductances) of the turn's new tokens."""
    E: tl.constexpr = of(PASS, "edges")
    rates, conductances = (), ()
    if of(PASS, "of channels"):
        rates = load(rate, channels, y, column, end, R_Y, R_X, R_D, PASS, of(PASS, "own"), True)
    elif of(PASS, "of tokens"):
        rates = load_numbers(rate, y, column, end, R_Y, R_X, PASS, of(PASS, "own"))
    for e in tl.static_range(E):
        numbers = ()
        if of(PASS, "conducting"):
            numbers = load_numbers(conductance + e, y, column, end, of(PASS, "W") * E, E, PASS, of(PASS, "own"))
        conductances = conductances + (numbers,)
    return rates, conductances


@triton.jit
def _none_own(like, PASS: tl.constexpr):
    """Zeros for those carried before the first turn."""
    COUNT: tl.constexpr = of(PASS, "carried", of(PASS, "own")) * of(PASS, "columns", of(PASS, "own"))
    number = tl.sum(tl.zeros_like(like), axis=0)
    rates, conductances = (), ()
    if of(PASS, "of channels"):
        rates = zeros(like, COUNT)
    elif of(PASS, "of tokens"):
        rates = zeros(number, COUNT)
    for _ in tl.static_range(of(PASS, "edges")):
        numbers = ()
        if of(PASS, "conducting"):
            numbers = zeros(number, COUNT)
        conductances = conductances + (numbers,)
    return rates, conductances


@triton.jit
def _joined(held, coming, PASS: tl.constexpr):
    """All of their windows."""
    conductances = ()
    for e in tl.static_range(of(PASS, "edges")):
        conductances = conductances + (held[1][e] + exactly(coming[1][e]),)
    return held[0] + exactly(coming[0]), conductances


@triton.jit
def _carried_own(rates, conductances, PASS: tl.constexpr):
    of_rates, of_conductances = (), ()
    if of(PASS, "of tokens"):
        of_rates = carried(rates, PASS, of(PASS, "own"))
    for e in tl.static_range(of(PASS, "edges")):
        numbers = ()
        if of(PASS, "conducting"):
            numbers = carried(conductances[e], PASS, of(PASS, "own"))
        of_conductances = of_conductances + (numbers,)
    return of_rates, of_conductances


@triton.jit
def _none_held(like, PASS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    """Zeros for the rows of these windows that are carried before the first turn."""
    held = ()
    for n in tl.static_range(FROM, TO):
        held = held + (zeros(like, of(PASS, "carried", n) * of(PASS, "columns", n)),)
    return held


@triton.jit
def _forward_turn(
    held, coming, own, own_coming, coefficients, x, out, rate, conductance, channels, y, column, first, last, needed, H,
    X_Y: tl.constexpr, X_X: tl.constexpr, R_Y: tl.constexpr, R_X: tl.constexpr, R_D: tl.constexpr,
    PASS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One turn of `forward_kernel`, from row y on: what the next one needs of this."""
    S: tl.constexpr = of(PASS, "steps")
    loaded = halved(coming)
    rates, conductances = _joined(own, own_coming, PASS)
    next_y = y + of(PASS, "rows") * of(PASS, "stride y")
    coming = load(x, channels, next_y, column, needed, X_Y, X_X, 1, PASS, 0, MASKED)
    own_coming = _load_own(rate, conductance, channels, next_y, column, needed, R_Y, R_X, R_D, PASS)
    inside = ()
    if MASKED:
        inside = within(y, column, H, PASS, of(PASS, "all"), -of(PASS, "carried", of(PASS, "all")))
    windows = states(held, loaded, coefficients, rates, conductances, inside, PASS, S, MASKED)
    store(out, windows[S], channels, y, column, first, last, PASS, S, MASKED, 2.0)
    return all_carried(windows, PASS, 0, S + 1), coming, _carried_own(rates, conductances, PASS), own_coming


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x, out, weights, rate, conductance, H, chunk, chunks, tiles_x, blocks, x_b, r_b,
    X_Y: tl.constexpr, X_X: tl.constexpr, W_E: tl.constexpr, W_D: tl.constexpr, R_Y: tl.constexpr,
    R_X: tl.constexpr, R_D: tl.constexpr, PASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """S steps of x (B, H, W, D) with strides (x_b, X_Y, X_X, 1) -> out (B, H, W, D), contiguous."""
    block, b, _, column, first, last = _place(blocks, tiles_x, chunks, chunk, H, PASS)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    x += b * x_b + column.to(tl.int64) * X_X
    out += b * H * (of(PASS, "W") * of(PASS, "D"))
    conductance += (b * H * of(PASS, "W") + column) * of(PASS, "edges")
    rate += b * r_b + column.to(tl.int64) * R_X
    coefficients = _coefficients(weights, rate, channels, W_E, W_D, R_D, PASS)
    needed = tl.minimum(H, last + of(PASS, "tail") * of(PASS, "stride y"))  # the first row that is not
    y = first - of(PASS, "lead") * of(PASS, "stride y")
    held, own = _none_held(coefficients[0], PASS, 0, of(PASS, "steps") + 1), _none_own(coefficients[0], PASS)
    coming = load(x, channels, y, column, needed, X_Y, X_X, 1, PASS, 0, True)
    own_coming = _load_own(rate, conductance, channels, y, column, needed, R_Y, R_X, R_D, PASS)
    for _ in range(_turns(first, last, PASS)):
        if _amid(y, column, first, last, needed, PASS):
            held, coming, own, own_coming = _forward_turn(
                held, coming, own, own_coming, coefficients, x, out, rate, conductance, channels, y, column, first,
                last, needed, H, X_Y, X_X, R_Y, R_X, R_D, PASS, False,
            )  # fmt: skip
        else:
            held, coming, own, own_coming = _forward_turn(
                held, coming, own, own_coming, coefficients, x, out, rate, conductance, channels, y, column, first,
                last, needed, H, X_Y, X_X, R_Y, R_X, R_D, PASS, True,
            )  # fmt: skip
        y += of(PASS, "rows") * of(PASS, "stride y")


@triton.jit
def _settled(
    total, of_rates, moved, weight, rates, of_edge, g_conductance, y, column, first, last, PASS: tl.constexpr
):  # fmt: skip
    """Share what moved along an edge, token by token, among its weight (`total`), the rates and its conductances."""
    N: tl.constexpr = of(PASS, "settled")
    new, of_own = (), ()
    for i in tl.static_range(-of(PASS, "delay", N), of(PASS, "rows") - of(PASS, "delay", N)):
        for j in tl.static_range(of(PASS, "columns", N)):
            flow = 2.0 * moved[at(PASS, N, i, j)]  # of half the states
            through = flow
            if of(PASS, "conducting"):
                through = flow * of_edge[at(PASS, of(PASS, "own"), i, j)]
            new = new + (of_rates[at(PASS, N, i, j)] + weight * through,)
            if of(PASS, "of tokens"):
                through = through * rates[at(PASS, of(PASS, "own"), i, j)]
                flow = flow * rates[at(PASS, of(PASS, "own"), i, j)]
            total += through
            of_own = of_own + (flow * weight,)
    if of(PASS, "of conductances"):
        store_sums(g_conductance, of_own, y, column, first, last, of(PASS, "edges"), PASS, N)
    return total, new


@triton.jit
def _backward_turn(
    held, coming, g_held, g_coming, own, own_coming, totals, sums, coefficients, x, grad, g_x, rate, conductance,
    g_rate, g_conductance, channels, y, column, first, last, needed, H,
    X_Y: tl.constexpr, X_X: tl.constexpr, GRAD_Y: tl.constexpr, GRAD_X: tl.constexpr, R_Y: tl.constexpr,
    R_X: tl.constexpr, R_D: tl.constexpr, PASS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One turn of `backward_kernel`, from row y on: what the next one needs of this.

    Edges are numbered by pairs: 2 p is the one ahead of pair p, 2 p + 1 the one back.
    """
    S: tl.constexpr = of(PASS, "steps")
    P: tl.constexpr = of(PASS, "pairs")
    LEARNING: tl.constexpr = of(PASS, "learning")
    APART: tl.constexpr = LEARNING and (of(PASS, "of tokens") or of(PASS, "conducting"))
    rates, conductances = _joined(own, own_coming, PASS)
    next_y = y + of(PASS, "rows") * of(PASS, "stride y")
    own_coming = _load_own(rate, conductance, channels, next_y, column, needed, R_Y, R_X, R_D, PASS)
    inside = ()
    if MASKED:
        inside = within(y, column, H, PASS, of(PASS, "all"), -of(PASS, "carried", of(PASS, "all")))
    gradients = exactly(g_coming)
    g_coming = load(grad, channels, next_y, column, needed, GRAD_Y, GRAD_X, 1, PASS, S, MASKED)
    before = ()
    if LEARNING:
        loaded = halved(coming)
        coming = load(x, channels, next_y, column, needed, X_Y, X_X, 1, PASS, 0, MASKED)
        before = states(held, loaded, coefficients, rates, conductances, inside, PASS, S - 1, MASKED)
        held = all_carried(before, PASS, 0, S)
    moved = ()
    for e in tl.static_range(2 * P):
        if APART:
            moved = moved + (sums[e] + zeros(coefficients[0], of(PASS, "rows") * of(PASS, "columns owned")),)
        else:
            moved = moved + (tl.zeros_like(coefficients[0]),)  # turn by turn: fewer terms in a row, less rounding
    after = ()
    for n in tl.static_range(S, 2 * S):  # the gradient after step s = 2 S - 1 - n
        rows = g_held[n - S] + gradients
        after = after + (rows,)
        if LEARNING:
            found = ()
            for e in tl.static_range(2 * P):
                if of(PASS, "edge", e) >= 0:
                    along = moved_along(
                        moved[e], before[2 * S - 1 - n], rows, inside, y, first, last, PASS, 2 * S - 1 - n, n,
                        of(PASS, "dy", (2 * S - 1 - n) * P + e // 2), of(PASS, "dx", (2 * S - 1 - n) * P + e // 2),
                        e % 2, MASKED,
                    )  # fmt: skip
                    found = found + (along,)
                else:
                    found = found + (moved[e],)
            moved = found
        gradients = step_back(rows, coefficients, rates, conductances, inside, PASS, n, 2 * S - 1 - n, MASKED)
    store(g_x, gradients, channels, y, column, first, last, PASS, 2 * S, MASKED, 1)
    if APART:
        of_rates = zeros(coefficients[0], of(PASS, "rows") * of(PASS, "columns owned"))
        settled, kept = (), ()
        for e in tl.static_range(2 * P):
            total = totals[e]
            if of(PASS, "edge", e) >= 0:
                total, of_rates = _settled(
                    total, of_rates, moved[e], coefficients[of(PASS, "edge", e)], rates,
                    conductances[of(PASS, "edge", e)], g_conductance + of(PASS, "edge", e), y, column, first, last,
                    PASS,
                )  # fmt: skip
            settled = settled + (total,)
            kept = kept + (carried(moved[e], PASS, of(PASS, "sums")),)
        totals, sums = settled, kept
        if of(PASS, "of channels"):
            store(g_rate, of_rates, channels, y, column, first, last, PASS, of(PASS, "settled"), True, 1)
        elif of(PASS, "of tokens"):
            store_sums(g_rate, of_rates, y, column, first, last, 1, PASS, of(PASS, "settled"))
    elif LEARNING:
        added = ()
        for e in tl.static_range(2 * P):
            added = added + (totals[e] + moved[e],)
        totals = added
    own = _carried_own(rates, conductances, PASS)
    return held, coming, all_carried(after, PASS, S, 2 * S), g_coming, own, own_coming, totals, sums


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x, grad, g_x, weights, rate, conductance, g_weights, g_rate, g_conductance,
    B, H, chunk, chunks, tiles_x, blocks, x_b, grad_b, r_b,
    X_Y: tl.constexpr, X_X: tl.constexpr, GRAD_Y: tl.constexpr, GRAD_X: tl.constexpr, W_E: tl.constexpr,
    W_D: tl.constexpr, R_Y: tl.constexpr, R_X: tl.constexpr, R_D: tl.constexpr, PASS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """g_x (B, H, W, D), contiguous; and, if "learning", what the coefficients' gradients are made of:

    g_weights (B, programs, E, D): sums over tokens and steps of the gradient times the difference along each edge,
    times the token's own rate and conductance · g_rate (B, H, W, D), or (blocks, B, H, W) summed over a block of
    channels · g_conductance (blocks, B, H, W, E), if "of conductances".
    """
    block, b, number, column, first, last = _place(blocks, tiles_x, chunks, chunk, H, PASS)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    S: tl.constexpr = of(PASS, "steps")
    P: tl.constexpr = of(PASS, "pairs")
    E: tl.constexpr = of(PASS, "edges")
    W: tl.constexpr = of(PASS, "W")
    D: tl.constexpr = of(PASS, "D")
    x += b * x_b + column.to(tl.int64) * X_X
    grad += b * grad_b + column.to(tl.int64) * GRAD_X
    g_x += b * H * (W * D)
    conductance += (b * H * W + column) * E
    rate += b * r_b + column.to(tl.int64) * R_X
    g_conductance += (block * B + b) * H * (W * E)
    if of(PASS, "of channels"):
        g_rate += b * H * (W * D)
    else:
        g_rate += (block * B + b) * H * W
    coefficients = _coefficients(weights, rate, channels, W_E, W_D, R_D, PASS)
    needed = tl.minimum(H, last + of(PASS, "tail") * of(PASS, "stride y"))  # the first row that is not
    y = first - of(PASS, "lead") * of(PASS, "stride y")
    held, coming, sums = (), (), ()
    if of(PASS, "learning"):
        held = _none_held(coefficients[0], PASS, 0, S)
        coming = load(x, channels, y, column, needed, X_Y, X_X, 1, PASS, 0, True)
        if of(PASS, "of tokens") or of(PASS, "conducting"):
            for _ in tl.static_range(2 * P):
                sums = sums + _none_held(coefficients[0], PASS, of(PASS, "sums"), of(PASS, "sums") + 1)
    g_held, own = _none_held(coefficients[0], PASS, S, 2 * S), _none_own(coefficients[0], PASS)
    g_coming = load(grad, channels, y, column, needed, GRAD_Y, GRAD_X, 1, PASS, S, True)
    own_coming = _load_own(rate, conductance, channels, y, column, needed, R_Y, R_X, R_D, PASS)
    totals = zeros(coefficients[0], 2 * P)
    for _ in range(_turns(first, last, PASS)):
        if _amid(y, column, first, last, needed, PASS):
            held, coming, g_held, g_coming, own, own_coming, totals, sums = _backward_turn(
                held, coming, g_held, g_coming, own, own_coming, totals, sums, coefficients, x, grad, g_x, rate,
                conductance, g_rate, g_conductance, channels, y, column, first, last, needed, H,
                X_Y, X_X, GRAD_Y, GRAD_X, R_Y, R_X, R_D, PASS, False,
            )  # fmt: skip
        else:
            held, coming, g_held, g_coming, own, own_coming, totals, sums = _backward_turn(
                held, coming, g_held, g_coming, own, own_coming, totals, sums, coefficients, x, grad, g_x, rate,
                conductance, g_rate, g_conductance, channels, y, column, first, last, needed, H,
                X_Y, X_X, GRAD_Y, GRAD_X, R_Y, R_X, R_D, PASS, True,
            )  # fmt: skip
        y += of(PASS, "rows") * of(PASS, "stride y")
    if of(PASS, "learning"):
        g_weights += (b * (tiles_x * chunks * (of(PASS, "stride y") * of(PASS, "stride x"))) + number) * (E * D)
        for e in tl.static_range(2 * P):
            if of(PASS, "edge", e) >= 0:
                total = totals[e]
                if not (of(PASS, "of tokens") or of(PASS, "conducting")):
                    total = 2.0 * total  # of half the states
                tl.store(g_weights + of(PASS, "edge", e) * D + channels, total, channels < D)
