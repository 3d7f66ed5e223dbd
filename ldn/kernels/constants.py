"""What the diffusion kernels know when they are compiled: the constants of a launch, and where rows are in tuples.

PASS holds all of them as text (`ldn.kernels.march.as_text`); n is the number of a window. Tokens are named (i, j) by
their distance to the first of the turn's new ones in the program's first column.
"""

from __future__ import annotations

import triton


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
