"""Rows, windows, statistics and refusals of datasets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import batches, sampling
from core import dataset as ds
from core.config import ConfigError
from core.rollout import JaxBatch
from core.types import EnvSpec
from envs.registry import Options
from envs.toys.base import follow, start
from envs.toys.host import HostFromJax
from envs.wrappers import wrap_host

LENGTH = np.array([2, 1, 4])


def small(dtype=np.float32):
    rows = int((LENGTH + 1).sum())
    state = np.arange(rows * 2, dtype=dtype).reshape(rows, 2)
    terminated = np.zeros(rows, bool)
    terminated[1] = True  # the first episode ends by itself, the others by the clock
    reward = np.arange(rows, dtype=np.float32)
    return ds.from_lengths(state, np.zeros((rows, 1), np.float32), reward, terminated, LENGTH)


def test_rows_are_those_with_a_successor():
    data = small()
    assert data.row.tolist() == [0, 1, 3, 5, 6, 7, 8]
    assert data.first.tolist() == [0, 0, 0, 3, 3, 5, 5, 5, 5, 5]
    assert data.last.tolist() == [2, 2, 2, 4, 4, 9, 9, 9, 9, 9]
    assert ((data.row + 1) <= data.last[data.row]).all()


def test_transitions_never_cross_an_episode():
    data = small()
    t = batches.transitions(data, jnp.asarray(data.row))
    np.testing.assert_array_equal(t.next_obs.state, data.state[data.row + 1])
    np.testing.assert_array_equal(t.obs.step, [0, 1, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(t.obs.reward, [0, 0, 0, 0, 5, 6, 7])
    np.testing.assert_array_equal(t.terminated, [0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(t.truncated, [0, 0, 1, 0, 0, 0, 1])
    assert t.obs.goal.shape == (7, 0)


def test_histories_repeat_the_first_frame():
    data = small()
    t = batch_of(data, [0, 1, 3, 7], history=3)
    frames = np.stack([data.state[[0, 0, 0]], data.state[[0, 0, 1]], data.state[[3, 3, 3]], data.state[[5, 6, 7]]])
    np.testing.assert_array_equal(t.obs.state, frames.reshape(4, 6))
    after = np.stack([data.state[[0, 0, 1]], data.state[[0, 1, 2]], data.state[[3, 3, 4]], data.state[[6, 7, 8]]])
    np.testing.assert_array_equal(t.next_obs.state, after.reshape(4, 6))
    norm = ds.norm(data, "standard")
    np.testing.assert_allclose(norm.state(t.obs.state)[:, 4:], norm.state(t.obs.state[:, 4:]))


def test_histories_of_pixels_join_channels():
    image = np.arange(3 * 2 * 2 * 1, dtype=np.uint8).reshape(3, 2, 2, 1)
    data = small()._replace(state=np.concatenate([image] * 4)[:10])
    t = batch_of(data, [1], history=2)
    np.testing.assert_array_equal(t.obs.state[0], np.concatenate([data.state[0], data.state[1]], -1))


def batch_of(data, rows, history):
    return batches.transitions(jax.tree.map(jnp.asarray, data), jnp.asarray(rows), history)


def test_every_transition_is_drawn_under_its_own_row():
    data = small()
    t = batches.sampled(64)(batches.data(data, ds.norm(data)), jax.random.key(0))
    assert set(np.asarray(t.extras["row"])) == set(data.row)
    np.testing.assert_array_equal(data.action[t.extras["row"]], t.action)


def test_whole_chunks():
    data = small()
    assert ds.whole(data, 1).all()
    assert data.row[ds.whole(data, 2)].tolist() == [0, 5, 6, 7]
    assert data.row[ds.whole(data, 4)].tolist() == [5]
    assert not ds.whole(data, 5).any()


@pytest.mark.parametrize("history", [1, 2])
def test_chunks_are_a_loop(history):
    data = small()._replace(action=np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32))
    rows = data.row[ds.whole(data, 2)]
    t = jax.jit(lambda data, rows: batches.chunks(data, rows, 2, history))(data, rows)
    frames = lambda r: np.concatenate([data.state[max(r - i, data.first[r])] for i in reversed(range(history))])  # noqa: E731
    for i, r in enumerate(rows):
        np.testing.assert_array_equal(t.action[i], [data.action[r], data.action[r + 1]])
        np.testing.assert_array_equal(t.obs.state[i], frames(r))
        np.testing.assert_array_equal(t.next_obs.state[i], frames(r + 2))
        assert t.reward[i] == t.next_obs.reward[i] == data.reward[r] + data.reward[r + 1]
        assert (t.obs.step[i], t.next_obs.step[i]) == (r - data.first[r], r + 2 - data.first[r])
        assert t.terminated[i] == data.terminated[r + 1]
        assert t.truncated[i] == (r + 2 == data.last[r] and not data.terminated[r + 1])
    np.testing.assert_array_equal(t.terminated, [1, 0, 0, 0])
    np.testing.assert_array_equal(t.truncated, [0, 0, 0, 1])
    np.testing.assert_array_equal(t.extras["discount"], 1)


class Walk:
    """Actions add up; the task ends at the eighth step."""

    spec = EnvSpec("test/walk", (2,), 2, max_steps=10)

    def reset(self, key, task):
        obs = start(jnp.zeros(2))
        return obs, obs

    def step(self, state, action, key):
        return follow(self.spec, state, state.state + action, action[0], state.step == 7)


def test_chunks_are_what_a_chunked_task_returns():
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 3, 2)).astype(np.float32)
    plain, chunked = (wrap_host(HostFromJax(JaxBatch(Walk(), 3)), Options(chunk=size)) for size in (0, 4))
    plain.reset(0)
    steps = [plain.step(a) for a in actions]
    arrays = [np.zeros((27, *x.shape[1:]), x.dtype) for x in (steps[0].obs.state, actions[0], *steps[0][2:4])]
    for t, (action, ts) in enumerate(zip(actions, steps, strict=True)):
        for array, x in zip(arrays[1:], (action, ts.reward, ts.terminated), strict=True):
            array[t::9] = x
        arrays[0][t + 1 :: 9] = ts.final_obs.state
    data = jax.tree.map(jnp.asarray, ds.from_lengths(*arrays, np.full(3, 8)))
    obs, chunks = chunked.reset(0), jax.jit(lambda data, rows: batches.chunks(data, rows, 4))
    for first in (0, 4):
        t = chunks(data, jnp.arange(3) * 9 + first)
        chunk = np.moveaxis(actions[first : first + 4], 0, 1)
        ts = chunked.step(chunk)
        np.testing.assert_array_equal(t.action, chunk)
        np.testing.assert_array_equal(t.obs.state, obs.state)
        obs = ts.obs
        for ours, theirs in zip(t.next_obs, ts.final_obs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(t.reward, ts.reward, rtol=1e-6)
        np.testing.assert_array_equal(t.terminated, ts.terminated)
        np.testing.assert_array_equal(t.truncated, ts.truncated)
    assert ts.terminated.all()


def test_batches_of_chunks():
    data = small()
    sampler = sampling.alias_table(ds.whole(data, 2))
    on_device = batches.data(data, ds.norm(data), sampler)
    t = jax.jit(batches.sampled(64, chunk=2))(on_device, jax.random.key(0))
    assert t.action.shape == (64, 2, 1)
    assert set(np.asarray(t.extras["row"]).tolist()) == {0, 5, 6, 7}


def test_windows_stay_inside():
    rows, valid = batches.windows(small(), jnp.array([0, 3, 8]), before=1, after=2)
    np.testing.assert_array_equal(rows, [[0, 0, 1, 1], [3, 3, 3, 3], [7, 8, 8, 8]])
    np.testing.assert_array_equal(valid, [[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]])


def test_episode_statistics():
    of = ds.episodes(small())
    assert of.length.tolist() == [2, 1, 4]
    assert of.ret.tolist() == [0 + 1, 3, 5 + 6 + 7 + 8]


def test_equal_episodes_have_equal_returns():
    """Whatever stands before them: differences of one running sum would not be equal."""
    reward = np.tile(np.r_[np.random.default_rng(0).random(20), 9].astype(np.float32), 50)
    data = ds.from_lengths(np.zeros((1050, 1)), np.zeros((1050, 1)), reward, np.zeros(1050, bool), np.full(50, 20))
    assert np.ptp(ds.episodes(data).ret) == 0


def test_rewards_to_learn_from():
    data = small()
    ret = ds.episodes(data).ret
    r = data.reward.astype(np.float64)
    for options, expected in [
        ({"scale": 10000.0, "shift": -1.0}, 10000 * r - 1),
        ({"shift": -1.0}, r - 1),
        ({"span": 1000.0}, r * 1000 / (26 - 1)),
        ({"span": 1000.0, "scale": 0.1, "shift": 5.0}, r * 100 / 25 + 5),
        ({}, r),
    ]:
        found = ds.training_reward(data.reward, ret, **options)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-7)
    scaled = data._replace(reward=ds.training_reward(data.reward, ret, span=1000.0))
    assert np.ptp(ds.episodes(scaled).ret) == pytest.approx(1000, rel=1e-6)


@pytest.mark.parametrize(
    ("ret", "options", "message"),
    [
        ([3.0, 3.0], {"span": 1000.0}, "all episodes have the return 3; leave it at 0"),
        ([1.0, 3.0], {"span": -1.0}, "reward_range -1 must be at least 0"),
        ([1.0, 3.0], {"scale": 0.0}, "reward_scale 0 another than 0"),
        ([1.0, 3.0], {"scale": 1e39}, "leave float32"),
        ([1.0, 1.0 + 1e-30], {"span": 1.0}, "all episodes have the return 1"),
    ],
)
def test_rewards_that_cannot_be_changed_so(ret, options, message):
    with pytest.raises(ConfigError, match=message):
        ds.training_reward(np.ones(4, np.float32), ret, **options)


def test_norms_against_numpy():
    data = small()
    x = data.state[data.row].astype(np.float64)
    standard = ds.norm(data, "standard")
    np.testing.assert_allclose(standard.state(data.state[data.row]), (x - x.mean(0)) / (x.std(0) + 1e-3), rtol=1e-5)
    minmax = ds.norm(data, "minmax", "minmax")
    y = 2 * (x - x.min(0)) / (np.ptp(x, 0) + 1e-6) - 1
    np.testing.assert_allclose(minmax.state(data.state[data.row]), y, rtol=1e-5, atol=1e-6)
    a = jnp.array([[0.3]])
    np.testing.assert_allclose(minmax.raw_action(minmax.action(a)), a, rtol=1e-5)
    none = ds.norm(data)
    np.testing.assert_array_equal(none.state(data.state), data.state)


@pytest.mark.parametrize(("floor", "state_norm"), [(-0.1, "minmax"), (-0.1, "none"), (0.1, "none"), (0.1, "standard")])
def test_a_floor_is_of_ranges_only(floor, state_norm):
    with pytest.raises(ConfigError, match=f"norm_floor {floor} must be at least 0, and 0 unless state_norm is minmax"):
        ds.norm(small(), state_norm, floor=floor)


def test_states_that_hardly_range_are_normalised_as_if_they_did():
    data = small()  # of either number, states range over 16
    plain, low, high = (ds.norm(data, "minmax", floor=floor) for floor in (0.0, 15.0, 30.0))
    np.testing.assert_array_equal(low.state_scale, plain.state_scale)
    np.testing.assert_allclose(high.state_scale, 15.0)
    np.testing.assert_array_equal(high.state_shift, plain.state_shift)


def test_chunks_are_not_summed_over_steps():
    with pytest.raises(ValueError, match="chunks of 2 are not summed over 2 steps"):
        batches.sampled(4, chunk=2, steps=2)


def test_pixels_pass_through():
    image = np.full((1, 2, 2, 3), 200, np.uint8)
    assert ds.identity_norm(1, 1).state(image) is image


def broken(key, value):
    return small()._replace(**{key: value})


ROWS = int((LENGTH + 1).sum())
NAN = np.zeros(ROWS, np.float32)
NAN[6] = np.nan
WIDE = np.zeros((ROWS, 1), np.float32)
WIDE[4] = 1.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reward", NAN, r"file.npz: key 'reward': row 6 is not finite"),
        ("action", WIDE, r"key 'action': row 4 leaves \[-1, 1\]"),
        ("reward", np.zeros(3, np.float32), r"key 'reward': 3 rows, but 'state' has 10"),
        ("reward", np.zeros(ROWS), r"key 'reward': dtype float64, but it must be float32"),
        ("terminated", np.zeros(ROWS, np.float32), r"key 'terminated': dtype float32"),
        ("row", np.zeros(0, np.int32), r"no transitions"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(key, value, message):
    with pytest.raises(ds.DataError, match=message):
        ds.check(broken(key, value), "file.npz")


def test_discrete_actions_outside_the_task_are_refused():
    data = small()._replace(action=np.r_[np.zeros(9, np.int32), np.int32(4)])
    spec = EnvSpec("four", (2,), 0, num_actions=4)
    with pytest.raises(ds.DataError, match="key 'action': row 9 is 4, which is no action"):
        ds.check(data, "file.npz", spec)
    ds.check(data, "file.npz", spec._replace(num_actions=5))


def test_wrong_task_is_refused():
    with pytest.raises(ds.DataError, match=r"key 'state': rows of shape \(2,\), but other has \(3,\)"):
        ds.check(small(), "file.npz", EnvSpec("other", (3,), 1))
    ds.check(small(), "file.npz", EnvSpec("same", (2,), 1))


def test_a_million_hopper_transitions_take_at_most_90_bytes_each():
    episodes, length = 10, 1000
    rows = episodes * (length + 1)
    arrays = (np.zeros((rows, 11), np.float32), np.zeros((rows, 3), np.float32), np.zeros(rows, np.float32))
    data = ds.from_lengths(*arrays, np.zeros(rows, bool), np.full(episodes, length))
    assert batches.nbytes_per_transition(batches.data(data, ds.norm(data))) <= 90
