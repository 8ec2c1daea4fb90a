"""DPPO: diffusion policy policy optimisation (Ren et al., 2024, arXiv:2409.00588).

Every denoising step is a Gaussian move of an inner MDP; of K steps the first K - K' are the frozen policy's, the last
K' are tuned, each an item of PPO's batch (`algos.chain_ppo`) with the advantage of its chunk:
    l_j   = mean over the chunk's numbers of log N(x_{j+1}; mu_j, max(sigma_j, floor)^2), each clamped
    A'_j  = A clipped to quantiles, times gamma_denoising^(K' - 1 - j)
    eps_j = base + (eps - base) (e^(rate u) - 1) / (e^rate - 1),   u = j / (K' - 1)
with j = 0 the noisiest tuned step.  DDPM's and DDIM's moves are those of `core.diffusion`; noise is floored at every
step while exploring.  Judged, DDPM stays noisy but for its end and DDIM is deterministic.
Same as the authors' code but for: a single tuned step (K' = 1) takes eps, where theirs divides 0 by 0; the
log-probabilities of the roll-out are kept instead of computed anew.
Axes: B batch, H steps of a chunk, A action, K steps of a chain, K' = J tuned ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from algos import chain_bc, chain_ppo
from algos.chain_ppo import Actor, Judged, Record, State
from core import algorithm, chain, chunk_policy
from core.algorithm import Algorithm
from core.chain import Move, Step
from core.chunk_policy import Policy, PolicyNet
from core.config import ConfigError
from core.types import Array, EnvSpec, Key, Norm, Observation, PyTree, Start

PARENTS = ("chain_bc",)


@dataclass(frozen=True)
class Config(chain_ppo.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(family="diffusion"))
    tuned: int = 10  # K', the last steps of the chain; 0: all
    clip_base: float = 0.01  # eps at the noisiest tuned step
    clip_rate: float = 3.0  # of its exponential way to `clip`
    denoising_discount: float = 0.99  # gamma_denoising
    sampling_std: float = 0.1  # least noise that is acted with
    log_prob_std: float = 0.1  # floor in the likelihood
    noise_clip: float = 3.0  # of the standard normals
    final_clip: float = 0.0  # of the chain's end; 0: only the action is clipped
    log_prob_min: float = -5.0  # range of each number's log-density
    log_prob_max: float = 2.0
    horizon: int = 0  # first steps of the chunk that count in l; 0: all
    advantage_low: float = 0.0  # quantiles that advantages are clipped to
    advantage_high: float = 1.0
    eta: float = 1.0  # DDIM: its noise while exploring, in units of DDPM's
    noise_limit: float = 0.0  # DDIM: clip of the predicted noise; 0: none


def clip_schedule(level: Array, tuned: int, cfg: Config) -> Array:
    """eps_j of levels j i32[...]."""
    u = level / (tuned - 1) if tuned > 1 else jnp.ones(jnp.shape(level))
    return cfg.clip_base + (cfg.clip - cfg.clip_base) * jnp.expm1(cfg.clip_rate * u) / jnp.expm1(cfg.clip_rate)


def shaped(advantage: Array, level: Array, tuned: int, cfg: Config) -> Array:
    """A' f32[b] of advantages f32[b], standardised or not."""
    if (cfg.advantage_low, cfg.advantage_high) != (0.0, 1.0):
        bounds = jnp.quantile(advantage, jnp.array([cfg.advantage_low, cfg.advantage_high]))
        advantage = jnp.clip(advantage, *bounds)
    return advantage * cfg.denoising_discount ** (tuned - 1 - level)


def log_prob(law: Move, after: Array, cfg: Config) -> tuple[Array, Array]:
    """(l, share of its numbers at a bound) f32[...] of states f32[..., H, A] by the laws that they were drawn from."""
    each = chain.log_density(after, law.mean, jnp.maximum(law.std, cfg.log_prob_std))
    each = each[..., : cfg.horizon or each.shape[-2], :]
    clamped = jnp.clip(each, cfg.log_prob_min, cfg.log_prob_max)
    return clamped.mean(axis=(-2, -1)), (clamped != each).mean(axis=(-2, -1))


class TunedChain:
    """The diffusion policy in two parts."""

    def __init__(self, cfg: Config, given: Policy):
        """Raises: ConfigError for more tuned steps than the chain has."""
        self.cfg, self.given, self.steps = cfg, given, given.steps(cfg.denoising)
        self.tuned = cfg.tuned or self.steps
        if not 1 <= self.tuned <= self.steps:
            raise ConfigError(f"tuned {cfg.tuned}: the chain has {self.steps} steps, of which 1 to all can be tuned")

    def step(self, params: PyTree, state: Array, eta: float) -> Step:
        return self.given.step(params, state, self.cfg.denoising, eta, self.cfg.noise_limit or jnp.inf)

    def tail(self, params: PyTree, state: Array, eta: float) -> Step:
        """The last K' steps of `step`, counted from 0."""
        whole, offset = self.step(params, state, eta), self.steps - self.tuned
        return lambda x, k: whole(x, k + offset)

    def sample(
        self, frozen: Step, tail: Step, start: Array, normals: Array, floor: float | Array, last: float = jnp.inf
    ) -> tuple[Array, Move]:
        """The tuned part of a chain, f32[B, K' + 1, H, A], and its laws; floor f32[] or f32[K]."""
        split, clip = self.steps - self.tuned, self.cfg.noise_clip
        floor = jnp.broadcast_to(floor, self.steps)
        before, _ = chain.sample(frozen, start, normals[:, :split], floor[:split], clip)
        return chain.sample(tail, before[:, -1], normals[:, split:], floor[split:], clip, last)


