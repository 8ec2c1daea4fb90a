"""Drawing transitions with given probabilities: Walker's alias table.

A float32 cumulative sum over 10^6 rows loses the tail's mass; the table is built once in float64 on the host
and costs two gathers a draw.  The construction is the sweep of Huebschle-Schneider and Sanders (2019,
arXiv:1903.00227), vectorised: cells are split into light (mass < 1/N) and heavy, each light cell is topped up by
the heavy cell that the sweep has reached, and each heavy cell that runs dry by the next heavy one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.config import ConfigError
from core.types import Array, Key, Sampler


def uniform(n: int) -> Sampler:
    """Every one of n transitions alike."""
    return Sampler((), (), np.int32(n))


def alias_table(weight: Array) -> Sampler:
    """Table for probabilities proportional to `weight` f[N]; O(N) memory, built in float64.

    Raises: ConfigError when a weight is negative or not finite, or when all are zero.
    """
    weight = np.asarray(weight, np.float64)
    bad = np.flatnonzero(~(weight >= 0) | ~np.isfinite(weight))
    if weight.ndim != 1 or len(bad) or not weight.sum() > 0:
        what = f"row {bad[0]} is {weight.ravel()[bad[0]]}" if len(bad) else f"shape {weight.shape}, sum {weight.sum()}"
        raise ConfigError(f"sampling weights must be a vector of finite numbers >= 0 with a positive sum: {what}")
    n = len(weight)
    mass = weight * (n / weight.sum())  # mean 1
    light, heavy = np.flatnonzero(mass < 1), np.flatnonzero(mass >= 1)
    if not len(heavy):  # all equal, and rounded down
        return uniform(n)
    keep, alias = np.minimum(mass, 1.0), np.arange(n)
    if len(light):
        lack = np.cumsum(1 - mass[light])  # what the light cells up to here have taken
        spare = np.cumsum(mass[heavy] - 1)  # what the heavy cells up to here can give
        donor = np.searchsorted(spare, lack - (1 - mass[light]), side="right")
        alias[light] = heavy[np.minimum(donor, len(heavy) - 1)]
        first = np.searchsorted(lack, spare, side="left")  # the light cell that empties each heavy one
        dry = (first < len(light)) & (np.arange(len(heavy)) < len(heavy) - 1)
        cell = heavy[dry]
        keep[cell] = np.clip(1 + spare[dry] - lack[first[dry]], 0, 1)
        alias[cell] = heavy[np.flatnonzero(dry) + 1]
    return Sampler(keep.astype(np.float32), alias.astype(np.int32), np.int32(n))


def probabilities(sampler: Sampler) -> np.ndarray:
    """f64[N] the probabilities that a full table draws with."""
    if isinstance(sampler.keep, tuple):
        return np.full(int(sampler.size), 1 / int(sampler.size))
    keep = np.asarray(sampler.keep, np.float64)
    return (keep + np.bincount(np.asarray(sampler.alias), 1 - keep, len(keep))) / len(keep)


def draw(sampler: Sampler, key: Key, shape: tuple[int, ...]) -> Array:
    """i32[shape] positions in 0..N-1, independent, with replacement."""
    cell_key, coin_key = jax.random.split(key)
    cell = jax.random.randint(cell_key, shape, 0, sampler.size, jnp.int32)
    if isinstance(sampler.keep, tuple):
        return cell
    stay = jax.random.uniform(coin_key, shape) < sampler.keep[cell]
    return jnp.where(stay, cell, sampler.alias[cell])
