"""A jitted environment behind the host protocol."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from core.rollout import JaxBatch
from core.seeds import slot_seeds
from core.types import Array, Observation, TimeStep
from envs.wrappers import require


class HostFromJax:
    """`core.env.HostEnv` over the functions of a `JaxBatch`: the same numbers, out of jit.

    An int seed s is that of `JaxBatch.reset`, so episodes equal those of a jitted rollout from seed s.

    Raises: ValueError for a task that does not exist, or actions of another shape.
    """

    def __init__(self, batch: JaxBatch):
        self.batch, self.spec, self.num_envs = batch, batch.spec, batch.num_envs
        self._reset, self._step = jax.jit(batch.reset), jax.jit(batch.step)
        self._state = None

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        wrong = [] if task is None else [t for t in np.atleast_1d(task) if not 1 <= t <= self.spec.num_tasks]
        if wrong:
            raise ValueError(f"{self.spec.name} has no task {wrong[0]}; its tasks are 1 to {self.spec.num_tasks}")
        seeds = np.asarray(slot_seeds(seed, self.num_envs), np.uint32)
        self._state, obs = self._reset(seeds, np.asarray(0 if task is None else task, np.int32))
        return jax.device_get(obs)

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        if self._state is None:
            raise RuntimeError(f"{self.spec.name} was stepped before it was reset")
        require(action, (self.num_envs, *self.spec.action_shape))
        active = np.ones(self.num_envs, bool) if active is None else np.asarray(active)
        self._state, ts = self._step(self._state, action, active)
        return jax.device_get(ts)

    def close(self) -> None:
        self._state = None
