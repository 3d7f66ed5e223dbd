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
    weights, rate, stride_e, stride_d, channels, D, E: tl.constexpr, OF_TOKENS: tl.constexpr
):  # fmt: skip
    """The weights of all edges, times the rate if that is the same for all tokens."""
    found = ()
    for e in tl.static_range(E):
        weight = tl.load(weights + e * stride_e + channels * stride_d, channels < D, other=0.0).to(tl.float32)
        if not OF_TOKENS:
            weight = weight * tl.load(rate, channels < D, other=0.0).to(tl.float32)
        found = found + (weight,)
    return found


@triton.jit
def _rates(
    rate, inside, y0, x0, D, stride_y, stride_x, stride_d, channels, SY: tl.constexpr, SX: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    F: tl.constexpr, OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The rates of the tokens, where they have their own: rows, or a number each."""
    found = ()
    if OF_TOKENS:
        if OF_CHANNELS:
            found = load(
                rate + channels * stride_d, inside, y0, x0, D, stride_y, stride_x, channels, SY, SX, TY, TX,
                UP, DOWN, LEFT, RIGHT, F, F, True,
            )  # fmt: skip
        else:
            found = numbers(rate, inside, y0, x0, stride_y, stride_x, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, F)
    return found


@triton.jit
def _conductances(
    conductance, inside, y0, x0, W, E: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr,
    TX: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
    CONDUCTING: tl.constexpr,
):  # fmt: skip
    """For each edge the numbers of all tokens."""
    found = ()
    for e in tl.static_range(E):
        if CONDUCTING:
            own = numbers(conductance + e, inside, y0, x0, W * E, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, F)
            found = found + (own,)
        else:
            found = found + ((),)
    return found


@triton.jit
def forward_kernel(
    x, out, weights, rate, conductance, H, W, D, tiles_y, tiles_x, blocks,
    x_b, x_y, x_x, w_e, w_d, r_b, r_y, r_x, r_d,
    PAIRS: tl.constexpr, P: tl.constexpr, E: tl.constexpr, DILATIONS: tl.constexpr, REACHES: tl.constexpr,
    S: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr, CONDUCTING: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of `out` (B, H, W, D), contiguous, from x (B, H, W, D) with strides (x_b, x_y, x_x, 1).

    REACHES[s] of the stencil's reaches lie around the rows before step s. PAIRS has (dy, dx, edge ahead, edge back).
    SPLIT: programs that see no end of the grid are compiled apart, without masks.
    """
    pid = tl.program_id(0)
    channels = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    tiles = tiles_y * tiles_x * (SY * SX)
    b = (pid // blocks // tiles).to(tl.int64)
    y0, x0 = origin(pid // blocks % tiles, tiles_y, tiles_x, SY, SX, TY, TX)
    x += b * x_b + channels
    out += b * H * W * D + channels
    rate += b * r_b
    conductance += b * H * W * E
    coefficients = _coefficients(weights, rate + channels * r_d, w_e, w_d, channels, D, E, OF_TOKENS)
    F: tl.constexpr = REACHES[0]
    amid = (y0 >= F * UP * SY) & (y0 + (TY + F * DOWN - 1) * SY < H)
    amid &= (x0 >= F * LEFT * SX) & (x0 + (TX + F * RIGHT - 1) * SX < W)
    for MASKED in tl.static_range(1 - SPLIT, 2):
        if SPLIT == 0 or amid == (MASKED == 0):
            inside = within(y0, x0, H, W, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
            conductances = _conductances(
                conductance, inside, y0, x0, W, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, CONDUCTING
            )
            rates = _rates(
                rate, inside, y0, x0, D, r_y, r_x, r_d, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F,
                OF_TOKENS, OF_CHANNELS,
            )  # fmt: skip
            rows = load(x, inside, y0, x0, D, x_y, x_x, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, F, MASKED)
            for s in tl.static_range(S):
                changes = zeros(rows[0], count(REACHES[s + 1], TY, TX, UP, DOWN, LEFT, RIGHT))
                for p in tl.static_range(P):
                    changes = flow(
                        changes, rows, inside, coefficients[PAIRS[4 * p + 2]], coefficients[PAIRS[4 * p + 3]],
                        conductances[PAIRS[4 * p + 2]], conductances[PAIRS[4 * p + 3]],
                        PAIRS[4 * p + 2], PAIRS[4 * p + 3], PAIRS[4 * p] * DILATIONS[s],
                        PAIRS[4 * p + 1] * DILATIONS[s], TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s], REACHES[s + 1],
                        CONDUCTING, MASKED,
                    )  # fmt: skip
                if OF_TOKENS:
                    changes = products(changes, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s + 1])
                rows = sums(rows, changes, TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
            store(out, rows, inside, y0, x0, D, W * D, D, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED)


@triton.jit
def _settled(
    total, of_rates, moved, START: tl.constexpr, weight, rates, own, inside, g_conductance, y0, x0, W,
    E: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, F: tl.constexpr,
    OF_TOKENS: tl.constexpr, CONDUCTING: tl.constexpr,
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
    if CONDUCTING:
        store_sums(g_conductance, of_own, inside, y0, x0, W * E, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
    return total, new


@triton.jit
def backward_kernel(
    x, grad, g_x, weights, rate, conductance, g_weights, g_rate, g_conductance,
    B, H, W, D, tiles_y, tiles_x, blocks, groups, of_group,
    x_b, x_y, x_x, grad_b, grad_y, grad_x, w_e, w_d, r_b, r_y, r_x, r_d,
    PAIRS: tl.constexpr, P: tl.constexpr, E: tl.constexpr, DILATIONS: tl.constexpr, REACHES: tl.constexpr,
    S: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UP: tl.constexpr, DOWN: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    OF_TOKENS: tl.constexpr, OF_CHANNELS: tl.constexpr, CONDUCTING: tl.constexpr, LEARNING: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`of_group` tiles of g_x (B, H, W, D), contiguous; and, LEARNING, what the coefficients' gradients are made of:

    g_weights (B, groups, E, D): sums over tokens and steps of the gradient times the difference along each edge, times
    the token's own rate and conductance · g_rate (B, H, W, D), or (blocks, B, H, W) summed over a block of channels ·
    g_conductance (blocks, B, H, W, E).
    """
    pid = tl.program_id(0)
    block, group, b = pid % blocks, pid // blocks % groups, (pid // blocks // groups).to(tl.int64)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    tiles = tiles_y * tiles_x * (SY * SX)
    x += b * x_b + channels
    grad += b * grad_b + channels
    g_x += b * H * W * D + channels
    rate += b * r_b
    conductance += b * H * W * E
    g_conductance += (block * B + b) * H * W * E
    g_weights += (b * groups + group) * E * D + channels
    coefficients = _coefficients(weights, rate + channels * r_d, w_e, w_d, channels, D, E, OF_TOKENS)
    F: tl.constexpr = REACHES[0]
    APART: tl.constexpr = OF_TOKENS or CONDUCTING
    totals = zeros(coefficients[0], 2 * P)
    for tile in range(group * of_group, tl.minimum(group * of_group + of_group, tiles)):
        y0, x0 = origin(tile, tiles_y, tiles_x, SY, SX, TY, TX)
        amid = (y0 >= F * UP * SY) & (y0 + (TY + F * DOWN - 1) * SY < H)
        amid &= (x0 >= F * LEFT * SX) & (x0 + (TX + F * RIGHT - 1) * SX < W)
        for MASKED in tl.static_range(1 - SPLIT, 2):
            if SPLIT == 0 or amid == (MASKED == 0):
                inside = within(y0, x0, H, W, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F)
                conductances = _conductances(
                    conductance, inside, y0, x0, W, E, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, CONDUCTING
                )
                rates = _rates(
                    rate, inside, y0, x0, D, r_y, r_x, r_d, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F,
                    OF_TOKENS, OF_CHANNELS,
                )  # fmt: skip
                grads = load(
                    grad, inside, y0, x0, D, grad_y, grad_x, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, F,
                    MASKED,
                )  # fmt: skip
                states = ()  # before each step
                if LEARNING:
                    rows = load(
                        x, inside, y0, x0, D, x_y, x_x, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, F, MASKED
                    )
                    states = (rows,)
                    for s in tl.static_range(S - 1):
                        changes = zeros(rows[0], count(REACHES[s + 1], TY, TX, UP, DOWN, LEFT, RIGHT))
                        for p in tl.static_range(P):
                            changes = flow(
                                changes, states[s], inside, coefficients[PAIRS[4 * p + 2]],
                                coefficients[PAIRS[4 * p + 3]], conductances[PAIRS[4 * p + 2]],
                                conductances[PAIRS[4 * p + 3]], PAIRS[4 * p + 2], PAIRS[4 * p + 3],
                                PAIRS[4 * p] * DILATIONS[s], PAIRS[4 * p + 1] * DILATIONS[s], TY, TX,
                                UP, DOWN, LEFT, RIGHT, F, REACHES[s], REACHES[s + 1], CONDUCTING, MASKED,
                            )  # fmt: skip
                        if OF_TOKENS:
                            changes = products(changes, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[s + 1])
                        stepped = sums(states[s], changes, TY, TX, UP, DOWN, LEFT, RIGHT, REACHES[s], REACHES[s + 1])
                        states = states + (stepped,)
                moved = totals
                if APART:
                    moved = zeros(coefficients[0], 2 * P * TY * TX)
                for q in tl.static_range(S):  # step S - 1 - q
                    if LEARNING:
                        found = ()
                        for edge in tl.static_range(2 * P):
                            found = found + moved_along(
                                moved, edge * (TY * TX if APART else 1), states[S - 1 - q], grads, inside,
                                PAIRS[edge // 2 * 4] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                PAIRS[edge // 2 * 4 + 1] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                TY, TX, UP, DOWN, LEFT, RIGHT, F, REACHES[S - 1 - q], F - REACHES[S - q], APART, MASKED,
                            )  # fmt: skip
                        moved = found
                    scaled = grads
                    if OF_TOKENS:
                        scaled = products(grads, rates, TY, TX, UP, DOWN, LEFT, RIGHT, F, F - REACHES[S - q])
                    changes = zeros(grads[0], count(F - REACHES[S - 1 - q], TY, TX, UP, DOWN, LEFT, RIGHT))
                    for edge in tl.static_range(2 * P):
                        if PAIRS[edge // 2 * 4 + 2 + edge % 2] >= 0:
                            changes = flow_back(
                                changes, scaled, inside, coefficients[PAIRS[edge // 2 * 4 + 2 + edge % 2]],
                                conductances[PAIRS[edge // 2 * 4 + 2 + edge % 2]],
                                PAIRS[edge // 2 * 4] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                PAIRS[edge // 2 * 4 + 1] * DILATIONS[S - 1 - q] * (1 - edge % 2 * 2),
                                TY, TX, UP, DOWN, LEFT, RIGHT, F, F - REACHES[S - q], F - REACHES[S - 1 - q],
                                CONDUCTING, MASKED,
                            )  # fmt: skip
                    grads = sums(
                        grads, changes, TY, TX, UP, DOWN, LEFT, RIGHT, F - REACHES[S - q], F - REACHES[S - 1 - q]
                    )
                store(
                    g_x, grads, inside, y0, x0, D, W * D, D, channels, SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED
                )
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
                                g_conductance + PAIRS[edge // 2 * 4 + 2 + edge % 2], y0, x0, W, E,
                                SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, OF_TOKENS, CONDUCTING,
                            )  # fmt: skip
                        settled = settled + (total,)
                    moved = settled
                    if OF_CHANNELS:
                        store(
                            g_rate + (b * H * W * D + channels), of_rates, inside, y0, x0, D, W * D, D, channels,
                            SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F, MASKED,
                        )  # fmt: skip
                    elif OF_TOKENS:
                        store_sums(
                            g_rate + (block * B + b) * H * W, of_rates, inside, y0, x0, W, 1,
                            SY, SX, TY, TX, UP, DOWN, LEFT, RIGHT, F,
                        )  # fmt: skip
                if LEARNING:
                    totals = moved
    if LEARNING:
        for edge in tl.static_range(2 * P):
            if PAIRS[edge // 2 * 4 + 2 + edge % 2] >= 0:
                tl.store(g_weights + PAIRS[edge // 2 * 4 + 2 + edge % 2] * D, totals[edge], channels < D)
