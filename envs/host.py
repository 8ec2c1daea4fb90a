"""Vectors of simulators in NumPy: everything around an episode, written once for every family.

A family provides a `Sim`, one instance that never resets itself, or a `Batch`, several that step together.  From the
inside out: a `Batch` simulates (`Each` is one of single sims), `Slots` keeps the episodes (seeds, time limits, resets,
float32), `Split` spreads slots over this and other processes, and `Vector` checks what its caller gives; together they
are a `core.env.HostEnv`.  Axes: B slots, n of them, W words.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from core.config import ConfigError
from core.seeds import derive, slot_seeds
from core.types import Array, EnvSpec, Observation, TimeStep, blank_observation
from envs.workers import Pool, nameless_file, shared_arrays


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
        self._unit = not self._center.any() and (self._half == 1).all()

    def __call__(self, action: Array) -> Array:
        clipped = np.minimum(np.maximum(action, -1), 1)  # a quarter of np.clip's price
        return clipped if self._unit else self._center + self._half * clipped


class Batch(Protocol):
    """Simulators that step together, told apart by slot numbers i64[n]; the rules of `Sim` hold for each of them."""

    spec: EnvSpec

    def begin(self, slots: Array, seeds: list[int], tasks: list[int]) -> tuple[Array, Array]:
        """Begin an episode in n slots.  Returns: states [n, ...], goals [n, ...]."""

    def step(self, slots: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        """Apply f32[n, A] in n slots.  Returns: states [n, ...], rewards [n], terminated [n], success [n]."""

    def render(self, slot: int, size: int) -> Array: ...

    def save(self) -> Array | None:
        """The simulators' whole state as u32[B, W]; None where it cannot be read out."""

    def load(self, words: Array) -> None: ...

    def close(self) -> None: ...


class Each:
    """A `Batch` of single sims, one after the other."""

    def __init__(self, factory: Callable[[], Sim], count: int):
        self._sims = [factory() for _ in range(count)]
        self.spec = self._sims[0].spec

    def begin(self, slots, seeds, tasks):
        begun = [self._sims[slot].reset(*how) for slot, *how in zip(slots, seeds, tasks, strict=True)]
        for state, goal in begun:
            if np.shape(state) != self.spec.obs_shape or np.shape(goal) != self.spec.goal_shape:
                raise ValueError(
                    f"{self.spec.name} gave a state {np.shape(state)} and a goal {np.shape(goal)}: {self.spec}"
                )
        return tuple(np.stack(x) for x in zip(*begun, strict=True))

    def step(self, slots, action):
        stepped = [self._sims[slot].step(a) for slot, a in zip(slots, action, strict=True)]
        return tuple(np.stack(x) for x in zip(*stepped, strict=True))

    def render(self, slot, size):
        return self._sims[slot].render(size)

    def save(self):
        return None

    def close(self):
        for sim in self._sims:
            sim.close()
        self._sims = []


class Slots:
    """The episodes of a batch of B simulators, in one process.

    The arrays that it hands out are read-only and never written again; those of `obs` and `final_obs` may be the same.
    Raises: ConfigError for a time limit that the task cannot have.
    """

    def __init__(self, batch: Batch, count: int, max_steps: int = 0):
        spec = batch.spec
        if not 0 <= max_steps <= spec.max_steps:
            raise ConfigError(f"max_steps {max_steps} is not in 0..{spec.max_steps}: {spec.name} cannot run longer")
        self.spec = spec._replace(max_steps=max_steps or spec.max_steps)
        self._batch = batch
        self._seeds, self._tasks = np.zeros(count, np.uint64), np.zeros(count, np.int32)
        self._episode = np.zeros(count, np.int64)
        self._now = blank_observation(spec, count, xp=np)

    def get_spec(self) -> EnvSpec:
        return self.spec

    def reset(self, seeds: list[int], tasks: list[int]) -> Observation:
        self._seeds[:], self._tasks[:], self._episode[:] = seeds, tasks, 0
        self._begin(np.arange(len(seeds)))
        return _sealed(self._now)

    def restart(self, slots: Array) -> Observation:
        self._next_episode(np.flatnonzero(slots))
        return _sealed(self._now)

    def step(self, action: Array, active: Array) -> TimeStep:
        ts, moved = _idle(self._now), np.flatnonzero(active)
        if moved.size:
            final = ts.final_obs
            at = as_index(moved, active.size)
            final.state[at], ts.reward[at], ts.terminated[at], ts.success[at] = self._batch.step(moved, action[at])
            final.reward[at] = ts.reward[at]
            final.step[at] += 1
            np.logical_and(final.step >= self.spec.max_steps, active & ~ts.terminated, out=ts.truncated)
            self._now = final
            self._next_episode(np.flatnonzero(ts.terminated | ts.truncated))
        return _sealed(ts._replace(obs=self._now))

    def render(self, slot: int, size: int) -> Array:
        return self._batch.render(slot, size)

    def snapshot(self) -> Array | None:
        words = self._batch.save()
        return None if words is None else np.concatenate([to_words(*self._kept()), words], axis=1)

    def restore(self, words: Array) -> Observation:
        self._now = _copy(self._now)
        kept = self._kept()
        width = to_words(*kept).shape[1]
        for own, new in zip(kept, from_words(words[:, :width], *kept), strict=True):
            own[:] = new
        self._batch.load(words[:, width:])
        return _sealed(self._now)

    def close(self) -> None:
        self._batch.close()

    def _kept(self) -> tuple[Array, ...]:
        return (self._seeds, self._tasks, self._episode, *self._now)

    def _next_episode(self, slots: Array) -> None:
        if slots.size:
            self._episode[slots] += 1
            self._begin(slots)

    def _begin(self, slots: Array) -> None:
        seeds = [derive(int(self._seeds[slot]), int(self._episode[slot])) for slot in slots]
        state, goal = self._batch.begin(slots, seeds, self._tasks[slots].tolist())
        self._now = _copy(self._now)  # what was handed out stays as it is
        for now, new in zip(self._now, (state, goal, 0, 0), strict=True):
            now[slots] = new


