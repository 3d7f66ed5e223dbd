"""Is a difference more than chance? Intervals and tests of paired differences, as functions of arrays.

An array of differences (..., n) holds one value a pair (a seed, most often) in its last axis, NaN where a pair
lacks a result; every function works on all leading axes at once. Nothing here knows of arms, runs or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
EXACT_PAIRS = 16  # up to here every assignment of signs is tried, all 2^16 of them
DRAWS = 2**16 - 1  # beyond, so many random ones: the smallest p is then what 17 pairs would give
CHUNK = 2**18  # sums held at once, few enough for a processor's cache


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval, each of shape (...); NaN where there are too few pairs."""

    estimate: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Boot:
    """A difference of accuracies, its interval over examples, and two-sided p."""

    estimate: float
    low: float
    high: float
    p: float


def t_interval(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of the differences (..., n) and its interval by Student's t with n - 1 degrees of freedom (Student 1908)."""
    mean, error, n = _moments(differences)
    half = error * stats.t.ppf((1 + confidence) / 2, np.maximum(n - 1, 1))
    return Interval(mean, mean - half, mean + half)


def t_test(differences: ArrayLike) -> Floats:
    """Two-sided p (...) of the paired t test: the mean of the differences is 0, and they are normal (Student 1908)."""
    mean, error, n = _moments(differences)
    with np.errstate(divide="ignore", invalid="ignore"):  # equal differences: p is 0, or NaN where all are 0
        return np.asarray(2 * stats.t.sf(np.abs(mean / error), np.maximum(n - 1, 1)))


def sign_flip(differences: ArrayLike, seed: int = 0) -> Floats:
    """Two-sided p (...) of the sign-flip test: each difference was as likely to have the other sign.

    p is the share of all 2^n assignments of signs whose mean is at least as far from 0 as the one observed (Fisher
    1935, The Design of Experiments, 21). Beyond EXACT_PAIRS pairs, DRAWS assignments are drawn from `seed`, and
    the observed one counts as one more (Phipson and Smyth 2010), so that the test keeps its level.
    """
    differences = np.asarray(differences, float)
    flat = differences.reshape(-1, differences.shape[-1])
    present = np.isfinite(flat)
    counts = present.sum(axis=-1)
    p = np.full(len(flat), np.nan)
    for n in np.unique(counts[counts > 0]):
        rows = counts == n
        p[rows] = _sign_flip(flat[rows][present[rows]].reshape(-1, n), seed)
    return p.reshape(differences.shape[:-1])


def smallest_p(pairs: ArrayLike) -> Floats:
    """The smallest p that `sign_flip` and `wilcoxon` can give: 2^(1 - n), all of n pairs having one sign."""
    pairs = np.asarray(pairs, float)
    return np.where(pairs > 0, np.maximum(2.0 ** (1 - pairs), 1 / (DRAWS + 1)), np.nan)


def pairs_needed(comparisons: int, level: float = 0.05) -> int:
    """How many pairs a sign-flip test needs so that one of so many comparisons can reach `level` after Holm."""
    return int(np.ceil(1 + np.log2(comparisons / level)))


def wilcoxon(differences: ArrayLike, seed: int = 0) -> Floats:
    """Two-sided p (...) of the signed-rank test (Wilcoxon 1945): the sign-flip test of the ranks of the sizes.

    Zeros are left out before ranking, as by Wilcoxon; ties share the mean of their ranks, and p stays exact with
    them (scipy's is exact only without). A row of zeros only has p = 1.
    """
    differences = np.asarray(differences, float)
    sizes = np.where(differences == 0, np.nan, np.abs(differences))
    ranks = stats.rankdata(sizes, axis=-1, nan_policy="omit")  # NaN where a size is
    signed = np.where(differences == 0, 0.0, np.sign(differences) * ranks)
    return sign_flip(signed, seed)


def holm(p: ArrayLike) -> Floats:
    """p (..., m) adjusted for m comparisons, step by step from the smallest (Holm 1979); NaN is no comparison."""
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaN last
    left = np.isfinite(p).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])  # hypotheses not yet rejected
    ordered = np.maximum.accumulate(np.take_along_axis(p, order, -1) * left, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(ordered, 1), -1)
    return np.where(np.isfinite(p), adjusted, np.nan)


def bootstrap(
    ours: ArrayLike,
    theirs: ArrayLike,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    source: ArrayLike | None = None,
) -> Boot:
    """Paired bootstrap over examples of the difference in accuracy; `ours`, `theirs`: right or wrong (seeds, examples).

    Examples are drawn with replacement, the same for both arms and all seeds (Efron and Tibshirani 1993, 8 and 13;
    for two systems on one test set Koehn 2004), so it says how far the difference depends on which examples were
    tested, the trained weights given. An example adds its difference averaged over the seeds, one of few values: a
    draw of examples is therefore a multinomial draw of how many have each value, which is fast. The interval is
    that of percentiles; p doubles the share of draws on the other side of 0, counting ties and one more.

    Where several examples were made of one `source` (examples,), sources are drawn instead, each with all of its
    examples (Davison and Hinkley 1997, 3.8): examples that share one are right or wrong together.
    """
    difference = np.mean(np.asarray(ours, float), axis=0) - np.mean(np.asarray(theirs, float), axis=0)
    random = np.random.default_rng(seed)
    if source is None:
        values, counts = np.unique(np.round(difference, 12), return_counts=True)
        n = counts.sum()
        means = random.multinomial(n, counts / n, size=draws) @ values / n
    else:
        _, of = np.unique(np.asarray(source), return_inverse=True)
        sizes, sums = np.bincount(of), np.bincount(of, weights=difference)
        drawn = random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
        means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Boot(float(difference.mean()), float(low), float(high), min(1.0, 2 * (tail + 1) / (draws + 1)))


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> tuple[int, int, float, float]:
    """How many examples only we have right, how many only they; exact and mid-p of McNemar's test.

    `ours` and `theirs` say of each example (n,) whether it is right. Given that they disagree, either is as likely
    to be the right one (McNemar 1947): a binomial test. Mid-p counts half the observed table's probability; it keeps
    its level nearly everywhere and has more power (Fagerland, Lydersen and Laake 2013).
    """
    ours, theirs = np.asarray(ours, bool), np.asarray(theirs, bool)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    exact = min(1.0, float(2 * stats.binom.cdf(fewer, n, 0.5)))
    mid = float(2 * stats.binom.cdf(fewer, n, 0.5) - stats.binom.pmf(fewer, n, 0.5))
    return only_ours, only_theirs, exact, min(1.0, mid)


