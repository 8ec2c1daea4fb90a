"""Running moments equal those of everything at once; reward scaling equals a plain loop."""

import jax.numpy as jnp
import numpy as np

from core import running

RNG = np.random.default_rng(0)


def test_moments_of_parts_are_those_of_the_whole():
    parts = [RNG.normal(3, 2, size=(n, 4, 2)).astype(np.float32) for n in (1, 7, 30)]
    seen = running.moments(2)
    for part in parts:
        seen = running.include(seen, jnp.asarray(part))
    whole = np.concatenate(parts).reshape(-1, 2)
    np.testing.assert_allclose(seen.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen.var, whole.var(0), rtol=1e-4)
    assert seen.count == len(whole)
    standard = running.standard(seen, whole, limit=1.0)
    np.testing.assert_allclose(standard, np.clip((whole - whole.mean(0)) / whole.std(0), -1, 1), atol=1e-4)


def test_nothing_seen_changes_nothing():
    x = jnp.asarray([[0.5, -3.0]])
    np.testing.assert_allclose(running.standard(running.moments(2), x), x, rtol=1e-6)


def test_rewards_are_divided_by_the_spread_of_the_discounted_return():
    reward = RNG.normal(size=(2, 20, 3)).astype(np.float32)
    over = RNG.random((2, 20, 3)) < 0.2
    scale, ret, seen = running.reward_scale(3), np.zeros(3), []
    for part in range(2):
        scale, scaled = running.scale_rewards(scale, jnp.asarray(reward[part]), jnp.asarray(over[part]), 0.9)
        for t in range(20):
            ret = 0.9 * ret + reward[part, t]
            seen.append(ret.copy())
            ret[over[part, t]] = 0
        np.testing.assert_allclose(scaled, reward[part] / np.std(seen), rtol=1e-4)
    np.testing.assert_allclose(scale.ret, ret, rtol=1e-4)


def test_reward_scaling_as_dppo_has_it():
    """A first count of 1e-4 for a variance of 1, and all squares divided by one less than their number."""
    reward = RNG.normal(size=(2, 20, 3)).astype(np.float32)
    over = RNG.random((2, 20, 3)) < 0.2
    scale, ret = running.reward_scale(3, count=1e-4), np.zeros(3)
    mean, var, count = 0.0, 1.0, 1e-4
    for part in range(2):
        scale, scaled = running.scale_rewards(scale, reward[part], over[part], 0.9, limit=2.0, ddof=1)
        seen = []
        for t in range(20):
            ret = 0.9 * ret + reward[part, t]
            seen.append(ret.copy())
            ret[over[part, t]] = 0
        delta, total = np.mean(seen) - mean, count + 60
        var = (var * count + np.var(seen) * 60 + delta**2 * count * 60 / total) / (total - 1)
        mean, count = mean + delta * 60 / total, total
        np.testing.assert_allclose(scale.seen, (mean, var, count), rtol=1e-4)
        np.testing.assert_allclose(scaled, np.clip(reward[part] / np.sqrt(var + 1e-8), -2, 2), rtol=1e-4)
