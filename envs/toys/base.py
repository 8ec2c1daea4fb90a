"""What every toy does the same way: observations and the clock."""

from __future__ import annotations

import jax.numpy as jnp

from core.types import Array, EnvSpec, Observation, TimeStep


def start(state: Array, goal: Array | None = None) -> Observation:
    """The first observation of an episode."""
    goal = jnp.zeros(0, jnp.float32) if goal is None else goal
    return Observation(state, goal, jnp.float32(0), jnp.int32(0))


def follow(
    spec: EnvSpec, obs: Observation, state: Array, reward: Array, terminated: Array = False, success: Array = 0.0
) -> tuple[Observation, TimeStep]:
    """The observation that follows `obs`, and its TimeStep: truncated at `spec.max_steps` unless terminated."""
    reward, terminated = jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool)
    successor = Observation(state, obs.goal, reward, obs.step + 1)
    truncated = ~terminated & (successor.step >= spec.max_steps)
    success = jnp.asarray(success, jnp.float32)
    return successor, TimeStep(successor, successor, reward, terminated, truncated, success)
