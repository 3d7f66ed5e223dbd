"""Are the tests and intervals right? Against published worked examples, other libraries, and simulated studies."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests

from results import statistics
from results.notes import bold_means, can_show
from results.summary import summarise

# Darwin's maize: cross- less self-fertilised, eighths of an inch (Fisher 1935, The Design of Experiments, 17)
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
STUDIES = 1_000
NAN = float("nan")


def at_most(alarms: int, studies: int = STUDIES, level: float = 0.05) -> bool:
    """Whether so many false alarms are in keeping with `level` (one-sided binomial, 1 in 1000 of being wrong)."""
    return stats.binom.sf(alarms - 1, studies, level) > 0.001


# --- published examples and other libraries -----------------------------------------------------


def test_darwins_maize_by_student_and_by_fisher() -> None:
    interval = statistics.t_interval(MAIZE)
    assert interval.estimate == pytest.approx(314 / 15)
    assert statistics.t_test(MAIZE) == pytest.approx(0.0497, abs=5e-5)
    assert (interval.low, interval.high) == pytest.approx((0.03, 41.84), abs=0.005)
    # Fisher counts 863 of 32 768 assignments with as large a sum, and as many with as small a one
    assert statistics.sign_flip(MAIZE) == pytest.approx(2 * 863 / 2**15)


def test_wilcoxons_own_data() -> None:
    """The same plants, as in Wilcoxon 1945 and in scipy's manual: statistic 24, p 0.0413."""
    assert statistics.wilcoxon(MAIZE) == pytest.approx(0.041259765625)
    assert stats.wilcoxon(MAIZE).pvalue == pytest.approx(0.041259765625)


@pytest.mark.parametrize("n", [2, 5, 9, 13])
def test_sign_flip_and_signed_ranks_are_scipys(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.5, 1, (4, n))
    for row in differences:
        theirs = stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert statistics.sign_flip(row) == pytest.approx(theirs)
    theirs = stats.wilcoxon(differences, axis=1, method="exact").pvalue
    assert statistics.wilcoxon(differences) == pytest.approx(theirs)
    assert statistics.t_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0, axis=1).pvalue)


def test_ties_and_zeros_are_exact() -> None:
    row = np.array([0, 1, 1, 2, -2, 3, 3, -1, 0, 4])
    kept = row[row != 0]
    ranks = stats.rankdata(np.abs(kept))
    sums = [np.dot(signs, ranks) for signs in itertools.product([1, -1], repeat=len(kept))]
    observed = abs(np.dot(np.sign(kept), ranks))
    assert statistics.wilcoxon(row) == pytest.approx(np.mean(np.abs(sums) >= observed - 1e-9))
    assert statistics.wilcoxon([0.0, 0.0]) == 1
    assert statistics.sign_flip([0.1, 0.1, 0.1 + 1e-17]) == 0.25  # rounding makes no difference


def test_what_is_missing_is_left_out_and_nothing_is_nan() -> None:
    rows = np.array([[1.0, NAN, 2, 3], [NAN, NAN, NAN, 1], [NAN] * 4])
    assert statistics.sign_flip(rows) == pytest.approx([0.25, 1, NAN], nan_ok=True)
    assert statistics.wilcoxon(rows) == pytest.approx([0.25, 1, NAN], nan_ok=True)
    interval = statistics.t_interval(rows)
    assert interval.estimate == pytest.approx([2, 1, NAN], nan_ok=True)
    assert interval.low == pytest.approx([2 - 4.302653 / np.sqrt(3), NAN, NAN], nan_ok=True)


def test_the_smallest_p_is_what_equal_signs_give() -> None:
    for n in (1, 3, 10, 16):
        assert statistics.sign_flip(np.arange(1.0, n + 1)) == statistics.smallest_p(n) == 2.0 ** (1 - n)
    assert statistics.sign_flip(np.arange(1.0, 25)) >= statistics.smallest_p(24) == 1 / 65_536
    assert np.isnan(statistics.smallest_p(0))
    assert [statistics.pairs_needed(comparisons) for comparisons in (1, 6, 25)] == [6, 8, 10]


