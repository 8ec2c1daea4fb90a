"""Many environments at once, and the loops that collect with a policy in them."""

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
from core.types import ActOut, Array, Key, Observation, PyTree, TimeStep, Transition


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

    def begin(self, key: Key, episode: Array, fixed_task: Array) -> tuple[PyTree, Observation]:
        """The first state and observation of an episode of one slot, by the slot's key and the episode's number."""
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
        env, obs = jax.vmap(self.begin)(keys, episode, fixed)
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
            fresh = jax.vmap(self.begin)(state.key, episode, state.fixed_task)
            return jax.vmap(_select)(over, fresh, (env, obs))

        # under vmap over policies or seeds this is a select, and every step makes new episodes
        env, obs = jax.lax.cond(over.any(), renew, lambda env, obs: (env, obs), env, ts.final_obs)
        return state._replace(env=env, obs=obs, episode=episode), ts._replace(obs=obs)

    def close(self) -> None:
        """Nothing to end; a host environment has workers."""


def _select(pred: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), yes, no)


class RolloutState(NamedTuple):
    env: PyTree  # `BatchState`; of a host environment (), or online and between epochs the snapshot that it may have
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


def host_rollout(act: Act, init_carry, env: HostEnv, length: int, num_policies: int | None = None):
    """Collect in a host environment: the same function as `rollout`, not traceable.

    The same policy, keys and episodes give the same transitions as `rollout`.
    Args: num_policies: None for one policy in all slots; S for S of them in B slots each, and then everything leads
        with S, as under `jax.vmap`: states, RolloutState, keys and the Transition [S, T, B].
    """
    acting = remembering(act, init_carry)

    def one(state, obs, carry, key, t):
        return acting(state, obs, carry, jax.random.fold_in(key, t))

    policy = jax.jit(one if num_policies is None else over_seeds(one, (0, 0, 0, 0, None)))
    lead = () if num_policies is None else (num_policies, env.num_envs // num_policies)

    def collect(state: PyTree, roll: RolloutState, key: Key):
        records = []
        for t in range(length):
            out = policy(state, roll.obs, roll.carry, key, t)
            action = np.asarray(out.action)
            given = action.reshape(env.num_envs, *action.shape[max(len(lead), 1) :])
            # a policy that turned non-finite is the loop's to judge; a simulator must not see it
            ts = env.step(given if np.isfinite(given).all() else np.nan_to_num(given))
            if lead:
                ts = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), ts)
            records.append(_record(roll.obs, ActOut(action, (), out.extras), ts))
            roll = RolloutState((), ts.obs, out.carry)
        return roll, jax.tree.map(lambda *x: np.stack(x, axis=len(lead) // 2), *records)

    return collect


def over_seeds(fn: Callable, in_axes: Sequence[int | None]) -> Callable:
    """`jax.vmap(fn, in_axes)`; for a single seed without a batch axis, because plain products are faster."""

    def lifted(*args):
        mapped = [x for x, axis in zip(args, in_axes, strict=True) if axis == 0]
        seeds = jax.tree.leaves(mapped)[0].shape[0]
        if seeds > 1:
            return jax.vmap(fn, in_axes)(*args)
        alone = [jax.tree.map(lambda x: x[0], x) if axis == 0 else x for x, axis in zip(args, in_axes, strict=True)]
        return jax.tree.map(lambda x: x[None], fn(*alone))

    return lifted