class Exchange(NamedTuple):
    """What a vector and its workers write for each other, [B] each."""

    action: Array
    active: Array
    ts: TimeStep


class SharedSlots:
    """A part of `Split`, in a worker or in the owner's process: slots whose arrays are rows of an `Exchange`."""

    def __init__(self, factory: Callable[[], Sim], rows: tuple[int, int], max_steps: int, file: int):
        self._rows, self._file = slice(*rows), file
        self._slots = Slots(Each(factory, rows[1] - rows[0]), rows[1] - rows[0], max_steps)
        self.get_spec, self.render, self.close = self._slots.get_spec, self._slots.render, self._slots.close

    def attach(self, count: int) -> None:
        """In a worker: find the rows, once the owner has made the file as large as they need."""
        self.share(_exchange(self._slots.spec, count, self._file))
        os.close(self._file)

    def share(self, exchange: Exchange) -> None:
        self._mine = _map(lambda x: x[self._rows], exchange)

    def reset(self, seeds: list[int], tasks: list[int]) -> None:
        _write(self._mine.ts.obs, self._slots.reset(seeds, tasks))

    def restart(self) -> None:
        _write(self._mine.ts.obs, self._slots.restart(self._mine.active))

    def step(self) -> None:
        # a copy: a sim may keep its action, and these rows will hold the next
        _write(self._mine.ts, self._slots.step(self._mine.action.copy(), self._mine.active))


class Split:
    """Slots spread over worker processes and this one, which has the last and smallest part: a core that waits is lost.

    Arrays go through memory that all of them map; it has no name anywhere, so that nothing can be left behind, however
    a process ends.  Pipes carry who does what.
    Raises: WorkerError when a worker fails or dies, and what a sim in this process raises; then all are ended.
    """

    def __init__(self, factory: Callable[[], Sim], count: int, workers: int, max_steps: int):
        edges = np.cumsum([0, *map(len, np.array_split(range(count), workers + 1))]).tolist()
        *theirs, self._own_rows = itertools.pairwise(edges)
        self._theirs = [(a, b) for a, b in theirs if a < b]
        file = nameless_file()
        try:
            part = functools.partial(SharedSlots, factory, max_steps=max_steps, file=file)
            parts = [functools.partial(part, rows=rows) for rows in self._theirs]
            self._pool = Pool(parts, (file,), functools.partial(self._build, part, count))
            self.spec: EnvSpec = self._pool.call_one(0, "get_spec")
            self._shared = _exchange(self.spec, count, file)
            self._pool.call("attach", [(count,)] * len(self._theirs))
        finally:
            os.close(file)
        if self._own:
            self._own.share(self._shared)
        self.pids = self._pool.pids

    def _build(self, part: Callable[..., SharedSlots], count: int) -> None:
        self._own = part(rows=self._own_rows) if self._own_rows[0] < count else None

    def reset(self, seeds: list[int], tasks: list[int]) -> Observation:
        self._together("reset", lambda a, b: (seeds[a:b], tasks[a:b]))
        return _copy(self._shared.ts.obs)

    def restart(self, slots: Array) -> Observation:
        self._shared.active[:] = slots
        self._together("restart")
        return _copy(self._shared.ts.obs)

    def step(self, action: Array, active: Array) -> TimeStep:
        self._shared.action[:], self._shared.active[:] = action, active
        self._together("step")
        return _copy(self._shared.ts)

    def render(self, slot: int, size: int) -> Array:
        if slot >= self._own_rows[0]:
            return self._own.render(slot - self._own_rows[0], size)
        worker = next(i for i, (_, end) in enumerate(self._theirs) if slot < end)
        return self._pool.call_one(worker, "render", slot - self._theirs[worker][0], size)

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        self._pool.close()
        if self._own:
            self._own.close()
        self._shared = self._own = None  # the last views of the memory, so that it is given back

    def _together(self, method: str, arguments: Callable[[int, int], tuple] = lambda a, b: ()) -> None:
        """Args: arguments: of each part, by its first row and the one behind its last."""

        def own() -> None:
            if self._own:
                getattr(self._own, method)(*arguments(*self._own_rows))

        self._pool.call(method, [arguments(*rows) for rows in self._theirs], own)


