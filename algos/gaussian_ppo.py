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

from algos import chain_ppo
from algos.chain_ppo import Actor, Judged, Record, State
from core import algorithm, chain, chunk_policy
from core.algorithm import Algorithm
from core.chunk_policy import PolicyNet
from core.config import ConfigError
from core.distributions import HALF_LOG_TWO_PI
from core.networks import float_dtype
from core.types import Array, EnvSpec, Key, Observation, PyTree, Start

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
    if cfg.net.family != "gaussian":
        raise ConfigError(f"gaussian_ppo fine-tunes gaussian policies, not {cfg.net.family}")
    if not 0 < cfg.std_min <= cfg.std <= cfg.std_max:
        raise ConfigError(f"needs 0 < std_min {cfg.std_min} <= std {cfg.std} <= std_max {cfg.std_max}")
    given = chunk_policy.policy(cfg.net, spec)
    given.steps(cfg.denoising)

    def init(key: Key, start: Start) -> tuple[PyTree, PyTree]:
        log_std = jnp.full(given.shape, math.log(cfg.std), float_dtype())
        return {"policy": chain_ppo.pretrained(key, start, given, spec), "log_std": log_std}, ()

    def law(params: PyTree, state: State, obs: Observation) -> tuple[Array, Array]:
        """(mean f32[B, H, A], log std f32[H, A])."""
        blank = jnp.zeros((len(obs.step), *given.shape), float_dtype())
        step = given.step(params["policy"], given.read(params["policy"], state.norm, obs), cfg.denoising)
        return step(blank, jnp.int32(0)).mean, jnp.clip(params["log_std"], math.log(cfg.std_min), math.log(cfg.std_max))

    def log_prob(mean: Array, log_std: Array, x: Array) -> Array:
        return chain.log_density(x, mean, jnp.exp(log_std)).sum(axis=(-2, -1))

    def play(state: State, obs: Observation, key: Key) -> tuple[Array, Record]:
        mean, log_std = law(state.actor.params, state, obs)
        start, normals = given.noises(key, len(mean), 1)
        x = mean + jnp.exp(log_std) * normals[:, 0]
        return x, Record(jnp.stack([start, x], axis=1), log_prob(mean, log_std, x)[:, None])

    def best(state: State, obs: Observation, key: Key) -> Array:
        return jnp.clip(law(state.actor.params, state, obs)[0], -1, 1)  # as behaviour cloning ends its chains

    def judge(params: PyTree, state: State, obs: Observation, states: Array, level: Array) -> Judged:
        mean, log_std = law(params, state, obs)
        entropy = (log_std + 0.5 + HALF_LOG_TWO_PI).sum()
        value = log_prob(mean, log_std, states[:, 1])
        return Judged(value, jnp.full_like(value, entropy), jnp.zeros_like(value))

    actor = Actor(1, init, play, best, judge, lambda level: cfg.clip, lambda advantage, level: advantage)
    return chain_ppo.make(cfg, spec, given, actor)
