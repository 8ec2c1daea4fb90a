"""Distributions of actions with exact log-densities: diagonal Gaussians, plain and squashed by tanh, and categorical.

Samples take their standard normals as arrays, so a caller decides where randomness comes from.  Log-densities and
entropies are summed over the last axis: f32[..., A] -> f32[...].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core.losses import check_shapes
from core.types import Array

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """N(mean, exp(log_std)^2) in each of the A dimensions; log_std may be f32[A] or a scalar."""

    mean: Array  # f32[..., A]
    log_std: Array  # f32[..., A] or what broadcasts to it

    def mode(self) -> Array:
        return self.mean

    def sample(self, normal: Array) -> Array:
        """mean + std * normal; normal f32[..., A], with as many leading axes more as there are samples."""
        return self.mean + jnp.exp(self.log_std) * normal

    def log_prob(self, x: Array) -> Array:
        """f32[...] log-density; x has the mean's shape, or leading sample axes more."""
        check_shapes(x=x[(0,) * (x.ndim - self.mean.ndim)], mean=self.mean)
        z = (x - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * jnp.square(z) + self.log_std + HALF_LOG_TWO_PI).sum(axis=-1)

    def entropy(self) -> Array:
        """f32[...]: sum of log_std + (1 + log 2 pi) / 2."""
        return (jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 + HALF_LOG_TWO_PI).sum(axis=-1)


class Categorical(NamedTuple):
    """Discrete actions 0 .. n - 1 with probabilities proportional to exp(logits)."""

    logits: Array  # f32[..., n]

    def mode(self) -> Array:
        """i32[...]"""
        return self.logits.argmax(axis=-1).astype(jnp.int32)

    def sample(self, gumbel: Array) -> Array:
        """i32[...] for standard Gumbel draws of the logits' shape."""
        return (self.logits + gumbel).argmax(axis=-1).astype(jnp.int32)

    def log_prob(self, x: Array) -> Array:
        """f32[...] of actions i32[...]."""
        check_shapes(x=x, logits=self.logits[..., 0])
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), x[..., None], axis=-1)[..., 0]


def log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which does not cancel for large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


class TanhGaussian(NamedTuple):
    """The law of tanh(u), u ~ N(mean, exp(log_std)^2); u is the pre-tanh value."""

    mean: Array  # f32[..., A]
    log_std: Array  # f32[..., A] or what broadcasts to it

    @property
    def base(self) -> Gaussian:
        return Gaussian(self.mean, self.log_std)

    def mode(self) -> Array:
        """tanh(mean), the deterministic action (the median; the density's own maximum differs)."""
        return jnp.tanh(self.mean)

    def sample(self, normal: Array) -> tuple[Array, Array]:
        """(action, u).  Keep u: the action alone loses it where tanh saturates."""
        u = self.base.sample(normal)
        return jnp.tanh(u), u

    def log_prob(self, u: Array) -> Array:
        """f32[...] log-density of the action tanh(u) with respect to the action, from u itself: exact."""
        return self.base.log_prob(u) - log_tanh_slope(u).sum(axis=-1)

    def log_prob_action(self, action: Array, eps: float = 1e-5) -> Array:
        """The same from an action, for data without u: actions beyond +-(1 - eps) are moved there first.

        An exact +-1 has no finite log-density, so eps decides what a saturated action is worth: with float32 keep it
        at 1e-6 or more (IQL clips its data at 1e-5).
        """
        return self.log_prob(jnp.arctanh(jnp.clip(action, eps - 1, 1 - eps)))

    def entropy(self, normal: Array) -> Array:
        """f32[...] unbiased estimate from one sample, -log_prob(u); there is no closed form."""
        return -self.log_prob(self.base.sample(normal))


def squashed_std(raw: Array, low: float | Array, high: float | Array) -> Array:
    """Standard deviations in [low, high] from unbounded numbers, elementwise; 0 gives the geometric mean.

    log std = log low + (log high - log low) (tanh(raw) + 1) / 2.  Reference: ReinFlow's noise network.
    """
    low, high = jnp.log(low), jnp.log(high)
    return jnp.exp(low + (high - low) * (jnp.tanh(raw) + 1) / 2)
