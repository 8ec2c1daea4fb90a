"""OGBench's oracles: the package's own ways, episodes that depend on the seed alone, what a set consists of."""

import numpy as np
import pytest

from core.seeds import derive
from envs import oracles
from envs.collect import EXPERTS
from envs.policies import WeightsPolicy


@pytest.fixture(scope="module")
def maze():
    yield (made := oracles.oracle("pointmaze-medium", "navigate", 0.5))
    made.close()


def test_every_task_of_the_published_sets_is_registered():
    from envs import ogbench

    names = [*oracles.MAZES, *oracles.EPISODES]
    assert len(names) == 13
    assert set(names) <= set(ogbench.tasks())
    sizes = {kind: s.episodes * s.steps for name in oracles.MAZES for kind, s in oracles.standards(name).items()}
    assert sizes == {"navigate": 1_000_000, "stitch": 1_000_000}
    assert oracles.standards("cube-quadruple")["play"].episodes * 1000 == 5_000_000
    assert oracles.standards("puzzle-3x3")["noisy"].p_random == 0.2
    assert oracles.standards("antsoccer-arena") == {}
    walked = {name: oracles.standards(name) for name in (*oracles.ANTS, *oracles.HUMANOIDS)}
    assert {s.expert for name in oracles.ANTS for s in walked[name].values()} == {"ant-directed"}
    assert walked["antmaze-large"]["explore"].episodes * walked["antmaze-large"]["explore"].steps == 5_000_000
    assert walked["humanoidmaze-giant"]["stitch"].episodes * 400 == 4_000_000


def test_a_maze_episode(maze):
    state, action = maze.episode(3, 400)
    assert state.shape == (401, 2)
    assert action.shape == (400, 2)
    assert state.dtype == action.dtype == np.float32
    again, _ = maze.episode(4, 10)
    np.testing.assert_array_equal(maze.episode(3, 400)[0], state)  # whatever was played in between
    assert not np.array_equal(again, state[:11])
    np.testing.assert_allclose(np.diff(state, axis=0)[:5], 0.2 * action[:5], atol=1e-3)  # the point's dynamics


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_walk_is_the_packages_oracle_with_noise(noise, monkeypatch):
    """Actions point to the next cell on the way to the goal of the moment; what remains is the noise."""
    maze = oracles.oracle("pointmaze-medium", "navigate", noise)
    env, seen = maze._env, []
    step = env.step
    monkeypatch.setattr(env, "step", lambda action: (seen.append((env.get_xy(), env.cur_goal_xy)), step(action))[1])
    action = np.concatenate([maze.episode(seed, 300)[1] for seed in (5, 6, 7)])
    ways = np.array([env.get_oracle_subgoal(here, goal)[0] - here for here, goal in seen])
    direction = ways / (np.linalg.norm(ways, axis=1, keepdims=True) + 1e-6)
    residual = np.abs(action - direction)
    if noise:  # away from the sides of the box clipping leaves the median as it is
        assert np.median(residual[np.abs(direction) < 0.5]) == pytest.approx(0.6745 * noise, rel=0.1)
        assert len({tuple(goal) for _, goal in seen}) > 3  # it arrives, and goes on
    else:
        assert residual.max() < 1e-6
    maze.close()


def test_the_goals_of_a_maze(maze):
    """navigate: no mere corridors; stitch: exactly four cells away, by a search of the test's own."""
    free = {tuple(cell) for cell in np.argwhere(maze._env.maze_map == 0)}
    assert set(maze._cells) == free

    def around(cell):
        return [n for n in ((cell[0] + i, cell[1] + j) for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))) if n in free]

    for cell in free:
        near = around(cell)
        straight = len(near) == 2 and (near[0][0] == near[1][0] or near[0][1] == near[1][1])
        assert (cell in maze._vertices) == (not straight)
        reach = [{cell}]
        for _ in range(4):
            reach.append({n for c in reach[-1] for n in around(c)} - set().union(*reach))
        assert set(maze._four_away(cell)) == (reach[4] or {cell})


def test_stitch_stays_near_its_start():
    stitch = oracles.oracle("pointmaze-medium", "stitch", 0.5)
    for seed in range(5):
        state, _ = stitch.episode(seed, 200)
        begin, end = (stitch._env.xy_to_ij(xy) for xy in (state[0], state[-1]))
        assert end in stitch._four_away(begin)  # there it waits
    stitch.close()


