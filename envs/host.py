"""Vectors of simulators in NumPy: everything around an episode, written once for every family.

A family provides a `Sim`, one instance that never resets itself.  `HostVector` adds the rest of `core.env.HostEnv`:
seeds per episode, time limits, resets, float32, and worker processes.  Axes: B slots.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from core.config import ConfigError
from core.seeds import derive, slot_seeds
from core.types import Array, EnvSpec, Observation, TimeStep
from envs.workers import Pool


class Sim(Protocol):
    """One simulator in one process.  An episode may depend on its seed, its task and the actions, on nothing else."""

    spec: EnvSpec  # max_steps: the task's own limit, which the sim leaves to its owner

    def reset(self, seed: int, task: int) -> tuple[Array, Array]:
        """Begin an episode; task 0: drawn from the seed.  Returns: state, goal of the spec's shapes."""

    def step(self, action: Array) -> tuple[Array, float, bool, float]:
        """Apply f32[A] in [-1, 1] (clip it).  Returns: state, reward, terminated, success."""

    def render(self, size: int) -> Array:
        """The scene as uint8[size, size, 3], first row at the top."""

    def close(self) -> None: ...


NO_GOAL = np.zeros(0, np.float32)


def draw_task(seed: int, num_tasks: int) -> int:
    """A task number for an episode that was given none."""
    return int(np.random.default_rng(seed).integers(1, num_tasks + 1))


class GlobalRandom:
    """NumPy's global generator on loan: inside `with`, library code continues this object's own stream; nobody else
    sees a draw of it, and nobody else's draws change it."""

    def __init__(self, seed: int = 0):
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self._own = np.random.RandomState(seed).get_state()

    def __enter__(self) -> None:
        self._outer = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._own)  # noqa: NPY002

    def __exit__(self, *exc_info) -> None:
        self._own = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._outer)  # noqa: NPY002


class Box:
    """The affine map from [-1, 1] to a simulator's action bounds; exact where the bounds are -1 and 1."""

    def __init__(self, low: Array, high: Array):
        self._center = ((np.asarray(high, np.float64) + low) / 2).astype(np.float32)
        self._half = ((np.asarray(high, np.float64) - low) / 2).astype(np.float32)

    def __call__(self, action: Array) -> Array:
        return self._center + self._half * np.clip(action, -1.0, 1.0)


class Slots:
    """Some of a vector's slots, in one process."""

    def __init__(self, factory: Callable[[], Sim], count: int, max_steps: int = 0):
        self._sims = [factory() for _ in range(count)]
        spec = self._sims[0].spec
        if not 0 <= max_steps <= spec.max_steps:
            raise ConfigError(f"max_steps {max_steps} is not in 0..{spec.max_steps}: {spec.name} cannot run longer")
        self.spec = spec._replace(max_steps=max_steps or spec.max_steps)
        self._seeds, self._tasks, self._episode = [0] * count, [0] * count, [0] * count
        state_type, goal_type = (np.uint8 if len(s) == 3 else np.float32 for s in (spec.obs_shape, spec.goal_shape))
        self._now = Observation(
            np.zeros((count, *spec.obs_shape), state_type),
            np.zeros((count, *spec.goal_shape), goal_type),
            np.zeros(count, np.float32),
            np.zeros(count, np.int32),
        )

    def get_spec(self) -> EnvSpec:
        return self.spec

    def reset(self, seeds: list[int], tasks: list[int]) -> Observation:
        self._seeds, self._tasks, self._episode = list(seeds), list(tasks), [0] * len(seeds)
        for slot in range(len(seeds)):
            self._begin(slot)
        return self._copy()

    def restart(self, slots: Array) -> Observation:
        for slot in np.flatnonzero(slots):
            self._next_episode(slot)
        return self._copy()

    def step(self, action: Array, active: Array) -> TimeStep:
        final = self._copy()
        reward, success = np.zeros((2, len(self._sims)), np.float32)
        terminated, truncated = np.zeros((2, len(self._sims)), bool)
        for slot in np.flatnonzero(active):
            state, reward[slot], terminated[slot], success[slot] = self._sims[slot].step(action[slot])
            final.state[slot] = state
            final.reward[slot] = reward[slot]
            final.step[slot] += 1
            truncated[slot] = final.step[slot] >= self.spec.max_steps and not terminated[slot]
            if terminated[slot] or truncated[slot]:
                self._next_episode(slot)
            else:
                for now, new in zip(self._now, final, strict=True):
                    now[slot] = new[slot]
        return TimeStep(self._copy(), final, reward, terminated, truncated, success)

    def render(self, slot: int, size: int) -> Array:
        return self._sims[slot].render(size)

    def close(self) -> None:
        for sim in self._sims:
            sim.close()
        self._sims = []

    def _next_episode(self, slot: int) -> None:
        self._episode[slot] += 1
        self._begin(slot)

    def _begin(self, slot: int) -> None:
        state, goal = self._sims[slot].reset(derive(self._seeds[slot], self._episode[slot]), self._tasks[slot])
        if np.shape(state) != self.spec.obs_shape or np.shape(goal) != self.spec.goal_shape:
            raise ValueError(
                f"{self.spec.name} gave a state {np.shape(state)} and a goal {np.shape(goal)}: {self.spec}"
            )
        for now, new in zip(self._now, (state, goal, 0.0, 0), strict=True):
            now[slot] = new

    def _copy(self) -> Observation:
        return Observation(*(x.copy() for x in self._now))


