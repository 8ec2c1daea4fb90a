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

    def restart(self, slots: Array) -> Observation:
        """End the episodes of the slots in bool[B] and begin their next ones; the others stay where they are."""

    def render(self, slot: int = 0, size: int = 256) -> Array:
        """What a slot looks like now: uint8[size, size, 3], first row at the top.

        Raises: RenderError where no picture can be made.
        """

    def snapshot(self) -> Array | None:
        """Everything that the future depends on, uint32[B, words], or None where that cannot be had.

        The same actions after `restore` give the same TimeSteps bit for bit, in another process too.  Only vectors
        whose simulators can be read out whole have one; a wrapper has none.
        """

    def restore(self, snapshot: Array) -> Observation:
        """Go on where a snapshot of a vector of the same task and size was taken; no reset is needed before.

        Raises: ValueError for an array of another shape or type; RuntimeError where `snapshot` gives None.
        """

    def close(self) -> None: ...
