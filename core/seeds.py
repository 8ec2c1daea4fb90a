"""Seeds for host randomness, free of jax."""

from __future__ import annotations

import numpy as np


def derive(seed: int, *path: int) -> int:
    """A 31-bit seed for one place below `seed`: derive(run, slot), derive(slot seed, episode), ..."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0] & 0x7FFFFFFF)


def slot_seeds(seed: int | list[int] | tuple[int, ...] | np.ndarray, num_envs: int) -> list[int]:
    """One seed per slot, by the rule of `core.env.HostEnv`."""
    if np.ndim(seed) == 0:
        return [derive(int(seed), slot) for slot in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} environments; give one int or one seed per environment")
    return [int(s) for s in seed]
