"""Returns along time.  Termination stops the value, any end of an episode stops the sum.

Axes: T time (leading), then any others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.losses import check_shapes, td_target
from core.types import Array


def gae(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, discount: float, lam: float
) -> Array:
    """Generalised advantage estimates f32[T, ...].

    delta_t = r_t + discount (1 - terminated_t) V(s'_t) - V(s_t);  A_t = delta_t + discount lam (1 - over_t) A_{t+1},
    over = terminated or truncated.  `next_value` is the value of the true successor, before any reset, so that an
    episode cut by the clock still counts what would have followed.  Reference: Eq. (16), arXiv:1506.02438.
    """
    check_shapes(reward=reward, value=value, next_value=next_value, terminated=terminated, truncated=truncated)
    delta = td_target(reward, terminated, next_value, discount) - value
    decay = discount * lam * (1 - (terminated | truncated).astype(delta.dtype))

    def one(later: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = x
        advantage = delta + decay * later
        return advantage, advantage

    return jax.lax.scan(one, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


def n_step(reward: Array, going_on: Array, discount: float) -> tuple[Array, Array]:
    """Sums over the first steps of windows.

    Args: reward f32[L, ...]; going_on bool[L, ...]: whether step k + 1 of the window belongs to the same episode and
        exists, so that it may be added to step k.  The last row is not read.
    Returns: (f32[...] sum of discount^k r_k over the m steps that belong together, i32[...] m).  The target is
        sum + discount^m (1 - terminated) V(s') with `terminated` and s' of step m - 1.
    """
    check_shapes(reward=reward, going_on=going_on)
    counted = jnp.concatenate([jnp.ones_like(going_on[:1]), jnp.cumprod(going_on[:-1], axis=0).astype(bool)])
    factor = (discount ** jnp.arange(len(reward))).astype(reward.dtype).reshape(-1, *[1] * (reward.ndim - 1))
    return (factor * reward * counted).sum(axis=0), counted.sum(axis=0)
