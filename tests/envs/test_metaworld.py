"""Meta-World through the adapter: lists, goals, seeds, success and the cameras that hang upside down."""

import functools
import sys

import numpy as np
import pytest

import envs
from core.config import UnknownName
from envs import metaworld
from envs.registry import Options
from envs.render import RenderError
from tests.envs.episodes import check_types, record, same


@pytest.fixture(scope="module")
def reach():
    env = envs.make("metaworld/reach", 2)
    yield env
    env.close()


@pytest.fixture(scope="module")
def push():
    sim = metaworld.build("push")
    yield sim
    sim.close()


def test_lists_are_the_librarys():
    from metaworld import env_dict
    from metaworld.policies import ENV_POLICY_MAP

    expected = {
        "mt10": env_dict.MT10_V3,
        "mt50": env_dict.MT50_V3,
        "ml10-train": env_dict.ML10_V3["train"],
        "ml10-test": env_dict.ML10_V3["test"],
        "ml45-train": env_dict.ML45_V3["train"],
        "ml45-test": env_dict.ML45_V3["test"],
    }
    found = {name: [f"{task}-v3" for task in tasks] for name, tasks in metaworld.SETS.items()}
    assert {name: sorted(tasks) for name, tasks in found.items()} == {n: sorted(tasks) for n, tasks in expected.items()}
    assert found["mt10"] == list(expected["mt10"])  # here the order numbers the tasks
    assert found["mt50"] == list(expected["mt50"])
    assert {f"{task}-v3" for task in metaworld.tasks()} == set(env_dict.ENV_CLS_MAP) == set(ENV_POLICY_MAP)
    assert len(metaworld.tasks()) == 50


def test_an_episode_depends_on_seed_and_actions_only(reach):
    first = record(reach, 1, 40)
    check_types(reach, first[0], first[1])
    assert same(first, record(reach, 1, 40, disturb=3))
    assert not same(first, record(reach, 2, 40))
    split = envs.make("metaworld/reach", 2, Options(workers=1))
    assert same(first, record(split, 1, 40))
    split.close()


def test_the_goal_is_seen_and_drawn_per_episode(push):
    goals = []
    for seed in range(8):
        state, goal = push.reset(seed, 0)
        assert goal.shape == (0,)
        assert np.array_equal(state[-3:], push._env._target_pos)
        after = push.step(np.zeros(4, np.float32))[0]
        assert np.array_equal(after[-3:], state[-3:])
        goals.append(state[-3:])
    low, high = push._env.goal_space.low, push._env.goal_space.high
    assert len(np.unique(goals, axis=0)) == 8
    assert ((low <= goals) & (goals <= high)).all()
    assert (np.ptp(goals, axis=0)[:2] > 0.3 * (high - low)[:2]).all()  # the whole space, not a corner of it


def test_numbered_tasks_are_the_benchmarks(push):
    import metaworld as library

    benchmark = library.MT1("push-v3", seed=metaworld.BENCHMARK_SEED)
    reference = benchmark.train_classes["push-v3"]()
    for number in (1, 2, 50):
        reference.set_task(benchmark.train_tasks[number - 1])
        expected, _ = reference.reset()
        for seed in (0, 5):
            assert np.array_equal(push.reset(seed, number)[0], expected)
        assert np.array_equal(push.step(np.ones(4, np.float32))[0], reference.step(np.ones(4, np.float32))[0])
    assert push.spec.num_tasks == len(benchmark.train_tasks)
    assert not np.array_equal(push.reset(0, 0)[0], push.reset(1, 0)[0])  # and free placements come back
    reference.close()


def test_a_free_placement_is_what_the_library_makes_of_it(push):
    """Nothing is left over from the episode before: the same placement, set as a task, gives the same start."""
    state, _ = push.reset(3, 0)
    push._env._freeze_rand_vec = True
    again, _ = push._env.reset()
    assert np.array_equal(state, again)


def test_the_expert_succeeds_and_nothing_terminates(reach):
    policy, obs = metaworld.expert("reach"), reach.reset(0)
    rewards, success = [], np.zeros(2)
    for step in range(1, 502):
        action = np.stack([policy.get_action(state.astype(np.float64)) for state in obs.state])
        ts = reach.step(action)
        obs, success = ts.obs, np.maximum(success, ts.success)
        rewards.append(ts.reward)
        assert not ts.terminated.any()
        assert ts.truncated.tolist() == [step == 500] * 2
        assert ts.final_obs.step.tolist() == [min(step, 500) if step <= 500 else 1] * 2
    assert success.tolist() == [1, 1]
    assert reach.spec.success == "any"
    assert np.min(rewards) >= 0
    assert 9 < np.max(rewards) <= 10


