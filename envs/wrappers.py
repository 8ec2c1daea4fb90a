"""Wrappers of host environments, by one documented order; `envs.jax_wrappers` has the jitted form of each.

From the simulator outwards: time limit (a suite's own constructor keeps it, because it owns the reset), end at success,
action noise, history, chunk.  So a chunk's sub-steps are noisy one by one, and a history holds one observation per
action that the policy chose.  An option at its default adds no layer.

A wrapper keeps to `core.env.HostEnv`: slots outside `active` do not move, in its own memory either.
Axes: B instances, H chunk, L history.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from core.config import ConfigError, choose
from core.env import HostEnv
from core.seeds import derive, slot_seeds
from core.types import Array, EnvSpec, Observation, PyTree, TimeStep
from envs.registry import Options

NOISE = {  # scale in units of sigma after t steps, for arrays of NumPy or JAX (`xp`)
    "iid": lambda t, xp: xp.ones_like(t),
    "ramp": lambda t, xp: (1 - xp.exp(-t / 100)) * xp.sin(t),
}


def check(options: Options, spec: EnvSpec) -> None:
    """Raises: ConfigError for wrapper options that this task cannot have."""
    if options.chunk < 0 or options.history < 1 or options.noise < 0 or options.max_steps < 0:
        raise ConfigError(f"{spec.name}: chunk, noise and max_steps must be >= 0 and history >= 1, got {options}")
    choose("noise kind", options.noise_kind, NOISE)
    if options.noise and spec.num_actions:
        raise ConfigError(f"{spec.name} has discrete actions: noise cannot be added to them, leave it at 0")
    if options.max_steps > spec.max_steps:
        raise ConfigError(f"{spec.name} ends after {spec.max_steps} steps: max_steps can only be shorter")


def wrap_host(env: HostEnv, options: Options) -> HostEnv:
    """Put on the wrappers that the options ask for; `max_steps` is left to the suite.

    Raises: ConfigError.
    """
    check(options, env.spec)
    return layers(env, options, EndAtSuccess, ActionNoise, History, Chunk)


def layers(env, options: Options, end_at_success, action_noise, history, chunk):
    """The order of the wrappers, for either form of them."""
    if options.end_at_success:
        env = end_at_success(env)
    if options.noise:
        env = action_noise(env, options.noise, options.noise_kind)
    if options.history > 1:
        env = history(env, options.history)
    if options.chunk:
        env = chunk(env, options.chunk)
    return env


def chunk_spec(spec: EnvSpec, size: int) -> EnvSpec:
    return spec._replace(chunk=size)


def history_spec(spec: EnvSpec, length: int) -> EnvSpec:
    shape = (*spec.obs_shape[:-1], length * spec.obs_shape[-1])
    return spec._replace(
        obs_shape=shape, goal_shape=shape if spec.goal_shape == spec.obs_shape else spec.goal_shape, history=length
    )


def require(action: Array, shape: tuple[int, ...]) -> None:
    """Raises: ValueError for an action of another shape, which could broadcast in silence."""
    if np.shape(action) != shape:
        raise ValueError(f"actions have shape {list(shape)} here, not {list(np.shape(action))}")


def where(mask: Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` in the slots of bool[B] `mask`, else `no`; for an array or a tuple of arrays with leading axis B."""
    if isinstance(yes, tuple):
        return type(yes)(*(where(mask, a, b) for a, b in zip(yes, no, strict=True)))
    return np.where(mask.reshape(-1, *[1] * (np.ndim(yes) - 1)), yes, no)


class Wrapper:
    """Hands on what a subclass does not change."""

    def __init__(self, env: HostEnv, spec: EnvSpec | None = None):
        self.env, self.spec, self.num_envs = env, spec or env.spec, env.num_envs

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        return self.env.reset(seed, task)

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        return self.env.step(action, active)

    def restart(self, slots: Array) -> Observation:
        return self.env.restart(slots)

    def render(self, slot: int = 0, size: int = 256) -> Array:
        return self.env.render(slot, size)

    def snapshot(self) -> None:
        """None: what a wrapper remembers is not in the vector's snapshot."""

    def restore(self, snapshot: Array) -> Observation:
        raise RuntimeError(f"{self.spec.name} has no snapshots under a wrapper")

    def close(self) -> None:
        self.env.close()

    def _active(self, active: Array | None) -> Array:
        return np.ones(self.num_envs, bool) if active is None else np.asarray(active, bool)


class EndAtSuccess(Wrapper):
    """Terminates the episode where the goal holds, at its last step too."""

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        ts = self.env.step(action, active)
        terminated = ts.terminated | (ts.success > 0)
        early = terminated & ~ts.terminated & ~ts.truncated
        obs = where(early, self.env.restart(early), ts.obs) if early.any() else ts.obs
        return ts._replace(obs=obs, terminated=terminated, truncated=ts.truncated & ~terminated)


