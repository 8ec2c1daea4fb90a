"""Densities against scipy, closed forms and numerical integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core.distributions import Gaussian, TanhGaussian, squashed_std

RNG = np.random.default_rng(0)
MEAN, LOG_STD = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3)) * 0.5
GRID = np.tanh(np.linspace(-12, 12, 200_001))  # actions, dense where the density is steep


def test_gaussian_is_scipys():
    x, std = RNG.normal(size=(5, 3)), np.exp(LOG_STD)
    law = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    np.testing.assert_allclose(law.log_prob(jnp.asarray(x)), stats.norm.logpdf(x, MEAN, std).sum(-1), rtol=2e-5)
    np.testing.assert_allclose(law.entropy(), stats.norm.entropy(MEAN, std).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(law.mode(), MEAN, rtol=1e-6)
    np.testing.assert_allclose(law.sample(jnp.asarray(x)), MEAN + std * x, rtol=1e-5, atol=1e-6)


def test_gaussian_with_a_shared_log_std():
    law = Gaussian(jnp.asarray(MEAN), jnp.zeros(()))
    np.testing.assert_allclose(law.entropy(), stats.norm.entropy(MEAN, 1).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(law.log_prob(law.mean), np.full(5, -1.5 * np.log(2 * np.pi)), rtol=1e-5)


def test_gaussian_sample_axes():
    draws = RNG.normal(size=(7, 5, 3))
    law = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    x = law.sample(jnp.asarray(draws))
    many = law.log_prob(x)
    assert many.shape == (7, 5)
    np.testing.assert_allclose(many[3], law.log_prob(x[3]), rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    law = Gaussian(jnp.zeros((5, 3)), jnp.zeros(3))
    for shape in ((5, 1), (1, 3), (3,), (2, 5, 1)):
        with pytest.raises(ValueError, match="shapes differ"):
            law.log_prob(jnp.zeros(shape))
    with pytest.raises(ValueError, match="shapes differ"):
        TanhGaussian(*law).log_prob(jnp.zeros((5, 1)))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.3)])
def test_tanh_density_integrates(mean, log_std):
    """The density over actions has mass 1, the mean that sampling gives, and the entropy estimate is unbiased."""
    with jax.enable_x64(True):
        law = TanhGaussian(jnp.full((1,), mean), jnp.full((1,), log_std))
        density = np.exp(np.asarray(law.log_prob(jnp.arctanh(jnp.asarray(GRID))[:, None])))
        integral = lambda f: np.trapezoid(f * density, GRID)  # noqa: E731
        assert integral(1) == pytest.approx(1, abs=1e-4)
        normal = jnp.asarray(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000))[:, None]
        action, u = law.sample(normal)
        assert integral(GRID) == pytest.approx(float(action.mean()), abs=1e-4)
        entropy = -integral(np.log(np.maximum(density, 1e-300)))
        assert float(law.entropy(normal).mean()) == pytest.approx(entropy, abs=1e-3)
        np.testing.assert_allclose(law.log_prob_action(action[50_000]), law.log_prob(u[50_000]), rtol=1e-10)


def test_tanh_density_is_the_change_of_variables():
    u = RNG.normal(size=(5, 3))
    wanted = (stats.norm.logpdf(u, MEAN, np.exp(LOG_STD)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    law = TanhGaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    np.testing.assert_allclose(law.log_prob(jnp.asarray(u)), wanted, rtol=2e-5)
    np.testing.assert_allclose(law.mode(), np.tanh(MEAN), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("u", [-40.0, -12.0, 12.0, 40.0])
def test_tanh_density_far_out_in_float32(u):
    """log(1 - tanh(u)^2) = 2 log 2 - 2|u| there; the naive form gives log 0.  Gradients stay finite as well."""

    def log_prob(u):
        return TanhGaussian(jnp.zeros(1), jnp.zeros(1)).log_prob(u)

    wanted = -0.5 * u**2 - 0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - abs(u))
    assert float(log_prob(jnp.array([u]))) == pytest.approx(wanted, rel=1e-6)
    assert float(jax.grad(log_prob)(jnp.array([u]))[0]) == pytest.approx(-u + 2 * np.sign(u), rel=1e-6)


def test_saturated_actions_are_moved_by_eps():
    law = TanhGaussian(jnp.zeros(1), jnp.zeros(1))
    at = lambda a, eps: float(law.log_prob_action(jnp.array([a]), eps))  # noqa: E731
    assert at(1.0, 1e-3) == at(0.9995, 1e-3) == at(0.999, 1e-3)
    assert at(1.0, 1e-3) == pytest.approx(at(-1.0, 1e-3))
    assert np.isfinite(at(1.0, 1e-6))
    assert at(1.0, 1e-6) != at(1.0, 1e-3)
    assert at(0.5, 1e-3) == at(0.5, 1e-6)


def test_squashed_std():
    std = squashed_std(jnp.array([-50.0, 0.0, 50.0]), 0.1, 0.24)
    np.testing.assert_allclose(std, [0.1, np.sqrt(0.1 * 0.24), 0.24], rtol=1e-6)


def test_squashed_std_with_bounds_that_change():
    """Bounds may be arrays, traced too: a schedule moves the upper one."""
    raw, low, high = np.array([-0.7, 0.3]), np.array([0.1, 0.2]), np.array([0.24, 0.3])
    wanted = np.exp(np.log(low) + np.log(high / low) * (np.tanh(raw) + 1) / 2)
    np.testing.assert_allclose(jax.jit(squashed_std)(raw, low, high), wanted, rtol=1e-5)
    assert jax.jit(jax.vmap(squashed_std, (None, None, 0)))(raw, 0.1, high).shape == (2, 2)
    grid = np.asarray(squashed_std(jnp.linspace(-3, 3, 50), 0.1, 0.24))
    assert (np.diff(grid) > 0).all()
