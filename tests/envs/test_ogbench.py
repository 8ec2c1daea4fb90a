"""OGBench through the adapter: names, seeds that the library does not honour, goals, rewards and success."""

import os
import tempfile

import numpy as np
import pytest

import envs
from core.config import ConfigError, UnknownName
from envs import directed, ogbench
from envs.ogbench import OGBenchSim
from envs.registry import Options
from envs.render import RenderError
from tests.envs.episodes import check_types, record, same


@pytest.fixture(scope="module")
def maze():
    sim = OGBenchSim("pointmaze-medium")
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def cubes():
    sims = [OGBenchSim("cube-single") for _ in range(2)]
    yield sims
    for sim in sims:
        sim.close()


def test_the_list_is_the_librarys(monkeypatch, tmp_path):
    import gymnasium
    import ogbench as library  # noqa: F401  registers

    ours = ("ogbench.locomaze", "ogbench.manipspace")
    registered = {name for name, spec in gymnasium.registry.items() if str(spec.entry_point).startswith(ours)}
    broken = {name for name in registered if "humanoidmaze-teleport" in name}
    assert {f"{name}-v0" for name in ogbench.tasks()} - {f"{name}-v0" for name in directed.TASKS} == registered - broken
    assert len(set(ogbench.tasks())) == len(ogbench.tasks()) == 273 + len(directed.TASKS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="material 'teleport_in' not found"):
        gymnasium.make("humanoidmaze-teleport-v0")


@pytest.mark.parametrize("name", ["pointmaze-medium", "pointmaze-teleport-singletask"])
def test_an_episode_depends_on_seed_and_actions_only(name):
    env = envs.make(f"ogbench/{name}", 2, Options(max_steps=12))
    first = record(env, 1, 30)
    check_types(env, first[0], first[1])
    assert sum(ts.truncated.sum() for ts in first[1:]) > 2  # so several episodes were compared
    assert same(first, record(env, 1, 30, disturb=3))
    assert not same(first, record(env, 2, 30))
    if "single" not in name:
        split = envs.make(f"ogbench/{name}", 2, Options(max_steps=12, workers=1))
        assert same(first, record(split, 1, 30))
        split.close()
    env.close()


def test_manipulation_is_seeded_with_its_goals(cubes):
    """The library draws actions before it looks at the goal, from an action space that nobody can seed."""

    def episode(sim, seed):
        numbers = [*sim.reset(seed, 2)]
        return numbers + [sim.step(np.full(5, 0.3, np.float32))[0] for _ in range(5)]

    first, again, other = (episode(sim, seed) for sim, seed in ((cubes[0], 4), (cubes[1], 4), (cubes[1], 5)))
    assert all(map(np.array_equal, first, again))
    assert all(map(np.array_equal, first, episode(cubes[0], 4)))  # after another episode of the same sim
    assert not any(map(np.array_equal, first, other))
    assert (cubes[0].spec.goal_shape, cubes[0].spec.obs_shape) == ((28,), (28,))


def test_teleporters_are_seeded():
    sim = OGBenchSim("pointmaze-teleport")
    exits = []
    for seed in range(12):
        for noise in (1, 2):
            sim.reset(seed, 1)
            sim._env.set_xy(np.array(sim._env._teleport_info["teleport_in_xys"][0]))
            np.random.seed(noise)  # noqa: NPY002
            sim.step(np.zeros(2, np.float32))
            exits.append(sim._env.get_xy())  # the returned state is the one before the jump
    sim.close()
    assert all(map(np.array_equal, exits[::2], exits[1::2]))
    assert len(np.unique(np.round(exits, 3), axis=0)) == 3


def test_task_numbers_choose_the_goal(maze):
    goals = {task: maze.reset(0, task)[1] for task in range(1, 6)}
    for task, goal in goals.items():
        cell = maze._env.ij_to_xy(maze._env.task_infos[task - 1]["goal_ij"])
        assert np.abs(goal - cell).max() <= 1  # noise of a quarter of a cell
    drawn = {tuple(np.round(maze.reset(seed, 0)[1] / 4)) for seed in range(30)}
    assert len(drawn) == len({tuple(np.round(goal / 4)) for goal in goals.values()}) == 5
    assert (maze.spec.goal_shape, maze.spec.num_tasks, maze.spec.success) == ((2,), 5, "last")