def test_beyond_16_pairs_random_signs_come_near_the_exact_p(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = statistics.sign_flip(MAIZE)
    monkeypatch.setattr(statistics, "EXACT_PAIRS", 10)
    assert statistics.sign_flip(MAIZE) == pytest.approx(exact, abs=4 * np.sqrt(exact / statistics.DRAWS))
    assert statistics.sign_flip(MAIZE) == statistics.sign_flip(MAIZE)


def test_holm_is_statsmodels() -> None:
    # Holm's steps by hand: 0.005 x 4, 0.01 x 3, then 0.03 x 2 = 0.06, which 0.04 x 1 may not undercut
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    p = np.random.default_rng(0).random((5, 8)) ** 3
    assert statistics.holm(p) == pytest.approx(np.array([multipletests(row, method="holm")[1] for row in p]))
    assert statistics.holm([0.01, NAN, 0.04]) == pytest.approx([0.02, NAN, 0.04], nan_ok=True)


def answered(both: int, ours: int, theirs: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    right = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, ours, theirs, neither], axis=0).astype(bool)
    return right[:, 0], right[:, 1]


def test_mcnemars_test_of_published_tables() -> None:
    # airway hyper-responsiveness of 21 children (Bentur et al. 2009), p of Fagerland, Lydersen and Laake 2013
    assert statistics.mcnemar(*answered(1, 1, 7, 12))[2:] == pytest.approx((0.070, 0.039), abs=5e-4)
    # approval of the prime minister, 1600 voters asked twice (Agresti 1990): 150 and 86 changed their minds
    ours, theirs, exact, mid = statistics.mcnemar(*answered(794, 150, 86, 570))
    assert (ours, theirs) == (150, 86)
    assert exact == pytest.approx(their_mcnemar([[794, 150], [86, 570]], exact=True).pvalue)
    assert mid < exact < 1e-4
    assert statistics.mcnemar(*answered(5, 0, 0, 5))[2:] == (1, 1)


def test_the_bootstrap_is_scipys() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.random((3, 500)) < 0.8, random.random((3, 500)) < 0.76
    boot = statistics.bootstrap(ours, theirs)
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    scipys = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, rng=random)
    assert boot.estimate == pytest.approx(difference.mean())
    assert (boot.low, boot.high) == pytest.approx(tuple(scipys.confidence_interval), abs=0.0015)
    error = difference.std() / np.sqrt(500)
    assert boot.p == pytest.approx(2 * stats.norm.sf(difference.mean() / error), rel=0.15)
    assert statistics.bootstrap(ours, ours).p == 1


