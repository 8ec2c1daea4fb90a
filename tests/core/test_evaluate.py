"""Evaluation: exactly the first episodes, by the task's rule, the same jitted and on the host; lost policies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.evaluate import Evaluator
from core.rollout import JaxBatch
from core.types import ActOut
from envs.toys.base import follow, start
from tests.core.test_rollout import CARRY, act


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
            obs = start(jnp.zeros(2))
            return obs, obs

        def step(self, state, action, key):
            return follow(self.spec, state, state.state, 1.0, success=state.step == 1)

    return Flicker()


@pytest.mark.parametrize(("rule", "expected"), [("any", 1.0), ("last", 0.0)])
def test_success_by_the_rule_of_the_task(rule, expected):
    evaluator = Evaluator(constant, lambda num: (), JaxBatch(counting_spec(rule), 2), 1, 2)
    got = evaluator(jnp.zeros((1, 2)), [0])
    assert (got.success == expected).all()
    assert (got.ret == 4).all()
