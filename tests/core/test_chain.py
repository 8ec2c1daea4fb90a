"""Chains of Gaussians against a loop in NumPy and scipy's densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core import chain
from core.chain import Move

RNG = np.random.default_rng(0)
B, H, A = 5, 2, 3
SLOPE, SHIFT = RNG.normal(size=(2, 4)).astype(np.float32)
STD = np.float32([0.3, 0, 0.2, 0.05])
X = RNG.normal(size=(B, H, A)).astype(np.float32)
NORMALS = RNG.normal(size=(B, 4, H, A)).astype(np.float32) * 3


def affine(x, k):
    """mean = slope_k x + shift_k; one standard deviation for all coordinates."""
    slope, shift, std = (jnp.asarray(c)[k][..., None, None] for c in (SLOPE, SHIFT, STD))
    return Move(slope * x + shift, std)


def loop(normals, floor=(0, 0, 0, 0), clip=np.inf, last=np.inf):
    """(states, means, stds) of the chain from X, one step after the other."""
    states, means, stds = [X], [], []
    for k in range(normals.shape[1]):
        means.append(SLOPE[k] * states[-1] + SHIFT[k])
        stds.append(np.full_like(X, STD[k]))
        states.append(means[-1] + max(STD[k], floor[k]) * np.clip(normals[:, k], -clip, clip))
    states[-1] = np.clip(states[-1], -last, last)
    return (np.stack(x, 1) for x in (states, means, stds))


OPTIONS = [{}, {"clip": 1.0}, {"last": 0.5}, {"floor": np.float32([0.4, 0.1, 0.1, 0])}, {"floor": 0.25, "clip": 2.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
def test_sample_is_the_loop(options):
    states, law = jax.jit(lambda x, normals: chain.sample(affine, x, normals, **options))(X, NORMALS)
    each = {**options, "floor": np.broadcast_to(options.get("floor", 0), 4)}
    wanted, means, stds = loop(NORMALS, **each)
    np.testing.assert_allclose(states, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(law.mean, means, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(law.std, stds)  # what is reported has no floor
    if "clip" not in options and "last" not in options:
        assert np.abs(NORMALS).max() > 7  # nothing is cut unless asked for


def test_zero_normals_follow_the_means():
    states, law = jax.jit(lambda x: chain.sample(affine, x, np.zeros_like(NORMALS), last=0.5))(X)
    np.testing.assert_array_equal(states[:, 1:-1], law.mean[:, :-1])
    np.testing.assert_array_equal(states[:, -1], np.clip(law.mean[:, -1], -0.5, 0.5))
    np.testing.assert_array_equal(states[:, 0], X)


@pytest.mark.parametrize("steps", [1, 4])
def test_moves_are_what_sample_drew_from(steps):
    @jax.jit
    def both(x, normals):
        states, law = chain.sample(affine, x, normals, floor=0.1, clip=3.0, last=1.0)
        return states, law, chain.moves(affine, states), chain.moves(affine, states.at[:, 0].add(0.1))

    states, law, again, other = both(X, NORMALS[:, :steps])
    assert states.shape == (B, steps + 1, H, A)
    assert again.mean.shape == again.std.shape == (B, steps, H, A)
    np.testing.assert_allclose(again.mean, law.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(again.std, law.std)
    moved = np.abs(other.mean - law.mean).max((0, 2, 3))  # another state moves its own step's law only
    np.testing.assert_allclose(moved, np.eye(steps)[0] * 0.1 * abs(SLOPE[0]), rtol=1e-3, atol=1e-6)


def test_log_density_is_scipys():
    x, mean, std = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(4, 5)), np.exp(RNG.normal(size=5))
    ours = jax.jit(chain.log_density)(x, mean, std)
    np.testing.assert_allclose(ours, stats.norm.logpdf(x, mean, std), rtol=1e-4, atol=1e-5)
