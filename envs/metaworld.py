"""Meta-World's 50 manipulation tasks, by names without the suffix: `push` is the library's `push-v3`.

State f32[39] with the goal in the last three numbers (the library's multi-task setting), reward 0 to 10 per step, no
termination, 500 steps; an episode succeeded when any of its steps did.  The task's goal is part of the state, so
`Observation.goal` has zero width.

Task None draws a placement of objects and goal from the task's whole space by the episode's seed; tasks 1 to 50 are
the goals of the library's MT1 benchmark made with `BENCHMARK_SEED`.

The library's own vector environments are not used: building them instantiates every task, ML1's training split is
its test split, and a reset with a seed ignores it.
"""

from __future__ import annotations

import functools
import pickle
import sys
import warnings
from typing import Any

import numpy as np

from core.config import choose
from core.env import HostEnv
from core.types import Array, EnvSpec
from envs import render
from envs.host import NO_GOAL, HostVector, Sim
from envs.registry import Options

BENCHMARK_SEED = 42  # our choice: the library prescribes none
CAMERA = "corner2"  # the view that pixel papers on Meta-World use

SETS: dict[str, tuple[str, ...]] = {
    "mt10": (
        *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"),
        *("peg-insert-side", "window-open", "window-close"),
    ),
    "mt50": (
        *("assembly", "basketball", "bin-picking", "box-close", "button-press-topdown", "button-press-topdown-wall"),
        *("button-press", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn"),
        *("disassemble", "door-close", "door-lock", "door-open", "door-unlock", "hand-insert", "drawer-close"),
        *("drawer-open", "faucet-open", "faucet-close", "hammer", "handle-press-side", "handle-press"),
        *("handle-pull-side", "handle-pull", "lever-pull", "pick-place-wall", "pick-out-of-hole", "pick-place"),
        *("plate-slide", "plate-slide-side", "plate-slide-back", "plate-slide-back-side", "peg-insert-side"),
        *("peg-unplug-side", "soccer", "stick-push", "stick-pull", "push", "push-wall", "push-back", "reach"),
        *("reach-wall", "shelf-place", "sweep-into", "sweep", "window-open", "window-close"),
    ),
    "ml10-train": (
        *("reach", "push", "pick-place", "door-open", "drawer-close", "button-press-topdown", "peg-insert-side"),
        *("window-open", "sweep", "basketball"),
    ),
    "ml10-test": ("drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull"),
    "ml45-test": ("bin-picking", "box-close", "hand-insert", "door-lock", "door-unlock"),
}
SETS["ml45-train"] = tuple(name for name in SETS["mt50"] if name not in SETS["ml45-test"])


def tasks() -> list[str]:
    return sorted(SETS["mt50"])


@functools.cache
def _benchmark(name: str) -> list[Any]:
    """The 50 goals of a task, the same in every process."""
    import metaworld

    return metaworld.MT1(f"{name}-v3", seed=BENCHMARK_SEED).train_tasks


class _Quick:
    """What the library computes, in less time; before one of its classes."""

    def touching_object(self, object_geom_id: int) -> bool:
        """Whether both fingers press on it.  The library makes an object of each contact for this, twice a step."""
        contact, force, geom = self.data.contact, self.data.efc_force, self.data.geom
        there = (contact.geom == object_geom_id).any(axis=1)
        if not there.any():
            return False
        pads = [(contact.geom == geom(name).id).any(axis=1) & there for name in ("leftpad_geom", "rightpad_geom")]
        return all(force[contact.efc_address[pad]].sum() > 0 for pad in pads)


class _Trusting:
    """In place of SciPy's `Rotation`, where the library reads the simulator's rotations: they need no checking,
    which takes two thirds of that time."""

    @staticmethod
    def from_matrix(matrix: Array) -> Any:
        from scipy.spatial.transform import Rotation

        return Rotation.from_matrix(matrix, assume_valid=True)


def _quick(cls: type) -> type:
    module = sys.modules[cls.__module__]
    if hasattr(module, "Rotation"):
        module.Rotation = _Trusting
    return type(cls.__name__, (_Quick, cls), {})


class MetaWorldSim:
    """One Meta-World task."""

    def __init__(self, name: str):
        render.choose_backend()
        from metaworld.env_dict import ENV_CLS_MAP
        from metaworld.types import Task

        choose("Meta-World task", name, dict.fromkeys(tasks()))
        self._name, cls = name, ENV_CLS_MAP[f"{name}-v3"]
        self._env = _quick(cls)()
        # any goal: this is how the library is told that the state shows the goal, instead of zeros
        shown = {"env_cls": cls, "rand_vec": None, "partially_observable": False}
        self._env.set_task(Task(env_name=f"{name}-v3", data=pickle.dumps(shown)))
        self._env.seeded_rand_vec = True  # free placements come from the environment's generator, not from NumPy's
        self._studio = render.Studio(self._env.model)
        self.spec = EnvSpec(
            name=f"metaworld/{name}",
            obs_shape=(39,),
            action_dim=4,
            max_steps=self._env.max_path_length,
            num_tasks=50,
            success="any",
        )

    def reset(self, seed, task):
        if task:
            self._env.set_task(_benchmark(self._name)[task - 1])
        self._env._freeze_rand_vec = bool(task)
        self._env.np_random = np.random.default_rng(seed)
        state, _ = self._env.reset()
        return state, NO_GOAL

    def step(self, action):
        state, reward, _, _, info = self._env.step(np.minimum(np.maximum(action, -1), 1))
        return state, reward, False, float(info["success"])

    def render(self, size):
        return self._studio.frame(self._env.data, CAMERA, size)

    def close(self):
        self._studio.close()
        self._env.close()


def expert(name: str) -> Any:
    """The library's scripted policy of a task; `expert(name).get_action(state)`, state f64[39], gives f32[4].

    Its actions may leave [-1, 1]; clip them before adding noise.
    """
    from metaworld.policies import ENV_POLICY_MAP

    choose("Meta-World task", name, dict.fromkeys(tasks()))
    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # it says that actions will be clipped
    return ENV_POLICY_MAP[f"{name}-v3"]()


def build(name: str, pixels: int = 0) -> Sim:
    sim = MetaWorldSim(name)
    return render.PixelSim(sim, pixels) if pixels else sim


def make(name: str, num_envs: int, options: Options) -> HostEnv:
    """See `envs.registry.make`."""
    from envs.wrappers import wrap_host

    choose("Meta-World task", name, dict.fromkeys(tasks()))
    factory = functools.partial(build, name, options.pixels)
    return wrap_host(HostVector(factory, num_envs, options.workers, options.max_steps), options)
