"""MJX against Gymnasium: the same model files, so the same numbers up to float32.

One step from the same positions and velocities differs by rounding, which hard contacts amplify: by 2e-4 at most in
observations that reach 20, by 3e-6 in rewards (7e-5 in Ant's, that pay for contact forces).
In float64 it is 1e-9, which leaves no room for another rule.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from core.config import ConfigError, UnknownName
from core.rollout import JaxBatch
from envs import mjx, mujoco
from envs.registry import Options

# Hopper has most of what could go wrong, at one of the shortest compile times: RK4, clipped velocities, falls.
TASKS = [name if name == "hopper-v5" else pytest.param(name, marks=pytest.mark.slow) for name in mjx.tasks()]
SLOTS = 3


def test_tasks_are_listed_and_without_the_extra_say_how_to_get_it(monkeypatch):
    assert "mjx/hopper-v5" in envs.tasks()
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    with pytest.raises(ConfigError, match="make install EXTRAS=dev,mjx"):
        envs.make("mjx/hopper-v5")


def test_bad_input():
    with pytest.raises(UnknownName, match="mjx/hopper-v5"):
        envs.make("mjx/hoper-v5")
    with pytest.raises(ConfigError, match="workers"):
        envs.make("mjx/hopper-v5", 1, Options(workers=2))
    with pytest.raises(ConfigError, match="mujoco/hopper-v5"):
        envs.make("mjx/hopper-v5", 1, Options(pixels=64))


class Pair:
    """A task in MJX, and as many environments of Gymnasium's as it has slots."""

    def __init__(self, name: str):
        import gymnasium

        self.batch = envs.make(f"mjx/{name}", SLOTS)
        self.step = jax.jit(self.batch.step)
        self.begin = jax.jit(jax.vmap(self.batch.env.begin))
        self.gyms = [gymnasium.make(mujoco.IDS[name]).unwrapped for _ in range(SLOTS)]
        self.rng = np.random.default_rng(0)
        for seed, gym in enumerate(self.gyms):
            gym.reset(seed=seed)

    def action(self):
        return self.rng.uniform(-1, 1, (SLOTS, self.batch.spec.action_dim)).astype(np.float32)

    def copied(self, state):
        """The state of the batch with Gymnasium's positions and velocities, in new episodes."""
        qpos, qvel = ([getattr(gym.data, key).copy() for gym in self.gyms] for key in ("qpos", "qvel"))
        for gym, *values in zip(self.gyms, qpos, qvel, strict=True):
            gym.set_state(*values)  # what is derived from them too
        env, obs = self.begin(np.stack(qpos), np.stack(qvel))
        return state._replace(env=env, obs=obs)

    def afresh(self):
        """A state of the batch, and Gymnasium's with it, in which nothing is about to fall."""
        for slot, gym in enumerate(self.gyms):
            gym.reset(seed=7 + slot)
        return self.copied(self.batch.reset(0)[0])

    def close(self):
        for gym in self.gyms:
            gym.close()


@pytest.fixture(scope="module")
def pair(request):
    pytest.importorskip("mujoco.mjx")
    pair = Pair(request.param)
    yield pair
    pair.close()


every_task = pytest.mark.parametrize("pair", TASKS, indirect=True)


def deviations(pair, steps):
    """Largest differences of observations and rewards over single steps from Gymnasium's states; flags must agree."""
    state, _ = pair.batch.reset(0)
    worst = np.zeros(2)
    for _ in range(steps):
        action = pair.action()
        _, ts = pair.step(pair.copied(state), action)
        for slot, gym in enumerate(pair.gyms):
            obs, reward, terminated, _, _ = gym.step(action[slot])
            assert bool(ts.terminated[slot]) == terminated
            difference = np.abs(obs - ts.final_obs.state[slot]).max(), abs(reward - ts.reward[slot])
            worst = np.maximum(worst, difference)
            if terminated:
                gym.reset()
    return worst


