"""Gymnasium's locomotion over threads, against Gymnasium itself, number by number."""

import gc
import os
import subprocess
import sys
import threading
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.config import ConfigError, UnknownName
from core.env import HostEnv
from core.seeds import derive, slot_seeds
from envs import locomotion, mujoco
from envs.host import Slots, Vector, from_words, to_words
from envs.registry import Options
from envs.render import RenderError
from tests.envs.episodes import check_types, record, same

STEADY = ("halfcheetah", "swimmer")  # these cannot fall


class Recorder:
    """A `Batch` that keeps what the one behind it said last, in float64."""

    def __init__(self, batch):
        self.batch, self.spec = batch, batch.spec
        self.begin, self.close = batch.begin, batch.close

    def step(self, slots, action):
        self.last = self.batch.step(slots, action)
        return self.last


def reference(name, max_steps):
    import gymnasium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return gymnasium.make(mujoco.IDS[name], max_episode_steps=max_steps)


def draw_actions(rng, steps, count, size):
    """Small, large, extreme, out of bounds and zero, by turns of ten steps."""
    scale = np.array([0.3, 1, 1e6, 1.5, 0])[np.arange(steps) // 10 % 5]
    return (scale[:, None, None] * rng.uniform(-1, 1, (steps, count, size))).astype(np.float32)


def compare(name, count, steps, max_steps, threads):
    """Play beside Gymnasium's own environments and time limit.  Returns: episodes ended by a fall, and by the clock."""
    batch = Recorder(locomotion.Locomotion(name, count, threads))
    vector = Vector(Slots(batch, count, max_steps), count)
    rivals = [reference(name, max_steps or None) for _ in range(count)]
    seeds, episode, ended = slot_seeds(3, count), [0] * count, np.zeros(2, int)
    obs = vector.reset(3)
    states = [rival.reset(seed=derive(seed, 0))[0] for rival, seed in zip(rivals, seeds, strict=True)]
    np.testing.assert_array_equal(obs.state, np.float32(states))
    high = np.float32(rivals[0].action_space.high)
    for action in draw_actions(np.random.default_rng(0), steps, count, batch.spec.action_dim):
        ts = vector.step(action)
        for slot, rival in enumerate(rivals):
            state, reward, terminated, truncated, _ = rival.step(high * action[slot].clip(-1, 1))
            np.testing.assert_allclose(batch.last[0][slot], state, rtol=0, atol=1e-10)
            np.testing.assert_allclose(batch.last[1][slot], reward, rtol=0, atol=1e-10)
            np.testing.assert_array_equal(ts.final_obs.state[slot], np.float32(state))
            np.testing.assert_allclose(ts.reward[slot], reward, rtol=1e-6)
            flags = [bool(terminated), truncated and not terminated]
            assert [ts.terminated[slot], ts.truncated[slot]] == flags
            if any(flags):
                episode[slot] += 1
                ended += flags
                state, _ = rival.reset(seed=derive(seeds[slot], episode[slot]))
            np.testing.assert_array_equal(ts.obs.state[slot], np.float32(state))
    vector.close()
    return ended.tolist()


@pytest.mark.parametrize("name", locomotion.NAMES)
def test_the_numbers_are_gymnasiums(name):
    falls, clocks = compare(name, count=3, steps=150, max_steps=35, threads=2)
    assert clocks > 1
    assert (falls > 1) == (not name.startswith(STEADY))


@pytest.mark.slow
@pytest.mark.parametrize("name", locomotion.NAMES)
def test_the_numbers_are_gymnasiums_for_a_thousand_steps(name):
    falls, clocks = compare(name, count=4, steps=1010, max_steps=0, threads=3)
    assert (falls, clocks) == (0, 4) if name.startswith(STEADY) else falls > 5


def test_the_list_is_of_robots_that_walk():
    assert sorted({name.rpartition("-")[0] for name in locomotion.NAMES}) == sorted(locomotion.ROBOTS)
    assert len(locomotion.NAMES) == 12
    with pytest.raises(UnknownName, match="MuJoCo locomotion task"):
        locomotion.make("reacher-v5", 1)


@pytest.mark.parametrize("name", ["hopper-v5", "humanoid-v5"])
def test_neither_threads_nor_neighbours_change_a_number(name):
    traces = []
    for count, threads in ((5, 1), (5, 3), (5, 9), (2, 2)):
        env = locomotion.make(name, count, threads)
        assert isinstance(env, HostEnv)
        actions = np.random.default_rng(1).uniform(-1, 1, (40, 5, env.spec.action_dim))[:, :count]
        traces.append([env.reset(slot_seeds(8, 5)[:count]), *map(env.step, actions)])
        env.close()
    assert sum(ts.terminated.sum() for ts in traces[0][1:]) > 2
    check_types(locomotion.make(name, 5), *traces[0][:2])
    assert same(traces[0], traces[1])
    assert same(traces[0], traces[2])
    for one, two in zip(traces[0][1:], traces[3][1:], strict=True):
        np.testing.assert_array_equal(one.final_obs.state[:2], two.final_obs.state)
        np.testing.assert_array_equal(one.reward[:2], two.reward)
        np.testing.assert_array_equal(one.obs.state[:2], two.obs.state)


def test_slots_that_rest_do_not_move():
    whole, halves = (locomotion.make("walker2d-v5", 4, 2) for _ in range(2))
    for env in (whole, halves):
        env.reset(2)
    even = np.array([True, False, True, False])
    for action in np.random.default_rng(2).uniform(-1, 1, (40, 4, 6)):
        ts = whole.step(action)
        first, second = halves.step(action, even), halves.step(action, ~even)
        assert not first.terminated[~even].any()
        np.testing.assert_array_equal(first.obs.state[even], ts.obs.state[even])
        np.testing.assert_array_equal(second.obs.state, ts.obs.state)  # those of the first half are still there
        np.testing.assert_array_equal(second.final_obs.state[~even], ts.final_obs.state[~even])
        np.testing.assert_array_equal(first.reward + second.reward, ts.reward)


@pytest.mark.parametrize("name", ["hopper-v4", "ant-v5", "humanoid-v5"])
def test_a_snapshot_goes_on_bit_for_bit(name):
    env = locomotion.make(name, 3, threads=2, max_steps=25)
    actions = draw_actions(np.random.default_rng(4), 60, 3, env.spec.action_dim)
    obs = env.reset(6)
    for action in actions[:30]:
        obs = env.step(action).obs
    env.step(actions[0], np.array([True, False, True]))  # so that the slots' clocks differ
    words = env.snapshot()
    assert (words.shape[0], words.dtype) == (3, np.uint32)
    expected = [env.step(action) for action in actions[30:]]
    assert sum((ts.terminated | ts.truncated).sum() for ts in expected) > 2
    env.close()

    other = locomotion.make(name, 3, threads=1, max_steps=25)
    obs = other.restore(np.asarray(jnp.asarray(words)))  # a checkpoint holds it as a jax array, without float64
    assert obs.step[1] != obs.step[0]
    assert np.array_equal(other.snapshot(), words)
    assert same(expected, [other.step(action) for action in actions[30:]])
    assert same([obs], [other.restore(words)])
    other.close()


def test_a_snapshot_stays_as_it_is():
    env = locomotion.make("walker2d-v5", 1)
    env.reset(0)
    words = env.snapshot()
    kept = words.copy()
    words.flags.writeable = False  # as a jax array's is
    for _ in range(2):
        env.restore(words)
        env.step(np.ones((1, 6)))
    assert np.array_equal(words, kept)
    env.close()


def test_words_keep_all_bits():
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 2)),
        np.array([2**63, 1, 2**64 - 1], np.uint64),
        np.zeros((3, 0), np.float32),
        np.float32([[np.nan], [-0.0], [1e-45]]),
        np.int32([-1, 0, 1]),
    ]
    words = to_words(*arrays)
    assert words.shape == (3, 2 * 2 + 2 + 0 + 1 + 1)
    back = from_words(words, *arrays)
    assert [(x.dtype, x.shape, x.tobytes()) for x in back] == [(x.dtype, x.shape, x.tobytes()) for x in arrays]


