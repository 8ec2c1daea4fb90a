"""Augmentation of images: random shifts, as in DrQ (Kostrikov et al. 2021, arXiv:2004.13649)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.types import Array, Key, Observation


def random_shift(key: Key, image: Array, pad: int) -> Array:
    """Each image u8[B, H, W, C] moved by up to `pad` pixels either way, its border repeated."""
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    corner = jax.random.randint(key, (len(image), 2), 0, 2 * pad + 1)

    def cut(image: Array, corner: Array, shape: tuple[int, ...]) -> Array:
        return jax.lax.dynamic_slice(image, (*corner, jnp.zeros((), corner.dtype)), shape)

    return jax.vmap(lambda p, c: cut(p, c, image.shape[1:]))(padded, corner)


def shifted(key: Key, obs: Observation, pad: int) -> Observation:
    """Observations [B] with their images shifted; as they are where pad is 0."""
    return obs._replace(state=random_shift(key, obs.state, pad)) if pad else obs