def test_the_goal_terminates_with_success(maze):
    _, goal = maze.reset(0, 1)
    _, reward, terminated, success = maze.step(np.zeros(2, np.float32))
    assert (reward, terminated, success) == (0, False, 0)
    maze._env.set_xy(goal)
    _, reward, terminated, success = maze.step(np.zeros(2, np.float32))
    assert (reward, terminated, success) == (1, True, 1)


def test_single_tasks_have_the_relabelled_reward_and_no_goal():
    sim = OGBenchSim("pointmaze-medium-singletask-task3")
    assert (sim.spec.goal_shape, sim.spec.num_tasks) == ((0,), 1)
    assert sim.reset(0, 0)[1].shape == (0,)
    assert sim._env.cur_task_id == 3
    assert sim.step(np.zeros(2, np.float32))[1:] == (-1, False, 0)
    sim._env.set_xy(sim._env.cur_goal_xy)
    assert sim.step(np.ones(2, np.float32))[1:] == (0, True, 1)  # judged before the action
    sim.close()
    default = OGBenchSim("cube-single-singletask")
    default.reset(0, 1)
    assert default._env.cur_task_id == 2
    assert default.step(np.zeros(5, np.float32))[1:] == (-1, False, 0)  # one for each cube that is out of place
    default.close()


def test_actions_are_clipped(maze):
    steps = []
    for scale in (1, 9):
        maze.reset(0, 1)
        steps.append(maze.step(np.full(2, scale, np.float32))[0])
    assert np.array_equal(*steps)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="counts open files by /dev/fd")
def test_mazes_leave_no_files_behind(monkeypatch, tmp_path):
    OGBenchSim("pointmaze-medium").close()  # whatever is opened once
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        OGBenchSim("pointmaze-medium").close()
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/dev/fd")) == before


def test_bad_input():
    with pytest.raises(UnknownName, match="ogbench/antmaze-large"):
        envs.make("ogbench/antmaze-lage")
    with pytest.raises(ConfigError, match="use ogbench/visual-scene"):
        envs.make("ogbench/scene", 1, Options(pixels=64))
    with pytest.raises(ConfigError, match="pointmaze-large has none"):
        envs.make("ogbench/pointmaze-large", 1, Options(pixels=64))


@pytest.mark.parametrize(("name", "hold"), [("ant-directed", 100), ("humanoid-directed", 200)])
def test_directed_robots_are_paid_for_the_way_along_their_direction(name, hold):
    sim, rng = directed.DirectedSim(name), np.random.default_rng(0)
    state, _ = sim.reset(3, 0)
    toward, seen = state[-2:], [state[-2:]]
    for _ in range(hold + 5):
        before = sim._env.get_xy()
        state, reward, terminated, _ = sim.step(rng.uniform(-1, 1, sim.spec.action_dim))
        assert reward == pytest.approx((sim._env.get_xy() - before) @ toward)
        assert not terminated
        toward = state[-2:]
        seen.append(toward)
    assert np.flatnonzero(np.diff(seen, axis=0).any(axis=1)).tolist() == [hold - 1]
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1)
    assert state.shape == sim.spec.obs_shape
    assert not np.isclose(state[:-2], sim._env.get_xy()[0]).any()  # its place is not in it
    sim.close()


@pytest.mark.parametrize("name", ["visual-antmaze-medium", "visual-cube-single-singletask"])
def test_visual_tasks(name):
    try:
        env = envs.make(f"ogbench/{name}", 1)
    except RenderError as error:
        pytest.skip(str(error))
    obs, ts = record(env, 0, 1)
    check_types(env, obs, ts)
    assert env.spec.obs_shape == (64, 64, 3)
    assert env.spec.goal_shape == ((0,) if "singletask" in name else (64, 64, 3))
    assert obs.state.std() > 5
    assert env.render(size=16).shape == (16, 16, 3)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ogbench.tasks() if not name.startswith("visual-")])
def test_every_state_task_steps_repeats_and_forgets_the_episode_before(name):
    env = envs.make(f"ogbench/{name}", 1)
    first = record(env, 1, 10)
    check_types(env, first[0], first[1])
    record(env, 2, 5)
    assert same(first, record(env, 1, 10, disturb=1))
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ogbench.tasks() if n.startswith("visual-") and "singletask" not in n])
def test_every_visual_task_steps(name):
    test_visual_tasks(name)
