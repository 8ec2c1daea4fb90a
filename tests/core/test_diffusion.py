"""Diffusion: the schedule, Bayes' posterior, DDIM's formulas, and a law that the exact denoiser must give back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import chain, diffusion
from core.config import ConfigError, UnknownName

RNG = np.random.default_rng(0)
X0, EPS = RNG.uniform(-1, 1, (6, 2, 3)).astype(np.float32), RNG.normal(size=(6, 2, 3)).astype(np.float32)
SCHEDULE = diffusion.cosine(20)


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_cosine(steps):
    """DPPO's schedule, from its formula; K + 1 in both places."""
    f = [np.cos((i / steps + 0.008) / 1.008 * np.pi / 2) ** 2 for i in np.arange(steps + 1)]
    beta = np.clip([1 - f[k + 1] / f[k] for k in range(steps)], 0, 0.999)
    schedule = diffusion.cosine(steps)
    np.testing.assert_allclose(schedule.beta, beta, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.bar, np.cumprod(1 - beta), rtol=2e-5, atol=1e-9)
    np.testing.assert_array_equal(schedule.before, [1, *schedule.bar[:-1]])
    assert (np.diff(schedule.bar) < 0).all()
    assert schedule.variance[0] == 0
    assert schedule.beta.dtype == np.float32


def test_cosine_needs_steps():
    with pytest.raises(ConfigError, match="at least 1"):
        diffusion.cosine(0)


@pytest.mark.parametrize("predicts", ["noise", "clean"])
def test_noising_and_back(predicts):
    k = np.array([0, 1, 5, 10, 15, 18])
    bar = SCHEDULE.bar[k][:, None, None]

    @jax.jit
    def both(x0):
        fit = diffusion.noised(SCHEDULE, x0, jnp.asarray(k), jnp.asarray(EPS), predicts)
        return fit, *(diffusion.clean(bar, fit.x, fit.target, predicts, limit) for limit in (2.0, 0.5))

    fit, whole, cut = both(X0)
    np.testing.assert_allclose(fit.x, np.sqrt(bar) * X0 + np.sqrt(1 - bar) * EPS, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fit.target, EPS if predicts == "noise" else X0)
    np.testing.assert_array_equal(fit.t, k)
    np.testing.assert_allclose(whole, X0, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cut, np.clip(X0, -0.5, 0.5), atol=1e-3)


def test_unknown_predictions():
    with pytest.raises(UnknownName, match="noise"):
        diffusion.noised(SCHEDULE, X0, np.zeros(6, int), EPS, "noize")


def bayes(k, x, x0):
    """Mean and variance of q(x_{k-1} | x_k, x_0): the product of two Gaussians in x_{k-1}, in float64."""
    beta, before = SCHEDULE.beta[k].astype(float), SCHEDULE.before[k].astype(float)
    prior, likelihood = 1 / (1 - before), (1 - beta) / beta  # precisions
    mean = (np.sqrt(before) * x0 * prior + x / np.sqrt(1 - beta) * likelihood) / (prior + likelihood)
    return mean, 1 / (prior + likelihood)


