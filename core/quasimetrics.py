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

    In the order of their lower ends, each adds what of it lies above all before it.  What is before what is decided
    pair by pair: a sort of so few numbers takes XLA longer, and does not fuse.
    """
    high = jnp.maximum(low, high)
    number = jnp.arange(low.shape[-1])
    mine, other = low[..., :, None], low[..., None, :]
    before = (other < mine) | ((other == mine) & (number < number[:, None]))  # bool[..., I, I]
    reached = jnp.where(before, high[..., None, :], -jnp.inf).max(axis=-1)
    return jnp.maximum(high - jnp.maximum(low, reached), 0).sum(axis=-1)


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
