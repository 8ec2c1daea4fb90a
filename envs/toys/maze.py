"""A maze for a point, goal-conditioned with several tasks, and the shortest way through it; the same in pictures."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

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


class PixelState(NamedTuple):
    place: Array  # i32[2] cell
    goal: Array  # i32[2]
    obs: Observation


class PixelMaze:
    """`PointMaze` by cells, in pictures: one of four discrete moves at a time, the goal a picture too.

    A picture is u8[14, 18, 3], each cell 2 x 2 pixels: walls in blue, the walker in red.  A move goes to the next cell
    (up, down, left, right) or, into a wall, nowhere.  Tasks as there; success at the goal's cell; reward success - 1;
    only the clock ends an episode (30 steps).

    `guide` gives a first move of a shortest path of d cells, so it arrives after d steps, and nothing is faster.
    """

    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
    SCALE = 2  # pixels of a cell's side

    def __init__(self, max_steps: int = 30):
        self.maze = PointMaze()
        rows, columns = self.maze.free.shape
        shape = (self.SCALE * rows, self.SCALE * columns, 3)
        tasks = len(self.maze.TASKS)
        self.spec = EnvSpec("toy/pixelmaze", shape, 0, shape, num_actions=4, max_steps=max_steps, num_tasks=tasks)

    def render(self, place: Array) -> Array:
        """The picture u8[14, 18, 3] of a walker at the cell i32[2]."""
        free = jnp.asarray(self.maze.free)
        here = jnp.zeros(free.shape, bool).at[place[0], place[1]].set(True)
        planes = jnp.stack([here, jnp.zeros_like(here), ~free], -1).astype(jnp.uint8) * jnp.uint8(255)
        return planes.repeat(self.SCALE, 0).repeat(self.SCALE, 1)

    def place(self, picture: Array) -> Array:
        """The walker's cell i32[..., 2] in pictures u8[..., 14, 18, 3]."""
        red = picture[..., :: self.SCALE, :: self.SCALE, 0]
        return jnp.stack([red.max(-1).argmax(-1), red.max(-2).argmax(-1)], -1)

    def guide(self, picture: Array, goal: Array) -> Array:
        """A move i32[...] along a shortest path between the cells of two pictures."""
        columns = self.maze.free.shape[1]
        here, there = (at[..., 0] * columns + at[..., 1] for at in (self.place(picture), self.place(goal)))
        following = jnp.asarray(self.maze.toward)[there, here]
        step = following - here
        moves = jnp.asarray([row * columns + column for row, column in self.MOVES])
        return (step[..., None] == moves).argmax(-1)

    def reset(self, key: Key, task: Array) -> tuple[PixelState, Observation]:
        place, goal = jnp.asarray(self.maze.TASKS, jnp.int32)[task - 1]
        obs = start(self.render(place), self.render(goal))
        return PixelState(place, goal, obs), obs

    def step(self, state: PixelState, action: Array, key: Key):
        moved = state.place + jnp.asarray(self.MOVES)[action]
        place = jnp.where(jnp.asarray(self.maze.free)[moved[0], moved[1]], moved, state.place)
        success = (place == state.goal).all()
        obs, ts = follow(self.spec, state.obs, self.render(place), success - 1.0, success=success)
        return PixelState(place, state.goal, obs), ts