def mcnemar_over_seeds(ours: ArrayLike, theirs: ArrayLike) -> float:
    """One two-sided p of McNemar's test at several seeds, ours and theirs (seeds, n); of one seed it is its mid-p.

    In each direction the largest of the one-sided mid-p: that there is a difference at every seed (Berger 1982). One
    seed that says otherwise is enough for none; it needs no independence of the seeds, which share their examples.
    """
    better, worse = [], []
    for a, b in zip(np.asarray(ours, bool), np.asarray(theirs, bool), strict=True):
        only_ours, only_theirs, _, _ = mcnemar(a, b)
        n = only_ours + only_theirs
        better.append(stats.binom.sf(only_ours, n, 0.5) + stats.binom.pmf(only_ours, n, 0.5) / 2)
        worse.append(stats.binom.sf(only_theirs, n, 0.5) + stats.binom.pmf(only_theirs, n, 0.5) / 2)
    return float(min(1.0, 2 * min(max(better), max(worse))))


def main_effects(y: ArrayLike, axis: int) -> tuple[Floats, NDArray[np.int64]]:
    """Effect of each level of a factor against its first, at each seed; y (seeds, levels of A, levels of B, ...).

    A difference is averaged over the cells of all other factors, blocked by seed (Fisher 1935, 37-41). A cell that
    is NaN is left out together with the cell it is compared with, at that seed. Returns the effects (levels - 1,
    seeds) and how many pairs of cells each is the mean of. `axis` counts factors from 0.
    """
    y = np.moveaxis(np.asarray(y, float), axis + 1, 0)
    return _over_cells(y[1:] - y[:1])


def pair_effects(y: ArrayLike, first: int, second: int) -> tuple[Floats, NDArray[np.int64]]:
    """What two factors do together beyond the sum of their effects, at each seed (levels a - 1, levels b - 1, seeds).

    The difference of differences y(a, b) - y(a0, b) - y(a, b0) + y(a0, b0), against the first level of each
    (for two levels it is twice Yates' interaction, 1937). Cells and counts as in `main_effects`.
    """
    y = np.moveaxis(np.asarray(y, float), (first + 1, second + 1), (0, 1))
    return _over_cells(y[1:, 1:] - y[:1, 1:] - y[1:, :1] + y[:1, :1], lead=2)


def at_floor(accuracy: ArrayLike, floor: ArrayLike, examples: ArrayLike, level: float = 0.05) -> NDArray[np.bool_]:
    """Whether an accuracy over so many examples is not significantly above a floor (one-sided exact binomial test)."""
    accuracy, floor, examples = (np.asarray(a, float) for a in (accuracy, floor, examples))
    p = stats.binom.sf(np.round(accuracy * examples) - 1, examples, floor)
    return np.asarray(np.isfinite(p) & (p > level))


def _moments(differences: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Mean, standard error and number of the differences that are there; NaN where there is none, or only one."""
    differences = np.asarray(differences, float)
    present = np.isfinite(differences)
    n = present.sum(axis=-1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(present, differences, 0).sum(axis=-1) / n
        squares = (np.where(present, differences - mean[..., None], 0) ** 2).sum(axis=-1)
        return mean, np.where(n > 1, np.sqrt(squares / (n - 1) / n), np.nan), n


def _sign_flip(rows: Floats, seed: int) -> Floats:
    """p of each row (m, n), without NaN."""
    n = rows.shape[1]
    exact = n <= EXACT_PAIRS
    if exact:  # flipping all signs changes no distance from 0, so the first is left as it is
        signs = 1.0 - 2.0 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, (DRAWS, n))
    # a sum that equals the observed one but for rounding is as far from 0
    observed = np.abs(rows.sum(axis=1)) - 1e-12 * np.abs(rows).sum(axis=1)
    as_far = np.zeros(len(rows))
    for columns in np.array_split(np.arange(len(rows)), max(1, len(rows) // 64)):
        for part in np.array_split(signs, max(1, len(signs) * len(columns) // CHUNK)):
            as_far[columns] += (np.abs(part @ rows[columns].T) >= observed[columns]).sum(axis=0)
    return as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)


def _over_cells(contrasts: Floats, lead: int = 1) -> tuple[Floats, NDArray[np.int64]]:
    """Contrasts (levels, seeds, other levels, ...), as many leading axes as `lead` -> means (levels, seeds), counts."""
    contrasts = contrasts.reshape(*contrasts.shape[: lead + 1], -1)
    present = np.isfinite(contrasts)
    counts = present.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(present, contrasts, 0).sum(axis=-1) / counts, counts
