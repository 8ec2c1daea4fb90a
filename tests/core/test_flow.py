"""Flow matching: grids, Euler's steps and each regression against NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core import chain, flow
from core.config import ConfigError, UnknownName

RNG = np.random.default_rng(0)
B, H, A = 6, 2, 3
X0, X1 = RNG.normal(size=(2, B, H, A)).astype(np.float32)
T = RNG.uniform(0, 0.9, B).astype(np.float32)


def wide(u):
    return np.asarray(u)[..., None, None]


def constant(value):
    return lambda x, t, span: jnp.full_like(x, value)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_grids(steps):
    np.testing.assert_allclose(flow.grid(steps), np.arange(steps) / steps, atol=1e-7)
    np.testing.assert_allclose(flow.grid(steps, "inclusive"), np.linspace(0, 1, steps), atol=1e-7)
    assert flow.grid(steps)[0] == flow.grid(steps, "inclusive")[0] == 0


def test_bad_grids():
    with pytest.raises(UnknownName, match="inclusive"):
        flow.grid(4, "inclusiv")
    with pytest.raises(ConfigError, match="at least 1"):
        flow.grid(0)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_constant_velocity_adds_itself(steps):
    step = flow.euler(lambda x, t, span, k: (jnp.full_like(x, 0.3), 0.0), flow.grid(steps))
    states, law = jax.jit(lambda x: chain.sample(step, x, np.zeros((B, steps, H, A), np.float32)))(X0)
    np.testing.assert_allclose(states[:, -1], X0 + 0.3, rtol=1e-5, atol=1e-6)
    assert not law.std.any()


@pytest.mark.parametrize("kind", ["left", "inclusive"])
def test_euler_asks_for_its_times_and_clips_the_mean_only(kind):
    """v = 3 t - span + k + x, and a standard deviation of its own at each step."""
    steps, std = 4, np.float32([0.5, 0.1, 0.7, 0.2])
    field = lambda x, t, span, k: ((3 * t - span + k)[..., None, None] + x, jnp.asarray(std)[k][..., None, None])  # noqa: E731
    normals = RNG.normal(size=(B, steps, H, A)).astype(np.float32) * 2
    step = flow.euler(field, flow.grid(steps, kind), limit=1.0)

    @jax.jit
    def both(x, normals):
        states, law = chain.sample(step, x, normals)
        return states, law, chain.moves(step, states)

    states, law, again = both(X0, normals)
    x, times = X0, np.arange(4) / 4 if kind == "left" else np.arange(4) / 3
    for k in range(steps):
        mean = np.clip(x + (3 * times[k] - 0.25 + k + x) / 4, -1, 1)
        x = mean + std[k] * normals[:, k]
        np.testing.assert_allclose(law.mean[:, k], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(states[:, k + 1], x, rtol=1e-5, atol=1e-5)
    assert np.abs(x).max() > 1.5
    np.testing.assert_allclose(again.mean, law.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_rectified(delta):
    fit = jax.jit(flow.rectified)(X0, X1, T, delta)
    np.testing.assert_allclose(fit.x, (1 - (1 - delta) * wide(T)) * X0 + wide(T) * X1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.target, X1 - (1 - delta) * X0, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fit.t, T)
    assert not fit.span.any()


def towards(x, t, span):
    """The velocity of a flow to the point X1, (X1 - x) / (1 - t); its paths are straight, so it is its own average."""
    return (X1 - x) / (1 - t)[:, None, None]


def test_a_point_mass_is_reached_at_the_velocity_that_is_fitted():
    step = flow.euler(lambda x, t, span, k: (towards(x, jnp.full(B, t), span), 0.0), flow.grid(7))

    @jax.jit
    def both(x):
        fit = flow.rectified(x, X1, T)
        states, _ = chain.sample(step, x, np.zeros((B, 7, H, A), np.float32))
        return fit, towards(*fit[:3]), states

    fit, velocity, states = both(X0)
    np.testing.assert_allclose(velocity, fit.target, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states[:, -1], X1, atol=1e-4)


def test_self_consistent_is_two_half_steps():
    exponent, index = np.array([0, 1, 1, 2, 3, 18]), np.array([0, 0, 1, 3, 5, 2**18 - 1])
    velocity = lambda x, t, span: 0.5 * x + (t - 2 * span)[:, None, None]  # noqa: E731
    fit = jax.jit(lambda b, j: flow.self_consistent(velocity, X0, X1, b, j, 0.01))(exponent, index)
    for i in range(B):
        d = 2.0 ** -exponent[i]
        t = index[i] * d
        x = (1 - 0.99 * t) * X0[i] + t * X1[i]
        v1 = 0.5 * x + t - 2 * d / 2
        v2 = 0.5 * (x + d / 2 * v1) + (t + d / 2) - 2 * d / 2
        np.testing.assert_allclose(fit.x[i], x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(fit.target[i], (v1 + v2) / 2, rtol=1e-5, atol=1e-5)
        assert (float(fit.t[i]), float(fit.span[i])) == (t, d)


def test_a_constant_field_is_self_consistent():
    """For every span and place."""
    b = np.arange(B) * 3
    fit = jax.jit(lambda b, j: flow.self_consistent(constant(0.7), X0, X1, b, j))(b, 2**b - 1)
    np.testing.assert_allclose(fit.target, 0.7, rtol=1e-6)


def test_draws_of_shortcuts():
    draw = jax.jit(lambda key, highest: flow.draw_shortcuts(key, 40_000, highest))
    exponent, index = (np.asarray(x) for x in draw(jax.random.key(1), 4))
    np.testing.assert_allclose(np.bincount(exponent) / 40_000, 0.2, atol=0.01)
    assert not index[exponent == 0].any()
    for b in range(1, 5):
        assert stats.chisquare(np.bincount(index[exponent == b], minlength=2**b)).pvalue > 1e-3
    exponent, index = (np.asarray(x) for x in draw(jax.random.key(2), 18))
    assert (index < 2**exponent).all()
    assert (index >= 0).all()
    assert exponent.max() == 18
    assert index.max() > 2**17


def test_mean_flow_is_its_derivative():
    """u = 2 x + 3 t - span: along the path at a fixed end du/dt = 2 v + 3 + 1."""
    until = T + RNG.uniform(0, 0.1, B).astype(np.float32)
    until[:2] = T[:2]
    velocity = lambda x, t, span: 2 * x + (3 * t - span)[:, None, None]  # noqa: E731
    fit = jax.jit(lambda t, until: flow.mean_flow(velocity, X0, X1, t, until))(T, until)
    v = X1 - X0
    np.testing.assert_allclose(fit.target, v + wide(until - T) * (2 * v + 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fit.target[:2], v[:2], rtol=1e-6)  # u(., t, t) = v
    np.testing.assert_allclose(fit.x, (1 - wide(T)) * X0 + wide(T) * X1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.span, until - T, atol=1e-7)


def test_straight_paths_are_their_own_mean_flow():
    """Where data are noise moved by a constant, and where all go to one point: u = v over any interval."""

    @jax.jit
    def both(t, until):
        point = flow.mean_flow(towards, X0, X1, t, until)
        return flow.mean_flow(constant(0.7), X0, X0 + 0.7, t, until), point, towards(*point[:3])

    shift, point, velocity = both(T, np.full_like(T, 0.95))
    np.testing.assert_allclose(shift.target, 0.7, rtol=1e-5)
    np.testing.assert_allclose(point.target, X1 - X0, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(velocity, point.target, rtol=1e-3, atol=1e-3)


def test_laws_of_time():
    laws = {
        "uniform": stats.uniform.cdf,
        "logitnormal": lambda t: stats.norm.cdf(np.log(t / (1 - t))),
        "beta": lambda t: 1 - stats.beta.cdf(1 - t / 0.999, 1.5, 1),
    }
    assert set(laws) == set(flow.TIMES)
    draws = jax.jit(lambda key: {name: law(key, (200_000,)) for name, law in flow.TIMES.items()})(jax.random.key(3))
    for name, cdf in laws.items():
        t = np.asarray(draws[name])
        assert stats.kstest(t, cdf).pvalue > 1e-3, name
        assert 0 <= t.min() <= t.max() < 1
    assert 0.998 < draws["beta"].max() <= 0.999  # never quite the data


def test_draws_of_intervals():
    """Two sorted draws of the law; a share of the ends falls on the beginning."""
    draw = jax.jit(lambda key: flow.draw_intervals(key, "uniform", 8000, 0.75))
    t, until = (np.asarray(x) for x in draw(jax.random.key(4)))
    assert (t <= until).all()
    assert np.mean(t == until) == pytest.approx(0.75, abs=0.02)
    assert stats.kstest(t, lambda u: 1 - (1 - u) ** 2).pvalue > 1e-3  # the lesser of two
    assert stats.kstest(until[until > t], lambda u: u**2).pvalue > 1e-3  # the greater
    with pytest.raises(UnknownName, match="logitnormal"):
        flow.draw_intervals(jax.random.key(4), "logit", 3, 0.5)
