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
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_table_holds_the_probabilities(name):
    weight = WEIGHTS[name]
    got = sampling.probabilities(sampling.alias_table(weight))
    np.testing.assert_allclose(got, weight / weight.sum(), rtol=1e-6, atol=0)


def test_draws_follow_the_probabilities():
    n, draws = 1000, 10**7
    p = np.exp(4 * rng.random(n))
    p /= p.sum()
    table = jax.tree.map(jax.numpy.asarray, sampling.alias_table(p))
    counts = np.bincount(sampling.draw(table, jax.random.key(1), (draws,)), minlength=n)
    chi2 = ((counts - draws * p) ** 2 / (draws * p)).sum()
    assert abs(chi2 - (n - 1)) < 5 * np.sqrt(2 * (n - 1))


def test_uniform_is_uniform():
    np.testing.assert_array_equal(sampling.probabilities(sampling.uniform(5)), np.full(5, 0.2))


@pytest.mark.parametrize("bad", [[1.0, -1.0], [1.0, np.nan], [0.0, 0.0], [np.inf, 1.0], [[1.0]]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match="sampling weights"):
        sampling.alias_table(bad)
