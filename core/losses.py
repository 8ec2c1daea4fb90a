"""Losses that several algorithms share.  Shapes are checked at trace time: nothing broadcasts in silence."""

from __future__ import annotations

import jax.numpy as jnp

from core.types import Array, Metrics


def check_shapes(**arrays: Array) -> None:
    """Raises: ValueError, naming each shape, unless all are equal."""
    shapes = {name: jnp.shape(x) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def td_target(reward: Array, terminated: Array, next_value: Array, discount: float) -> Array:
    """r + discount * (1 - terminated) * V(s'), all f32[B] or all of one shape; a truncated step bootstraps."""
    check_shapes(reward=reward, terminated=terminated, next_value=next_value)
    return reward + discount * (1 - terminated.astype(next_value.dtype)) * next_value


def mean(x: Array, weight: Array | None = None) -> Array:
    """Mean of f32[B, ...] over all axes, each row times its `weight` f32[B] -> f32[]; None: all weights 1."""
    if weight is None:
        return x.mean()
    check_shapes(rows=x[(slice(None), *(0,) * (x.ndim - 1))], weight=weight)
    return (weight * x.mean(axis=tuple(range(1, x.ndim)))).mean()


def mse(prediction: Array, target: Array, weight: Array | None = None) -> Array:
    """Mean of the squared difference over all axes, rows weighted as in `mean` -> f32[]."""
    check_shapes(prediction=prediction, target=target)
    return mean(jnp.square(prediction - target), weight)


def ensemble_mse(q: Array, target: Array, weight: Array | None = None) -> Array:
    """Sum over members of their mean squared errors: q f32[E, B], target f32[B], rows weighted by f32[B] -> f32[]."""
    check_shapes(member=q[0], target=target)
    squared = jnp.square(q - target)
    if weight is not None:
        check_shapes(target=target, weight=weight)
        squared = weight * squared
    return squared.mean(axis=tuple(range(1, q.ndim))).sum()


def ppo_clip(log_ratio: Array, advantage: Array, clip: float | Array) -> tuple[Array, Metrics]:
    """Clipped objective mean max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = exp(log_ratio) -> (f32[], metrics).

    All f32[B], `clip` too or one for all.  The KL divergence is estimated by rho - 1 - log rho.
    Reference: Eq. (7), arXiv:1707.06347.
    """
    check_shapes(log_ratio=log_ratio, advantage=advantage)
    ratio = jnp.exp(log_ratio)
    loss = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)).mean()
    return loss, {
        "policy/ratio": ratio.mean(), "policy/kl": (ratio - 1 - log_ratio).mean(),
        "policy/clipped": (jnp.abs(ratio - 1) > clip).mean(),
    }  # fmt: skip


def expectile_weight(error: Array, tau: float) -> Array:
    """|tau - 1{error < 0}|, elementwise; error = target - prediction."""
    return jnp.where(error < 0, 1 - tau, tau)


def expectile(error: Array, tau: float) -> Array:
    """|tau - 1{error < 0}| * error^2, elementwise; error = target - prediction.  Reference: IQL, arXiv:2110.06169."""
    return expectile_weight(error, tau) * jnp.square(error)


def awr_weight(advantage: Array, temperature: float, limit: float = 100.0) -> Array:
    """min(exp(temperature * advantage), limit), elementwise; the limit is put inside, so no overflow occurs."""
    return jnp.exp(jnp.minimum(temperature * advantage, jnp.log(limit)))