class Vector:
    """B slots as a `core.env.HostEnv`: checks what comes in, and hands it on.

    Args: slots: `Slots`, or `Split` for slots in worker processes.
    """

    def __init__(self, slots: Slots | Split, num_envs: int):
        self._slots, self.spec, self.num_envs, self._state = slots, slots.spec, num_envs, "not reset yet"

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        """Begin episode 0 in every slot; see `core.env.HostEnv`.

        Raises: ValueError for a seed outside 0..2^64-1, a task outside 1..num_tasks, or not one of each per slot.
        """
        tasks = [0 if t is None else int(t) for t in ([task] * self.num_envs if np.ndim(task) == 0 else task)]
        if len(tasks) != self.num_envs:
            raise ValueError(f"{len(tasks)} tasks for {self.num_envs} slots; give one number or one per slot")
        if np.min(seed) < 0:
            raise ValueError(f"the seed {np.min(seed)} is negative")
        if np.max(seed) >= 2**64:
            raise ValueError(f"the seed {np.max(seed)} has more than 64 bits")
        wrong = [t for t in tasks if not (0 if task is None else 1) <= t <= self.spec.num_tasks]
        if wrong:
            raise ValueError(f"{self.spec.name} has no task {wrong[0]}; its tasks are 1 to {self.spec.num_tasks}")
        self._require_open()
        self._state = "ready"
        return self._slots.reset(slot_seeds(seed, self.num_envs), tasks)

    def restart(self, slots: Array) -> Observation:
        """End the episodes of the slots in bool[B] and begin their next ones; the others stay where they are."""
        self._require_ready("restart")
        return self._slots.restart(self._mask("slots", slots))

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        """One step of every slot (of the active ones, bool[B], when given).

        Args: action: f32[B, A] in [-1, 1]; what lies outside is clipped.
        Raises: ValueError for another shape, or for an action that is not finite.
        """
        self._require_ready("step")
        action, shape = np.asarray(action), (self.num_envs, *self.spec.action_shape)
        if action.shape != shape or action.dtype.kind not in "fiu":
            raise ValueError(f"{self.spec.name} takes actions f32{list(shape)}, not {action.dtype}{list(action.shape)}")
        active = np.ones(self.num_envs, bool) if active is None else self._mask("active", active)
        finite = np.isfinite(action)
        if not finite.all() and (bad := active & ~finite.all(axis=1)).any():
            row = int(np.argmax(bad))
            raise ValueError(f"{self.spec.name}: action row {row} is not finite: {action[row]}")
        return self._slots.step(action.astype(np.float32), active)

    def render(self, slot: int = 0, size: int = 256) -> Array:
        """What a slot looks like now: uint8[size, size, 3].  Raises: envs.render.RenderError without a renderer."""
        if not 0 <= slot < self.num_envs:
            raise ValueError(f"there is no slot {slot} among {self.num_envs}")
        self._require_open()
        return self._slots.render(slot, size)

    def snapshot(self) -> Array | None:
        """u32[B, W], or None; see `core.env.HostEnv`."""
        self._require_ready("be saved")
        return self._slots.snapshot()

    def restore(self, snapshot: Array) -> Observation:
        """Go on where `snapshot` was taken; see `core.env.HostEnv`."""
        self._require_open()
        own = self._slots.snapshot()
        if own is None:
            raise RuntimeError(f"{self.spec.name} has no snapshots here: its simulators cannot be read out")
        snapshot = np.asarray(snapshot)
        if snapshot.shape != own.shape or snapshot.dtype != np.uint32:
            raise ValueError(
                f"a snapshot of {self.spec.name} is uint32{list(own.shape)}, not {snapshot.dtype}{list(snapshot.shape)}"
            )
        self._state = "ready"
        return self._slots.restore(snapshot)

    def close(self) -> None:
        self._slots.close()
        self._state = "closed"

    def _require_open(self) -> None:
        if self._state == "closed":
            raise RuntimeError(f"{self.spec.name} is closed")

    def _require_ready(self, what: str) -> None:
        if self._state != "ready":
            raise RuntimeError(f"{self.spec.name} cannot {what}: it is {self._state}")

    def _mask(self, name: str, mask: Array) -> Array:
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"{name} is bool[{self.num_envs}], not {mask.dtype}{list(mask.shape)}")
        return mask


