"""OGBench's data sets made anew, by the oracles in its package: mazes, cube, scene and puzzle.

Sizes and noise are those of the published sets (Park et al., 2024, arXiv:2410.20092, and their generation commands).
Axes: T steps of an episode, S state, A action.

- mazes: from the centre of a random free cell, moved by U(-1, 1), along the shortest way to a goal: the unit vector to
  the centre of the next cell plus N(0, noise^2), clipped.  navigate: goals are cells that are not mere corridors, and
  each one reached is followed by another; stitch: one goal, exactly four cells away.
- mazes of ants and humanoids: the same by an expert that walks where it is told (`envs.directed`), which gets the unit
  vector; its actions plus N(0, noise^2), clipped.  explore: another direction every ten steps instead of a goal.
- play: an open-loop plan of the arm with smoothed noise; at its end the environment sets another target.
- noisy: a closed-loop oracle plus N(0, xi^2) (3 xi on the yaw, 10 xi on the gripper), xi drawn per episode from
  U(0, noise), and uniformly random actions with probability `p_random`.

Nothing is rewarded and no episode ends before its last step.  Scene episodes in which the cube leaves the table or
hides are played again, as published.  Three departures: an action is rounded to float32 before it is executed, as it is
stored; in its goal's cell an expert that walks is sent to the goal, which lies up to 1.4 from the centre and counts as
reached within 0.5, instead of to the centre, where it would wait; and a closed-loop oracle sees a new target at once,
not one step late (when the scene's late one would come from the episode before).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from core.seeds import derive
from core.types import Array, Observation
from envs import directed, ogbench, render
from envs.host import GlobalRandom


class Standard(NamedTuple):
    """A published set."""

    episodes: int
    steps: int  # T of every episode
    noise: float
    p_random: float = 0.0  # probability of a random action
    expert: str = ""  # OGBench task of the expert that walks; none: a point does


MAZES = ("pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport")
ANTS = ("antmaze-medium", "antmaze-large", "antmaze-giant", "antmaze-teleport")
HUMANOIDS = ("humanoidmaze-medium", "humanoidmaze-large", "humanoidmaze-giant")
TURNS = 10  # steps of explore's directions
EPISODES = {
    **dict.fromkeys(("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4"), 1000),
    **dict.fromkeys(("cube-triple", "puzzle-4x5"), 3000),
    **dict.fromkeys(("cube-quadruple", "puzzle-4x6"), 5000),
}
STACKING = {  # bounds of an episode's probability to stack a cube on another
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
ARM_JOINTS = 14  # of arm and gripper; the position of scene's cube follows in qpos


def standards(name: str) -> dict[str, Standard]:
    """The published sets of a task by kind, the usual one first; none where the package has no oracle."""
    if name in MAZES:
        long = Standard(500, 2000, 0.5) if name == "pointmaze-giant" else Standard(1000, 1000, 0.5)
        return {"navigate": long, "stitch": Standard(5000, 200, 0.5)}
    if name in ANTS:
        long, by = (500, 2000) if name == "antmaze-giant" else (1000, 1000), "ant-directed"
        sets = {"navigate": Standard(*long, 0.2, expert=by), "stitch": Standard(5000, 200, 0.2, expert=by)}
        return sets if name == "antmaze-giant" else {**sets, "explore": Standard(10_000, 500, 1.0, expert=by)}
    if name in HUMANOIDS:
        giant, by = name == "humanoidmaze-giant", "humanoid-directed"
        return {
            "navigate": Standard(1000, 4000 if giant else 2000, 0.2, expert=by),
            "stitch": Standard(10_000 if giant else 5000, 400, 0.2, expert=by),
        }
    if name in EPISODES:
        p_random = 0.2 if name.startswith("puzzle") else 0.1
        return {"play": Standard(EPISODES[name], 1000, 0.1), "noisy": Standard(EPISODES[name], 1000, 0.1, p_random)}
    return {}


class Oracle(Protocol):
    def episode(self, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """One episode that depends on its arguments alone: state f32[T + 1, S], action f32[T, A]."""

    def close(self) -> None: ...


class Expert(Protocol):
    """Walks where it is told: an `envs.players.Policy` of the expert's task."""

    def reset(self, seeds: Sequence[int]) -> None: ...

    def act(self, obs: Observation) -> Array: ...


