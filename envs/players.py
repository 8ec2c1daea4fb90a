"""What plays episodes for a dataset: policies in an environment, scripted experts, OGBench's oracles.

A player gets the numbers of episodes and gives what happened in the layout of `envs.datasets`.  Episode n draws from
(seed, n) alone; a policy that acts in several episodes at once may differ in the last bits with the others beside it.
The action that is stored is the noisy one that was executed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from core.config import ConfigError
from core.seeds import derive
from core.types import Array, EnvSpec, Observation, TimeStep
from envs import datasets, registry
from envs.oracles import oracle
from envs.registry import Options
from envs.wrappers import Wrapper, wrap_host

Arrays = dict[str, np.ndarray]


class Player(Protocol):
    """Several who act, by their index, in one process."""

    def play(self, who: int, numbers: Sequence[int]) -> Arrays: ...

    def close(self) -> None: ...


class Policy(Protocol):
    """Acts in B episodes side by side."""

    def reset(self, seeds: Sequence[int]) -> None:
        """New episodes begin in all slots; `seeds`, one per slot, are for what the policy draws there."""

    def act(self, obs: Observation) -> Array:
        """[B, *spec.action_shape]; what leaves [-1, 1] is clipped."""


class OraclePlayer:
    """OGBench's oracle of a task; see `envs.oracles`.

    Args: expert: `spec -> Policy`, who walks in mazes of ants and humanoids; spec: of the expert's task.
    """

    def __init__(
        self, name: str, kind: str, noise: float, steps: int, seed: int,
        expert: Callable[[EnvSpec], Policy] | None = None, spec: EnvSpec | None = None,
    ):  # fmt: skip
        self._oracle = oracle(name, kind, noise, expert and expert(spec))
        self._steps, self._seed = steps, seed

    def play(self, who: int, numbers: Sequence[int]) -> Arrays:
        played = [self._oracle.episode(derive(self._seed, n), self._steps) for n in numbers]
        rows = len(played) * (self._steps + 1)
        return {
            "state": np.concatenate([state for state, _ in played]),
            "action": np.concatenate([np.pad(action, ((0, 1), (0, 0))) for _, action in played]),
            "reward": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, bool),
            "length": np.full(len(played), self._steps, np.int32),
            "success": np.zeros(len(played), np.float32),
        }

    def close(self) -> None:
        self._oracle.close()


class Expert:
    """A suite's scripted expert as a `Policy`, for one episode at a time."""

    def __init__(self, make: Callable[[str], Any], name: str, spec: EnvSpec):
        self._make = functools.partial(make, name)

    def reset(self, seeds: Sequence[int]) -> None:
        self._expert = self._make()

    def act(self, obs: Observation) -> Array:
        return self._expert.get_action(obs.state[0].astype(np.float64))[None]


class Random:
    """Uniformly random actions as a `Policy`, each episode's from its own seed."""

    def __init__(self, spec: EnvSpec):
        self._spec = spec

    def reset(self, seeds: Sequence[int]) -> None:
        self._draws = [np.random.default_rng(seed) for seed in seeds]

    def act(self, obs: Observation) -> Array:
        shape, count = self._spec.action_shape, self._spec.num_actions
        if count:
            return np.stack([draw.integers(count, size=shape, dtype=np.int32) for draw in self._draws])
        return np.stack([draw.uniform(-1, 1, shape) for draw in self._draws]).astype(np.float32)