def test_the_pilot_plant_of_box_hunter_and_hunter() -> None:
    """2^3 factors (1978, 10.2): temperature 23, concentration -5, catalyst 1.5; interactions are half of ours."""
    y = np.array([60, 72, 54, 68, 52, 83, 45, 80.0]).reshape(2, 2, 2).T[None]  # temperature changes fastest
    effects = [statistics.main_effects(y, axis)[0].item() for axis in range(3)]
    assert effects == pytest.approx([23, -5, 1.5])
    pairs = [statistics.pair_effects(y, a, b)[0].item() / 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    assert pairs == pytest.approx([1.5, 10, 0])


def test_effects_of_many_levels_are_contrasts_by_seed_and_know_missing_cells() -> None:
    y = np.random.default_rng(0).normal(size=(5, 3, 2, 4))
    contrasts, cells = statistics.main_effects(y, 0)
    assert contrasts == pytest.approx(np.stack([(y[:, i] - y[:, 0]).mean(axis=(1, 2)) for i in (1, 2)]))
    assert (cells == 8).all()
    pairs, _ = statistics.pair_effects(y, 2, 0)
    expected = (y[:, 2, :, 3] - y[:, 0, :, 3] - y[:, 2, :, 0] + y[:, 0, :, 0]).mean(axis=1)
    assert pairs[2, 1] == pytest.approx(expected)
    y[0, 1, 0, 0] = np.nan
    contrasts, cells = statistics.main_effects(y, 0)
    left = (y[0, 1] - y[0, 0]).ravel()[1:]
    assert (contrasts[0, 0], cells[0, 0], cells[1, 0]) == (pytest.approx(left.mean()), 7, 8)
    y[0, 1] = np.nan
    assert np.isnan(statistics.main_effects(y, 0)[0][0, 0])


def test_a_floor_is_told_from_a_result() -> None:
    assert statistics.at_floor([0.1, 0.12, 0.2, NAN], 0.1, [1000, 1000, 1000, 1000]).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert statistics.at_floor([0.15], 0.1, [20]).all()  # 3 of 20 may be luck
    assert not statistics.at_floor([0.1], [NAN], [1000]).any()


# --- simulated studies --------------------------------------------------------------------------


def test_under_the_null_one_comparison_in_twenty_alarms_at_most() -> None:
    random = np.random.default_rng(1)
    skewed = random.exponential(size=(STUDIES, 10)) - random.exponential(size=(STUDIES, 10))
    for differences in (random.normal(size=(STUDIES, 10)), skewed):
        for test in (statistics.sign_flip, statistics.wilcoxon, statistics.t_test):
            assert at_most(int((test(differences) <= 0.05).sum()))
    many = random.normal(size=(STUDIES, 20))  # the Monte Carlo test
    alarms = int((statistics.sign_flip(many) <= 0.05).sum())
    assert at_most(alarms)
    assert alarms > 25  # and it is not merely deaf
    interval = statistics.t_interval(random.normal(size=(STUDIES, 3)))
    assert at_most(int(((interval.low > 0) | (interval.high < 0)).sum()))


def of_seeds(*tables: tuple[int, int, int, int]) -> float:
    ours, theirs = zip(*(answered(*table) for table in tables), strict=True)
    return statistics.mcnemar_over_seeds(np.stack(ours), np.stack(theirs))


def test_mcnemars_test_over_seeds_knows_directions() -> None:
    up, down = (900, 60, 20, 20), (900, 20, 60, 20)
    alone = statistics.mcnemar(*answered(*up))[3]
    assert alone < 1e-5
    assert of_seeds(up) == of_seeds(down) == pytest.approx(alone)
    assert of_seeds(up, up, up) == of_seeds(down, down, down) == pytest.approx(alone)
    assert of_seeds(up, up, down) == of_seeds(up, down) == 1  # seeds that contradict each other are no difference
    weaker = (900, 50, 30, 20)
    assert of_seeds(up, up, weaker) == pytest.approx(statistics.mcnemar(*answered(*weaker))[3])


def test_under_the_null_bootstrap_and_mcnemar_keep_their_level() -> None:
    random = np.random.default_rng(2)
    boots, exact, mid, seeds = [], [], [], []
    for _ in range(STUDIES):
        hard = random.random(400) * 0.6 + 0.2  # an example is as hard for both
        ours, theirs = random.random((2, 3, 400)) < hard
        boots.append(statistics.bootstrap(ours, theirs, draws=1_000).p)
        test = statistics.mcnemar(ours[0], theirs[0])
        exact.append(test[2])
        mid.append(test[3])
        seeds.append(statistics.mcnemar_over_seeds(ours, theirs))
    for p in (boots, exact, mid, seeds):
        assert at_most(int((np.array(p) <= 0.05).sum()))


def test_the_bootstrap_draws_sources_where_examples_share_them() -> None:
    random = np.random.default_rng(3)
    source = np.repeat(np.arange(60), 10)
    shared, naive = [], []
    for _ in range(STUDIES // 2):  # examples of one source are right or wrong together
        ours, theirs = np.repeat(random.random((2, 3, 60)) < 0.8, 10, axis=2)
        shared.append(statistics.bootstrap(ours, theirs, draws=500, source=source).p)
        naive.append(statistics.bootstrap(ours, theirs, draws=500).p)
    assert at_most(int((np.array(shared) <= 0.05).sum()), STUDIES // 2)
    assert np.mean(np.array(naive) <= 0.05) > 0.3
    ours, theirs = random.random((2, 3, 400)) < 0.8
    alone = statistics.bootstrap(ours, theirs, source=np.arange(400))
    plain = statistics.bootstrap(ours, theirs)
    assert (alone.low, alone.high, alone.p) == pytest.approx((plain.low, plain.high, plain.p), abs=0.01)


def test_a_known_effect_is_found_as_often_as_theory_says() -> None:
    """Power of the paired t test by the noncentral t; the sign-flip test comes near it (Hoeffding 1952)."""
    n, effect = 10, 1.0
    differences = np.random.default_rng(3).normal(effect, 1, (STUDIES, n))
    critical, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    spread = 3.3 * np.sqrt(power * (1 - power) / STUDIES)
    assert (statistics.t_test(differences) <= 0.05).mean() == pytest.approx(power, abs=spread)
    interval = statistics.t_interval(differences)
    assert (interval.low > 0).mean() == pytest.approx(power, abs=spread)
    assert (statistics.sign_flip(differences) <= 0.05).mean() == pytest.approx(power, abs=spread + 0.03)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    interval = statistics.t_interval(np.random.default_rng(4).normal(2, 1, (STUDIES, 4)))
    covered = ((interval.low < 2) & (interval.high > 2)).mean()
    assert covered == pytest.approx(0.95, abs=3.3 * np.sqrt(0.95 * 0.05 / STUDIES))


def simulated(studies: int, arms: int, seeds: int, better: float = 0.0) -> pd.DataFrame:
    """Studies as panels of one frame: a reference and other arms of one normal distribution, one of them `better`."""
    values = np.random.default_rng(5).normal(size=(studies, arms, seeds))
    values[:, 1] += better
    study, arm, seed = (axis.ravel() for axis in np.indices(values.shape))
    labels = [f"{i}: {j}" for i in range(studies) for j in range(arms)]
    codes = study * arms + arm
    frame = pd.DataFrame({"arm": pd.Categorical.from_codes(codes, labels, ordered=True), "seed": seed})
    frame["reference"] = [f"{i}: 0" for i in study]
    return frame.assign(status="done", reason="", **{"test.loss": values.ravel()})


def test_a_whole_column_alarms_in_one_study_of_twenty_at_most() -> None:
    """Through the summary itself: family-wise over four comparisons with one reference, Holm-corrected."""
    summary = summarise(simulated(STUDIES, 5, 10), "test.loss", "max")
    alarms = int((summary["p_holm"] <= 0.05).groupby(summary["reference"]).any().sum())
    assert at_most(alarms)
    assert (summary["p"] <= 0.05).groupby(summary["reference"]).any().sum() > 100  # uncorrected it would alarm often
    # and of arms that are all the same, seldom is one said to be worse than the best
    tied = summary["tied"].groupby(summary["reference"]).all()
    assert tied.mean() > 0.85


def test_a_clear_winner_is_bold_alone_and_few_seeds_make_nobody_equal() -> None:
    summary = summarise(simulated(50, 4, 12, better=5.0), "test.loss", "max")
    assert (summary["tied"] == summary["best"]).mean() > 0.97
    assert summary.loc[summary["tied"], "arm"].astype(str).str.endswith(": 1").all()
    few = summarise(simulated(50, 4, 3), "test.loss", "max")
    assert (few["tied"] == few["best"]).all()
    assert not can_show(few)
    assert "3 pairs can attain no p below 0.25" in bold_means(few)[0]
    assert "1 pair can attain no p below 1 " in bold_means(summarise(simulated(1, 4, 1), "test.loss", "max"))[0]
    assert "it takes 7 seeds" in bold_means(few)[0]
    assert can_show(summary)
    assert "the smallest attainable before correction is 0.00049" in bold_means(summary)[0]
