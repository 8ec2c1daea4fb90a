"""Gymnasium's MuJoCo locomotion, v5 and v4, as one batch of simulators over threads.

The numbers are Gymnasium's: from the same seeds and actions the same observations, rewards and terminations.  One
model serves all slots, each with its own `MjData`, which keeps the solver's warm start; `mj_step` releases the
interpreter's lock, so threads step them at the same time; what follows from the new states is computed for all slots
at once.  Every constant that Gymnasium names is read from its environment object.
Axes: B slots, n of them, S state, A action.
"""

from __future__ import annotations

import abc
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from core.config import choose
from core.types import Array
from envs import mujoco, render
from envs.host import Box, Slots, Vector, as_index, from_words, require_counts, to_words
from envs.workers import cores

Read = dict[str, Array]  # fields of MjData, f64[n, size of one]


class Robot:
    """What a Gymnasium class computes of its own; this one for robots that cannot fall.

    Args: env: Gymnasium's object, for its constants.
        pays_the_fallen: v4's rule, by which the step that ends an episode still earns the reward for health.
    """

    reads: tuple[str, ...] = ("qpos", "qvel")
    hidden = 1  # first coordinates of qpos, which the observation leaves out

    def __init__(self, env: Any, pays_the_fallen: bool):
        self.env, self._pays_the_fallen = env, pays_the_fallen
        self._forward_weight = getattr(env, "_forward_reward_weight", 1.0)  # Ant-v4 has none

    def start(self, random: np.random.Generator) -> tuple[Array, Array]:
        """Where an episode begins: qpos f64[Q], qvel f64[V]."""
        scale, qpos, qvel = self.env._reset_noise_scale, self.env.init_qpos, self.env.init_qvel
        return qpos + random.uniform(-scale, scale, qpos.size), qvel + self.jolt(random, scale, qvel.size)

    def jolt(self, random: np.random.Generator, scale: float, size: int) -> Array:
        return random.uniform(-scale, scale, size)

    def place(self, read: Read) -> Array:
        """The coordinate whose change is rewarded, f64[n]."""
        return read["qpos"][:, 0]

    def observe(self, read: Read) -> Array:
        """f64[n, S]."""
        return np.concatenate([read["qpos"][:, self.hidden :], read["qvel"]], axis=1)

    def outcome(self, read: Read, velocity: Array, action: Array) -> tuple[Array, Array]:
        """Args: velocity f64[n]; action f32[n, A].  Returns: reward f64[n], terminated bool[n]."""
        return self._forward_weight * velocity - self.cost(read, action), np.zeros(len(velocity), bool)

    def cost(self, read: Read, action: Array) -> Array:
        # in float32, as Gymnasium's own of a float32 action
        return self.env._ctrl_cost_weight * np.square(action).sum(axis=1)


class Jolted(Robot):
    """A robot whose first velocities are normal, not uniform."""

    def jolt(self, random, scale, size):
        return scale * random.standard_normal(size)


class Swimmer(Robot):
    hidden = 2


class Legged(Robot, abc.ABC):
    """A robot that is paid for being healthy and whose episode ends when it is not."""

    @abc.abstractmethod
    def healthy(self, read: Read) -> Array:
        """bool[n]."""

    def outcome(self, read, velocity, action):
        healthy, ends = self.healthy(read), self.env._terminate_when_unhealthy
        paid = healthy | (self._pays_the_fallen and ends)
        rewards = self._forward_weight * velocity + self.env._healthy_reward * paid
        return rewards - self.cost(read, action), ~healthy & ends


class Walker2d(Legged):
    def observe(self, read):
        velocity = np.minimum(np.maximum(read["qvel"], -10), 10)  # literals of Gymnasium's
        return np.concatenate([read["qpos"][:, self.hidden :], velocity], axis=1)

    def healthy(self, read):
        height, angle = read["qpos"][:, 1], read["qpos"][:, 2]
        return _inside(height, self.env._healthy_z_range) & _inside(angle, self.env._healthy_angle_range)


class Hopper(Walker2d):
    def healthy(self, read):
        rest = np.concatenate([read["qpos"][:, 2:], read["qvel"]], axis=1)
        return super().healthy(read) & _inside(rest, self.env._healthy_state_range).all(axis=1)