class Recorder(Wrapper):
    """Adds noise to every primitive action, and keeps the first episode of each slot."""

    def __init__(self, env, noise: float):
        super().__init__(env)
        self._noise = noise
        if noise and self.spec.num_actions:
            raise ConfigError(f"{self.spec.name} has discrete actions, which take no noise: leave --noise out")

    def begin(self, seeds: Sequence[int]) -> None:
        """Args: seeds: of the noise, one per slot."""
        self._draws = [np.random.default_rng(seed) for seed in seeds]
        self._rows: list[tuple[Array, ...]] = []
        self._open, self._last = np.ones(self.num_envs, bool), [None] * self.num_envs

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        self._obs = super().reset(seed, task)
        return self._obs

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        moving = self._active(active)
        action = np.array(action) if self.spec.num_actions else self._noisy(np.clip(action, -1, 1), moving)
        state, kept = np.array(self._obs.state), moving & self._open
        ts = super().step(action, active)
        self._rows.append((kept, state, action, *map(np.array, (ts.reward, ts.terminated, ts.success))))
        for slot in np.flatnonzero(kept & (ts.terminated | ts.truncated)):
            self._open[slot], self._last[slot] = False, np.array(ts.final_obs.state[slot])
        self._obs = ts.obs
        return ts

    def _noisy(self, action: Array, moving: Array) -> Array:
        if self._noise:
            drawn = np.zeros(action.shape)
            for slot in np.flatnonzero(moving):
                drawn[slot] = self._draws[slot].standard_normal(action.shape[1:])
            action = np.clip(action + self._noise * drawn, -1, 1)
        return action.astype(np.float32)

    def episodes(self, count: int) -> Arrays:
        """What the first `count` slots played, back to back."""
        kept, *columns, success = (np.stack(x) for x in zip(*self._rows, strict=True))
        parts: dict[str, list] = {key: [] for key in datasets.ARRAYS}
        for slot in range(count):
            length = int(kept[:, slot].sum())  # a slot plays from the start until its episode is over
            ends = (self._last[slot], *(np.zeros_like(x[0, slot]) for x in columns[1:]))
            for key, values, end in zip(datasets.ARRAYS, columns, ends, strict=False):
                parts[key].append(np.concatenate([values[:length, slot], end[None]]))
            held = success[:length, slot]
            parts["length"].append(np.array([length], np.int32))
            parts["success"].append(np.array([held.max() if self.spec.success == "any" else held[-1]], np.float32))
        return {key: np.concatenate(values) for key, values in parts.items()}


def _primitive(task: str, options: Options) -> Options:
    """The environment whose steps a dataset keeps: single frames, single actions, in one thread of this process."""
    from envs.locomotion import NAMES

    threads = int(task.removeprefix("mujoco/") in NAMES and not options.pixels)
    return replace(options, chunk=0, history=1, workers=0, threads=threads, host=True)


class Rollouts:
    """Policies in an environment, as a `Player`.

    Args: makers: `spec -> Policy`, one for each who acts; slots: episodes side by side; options: how the policies see
        the task: histories and chunks are for them, the data keep single frames and primitive actions; noise: standard
        deviation of Gaussian noise on primitive actions, in units of the action box.
    """

    def __init__(
        self, task: str, makers: Sequence[Callable[[EnvSpec], Policy]], slots: int, options: Options, noise: float,
        seed: int,
    ):  # fmt: skip
        self._makers, self._seed, self._now = makers, seed, -1
        self._recorder = Recorder(registry.make(task, slots, _primitive(task, options)), noise)
        self._env = wrap_host(self._recorder, Options(chunk=options.chunk, history=options.history))
        self.spec = self._env.spec

    def play(self, who: int, numbers: Sequence[int]) -> Arrays:
        if self._now != who:
            self._now, self._policy = who, self._makers[who](self._env.spec)
        slots = self._env.num_envs
        parts = [self._together(list(numbers[i : i + slots])) for i in range(0, len(numbers), slots)]
        return {key: np.concatenate([part[key] for part in parts]) for key in datasets.ARRAYS}

    def _together(self, numbers: list[int]) -> Arrays:
        everyone = numbers + numbers[-1:] * (self._env.num_envs - len(numbers))  # slots that are not needed rest
        self._recorder.begin([derive(self._seed, number, 1) for number in everyone])
        obs = self._env.reset([derive(self._seed, number) for number in everyone])
        self._policy.reset([derive(self._seed, number, 2) for number in everyone])
        active = np.arange(self._env.num_envs) < len(numbers)
        while active.any():
            ts = self._env.step(self._policy.act(obs), active)
            active, obs = active & ~(ts.terminated | ts.truncated), ts.obs
        return self._recorder.episodes(len(numbers))

    def close(self) -> None:
        self._env.close()