def episode(name, seed=5):
    """States, outcomes and what the fingers held, 120 steps of the scripted policy with noise."""
    sim, policy, rng = metaworld.build(name), metaworld.expert(name), np.random.default_rng(0)
    state, _ = sim.reset(seed, 0)
    states, outcomes, held = [state], [], []
    for _ in range(120):
        *outcome, success = sim.step(policy.get_action(states[-1]) + 0.1 * rng.standard_normal(4))
        states.append(outcome[0])
        outcomes.append((outcome[1], success))
        held.append([sim._env.touching_object(geom) for geom in range(sim._env.model.ngeom)])
    sim.close()
    return [np.array(x) for x in (states, outcomes, held)]


def the_librarys(name, monkeypatch):
    """The same episode of the library's own class, with SciPy's own rotations."""
    from metaworld.env_dict import ENV_CLS_MAP
    from scipy.spatial.transform import Rotation

    module = sys.modules[ENV_CLS_MAP[f"{name}-v3"].__module__]
    with monkeypatch.context() as patch:
        patch.setattr(metaworld, "_quick", lambda cls: cls)
        patch.setattr(module, "Rotation", Rotation, raising=False)
        return episode(name)


@pytest.mark.parametrize("name", ["push", "reach"])
def test_the_numbers_are_the_librarys(name, monkeypatch):
    ours = episode(name)
    assert all(np.array_equal(*pair) for pair in zip(ours, the_librarys(name, monkeypatch), strict=True))
    assert name == "reach" or set(ours[2].ravel()) == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("name", metaworld.tasks())
def test_the_numbers_are_the_librarys_in_every_task(name, monkeypatch):
    ours = episode(name)
    assert all(np.array_equal(*pair) for pair in zip(ours, the_librarys(name, monkeypatch), strict=True))


def test_actions_are_clipped(push):
    states = []
    for scale in (1, 50):
        push.reset(0, 0)
        states.append(push.step(np.full(4, scale, np.float32))[:2])
    assert np.array_equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_bad_names():
    with pytest.raises(UnknownName, match="metaworld/push"):
        envs.make("metaworld/push-v3")
    with pytest.raises(UnknownName, match="push-back"):
        metaworld.expert("push-bak")


def test_pictures_are_the_right_way_up(push):
    """Against a free camera, which is always upright, at the same place with the same line of sight."""
    import mujoco

    from envs.render import Studio

    push.reset(0, 0)
    try:
        frame = push.render(64)
    except RenderError as error:
        pytest.skip(str(error))
    data, model = push._env.data, push._env.model
    fixed = data.camera(metaworld.CAMERA)
    assert fixed.xmat.reshape(3, 3)[2, 1] < 0  # its up axis points down: the library's picture is on its head
    sight = -fixed.xmat.reshape(3, 3)[:, 2]
    free = mujoco.MjvCamera()
    free.distance, free.lookat[:] = 1.0, fixed.xpos + sight
    free.azimuth = np.degrees(np.arctan2(sight[1], sight[0]))
    free.elevation = np.degrees(np.arcsin(sight[2]))
    wide, model.vis.global_.fovy = model.vis.global_.fovy, model.camera(metaworld.CAMERA).fovy[0]
    studio = Studio(model)
    upright = studio.frame(data, free, 64)
    studio.close()
    model.vis.global_.fovy = wide

    def likeness(picture):
        return np.corrcoef(picture.astype(float).ravel(), upright.astype(float).ravel())[0, 1]

    others = (frame[::-1, ::-1], frame[::-1], frame[:, ::-1])
    assert likeness(frame) > 0.6
    assert likeness(frame) > max(map(likeness, others)) + 0.2


def test_pixel_states_follow_the_scene():
    env = envs.make("metaworld/reach", 1, Options(pixels=32))
    try:
        obs = env.reset(0)
    except RenderError as error:
        pytest.skip(str(error))
    frames = [obs.state] + [env.step(np.full((1, 4), 1.0)).obs.state for _ in range(5)]
    env.close()
    assert all((frame.shape, frame.dtype) == ((1, 32, 32, 3), np.uint8) for frame in frames)
    assert (frames[0] != frames[-1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", metaworld.tasks())
def test_every_task_steps_repeats_and_forgets_the_episode_before(name):
    env = envs.make(f"metaworld/{name}", 1)
    for record_task in (functools.partial(record, env, 1, 60), functools.partial(record, env, 1, 60, task=7)):
        first = record_task()
        check_types(env, first[0], first[1])
        record(env, 2, 20)
        assert same(first, record_task(disturb=1))
    assert not same(record(env, 1, 1), record(env, 2, 1))
    env.close()