def test_a_foreign_snapshot_is_refused():
    env = locomotion.make("hopper-v5", 2)
    with pytest.raises(RuntimeError, match="cannot be saved: it is not reset"):
        env.snapshot()
    env.reset(0)
    words = env.snapshot()
    for wrong in (words[:1], words[:, 1:], words.astype(np.int64)):
        with pytest.raises(ValueError, match=r"a snapshot of mujoco/hopper-v5 is uint32\[2, "):
            env.restore(wrong)
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.restore(words)


def test_options():
    for threads in (1, 2):
        env = envs.make("mujoco/ant-v5", 2, Options(threads=threads, max_steps=7))
        assert env.spec.max_steps == 7
        env.close()
    for task, options in {
        "mujoco/hopper-v5": Options(threads=-1),
        "mujoco/halfcheetah-v4": Options(threads=2, workers=1),
        "mujoco/walker2d-v5": Options(threads=2, pixels=32),
        "mujoco/reacher-v5": Options(threads=2),
        "toy/match": Options(threads=2),
        "metaworld/reach": Options(threads=2),
    }.items():
        with pytest.raises(ConfigError, match="threads"):
            envs.make(task, 2, options)
    with pytest.raises(ConfigError, match="at least 1"):
        envs.make("mujoco/hopper-v5", 0)
    with pytest.raises(ConfigError, match="max_steps 1001"):
        envs.make("mujoco/hopper-v5", 1, Options(max_steps=1001))


