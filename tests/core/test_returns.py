"""Advantages and n-step sums against plain loops; time limits bootstrap, ends cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from core.returns import gae, n_step

T, B = 40, 5
GAMMA, LAM = 0.9, 0.8


@pytest.fixture(scope="module")
def rollout():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, T, B)).astype(np.float32)
    terminated = rng.random((T, B)) < 0.1
    truncated = (rng.random((T, B)) < 0.1) & ~terminated
    return reward, value, next_value, terminated, truncated


def test_gae_equals_the_sum_of_its_definition(rollout):
    reward, value, next_value, terminated, truncated = rollout
    delta = reward + GAMMA * (1 - terminated) * next_value - value
    wanted = np.zeros((T, B))
    for t in range(T):
        for b in range(B):
            for k in range(t, T):
                wanted[t, b] += (GAMMA * LAM) ** (k - t) * delta[k, b]
                if terminated[k, b] or truncated[k, b]:
                    break
    np.testing.assert_allclose(gae(*map(jnp.asarray, rollout), GAMMA, LAM), wanted, rtol=1e-4, atol=1e-5)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    reward, never = jnp.ones((T, 1)), jnp.zeros((T, 1), bool)
    value = jnp.full((T, 1), 1 / (1 - GAMMA))  # of getting 1 for ever
    end = never.at[T // 2].set(True)
    np.testing.assert_allclose(gae(reward, value, value, never, end, GAMMA, LAM), 0, atol=1e-5)
    assert gae(reward, value, value, end, never, GAMMA, LAM)[T // 2, 0] == pytest.approx(1 - 1 / (1 - GAMMA))


def test_n_step_sums_stop_where_an_episode_does(rollout):
    reward = rollout[0][:6]
    going_on = np.random.default_rng(1).random((6, B)) < 0.7
    total, count = n_step(jnp.asarray(reward), jnp.asarray(going_on), GAMMA)
    for b in range(B):
        m = next((k + 1 for k in range(6) if not going_on[k, b]), 6)
        assert count[b] == m
        np.testing.assert_allclose(total[b], sum(GAMMA**k * reward[k, b] for k in range(m)), rtol=1e-5)


def test_shapes_must_agree(rollout):
    with pytest.raises(ValueError, match="shapes differ"):
        gae(*rollout[:2], rollout[2][0], *rollout[3:], GAMMA, LAM)