class Ant(Jolted, Legged):
    hidden = 2

    def __init__(self, env, pays_the_fallen):
        super().__init__(env, pays_the_fallen)
        main = getattr(env, "_main_body", "torso")
        self._body = env.data.body(main).id
        self._feels = getattr(env, "_include_cfrc_ext_in_observation", False)  # v5
        self.reads = ("qpos", "qvel", "xpos", *(("cfrc_ext",) if self._feels else ()))

    def place(self, read):
        return read["xpos"][:, 3 * self._body]

    def observe(self, read):
        seen = [read["qpos"][:, self.hidden :], read["qvel"]]
        return np.concatenate([*seen, self._forces(read)[:, 6:]] if self._feels else seen, axis=1)

    def _forces(self, read: Read) -> Array:
        """Six of each body, the world's first."""
        low, high = self.env._contact_force_range
        return np.minimum(np.maximum(read["cfrc_ext"], low), high)

    def healthy(self, read):
        (low, high), height = self.env._healthy_z_range, read["qpos"][:, 2]
        finite = np.isfinite(read["qpos"]).all(axis=1) & np.isfinite(read["qvel"]).all(axis=1)
        return finite & (low <= height) & (height <= high)

    def cost(self, read, action):
        control = super().cost(read, action)
        if not self._feels:
            return control
        return control + self.env._contact_cost_weight * np.square(self._forces(read)).sum(axis=1)


