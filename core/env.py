"""The two kinds of environment.  Actions are in [-1, 1]; tasks are numbered from 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from core.types import Array, EnvSpec, Key, Observation, PyTree, TimeStep


@runtime_checkable
class JaxEnv(Protocol):
    """One instance in pure JAX.  It never resets itself: `core.rollout` vmaps it and resets where an episode ended.

    `step` returns a `TimeStep` whose `obs` is its `final_obs`; it sets `truncated` at `spec.max_steps`.
    """

    spec: EnvSpec

    def reset(self, key: Key, task: Array) -> tuple[PyTree, Observation]: ...

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]: ...


@runtime_checkable
class HostEnv(Protocol):
    """B instances in NumPy that own their workers; never traced.

    Episode e of slot i depends only on (seed of the slot, e) and the actions: an int seed gives slot i the
    seed (seed, i), a sequence gives one to each slot.  `task` None draws a task per episode from its seed.
    A slot resets itself at its end.  Slots outside `active` (bool[B], default all) do not move: their TimeStep
    repeats the current observation with zero reward and no flag.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation: ...

    def step(self, action: Array, active: Array | None = None) -> TimeStep: ...

    def close(self) -> None: ...