def test_ddpm_is_bayes():
    x = RNG.normal(size=X0.shape).astype(np.float32)
    step = jax.jit(diffusion.ddpm(SCHEDULE, lambda x, k: jnp.asarray(X0), "clean"))
    for j in (0, 7, 18):
        move, (mean, variance) = step(x, jnp.asarray(j)), bayes(19 - j, x, X0)
        np.testing.assert_allclose(move.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(move.std, np.sqrt(variance), rtol=1e-4)
        np.testing.assert_allclose(SCHEDULE.variance[19 - j], variance, rtol=1e-4)
    end = step(x, jnp.asarray(19))
    np.testing.assert_allclose(end.mean, X0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(end.std, 1e-10, rtol=1e-5)


@jax.jit
def both_predictions(k):
    x = diffusion.noised(SCHEDULE, jnp.asarray(X0), jnp.full(6, k), jnp.asarray(EPS)).x
    given = (("noise", EPS), ("clean", X0))
    return [diffusion.ddpm(SCHEDULE, lambda x, k, out=out: jnp.asarray(out), p)(x, 19 - k).mean for p, out in given]


def test_predictions_of_noise_and_of_the_clean_chunk_agree():
    for k in (0, 12, 17):
        one, other = both_predictions(k)
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_ddim_times():
    assert diffusion.ddim_times(20, 4).tolist() == [15, 10, 5, 0]
    assert diffusion.ddim_times(100, 5).tolist() == [80, 60, 40, 20, 0]
    assert diffusion.ddim_times(20, 6).tolist() == [15, 12, 9, 6, 3, 0]
    assert diffusion.ddim_times(5, 5).tolist() == [4, 3, 2, 1, 0]
    for count in (0, 21):
        with pytest.raises(ConfigError, match="1 to 20"):
            diffusion.ddim_times(20, count)


@pytest.mark.parametrize(("eta", "limit"), [(0.0, np.inf), (0.7, np.inf), (0.7, 0.4)])
def test_ddim_is_its_formula(eta, limit):
    # where it asks tells the times: the noise that it predicts is EPS + k / 100
    step = jax.jit(diffusion.ddim(SCHEDULE, lambda x, k: EPS + k / 100, 4, eta, limit=1.0, noise_limit=limit))
    x = RNG.normal(size=X0.shape).astype(np.float32)
    for j, k in enumerate((15, 10, 5, 0)):
        bar, before = float(SCHEDULE.bar[k]), float(SCHEDULE.bar[k - 5]) if k else 1.0
        x0 = np.clip((x - np.sqrt(1 - bar) * (EPS + k / 100)) / np.sqrt(bar), -1, 1)
        noise = np.clip((x - np.sqrt(bar) * x0) / np.sqrt(1 - bar), -limit, limit)
        std = max(eta * np.sqrt((1 - before) / (1 - bar) * (1 - bar / before)), 1e-10)
        move = step(x, j)
        mean = np.sqrt(before) * x0 + np.sqrt(max(1 - before - std**2, 0)) * noise
        np.testing.assert_allclose(move.mean, mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(move.std, std, rtol=1e-3)
    np.testing.assert_allclose(move.mean, x0, atol=1e-4)  # the end


def test_ddim_over_all_times_with_eta_1_is_ddpm():
    predict = lambda x, k: 0.3 * x  # noqa: E731
    one, other = diffusion.ddim(SCHEDULE, predict, 20, 1.0), diffusion.ddpm(SCHEDULE, predict)
    x = np.repeat(EPS[:, None], 20, axis=1)
    a, b = jax.jit(lambda x: [step(x, jnp.arange(20)[None]) for step in (one, other)])(x)
    np.testing.assert_allclose(a.std, b.std, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-3, atol=1e-3)


def test_the_exact_denoiser_gives_the_law_of_the_data_back():
    """Data N(0.4, 0.3^2): E[noise | x_k] is linear.  The variance is exact for many levels only."""
    mean, std, levels = 0.4, 0.3, 300
    schedule = diffusion.cosine(levels)

    def predict(x, k):
        bar = jnp.asarray(schedule.bar)[k][..., None, None]
        return jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * mean) / (bar * std**2 + 1 - bar)

    @jax.jit
    def ends(key):
        start, steps = jax.random.split(key)
        x, normals = jax.random.normal(start, (8192, 1, 1)), jax.random.normal(steps, (8192, levels, 1, 1))
        samplers = [diffusion.ddpm(schedule, predict, limit=np.inf)]
        samplers += [diffusion.ddim(schedule, predict, levels, eta, limit=np.inf) for eta in (0.0, 0.5)]
        return [chain.sample(step, x, normals)[0][:, -1] for step in samplers]

    for end in ends(jax.random.key(0)):
        assert np.mean(end) == pytest.approx(mean, abs=0.012)
        assert np.std(end) == pytest.approx(std, abs=0.012)


def test_a_point_is_reached():
    """Who knows the clean chunk arrives there, by way of the noise too."""

    def predict(x, k):
        bar = jnp.asarray(SCHEDULE.bar)[k]
        return (x - jnp.sqrt(bar) * X0) / jnp.sqrt(1 - bar)

    normals = RNG.normal(size=(6, 20, 2, 3)).astype(np.float32)

    @jax.jit
    def ends(x):
        ddpm, ddim = diffusion.ddpm(SCHEDULE, predict), diffusion.ddim(SCHEDULE, predict, 5, 0.5)
        return chain.sample(ddpm, x, normals)[0][:, -1], chain.sample(ddim, x, normals[:, :5])[0][:, -1]

    for end in ends(EPS):
        np.testing.assert_allclose(end, X0, atol=1e-4)
