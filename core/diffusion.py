"""Denoising diffusion on actions: the cosine schedule, noising, and the steps of DDPM and DDIM as moves of a chain.

Diffusion time k counts from the cleanest, 0, to the noisiest, K - 1; a chain's step j goes the other way.
References: Ho et al. 2020 (arXiv:2006.11239), Nichol and Dhariwal 2021 (the cosine schedule), Song et al. 2021 (DDIM);
the schedule's K + 1 in both places is DPPO's (Ren et al. 2024), other libraries differ in the third digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from core.chain import Move, Regression, Step
from core.config import ConfigError, choose
from core.networks import float_dtype
from core.types import Array

Predict = Callable[[Array, Array], Array]  # (x f32[..., H, A], k i32[...]) -> the noise in x, or what x was made of


class Schedule(NamedTuple):
    """By diffusion time, f32[K]."""

    beta: Array
    bar: Array  # product of the alphas, 1 - beta, up to here: the share of the signal's variance
    before: Array  # the same one step cleaner, 1 at k = 0

    @property
    def variance(self) -> Array:
        """Of the posterior q(x_{k-1} | x_k, x_0); 0 at k = 0."""
        return self.beta * (1 - self.before) / (1 - self.bar)


def cosine(steps: int) -> Schedule:
    """Raises: ConfigError for no steps."""
    if steps < 1:
        raise ConfigError(f"a diffusion of {steps} steps: at least 1 is needed")
    u = np.linspace(0, steps + 1, steps + 1) / (steps + 1)
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.clip(1 - f[1:] / f[:-1], 0, 0.999).astype(float_dtype())
    bar = np.cumprod(1 - beta, dtype=np.float64)  # of the betas as they are kept
    return Schedule(*(np.asarray(x, float_dtype()) for x in (beta, bar, np.concatenate([[1.0], bar[:-1]]))))


def noised(schedule: Schedule, x: Array, k: Array, normal: Array, predicts: str = "noise") -> Regression:
    """The regression at x_k = sqrt(bar_k) x + sqrt(1 - bar_k) normal of clean x f32[B, H, A], times i32[B]."""
    bar = jnp.asarray(schedule.bar)[k][:, None, None]
    target = choose("prediction", predicts, {"noise": normal, "clean": x})
    return Regression(
        jnp.sqrt(bar) * x + jnp.sqrt(1 - bar) * normal, k.astype(x.dtype), jnp.zeros_like(x[:, 0, 0]), target
    )


def clean(bar: Array, x: Array, predicted: Array, predicts: str, limit: float) -> Array:
    """The clean chunk that a prediction amounts to, clipped to +-limit."""
    x0 = predicted if predicts == "clean" else (x - jnp.sqrt(1 - bar) * predicted) / jnp.sqrt(bar)
    return jnp.clip(x0, -limit, limit)


def ddpm(schedule: Schedule, predict: Predict, predicts: str = "noise", limit: float = 1.0) -> Step:
    """Ancestral sampling over all K times: the posterior's mean and standard deviation."""
    steps = len(schedule.beta)

    def step(x: Array, j: Array) -> Move:
        k = steps - 1 - j
        beta, bar, before, variance = (jnp.asarray(c)[k][..., None, None] for c in (*schedule, schedule.variance))
        x0 = clean(bar, x, predict(x, k), predicts, limit)
        mean = beta * jnp.sqrt(before) / (1 - bar) * x0 + (1 - before) * jnp.sqrt(1 - beta) / (1 - bar) * x
        return Move(mean, jnp.sqrt(jnp.maximum(variance, 1e-20)))

    return step


def ddim_times(steps: int, count: int) -> np.ndarray:
    """i32[count] times that DDIM visits of K, in the order of the chain: multiples of K // count."""
    if not 1 <= count <= steps:
        raise ConfigError(f"{count} DDIM steps of a diffusion of {steps}: 1 to {steps} are possible")
    return np.arange(count, dtype=np.int32)[::-1] * (steps // count)


def ddim(
    schedule: Schedule, predict: Predict, count: int, eta: float = 0.0, predicts: str = "noise", limit: float = 1.0,
    noise_limit: float = np.inf,
) -> Step:  # fmt: skip
    """Every (K // count)-th time; eta 0 follows a deterministic path, eta 1 has DDPM's variance where count is K."""
    times = ddim_times(len(schedule.beta), count)
    bars = schedule.bar[times]
    befores = np.concatenate([bars[1:], np.ones(1, bars.dtype)])

    def step(x: Array, j: Array) -> Move:
        bar, before = (jnp.asarray(c)[j][..., None, None] for c in (bars, befores))
        x0 = clean(bar, x, predict(x, jnp.asarray(times)[j]), predicts, limit)
        noise = jnp.clip((x - jnp.sqrt(bar) * x0) / jnp.sqrt(1 - bar), -noise_limit, noise_limit)
        std = jnp.maximum(eta * jnp.sqrt((1 - before) / (1 - bar) * (1 - bar / before)), 1e-10)
        return Move(jnp.sqrt(before) * x0 + jnp.sqrt(jnp.maximum(1 - before - jnp.square(std), 0)) * noise, std)

    return step