def imitation(
    chains: TunedChain, frozen: tuple[Step, Step], tail: Step, start: Array, normals: Array, last: float
) -> Array:
    """-l f32[] of tuned steps `tail` on chains that the frozen policy (whole, its tail) draws; all numbers count."""
    states, _ = chains.sample(*frozen, start, normals, chains.cfg.sampling_std, last)
    return -log_prob(chain.moves(tail, states), states[:, 1:], replace(chains.cfg, horizon=0))[0].mean()


def actor(cfg: Config, spec: EnvSpec) -> tuple[Policy, Actor]:
    """Raises: ConfigError for goal-conditioned or discrete tasks, flow policies, and options out of range."""
    algorithm.require(spec, "dppo", pixels=True, chunk=True)
    chunk_policy.require_family("dppo", cfg.net, "diffusion")
    if cfg.entropy_weight or cfg.horizon > max(spec.chunk, 1) or min(cfg.sampling_std, cfg.log_prob_std) <= 0:
        raise ConfigError(
            f"dppo's noise is not learned: entropy_weight must be 0, not {cfg.entropy_weight}; horizon {cfg.horizon} "
            f"must be at most the chunk's {max(spec.chunk, 1)} steps; sampling_std and log_prob_std must be positive"
        )
    if (
        not 0 <= cfg.advantage_low < cfg.advantage_high <= 1
        or cfg.clip_rate <= 0
        or cfg.log_prob_min >= cfg.log_prob_max
    ):
        raise ConfigError(
            f"needs 0 <= advantage_low {cfg.advantage_low} < advantage_high {cfg.advantage_high} <= 1, clip_rate "
            f"{cfg.clip_rate} > 0 and log_prob_min {cfg.log_prob_min} < log_prob_max {cfg.log_prob_max}"
        )
    given = chunk_policy.policy(cfg.net, spec)
    chains = TunedChain(cfg, given)
    last = cfg.final_clip or jnp.inf

    def init(key: Key, start: Start) -> tuple[PyTree, PyTree, Norm]:
        params, norm = chain_bc.pretrained(key, start, given, spec)
        return params, jax.tree.map(jnp.copy, params), norm

    def read(params: PyTree, state: State, obs: Observation) -> Array:
        return given.read(params, state.norm, obs)

    def sample(params: PyTree, state: State, obs: Observation, key: Key, eta: float, floor: float | Array, last: float):
        frozen = chains.step(state.frozen, read(state.frozen, state, obs), eta)
        tail = chains.tail(params, read(params, state, obs), eta)
        return chains.sample(frozen, tail, *given.noises(key, len(obs.step), chains.steps), floor, last)

    def play(state: State, obs: Observation, key: Key) -> tuple[Array, Record]:
        states, law = sample(state.actor.params, state, obs, key, cfg.eta, cfg.sampling_std, last)
        return states[:, -1], Record(states, log_prob(law, states[:, 1:], cfg)[0])

    def best(state: State, obs: Observation, key: Key) -> Array:
        return sample(state.actor.params, state, obs, key, 0.0, given.eval_floor(cfg.denoising), 1.0)[0][:, -1]

    def judge(params: PyTree, state: State, obs: Observation, states: Array, level: Array) -> Judged:
        x, after = (jnp.take_along_axis(states, (level + i)[:, None, None, None], axis=1)[:, 0] for i in (0, 1))
        law = chains.tail(params, read(params, state, obs), cfg.eta)(x, level)
        value, clamped = log_prob(law, after, cfg)
        return Judged(value, jnp.zeros_like(value), clamped)

    def penalty(params: PyTree, state: State, obs: Observation, key: Key) -> Array:
        frozen = state.frozen, read(state.frozen, state, obs), cfg.eta
        tail = chains.tail(params, read(params, state, obs), cfg.eta)
        noises = given.noises(key, len(obs.step), chains.steps)
        return imitation(chains, (chains.step(*frozen), chains.tail(*frozen)), tail, *noises, last)

    return given, Actor(
        chains.tuned, init, play, best, judge,
        lambda level: clip_schedule(level, chains.tuned, cfg),
        lambda advantage, level: shaped(advantage, level, chains.tuned, cfg), penalty,
    )  # fmt: skip


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError, see `actor`."""
    return chain_ppo.make(cfg, spec, *actor(cfg, spec))