class Humanoid(Legged):
    hidden = 2
    reads = ("qpos", "qvel", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def __init__(self, env, pays_the_fallen):
        super().__init__(env, pays_the_fallen)
        # v4 observes, and does not pay for, what belongs to the world's body and to the actuators of the free joint too
        self._whole = pays_the_fallen
        self._mass, self._total = env.model.body_mass, env.model.body_mass.sum()

    def place(self, read):
        """Of the centre of mass."""
        return (read["xipos"][:, ::3] * self._mass).sum(axis=1) / self._total

    def observe(self, read):
        parts = {"cinert": 10, "cvel": 6, "qfrc_actuator": 6, "cfrc_ext": 6}
        seen = [read[name][:, 0 if self._whole else skip :] for name, skip in parts.items()]
        return np.concatenate([read["qpos"][:, self.hidden :], read["qvel"], *seen], axis=1)

    def healthy(self, read):
        return _inside(read["qpos"][:, 2], self.env._healthy_z_range)

    def cost(self, read, action):
        control = super().cost(read, action.astype(np.float64))  # Gymnasium's is of the simulator's own controls
        if self._whole:
            return control
        contact = self.env._contact_cost_weight * np.square(read["cfrc_ext"]).sum(axis=1)
        return control + np.clip(contact, *self.env._contact_cost_range)


def _inside(x: Array, bounds: tuple[float, float]) -> Array:
    return (bounds[0] < x) & (x < bounds[1])


ROBOTS = {
    "ant": Ant,
    "halfcheetah": Jolted,
    "hopper": Hopper,
    "humanoid": Humanoid,
    "swimmer": Swimmer,
    "walker2d": Walker2d,
}
NAMES = [name for name in mujoco.IDS if name.rpartition("-")[0] in ROBOTS]


class Team:
    """Threads that share the items of a loop with their caller; they end with this object.

    `concurrent.futures` does the same at three times the price of a hand-over, which is felt: 64 robots take a step
    in less than a millisecond.
    """

    def __init__(self, size: int):
        """Args: size: threads at work, the caller's among them."""
        self._inboxes = [SimpleQueue() for _ in range(size - 1)]
        members = [threading.Thread(target=_serve, args=(inbox,), daemon=True) for inbox in self._inboxes]
        for member in members:
            member.start()
        self.close = weakref.finalize(self, _dismiss, self._inboxes, members)  # also at exit

    def share(self, work: Callable[[Iterator], None], items: list) -> None:
        """Run `work` in every thread, all on one iterator, so that each item is met once, by whoever is free.

        Raises: what `work` raised, once all have stopped.
        """
        shared, replies = iter(items), SimpleQueue()  # no other thread can come between within a list's `next`
        helpers = self._inboxes[: len(items) - 1]
        for inbox in helpers:
            inbox.put((work, shared, replies))
        try:
            work(shared)
        finally:
            errors = [error for error in [replies.get() for _ in helpers] if error]
        if errors:
            raise errors[0]


def _serve(inbox: SimpleQueue) -> None:
    while task := inbox.get():
        work, shared, replies = task
        error = None
        try:
            work(shared)
        except BaseException as caught:
            error = caught
        del task, work, shared  # before the answer: the last reference to what owns this thread must not be here
        replies.put(error)
        del error, replies


def _dismiss(inboxes: list[SimpleQueue], members: list[threading.Thread]) -> None:
    for inbox in inboxes:
        inbox.put(None)
    for member in members:
        member.join()


class Locomotion:
    """B robots of one kind: an `envs.host.Batch` whose arrays are float64."""

    def __init__(self, name: str, count: int, threads: int = 0):
        """Args: threads: at most B of them work; 0: as many as there are cores."""
        import mujoco as engine

        choose("MuJoCo locomotion task", name, dict.fromkeys(NAMES))
        self._env, self.spec = mujoco.construct(name)
        robot, _, version = name.rpartition("-")
        self._robot = ROBOTS[robot](self._env, pays_the_fallen=version == "v4")
        self._engine, self._model = engine, self._env.model
        self._scale = Box(self._env.action_space.low, self._env.action_space.high)
        self._data = [engine.MjData(self._model) for _ in range(count)]
        # views are made once: looking them up again would cost more than what is done with them
        self._control = [data.ctrl for data in self._data]
        self._action = np.zeros((count, self.spec.action_dim))
        self._action_rows = list(self._action)
        self._views = {field: [getattr(d, field).reshape(-1) for d in self._data] for field in self._robot.reads}
        self._place = np.zeros(count)
        self._state_size = engine.mj_stateSize(self._model, engine.mjtState.mjSTATE_INTEGRATION)
        self._team = Team(min(threads or cores(), count))
        self._studio, self._camera = render.Studio(self._model), mujoco.camera(self._env)

    def begin(self, slots, seeds, tasks):
        for slot, seed in zip(slots, seeds, strict=True):
            self._engine.mj_resetData(self._model, self._data[slot])
            qpos, qvel = self._robot.start(np.random.default_rng(seed))
            self._views["qpos"][slot][:], self._views["qvel"][slot][:] = qpos, qvel
            self._engine.mj_forward(self._model, self._data[slot])
        read = self._read(slots)
        self._place[slots] = self._robot.place(read)
        return self._robot.observe(read), np.zeros((len(slots), 0))

    def step(self, slots, action):
        action, at = self._scale(action), as_index(slots, len(self._data))
        self._action[at] = action
        self._team.share(self._advance, slots.tolist())
        read = self._read(slots)
        place = self._robot.place(read)
        velocity = (place - self._place[at]) / self._env.dt
        self._place[at] = place
        reward, terminated = self._robot.outcome(read, velocity, action)
        return self._robot.observe(read), reward, terminated, 0.0

    def _advance(self, slots: Iterator[int]) -> None:
        step, finish = self._engine.mj_step, self._engine.mj_rnePostConstraint
        model, data, control, action = self._model, self._data, self._control, self._action_rows
        skip, forces = self._env.frame_skip, "cfrc_ext" in self._robot.reads
        for slot in slots:
            control[slot][:] = action[slot]
            step(model, data[slot], skip)
            if forces:  # nothing else that it computes is read
                finish(model, data[slot])

    def _read(self, slots: Array) -> Read:
        count, every = len(slots), len(slots) == len(self._data)
        return {
            field: np.concatenate(views if every else [views[slot] for slot in slots]).reshape(count, -1)
            for field, views in self._views.items()
        }

    def render(self, slot, size):
        return self._studio.frame(self._data[slot], self._camera, size)

    def save(self):
        states = np.empty((len(self._data), self._state_size))
        for data, state in zip(self._data, states, strict=True):
            self._engine.mj_getState(self._model, data, state, self._engine.mjtState.mjSTATE_INTEGRATION)
        return to_words(self._place, states)

    def load(self, words):
        self._place, states = from_words(words, self._place, np.empty((len(self._data), self._state_size)))
        everything = self._engine.mjtState.mjSTATE_INTEGRATION
        for data, state in zip(self._data, states, strict=True):
            self._engine.mj_setState(self._model, data, state, everything)
            self._engine.mj_forward(self._model, data)  # for pictures; it moves the warm start
            self._engine.mj_setState(self._model, data, state, everything)

    def close(self):
        self._team.close()
        self._studio.close()
        self._env.close()


def make(name: str, num_envs: int, threads: int = 0, max_steps: int = 0) -> Vector:
    """B robots behind `core.env.HostEnv`; the results do not depend on the number of threads.

    Raises: UnknownName, ConfigError.
    """
    require_counts(num_envs, threads=threads)
    return Vector(Slots(Locomotion(name, num_envs, threads), num_envs, max_steps), num_envs)