def oracle(name: str, kind: str, noise: float, expert: Expert | None = None) -> Oracle:
    """The oracle of a task; `kind` is one of `standards(name)`, `expert` of the task that this names."""
    return ArmOracle(name, kind, noise) if name in EPISODES else MazeOracle(name, kind, noise, expert)


def _bare(name: str, **changes: Any) -> Any:
    render.choose_backend()
    import gymnasium
    import ogbench as library  # noqa: F401  registers its environments

    return ogbench.construct(gymnasium.spec(f"{name}-v0"), **changes)


class MazeOracle:
    def __init__(self, name: str, kind: str, noise: float, expert: Expert | None = None):
        self._random = GlobalRandom()
        with self._random:
            self._env = _bare(name)
        self._noise, self._kind, self._expert = noise, kind, expert
        free = self._env.maze_map == 0
        self._cells = [(int(i), int(j)) for i, j in np.argwhere(free)]
        self._vertices = [(i, j) for i, j in self._cells if not _corridor(free, i, j)]
        self._ways: dict[tuple, np.ndarray] = {}
        self._near: dict[tuple, list] = {}

    def episode(self, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        env, rng = self._env, np.random.default_rng(derive(seed, 1))
        begin = _pick(self._cells, rng)
        goal = _pick(self._four_away(begin) if self._kind == "stitch" else self._vertices, rng)
        self._random.seed(seed)
        env.action_space.seed(seed)
        states, actions = [], []
        with self._random:  # start, goal and teleporters' exits are drawn by the library
            states.append(env.reset(seed=seed, options={"task_info": {"init_ij": begin, "goal_ij": goal}})[0])
            if self._expert:
                self._expert.reset([seed])
            for step in range(steps):
                if self._kind != "explore":
                    here = env.get_xy()
                    arrived = self._expert and env.xy_to_ij(here) == env.xy_to_ij(env.cur_goal_xy)
                    way = (env.cur_goal_xy if arrived else self._next(here, env.cur_goal_xy)) - here
                    direction = way / (np.linalg.norm(way) + 1e-6)
                elif step % TURNS == 0:
                    angle = rng.uniform(0, 2 * np.pi)
                    direction = np.array([np.cos(angle), np.sin(angle)])
                meant = self._walked(states[-1], direction, step) if self._expert else direction
                drift = self._noise * rng.standard_normal(meant.shape)
                action = np.clip(meant + drift, -1, 1).astype(np.float32)
                state, _, _, _, info = env.step(action)
                states.append(state)
                actions.append(action)
                if info["success"] and self._kind == "navigate":
                    env.set_goal(_pick(self._vertices, rng))
        return np.array(states, np.float32), np.array(actions)

    def _walked(self, state: np.ndarray, direction: np.ndarray, step: int) -> np.ndarray:
        """The expert's action."""
        seen = directed.told(state, direction).astype(np.float32)[None]
        blank = np.zeros((1, 0), np.float32), np.zeros(1, np.float32), np.full(1, step, np.int32)
        return self._expert.act(Observation(seen, *blank))[0]

    def _next(self, here: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Centre of the next cell on the shortest way; the package's search, done once for each pair of cells."""
        pair = self._env.xy_to_ij(here), self._env.xy_to_ij(goal)
        if pair not in self._ways:
            self._ways[pair] = self._env.get_oracle_subgoal(here, goal)[0]
        return self._ways[pair]

    def _four_away(self, cell: tuple[int, int]) -> list[tuple[int, int]]:
        """Cells at the distance 4; the cell itself where there is none."""
        if cell not in self._near:
            centre = self._env.ij_to_xy(cell)
            distance = self._env.get_oracle_subgoal(centre, centre)[1]
            self._near[cell] = [(int(i), int(j)) for i, j in np.argwhere(distance == 4)] or [cell]
        return self._near[cell]

    def close(self) -> None:
        self._env.close()


def _corridor(free: np.ndarray, i: int, j: int) -> bool:
    """Whether a cell only leads straight on."""
    across, along = (free[i, j - 1], free[i, j + 1]), (free[i - 1, j], free[i + 1, j])
    return (all(across) and not any(along)) or (all(along) and not any(across))


def _pick(cells: list[tuple[int, int]], rng: np.random.Generator) -> tuple[int, int]:
    return cells[rng.integers(len(cells))]


class ArmOracle:
    def __init__(self, name: str, kind: str, noise: float):
        self._random = GlobalRandom()
        with self._random:
            self._env = _bare(name, terminate_at_goal=False, mode="data_collection")
        self._name, self._noise, self._closed_loop = name, noise, kind == "noisy"
        self._p_random = standards(name)[kind].p_random
        self._oracles = self._build()

    def _build(self) -> dict[str, Any]:
        """The package's oracle for each kind of target that the environment sets."""
        from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov
        from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

        scene, closed = self._name == "scene", {"gripper_always_closed": self._name.startswith("puzzle")}
        if self._closed_loop:
            common = {"env": self._env, "min_norm": 0.4}
            makers = {
                "cube": lambda: cube_markov.CubeMarkovOracle(**common, max_step=100 if scene else 200),
                "button": lambda: button_markov.ButtonMarkovOracle(**common, **closed),
                "drawer": lambda: drawer_markov.DrawerMarkovOracle(**common),
                "window": lambda: window_markov.WindowMarkovOracle(**common),
            }
        else:
            common = {"env": self._env, "noise": self._noise, "noise_smoothing": 0.5}
            makers = {
                "cube": lambda: cube_plan.CubePlanOracle(**common),
                "button": lambda: button_plan.ButtonPlanOracle(**common, **closed),
                "drawer": lambda: drawer_plan.DrawerPlanOracle(**common),
                "window": lambda: window_plan.WindowPlanOracle(**common),
            }
        targets = tuple(makers) if scene else ("cube",) if self._name.startswith("cube") else ("button",)
        return {target: makers[target]() for target in targets}

    def episode(self, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        attempt = 0
        while True:
            state, action, block = self._attempt(derive(seed, attempt), steps)
            if self._name != "scene" or _in_sight(block):
                return state, action
            attempt += 1

    def _attempt(self, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns: state, action, and the positions f64[T + 1, 3] of what follows the arm's joints: scene's cube."""
        env, rng = self._env, np.random.default_rng(derive(seed, 1))
        p_stack = rng.uniform(*STACKING.get(self._name, (0.5, 0.5)))
        xi = rng.uniform(0, self._noise) * np.array([1, 1, 1, 3, 10])
        self._random.seed(seed)
        with self._random:  # the oracles draw their plans from NumPy's global generator
            state, info = env.reset(seed=seed)
            states, actions, block = [state], [], [_cube(env)]
            oracle = self._begin(state, info)
            for _ in range(steps):
                if rng.random() < self._p_random:
                    action = rng.uniform(-1, 1, 5)
                else:
                    action = oracle.select_action(state, info)
                    if self._closed_loop:
                        action = action + xi * rng.standard_normal(5)
                action = np.clip(action, -1, 1).astype(np.float32)
                state, _, _, _, info = env.step(action)
                if oracle.done:
                    _, info = env.set_new_target(p_stack=p_stack)
                    oracle = self._begin(state, info)
                states.append(state)
                actions.append(action)
                block.append(_cube(env))
        return np.array(states, np.float32), np.array(actions), np.array(block)

    def _begin(self, state: np.ndarray, info: dict[str, Any]) -> Any:
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(state, info)
        return oracle

    def close(self) -> None:
        self._env.close()


def _cube(env: Any) -> np.ndarray:
    return env.data.qpos[ARM_JOINTS : ARM_JOINTS + 3].copy()


def _in_sight(block: np.ndarray) -> bool:
    """Whether scene's cube f64[T + 1, 3] stays on the table or in the drawer, where pictures of goals show it."""
    _, y, z = block.T
    fallen = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not ((y >= 0.29) | fallen).any()