@every_task
def test_the_spec_is_gymnasiums(pair):
    gym, spec = pair.gyms[0], pair.batch.spec
    assert isinstance(pair.batch, JaxBatch)
    assert (spec.obs_shape, spec.action_dim, spec.max_steps) == (gym.observation_space.shape, len(gym.data.ctrl), 1000)
    assert (gym.action_space.low == -1).all()
    assert (gym.action_space.high == 1).all()


@every_task
def test_single_steps_are_gymnasiums(pair):
    obs, reward = deviations(pair, 60)
    assert obs < 1e-3
    assert reward < 2e-4


@every_task
def test_a_rollout_is_gymnasiums(pair):
    """What is carried from step to step: ten of them, before contacts drive rounding errors apart."""
    state, rng = pair.afresh(), np.random.default_rng(1)
    np.testing.assert_allclose(state.obs.state, [gym._get_obs() for gym in pair.gyms], atol=1e-6)
    for step in range(10):
        action = np.float32(rng.choice([-1.5, 0.2, 0.4], (SLOTS, pair.batch.spec.action_dim)))  # some beyond the bounds
        state, ts = pair.step(state, action)
        stepped = [gym.step(a.clip(-1, 1)) for gym, a in zip(pair.gyms, action, strict=True)]
        np.testing.assert_allclose(ts.final_obs.state, [s[0] for s in stepped], atol=2e-2)
        np.testing.assert_allclose(ts.reward, [s[1] for s in stepped], atol=2e-3)
        assert (ts.final_obs.step == step + 1).all()
        np.testing.assert_array_equal(ts.terminated, [s[2] for s in stepped])
        if ts.terminated.any():
            break
    assert step > 5


@every_task
def test_episodes_begin_by_gymnasiums_law(pair):
    env, gym = pair.batch.env, pair.gyms[0]
    keys = jax.random.split(jax.random.key(0), 2000)
    physics = jax.jit(jax.vmap(env.reset, (0, None)))(keys, 1)[0].physics
    starts = []
    for seed in range(400):
        gym.reset(seed=seed)
        starts.append((gym.data.qpos - gym.init_qpos, gym.data.qvel - gym.init_qvel))
    drawn = physics.qpos - gym.init_qpos, physics.qvel - gym.init_qvel
    for ours, theirs in zip(drawn, map(np.stack, zip(*starts, strict=True)), strict=True):
        assert abs(ours.mean()) < 0.02 * ours.std()
        np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.05)
        # the fourth moment tells a uniform law (1.8) from a normal one (3)
        np.testing.assert_allclose(*(np.mean(x**4) / np.mean(x**2) ** 2 for x in (ours, theirs)), rtol=0.1)


@every_task
def test_the_clock_truncates_and_the_batch_begins_anew(pair):
    state = pair.afresh()
    late = state.obs._replace(step=jnp.array([998, 999, 0]))
    state = state._replace(obs=late, env=state.env._replace(obs=late))
    state, ts = pair.step(state, 0 * pair.action())
    np.testing.assert_array_equal(ts.truncated, [False, True, False])
    np.testing.assert_array_equal(ts.final_obs.step, [999, 1000, 1])
    np.testing.assert_array_equal(ts.obs.step, [999, 0, 1])
    assert not ts.terminated.any()
    assert np.abs(ts.obs.state[1] - ts.final_obs.state[1]).max() > 1e-4


@every_task
def test_a_state_that_diverges_is_put_back(pair):
    """As MuJoCo does: no NaN ever reaches a replay."""
    state = pair.afresh()
    physics = state.env.physics._replace(qvel=jnp.full_like(state.env.physics.qvel, 1e20))
    _, ts = pair.step(state._replace(env=state.env._replace(physics=physics)), pair.action())
    assert np.isfinite(ts.final_obs.state).all()
    assert np.abs(ts.final_obs.state).max() < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", mjx.tasks())
def test_in_float64_nothing_is_left_of_the_difference(name):
    pytest.importorskip("mujoco.mjx")
    with jax.enable_x64(True):
        pair = Pair(name)
        obs, reward = deviations(pair, 60)
        pair.close()
    assert obs < 1e-9
    assert reward < 1e-6  # it is handed over in float32
