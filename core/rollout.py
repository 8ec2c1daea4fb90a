"""Many environments at once, and the loops that run a policy in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.algorithm import Act
from core.config import ConfigError
from core.env import HostEnv, JaxEnv
from core.seeds import slot_seeds
from core.types import ActOut, Array, EnvSpec, Key, Observation, PyTree, TimeStep, Transition


class BatchState(NamedTuple):
    env: PyTree  # [B] states of the single environments
    obs: Observation  # [B]
    key: Key  # [B] one per slot; an episode's key is fold_in(key, episode)
    episode: Array  # i32[B] episodes begun, minus one
    fixed_task: Array  # i32[B] 0: drawn per episode


class JaxBatch:
    """B instances of a `JaxEnv` as pure functions, each resetting itself where its episode ends.

    Episode e of slot i depends only on (seed of the slot, e) and the actions.
    """

    def __init__(self, env: JaxEnv, num_envs: int):
        """Raises: ConfigError for fewer than one instance."""
        if num_envs < 1:
            raise ConfigError(f"{env.spec.name}: num_envs is {num_envs}, at least 1 is needed")
        self.env, self.spec, self.num_envs = env, env.spec, num_envs

    def _begin(self, key: Key, episode: Array, fixed_task: Array) -> tuple[PyTree, Observation]:
        task_key, key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, episode), 0))
        drawn = jax.random.randint(task_key, (), 1, self.spec.num_tasks + 1)
        return self.env.reset(key, jnp.where(fixed_task > 0, fixed_task, drawn))

    def reset(self, seed: int | Sequence[int] | Array, task: int | Sequence[int] | None = None):
        """Begin episode 0 in every slot.

        Args: seed: as in `HostEnv.reset`, or an array u32[B] (traced or not); task: one number, one per slot, or
            None (0) to draw one per episode.
        Returns: (BatchState, Observation [B]).
        """
        tasks = [] if task is None or isinstance(task, jax.core.Tracer) else np.ravel(task)
        if any(not 0 <= t <= self.spec.num_tasks for t in tasks):
            raise ValueError(f"{self.spec.name} has tasks 1 to {self.spec.num_tasks}, not {list(map(int, tasks))}")
        slots = jnp.arange(self.num_envs)
        seeds = seed if isinstance(seed, jax.Array) else slot_seeds(seed, self.num_envs)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        fixed = jnp.broadcast_to(jnp.asarray(0 if task is None else task, jnp.int32), slots.shape)
        episode = jnp.zeros_like(slots)
        env, obs = jax.vmap(self._begin)(keys, episode, fixed)
        return BatchState(env, obs, keys, episode, fixed), obs

    def step(self, state: BatchState, action: Array, active: Array | None = None) -> tuple[BatchState, TimeStep]:
        """One step of every slot (of the active ones, bool[B], when given).

        Raises: ValueError for actions of another shape than [B, *spec.action_shape].
        """
        if jnp.shape(action) != (wanted := (self.num_envs, *self.spec.action_shape)):
            raise ValueError(f"{self.spec.name} takes actions {wanted}, not {jnp.shape(action)}")

        def one(env, obs, key, episode, action, active):
            step_key = jax.random.fold_in(jax.random.fold_in(key, episode), obs.step + 1)
            moved, ts = self.env.step(env, action, step_key)
            none = jnp.zeros_like(active)
            idle = TimeStep(obs, obs, jnp.zeros_like(ts.reward), none, none, jnp.zeros_like(ts.success))
            return _select(active, moved, env), _select(active, ts, idle)

        active = jnp.ones(self.num_envs, bool) if active is None else active
        env, ts = jax.vmap(one)(state.env, state.obs, state.key, state.episode, action, active)
        over = ts.terminated | ts.truncated
        episode = state.episode + over

        def renew(env, obs):
            fresh = jax.vmap(self._begin)(state.key, episode, state.fixed_task)
            return jax.vmap(_select)(over, fresh, (env, obs))

        # under vmap over policies or seeds this is a select, and every step makes new episodes
        env, obs = jax.lax.cond(over.any(), renew, lambda env, obs: (env, obs), env, ts.final_obs)
        return state._replace(env=env, obs=obs, episode=episode), ts._replace(obs=obs)

    def close(self) -> None:
        """Nothing to end; a host environment has workers."""


def _select(pred: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), yes, no)


class RolloutState(NamedTuple):
    env: PyTree  # `BatchState`; () for a host environment, which keeps its own
    obs: Observation  # [B] act on this next
    carry: PyTree  # [B] the policy's memory


def remembering(act: Act, init_carry) -> Act:
    """The policy with its memory renewed wherever an episode begins."""

    def acting(state: PyTree, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        begins = obs.step == 0
        carry = jax.vmap(_select)(begins, init_carry(begins.shape[0]), carry) if jax.tree.leaves(carry) else carry
        return act(state, obs, carry, key)

    return acting


def _record(obs: Observation, out: ActOut, ts: TimeStep) -> Transition:
    return Transition(obs, out.action, ts.reward, ts.final_obs, ts.terminated, ts.truncated, out.extras, ts.success)


def rollout(act: Act, init_carry, batch: JaxBatch, length: int):
    """Collect in a jitted environment.

    Returns: pure `(state, RolloutState, key) -> (RolloutState, Transition [T, B])` with T = length.
    """
    acting = remembering(act, init_carry)

    def collect(state: PyTree, roll: RolloutState, key: Key):
        def one(roll: RolloutState, t: Array):
            out = acting(state, roll.obs, roll.carry, jax.random.fold_in(key, t))
            env, ts = batch.step(roll.env, out.action)
            return RolloutState(env, ts.obs, out.carry), _record(roll.obs, out, ts)

        return jax.lax.scan(one, roll, jnp.arange(length))

    return collect


def host_rollout(act: Act, init_carry, env: HostEnv, length: int):
    """Collect in a host environment: the same function as `rollout`, not traceable.

    The same policy, keys and episodes give the same transitions as `rollout`.
    """
    acting = remembering(act, init_carry)
    policy = jax.jit(lambda state, obs, carry, key, t: acting(state, obs, carry, jax.random.fold_in(key, t)))

    def collect(state: PyTree, roll: RolloutState, key: Key):
        records = []
        for t in range(length):
            out = policy(state, roll.obs, roll.carry, key, t)
            seen = ActOut(*jax.device_get((out.action, (), out.extras)))
            ts = env.step(seen.action)
            records.append(_record(roll.obs, seen, ts))
            roll = RolloutState((), ts.obs, out.carry)
        return roll, jax.tree.map(lambda *x: np.stack(x), *records)

    return collect


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
    held = jnp.maximum(tally.now.success, ts.success) if spec.success == "any" else ts.success
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
