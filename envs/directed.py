"""Robots of OGBench's mazes on open ground, told which way to walk: what the experts behind its maze sets learn on.

The state is the robot's own without its place, and a unit vector z, drawn anew every 100 steps (humanoid: 200).  The
reward is the way made along z, in metres a step; nothing ends an episode but the clock (1000 steps).
Reference: the generation of OGBench's sets (Park et al., 2024, arXiv:2410.20092).
"""

from __future__ import annotations

import numpy as np

from core.seeds import derive
from core.types import Array, EnvSpec
from envs import render
from envs.host import NO_GOAL

ROBOTS = {"ant": ("ant", "AntEnv", 100), "humanoid": ("humanoid", "HumanoidEnv", 200)}  # module, class, steps of a z
TASKS = tuple(f"{robot}-directed" for robot in ROBOTS)


def told(state: Array, direction: Array) -> Array:
    """What an expert reads: a robot's state f[..., S], whose first two numbers are its place, and z f[..., 2]."""
    return np.concatenate([state[..., 2:], direction], axis=-1)


class DirectedSim:
    """One robot; `name` is one of `TASKS`."""

    def __init__(self, name: str):
        render.choose_backend()
        import importlib

        module, robot, self._hold = ROBOTS[name.removesuffix("-directed")]
        self._env = getattr(importlib.import_module(f"ogbench.locomaze.{module}"), robot)()
        self._studio = render.Studio(self._env.model)
        (size,), (actions,) = self._env.observation_space.shape, self._env.action_space.shape
        self.spec = EnvSpec(f"ogbench/{name}", (size,), actions)

    def reset(self, seed, task):
        self._rng = np.random.default_rng(derive(seed, 1))
        self._state, self._steps = self._env.reset(seed=seed)[0], 0
        return self._seen(), NO_GOAL

    def _seen(self) -> Array:
        if self._steps % self._hold == 0:
            angle = self._rng.uniform(0, 2 * np.pi)
            self._direction = np.array([np.cos(angle), np.sin(angle)])
        return told(self._state, self._direction)

    def step(self, action):
        before, toward = self._env.get_xy(), self._direction
        self._state = self._env.step(action)[0]
        self._steps += 1
        return self._seen(), float((self._env.get_xy() - before) @ toward), False, 0.0

    def render(self, size):
        return self._studio.frame(self._env.data, "back", size)

    def close(self):
        self._studio.close()
        self._env.close()
