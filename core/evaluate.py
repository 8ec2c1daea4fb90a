"""Judging policies on fresh episodes, jitted or on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.algorithm import Act
from core.config import ConfigError
from core.env import HostEnv
from core.rollout import JaxBatch, remembering
from core.seeds import slot_seeds
from core.types import Array, EnvSpec, Key, PyTree, TimeStep


class Judged(NamedTuple):
    """The first n episodes of every slot, f32[S, B, n]."""

    ret: Array  # undiscounted return
    length: Array  # primitive steps
    success: Array  # by the task's rule, `EnvSpec.success`


class _Tally(NamedTuple):
    """Running episode of every slot, and the first n that are over."""

    now: Judged  # [B]
    done: Judged  # [B, n]
    count: Array  # i32[B] episodes over


def _tally(spec: EnvSpec, tally: _Tally, ts: TimeStep) -> _Tally:
    """Count one step of the slots that have not finished their n episodes (the others idle)."""
    n = tally.done.ret.shape[1]
    active = tally.count < n
    over = active & (ts.terminated | ts.truncated)
    held = spec.held(tally.now.success, ts.success)
    now = Judged(tally.now.ret + ts.reward, ts.final_obs.step.astype(jnp.float32), held)
    place = jax.nn.one_hot(tally.count, n, dtype=bool) & over[:, None]
    done = jax.tree.map(lambda new, old: jnp.where(place, new[:, None], old), now, tally.done)
    now = jax.tree.map(lambda x: jnp.where(over, 0.0, x), now)
    return _Tally(now, done, tally.count + over)


class Evaluator:
    """Judges S policies at once on exactly the first n episodes of each of their B slots.

    Short episodes are not over-represented: a slot that has played its n episodes waits for the others.
    However often policies are judged, nothing compiles again.
    """

    def __init__(self, act: Act, init_carry, env: JaxBatch | HostEnv, num_policies: int, episodes: int):
        """Args: env: B slots when jitted (vmapped over policies), S * B slots on the host; episodes: n."""
        self.env, self.num_policies, self.episodes = env, num_policies, episodes
        self.jitted = isinstance(env, JaxBatch)
        if episodes < 1 or (not self.jitted and env.num_envs % num_policies):
            raise ConfigError(
                f"{episodes} episodes in {env.num_envs} slots for {num_policies} policies: not whole numbers"
            )
        self.slots = env.num_envs if self.jitted else env.num_envs // num_policies
        self.interrupted: Callable[[], bool] = lambda: False  # asked at every step on the host
        self._init_carry = init_carry
        acting = remembering(act, init_carry)
        self._policy = lambda state, obs, carry, key, t: acting(state, obs, carry, jax.random.fold_in(key, t))
        self._run = jax.jit(jax.vmap(self._play)) if self.jitted else jax.jit(self._host_step)

    def __call__(self, states: PyTree, seeds: Sequence[int], task: Sequence[int] | int | None = None) -> Judged | None:
        """Play.

        Args: states [S, ...]; seeds: one per policy: an episode depends on it, on its slot and its number;
            task: one for all, one per slot, or None to draw one per episode.
        Returns: Judged [S, B, n] in NumPy; NaN for a policy whose actions were not finite; None when interrupted.
        """
        if len(seeds) != self.num_policies:
            raise ValueError(f"{len(seeds)} seeds for {self.num_policies} policies")
        tasks = np.broadcast_to(0 if task is None else task, self.slots).astype(np.int32)
        if task is not None and not ((tasks >= 1) & (tasks <= self.env.spec.num_tasks)).all():
            raise ValueError(f"{self.env.spec.name} has tasks 1 to {self.env.spec.num_tasks}, not {task}")
        slots = np.array([slot_seeds(seed, self.slots) for seed in seeds], np.uint32)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        if self.jitted:
            judged = self._run(states, jnp.asarray(slots), keys, jnp.tile(tasks, (len(seeds), 1)))
        else:
            judged = self._on_host(states, slots, keys, None if task is None else np.tile(tasks, len(seeds)).tolist())
        return jax.tree.map(np.asarray, judged)

    def _begin(self) -> tuple[PyTree, _Tally]:
        """Memory and tally of one policy's slots."""
        zero, blank = jnp.zeros(self.slots), jnp.zeros((self.slots, self.episodes))
        return self._init_carry(self.slots), _Tally(
            Judged(zero, zero, zero), Judged(blank, blank, blank), zero.astype(jnp.int32)
        )

    def _play(self, state: PyTree, slots: Array, key: Key, task: Array) -> Judged:
        env, obs = self.env.reset(slots, task)

        def one(loop):
            env, obs, carry, tally, sound, t = loop
            out = self._policy(state, obs, carry, key, t)
            sound = sound & jnp.isfinite(out.action.astype(jnp.float32)).all()
            env, ts = self.env.step(env, out.action, tally.count < self.episodes)
            return env, ts.obs, out.carry, _tally(self.env.spec, tally, ts), sound, t + 1

        playing = lambda loop: (loop[3].count < self.episodes).any() & loop[4]  # noqa: E731
        *_, tally, sound, _ = jax.lax.while_loop(playing, one, (env, obs, *self._begin(), jnp.bool_(True), 0))
        return jax.tree.map(lambda x: jnp.where(sound, x, jnp.nan), tally.done)

    def _host_step(self, states, keys, obs, carry, tally, ts, t):
        """Count the step that led here, then act: one dispatch per step of the simulators."""
        tally = tally if ts is None else jax.vmap(lambda a, b: _tally(self.env.spec, a, b))(tally, ts)
        out = jax.vmap(self._policy, (0, 0, 0, 0, None))(states, obs, carry, keys, t)
        sound = jnp.isfinite(out.action.astype(jnp.float32)).reshape(self.num_policies, -1).all(1)
        return out.action, out.carry, tally, tally.count < self.episodes, sound

    def _on_host(self, states: PyTree, slots: np.ndarray, keys: Key, tasks: list[int] | None) -> Judged | None:
        num, shape = self.env.num_envs, (self.num_policies, self.slots)

        def split(tree):
            return jax.tree.map(lambda x: np.reshape(x, (*shape, *np.shape(x)[1:])), tree)

        obs, ts, t = self.env.reset(slots.ravel().tolist(), tasks), None, 0
        carry, tally = jax.vmap(lambda _: self._begin())(jnp.arange(self.num_policies))
        lost = np.zeros((self.num_policies, 1), bool)
        while True:
            action, carry, tally, active, sound = self._run(states, keys, split(obs), carry, tally, ts, t)
            lost |= ~np.asarray(sound)[:, None]  # its simulators rest, the others go on
            active = (np.asarray(active) & ~lost).reshape(num)
            if self.interrupted():
                return None
            if not active.any():
                break
            step = self.env.step(np.nan_to_num(np.reshape(action, (num, *action.shape[2:]))), active)
            obs, ts, t = step.obs, split(step), t + 1
        return jax.tree.map(lambda x: np.where(lost[..., None], np.nan, x), tally.done)
