"""The circular replay: keeps the newest, and n-step windows stop at ends and at the newest step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import batches, replay
from core import dataset as ds
from core.config import ConfigError
from core.types import EnvSpec, Observation, Transition

SPEC = EnvSpec("toy/line", (1,), 1)
B, T, C = 2, 3, 12  # a ring of six steps
GAMMA = 0.5


def line(first, length, ends=()):
    """Steps number first, first + 1, ...: state = step + slot / 10, reward = step; truncated at `ends`."""
    step = (first + np.arange(length))[:, None] + np.arange(B) / 10
    step = step.astype(np.float32)
    over = np.isin(np.floor(step), ends)
    obs, after = (
        Observation(x[..., None], np.zeros((length, B, 0), np.float32), x * 0, np.zeros((length, B), np.int32))
        for x in (step, step + 1)
    )
    return Transition(obs, step[..., None] / 100, np.floor(step), after, over & False, over, {"log_prob": step}, step)


@pytest.fixture(scope="module")
def ring():
    add = jax.jit(replay.add)
    made = replay.empty(SPEC, B, T, C)
    for first in (0, 3, 6):
        made = add(made, line(first, T, ends=(5,)))
    return made


def test_the_oldest_steps_are_overwritten(ring):
    t = replay.transitions(ring, jnp.arange(C))
    assert sorted(np.floor(t.obs.state[:, 0]).tolist()) == sorted([3, 4, 5, 6, 7, 8] * 2)
    np.testing.assert_allclose(t.next_obs.state, t.obs.state + 1)
    np.testing.assert_allclose(t.action, t.obs.state / 100, rtol=1e-6)
    assert t.success == ()


def test_only_what_is_filled_is_drawn():
    made = replay.add(replay.empty(SPEC, B, T, C), line(0, T))
    sample = batches.sampled(500)
    data = replay.view(made, ds.identity_norm(1, 1))
    drawn = np.unique(sample(data, jax.random.key(0)).obs.state)
    np.testing.assert_allclose(drawn, [0, 0.1, 1, 1.1, 2, 2.1], rtol=1e-6)


def test_n_step_windows_stop_at_ends_and_at_the_newest(ring):
    t = replay.transitions(ring, jnp.arange(C), steps=4, discount=GAMMA)
    for i in range(C):
        step, slot = int(t.obs.state[i, 0]), i % B
        last = min(step + 3, 5 if step <= 5 else 8)  # the episode ends at 5, the newest step is 8
        np.testing.assert_allclose(t.reward[i], sum(GAMMA**k * (step + k) for k in range(last - step + 1)), rtol=1e-6)
        np.testing.assert_allclose(t.next_obs.state[i, 0], last + 1 + slot / 10, rtol=1e-6)
        np.testing.assert_allclose(t.extras["discount"][i], GAMMA ** (last - step + 1))
        assert bool(t.truncated[i]) == (last == 5)


def test_a_dataset_gives_the_same_n_step_transitions():
    state = np.arange(6, dtype=np.float32)[:, None]
    episode = ds.from_lengths(state, state / 100, state[:, 0], np.arange(6) == 4, np.array([5]))
    data = batches.data(episode, ds.identity_norm(1, 1))
    t = batches.transitions(data.dataset, data.dataset.row, steps=3, discount=GAMMA)
    np.testing.assert_allclose(t.reward, [0 + 0.5 + 0.5, 1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4])
    np.testing.assert_allclose(t.next_obs.state[:, 0], [3, 4, 5, 5, 5])
    np.testing.assert_allclose(t.extras["discount"], [0.125, 0.125, 0.125, 0.25, 0.5])
    assert t.terminated.tolist() == [False, False, True, True, True]
    np.testing.assert_allclose(t.action[:, 0], state[:5, 0] / 100)


@pytest.mark.parametrize(("where", "ended"), [(True, [True, True]), (np.array([False, True]), [False, True])])
def test_a_cut_ends_the_newest_steps(ring, where, ended):
    t = replay.cut(ring, where).transition
    newest = np.floor(t.obs.state[:, 0]) == 8
    assert t.truncated[newest].tolist() == ended
    np.testing.assert_array_equal(t.truncated[~newest], ring.transition.truncated[~newest])


def test_a_ring_that_cannot_hold_a_rollout_is_refused(ring):
    with pytest.raises(ConfigError, match="cannot hold 3 steps of 2"):
        replay.empty(SPEC, B, T, 5)
    with pytest.raises(ValueError, match="do not fill"):
        replay.add(ring, line(0, 4))
