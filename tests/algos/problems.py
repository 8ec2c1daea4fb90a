"""What the tests of algorithms share: small datasets and batches, one with a known answer, and comparisons."""

import jax
import jax.numpy as jnp
import numpy as np

from core import dataset
from core.types import EnvSpec, Observation, Transition

SPEC = EnvSpec("test", (3,), 2)
NORM = dataset.identity_norm(3, 2)


def random_dataset(seed=0, episodes=6, length=20):
    rng = np.random.default_rng(seed)
    rows = episodes * (length + 1)
    state = rng.normal(1, 2, (rows, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    lengths = np.full(episodes, length)
    return dataset.from_lengths(
        state, action, rng.normal(size=rows).astype(np.float32), rng.random(rows) < 0.1, lengths
    )


def random_batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    s, ns = (jnp.asarray(rng.normal(size=(size, 3)), jnp.float32) for _ in range(2))
    a = jnp.asarray(rng.uniform(-1, 1, (size, 2)), jnp.float32)
    r = jnp.asarray(rng.normal(size=size), jnp.float32)
    none = jnp.zeros(size)

    def seen(state):
        return Observation(state, jnp.zeros((size, 0)), none, none.astype(jnp.int32))

    return Transition(seen(s), a, r, seen(ns), jnp.asarray(rng.random(size) < 0.3), none.astype(bool))


def same(a, b):
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def adam_steps(net):
    states = jax.tree.leaves(net.opt, is_leaf=lambda x: hasattr(x, "mu"))
    return int(next(x.count for x in states if hasattr(x, "mu")))


def match_problem(n=4000, seed=0):
    """One-step episodes: reward -|a - s/2|^2; the behaviour is off by (0.3, -0.3) with noise 0.3."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-1, 1, (2 * n, 2)).astype(np.float32)
    a = np.clip(s / 2 + np.array([0.3, -0.3]) + rng.normal(0, 0.3, s.shape), -1, 1).astype(np.float32)
    r = -np.square(a - s / 2).sum(1).astype(np.float32)
    return dataset.from_lengths(s, a, r, np.ones(2 * n, bool), np.ones(n, np.int32))
