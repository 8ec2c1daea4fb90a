"""Rollouts: jitted equals host, successors survive resets, memory is renewed where an episode begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.rollout import RolloutState, host_rollout, rollout
from core.types import ActOut

B, T = 3, 25
CARRY = lambda num: jnp.zeros(num, jnp.int32)  # noqa: E731  counts the steps of an episode


def act(state, obs, carry, key):
    """A noisy policy that remembers how often it acted, and records it."""
    noise = 0.1 * jax.random.normal(key, (obs.state.shape[0], 2))
    return ActOut(jnp.tanh(obs.state[:, :2] * state) + noise, carry + 1, {"acted": carry + 1})


@pytest.fixture(scope="module")
def both():
    """The same rollout jitted and on the host."""
    batch = envs.make("toy/match", B)
    env, obs = batch.reset(7)
    start = RolloutState(env, obs, CARRY(B))
    _, jitted = jax.jit(rollout(act, CARRY, batch, T))(jnp.float32(0.5), start, jax.random.key(1))
    host = envs.make("toy/match", B, envs.Options(host=True))
    start = RolloutState((), host.reset(7), CARRY(B))
    _, hosted = host_rollout(act, CARRY, host, T)(jnp.float32(0.5), start, jax.random.key(1))
    return jax.tree.map(np.asarray, jitted), hosted


def test_jitted_and_host_rollouts_agree_exactly(both):
    jitted, hosted = both
    assert jax.tree.structure(jitted) == jax.tree.structure(hosted)
    jax.tree.map(np.testing.assert_array_equal, jitted, hosted)
    assert jitted.reward.shape == (T, B)


def test_the_successor_survives_the_reset(both):
    t, _ = both
    over = t.terminated | t.truncated
    assert over.sum() == 2 * B  # at steps 10 and 20
    np.testing.assert_array_equal(t.next_obs.state[:-1][~over[:-1]], t.obs.state[1:][~over[:-1]])
    ended = np.argwhere(over)
    assert (t.next_obs.step[over] == 10).all()
    for step, slot in ended:
        np.testing.assert_array_equal(t.next_obs.state[step, slot], t.obs.state[step, slot])  # the same state stays
        assert t.obs.step[step + 1, slot] == 0
        assert not np.array_equal(t.obs.state[step + 1, slot], t.obs.state[step, slot])  # a new episode, a new state


def test_memory_is_renewed_where_an_episode_begins(both):
    t, _ = both
    np.testing.assert_array_equal(t.extras["acted"], t.obs.step + 1)


def test_the_successor_is_the_state_after_the_action():
    """On pointmass, where every step moves the state: next_obs of step t is obs of t + 1, also across no reset."""
    batch = envs.make("toy/pointmass", 2, envs.Options(max_steps=4))
    env, obs = batch.reset(3)
    push = lambda state, obs, carry, key: ActOut(jnp.full((2, 2), 0.5), carry)  # noqa: E731
    _, t = rollout(push, lambda num: (), batch, 9)(0, RolloutState(env, obs, ()), jax.random.key(0))
    moved = np.asarray(t.next_obs.state)
    assert (moved != t.obs.state).any(-1).all()
    for k in range(8):
        over = bool(t.truncated[k].any())
        assert over == (k % 4 == 3)
        np.testing.assert_array_equal(np.array_equal(moved[k], t.obs.state[k + 1]), not over)
        velocity = np.asarray(t.obs.state[k])[:, 2:] + 0.1 * 0.5
        np.testing.assert_allclose(moved[k][:, 2:], velocity, rtol=1e-5)


def test_rewards_and_steps_of_observations(both):
    t, _ = both
    begins = t.obs.step == 0
    assert (t.obs.reward[begins] == 0).all()
    np.testing.assert_array_equal(t.next_obs.reward, t.reward)


def test_no_key_is_used_twice():
    batch = envs.make("toy/match", 2)
    with jax.debug_key_reuse(True):
        env, obs = jax.jit(batch.reset)(np.array([3, 4], np.uint32))
        start = RolloutState(env, obs, CARRY(2))
        jax.jit(rollout(act, CARRY, batch, 12))(jnp.float32(0.5), start, jax.random.key(1))
