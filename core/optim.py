"""Optimisers: a record of parameters with their optimiser's state, one step, targets, schedules, delayed updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap

from core.config import ConfigError
from core.types import Array, Key, Metrics, PyTree

Schedule = Callable[[Array], Array]  # i32[] optimiser steps taken -> learning rate


class Trained(NamedTuple):
    """What an optimiser owns.  Target networks are kept outside, so no optimiser can decay or move them."""

    params: PyTree
    opt: PyTree


def adam(
    lr: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *,
    weight_decay: float = 0.0, max_norm: float = 0.0,
) -> optax.GradientTransformation:  # fmt: skip
    """Adam, or AdamW as torch's (decay lr * weight_decay on every parameter), after a clip by global norm if asked."""
    step = optax.adamw(lr, b1, b2, eps, weight_decay=weight_decay) if weight_decay else optax.adam(lr, b1, b2, eps)
    return optax.chain(optax.clip_by_global_norm(max_norm), step) if max_norm else step


def start(tx: optax.GradientTransformation, params: PyTree) -> Trained:
    return Trained(params, tx.init(params))


def apply(tx: optax.GradientTransformation, net: Trained, grads: PyTree, scale: float | Array = 1.0) -> Trained:
    """One optimiser step along the given gradients, `scale` times as long.

    With a learning rate of 1 in `tx`, `scale` is the learning rate (AdamW's decay included) that some other clock than
    the optimiser's steps decides.
    """
    updates, opt = tx.update(grads, net.opt, net.params)
    updates = jax.tree.map(lambda u: scale * u, updates)
    return Trained(optax.apply_updates(net.params, updates), opt)


def step(
    tx: optax.GradientTransformation, loss: Callable[..., tuple[Array, Metrics]], net: Trained, *args: Any
) -> tuple[Trained, Metrics]:
    """One step on `loss(params, *args) -> (f32[], metrics)`; only the first argument is differentiated."""
    grads, metrics = jax.grad(loss, has_aux=True)(net.params, *args)
    return apply(tx, net, grads), metrics


def mean_grad(
    loss: Callable[[PyTree, PyTree, Key | None], tuple[Array, Metrics]],
    params: PyTree,
    rows: PyTree,
    key: Key | None,
    size: int,
) -> tuple[PyTree, Metrics]:
    """(gradient, metrics) of `loss(params, rows, key) -> (f32[], metrics)`, all means over rows, `size` at a time.

    As of all N rows at once, but for rounding and for keys, one for each part (None: none); what a part keeps for its
    gradient fits into a cache or a memory where that of all does not.
    Raises: ConfigError unless the size divides N.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    if size < 1 or total % size:
        raise ConfigError(f"{total} rows do not make parts of {size}")

    def gradient(rows: PyTree, key: Key | None) -> tuple[PyTree, Metrics]:
        return jax.grad(loss, has_aux=True)(params, rows, key)

    if size == total:
        return gradient(rows, key)
    count = total // size
    keys = None if key is None else jax.random.split(key, count)
    parts = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), rows), keys
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts))

    def add(sums: PyTree, part: tuple[PyTree, Key | None]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, gradient(*part)), None

    sums, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return jax.tree.map(lambda x: x / count, sums)


def polyak(target: PyTree, online: PyTree, tau: float | Array) -> PyTree:
    """tau * online + (1 - tau) * target, leaf by leaf."""
    return jax.tree.map(lambda t, o: tau * o + (1 - tau) * t, target, online)


def cosine(lr: float, steps: int) -> Schedule:
    """From lr at step 0 to 0 at `steps` along half a cosine; 0 afterwards."""
    return optax.cosine_decay_schedule(lr, steps)


def warmup_cosine(low: float, high: float, warmup: int, cycle: int) -> Schedule:
    """Linear from `low` to `high` over `warmup` steps, half a cosine back to `low` at `cycle`, then again.

    Reference: the restarting schedule of DPPO and ReinFlow; step 0 gives `low`, without a warm-up `high`.
    Raises: ConfigError unless 0 <= warmup < cycle.
    """
    if not 0 <= warmup < cycle:
        raise ConfigError(f"a schedule needs 0 <= warmup < cycle, not warmup {warmup} and cycle {cycle}")

    def lr(step: Array) -> Array:
        phase = step % cycle
        rise = phase / max(warmup, 1)
        fall = (1 + jnp.cos(jnp.pi * (phase - warmup) / (cycle - warmup))) / 2
        return low + (high - low) * jnp.where(phase < warmup, rise, fall)

    return lr


@custom_vmap
def lockstep(x: Array) -> Array:
    """x itself; under vmap the maximum over the mapped axis, unbatched.

    For counters that are equal in all seeds: a `lax.cond` on a mapped predicate would run both branches.  The
    maximum, because a seed that failed may be frozen behind the others; what it computes is thrown away.
    """
    return x


@lockstep.def_vmap
def _lockstep_rule(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return lockstep(x.max(axis=0) if in_batched[0] else x), False


Fn = Callable[[PyTree], tuple[PyTree, Metrics]]


def when(due: Array, fn: Fn, state: PyTree) -> tuple[PyTree, Metrics]:
    """`fn(state)` where bool[] `due`, else the state as it came and NaN for each of the (float) metrics.

    Make `due` from `lockstep` counters: a mapped predicate would run both branches.
    """
    _, shapes = jax.eval_shape(fn, state)
    skipped = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
    return jax.lax.cond(due, fn, lambda state: (state, skipped), state)


def every(period: int, step: Array, fn: Fn, state: PyTree, first: int = 0) -> tuple[PyTree, Metrics]:
    """`when` on calls number first, first + period, ...; `step` i32[] counts the calls before this one.

    Args: first: at most the period; 0: as the period.
    Raises: ConfigError for a period below 1.
    """
    if period < 1:
        raise ConfigError(f"a period of {period} updates: it must be at least 1")
    if period == 1:
        return fn(state)
    return when((lockstep(step) + 1 - first) % period == 0, fn, state)
