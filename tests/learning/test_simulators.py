"""TD3+BC learns on the real simulators, from data that a simple behaviour makes on the spot.

Each test plays episodes in MuJoCo or OGBench, trains on them with three seeds side by side, and asks every seed to do
better than the behaviour and than cloning it; all scores are printed (`pytest -s`), also by a failure.  Networks and
budgets are smaller than the paper's, for time.  Meta-World is `make demo`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import algos
import envs
from core.seeds import derive
from envs import datasets
from envs.host import HostVector
from envs.registry import Options
from experiments.options import DataOptions, EvalOptions, Train
from experiments.train import train

pytestmark = pytest.mark.slow

HIDDEN = (128, 128)
Policy = Callable[[np.ndarray, int], np.ndarray]  # (state f64[S], step) -> action [A]


def play(env: HostVector, behaviour: Callable[[np.random.Generator], Policy], episodes: int) -> dict[str, np.ndarray]:
    """Each slot's first `episodes` episodes, so that short ones are not over-represented; the layout of
    `envs.datasets`.  `behaviour` makes the policy of one episode from its generator."""

    def begin(slot: int) -> Policy:
        return behaviour(np.random.default_rng(derive(0, slot, len(played[slot]))))

    slots = range(env.num_envs)
    played, running = [[] for _ in slots], [[] for _ in slots]
    policies, obs = [begin(slot) for slot in slots], env.reset(0)
    while (active := np.array([len(done) < episodes for done in played])).any():
        chosen = [policy(*now) for policy, *now in zip(policies, obs.state.astype(np.float64), obs.step, strict=True)]
        action = np.clip(chosen, -1, 1).astype(np.float32)
        ts = env.step(action, active)
        for slot in np.flatnonzero(active):
            running[slot].append((obs.state[slot], action[slot], ts.reward[slot], ts.terminated[slot]))
            if ts.terminated[slot] or ts.truncated[slot]:
                running[slot].append((ts.final_obs.state[slot], 0 * action[slot], np.float32(0), np.False_))
                played[slot].append((running[slot], ts.success[slot]))
                running[slot], policies[slot] = [], begin(slot)
        obs = ts.obs
    every = [episode for done in played for episode in done]
    columns = zip(*(row for rows, _ in every for row in rows), strict=True)
    arrays = dict(zip(datasets.ARRAYS[:4], map(np.stack, columns), strict=True))
    length = np.array([len(rows) - 1 for rows, _ in every], np.int32)
    return {**arrays, "length": length, "success": np.array([success for _, success in every], np.float32)}


class Scores(NamedTuple):
    ret: np.ndarray  # [seeds] mean return of the last evaluation
    success: np.ndarray  # [seeds]


def learn(algo: str, task: str, data: Path, env: Options, updates: int, **config) -> Scores:
    """Train three seeds beside the dataset and judge them on 20 fresh episodes each."""
    chosen = Train(
        config=algos.load(algo).Config(hidden=HIDDEN, **config),
        data=DataOptions(str(data)), env=env, eval=EvalOptions(every=updates, episodes=20, envs=10),
        seeds=(0, 1, 2), steps=updates, save_every=updates, out=str(data.parent),
    )  # fmt: skip
    folder = train(algo, task, chosen, quiet=True)
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return Scores(*(np.array([row[key] for row in rows]) for key in ("return", "success")))


def compare(key: str, before: float, bc: Scores, td3_bc: Scores) -> str:
    """The numbers, for a reader of the log or of a failure."""
    values = {"BC": getattr(bc, key), "TD3+BC": getattr(td3_bc, key)}
    line = f"mean {key}: behaviour {before:.2f}" + "".join(
        f"; {name} {value.mean():.2f} (seeds {' '.join(f'{v:.2f}' for v in value)})" for name, value in values.items()
    )
    print(line)
    return line


def random_gait(rng: np.random.Generator) -> Policy:
    """Every joint swings by itself, at one pace, with noise; most such gaits lead nowhere, or backwards."""
    pace, phase, reach = rng.uniform(0.2, 0.8), rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.5, 1, 6)
    return lambda state, step: reach * np.sin(pace * step + phase) + 0.2 * rng.standard_normal(6)


def test_mujoco(tmp_path):
    task, data, options = "mujoco/halfcheetah-v5", tmp_path / "data.npz", Options(max_steps=200)
    env = envs.make(task, 10, options)
    card = datasets.write(data, play(env, random_gait, 30), {"task": task})
    env.close()
    bc = learn("bc", task, data, options, 4_000)
    # Few updates: a faster target, and twice the paper's weight on Q.
    td3_bc = learn("td3_bc", task, data, options, 12_000, alpha=5.0, tau=0.02)
    before = card["return"]["mean"]
    numbers = compare("ret", before, bc, td3_bc)
    assert td3_bc.ret.min() > max(before, bc.ret.max()) + 40, numbers


def wanderer(maze, towards_goal: float) -> Callable[[np.random.Generator], Policy]:
    """Walks from cell to cell by the shortest way, with noise, to places drawn at random; with the probability
    `towards_goal` the place is the task's goal.

    Args: maze: OGBench's point maze, for its map and its goal.
    """
    free = [(int(i), int(j)) for i, j in np.argwhere(maze.maze_map == 0)]
    goal = maze.cur_task_info["goal_ij"]

    def around(cell):
        i, j = cell
        return [n for n in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if maze.maze_map[n] == 0]

    def distances(end) -> dict:
        found, queue = {end: 0}, [end]
        for cell in queue:
            for near in around(cell):
                if near not in found:
                    found[near] = found[cell] + 1
                    queue.append(near)
        return found

    steps_to = {cell: distances(cell) for cell in free}

    def behaviour(rng: np.random.Generator) -> Policy:
        def draw():
            return goal if rng.random() < towards_goal else free[rng.integers(len(free))]

        end = draw()

        def policy(state: np.ndarray, step: int) -> np.ndarray:
            nonlocal end
            if np.linalg.norm(state - maze.ij_to_xy(end)) < 1:
                end = draw()
            here = maze.xy_to_ij(state)
            via = here if here == end else min(around(here), key=steps_to[end].get)
            way = np.array(maze.ij_to_xy(via)) - state
            return way / max(np.linalg.norm(way), 1e-6) + 0.5 * rng.standard_normal(2)

        return policy

    return behaviour


def test_ogbench(tmp_path):
    task, data, options = "ogbench/pointmaze-medium-singletask-task3", tmp_path / "data.npz", Options(max_steps=200)
    env = envs.make(task, 10, options)
    env.reset(0)
    behaviour = wanderer(env._slots._batch._sims[0]._env, towards_goal=0.35)
    card = datasets.write(data, play(env, behaviour, 12), {"task": task})
    env.close()
    # A faster target: the reward has to travel back over a hundred steps in few updates.
    bc = learn("bc", task, data, options, 3_000)
    td3_bc = learn("td3_bc", task, data, options, 10_000, tau=0.05)
    before = card["return"]["mean"]
    numbers = [compare("success", card["success"], bc, td3_bc), compare("ret", before, bc, td3_bc)]
    assert td3_bc.success.min() > card["success"] + 0.15, numbers
    assert td3_bc.ret.min() > max(before, bc.ret.max()) + 10, numbers
