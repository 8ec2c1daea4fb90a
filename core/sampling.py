"""Drawing transitions with given probabilities: Walker's alias table over runs of equal ones.

A float32 cumulative sum over 10^6 rows loses the tail's mass; the table is built once in float64 on the host.
Weights belong to episodes as a rule, so that neighbours are alike: the table is over those runs, which fits a cache,
and within a run the draw is uniform.  The table's construction is the sweep of Huebschle-Schneider and Sanders (2019,
arXiv:1903.00227), vectorised: cells are split into light (mass < 1/R) and heavy, each light cell is topped up by
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
    """Table for probabilities proportional to `weight` f[N]; O(N) time and O(R) memory, built in float64.

    Raises: ConfigError when a weight is negative or not finite, or when all are zero.
    """
    weight = np.asarray(weight, np.float64)
    bad = np.flatnonzero(~(weight >= 0) | ~np.isfinite(weight))
    if weight.ndim != 1 or len(bad) or not weight.sum() > 0:
        what = f"row {bad[0]} is {weight.ravel()[bad[0]]}" if len(bad) else f"shape {weight.shape}, sum {weight.sum()}"
        raise ConfigError(f"sampling weights must be a vector of finite numbers >= 0 with a positive sum: {what}")
    first = np.flatnonzero(np.append(True, weight[1:] != weight[:-1]))
    if len(first) == 1:
        return uniform(len(weight))
    count = np.diff(first, append=len(weight))
    drawn = weight[first] > 0
    first, count = first[drawn], count[drawn]
    keep, alias = _alias(weight[first] * count)
    columns = (keep.astype(np.float32), alias, first, count)
    keep, alias, first, count = (x.astype(np.int32) if x.dtype.kind == "i" else x for x in columns)
    return Sampler(keep, alias, np.int32(len(weight)), first, count)


def _alias(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f64[R] probability of staying, i64[R] where to go otherwise) for positive weights."""
    mass = weight * (len(weight) / weight.sum())  # mean 1
    light, heavy = np.flatnonzero(mass < 1), np.flatnonzero(mass >= 1)
    keep, alias = np.minimum(mass, 1.0), np.arange(len(weight))
    if not len(heavy):  # all equal, and rounded down
        return np.ones_like(mass), alias
    # what the light cells before each one, and at last all of them, have taken; what the heavy ones up to each can give
    taken, spare = np.append(0.0, np.cumsum(1 - mass[light])), np.cumsum(mass[heavy] - 1)
    donor = np.searchsorted(spare, taken[:-1], side="right")
    alias[light] = heavy[np.minimum(donor, len(heavy) - 1)]
    first = np.searchsorted(taken, spare, side="left")  # when each heavy one is empty
    dry = (first < len(taken)) & (np.arange(len(heavy)) < len(heavy) - 1)
    cell = heavy[dry]
    keep[cell] = np.clip(1 + spare[dry] - taken[first[dry]], 0, 1)
    alias[cell] = heavy[np.flatnonzero(dry) + 1]
    return keep, alias


def probabilities(sampler: Sampler) -> np.ndarray:
    """f64[N] the probabilities that a full table draws with."""
    n = int(sampler.size)
    if isinstance(sampler.keep, tuple):
        return np.full(n, 1 / n)
    keep, first, count = np.asarray(sampler.keep, np.float64), np.asarray(sampler.first), np.asarray(sampler.count)
    run = (keep + np.bincount(np.asarray(sampler.alias), 1 - keep, len(keep))) / len(keep)
    p = np.zeros(n)
    p[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())] = np.repeat(run / count, count)
    return p


def draw(sampler: Sampler, key: Key, shape: tuple[int, ...]) -> Array:
    """i32[shape] positions in 0..N-1, independent, with replacement."""
    if isinstance(sampler.keep, tuple):
        cell_key, _ = jax.random.split(key)
        return jax.random.randint(cell_key, shape, 0, sampler.size, jnp.int32)
    bits = jax.random.bits(key, (5, *shape), jnp.uint32)  # one call: twice as fast as three of their own
    run = _below(bits[0], bits[1], jnp.uint32(len(sampler.keep)))
    stay = (bits[2] >> 8).astype(jnp.float32) * 2.0**-24 < sampler.keep[run]
    run = jnp.where(stay, run, sampler.alias[run])
    return sampler.first[run] + _below(bits[3], bits[4], sampler.count[run].astype(jnp.uint32))


def _below(high: Array, low: Array, n: Array) -> Array:
    """i32[...] floor(n * u) for the fraction u = (2^32 high + low) / 2^64, exactly, by 32-bit products."""
    product = high * n
    carry = product + _upper(low, n) < product
    return (_upper(high, n) + carry).astype(jnp.int32)


def _upper(a: Array, b: Array) -> Array:
    """u32[...] the upper 32 bits of a * b."""
    (a0, a1), (b0, b1) = ((x & 0xFFFF, x >> 16) for x in (a, b))
    middle, other = a0 * b1, a1 * b0
    carry = ((a0 * b0 >> 16) + (middle & 0xFFFF) + (other & 0xFFFF)) >> 16
    return a1 * b1 + (middle >> 16) + (other >> 16) + carry
