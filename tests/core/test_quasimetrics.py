"""Quasimetrics: their axioms, and the union of intervals against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import quasimetrics
from core.config import ConfigError

X, Y, Z = np.random.default_rng(0).normal(size=(3, 200, 32)).astype(np.float32)
METRICS = {"iqe": lambda x, y: quasimetrics.iqe(x, y, 0.3), "mrn": quasimetrics.mrn}


@pytest.mark.parametrize("name", METRICS)
def test_axioms(name):
    d = jax.jit(METRICS[name])
    assert np.abs(d(X, X)).max() <= 2e-6  # the root's floor
    assert (d(X, Y) >= 0).all()
    assert (d(X, Z) <= d(X, Y) + d(Y, Z) + 1e-5).all()
    assert not np.allclose(d(X, Y), d(Y, X))


def brute(low, high):
    """Length of a union: between neighbouring ends, where some interval lies."""
    ends = np.sort(np.concatenate([low, high]))
    middle = (ends[1:] + ends[:-1]) / 2
    inside = ((low[:, None] < middle) & (middle < high[:, None])).any(axis=0)
    return ((ends[1:] - ends[:-1]) * inside).sum()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_union_of_intervals(size):
    rng = np.random.default_rng(size)
    low, high = rng.normal(size=(2, 300, size))
    low[::7] = np.round(low[::7])  # ties
    high[::5, 0] = low[::5, 0]
    ours = quasimetrics.union_length(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))
    np.testing.assert_allclose(ours, [brute(a, b) for a, b in zip(low, high, strict=True)], atol=2e-5)


def test_the_slope_of_a_union():
    """1 at the ends of what it covers, 0 inside and where an interval is empty."""
    low, high = jnp.array([0.0, 1.0, 5.0, 9.0]), jnp.array([2.0, 3.0, 6.0, 8.0])
    slopes = jax.grad(quasimetrics.union_length, argnums=(0, 1))(low, high)
    np.testing.assert_allclose(slopes[0], [-1, 0, -1, 0])
    np.testing.assert_allclose(slopes[1], [0, 1, 1, 0])


def test_mixed_components():
    x, y = jnp.zeros(16), jnp.concatenate([jnp.full(8, 1.0), jnp.full(8, 3.0)])
    assert float(quasimetrics.iqe(x, y, jnp.float32(0.25))) == pytest.approx(0.25 * 2 + 0.75 * 3)
    assert float(quasimetrics.mrn(jnp.array([3.0, 4.0, -1.0, 2.0]), jnp.zeros(4))) == pytest.approx(5 + 2)
    assert float(quasimetrics.mrn(jnp.array([0.0, 0.0, -1.0, -2.0]), jnp.zeros(4))) == pytest.approx(0, abs=2e-6)


def test_refused():
    with pytest.raises(ConfigError, match="by 8 numbers"):
        quasimetrics.iqe(X[:, :12], Y[:, :12], 0.5)
    with pytest.raises(ConfigError, match="odd"):
        quasimetrics.mrn(X[:, :3], Y[:, :3])
