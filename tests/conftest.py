"""What all tests share: the compilation cache, and a small dataset of a toy with a known answer."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

from core import runtime
from envs.toys import build

runtime.configure()


def match_arrays(episodes: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Uniformly random actions in toy/match, in the layout of `envs.datasets`."""
    env, rng = build("match"), np.random.default_rng(seed)
    length = env.spec.max_steps
    rows = episodes * (length + 1)
    state = np.repeat(rng.uniform(-1, 1, (episodes, 2)).astype(np.float32), length + 1, axis=0)
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    reward = jax.vmap(env.reward)(state, action)
    return {
        "state": state,
        "action": action,
        "reward": np.asarray(reward),
        "terminated": np.zeros(rows, bool),
        "length": np.full(episodes, length, np.int32),
        "success": np.zeros(episodes, np.float32),
    }


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    return match_arrays()


@pytest.fixture(scope="session")
def match_file(tmp_path_factory, arrays) -> str:
    """A dataset file for toy/match."""
    from envs import datasets

    path = tmp_path_factory.mktemp("data") / "match.npz"
    datasets.write(path, arrays, {"task": "toy/match"})
    return str(path)
