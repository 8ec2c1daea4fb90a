"""The alias table against float64 probabilities, and its draws against a chi-square test."""

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from core import sampling

rng = np.random.default_rng(0)
WEIGHTS = {
    "random": rng.random(1000),
    "sharp": np.exp(10 * rng.random(100_000)),
    "heavy tail": rng.pareto(0.5, 10_000),
    "one row": np.r_[np.zeros(999), 1.0],
    "equal": np.ones(7),
    "zeros between": np.r_[1.0, np.zeros(5), 2, 0, 3],
    "single": np.ones(1),
    "equal, rounded down": np.full(49, 0.3),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_table_holds_the_probabilities(name):
    weight = WEIGHTS[name]
    got = sampling.probabilities(sampling.alias_table(weight))
    np.testing.assert_allclose(got, weight / weight.sum(), rtol=1e-6, atol=0)


def test_draws_follow_the_probabilities():
    """Over 10^6 sharply weighted rows, where a float32 cumulative sum loses the tail; counted in 1,000 groups."""
    n, draws = 10**6, 10**7
    p = np.exp(10 * np.sort(rng.random(n)))
    p /= p.sum()
    table = jax.tree.map(jax.numpy.asarray, sampling.alias_table(p))
    group = np.arange(n) // 1000
    drawn = np.asarray(sampling.draw(table, jax.random.key(1), (draws,)))
    expected = draws * np.bincount(group, p)
    chi2 = ((np.bincount(group[drawn], minlength=1000) - expected) ** 2 / expected).sum()
    assert abs(chi2 - 999) < 5 * np.sqrt(2 * 999)


def test_tables_of_few_different_weights():
    """Cells of exactly the mean weight give nothing: a light one before them is topped up by a later one."""
    for seed in range(300):
        some = np.random.default_rng(seed)
        weight = np.append(some.integers(0, 4, some.integers(1, 30)), 1.0)
        got = sampling.probabilities(sampling.alias_table(weight))
        np.testing.assert_allclose(got, weight / weight.sum(), rtol=1e-6, atol=0)


def test_the_table_is_over_runs_of_equal_weights():
    """As many cells as episodes, none for what is never drawn; and draws by chi-square."""
    count = np.array([1, 3, 2, 1000, 40, 7])
    weight = np.repeat([2.0, 0.0, 0.5, 0.001, 0.03, 1.0], count)
    table = sampling.alias_table(weight)
    assert table.keep.shape == table.alias.shape == (5,)
    assert table.first.tolist() == [0, 4, 6, 1006, 1046]
    assert table.count.tolist() == [1, 2, 1000, 40, 7]
    p = weight / weight.sum()
    np.testing.assert_allclose(sampling.probabilities(table), p, rtol=1e-6)
    drawn = np.asarray(sampling.draw(jax.tree.map(jax.numpy.asarray, table), jax.random.key(0), (1000, 1000)))
    seen = np.bincount(drawn.ravel(), minlength=len(p))
    assert not seen[p == 0].any()
    assert chisquare(seen[p > 0], 1e6 * p[p > 0]).pvalue > 1e-4


def test_integers_below_a_bound_are_exact_products():
    some = np.random.default_rng(0)
    ends = np.array([0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1], np.uint32)
    high, low, n = (np.r_[some.integers(0, 2**32, 300, np.uint32), ends, ends[::-1]] for _ in range(3))
    n = np.minimum(n, 2**31 - 1).astype(np.uint32)
    found = sampling._below(*map(jax.numpy.asarray, (high, low, n)))
    exact = [(int(h) * 2**32 + int(l)) * int(m) >> 64 for h, l, m in zip(high, low, n, strict=True)]
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 7.0])
def test_equal_weights_of_any_number(value):
    for n in range(1, 400):
        np.testing.assert_allclose(sampling.probabilities(sampling.alias_table(np.full(n, value))), 1 / n, rtol=1e-6)


def test_a_partly_filled_table_is_drawn_from_its_filled_part():
    table = sampling.uniform(100)._replace(size=jax.numpy.int32(7))
    assert set(np.asarray(sampling.draw(table, jax.random.key(0), (1000,)))) == set(range(7))


def test_uniform_is_uniform():
    np.testing.assert_array_equal(sampling.probabilities(sampling.uniform(5)), np.full(5, 0.2))


@pytest.mark.parametrize("bad", [[1.0, -1.0], [1.0, np.nan], [0.0, 0.0], [np.inf, 1.0], [[1.0]]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match="sampling weights"):
        sampling.alias_table(bad)
