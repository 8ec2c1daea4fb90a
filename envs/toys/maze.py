"""A maze for a point, goal-conditioned with several tasks, and the shortest way through it."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np

from core.types import Array, EnvSpec, Key, Observation
from envs.toys.base import follow, start


class PointMaze:
    """A point walks to a goal; state and goal are (row, column) in cells, cell (i, j) covers [i, i+1) x [j, j+1).

    An action moves the point by at most 0.25 along each axis, one axis after the other, and a move into a wall does
    not happen.  A task is a first and a goal cell; start and goal are drawn within 0.25 of their centres (each
    coordinate).  Success: within 0.3 of the goal; reward success - 1; only the clock ends an episode (100 steps).

    `guide` walks from centre to centre along a shortest path of d cells (`distance`), so it arrives within 4 (d + 1)
    steps; no policy needs fewer than (Euclidean distance - 0.3) / (0.25 sqrt 2).
    """

    MAP = (
        "#########",
        "#...#...#",
        "#.#.#.#.#",
        "#.#...#.#",
        "#.###.#.#",
        "#.....#.#",
        "#########",
    )
    TASKS = (((1, 1), (5, 5)), ((1, 1), (1, 5)), ((5, 7), (5, 1)), ((1, 7), (3, 3)), ((3, 5), (5, 7)))  # first, goal
    SPEED, RADIUS = 0.25, 0.3

    def __init__(self, max_steps: int = 100):
        self.free = np.array([[c == "." for c in row] for row in self.MAP])  # bool[rows, columns]
        self.spec = EnvSpec("toy/pointmaze", (2,), 2, (2,), max_steps=max_steps, num_tasks=len(self.TASKS))
        self.distance, self.toward = self._paths()

    def _paths(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells between goal and cell, i64[goal, cell] (-1 for none), and the next cell on the way, i64[goal, cell]."""
        columns, cells = self.free.shape[1], self.free.size
        distance, toward = np.full((cells, cells), -1), np.tile(np.arange(cells), (cells, 1))
        for goal in np.flatnonzero(self.free):
            distance[goal, goal], queue = 0, deque([goal])
            while queue:
                cell = queue.popleft()
                for other in (cell - columns, cell + columns, cell - 1, cell + 1):
                    if self.free.flat[other] and distance[goal, other] < 0:
                        distance[goal, other], toward[goal, other] = distance[goal, cell] + 1, cell
                        queue.append(other)
        return distance, toward

    def cell(self, position: Array) -> Array:
        """Number i32[...] of the cell at f32[..., 2]."""
        index = jnp.floor(position).astype(jnp.int32)
        return index[..., 0] * self.free.shape[1] + index[..., 1]

    def guide(self, position: Array, goal: Array) -> Array:
        """Action f32[..., 2] towards the next cell's centre on a shortest path, or the goal in its own cell."""
        here, there = self.cell(position), self.cell(goal)
        following = jnp.asarray(self.toward)[there, here]
        centre = jnp.stack(jnp.divmod(following, self.free.shape[1]), -1) + 0.5
        aim = jnp.where((here == there)[..., None], goal, centre)
        return jnp.clip((aim - position) / self.SPEED, -1, 1)

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        cells = jnp.asarray(self.TASKS, jnp.float32)[task - 1]
        first, goal = cells + 0.5 + jax.random.uniform(key, (2, 2), minval=-0.25, maxval=0.25)
        obs = start(first, goal)
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        position, free = state.state, jnp.asarray(self.free).ravel()
        move = self.SPEED * jnp.clip(action, -1, 1)
        for axis in range(2):
            moved = position.at[axis].add(move[axis])
            position = jnp.where(free[self.cell(moved)], moved, position)
        success = jnp.linalg.norm(position - state.goal) < self.RADIUS
        return follow(self.spec, state, position, success - 1.0, success=success)
