"""OGBench's mazes and manipulation tasks, by its environment ids without `-v0`.

- `antmaze-large`: goal-conditioned, tasks 1 to 5, the goal an observation; reward 1 at success, else 0;
- `antmaze-large-singletask-task3`: one fixed task without a goal and with the reward that its data are relabelled
  with (0 at success and -1 before in mazes; less by one for each object that is not in place in manipulation);
  without `-task3`, the environment's default task;
- `visual-...`: the same from uint8[64, 64, 3] pictures;
- `ant-directed`, `humanoid-directed`: the ground that experts for mazes learn on, see `envs.directed`.

An episode terminates at success, and it succeeded when its last step did.  Single tasks judge the state before the
action, as the relabelled data do, so they end one step later.  In `teleport` mazes the state after a jump is seen one
step late.  All of this is the library's.

Left out: Powderworld (discrete, no MuJoCo), and humanoidmaze-teleport, which is registered but cannot be built (its
model lacks the teleporters' materials).
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from core.config import ConfigError, choose
from core.env import HostEnv
from core.types import EnvSpec
from envs import directed, render
from envs.host import NO_GOAL, GlobalRandom, HostVector, Sim, draw_task
from envs.registry import Options

_SIZES = ("medium", "large", "giant", "teleport")
_STATES = (
    *(f"{robot}maze-{size}" for robot in ("point", "ant") for size in _SIZES),
    *(f"humanoidmaze-{size}" for size in _SIZES[:3]),
    *("antsoccer-arena", "antsoccer-medium"),
    *(f"cube-{count}" for count in ("single", "double", "triple", "quadruple", "octuple")),
    "scene",
    *(f"puzzle-{size}" for size in ("3x3", "4x4", "4x5", "4x6")),
)
_NO_PICTURES = ("pointmaze", "antsoccer", "cube-octuple")  # the library renders none of these
_SINGLE = ("-singletask", *(f"-singletask-task{number}" for number in range(1, 6)))
_NAMES = tuple(
    f"{view}{base}{single}"
    for view in ("", "visual-")
    for base in _STATES
    if not (view and base.startswith(_NO_PICTURES))
    for single in ("", *_SINGLE)
)


def tasks() -> list[str]:
    return [*_NAMES, *directed.TASKS]


class OGBenchSim:
    """One OGBench environment without wrappers."""

    def __init__(self, name: str):
        choose("OGBench task", name, dict.fromkeys(_NAMES))
        visual, self._single = name.startswith("visual-"), "singletask" in name
        self._random = GlobalRandom()
        # in a step only teleporters draw, for their exit; a loan costs 0.1 ms, half of what an ant's step takes
        self._loan = self._random if "teleport" in name else contextlib.nullcontext()
        with render.explained() if visual else contextlib.nullcontext(render.choose_backend()), self._random:
            import gymnasium
            import ogbench  # noqa: F401  registers its environments

            registered = gymnasium.spec(f"{name}-v0")
            self._env = construct(registered)
            space, shape = self._env.action_space, self._env.observation_space.shape
        for renderer in ("custom_renderer", "_renderer"):  # of mazes and of manipulation
            if getattr(self._env, renderer, None) is not None:
                render.keep(getattr(self._env, renderer))
        self._studio = render.Studio(self._env.model)
        self._camera = getattr(self._env, "custom_camera", "front_pixels" if visual else "front")
        self.spec = EnvSpec(
            name=f"ogbench/{name}",
            obs_shape=shape,
            action_dim=space.shape[0],
            goal_shape=(0,) if self._single else shape,
            max_steps=registered.max_episode_steps,
            num_tasks=1 if self._single else 5,
        )

    def reset(self, seed, task):
        # `seed` covers the environment's own generator; mazes also draw from NumPy's, all from their action space's
        self._random.seed(seed)
        self._env.action_space.seed(seed)
        options = {} if self._single else {"task_id": task or draw_task(seed, self.spec.num_tasks)}
        with self._random:
            state, info = self._env.reset(seed=seed, options=options)
        return state, NO_GOAL if self._single else info["goal"]

    def step(self, action):
        with self._loan:
            state, reward, terminated, _, info = self._env.step(action.clip(-1.0, 1.0))
        return state, reward, terminated, float(info["success"])

    def render(self, size):
        return self._studio.frame(self._env.data, self._camera, size)

    def close(self):
        self._studio.close()
        for renderer in ("custom_renderer", "_renderer"):
            if getattr(self._env, renderer, None) is not None:
                getattr(self._env, renderer).close()
        self._env.close()


def construct(registered: Any, **changes: Any) -> Any:
    """An environment of the library that can be seeded and leaves no file behind.

    Args: registered: its gymnasium spec; changes: override the arguments that it is registered with.
    """
    import numpy as np
    from gymnasium.envs.registration import load_env_creator
    from gymnasium.spaces import Box

    creator, arguments = load_env_creator(registered.entry_point), {**registered.kwargs, **changes}
    if isinstance(creator, type):
        # Manipulation makes a new, unseeded action space at each use, and its goals depend on actions drawn from it.
        space = Box(-1.0, 1.0, (5,), np.float32)
        creator = type(creator.__name__, (creator,), {"action_space": space})
        return creator(**arguments)
    env = creator(**arguments)
    # Mazes write their model to a temporary file, and leave it there and open.
    for descriptor in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(descriptor)), os.stat(env.fullpath)):
                os.close(int(descriptor))
    os.unlink(env.fullpath)
    return env


def standards(name: str) -> dict[str, Any]:
    """The sets that an oracle makes on a task: see `envs.oracles`."""
    from envs import oracles

    return oracles.standards(name)


def make(name: str, num_envs: int, options: Options) -> HostEnv:
    """See `envs.registry.make`."""
    from envs.wrappers import wrap_host

    choose("OGBench task", name, dict.fromkeys(tasks()))
    if options.pixels:
        visual = f"visual-{name.removeprefix('visual-')}"
        instead = f"use ogbench/{visual}" if visual in _NAMES else f"{name} has none"
        raise ConfigError(f"OGBench has its own picture tasks, 64 x 64, instead of the option `pixels`: {instead}")
    sim = directed.DirectedSim if name in directed.TASKS else OGBenchSim
    factory: functools.partial[Sim] = functools.partial(sim, name)
    return wrap_host(HostVector(factory, num_envs, options.workers, options.max_steps), options)
