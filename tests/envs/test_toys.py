"""The toys against their known answers, stepped by the real batch."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

import envs
from core.config import ConfigError, UnknownName
from core.env import HostEnv, JaxEnv
from core.rollout import JaxBatch
from envs import toys
from envs.registry import Options

# one per class
KINDS = ["bandit-0.3", "frozenlake", "value", "discount", "match", "pixels", "pointmass", "pointmaze", "pixelmaze"]


def random_action(spec, num_envs, key):
    shape = (num_envs, *spec.action_shape)
    if spec.num_actions:
        return jax.random.randint(key, shape, 0, spec.num_actions)
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def run(env, num_envs, length, policy=None, task=None, seed=0):
    """(obs, action, TimeStep) with leading axes [T, B]; random actions unless a policy of the observation is given."""
    batch = JaxBatch(env, num_envs)

    @jax.jit
    def go():
        def one(state, key):
            action = policy(state.obs) if policy else random_action(env.spec, num_envs, key)
            moved, ts = batch.step(state, action)
            return moved, (state.obs, action, ts)

        return jax.lax.scan(one, batch.reset(seed, task)[0], jax.random.split(jax.random.key(1), length))[1]

    return jax.device_get(go())


@functools.cache
def wandering(name):
    """A random policy in 64 slots for 210 steps: two episodes at least of every toy."""
    return run(toys.build(name), 64, 210)


def test_listing_and_host_wrappers_import_no_jax():
    code = "import sys, envs, envs.wrappers; print(len(envs.tasks('toy'))); sys.exit('jax' in sys.modules)"
    assert int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) == len(toys.TOYS)


@pytest.mark.parametrize("name", toys.tasks())
def test_shapes_and_dtypes_follow_the_spec(name):
    env = toys.build(name)
    spec = env.spec
    assert isinstance(env, JaxEnv)
    assert spec.name == f"toy/{name}"
    hash(spec)
    key, task = jax.random.key(0), jnp.int32(1)
    state, obs = jax.eval_shape(env.reset, key, task)
    action = jax.ShapeDtypeStruct(spec.action_shape, jnp.int32 if spec.num_actions else jnp.float32)
    moved, ts = jax.eval_shape(env.step, state, action, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), moved)
    for o in (obs, ts.obs, ts.final_obs):
        assert o.state.shape == spec.obs_shape
        assert o.state.dtype == (jnp.uint8 if spec.pixels else jnp.float32)
        pictured = len(spec.goal_shape) == 3
        assert (o.goal.shape, o.goal.dtype) == (spec.goal_shape, jnp.uint8 if pictured else jnp.float32)
        assert (o.reward.shape, o.reward.dtype, o.step.shape, o.step.dtype) == ((), jnp.float32, (), jnp.int32)
    assert [x.dtype for x in ts[2:]] == [jnp.float32, jnp.bool_, jnp.bool_, jnp.float32]
    assert all(x.shape == () for x in ts[2:])


@pytest.mark.parametrize("name", KINDS)
def test_episodes_end_once_and_begin_again(name):
    spec, (obs, _, ts) = toys.build(name).spec, wandering(name)
    over = ts.terminated | ts.truncated
    assert over.sum(0).min() >= 2
    assert not (ts.terminated & ts.truncated).any()
    np.testing.assert_array_equal(ts.truncated, ~ts.terminated & (ts.final_obs.step == spec.max_steps))
    # the true successor survives the reset: its clock goes on while the next observation starts at zero
    np.testing.assert_array_equal(ts.final_obs.step, obs.step + 1)
    np.testing.assert_array_equal(ts.obs.step, np.where(over, 0, ts.final_obs.step))
    np.testing.assert_array_equal(ts.obs.reward, np.where(over, 0, ts.reward))
    np.testing.assert_array_equal(ts.final_obs.reward, ts.reward)
    going = ~over.reshape(*over.shape, *[1] * len(spec.obs_shape))
    np.testing.assert_array_equal(ts.obs.state * going, ts.final_obs.state * going)


@pytest.mark.parametrize("name", ["value", "match", "pixels", "pointmass", "pointmaze"])
def test_starts_differ_between_episodes_and_slots(name):
    obs = wandering(name)[0]
    starts = obs.state[obs.step == 0]
    distinct = np.unique(starts.reshape(len(starts), -1), axis=0)
    assert len(distinct) > (100 if name == "pixels" else 0.99 * len(starts))  # the dot has 144 places


@pytest.mark.parametrize("name", ["bandit-0.3", "frozenlake", "pixels", "pointmaze"])
def test_host_equals_jit(name):
    """The same seed and actions give bit-equal episodes in a jitted scan and step by step on the host."""
    env = toys.make(name, 64, Options(host=True))
    assert isinstance(env, HostEnv)
    obs, action, ts = wandering(name)
    first = env.reset(0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), first, obs)
    for t in range(12):
        jax.tree.map(lambda a, b, t=t: np.testing.assert_array_equal(a, b[t]), env.step(action[t]), ts)
    jax.tree.map(np.testing.assert_array_equal, env.reset(0), first)
    assert isinstance(first.state, np.ndarray)


def test_an_episode_depends_on_its_slot_alone():
    env = toys.make("frozenlake", 3, Options(host=True))
    action, everyone = np.array([1, 2, 1], np.int32), np.ones(3, bool)

    def record(seed, active):
        env.reset(seed)
        return [jax.tree.map(lambda x: x[2], env.step(action, active)) for _ in range(40)]

    alone = record([1, 2, 3], ~np.array([True, True, False]))
    among = record([7, 8, 3], everyone)
    jax.tree.map(np.testing.assert_array_equal, alone, among)
    other = record([1, 2, 4], everyone)
    assert any((a.obs.state != b.obs.state).any() for a, b in zip(alone, other, strict=True))


def test_bandit():
    env = toys.build("bandit-0.3")
    _, action, ts = wandering("bandit-0.3")
    assert ts.terminated.all()
    for arm, mean in enumerate((0.3, 0.7)):
        paid = ts.reward[action == arm]
        assert abs(paid.mean() - mean) < 4 * (0.21 / paid.size) ** 0.5
    assert env.optimal_value == 0.7
    assert toys.build("bandit-0.5").optimal_value == 0.5


@pytest.mark.parametrize(
    ("name", "p", "best"),
    [
        ("frozenlake", 1 / 3, 0.744),
        ("frozenlake-0.4", 0.4, 0.762),
        ("frozenlake-0.5", 0.5, 0.794),
        ("frozenlake-0.6", 0.6, 0.822),
        ("frozenlake-0.7", 0.7, 0.851),
        ("frozenlake-0.8", 0.8, 0.894),
        ("frozenlake-0.9", 0.9, 0.942),
        ("frozenlake-1", 1.0, 1.0),
    ],
)
def test_frozenlake_is_exact(name, p, best):
    env = toys.build(name)
    assert env.optimal_success() == pytest.approx(best, abs=5e-4)
    assert env.policy_success(np.full((16, 4), 0.25)) == pytest.approx(0.0139398, abs=1e-7)
    table = np.zeros((16, 4, 16))
    for cell, actions in FrozenLakeEnv(map_name="4x4", is_slippery=True, success_rate=p).P.items():
        for action, outcomes in actions.items():
            for chance, successor, _, _ in outcomes:
                table[cell, action, successor] += chance
    np.testing.assert_allclose(env.transition(), table, atol=1e-12)


def test_frozenlake_moves_by_its_table():
    env = toys.build("frozenlake")
    obs, action, ts = wandering("frozenlake")
    counts = np.zeros((16, 4, 16))
    np.add.at(counts, (obs.state.argmax(-1), action, ts.final_obs.state.argmax(-1)), 1)
    tried = counts.sum(-1, keepdims=True)
    expected = env.transition() * tried
    assert (counts[expected == 0] == 0).all()
    drawn = (expected > 0) & (env.transition() < 1) & (tried > 100)
    deviation = (counts - expected)[drawn] / np.sqrt(expected * (1 - env.transition()))[drawn]
    assert drawn.sum() > 50
    assert abs(deviation).max() < 4.5
    np.testing.assert_array_equal(ts.reward, ts.final_obs.state[..., 15])
    np.testing.assert_array_equal(ts.success, ts.reward)


def test_frozenlake_optimum_is_reached():
    env = toys.build("frozenlake")
    greedy = jnp.asarray(env.optimal()[1])
    _, _, ts = run(env, 4000, 100, lambda o: greedy[100 - o.step, jnp.argmax(o.state, -1)])
    over = ts.terminated | ts.truncated
    first = over & (np.cumsum(over, 0) == 1)
    won = ts.success[first].mean()
    assert first.sum() == 4000
    assert abs(won - 0.744) < 4 * (0.744 * 0.256 / 4000) ** 0.5


def test_one_step_value():
    obs, _, ts = wandering("value")
    assert ts.terminated.all()
    np.testing.assert_allclose(ts.reward, obs.state[..., 0] - 2 * obs.state[..., 1], atol=1e-6)
    np.testing.assert_array_equal(ts.reward, toys.build("value").value(obs.state))


@pytest.mark.parametrize("length", [2, 3])
def test_discount(length):
    env = toys.build("discount", length=length)
    obs, _, ts = run(env, 1, length)
    value, returns = 0.0, []
    for reward, terminated in zip(ts.reward[::-1, 0], ts.terminated[::-1, 0], strict=True):
        value = reward + 0.9 * value * (1 - terminated)
        returns.append(value)
    np.testing.assert_allclose(returns[::-1], env.value(0.9), rtol=1e-6)
    np.testing.assert_array_equal(obs.state[:, 0], np.eye(length))
    assert ts.terminated[-1].all()
    assert not ts.truncated.any()
    assert not ts.final_obs.state[-1].any()


@pytest.mark.parametrize("name", ["match", "pixels"])
def test_match_has_the_value_of_an_endless_task(name):
    """Backing up r + gamma (1 - terminated) V from the truncated end gives r / (1 - gamma) at every step."""
    env, gamma, aim = toys.build(name), 0.9, np.float32([0.3, -0.2])
    _, _, ts = run(env, 8, env.spec.max_steps, lambda o: env.target(o.state) + aim)
    assert not ts.terminated.any()
    assert ts.truncated[-1].all()
    exact = (1 - 0.3**2 - 0.2**2) / (1 - gamma)
    value = np.full(8, exact)
    for reward, terminated in zip(ts.reward[::-1], ts.terminated[::-1], strict=True):
        value = reward + gamma * (1 - terminated) * value
        np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_match_target_is_the_best_action():
    env, (obs, action, ts) = toys.build("match"), wandering("match")
    assert abs(env.target(obs.state)).max() <= 1
    np.testing.assert_allclose(env.value(obs.state, env.target(obs.state), 0.9), 10.0, rtol=1e-5)
    assert ts.reward.max() <= 1
    np.testing.assert_allclose(ts.reward, env.value(obs.state, action, 0.5) / 2, atol=1e-5)


def test_pixels_show_the_target():
    env = toys.build("pixels", side=5)
    images = np.stack([env.render(jnp.array([i, j])) for i in range(5) for j in range(5)])
    assert len(np.unique(images.reshape(25, -1), axis=0)) == 25
    np.testing.assert_allclose(env.target(images[7]), [-0.5, 0.0])  # row 1, column 2 of 0..4
    assert [tuple(map(tuple, np.argwhere(images[7, :, :, 0])))] == [((1, 2),)]
    assert toys.make("pixels", 2, Options(pixels=16)).spec.obs_shape == (16, 16, 3)


def test_pointmass_regulator_is_optimal():
    env = toys.build("pointmass")
    obs, action, ts = run(env, 128, 100, lambda o: env.controller(o.state, o.step))
    assert abs(action).max() < 1  # the box never binds, so the Riccati value is the optimum
    np.testing.assert_allclose(ts.reward.sum(0), env.optimal_return(obs.state[0]), rtol=1e-4)
    assert ts.success[-1].all()
    assert not ts.terminated.any()
    for worse in (0.8, 1.2):
        total = run(env, 128, 100, lambda o, k=worse: k * env.controller(o.state, o.step))[2].reward.sum(0)
        assert (total < env.optimal_return(obs.state[0])).all()


def test_pointmaze_guide_takes_the_shortest_way():
    env = toys.build("pointmaze")
    task = 1 + np.arange(100) % 5
    obs, _, ts = run(env, 100, 100, lambda o: env.guide(o.state, o.goal), task)
    first = np.floor(obs.state[0]).astype(int)
    last = np.floor(obs.goal[0]).astype(int)
    for i in range(100):
        assert (tuple(first[i]), tuple(last[i])) == env.TASKS[task[i] - 1]
    distance = env.distance[env.cell(obs.goal[0]), env.cell(obs.state[0])]
    np.testing.assert_array_equal(distance[:5], [8, 8, 14, 6, 8])
    steps = 1 + ts.success.argmax(0)
    assert ts.success[-1].all()
    assert (steps <= 4 * (distance + 1)).all()
    straight = np.linalg.norm(obs.state[0] - obs.goal[0], axis=-1)
    assert (steps >= (straight - env.RADIUS) / (env.SPEED * 2**0.5)).all()
    np.testing.assert_array_equal(ts.reward, ts.success - 1)


def test_pixelmaze_guide_takes_the_shortest_way():
    env = toys.build("pixelmaze")
    for task, (first, goal) in enumerate(env.maze.TASKS, 1):
        obs, _, ts = run(env, 2, 30, lambda o: env.guide(o.state, o.goal), task)
        columns = env.maze.free.shape[1]
        steps = env.maze.distance[goal[0] * columns + goal[1], first[0] * columns + first[1]]
        assert (np.argmax(ts.success, axis=0) + 1 == steps).all()
        np.testing.assert_array_equal(env.place(obs.state[0, 0]), first)
        np.testing.assert_array_equal(env.place(obs.goal[0, 0]), goal)
        assert obs.state.dtype == np.uint8


def test_pixelmaze_walls_hold():
    env, (obs, _, _) = toys.build("pixelmaze"), wandering("pixelmaze")
    place = np.asarray(env.place(obs.state)).reshape(-1, 2)
    assert env.maze.free[place[:, 0], place[:, 1]].all()
    assert (obs.state[..., 0].sum((-1, -2)) == 4 * 255).all()


def test_pointmaze_walls_hold_and_every_task_is_drawn():
    env, (obs, action, ts) = toys.build("pointmaze"), wandering("pointmaze")
    cell = np.floor(ts.final_obs.state).astype(int)
    assert env.free[cell[..., 0], cell[..., 1]].all()
    moved = ts.final_obs.state - obs.state
    blocked = abs(moved - 0.25 * action) > 1e-5
    assert (moved[blocked] == 0).all()
    assert blocked.any()
    begun = {tuple(np.floor(g).astype(int)) for g in obs.goal[obs.step == 0]}
    assert begun == {goal for _, goal in env.TASKS}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("match", Options(workers=2)),
        ("match", Options(pixels=12)),
        ("frozenlake", Options(noise=0.1)),
        ("match", Options(noise=0.1, noise_kind="pink")),
        ("match", Options(max_steps=11)),
        ("match", Options(history=0)),
        ("match", Options(chunk=-1)),
    ],
)
def test_options_that_a_toy_cannot_have(name, options):
    with pytest.raises(ConfigError, match=f"{name}|pink"):
        toys.make(name, 2, options)


def test_unknown_toy_names_the_nearest():
    with pytest.raises(UnknownName, match="toy/frozenlake"):
        envs.make("toy/frozenlak")
