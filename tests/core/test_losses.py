"""Shared losses: closed forms, and shapes that must not broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.losses import awr_weight, ensemble_mse, expectile, mse, td_target

RNG = np.random.default_rng(0)


def test_td_target():
    reward, value = jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0])
    np.testing.assert_allclose(td_target(reward, jnp.array([False, True]), value, 0.5), [6.0, 2.0])


def test_ensemble_mse_is_a_sum_of_means():
    q, y = RNG.normal(size=(2, 7)), RNG.normal(size=7)
    wanted = np.square(q[0] - y).mean() + np.square(q[1] - y).mean()
    assert float(ensemble_mse(jnp.asarray(q), jnp.asarray(y))) == pytest.approx(wanted, rel=1e-6)
    assert float(mse(jnp.asarray(q[0]), jnp.asarray(y))) == pytest.approx(np.square(q[0] - y).mean(), rel=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    column, row = jnp.zeros((5, 1)), jnp.zeros(5)
    for call in (
        lambda: mse(column, row),
        lambda: ensemble_mse(jnp.zeros((2, 5)), column),
        lambda: ensemble_mse(jnp.zeros((2, 5, 1)), row),
        lambda: td_target(column, row, row, 0.9),
        lambda: td_target(row, row, column, 0.9),
    ):
        with pytest.raises(ValueError, match="shapes differ"):
            call()


def test_expectile():
    error = jnp.asarray(RNG.normal(size=50))
    np.testing.assert_allclose(expectile(error, 0.5), np.square(error) / 2, rtol=1e-6)
    # the constant that minimises it balances the two sides: tau sum (x - v)+ = (1 - tau) sum (v - x)+
    sample, tau, v = jnp.asarray(RNG.exponential(size=1000)), 0.9, 0.0
    slope = jax.jit(jax.grad(lambda v: expectile(sample - v, tau).mean()))
    for _ in range(400):
        v -= 0.5 * float(slope(v))
    above, below = np.maximum(sample - v, 0).sum(), np.maximum(v - sample, 0).sum()
    assert tau * above == pytest.approx((1 - tau) * below, rel=1e-3)


def test_awr_weight_saturates():
    np.testing.assert_allclose(awr_weight(jnp.array([0.0, 0.5, 1e4]), 2.0), [1, np.e, 100], rtol=1e-5)
    assert float(jax.grad(lambda a: awr_weight(a, 10.0))(1e4)) == 0