class ActionNoise(Wrapper):
    """The environment gets clip(a + s_t n, -1, 1), n standard normal, t the steps since the reset.

    Kinds: iid, s_t = sigma; ramp, s_t = sigma (1 - exp(-t/100)) sin(t) (Dichotomy of Control, arXiv:2210.13435).
    The draws of an episode depend on (seed of the slot, episode) alone.
    """

    def __init__(self, env: HostEnv, sigma: float, kind: str = "iid"):
        super().__init__(env)
        self.sigma, self.scale = sigma, choose("noise kind", kind, NOISE)

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        self._seeds, self._episode = slot_seeds(seed, self.num_envs), np.zeros(self.num_envs, int)
        self._draws = [self._generator(slot) for slot in range(self.num_envs)]
        obs = self.env.reset(seed, task)
        self._step = obs.step
        return obs

    def _generator(self, slot: int) -> np.random.Generator:
        # the last number keeps this stream apart from the simulator's own of the same episode
        return np.random.default_rng(derive(self._seeds[slot], int(self._episode[slot]), zlib.crc32(b"noise")))

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        require(action, (self.num_envs, *self.spec.action_shape))
        moving = self._active(active)
        noise = np.zeros((self.num_envs, self.spec.action_dim))
        for slot in np.flatnonzero(moving):
            noise[slot] = self._draws[slot].standard_normal(self.spec.action_dim)
        scale = self.sigma * self.scale(self._step.astype(float), np)
        noisy = np.clip(action + scale[:, None] * noise, -1, 1).astype(np.float32)
        ts = self.env.step(noisy, active)
        self._step = ts.obs.step
        self._renew(ts.terminated | ts.truncated)
        return ts

    def restart(self, slots: Array) -> Observation:
        obs = self.env.restart(slots)
        self._step = obs.step
        self._renew(slots)
        return obs

    def _renew(self, slots: Array) -> None:
        for slot in np.flatnonzero(slots):
            self._episode[slot] += 1
            self._draws[slot] = self._generator(slot)


class History(Wrapper):
    """The state becomes the last L states side by side, [L*S] or channels [H, W, L*C], the newest last.

    The first state of an episode fills the places before it, and a goal that is a state fills all of its own.
    """

    def __init__(self, env: HostEnv, length: int):
        super().__init__(env, history_spec(env.spec, length))
        self.length = length

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        obs = self.env.reset(seed, task)
        self._stack = self._filled(obs.state)
        return self._told(obs, self._stack)

    def _filled(self, state: Array) -> Array:
        return np.concatenate([state] * self.length, axis=-1)

    def _told(self, obs: Observation, stack: Array) -> Observation:
        goal = self._filled(obs.goal) if self.spec.goal_shape == self.spec.obs_shape else obs.goal
        return obs._replace(state=stack, goal=goal)

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        moving = self._active(active)
        ts = self.env.step(action, active)
        width = ts.final_obs.state.shape[-1]
        pushed = np.concatenate([self._stack[..., width:], ts.final_obs.state], axis=-1)
        final = where(moving, pushed, self._stack)
        over = ts.terminated | ts.truncated
        self._stack = where(over, self._filled(ts.obs.state), final)
        return ts._replace(obs=self._told(ts.obs, self._stack), final_obs=self._told(ts.final_obs, final))

    def restart(self, slots: Array) -> Observation:
        obs = self.env.restart(slots)
        self._stack = where(slots, self._filled(obs.state), self._stack)
        return self._told(obs, self._stack)


class Chunk(Wrapper):
    """An action is a chunk [B, H, A] of H primitive actions, executed open loop until the episode ends.

    The reward, also that of the observation, is the sum over the executed sub-steps.  Success is their largest where
    the task counts it at "any" step, else that of the last one executed.  `obs.step` counts primitive steps.
    """

    def __init__(self, env: HostEnv, size: int):
        super().__init__(env, chunk_spec(env.spec, size))

    def reset(self, seed: int | Sequence[int], task: int | Sequence[int] | None = None) -> Observation:
        self._obs = self.env.reset(seed, task)
        return self._obs

    def step(self, action: Array, active: Array | None = None) -> TimeStep:
        require(action, (self.num_envs, *self.spec.action_shape))
        moving, live = self._active(active), self._active(active)
        nothing, no = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        total = TimeStep(self._obs, self._obs, nothing, no, no, nothing)
        for h in range(self.spec.chunk):
            if not live.any():
                break
            ts = self.env.step(action[:, h], live)
            success = self.spec.held(total.success, ts.success)
            ts = ts._replace(reward=total.reward + ts.reward, success=success)
            total = where(live, ts, total)
            live = live & ~(ts.terminated | ts.truncated)
        over = total.terminated | total.truncated
        final = total.final_obs._replace(reward=np.where(moving, total.reward, total.final_obs.reward))
        obs = total.obs._replace(reward=np.where(over, total.obs.reward, final.reward))
        self._obs = obs
        return total._replace(obs=obs, final_obs=final)

    def restart(self, slots: Array) -> Observation:
        self._obs = where(slots, self.env.restart(slots), self._obs)
        return self._obs
