"""Gymnasium's MuJoCo tasks through the adapter, against Gymnasium itself."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import envs
from core.config import ConfigError, UnknownName
from core.seeds import derive
from envs import mujoco
from envs.registry import Options
from envs.render import RenderError
from tests.envs.episodes import check_types, record, same


@pytest.fixture(scope="module")
def hopper():
    env = envs.make("mujoco/hopper-v5", 2)
    yield env
    env.close()


def test_the_list_is_gymnasiums():
    import gymnasium

    registered = {
        name
        for name, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco") and spec.version in (4, 5)
    }
    assert set(mujoco.IDS.values()) == registered - {"Pusher-v4"}
    from gymnasium.envs.mujoco import pusher_v4

    with pytest.raises(ImportError, match="mujoco<3"):
        pusher_v4.PusherEnv()


def test_an_episode_depends_on_seed_and_actions_only(hopper):
    first = record(hopper, 1, 60)
    check_types(hopper, first[0], first[1])
    assert sum(ts.terminated.sum() for ts in first[1:]) > 1  # so several episodes were compared
    assert same(first, record(hopper, 1, 60, disturb=3))
    assert not same(first, record(hopper, 2, 60))
    split = envs.make("mujoco/hopper-v5", 2, Options(workers=1))
    assert same(first, record(split, 1, 60))
    split.close()


@pytest.mark.parametrize("name", ["hopper-v5", "hopper-v4", "humanoid-v5"])
def test_the_numbers_are_gymnasiums(name):
    import gymnasium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        reference = gymnasium.make(mujoco.IDS[name])
    sim = mujoco.build(name)
    assert sim.spec.max_steps == reference.spec.max_episode_steps
    state, goal = sim.reset(derive(3, 0), 0)
    expected, _ = reference.reset(seed=derive(3, 0))
    assert np.array_equal(state, expected)
    assert goal.shape == (0,)
    box = reference.action_space
    for action in np.random.default_rng(0).uniform(-1.2, 1.2, (8, sim.spec.action_dim)).astype(np.float32):
        expected, reward, terminated, _, _ = reference.step(np.float32(box.high) * action.clip(-1, 1))
        got = sim.step(action)
        assert np.array_equal(got[0], expected)
        assert got[1:] == (reward, terminated, 0.0)
    sim.close()


def test_v4_and_v5_are_different_tasks():
    walkers = [mujoco.build(f"walker2d-{version}") for version in ("v4", "v5")]
    states = []
    for sim in walkers:
        sim.reset(0, 0)
        for _ in range(30):
            states.append(sim.step(np.full(6, 0.5, np.float32))[0])
        sim.close()
    assert not np.allclose(states[29], states[59])


def test_truncation_keeps_the_successor():
    env = envs.make("mujoco/halfcheetah-v5", 1, Options(max_steps=5))
    assert env.spec.max_steps == 5
    trace = record(env, 0, 11)
    assert [bool(ts.truncated[0]) for ts in trace[1:]] == [False] * 4 + [True] + [False] * 4 + [True, False]
    assert not any(ts.terminated.any() for ts in trace[1:])
    last = trace[5]
    assert (last.final_obs.step[0], last.obs.step[0]) == (5, 0)
    assert np.abs(last.final_obs.state - last.obs.state).max() > 0.1
    assert np.abs(last.obs.state[:, :8]).max() < 0.5  # a fresh start lies near the origin
    env.close()


def test_a_fall_terminates_and_is_no_truncation(hopper):
    trace = record(hopper, 1, 60)[1:]
    assert not any(ts.truncated.any() for ts in trace)
    assert max(ts.final_obs.step.max() for ts in trace) < 60
    assert not any(ts.success.any() for ts in trace)


def test_bad_input(hopper):
    with pytest.raises(UnknownName, match="hopper-v5"):
        envs.make("mujoco/hoper-v5")
    with pytest.raises(ConfigError, match="max_steps 1001"):
        envs.make("mujoco/hopper-v5", 1, Options(max_steps=1001))
    hopper.reset(0)
    with pytest.raises(ValueError, match=r"takes actions f32\[2, 3\], not float64\[2, 4\]"):
        hopper.step(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="row 0 is not finite"):
        hopper.step(np.full((2, 3), np.nan))


def test_pixels():
    env = envs.make("mujoco/hopper-v5", 1, Options(pixels=48))
    try:
        obs = env.reset(0)
    except RenderError as error:
        pytest.skip(str(error))
    finally:
        env.close()
    assert (obs.state.shape, obs.state.dtype) == ((1, 48, 48, 3), np.uint8)
    assert obs.state.std() > 5


def test_without_a_renderer_only_pictures_fail():
    program = (
        "import numpy as np, envs\n"
        "env = envs.make('mujoco/hopper-v5')\n"
        "env.reset(0)\n"
        "print(env.step(np.zeros((1, 3))).obs.step)\n"
        "env.render()"
    )
    surroundings = {**os.environ, "MUJOCO_GL": "disable", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings)
    assert (run.stdout, run.returncode) == ("[1]\n", 1)
    assert "RenderError: no OpenGL backend" in run.stderr
    assert "apt-get install libegl1" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", mujoco.tasks())
def test_every_task_steps_and_repeats(name):
    env = envs.make(f"mujoco/{name}", 1)
    first = record(env, 1, 40)
    check_types(env, first[0], first[1])
    assert same(first, record(env, 1, 40, disturb=1))
    env.close()
