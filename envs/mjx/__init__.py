"""Gymnasium's locomotion tasks, v5, in MJX: the whole rollout is one jitted program.

This module holds the names and imports neither jax nor a simulator; `envs.mjx.locomotion` has the environments.
"""

from __future__ import annotations

from core.config import ConfigError
from core.env import HostEnv
from envs.registry import Options


def tasks() -> list[str]:
    return ["hopper-v5", "halfcheetah-v5", "walker2d-v5", "ant-v5"]


def make(name: str, num_envs: int, options: Options) -> HostEnv:
    """`core.rollout.JaxBatch` of the wrapped task, or with `options.host` the same functions behind `HostEnv`.

    Raises: UnknownName; ConfigError without the extra `mjx`, and for options that a jitted task cannot have.
    """
    if options.workers:
        raise ConfigError(f"mjx/{name} runs in jax: it has no worker processes, leave workers at 0")
    if options.pixels:
        raise ConfigError(f"mjx/{name} has no camera: leave pixels at 0, or use mujoco/{name}")
    try:
        import mujoco.mjx  # noqa: F401  the extra
    except ImportError as error:
        raise ConfigError(f"mjx/{name} needs an extra ({error}): make install EXTRAS=dev,mjx") from None

    from core.rollout import JaxBatch
    from envs.jax_wrappers import wrap_jax
    from envs.mjx.locomotion import build
    from envs.toys.host import HostFromJax

    batch = JaxBatch(wrap_jax(build(name), options), num_envs)
    return HostFromJax(batch) if options.host else batch
