"""Hopper, HalfCheetah, Walker2d and Ant from Gymnasium's model files, stepped by MJX.

Constants are those of the constructed Gymnasium environment; observations, rewards, termination, the law of the first
state and the time limit are its own.  MuJoCo computes in float64 and this in float32: single steps agree to rounding,
and trajectories part where a contact is made a little earlier or later.  A forward velocity is a difference of
positions, so far from the start it is coarse: by eps |x| / dt, 0.001 m/s at |x| = 500 m.

After a step, MuJoCo's `MjData` holds what was evaluated last, with RK4 the fourth stage.  Gymnasium reads Ant's
velocity and contact forces from there; `mjx.step` does not keep it, so RK4 stands here.  It also compiles one
evaluation of the dynamics, where `mjx.step` compiles four.

Axes: Q positions, V velocities, A action, N bodies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from core.types import Array, Key, Observation, PyTree, TimeStep
from envs import render
from envs.mujoco import construct
from envs.toys.base import follow, start

render.choose_backend()  # before MuJoCo is imported

import mujoco  # noqa: E402
from mujoco import mjx  # noqa: E402
from mujoco.mjx._src.math import quat_integrate  # noqa: E402  the pinned version has no public one

STAGE, WEIGHT = (0, 1 / 2, 1 / 2, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # of RK4: place in the step, share of the slope
LARGEST = 1e10  # mjMAXVAL: MuJoCo takes a state beyond it for diverged
ANY = (-math.inf, math.inf)


class Physics(NamedTuple):
    qpos: Array  # f32[Q]
    qvel: Array  # f32[V]
    warmstart: Array  # f32[V] accelerations that the constraint solver begins with


class State(NamedTuple):
    physics: Physics
    place: Array  # f32[] x of the robot in m, from which the next forward velocity is measured
    obs: Observation


class Planar:
    """A robot that moves in a plane as a `core.env.JaxEnv`: hopper, cheetah, walker."""

    def __init__(self, name: str, uniform: bool, top_speed: float = math.inf):
        """Args: uniform: the first velocities are, else normal; top_speed: velocities are observed up to it."""
        self.gym, spec = construct(name)
        gym, self.spec = self.gym, spec._replace(name=f"mjx/{name}")
        gym.close()
        self.model, self.data = mjx.put_model(gym.model), mjx.make_data(gym.model)
        self.uniform, self.top_speed = uniform, top_speed
        self.capsule = gym.model.geom_type == int(mujoco.mjtGeom.mjGEOM_CAPSULE)
        self.free = gym.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
        self.survival_reward = getattr(gym, "_healthy_reward", 0.0)
        parts = ("z", "angle", "state")
        self.heights, self.angles, self.values = (getattr(gym, f"_healthy_{part}_range", ANY) for part in parts)

    def reset(self, key: Key, task: Array) -> tuple[State, Observation]:
        gym, scale, keys = self.gym, self.gym._reset_noise_scale, jax.random.split(key)
        qpos = jax.random.uniform(keys[0], gym.init_qpos.shape, minval=-scale, maxval=scale)
        if self.uniform:
            qvel = jax.random.uniform(keys[1], gym.init_qvel.shape, minval=-scale, maxval=scale)
        else:
            qvel = scale * jax.random.normal(keys[1], gym.init_qvel.shape)
        return self.begin(gym.init_qpos + qpos, gym.init_qvel + qvel)

    def begin(self, qpos: Array, qvel: Array) -> tuple[State, Observation]:
        """An episode that begins at f32[Q], f32[V]."""
        physics = Physics(qpos, qvel, jnp.zeros_like(qvel))
        obs = start(self.observed(physics, self.unseen()))
        return State(physics, qpos[0], obs), obs

    def step(self, state: State, action: Array, key: Key) -> tuple[State, TimeStep]:
        gym, action = self.gym, jnp.clip(action, -1, 1)
        with jax.default_matmul_precision("highest"):  # an accelerator would round the operands

            def substep(carry, _):
                return self.advance(carry[0], action), None

            (physics, seen), _ = lax.scan(substep, (state.physics, self.unseen()), length=gym.frame_skip)
        place, healthy = self.place(physics, seen), self.healthy(physics)
        velocity = (place - state.place) / gym.dt
        effort = gym._ctrl_cost_weight * jnp.square(action).sum()
        reward = gym._forward_reward_weight * velocity + self.survival_reward * healthy - effort - self.impact(seen)
        obs, ts = follow(self.spec, state.obs, self.observed(physics, seen), reward, ~healthy)
        return State(physics, place, obs), ts

    # --- what differs in Ant: `seen` is what is read off the last evaluation of the dynamics ---

    def unseen(self) -> PyTree:
        return ()

    def seen(self, data: mjx.Data) -> PyTree:
        return ()

    def place(self, physics: Physics, seen: PyTree) -> Array:
        return physics.qpos[0]

    def impact(self, seen: PyTree) -> Array:
        return jnp.float32(0)

    def observed(self, physics: Physics, seen: PyTree) -> Array:
        return jnp.concatenate([physics.qpos[1:], jnp.clip(physics.qvel, -self.top_speed, self.top_speed)])

    def healthy(self, physics: Physics) -> Array:
        z, angle, rest = physics.qpos[1], physics.qpos[2], jnp.concatenate([physics.qpos[2:], physics.qvel])
        return _within(z, self.heights) & _within(angle, self.angles) & _within(rest, self.values)

    # --- dynamics ---

    def advance(self, physics: Physics, ctrl: Array) -> tuple[Physics, PyTree]:
        """One time step of the model; where it diverges, the robot is back where it stood, as `mj_step` does."""
        rk4 = self.gym.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        after, seen = (self._rk4 if rk4 else self._euler)(physics, ctrl)
        fine = _within(jnp.concatenate([after.qpos, after.qvel]), (-LARGEST, LARGEST))
        zero = jnp.zeros_like(after.qvel)
        afresh = Physics(jnp.asarray(self.gym.init_qpos, after.qpos.dtype), zero, zero), self.unseen()
        return jax.tree.map(lambda a, b: jnp.where(fine, a, b), (after, seen), afresh)

    def _forward(self, qpos: Array, qvel: Array, warmstart: Array, ctrl: Array) -> mjx.Data:
        """`mjx.forward` for models without sensors, with the contact frames of MuJoCo."""
        data = self.data.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warmstart, ctrl=ctrl)
        data = mjx.fwd_position(self.model, data)
        data = data.replace(contact=data.contact.replace(frame=self._aligned(data)))
        data = mjx.make_constraint(self.model, data)  # once more; what it made of the other frames is never computed
        for stage in (mjx.fwd_velocity, mjx.fwd_actuation, mjx.fwd_acceleration, mjx.solve):
            data = stage(self.model, data)
        return data

    def _aligned(self, data: mjx.Data) -> Array:
        """Contact frames f32[C, 3, 3] whose first tangent lies along the capsule that touches the floor.

        MJX aligns those of capsules up to 60 degrees above it.  The friction pyramid turns with the frame.
        """
        axis, frame = data.geom_xmat[data.contact.geom2, :, 2], data.contact.frame
        normal = frame[:, 0]
        tangent = axis - normal * (normal * axis).sum(-1, keepdims=True)
        length = jnp.linalg.norm(tangent, axis=-1, keepdims=True)
        capsule = jnp.asarray(self.capsule)[data.contact.geom2, None]
        tangent = jnp.where(capsule & (length > 1e-6), tangent / length, frame[:, 1])
        return jnp.stack([normal, tangent, jnp.cross(normal, tangent)], axis=1)

    def _euler(self, physics: Physics, ctrl: Array) -> tuple[Physics, PyTree]:
        data = self._forward(*physics, ctrl)
        moved = mjx.euler(self.model, data)
        return Physics(moved.qpos, moved.qvel, data.qacc_warmstart), self.seen(data)

    def _rk4(self, physics: Physics, ctrl: Array) -> tuple[Physics, PyTree]:
        h, zero = self.gym.model.opt.timestep, jnp.zeros_like(physics.qvel)

        def stage(carry, row):
            (velocity, acceleration), mean, warmstart, _ = carry
            a, weight = row
            qpos, qvel = self._moved(physics.qpos, a * h * velocity), physics.qvel + a * h * acceleration
            data = self._forward(qpos, qvel, warmstart, ctrl)
            slope = qvel, data.qacc
            mean = jax.tree.map(lambda m, s: m + weight * s, mean, slope)
            return (slope, mean, data.qacc_warmstart, self.seen(data)), None

        begin = (zero, zero), (zero, zero), physics.warmstart, self.unseen()
        (_, (velocity, acceleration), warmstart, seen), _ = lax.scan(stage, begin, jnp.array([STAGE, WEIGHT]).T)
        qpos, qvel = self._moved(physics.qpos, h * velocity), physics.qvel + h * acceleration
        return Physics(qpos, qvel, warmstart), seen

    def _moved(self, qpos: Array, by: Array) -> Array:
        """Positions displaced by f32[V] in the tangent space."""
        if not self.free:
            return qpos + by
        turned = quat_integrate(qpos[3:7], by[3:6], 1.0)
        return jnp.concatenate([qpos[:3] + by[:3], turned, qpos[7:] + by[6:]])


class Seen(NamedTuple):
    place: Array  # f32[] x of the torso
    force: Array  # f32[N, 6] external torques and forces on the bodies


class Ant(Planar):
    """Ant: free in space, and it feels contacts."""

    def unseen(self) -> Seen:
        return Seen(jnp.zeros(()), jnp.zeros((self.gym.model.nbody, 6)))

    def seen(self, data: mjx.Data) -> Seen:
        forces = mjx.rne_postconstraint(self.model, data).cfrc_ext
        return Seen(data.xpos[self.gym._main_body, 0], jnp.clip(forces, *self.gym._contact_force_range))

    def place(self, physics: Physics, seen: Seen) -> Array:
        return seen.place

    def impact(self, seen: Seen) -> Array:
        return self.gym._contact_cost_weight * jnp.square(seen.force).sum()

    def observed(self, physics: Physics, seen: Seen) -> Array:
        return jnp.concatenate([physics.qpos[2:], physics.qvel, seen.force[1:].ravel()])

    def healthy(self, physics: Physics) -> Array:
        return _within(physics.qpos[2], self.heights)


def _within(x: Array, bounds: tuple[float, float]) -> Array:
    return ((bounds[0] <= x) & (x <= bounds[1])).all()


def build(name: str) -> Planar:
    if name == "ant-v5":
        return Ant(name, uniform=False)
    if name == "halfcheetah-v5":
        return Planar(name, uniform=False)
    return Planar(name, uniform=True, top_speed=10.0)
