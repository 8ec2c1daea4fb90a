"""Intervals against closed forms."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import bootstrap, iqm, mean, mean_se, stratified, summary, wilson


def test_wilson_solves_its_quadratic():
    """The ends are where (p_hat - p)^2 = z^2 p (1 - p) / n."""
    for successes, n in [(0, 10), (3, 10), (50, 100), (100, 100)]:
        for p in wilson(successes, n):
            assert (successes / n - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)


def test_bootstrap_of_equal_episodes_redraws_seeds():
    """With seeds at 0 and 1 and no noise the mean of k redrawn seeds is binomial: its quantiles are known."""
    scores = np.repeat([[0.0], [0.0], [1.0], [1.0]], 7, axis=1)
    assert bootstrap(scores) == (0.0, 1.0)
    assert bootstrap(np.full((4, 5), 0.3)) == pytest.approx((0.3, 0.3))
    rng = np.random.default_rng(0)
    low, high = bootstrap(rng.normal(0, 1, (200, 1)))
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.15)


def test_standard_errors():
    assert mean_se([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert np.isnan(mean_se([1.0])[1])
    assert np.isnan(mean_se([])[0])


def test_iqm_cuts_a_quarter_rounded_down_at_each_end():
    """By hand for n = 3 to 8, in any order, and along the last axis as `scipy.stats.trim_mean(x, 0.25)`."""
    by_hand = {
        3: (1 + 2 + 4) / 3,
        4: 3.0,
        5: (2 + 4 + 8) / 3,
        6: (2 + 4 + 8 + 16) / 4,
        7: 62 / 5,
        8: (4 + 8 + 16 + 32) / 4,
    }
    rng = np.random.default_rng(0)
    for n, wanted in by_hand.items():
        assert iqm(rng.permutation(2.0 ** np.arange(n))) == pytest.approx(wanted, abs=1e-12)
    scores = rng.normal(size=(5, 11))
    np.testing.assert_allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=1), atol=1e-12)


def test_interval_of_the_iqm_of_ones_and_zeros_is_binomial():
    """Of 12 redrawn values Binomial(12, 1/2) are 1; the IQM is the share of ones among the middle 6."""
    low, high = (np.clip(stats.binom(12, 0.5).ppf(q) - 3, 0, 6) / 6 for q in (0.025, 0.975))
    assert stratified([[0.0, 1.0] * 6], draws=40_000) == (pytest.approx(low), pytest.approx(high))
    assert 0 == low < high == 1
    low, high = (stats.binom(12, 0.5).ppf(q) / 12 for q in (0.025, 0.975))
    assert stratified([[0.0, 1.0] * 6], mean, 40_000) == (pytest.approx(low), pytest.approx(high))


def test_seeds_are_redrawn_within_their_task():
    """Tasks that differ but do not vary have an interval without width; pooled they would not."""
    constant = [[0.0] * 5, [1.0] * 5]
    assert stratified(constant, mean) == (0.5, 0.5)
    assert stratified([constant[0] + constant[1]], mean) != (0.5, 0.5)
    assert summary(constant) == pytest.approx((0.5, 0.0, 0.5, 0.5, 0.5, 0.5))


def test_summary_by_hand():
    one = summary([[1.0, 2.0, 3.0, 10.0]])
    assert one[:4] == pytest.approx((4.0, np.sqrt(50 / 3 / 4), 2.5, 2.5))
    assert one.low <= one.iqm <= one.high
    three = summary([[0.0, 2.0], [10.0, 10.0, 10.0], [4.0, 8.0]])
    assert three.mean == pytest.approx(17 / 3)
    assert three.se == pytest.approx(np.sqrt(1 + 0 + 4) / 3)
    assert three.median == 6.0
    assert three.iqm == pytest.approx((4 + 8 + 10 + 2 + 10) / 5)


def test_nothing_is_claimed_from_one_seed_or_none():
    alone = summary([[3.0]])
    assert (alone.mean, alone.median, alone.iqm) == (3.0, 3.0, 3.0)
    assert np.isnan([alone.se, alone.low, alone.high]).all()
    assert np.isnan(summary([[1.0, 2.0], [3.0]])[4:]).all()
    assert np.isnan(summary([[1.0, 2.0], []])).all()
    assert np.isnan(summary([])).all()
