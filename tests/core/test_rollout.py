"""Rollouts and evaluation: jitted equals host, successors survive resets, memory is renewed, episodes are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.evaluate import Evaluator
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


def constant(state, obs, carry, key):
    return ActOut(jnp.broadcast_to(state, (obs.state.shape[0], 2)), carry)


@pytest.fixture(scope="module", params=["jitted", "host"])
def judged(request):
    """Two constant policies on match, 3 episodes in each of 2 slots."""
    on_host = request.param == "host"
    env = envs.make("toy/match", 4 if on_host else 2, envs.Options(host=on_host))
    evaluator = Evaluator(constant, lambda num: (), env, num_policies=2, episodes=3)
    states = jnp.array([[0.0, 0.0], [0.5, -0.5]])
    runs = [evaluator(states, seeds) for seeds in ([1, 1], [1, 1], [2, 9])]
    return evaluator, runs


def test_exactly_the_first_episodes_are_counted(judged):
    _, (first, again, other) = judged
    assert first.ret.shape == (2, 2, 3)
    assert (first.length == 10).all()
    np.testing.assert_array_equal(first.ret, again.ret)
    assert not np.array_equal(first.ret, other.ret)
    assert len(np.unique(first.ret[0])) == 6  # six different episodes


def test_the_same_seed_gives_every_policy_the_same_episodes(judged):
    """Equal policies with equal seeds score alike, with different seeds they do not."""
    evaluator, _ = judged
    states = jnp.array([[0.2, 0.2], [0.2, 0.2]])
    same, other = evaluator(states, [4, 4]).ret, evaluator(states, [4, 5]).ret
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], other[0])
    assert not np.isclose(other[0], other[1]).any()


def test_a_policy_that_is_not_finite_does_not_stop_the_others(judged):
    evaluator, (first, *_) = judged
    ret = evaluator(jnp.array([[0.0, 0.0], [np.nan, 0.0]]), [1, 1]).ret
    np.testing.assert_array_equal(ret[0], first.ret[0])
    assert np.isnan(ret[1]).all()


def test_the_policy_compiles_once(judged):
    evaluator, _ = judged
    assert evaluator._run._cache_size() == (1 if evaluator.jitted else 2)  # on the host the first step counts nothing


def test_both_evaluators_agree():
    results = []
    for on_host in (False, True):
        env = envs.make("toy/pointmaze", 2, envs.Options(host=on_host, max_steps=30))
        evaluator = Evaluator(act, CARRY, env, num_policies=1, episodes=2)
        results.append(evaluator(jnp.ones((1,)), [3], task=[1, 2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


@pytest.mark.parametrize("task", ["toy/value", "toy/pointmaze"])
def test_actions_that_are_not_finite_are_seen_where_the_reward_hides_them(task):
    def bad(state, obs, carry, key):
        return ActOut(jnp.full((2, *envs.make(task).spec.action_shape), state), carry)

    if envs.make(task).spec.num_actions:
        pytest.skip("discrete actions are always finite")
    for on_host in (False, True):
        env = envs.make(task, 2, envs.Options(host=on_host, max_steps=0))
        judged = Evaluator(bad, lambda num: (), env, 1, 1)(jnp.array([np.nan]), [0])
        assert np.isnan(judged.ret).all()


def test_an_interrupted_evaluation_gives_nothing():
    env = envs.make("toy/match", 2, envs.Options(host=True))
    evaluator = Evaluator(constant, lambda num: (), env, 1, 1)
    asked = []
    evaluator.interrupted = lambda: asked.append(0) or len(asked) > 3
    assert evaluator(jnp.zeros((1, 2)), [0]) is None
    assert len(asked) == 4


def counting_spec(rule):
    class Flicker:
        """Success holds at step 2 of 4 only."""

        spec = envs.make("toy/match").spec._replace(max_steps=4, success=rule)

        def reset(self, key, task):
            from envs.toys.base import start

            obs = start(jnp.zeros(2))
            return obs, obs

        def step(self, state, action, key):
            from envs.toys.base import follow

            return follow(self.spec, state, state.state, 1.0, success=state.step == 1)

    return Flicker()


@pytest.mark.parametrize(("rule", "expected"), [("any", 1.0), ("last", 0.0)])
def test_success_by_the_rule_of_the_task(rule, expected):
    from core.rollout import JaxBatch

    evaluator = Evaluator(constant, lambda num: (), JaxBatch(counting_spec(rule), 2), 1, 2)
    got = evaluator(jnp.zeros((1, 2)), [0])
    assert (got.success == expected).all()
    assert (got.ret == 4).all()
