"""Chains of Gaussians: how flow and diffusion policies act, and how likely what they did was.

    x_0 given (noise),    x_{k+1} ~ N(mean_k(x_k), std_k(x_k)^2),  k = 0 .. K-1,    the action is x_K.

A policy is one function of a state of the chain and a step's number, `Step`.  Acting, the likelihood of a stored
chain, regularisers and evaluation call the same one, so that their time grids cannot differ.  A stored chain is judged
in one batched call, without a loop over its steps.
Axes: B batch, K steps, H steps of a chunk, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core.distributions import HALF_LOG_TWO_PI
from core.types import Array


class Move(NamedTuple):
    """The law of the next state, N(mean, std^2) elementwise."""

    mean: Array  # f32[..., H, A]
    std: Array  # f32[..., H, A] or what broadcasts to it


class Regression(NamedTuple):
    """What a denoiser is fitted to, by mean squared error: its output at (x, t, span) to the target."""

    x: Array  # f32[B, H, A] noisy chunk
    t: Array  # f32[B] flow time in [0, 1], or diffusion time 0 .. K - 1
    span: Array  # f32[B]
    target: Array  # f32[B, H, A]


Step = Callable[[Array, Array], Move]  # (x f32[..., H, A], k i32[...] or i32[]) -> Move


def sample(
    step: Step, x: Array, normals: Array, floor: float | Array = 0.0, clip: float = jnp.inf, last: float = jnp.inf
) -> tuple[Array, Move]:
    """Run a chain from x f32[B, H, A] by standard normals f32[B, K, H, A]; zero normals follow the means.

    Args: floor: least std that is drawn with, f32[] or f32[K]; clip: of the normals, to +-clip; last: of the last
        state, to +-last.
    Returns: (states f32[B, K + 1, H, A], x first, and the laws of the K steps, without the floor, as `moves` says).
    """
    floors = jnp.broadcast_to(jnp.asarray(floor, x.dtype), normals.shape[1:2])

    def one(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Move]]:
        k, normal, floor = inputs
        move = Move(*(jnp.broadcast_to(u, x.shape) for u in step(x, k)))
        x = move.mean + jnp.maximum(move.std, floor) * jnp.clip(normal, -clip, clip)
        x = jnp.where(k == len(floors) - 1, jnp.clip(x, -last, last), x)
        return x, (x, move)

    _, (states, law) = jax.lax.scan(one, x, (jnp.arange(len(floors)), jnp.moveaxis(normals, 1, 0), floors))
    states = jnp.concatenate([x[None], states])
    return jax.tree.map(lambda u: jnp.moveaxis(u, 0, 1), (states, law))


def moves(step: Step, chain: Array) -> Move:
    """The laws that the K steps of a chain f32[B, K + 1, H, A] were drawn from: f32[B, K, H, A] each."""
    before = chain[:, :-1]
    move = step(before, jnp.arange(before.shape[1])[None])
    return Move(*(jnp.broadcast_to(x, before.shape) for x in move))


def log_density(x: Array, mean: Array | float, std: Array | float) -> Array:
    """Of N(mean, std^2), elementwise."""
    return -0.5 * jnp.square((x - mean) / std) - jnp.log(std) - HALF_LOG_TWO_PI
