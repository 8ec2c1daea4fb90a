"""Quasimetrics on latents: d(x, x) = 0, d >= 0 and the triangle inequality, but d(x, y) need not be d(y, x).

Axes: D numbers of a latent, C components of I numbers each, D = C I.
"""

from __future__ import annotations

import jax.numpy as jnp

from core.config import ConfigError
from core.losses import check_shapes
from core.types import Array

INTERVALS = 8  # I, in a component of `iqe`


def iqe(x: Array, y: Array, mix: Array) -> Array:
    """Interval quasimetric embedding: f32[..., D], f32[..., D] and mix f32[] in [0, 1] -> f32[...].

    The distance of a component is the length of the union of its intervals [x_i, y_i], x_i < y_i; the whole is
    mix * mean over components + (1 - mix) * their maximum.
    Raises: ConfigError unless D is a multiple of `INTERVALS`.
    Reference: Wang and Isola, 2022, arXiv:2211.15120.
    """
    check_shapes(x=x, y=y)
    if x.shape[-1] % INTERVALS:
        raise ConfigError(f"IQE reads latents by {INTERVALS} numbers, {x.shape[-1]} are no multiple of it")
    parts = (*x.shape[:-1], -1, INTERVALS)
    lengths = union_length(x.reshape(parts), y.reshape(parts))
    return mix * lengths.mean(axis=-1) + (1 - mix) * lengths.max(axis=-1)


def union_length(low: Array, high: Array) -> Array:
    """Length of the union of the I intervals [low, high] of f32[..., I], empty where low >= high -> f32[...].

    Ordered by their lower ends, each adds what lies above all that came before.  The order is made by a sorting network
    of I rounds: a few elementwise minima, where XLA's general sort takes longer than the networks around it.
    """
    lows = [low[..., i] for i in range(low.shape[-1])]
    highs = [jnp.maximum(low, high)[..., i] for i in range(low.shape[-1])]
    for rounds in range(len(lows)):
        for i in range(rounds % 2, len(lows) - 1, 2):
            swap = lows[i] > lows[i + 1]
            for ends in (lows, highs):
                first, second = ends[i], ends[i + 1]
                ends[i], ends[i + 1] = jnp.where(swap, second, first), jnp.where(swap, first, second)
    total, reached = highs[0] - lows[0], highs[0]
    for begin, end in zip(lows[1:], highs[1:], strict=True):
        total = total + jnp.maximum(end - jnp.maximum(begin, reached), 0)
        reached = jnp.maximum(reached, end)
    return total


def mrn(x: Array, y: Array) -> Array:
    """Metric residual network: f32[..., D], f32[..., D] -> f32[...].

    sqrt(sum (x - y)^2) over the first half, at least 1e-6, + max(0, max_i (x_i - y_i)) over the second.
    Raises: ConfigError for an odd D.
    Reference: Liu et al., 2023, arXiv:2208.08133.
    """
    check_shapes(x=x, y=y)
    if x.shape[-1] % 2:
        raise ConfigError(f"MRN halves its latents: {x.shape[-1]} numbers are odd")
    apart = x - y
    even, uneven = jnp.split(apart, 2, axis=-1)
    square = jnp.square(even).sum(axis=-1)
    return jnp.sqrt(jnp.maximum(square, 1e-12)) + jnp.maximum(uneven.max(axis=-1), 0)
