"""A tile's S diffusion steps, and their gradients: two kernels, made of what `ldn.kernels.rows` does row by row.

Both take the states' steps, written out in each: Triton 3.6 hands no tuple of constants (the pairs of edges, the
dilations) on to another function.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldn.kernels.rows import (
    at,
    count,
    flow,
    flow_back,
    load,
    middle,
    moved_along,
    numbers,
    origin,
    products,
    store,
    store_sums,
    sums,
    within,
    zeros,
)


@triton.jit
def _coefficients(
    weights, rate, channels, D: tl.constexpr, STRIDE_E: tl.constexpr, STRIDE_D: tl.constexpr, E: tl.constexpr,
    OF_TOKENS: tl.constexpr,
):  # fmt: skip
    """The weights of all edges, times the rate if that is the same for all tokens."""
    found = ()
    for e in tl.static_range(E):
        weight = tl.load(weights + e * STRIDE_E + channels * STRIDE_D, channels < D, other=0.0).to(tl.float32)
        if not OF_TOKENS:
            weight = weight * tl.load(rate, channels < D, other=0.0).to(tl.float32)
        found = found + (weight,)
    return found


@triton.jit
def _rates(
    rate, inside, channels, D: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr, STRIDE_D: tl.constexpr,
    SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr, OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The rates of the tokens, where they have their own: rows, or a number each."""
    found = ()
    if OF_TOKENS:
        if OF_CHANNELS:
            found = load(
                rate + channels * STRIDE_D, inside, channels, D, STRIDE_Y, STRIDE_X, SY, SX, TY, TX,
                UP, DOWN, LEFT, RIGHT, F, True,
            )  # fmt: skip
        else:
            found = numbers(rate, inside, STRIDE_Y, STRIDE_X, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
    return found


@triton.jit
def _conductances(
    conductance, inside, W: tl.constexpr, E: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr,
    TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
    CONDUCTING: tl.constexpr,
):  # fmt: skip
    """For each edge the numbers of all tokens."""
    found = ()
    for e in tl.static_range(E):
        if CONDUCTING:
            own = numbers(conductance + e, inside, W * E, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
            found = found + (own,)
        else:
            found = found + ((),)
    return found


@triton.jit(do_not_specialize=["H", "tiles_y", "tiles_x", "blocks"])
def forward_kernel(
    x, out, weights, rate, conductance, H, tiles_y, tiles_x, blocks, x_b, r_b,
    W: tl.constexpr, D: tl.constexpr, X_Y: tl.constexpr, X_X: tl.constexpr, W_E: tl.constexpr, W_D: tl.constexpr,
    R_Y: tl.constexpr, R_X: tl.constexpr, R_D: tl.constexpr,
    PAIRS: tl.constexpr, P: tl.constexpr, E: tl.constexpr, DILATIONS: tl.constexpr, REACHES: tl.constexpr,
    S: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr, CONDUCTING: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of `out` (B, H, W, D), contiguous, from x (B, H, W, D) with strides (x_b, X_Y, X_X, 1).

    REACHES[s] of the stencil's reaches lie around the rows before step s. PAIRS has (dy, dx, edge ahead, edge back); an
    edge that is not there is -1, and what -1 then indexes is never used.
    SPLIT: programs that see no end of the grid are compiled apart, without masks. Where tokens have numbers of their
    own that saves a quarter of the instructions and takes three times as long to compile; elsewhere a third and more.
    """
    pid = tl.program_id(0)
    channels = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    tiles = tiles_y * tiles_x * (SY * SX)
    b = (pid // blocks // tiles).to(tl.int64)
    y0, x0 = origin(pid // blocks % tiles, tiles_y, tiles_x, SY, SX, TY, TX)
    y, z = y0.to(tl.int64), x0.to(tl.int64)
    first = (b * H + y) * W + z
    x += b * x_b + y * X_Y + z * X_X + channels
    out += first * D + channels
    rate += b * r_b + y * R_Y + z * R_X
    conductance += first * E
    coefficients = _coefficients(weights, rate + channels * R_D, channels, D, W_E, W_D, E, OF_TOKENS)
    F: tl.constexpr = REACHES[0]
    amid = (y0 >= F * UP * SY) & (y0 + (TY + F * DOWN - 1) * SY < H)
    amid &= (x0 >= F * LEFT * SX) & (x0 + (TX + F * RIGHT - 1) * SX < W)
    for MASKED in tl.static_range(1 - SPLIT, 2):
        if SPLIT == 0 or amid == (MASKED == 0):
            inside = within(y0, x0, H, W, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
            conductances = _conductances(
                conductance, inside, W, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, CONDUCTING
            )
            rates = _rates(
                rate, inside, channels, D, R_Y, R_X, R_D, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F,
                OF_TOKENS, OF_CHANNELS,
            )  # fmt: skip
            rows = load(x, inside, channels, D, X_Y, X_X, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED)
            for s in tl.static_range(S):
                new = middle(rows, TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
                if OF_TOKENS:
                    new = zeros(rows[0], count(REACHES[s + 1], TY, TX, UP, DOWN, LEFT, RIGHT))
                for p in tl.static_range(P):
                    new = flow(
                        new, rows, inside, coefficients[PAIRS[4 * p + 2]], coefficients[PAIRS[4 * p + 3]],
                        conductances[PAIRS[4 * p + 2]], conductances[PAIRS[4 * p + 3]],
                        PAIRS[4 * p + 2], PAIRS[4 * p + 3], PAIRS[4 * p] * DILATIONS[s],
                        PAIRS[4 * p + 1] * DILATIONS[s], TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s], REACHES[s + 1],
                        CONDUCTING, MASKED,
                    )  # fmt: skip
                if OF_TOKENS:
                    new = products(new, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s + 1])
                    new = sums(rows, new, TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
                rows = new
            store(out, rows, inside, channels, D, W * D, D, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED)


@triton.jit
def _settled(
    total, of_rates, moved, START: tl.constexpr, weight, rates, own, inside, g_conductance, W: tl.constexpr,
    E: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
    OF_TOKENS: tl.constexpr, CONDUCTING: tl.constexpr, OF_CONDUCTANCES: tl.constexpr,
):  # fmt: skip
    """Share what moved along an edge, token by token, among its weight (`total`), the rates and its conductances."""
    new, of_own = (), ()
    for i in tl.static_range(TY):
        for j in tl.static_range(TX):
            flow = moved[START + i * TX + j]
            through = flow
            if CONDUCTING:
                through = flow * own[at(i, j, F, TX, UP, LEFT, RIGHT)]
            new = new + (of_rates[i * TX + j] + weight * through,)
            if OF_TOKENS:
                through = through * rates[at(i, j, F, TX, UP, LEFT, RIGHT)]
                flow = flow * rates[at(i, j, F, TX, UP, LEFT, RIGHT)]
            total += through
            of_own = of_own + (flow * weight,)
    if OF_CONDUCTANCES:
        store_sums(g_conductance, of_own, inside, W * E, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
    return total, new


@triton.jit(do_not_specialize=["B", "H", "tiles_y", "tiles_x", "blocks", "groups", "of_group"])
def backward_kernel(
    x, grad, g_x, weights, rate, conductance, g_weights, g_rate, g_conductance,
    B, H, tiles_y, tiles_x, blocks, groups, of_group, x_b, grad_b, r_b,
    W: tl.constexpr, D: tl.constexpr, X_Y: tl.constexpr, X_X: tl.constexpr, GRAD_Y: tl.constexpr, GRAD_X: tl.constexpr,
    W_E: tl.constexpr, W_D: tl.constexpr, R_Y: tl.constexpr, R_X: tl.constexpr, R_D: tl.constexpr,
    PAIRS: tl.constexpr, P: tl.constexpr, E: tl.constexpr, DILATIONS: tl.constexpr, REACHES: tl.constexpr,
    S: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr, CONDUCTING: tl.constexpr, LEARNING: tl.constexpr,
    OF_CONDUCTANCES: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`of_group` tiles of g_x (B, H, W, D), contiguous; and, LEARNING, what the coefficients' gradients are made of:

    g_weights (B, groups, E, D): sums over tokens and steps of the gradient times the difference along each edge, times
    the token's own rate and conductance · g_rate (B, H, W, D), or (blocks, B, H, W) summed over a block of channels ·
    g_conductance (blocks, B, H, W, E), if OF_CONDUCTANCES.
    """
    pid = tl.program_id(0)
    block, group, b = pid % blocks, pid // blocks % groups, (pid // blocks // groups).to(tl.int64)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    tiles = tiles_y * tiles_x * (SY * SX)
    coefficients = _coefficients(weights, rate + b * r_b + channels * R_D, channels, D, W_E, W_D, E, OF_TOKENS)
    F: tl.constexpr = REACHES[0]
    APART: tl.constexpr = OF_TOKENS or CONDUCTING
    totals = zeros(coefficients[0], 2 * P)
    for tile in range(group * of_group, tl.minimum(group * of_group + of_group, tiles)):
        y0, x0 = origin(tile, tiles_y, tiles_x, SY, SX, TY, TX)
        y, z = y0.to(tl.int64), x0.to(tl.int64)
        first = (b * H + y) * W + z
        of_block = block.to(tl.int64) * B * H * W + first  # where each block of channels has its own
        amid = (y0 >= F * UP * SY) & (y0 + (TY + F * DOWN - 1) * SY < H)
        amid &= (x0 >= F * LEFT * SX) & (x0 + (TX + F * RIGHT - 1) * SX < W)
        for MASKED in tl.static_range(1 - SPLIT, 2):
            if SPLIT == 0 or amid == (MASKED == 0):
                inside = within(y0, x0, H, W, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
                conductances = _conductances(
                    conductance + first * E, inside, W, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, CONDUCTING
                )
                rates = _rates(
                    rate + b * r_b + y * R_Y + z * R_X, inside, channels, D, R_Y, R_X, R_D, SY, SX, TY, TX,
                    UP, DOWN, LEFT, RIGHT, F, OF_TOKENS, OF_CHANNELS,
                )  # fmt: skip
                grads = load(
                    grad + b * grad_b + y * GRAD_Y + z * GRAD_X + channels, inside, channels, D, GRAD_Y, GRAD_X,
                    SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED,
                )  # fmt: skip
                states = ()  # before each step
                if LEARNING:
                    rows = load(
                        x + b * x_b + y * X_Y + z * X_X + channels, inside, channels, D, X_Y, X_X,
                        SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED,
                    )  # fmt: skip
                    states = (rows,)
                    for s in tl.static_range(S - 1):
                        new = middle(states[s], TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
                        if OF_TOKENS:
                            new = zeros(rows[0], count(REACHES[s + 1], TY, TX, UP, DOWN, LEFT, RIGHT))
                        for p in tl.static_range(P):
                            new = flow(
                                new, states[s], inside, coefficients[PAIRS[4 * p + 2]],
                                coefficients[PAIRS[4 * p + 3]], conductances[PAIRS[4 * p + 2]],
                                conductances[PAIRS[4 * p + 3]], PAIRS[4 * p + 2], PAIRS[4 * p + 3],
                                PAIRS[4 * p] * DILATIONS[s], PAIRS[4 * p + 1] * DILATIONS[s], TY, TX,
                                UP, DOWN, LEFT, RIGHT, F, REACHES[s], REACHES[s + 1], CONDUCTING, MASKED,
                            )  # fmt: skip
                        if OF_TOKENS:
                            new = products(new, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s + 1])
                            new = sums(states[s], new, TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
                        states = states + (new,)
                moved = totals
                if APART:
                    moved = zeros(coefficients[0], 2 * P * TY * TX)
                for q in tl.static_range(S):  # step S - 1 - q
                    if LEARNING:
                        found = ()
                        for edge in tl.static_range(2 * P):
                            found = found + moved_along(
                                moved, edge * (TY * TX if APART else 1), states[S - 1 - q], grads, inside, edge % 2,
                                PAIRS[edge // 2 * 4] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                PAIRS[edge // 2 * 4 + 1] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[S - 1 - q], F - REACHES[S - q], APART, MASKED,
                            )  # fmt: skip
                        moved = found
                    scaled = grads
                    if OF_TOKENS:
                        scaled = products(grads, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, F - REACHES[S - q])
                    grads = middle(grads, TY, TX, UP, DOWN, LEFT, RIGHT, F - REACHES[S - q], F - REACHES[S - 1 - q])
                    for edge in tl.static_range(2 * P):
                        if PAIRS[edge // 2 * 4 + 2 + edge % 2] >= 0:
                            grads = flow_back(
                                grads, scaled, inside, coefficients[PAIRS[edge // 2 * 4 + 2 + edge % 2]],
                                conductances[PAIRS[edge // 2 * 4 + 2 + edge % 2]],
                                PAIRS[edge // 2 * 4] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                PAIRS[edge // 2 * 4 + 1] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                TY, TX, UP, DOWN, LEFT, RIGHT, F, F - REACHES[S - q], F - REACHES[S - 1 - q],
                                CONDUCTING, MASKED,
                            )  # fmt: skip
                store(
                    g_x + first * D + channels, grads, inside, channels, D, W * D, D, SY, SX, TY, TX,
                    UP, DOWN, LEFT, RIGHT, F, MASKED,
                )  # fmt: skip
                if LEARNING and APART:
                    of_rates = zeros(coefficients[0], TY * TX)
                    settled = ()
                    for edge in tl.static_range(2 * P):
                        total = totals[edge]
                        if PAIRS[edge // 2 * 4 + 2 + edge % 2] >= 0:
                            total, of_rates = _settled(
                                total, of_rates, moved, edge * TY * TX,
                                coefficients[PAIRS[edge // 2 * 4 + 2 + edge % 2]], rates,
                                conductances[PAIRS[edge // 2 * 4 + 2 + edge % 2]], inside,
                                g_conductance + of_block * E + PAIRS[edge // 2 * 4 + 2 + edge % 2], W, E,
                                SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, OF_TOKENS, CONDUCTING, OF_CONDUCTANCES,
                            )  # fmt: skip
                        settled = settled + (total,)
                    moved = settled
                    if OF_CHANNELS:
                        store(
                            g_rate + first * D + channels, of_rates, inside, channels, D, W * D, D,
                            SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED,
                        )  # fmt: skip
                    elif OF_TOKENS:
                        store_sums(
                            g_rate + of_block, of_rates, inside, W, 1,
                            SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F,
                        )  # fmt: skip
                if LEARNING:
                    totals = moved
    if LEARNING:
        g_weights += (b * groups + group) * E * D + channels
        for edge in tl.static_range(2 * P):
            if PAIRS[edge // 2 * 4 + 2 + edge % 2] >= 0:
                tl.store(g_weights + PAIRS[edge // 2 * 4 + 2 + edge % 2] * D, totals[edge], channels < D)
