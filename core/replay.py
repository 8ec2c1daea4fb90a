"""The circular replay: what the environments of one seed did last, for off-policy learning.

Axes: C steps kept, B environments, T steps of a rollout.  Position c * B + b is step c of environment b.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.config import ConfigError
from core.optim import lockstep
from core.returns import n_step
from core.types import Array, Data, EnvSpec, Norm, Replay, Sampler, Transition, blank_observation


def ring_steps(num_envs: int, length: int, capacity: int) -> int:
    """C for at least `capacity` transitions of B environments, in whole rollouts of T = `length` steps.

    Raises: ConfigError when it does not hold one rollout.
    """
    if capacity < num_envs * length:
        raise ConfigError(f"a replay of {capacity} transitions cannot hold {length} steps of {num_envs} environments")
    return -(-capacity // (num_envs * length)) * length


def empty(spec: EnvSpec, num_envs: int, length: int, capacity: int) -> Replay:
    """Room for what `ring_steps` says."""
    steps = ring_steps(num_envs, length, capacity)

    def zeros(*shape: int, dtype=jnp.float32) -> Array:
        return jnp.zeros((steps * num_envs, *shape), dtype)

    action = zeros(*spec.action_shape, dtype=jnp.int32 if spec.num_actions else jnp.float32)
    never = zeros(dtype=bool)
    obs, next_obs = (blank_observation(spec, steps * num_envs, xp=jnp) for _ in range(2))
    transition = Transition(obs, action, zeros(), next_obs, never, never)
    return Replay(transition, jnp.zeros(num_envs, jnp.int32))


def add(replay: Replay, rollout: Transition) -> Replay:
    """Put a rollout [T, B] in the place of the oldest steps; its extras and success are not kept."""
    steps, num_envs = _shape(replay)
    length = rollout.reward.shape[0]
    if steps % length:
        raise ValueError(f"rollouts of {length} steps do not fill a ring of {steps}")
    # equal in all seeds: a slice of one place is written where it lies, a scatter would copy the ring
    at = lockstep(replay.added[0]) % steps * num_envs

    def write(ring: Array, new: Array) -> Array:
        new = jnp.asarray(new, ring.dtype).reshape(length * num_envs, *ring.shape[1:])
        return jax.lax.dynamic_update_slice_in_dim(ring, new, at, 0)

    kept = jax.tree.map(write, replay.transition, rollout._replace(extras=(), success=()))
    return Replay(kept, replay.added + length)


def cut(replay: Replay, where: Array | bool = True) -> Replay:
    """End the episodes under way, all or where bool[B]: what is added next does not continue them."""
    steps, num_envs = _shape(replay)
    newest = (replay.added[0] - 1) % steps * num_envs + jnp.arange(num_envs)
    t = replay.transition
    truncated = t.truncated.at[newest].set(t.truncated[newest] | (where & ~t.terminated[newest]))
    return replay._replace(transition=t._replace(truncated=truncated))


def view(replay: Replay, norm: Norm) -> Data:
    """What `sample` draws from: every transition that is kept, alike."""
    steps, num_envs = _shape(replay)
    return Data(replay, Sampler((), (), jnp.minimum(replay.added[0], steps) * num_envs), norm)


def _shape(replay: Replay) -> tuple[int, int]:
    """(C, B)."""
    num_envs = replay.added.shape[0]
    return replay.transition.reward.shape[0] // num_envs, num_envs


def transitions(replay: Replay, position: Array, steps: int = 1, discount: float = 1.0) -> Transition:
    """The transitions at `position` i32[B].

    Args: steps: n > 1 sums rewards over up to n steps (see `core.returns.n_step`); an episode's end or the newest
        step stops them earlier.  `next_obs`, `terminated` and `truncated` are those of the last step counted.
    Returns: Transition; extras {"discount": f32[B] discount^m}, the factor of the successor's value.
    """
    (ring, num_envs), flat = _shape(replay), replay.transition
    first = jax.tree.map(lambda x: x[position], flat)
    if steps == 1:
        return first._replace(extras={"discount": jnp.full(position.shape, discount, first.reward.dtype)})
    step, slot = position // num_envs, position % num_envs
    window = (step + jnp.arange(steps)[:, None]) % ring * num_envs + slot  # i32[n, B]
    newest = (replay.added[0] - 1) % ring
    over = flat.terminated[window] | flat.truncated[window]
    going_on = ~over & (window // num_envs != newest)
    total, count = n_step(flat.reward[window], going_on, discount)
    last = jax.tree.map(lambda x: x[jnp.take_along_axis(window, count[None] - 1, 0)[0]], flat)
    factor = (discount**count).astype(total.dtype)
    return last._replace(obs=first.obs, action=first.action, reward=total, extras={"discount": factor})
