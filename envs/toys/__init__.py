"""Jitted toys: environments in pure JAX with known answers.

Each class states its answer in its docstring and computes it (`optimal_value`, exact dynamic programming, an
optimal controller).  This module holds the names and imports no jax; the environments load when one is made.
"""

from __future__ import annotations

import importlib
from typing import Any

from core.config import ConfigError, choose
from core.env import HostEnv, JaxEnv
from envs.registry import Options

TOYS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> module, class, arguments
    **{f"bandit-{p}": ("tabular", "Bandit", {"p": p}) for p in (0.1, 0.2, 0.3, 0.4, 0.5)},
    "frozenlake": ("tabular", "FrozenLake", {"p": 1 / 3}),
    **{f"frozenlake-{p:g}": ("tabular", "FrozenLake", {"p": p}) for p in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)},
    "value": ("tabular", "OneStepValue", {}),
    "discount": ("tabular", "Discount", {}),
    "match": ("control", "Match", {}),
    "pixels": ("control", "PixelMatch", {}),
    "pointmass": ("control", "PointMass", {}),
    "pointmaze": ("maze", "PointMaze", {}),
    "pixelmaze": ("maze", "PixelMaze", {}),
}


def tasks() -> list[str]:
    return list(TOYS)


def build(name: str, **changes: Any) -> JaxEnv:
    """One bare instance; `changes` override the constructor arguments that belong to the name.

    Raises: UnknownName.
    """
    module, cls, arguments = choose("toy", name, TOYS)
    env = getattr(importlib.import_module(f"envs.toys.{module}"), cls)(**{**arguments, **changes})
    env.spec = env.spec._replace(name=f"toy/{name}")
    return env


def make(name: str, num_envs: int, options: Options) -> HostEnv:
    """`core.rollout.JaxBatch` of the wrapped toy, or with `options.host` the same functions behind `HostEnv`.

    Raises: UnknownName; ConfigError for options that a toy cannot have.
    """
    if options.workers:
        raise ConfigError(f"toy/{name} runs in jax: it has no worker processes, leave workers at 0")
    if options.pixels and name != "pixels":
        raise ConfigError(f"toy/{name} has no camera: leave pixels at 0, or use toy/pixels")
    env = build(name, **({"side": options.pixels} if options.pixels else {}))

    from core.rollout import JaxBatch  # here, so that listing tasks does not import jax
    from envs.jax_wrappers import wrap_jax
    from envs.toys.host import HostFromJax

    batch = JaxBatch(wrap_jax(env, options), num_envs)
    return HostFromJax(batch) if options.host else batch
