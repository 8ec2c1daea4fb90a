"""The alias table against float64 probabilities, and its draws against a chi-square test."""

import jax
import numpy as np
import pytest

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
