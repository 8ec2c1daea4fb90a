"""Continuous toys: action match, the same from pixels, and a point mass.

The environment's state is its last `Observation` wherever that says everything.  Axes: S state, A action.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.types import Array, EnvSpec, Key, Observation
from envs.toys.base import follow, start


class Match:
    """Guess the action that belongs to the state: reward 1 - |a - target(s)|^2; s stays for the whole episode.

    Only the clock ends an episode (10 steps), so with the right bootstrap the value of a deterministic policy is
    Q(s, a) = r(s, a) / (1 - gamma); the best is a = target(s) with V = 1 / (1 - gamma).  Treating the time limit
    as the end of the task would give r (1 - gamma^k) / (1 - gamma), k the steps left.
    """

    def __init__(self, max_steps: int = 10):
        self.spec = EnvSpec("toy/match", (2,), 2, max_steps=max_steps)

    @staticmethod
    def target(state: Array) -> Array:
        """The best action f32[..., 2] in states f32[..., 2]: a rotation by 45 degrees, within +-1."""
        return jnp.stack([state[..., 0] - state[..., 1], state[..., 0] + state[..., 1]], -1) / 2

    def reward(self, state: Array, action: Array) -> Array:
        return 1 - jnp.square(action - self.target(state)).sum(-1)

    def value(self, state: Array, action: Array, gamma: float) -> Array:
        """Q of giving `action` for ever."""
        return self.reward(state, action) / (1 - gamma)

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        obs = start(jax.random.uniform(key, (2,), minval=-1, maxval=1))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        reward = self.reward(state.state, action)
        return follow(self.spec, state, state.state, reward, success=reward > 0.9)


class PixelState(NamedTuple):
    cell: Array  # i32[2] row and column of the dot
    obs: Observation


class PixelMatch:
    """`Match` seen by a camera: uint8[side, side, 3] with a red dot, its row in green and its column in blue.

    The dot's row and column, scaled to [-1, 1], are the action to give: reward 1 - |a - target|^2, values as there.
    """

    def __init__(self, side: int = 12, max_steps: int = 10):
        self.side = side
        self.spec = EnvSpec("toy/pixels", (side, side, 3), 2, max_steps=max_steps)

    def target(self, image: Array) -> Array:
        """The best action f32[..., 2] for images uint8[..., side, side, 3]."""
        row = jnp.argmax(image[..., :, 0, 1], -1)
        column = jnp.argmax(image[..., 0, :, 2], -1)
        return self._scaled(jnp.stack([row, column], -1))

    def _scaled(self, cell: Array) -> Array:
        return 2.0 * cell / (self.side - 1) - 1

    def render(self, cell: Array) -> Array:
        """The image uint8[side, side, 3] of a dot at i32[2]."""
        row, column = (jnp.arange(self.side) == cell[0])[:, None], (jnp.arange(self.side) == cell[1])[None, :]
        shape = (self.side, self.side)
        planes = [row & column, jnp.broadcast_to(row, shape), jnp.broadcast_to(column, shape)]
        return jnp.stack(planes, -1).astype(jnp.uint8) * jnp.uint8(255)

    def reset(self, key: Key, task: Array) -> tuple[PixelState, Observation]:
        cell = jax.random.randint(key, (2,), 0, self.side)
        obs = start(self.render(cell))
        return PixelState(cell, obs), obs

    def step(self, state: PixelState, action: Array, key: Key):
        reward = 1 - jnp.square(action - self._scaled(state.cell)).sum()
        obs, ts = follow(self.spec, state.obs, state.obs.state, reward, success=reward > 0.9)
        return PixelState(state.cell, obs), ts


class PointMass:
    """A mass on a plane, pushed to the origin: state (x, y, vx, vy), dt 0.1 s, action = acceleration in m/s^2.

        v' = v + dt a,  x' = x + dt v',  reward = -(|x|^2 + 1.5 |a|^2) dt of the state before the push

    Starts lie in |x|, |y| < 1 at rest; 100 steps, no termination; success: within 0.1 m of the origin at the end.
    The regulator `controller` is optimal as long as it stays within the box, which it does from every start, so the
    best return is exactly -s' P_0 s (`optimal_return`), P from the finite-horizon Riccati recursion.
    """

    DT, EFFORT = 0.1, 1.5

    def __init__(self, max_steps: int = 100):
        self.spec = EnvSpec("toy/pointmass", (4,), 2, max_steps=max_steps)
        eye, zero = np.eye(2), np.zeros((2, 2))
        self.drift = np.block([[eye, self.DT * eye], [zero, eye]])  # f64[S, S]
        self.push = np.vstack([self.DT**2 * eye, self.DT * eye])  # f64[S, A]
        self.gains, self.cost = self._riccati(np.block([[eye, zero], [zero, zero]]) * self.DT)

    def _riccati(self, state_cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gains f64[T, A, S] by step and the cost-to-go f64[S, S] at the start."""
        cost, gains, effort = np.zeros((4, 4)), [], self.EFFORT * self.DT * np.eye(2)
        for _ in range(self.spec.max_steps):
            gain = np.linalg.solve(effort + self.push.T @ cost @ self.push, self.push.T @ cost @ self.drift)
            cost = state_cost + self.drift.T @ cost @ (self.drift - self.push @ gain)
            gains.append(gain)
        return np.stack(gains[::-1]), cost

    def controller(self, state: Array, step: Array) -> Array:
        """Optimal action f32[..., A] in states f32[..., S] at steps i32[...]."""
        gain = jnp.asarray(self.gains, jnp.float32)[step]
        return -(gain @ state[..., None])[..., 0]

    def optimal_return(self, state: Array) -> Array:
        """Best sum of rewards from first states f32[..., S]."""
        return -jnp.einsum("...i,ij,...j", state, jnp.asarray(self.cost, jnp.float32), state)

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        position = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        obs = start(jnp.concatenate([position, jnp.zeros(2)]))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        position, velocity = jnp.split(state.state, 2)
        action = jnp.clip(action, -1, 1)
        reward = -self.DT * (jnp.square(position).sum() + self.EFFORT * jnp.square(action).sum())
        velocity = velocity + self.DT * action
        position = position + self.DT * velocity
        near = jnp.linalg.norm(position) < 0.1
        return follow(self.spec, state, jnp.concatenate([position, velocity]), reward, success=near)
