"""Task strings to environments.  Suites load lazily: listing or parsing imports no simulator."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from core.config import ConfigError, UnknownName
from core.env import HostEnv

# suite -> module with `tasks() -> list[str]` (no simulator imported) and `make(name, num_envs, options) -> env`
SUITES = {
    "toy": "envs.toys",
    "mujoco": "envs.mujoco",
    "mjx": "envs.mjx",
    "metaworld": "envs.metaworld",
    "ogbench": "envs.ogbench",
}


@dataclass(frozen=True)
class Options:
    """How a task is presented; the same words for jitted and host environments."""

    chunk: int = 0  # H: an action is a chunk of H primitive actions, executed open loop; 0 for none
    history: int = 1  # observations stacked in the state, the newest last
    noise: float = 0.0  # sigma of the noise added to every action before the simulator
    noise_kind: Literal["iid", "ramp"] = (
        "iid"  # iid: sigma; ramp: sigma (1 - exp(-t/100)) sin(t), t the step (Dichotomy of Control)
    )
    end_at_success: bool = False  # terminate the episode where the task's goal holds (for training)
    max_steps: int = 0  # shorter time limit than the task's own; 0 keeps it
    pixels: int = 0  # side of square uint8 images instead of states; 0 for states
    workers: int = 0  # processes that step host environments beside this one
    threads: int = 0  # threads that step MuJoCo locomotion, which alone has them; 0: as many as there are cores
    host: bool = False  # a jitted environment behind the host protocol


def suite(name: str) -> ModuleType:
    """The module of a suite.  Raises: UnknownName."""
    if name not in SUITES:
        raise UnknownName("suite", name, SUITES)
    return importlib.import_module(SUITES[name])


def tasks(of: str | None = None) -> list[str]:
    """All task strings, of one suite or of all."""
    return [f"{name}/{task}" for name in ([of] if of else SUITES) for task in suite(name).tasks()]


def check(task: str) -> tuple[str, str]:
    """Split "suite/task"; Raises: UnknownName with the nearest task strings."""
    family, _, name = task.partition("/")
    if family not in SUITES or name not in suite(family).tasks():
        bare = name or family
        close = sorted(tasks(family if family in SUITES else None), key=lambda t: -_alike(bare, t))
        raise UnknownName("task", task, close[:4])
    return family, name


def _alike(name: str, task: str) -> float:
    return difflib.SequenceMatcher(None, name, task.partition("/")[2]).ratio()


def make(task: str, num_envs: int = 1, options: Options | None = None) -> HostEnv:
    """B instances of a task with the options' wrappers on: a `HostEnv`, or a `core.rollout.JaxBatch` for toys and mjx.

    Raises: UnknownName (with the nearest names) for a task that does not exist; ConfigError for options that the
    task cannot have.
    """
    family, name = check(task)
    options = options or Options()
    if options.threads and family != "mujoco":
        raise ConfigError(f"{task} has no threads, only MuJoCo locomotion does: leave threads at 0")
    return suite(family).make(name, num_envs, options)
