"""What the tests of policies that act in chunks share: observations, toy/match in chunks of two, common checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import chain_bc
from core import dataset, loop
from core.config import ConfigError
from core.dataset import identity_norm
from core.types import Dataset, EnvSpec, Norm, Observation, Start, Transition
from tests.conftest import match_arrays

SPEC = EnvSpec("toy/match", (2,), 2, max_steps=10, chunk=2)
NORM = identity_norm(2, 2)
UNEVEN = Norm(*(np.asarray(x, np.float32) for x in ([0.3, -0.2], [2.0, 3.0], [0.1, 0.0], [0.5, 0.8])))
B, KEY = 6, jax.random.key(0)
# for programs that take longer to compile than to run
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def seen(state) -> Observation:
    """Observations of states [..., S] or of images uint8[..., H, W, C]."""
    lead = state.shape[:-3] if state.dtype == jnp.uint8 else state.shape[:-1]
    return Observation(jnp.asarray(state), jnp.zeros((*lead, 0)), jnp.zeros(lead), jnp.zeros(lead, jnp.int32))


def transitions() -> Transition:
    """B random steps; a third of them end the task, a third are cut."""
    rng = np.random.default_rng(0)
    action = jnp.asarray(rng.uniform(-1, 1, (B, 2, 2)), jnp.float32)
    now, after = (seen(rng.normal(size=(B, 2))) for _ in range(2))
    terminated, truncated = jnp.arange(B) % 3 == 0, jnp.arange(B) % 3 == 1
    return Transition(now, action, jnp.arange(B) + 1.0, after, terminated, truncated)


def same(a, b) -> bool:
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def after_one_step(algorithm):
    """(algorithm, its first state but for targets apart from the critics and a step of 1, jitted update)."""
    state = jax.jit(algorithm.init)(KEY, Start(NORM))
    target = jax.tree.map(lambda x: x + 0.1, state.critic_target)
    return algorithm, state._replace(critic_target=target, step=jnp.int32(1)), jax.jit(algorithm.update)


def cloned(net, **options):
    """(cloning, a first state of it with the norm UNEVEN and an average apart from the weights)."""
    cloning = chain_bc.make(chain_bc.Config(net=net, **options), SPEC)
    state = jax.jit(cloning.init)(jax.random.key(3), Start(UNEVEN))
    return cloning, state._replace(ema=jax.tree.map(lambda x: 0.9 * x, state.ema))


def match_episodes(number: int) -> Dataset:
    """Uniformly random actions in toy/match."""
    arrays = match_arrays(number)
    return dataset.from_lengths(*(arrays[k] for k in ("state", "action", "reward", "terminated", "length")))


def trained(algorithm, data, updates: int):
    """(state, metrics) of one seed after so many updates."""
    run, metrics = jax.jit(loop.epoch(algorithm, updates))(loop.begin(algorithm, Start(NORM), (0,)), data)
    return jax.tree.map(lambda x: x[0], run.algo), metrics


def check_targets(before, after, tau: float):
    """The critics' targets have gone `tau` of their way to the critics."""
    wanted = jax.tree.map(lambda old, q: (1 - tau) * old + tau * q, before.critic_target, after.critic.params)
    close(after.critic_target, wanted, rtol=1e-5, atol=1e-7)


def check_seeds(setting, t, rtol: float = 1e-4):
    """Of two seeds updated side by side with `t`, the second becomes what it becomes alone.

    Args: setting: (algorithm, state, jitted update).
    """
    (algorithm, state, update), keys = setting, jax.random.split(jax.random.key(5), 2)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    together, metrics = jax.jit(jax.vmap(algorithm.update, (0, None, 0)))(both, t, keys)
    alone, own = update(state, t, keys[1])
    close(jax.tree.map(lambda x: x[1], together), alone, rtol=rtol, atol=1e-5)
    for name in own:
        np.testing.assert_allclose(metrics[name][1], own[name], rtol=rtol, atol=1e-5)


def check_refused_tasks(make, config):
    for change, message in (({"goal_shape": (2,)}, "goals"), ({"obs_shape": (8, 8, 3)}, "images")):
        with pytest.raises(ConfigError, match=message):
            make(config, SPEC._replace(**change))