def test_teleporters_send_to_other_places():
    teleport = oracles.oracle("pointmaze-teleport", "navigate", 0.5)
    jumps = []
    for seed in range(4):
        state, _ = teleport.episode(seed, 300)
        moved = np.linalg.norm(np.diff(state, axis=0), axis=1)
        jumps.extend(state[1:][moved > 5])
    exits = np.array(teleport._env._teleport_info["teleport_out_xys"])
    assert jumps
    assert all(np.linalg.norm(exits - jump, axis=1).min() < 0.5 for jump in jumps)
    teleport.close()


def walking(kind):
    """An oracle of antmaze-medium with our expert."""
    from envs.directed import DirectedSim

    sim = DirectedSim("ant-directed")
    expert = WeightsPolicy(EXPERTS / "ant-directed.npz", "", sim.spec.name, sim.spec)
    sim.close()
    return oracles.oracle("antmaze-medium", kind, 0.2, expert)


def test_an_ant_walks_from_goal_to_goal():
    ant = walking("navigate")
    goals, set_goal = [], ant._env.set_goal
    ant._env.set_goal = lambda *a, **k: (goals.append(a or k), set_goal(*a, **k))[1]
    state, action = ant.episode(3, 400)
    assert state.shape == (401, 29)
    assert action.shape == (400, 8)
    assert len(goals) > 2  # the first is set by the reset
    assert np.linalg.norm(np.diff(state[:, :2], axis=0), axis=1).mean() > 0.1
    again, _ = ant.episode(3, 50)
    np.testing.assert_array_equal(again, state[:51])
    ant.close()


def test_an_exploring_ant_turns_every_ten_steps(monkeypatch):
    ant = walking("explore")
    told, act = [], ant._expert.act
    monkeypatch.setattr(ant._expert, "act", lambda obs: (told.append(obs.state[0, -2:]), act(obs))[1])
    ant.episode(3, 40)
    turns = np.flatnonzero(np.abs(np.diff(told, axis=0)).max(axis=1)) + 1
    np.testing.assert_array_equal(turns, [10, 20, 30])
    np.testing.assert_allclose(np.linalg.norm(told, axis=1), 1, rtol=1e-6)
    ant.close()


@pytest.mark.parametrize(("name", "kind"), [("cube-double", "play"), ("scene", "noisy"), ("puzzle-3x3", "play")])
def test_an_arm_episode_depends_on_its_seed_alone(name, kind):
    arm = oracles.oracle(name, kind, 0.1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    state, action = arm.episode(3, 120)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    arm.episode(4, 60)
    again = arm.episode(3, 120)
    np.testing.assert_array_equal(again[0], state)
    np.testing.assert_array_equal(again[1], action)
    assert action.shape == (120, 5)
    assert np.abs(action).max() == 1.0
    arm.close()


def test_play_moves_the_cube():
    arm = oracles.oracle("cube-single", "play", 0.1)
    state, _ = arm.episode(0, 200)
    cube, height = state[:, 19:21] / 10, state[:, 21] / 10  # in metres
    assert height.max() > 0.1
    assert np.linalg.norm(cube[-1] - cube[0]) > 0.05
    arm.close()


def test_what_is_out_of_sight():
    on_table = np.tile([0.4, 0.0, 0.02], (5, 1))
    assert oracles._in_sight(on_table)
    for y, z, seen in [(0.3, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True), (-0.31, 0.09, False)]:
        moved = on_table.copy()
        moved[2, 1:] = y, z
        assert oracles._in_sight(moved) == seen


def test_a_scene_out_of_sight_is_played_again(monkeypatch):
    scene = oracles.oracle("scene", "play", 0.1)
    hidden, there = (np.tile([0.4, y, 0.02], (3, 1)) for y in (0.3, 0.0))
    seeds = []

    def attempt(seed, steps):
        seeds.append(seed)
        number = np.full(steps, len(seeds))
        return number, -number, hidden if len(seeds) == 1 else there

    monkeypatch.setattr(scene, "_attempt", attempt)
    state, action = scene.episode(7, 2)
    assert (state.tolist(), action.tolist()) == ([2, 2], [-2, -2])
    assert seeds == [derive(7, 0), derive(7, 1)]
    scene.close()