class HostVector:
    """B sims as a `core.env.HostEnv`; the results do not depend on the number of workers.

    Args: factory: makes one sim; picklable when workers > 0.
        workers: processes that share the slots; 0 steps them in this one.
        max_steps: a shorter time limit than the task's own, 0 keeps that.
    Raises: WorkerError when a worker fails or dies; then all are ended.
    """

    def __init__(self, factory: Callable[[], Sim], num_envs: int, workers: int = 0, max_steps: int = 0):
        if num_envs < 1 or workers < 0:
            raise ConfigError(f"num_envs is {num_envs} and workers {workers}; at least 1 and 0 are needed")
        self.num_envs, self._state = num_envs, "not reset yet"
        counts = [len(part) for part in np.array_split(range(num_envs), max(min(workers, num_envs), 1))]
        self._edges = np.cumsum([0, *counts])
        factories = [functools.partial(Slots, factory, count, max_steps) for count in counts]
        self._pool = Pool(factories) if workers else None
        self._slots = None if workers else factories[0]()
        self.spec: EnvSpec = self._pool.call_one(0, "get_spec") if self._pool else self._slots.spec

    @property
    def worker_pids(self) -> list[int]:
        return self._pool.pids if self._pool else []

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        """Begin episode 0 in every slot; see `core.env.HostEnv`.

        Raises: ValueError for a seed below zero, a task outside 1..num_tasks, or not one of each per slot.
        """
        tasks = [0 if t is None else int(t) for t in ([task] * self.num_envs if np.ndim(task) == 0 else task)]
        if len(tasks) != self.num_envs:
            raise ValueError(f"{len(tasks)} tasks for {self.num_envs} slots; give one number or one per slot")
        if np.min(seed) < 0:
            raise ValueError(f"the seed {np.min(seed)} is negative")
        wrong = [t for t in tasks if not (0 if task is None else 1) <= t <= self.spec.num_tasks]
        if wrong:
            raise ValueError(f"{self.spec.name} has no task {wrong[0]}; its tasks are 1 to {self.spec.num_tasks}")
        if self._state == "closed":
            raise RuntimeError(f"{self.spec.name} is closed")
        self._state = "ready"
        return self._call("reset", slot_seeds(seed, self.num_envs), tasks)

    def restart(self, slots: Array) -> Observation:
        """End the episodes of the slots in bool[B] and begin their next ones; the others stay where they are."""
        return self._call("restart", slots)

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        """One step of every slot (of the active ones, bool[B], when given).

        Args: action: f32[B, A] in [-1, 1]; what lies outside is clipped.
        Raises: ValueError for another shape, or for an action that is not finite.
        """
        if self._state != "ready":
            raise RuntimeError(f"{self.spec.name} cannot step: it is {self._state}")
        action, shape = np.asarray(action), (self.num_envs, *self.spec.action_shape)
        active = np.ones(self.num_envs, bool) if active is None else np.asarray(active)
        if action.shape != shape or action.dtype.kind not in "fiu":
            raise ValueError(f"{self.spec.name} takes actions f32{list(shape)}, not {action.dtype}{list(action.shape)}")
        if active.shape != shape[:1] or active.dtype != bool:
            raise ValueError(f"active is bool{list(shape[:1])}, not {active.dtype}{list(active.shape)}")
        bad = active & ~np.isfinite(action).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"{self.spec.name}: action row {row} is not finite: {action[row]}")
        return self._call("step", action.astype(np.float32), active)

    def render(self, slot: int = 0, size: int = 256) -> Array:
        """What a slot looks like now: uint8[size, size, 3].  Raises: envs.render.RenderError without a renderer."""
        if not 0 <= slot < self.num_envs:
            raise ValueError(f"there is no slot {slot} among {self.num_envs}")
        if not self._pool:
            return self._slots.render(slot, size)
        worker = int(np.searchsorted(self._edges, slot, side="right")) - 1
        return self._pool.call_one(worker, "render", slot - int(self._edges[worker]), size)

    def close(self) -> None:
        if self._pool:
            self._pool.close()
        else:
            self._slots.close()
        self._state = "closed"

    def _call(self, method: str, *args: Sequence) -> Observation | TimeStep:
        """Split [B] arguments over the processes and join what they return."""
        if not self._pool:
            return getattr(self._slots, method)(*args)
        edges = zip(self._edges[:-1], self._edges[1:], strict=True)
        return _join(self._pool.call(method, [tuple(x[a:b] for x in args) for a, b in edges]))


def _join(parts: Sequence) -> Observation | TimeStep | Array:
    if isinstance(parts[0], tuple):
        return type(parts[0])(*map(_join, zip(*parts, strict=True)))
    return np.concatenate(parts)
