"""Toys with a handful of states, whose values are exact: bandit, FrozenLake, one-step value, discount.

The environment's state is its last `Observation` wherever that says everything.
Axes: S states (one-hot), A actions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.types import Array, EnvSpec, Key, Observation
from envs.toys.base import follow, start

PERPENDICULAR = np.array([-1, 0, 1])  # slips of FrozenLake as turns of the action


class Bandit:
    """Bernoulli bandit of one step: arm 0 pays 1 with probability p, arm 1 with 1 - p (Dichotomy of Control).

    A policy that pulls arm a with probability q[a] is worth q @ means; the best, max(p, 1 - p).
    """

    def __init__(self, p: float = 0.1):
        self.spec = EnvSpec("toy/bandit", (1,), 0, num_actions=2, max_steps=1)
        self.means = np.array([p, 1 - p])  # f64[A]
        self.optimal_value = float(self.means.max())

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        obs = start(jnp.ones(1))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        paid = jax.random.bernoulli(key, jnp.asarray(self.means, jnp.float32)[action])
        return follow(self.spec, state, state.state, paid, terminated=True, success=paid)


class FrozenLake:
    """4x4 FrozenLake: reach G, avoid the holes H; the state is one-hot, actions are left, down, right, up.

        S F F F
        F H F H      The move goes the intended way with probability p, each perpendicular way with (1 - p)/2;
        F F F H      p = 1/3 is Gymnasium's default.  Reward 1 at G; G and H end the episode; 100 steps at most.
        H F F G

    `optimal_success` and `policy_success` are exact, by dynamic programming over the remaining steps.  The
    uniform policy succeeds with 0.01394 whatever p is, because its own moves are already uniform.
    """

    MAP = "SFFF FHFH FFFH HFFG".replace(" ", "")
    MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # (row, column) of left, down, right, up

    def __init__(self, p: float = 1 / 3):
        self.spec = EnvSpec("toy/frozenlake", (16,), 0, num_actions=4, max_steps=100)
        self.slip = np.array([(1 - p) / 2, p, (1 - p) / 2])  # of PERPENDICULAR
        self.target = np.array([[self._move(s, a) for a in range(4)] for s in range(16)])  # i64[S, A] without slip
        self.goal = np.array([c == "G" for c in self.MAP])
        self.terminal = np.array([c in "HG" for c in self.MAP])

    def _move(self, cell: int, action: int) -> int:
        row, column = np.clip(np.array(divmod(cell, 4)) + self.MOVES[action], 0, 3)
        return int(row * 4 + column)

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        obs = start(jax.nn.one_hot(0, 16))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        cell = jnp.argmax(state.state)
        turn = jax.random.choice(key, jnp.asarray(PERPENDICULAR), p=jnp.asarray(self.slip, jnp.float32))
        cell = jnp.asarray(self.target)[cell, (action + turn) % 4]
        won = jnp.asarray(self.goal)[cell]
        return follow(self.spec, state, jax.nn.one_hot(cell, 16), won, jnp.asarray(self.terminal)[cell], won)

    def transition(self) -> np.ndarray:
        """Exact probabilities f64[S, A, S]; holes and goal keep what enters them."""
        table = np.zeros((16, 4, 16))
        for cell in range(16):
            for action in range(4):
                if self.terminal[cell]:
                    table[cell, action, cell] = 1
                    continue
                for turn, chance in zip(PERPENDICULAR, self.slip, strict=True):
                    table[cell, action, self.target[cell, (action + turn) % 4]] += chance
        return table

    def optimal(self, horizon: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """Success probability f64[horizon + 1, S] by steps remaining, and the greedy actions i64[horizon + 1, S]."""
        chance, greedy, table = [self.goal.astype(float)], [np.zeros(16, int)], self.transition()
        for _ in range(horizon):
            q = table @ chance[-1]  # [S, A]
            chance.append(q.max(1))
            greedy.append(q.argmax(1))
        return np.stack(chance), np.stack(greedy)

    def optimal_success(self, horizon: int = 100) -> float:
        """Best probability of reaching the goal within `horizon` steps of the start."""
        return float(self.optimal(horizon)[0][-1, 0])

    def policy_success(self, policy: np.ndarray, horizon: int = 100) -> float:
        """The same for a stationary policy f[S, A] of action probabilities."""
        chance = self.goal.astype(float)
        kernel = np.einsum("sa,sat->st", policy, self.transition())
        for _ in range(horizon):
            chance = kernel @ chance
        return float(chance[0])


class OneStepValue:
    """One step whose reward depends on the state alone: V(s) = s0 - 2 s1 for every policy and discount."""

    def __init__(self):
        self.spec = EnvSpec("toy/value", (2,), 1, max_steps=1)

    @staticmethod
    def value(state: Array) -> Array:
        """V of states f32[..., 2]."""
        return state[..., 0] - 2 * state[..., 1]

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        obs = start(jax.random.uniform(key, (2,), minval=-1, maxval=1))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        return follow(self.spec, state, state.state, self.value(state.state), terminated=True)


class Discount:
    """A corridor of n states that every action walks along; reward 1 on leaving the last one, which ends it.

    The value of state k (one-hot) is gamma^(n - 1 - k) for every policy.
    """

    def __init__(self, length: int = 2):
        self.length = length
        self.spec = EnvSpec("toy/discount", (length,), 1, max_steps=length)

    def value(self, gamma: float) -> np.ndarray:
        """V of every state, f64[n]."""
        return gamma ** np.arange(self.length - 1, -1, -1.0)

    def reset(self, key: Key, task: Array) -> tuple[Observation, Observation]:
        obs = start(jax.nn.one_hot(0, self.length))
        return obs, obs

    def step(self, state: Observation, action: Array, key: Key):
        left = state.state[-1] > 0
        # the successor of the last state is all zeros: it lies outside the corridor
        return follow(self.spec, state, jnp.roll(state.state, 1).at[0].set(0), left, terminated=left, success=left)
