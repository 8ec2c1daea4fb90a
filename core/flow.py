"""Flow matching on actions: grids of time, Euler steps, and the regressions of rectified, shortcut and mean flow.

Flow time runs from noise, t = 0, to data, t = 1; x_t = (1 - t) x_0 + t x_1.  A velocity is a function v(x, t, span):
rectified flow ignores the span, shortcut and mean-flow models answer with the average over [t, t + span].
Axes: B batch, K steps, H steps of a chunk, A action.
References: Liu et al. 2022 (arXiv:2209.03003, rectified flow), Frans et al. 2024 (arXiv:2410.12557, shortcut models),
Geng et al. 2025 (arXiv:2505.13447, mean flow), ReinFlow (arXiv:2505.22094) for the options.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from core.chain import Move, Regression, Step
from core.config import ConfigError, choose
from core.networks import float_dtype
from core.types import Array, Key

Velocity = Callable[[Array, Array, Array], Array]  # (x f32[..., H, A], t f32[...], span f32[...]) -> f32[..., H, A]
Field = Callable[[Array, Array, Array, Array], tuple[Array, Array]]  # (x, t, span, k i32[...]) -> (velocity, std)

TIMES: dict[str, Callable[[Key, tuple[int, ...]], Array]] = {
    "uniform": lambda key, shape: jax.random.uniform(key, shape),
    "logitnormal": lambda key, shape: jax.nn.sigmoid(jax.random.normal(key, shape)),
    "beta": lambda key, shape: 0.999 * (1 - jax.random.beta(key, 1.5, 1.0, shape)),  # more of the noisy end
}


def grid(steps: int, kind: str = "left") -> Array:
    """f32[K] times at which velocities are asked for.

    left: k / K, Euler's; inclusive: linspace(0, 1, K), with which ReinFlow's curves were published.
    Raises: UnknownName; ConfigError for no steps.
    """
    if steps < 1:
        raise ConfigError(f"a flow of {steps} steps: at least 1 is needed")
    ends = choose("time grid", kind, {"left": 1 - 1 / steps, "inclusive": 1.0})
    return jnp.linspace(0, ends, steps, dtype=float_dtype())


def euler(field: Field, times: Array, limit: float = jnp.inf) -> Step:
    """Steps of 1 / K along the velocity; the mean, and only the mean, is clipped to +-limit."""
    steps = len(times)

    def step(x: Array, k: Array) -> Move:
        velocity, std = field(x, times[k], jnp.full(jnp.shape(k), 1 / steps, x.dtype), k)
        return Move(jnp.clip(x + velocity / steps, -limit, limit), std)

    return step


def _of_rows(u: Array) -> Array:
    return u[:, None, None]


def rectified(x0: Array, x1: Array, t: Array, delta: float = 0.0) -> Regression:
    """The straight path from noise x0 to data x1, f32[B, H, A] each, at times f32[B].

    Args: delta: share of the noise that is left at t = 1; the official shortcut models have 1e-5.
    """
    rest = 1 - delta
    x = (1 - rest * _of_rows(t)) * x0 + _of_rows(t) * x1
    return Regression(x, t, jnp.zeros_like(t), x1 - rest * x0)


def self_consistent(
    velocity: Velocity, x0: Array, x1: Array, exponent: Array, index: Array, delta: float = 1e-5
) -> Regression:
    """A shortcut of span D = 2^-b from t = j D, fitted to two of half the length by the velocity as it is.

    Args: exponent b i32[B]; index j i32[B] below 2^b.  Give a velocity of parameters that take no gradient.
    """
    span = 2.0 ** -exponent.astype(x1.dtype)
    t, half = index.astype(x1.dtype) * span, span / 2
    x = rectified(x0, x1, t, delta).x
    first = velocity(x, t, half)
    second = velocity(x + _of_rows(half) * first, t + half, half)
    return Regression(x, t, span, (first + second) / 2)


def mean_flow(velocity: Velocity, x0: Array, x1: Array, t: Array, until: Array) -> Regression:
    """The average velocity u over [t, until], f32[B] each: u = v + (until - t) du/dt along the path (Eq. 6).

    du/dt is taken by forward differentiation at a fixed end.  Give a velocity of parameters that take no gradient.
    """
    x, _, _, v = rectified(x0, x1, t)
    ones = jnp.ones_like(t)
    _, slope = jax.jvp(velocity, (x, t, until - t), (v, ones, -ones))
    return Regression(x, t, until - t, v + _of_rows(until - t) * slope)


def draw_shortcuts(key: Key, size: int, highest: int) -> tuple[Array, Array]:
    """(exponent, index) i32[size] of `self_consistent`: b uniform in 0..highest, j uniform below 2^b."""
    which, where = jax.random.split(key)
    exponent = jax.random.randint(which, (size,), 0, highest + 1)
    count = 2**exponent
    return exponent, jnp.minimum((jax.random.uniform(where, (size,)) * count).astype(count.dtype), count - 1)


def draw_intervals(key: Key, law: str, size: int, instant: float) -> tuple[Array, Array]:
    """(t, until) f32[size] of `mean_flow`: two sorted draws of a law of `TIMES`, equal in a share `instant` of rows."""
    times, coin = jax.random.split(key)
    pair = choose("time law", law, TIMES)(times, (2, size))
    t, until = pair.min(axis=0), pair.max(axis=0)
    return t, jnp.where(jax.random.uniform(coin, (size,)) < instant, t, until)
