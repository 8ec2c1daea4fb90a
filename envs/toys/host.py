"""A jitted environment behind the host protocol."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core.rollout import BatchState, JaxBatch
from core.seeds import slot_seeds
from core.types import Array, Observation, TimeStep
from envs.render import RenderError
from envs.wrappers import require


class HostFromJax:
    """`core.env.HostEnv` over the functions of a `JaxBatch`: the same numbers, out of jit.

    An int seed s is that of `JaxBatch.reset`, so episodes equal those of a jitted rollout from seed s.

    Raises: ValueError for a task that does not exist, or actions of another shape.
    """

    def __init__(self, batch: JaxBatch):
        self.batch, self.spec, self.num_envs = batch, batch.spec, batch.num_envs
        self._reset, self._step, self._restart = jax.jit(batch.reset), jax.jit(batch.step), jax.jit(self._renewed)
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

    def restart(self, slots: Array) -> Observation:
        if self._state is None:
            raise RuntimeError(f"{self.spec.name} was not reset yet")
        self._state = self._restart(self._state, np.asarray(slots))
        return jax.device_get(self._state.obs)

    def _renewed(self, state: BatchState, slots: Array) -> BatchState:
        episode = state.episode + slots
        env, obs = jax.vmap(self.batch.begin)(state.key, episode, state.fixed_task)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(slots.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        env, obs = jax.tree.map(choose, (env, obs), (state.env, state.obs))
        return state._replace(env=env, obs=obs, episode=episode)

    def render(self, slot: int = 0, size: int = 256) -> Array:
        raise RenderError(f"{self.spec.name} has no camera")

    def snapshot(self) -> None:
        """None: the state of a jitted environment is its `BatchState`, which a jitted loop keeps itself."""

    def restore(self, snapshot: Array) -> Observation:
        raise RuntimeError(f"{self.spec.name} has no snapshots behind the host protocol")

    def close(self) -> None:
        self._state = None
