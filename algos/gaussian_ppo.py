"""PPO on a Gaussian policy over action chunks, fine-tuned from behaviour cloning: the control of the comparison.

    pi(x | s) = N(mu(s), sigma^2),   l = log pi(x | s), exact;   sigma learned, independent of the state, bounded
with the network, critic, reward scaling and update of ReinFlow and DPPO (`algos.chain_ppo`), so that what differs is
the policy's parameterisation alone.  After the Gaussian baseline of DPPO (arXiv:2409.00588), clip 0.1; the bounds of
sigma are ours.  The environment gets the action clipped to [-1, 1]; the density is that of the unclipped one.
Axes: B batch, H steps of a chunk, A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax.numpy as jnp

from algos import chain_bc, chain_ppo
from algos.chain_ppo import Actor, Judged, Record, State
from core import algorithm, chunk_policy
from core.algorithm import Algorithm
from core.chunk_policy import PolicyNet
from core.config import ConfigError
from core.distributions import Gaussian
from core.networks import float_dtype
from core.types import Array, EnvSpec, Key, Norm, Observation, PyTree, Start

PARENTS = ("chain_bc",)


@dataclass(frozen=True)
class Config(chain_ppo.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(family="gaussian"))
    clip: float = 0.1
    std: float = 0.1  # at the start
    std_min: float = 0.01
    std_max: float = 0.2


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned or discrete tasks, other policies, and options out of range."""
    algorithm.require(spec, "gaussian_ppo", pixels=True, chunk=True)
    chunk_policy.require_family("gaussian_ppo", cfg.net, "gaussian")
    if not 0 < cfg.std_min <= cfg.std <= cfg.std_max:
        raise ConfigError(f"needs 0 < std_min {cfg.std_min} <= std {cfg.std} <= std_max {cfg.std_max}")
    given = chunk_policy.policy(cfg.net, spec)
    given.steps(cfg.denoising)

    def init(key: Key, start: Start) -> tuple[PyTree, PyTree, Norm]:
        policy, norm = chain_bc.pretrained(key, start, given, spec)
        return {"policy": policy, "log_std": jnp.full(given.shape, math.log(cfg.std), float_dtype())}, (), norm

    def law(params: PyTree, state: State, obs: Observation) -> Gaussian:
        """Of chunks as they are flat, f32[B, H * A]."""
        blank = jnp.zeros((len(obs.step), *given.shape), float_dtype())
        step = given.step(params["policy"], given.read(params["policy"], state.norm, obs), cfg.denoising)
        log_std = jnp.clip(params["log_std"], math.log(cfg.std_min), math.log(cfg.std_max))
        return Gaussian(flat(step(blank, jnp.int32(0)).mean), log_std.ravel())

    def flat(chunk: Array) -> Array:
        return chunk.reshape(len(chunk), -1)

    def play(state: State, obs: Observation, key: Key) -> tuple[Array, Record]:
        drawn = law(state.actor.params, state, obs)
        start, normals = given.noises(key, len(obs.step), 1)
        x = drawn.sample(flat(normals))
        log_prob, x = drawn.log_prob(x)[:, None], x.reshape(start.shape)
        return x, Record(jnp.stack([start, x], axis=1), log_prob)

    def best(state: State, obs: Observation, key: Key) -> Array:
        mode = law(state.actor.params, state, obs).mode()
        return jnp.clip(mode, -1, 1).reshape(-1, *given.shape)  # as behaviour cloning ends its chains

    def judge(params: PyTree, state: State, obs: Observation, states: Array, level: Array) -> Judged:
        now = law(params, state, obs)
        value = now.log_prob(flat(states[:, 1]))
        return Judged(value, now.entropy(), jnp.zeros_like(value))

    actor = Actor(1, init, play, best, judge, lambda level: cfg.clip, lambda advantage, level: advantage)
    return chain_ppo.make(cfg, spec, given, actor)