def test_threads_end_with_the_vector():
    gc.collect()
    before = threading.active_count()
    closed, dropped = (locomotion.make("hopper-v5", 4, threads=3) for _ in range(2))
    assert threading.active_count() == before + 4
    record(dropped, 0, 2)
    closed.close()
    closed.close()
    assert threading.active_count() == before + 2
    del dropped
    assert threading.active_count() == before


def test_threads_end_with_the_interpreter():
    program = (
        "import numpy as np\n"
        "from envs import locomotion\n"
        "env = locomotion.make('hopper-v5', 4, threads=3)\n"
        "env.reset(0)\n"
        "print(env.step(np.zeros((4, 3))).obs.step)"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("[1 1 1 1]\n", "", 0)


def test_a_team_meets_each_item_once_and_raises_what_went_wrong():
    team = locomotion.Team(3)
    for count in (1, 2, 500):
        met = []
        team.share(lambda items, met=met: met.extend(items), list(range(count)))
        assert sorted(met) == list(range(count))
    everyone = threading.Barrier(3, timeout=10)

    def fail(items):
        item = next(items)
        everyone.wait()  # each thread has one
        if item == 1:
            raise ArithmeticError("the simulator diverged")

    with pytest.raises(ArithmeticError, match="diverged"):
        team.share(fail, [0, 1, 2])
    met = []
    team.share(met.extend, [4, 5, 6])
    assert sorted(met) == [4, 5, 6]
    team.close()


def test_pictures_are_of_the_slot():
    env, sim = locomotion.make("hopper-v5", 2), mujoco.build("hopper-v5")
    env.reset([1, 2])
    sim.reset(derive(2, 0), 0)
    actions = np.random.default_rng(3).uniform(-1, 1, (10, 2, 3)).astype(np.float32)
    for action in actions:
        env.step(action)
        sim.step(action[1])
    try:
        picture = env.render(1, 64)
    except RenderError as error:
        pytest.skip(str(error))
    finally:
        env.close()
    assert np.array_equal(picture, sim.render(64))
    sim.close()
