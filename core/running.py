"""Running statistics that an on-policy algorithm keeps in its state: of observations, and of the rewards' scale."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from core.types import Array

EPS = 1e-8


class Moments(NamedTuple):
    """Mean and population variance of all that was seen, elementwise."""

    mean: Array  # f32[...]
    var: Array  # f32[...]
    count: Array  # f32[]


def moments(*shape: int, count: float = 0.0) -> Moments:
    """Of nothing yet: mean 0, variance 1, which weigh as much as `count` samples."""
    return Moments(jnp.zeros(shape), jnp.ones(shape), count * jnp.ones(()))


def include(seen: Moments, x: Array, ddof: int = 0) -> Moments:
    """Add samples x [..., *shape]; the squares of all are divided by their number less `ddof`.

    Reference: Chan, Golub and LeVeque, 1979, the pairwise update.
    """
    x = x.reshape(-1, *seen.mean.shape)
    number, mean, var = x.shape[0], x.mean(axis=0), x.var(axis=0)
    total, delta = seen.count + number, mean - seen.mean
    spread = seen.var * seen.count + var * number + jnp.square(delta) * seen.count * number / total
    return Moments(seen.mean + delta * number / total, spread / (total - ddof), total)


def standard(seen: Moments, x: Array, limit: float = 10.0) -> Array:
    """(x - mean) / sqrt(var + 1e-8), clipped to +-limit."""
    return jnp.clip((x - seen.mean) * jax.lax.rsqrt(seen.var + EPS), -limit, limit)


class RewardScale(NamedTuple):
    """Rewards are divided by the standard deviation of the running discounted return of their environment."""

    ret: Array  # f32[B] discounted sum of each environment's episode so far
    seen: Moments  # of that sum


def reward_scale(num_envs: int, count: float = 0.0) -> RewardScale:
    return RewardScale(jnp.zeros(num_envs), moments(count=count))


def renewed(scale: RewardScale, begins: Array) -> RewardScale:
    """With nothing summed yet where bool[B] an episode begins, be it a new one after a resume."""
    return scale._replace(ret=jnp.where(begins, 0.0, scale.ret))


def scale_rewards(
    scale: RewardScale, reward: Array, over: Array, discount: float, limit: float = 10.0, ddof: int = 0
) -> tuple[RewardScale, Array]:
    """Rewards f32[T, B] of a rollout, scaled and clipped to +-limit; over bool[T, B] where an episode ended.

    ret <- discount ret + r at each step, 0 after an end.  The rollout enters the statistics before it is scaled, as a
    whole, with `ddof` as in `include`.  Reference: the reward scaling that Engstrom et al. 2020 (arXiv:2005.12729)
    found in PPO's code; DPPO's and ReinFlow's begins with a count of 1e-4 and has ddof 1.
    """

    def one(ret: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, over = x
        ret = discount * ret + reward
        return jnp.where(over, 0.0, ret), ret

    ret, sums = jax.lax.scan(one, scale.ret, (reward, over))
    seen = include(scale.seen, sums, ddof)
    return RewardScale(ret, seen), jnp.clip(reward * jax.lax.rsqrt(seen.var + EPS), -limit, limit)
