"""Gymnasium's MuJoCo tasks, v5 and v4, by names like `hopper-v5`.

The robots of `envs.locomotion` step over threads; the others, pictures and `workers` take one sim per slot.
D4RL's -v2 data belong to v4: v5 changed rewards, Walker2d's friction and the observations of Ant and Humanoid.
Pusher-v4 is not here, because it refuses MuJoCo 3.  These tasks know no success; it is always 0.
"""

from __future__ import annotations

import functools
from typing import Any

from core.config import ConfigError, choose
from core.env import HostEnv
from core.types import EnvSpec
from envs import render
from envs.host import NO_GOAL, Box, HostVector, Sim
from envs.registry import Options

_ROBOTS = {
    "ant": "Ant",
    "halfcheetah": "HalfCheetah",
    "hopper": "Hopper",
    "humanoid": "Humanoid",
    "humanoidstandup": "HumanoidStandup",
    "inverteddoublependulum": "InvertedDoublePendulum",
    "invertedpendulum": "InvertedPendulum",
    "pusher": "Pusher",
    "reacher": "Reacher",
    "swimmer": "Swimmer",
    "walker2d": "Walker2d",
}
IDS = {
    f"{name}-{version}": f"{robot}-{version}"
    for name, robot in _ROBOTS.items()
    for version in ("v5", "v4")
    if (name, version) != ("pusher", "v4")
}


def tasks() -> list[str]:
    return list(IDS)


def construct(name: str) -> tuple[Any, EnvSpec]:
    """Gymnasium's environment without wrappers, and what it is to us.  Raises: UnknownName."""
    render.choose_backend()
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    registered = gymnasium.spec(choose("MuJoCo task", name, IDS))
    # the class itself: `gymnasium.make` would add wrappers, and a deprecation warning for v4
    env = load_env_creator(registered.entry_point)(**registered.kwargs)
    spec = EnvSpec(
        name=f"mujoco/{name}",
        obs_shape=env.observation_space.shape,
        action_dim=env.action_space.shape[0],
        max_steps=registered.max_episode_steps,
    )
    return env, spec


class GymnasiumSim:
    """One Gymnasium task."""

    def __init__(self, name: str):
        self._env, self.spec = construct(name)
        self._studio, self._camera = render.Studio(self._env.model), camera(self._env)
        self._scale = Box(self._env.action_space.low, self._env.action_space.high)

    def reset(self, seed, task):
        state, _ = self._env.reset(seed=seed)
        return state, NO_GOAL

    def step(self, action):
        state, reward, terminated, _, _ = self._env.step(self._scale(action))
        return state, reward, terminated, 0.0

    def render(self, size):
        return self._studio.frame(self._env.data, self._camera, size)

    def close(self):
        self._studio.close()
        self._env.close()


def camera(env: Any) -> Any:
    """The model's camera that follows the robot, else a free one placed as Gymnasium places it."""
    import mujoco

    if mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    free = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(env.model, free)
    for key, value in (env.mujoco_renderer.default_cam_config or {}).items():
        if key == "lookat":
            free.lookat[:] = value
        else:
            setattr(free, key, value)
    return free


def build(name: str, pixels: int = 0) -> Sim:
    sim = GymnasiumSim(name)
    return render.PixelSim(sim, pixels) if pixels else sim


def make(name: str, num_envs: int, options: Options) -> HostEnv:
    """See `envs.registry.make`."""
    from envs import locomotion
    from envs.wrappers import wrap_host

    choose("MuJoCo task", name, IDS)
    if name in locomotion.NAMES and not options.pixels and not options.workers:
        return wrap_host(locomotion.make(name, num_envs, options.threads, options.max_steps), options)
    if options.threads:
        raise ConfigError(
            f"mujoco/{name} has no threads here: only {', '.join(sorted(locomotion.ROBOTS))} have them, "
            "without pixels and without workers; leave threads at 0"
        )
    factory = functools.partial(build, name, options.pixels)
    return wrap_host(HostVector(factory, num_envs, options.workers, options.max_steps), options)