class HostVector(Vector):
    """B sims as a `core.env.HostEnv`; the results do not depend on the number of workers.

    Args: factory: makes one sim; picklable when workers > 0.
        workers: processes beside this one, with which it shares the slots; 0: none.
        max_steps: a shorter time limit than the task's own, 0 keeps that.
    Raises: WorkerError when a worker fails or dies, and what a sim in this process raises; then all are ended.
    """

    def __init__(self, factory: Callable[[], Sim], num_envs: int, workers: int = 0, max_steps: int = 0):
        require_counts(num_envs, workers=workers)
        if workers:
            slots = Split(factory, num_envs, workers, max_steps)
        else:
            slots = Slots(Each(factory, num_envs), num_envs, max_steps)
        super().__init__(slots, num_envs)

    @property
    def worker_pids(self) -> list[int]:
        return self._slots.pids if isinstance(self._slots, Split) else []


def require_counts(num_envs: int, **helpers: int) -> None:
    """Raises: ConfigError for no environments at all, or fewer helpers than none."""
    ((what, count),) = helpers.items()
    if num_envs < 1 or count < 0:
        raise ConfigError(f"num_envs is {num_envs} and {what} {count}; at least 1 and 0 are needed")


def to_words(*arrays: Array) -> Array:
    """The bits of arrays [B, ...], whose rows are whole words, side by side: u32[B, W]."""
    flat = [np.ascontiguousarray(x).reshape(len(x), math.prod(x.shape[1:])) for x in arrays]
    return np.concatenate([x.view(np.uint32) for x in flat], axis=1)


def from_words(words: Array, *like: Array) -> list[Array]:
    """The inverse of `to_words`: new arrays of the shapes and types of `like`."""
    widths = [to_words(x).shape[1] for x in like]
    parts = np.split(words, np.cumsum(widths)[:-1], axis=1)
    return [np.array(p, order="C").view(x.dtype).reshape(x.shape) for p, x in zip(parts, like, strict=True)]


def as_index(slots: Array, count: int) -> Array | slice:
    """Slots in order as an index of arrays [B, ...]: a slice for all of them, which is several times as fast."""
    return slots if len(slots) < count else slice(None)


def _idle(obs: Observation) -> TimeStep:
    """The TimeStep of slots that do not move; it shares nothing with `obs`, except as its own `obs`."""
    count = len(obs.step)
    reward, success = np.zeros((2, count), np.float32)
    terminated, truncated = np.zeros((2, count), bool)
    return TimeStep(obs, _copy(obs), reward, terminated, truncated, success)


def _exchange(spec: EnvSpec, count: int, file: int) -> Exchange:
    """The arrays of an `Exchange`, over a file that others map too."""
    action, active = np.zeros((count, *spec.action_shape), np.float32), np.zeros(count, bool)
    blank = Exchange(action, active, _idle(blank_observation(spec, count, xp=np)))
    arrays = iter(shared_arrays(file, [(x.shape, x.dtype) for x in _leaves(blank)]))
    return _map(lambda _: next(arrays), blank)


def _map(fn: Callable[[Array], Array], tree: NamedTuple) -> NamedTuple:
    return type(tree)(*[_map(fn, x) if isinstance(x, tuple) else fn(x) for x in tree])


def _leaves(tree: NamedTuple) -> list[Array]:
    return [leaf for x in tree for leaf in (_leaves(x) if isinstance(x, tuple) else [x])]


def _copy(tree: NamedTuple) -> NamedTuple:
    return _map(np.ndarray.copy, tree)


def _sealed(tree: NamedTuple) -> NamedTuple:
    """The same arrays, read-only from now on."""
    for leaf in _leaves(tree):
        leaf.flags.writeable = False
    return tree


def _write(into: NamedTuple, tree: NamedTuple) -> None:
    for to, new in zip(_leaves(into), _leaves(tree), strict=True):
        to[...] = new
