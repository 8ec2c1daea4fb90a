"""ReinFlow: online fine-tuning of flow policies by learned noise (Zhang et al., 2025, arXiv:2505.22094).

The flow of K Euler steps becomes a Markov chain with an exact likelihood:
    x_{k+1} ~ N(mu_k, sigma_k^2),   mu_k = clip(x_k + v(x_k, t_k, s) / K),   sigma_k = noise net in [std_min, std_max]
    l   = [log N(x_0; 0, I) + sum_k log N(x_{k+1}; mu_k, sigma_k^2)] / (K + 1) / (H A),   clamped to its range
and PPO (`algos.chain_ppo`) is run with one ratio per chain.  Judged, the policy follows the means.  The noise net reads
the time's embedding, to which it gives no gradient, and the state's encoding.  Its upper bound may fall over training.
Same as the authors' code but for: one grid of times, k / K, in sampler and likelihood (theirs samples rectified flow at
linspace(0, 1, K), so that its first ratio is not 1; `denoising.grid inclusive` uses that one for both, as their
published curves did); the W2 regulariser starts both roll-outs from the same noise (theirs moves the tuned one's
start); the noise's bound falls one iteration earlier; the last partial minibatch is left out.  Works with reflow,
shortcut and mean flow.
Axes: B batch, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from algos import chain_bc, chain_ppo
from algos.chain_ppo import Actor, Judged, Record, State
from core import algorithm, chain, chunk_policy, flow
from core.algorithm import Algorithm
from core.chain import Move, Step
from core.chunk_policy import Policy
from core.config import ConfigError, choose, require_least
from core.distributions import HALF_LOG_TWO_PI, squashed_std
from core.networks import MLP, Denoised, float_dtype
from core.rng import streams
from core.types import Array, EnvSpec, Key, Norm, Observation, PyTree, Start

PARENTS = ("chain_bc",)


@dataclass(frozen=True)
class Config(chain_ppo.Config):
    duplicates: int = 10
    entropy_weight: float = 0.03
    actor_lr: float = 4.5e-5
    actor_lr_min: float = 2e-5
    critic_lr: float = 6.5e-4
    critic_lr_min: float = 3e-4
    lr_warmup: int = 10
    lr_cycle: int = 100
    critic_decay: float = 1e-5
    std_min: float = 0.1  # bounds of the noise
    std_max: float = 0.24
    sampling_std: float = 0.0  # least noise that is acted with; 0: std_min
    noise: Literal["learned", "constant"] = "learned"
    noise_input: Literal["time", "state", "step"] = "time"  # time and state; the state; a table of steps and the state
    noise_hidden: tuple[int, ...] = (64, 64)  # none: one layer, of the size that the official code takes
    noise_activation: str = "tanh"
    noise_table: int = 16  # width of the table of steps
    noise_steps: int = 0  # last steps whose noise is learned; 0: all
    noise_fixed: Literal["min", "vp", "lin"] = "min"  # noise of the others, and of all if constant
    noise_decay: int = 0  # iterations over which the upper bound falls; 0: it stays
    noise_hold: float = 0.35  # share of them before it begins to
    noise_clip: float = 3.0  # of the standard normals
    log_prob_min: float = -1.0  # range of l
    log_prob_max: float = 1.0
    with_start: bool = True  # whether l counts log N(x_0), and K + 1 terms instead of K
    per_step: bool = True  # whether l is an average over terms
    per_dimension: bool = True  # and over the chunk's numbers
    regulariser: Literal["w2", "bc"] = "w2"  # taken bc_weight times
    w2_start: Literal["noise", "zero"] = "noise"


class Noise(nn.Module):
    """Raw output [..., H * A] of the noise net."""

    cfg: Config
    steps: int  # K
    size: int  # H * A

    @nn.compact
    def __call__(self, seen: Denoised, k: Array) -> Array:
        cfg, parts = self.cfg, [seen.cond]
        if cfg.noise_input == "time":
            parts = [jax.lax.stop_gradient(seen.time), seen.cond]  # the embedding is the velocity's to train
        elif cfg.noise_input == "step":
            code = nn.Embed(self.steps, cfg.noise_table, embedding_init=nn.initializers.normal(1.0))(k)
            parts = [jnp.broadcast_to(code, (*seen.cond.shape[:-1], cfg.noise_table)), seen.cond]
        width = sum(x.shape[-1] for x in parts)
        one = 16 if cfg.noise_input == "state" else int(math.sqrt(width**2 + self.size**2))
        return MLP((*(cfg.noise_hidden or (one,)), self.size), cfg.noise_activation)(*parts)


def noise_bound(iteration: Array, low: float, high: float, iterations: int, hold: float = 0.35) -> Array:
    """Upper bound of the noise, f32[]: `high` at first, from `hold` of the iterations down half a cosine to
    0.3 low + 0.7 high.
    """
    least = 0.3 * low + 0.7 * high
    phase = jnp.clip((iteration - int(hold * iterations)) / max(int((1 - hold) * iterations), 1), 0, 1)
    return least + (high - least) / 2 * (1 + jnp.cos(jnp.pi * phase))


def fixed_std(cfg: Config, steps: int, high: float | Array) -> Array:
    """f32[K] noise that is not learned."""
    t = jnp.linspace(0, 1, steps)
    levels = {"vp": jnp.sqrt(0.2 * t * (1 - t)), "lin": 0.1 * t, "min": jnp.full(steps, cfg.std_min)}
    return jnp.clip(choose("fixed noise", cfg.noise_fixed, levels), cfg.std_min, high)


def log_prob(law: Move, states: Array, cfg: Config) -> tuple[Array, Array]:
    """(l before its clamp, entropy) f32[B] of chains f32[B, K + 1, H, A] by their laws.

    The entropy is always an average over terms.
    """
    *_, terms, h, a = law.mean.shape
    entropy = (jnp.log(law.std) + 0.5 + HALF_LOG_TWO_PI).sum(axis=(1, 2, 3))
    total = chain.log_density(states[:, 1:], law.mean, law.std).sum(axis=(1, 2, 3))
    if cfg.with_start:
        total = total + chain.log_density(states[:, 0], 0.0, 1.0).sum(axis=(1, 2))
        entropy, terms = entropy + h * a * (0.5 + HALF_LOG_TWO_PI), terms + 1
    numbers = h * a if cfg.per_dimension else 1
    return total / (terms if cfg.per_step else 1) / numbers, entropy / terms / numbers


def w2(tuned: Step, frozen: Step, steps: int, start: Array, frozen_start: Array) -> Array:
    """Mean squared distance f32[] between the ends of two noiseless chains from f32[B, H, A] each."""
    still = jnp.zeros((len(start), steps, *start.shape[1:]), start.dtype)
    ends = (chain.sample(step, x, still, last=1.0)[0][:, -1] for step, x in ((tuned, start), (frozen, frozen_start)))
    ours, theirs = ends
    return jnp.square(ours - jax.lax.stop_gradient(theirs)).mean()


class NoisyFlow:
    """The flow with its noise.  Its params: {"policy", "noise"}."""

    def __init__(self, cfg: Config, given: Policy):
        self.cfg, self.given, self.steps = cfg, given, given.steps(cfg.denoising)
        self.learned = min(cfg.noise_steps or self.steps, self.steps) if cfg.noise == "learned" else 0
        size = given.shape[0] * given.shape[1]
        self.noise = Noise(cfg, self.steps, size)
        self.floor = cfg.sampling_std or cfg.std_min

    def bound(self, iteration: Array) -> float | Array:
        cfg = self.cfg
        if not cfg.noise_decay:
            return cfg.std_max
        return noise_bound(iteration, cfg.std_min, cfg.std_max, cfg.noise_decay, cfg.noise_hold)

    def init(self, key: Key, policy: PyTree, state: Array) -> PyTree:
        if not self.learned:
            return {"policy": policy}
        zero = jnp.zeros(1, float_dtype())
        seen = self.given.denoise(policy, state, jnp.zeros((1, *self.given.shape)), zero, zero)
        return {"policy": policy, "noise": self.noise.init(key, seen, jnp.zeros(1, jnp.int32))}

    def step(self, params: PyTree, state: Array, high: float | Array) -> Step:
        """The chain of states f32[B, S]; high: upper bound of the noise."""
        cfg, steps = self.cfg, self.steps
        fixed, shape = fixed_std(cfg, steps, high), self.given.shape

        def field(x: Array, t: Array, span: Array, k: Array) -> tuple[Array, Array]:
            seen = self.given.denoise(params["policy"], state, x, t, span)
            if not self.learned:
                return seen.out, fixed[k][..., None, None]
            raw = self.noise.apply(params["noise"], seen, k).reshape(*seen.cond.shape[:-1], *shape)
            std = squashed_std(raw, cfg.std_min, high)
            if self.learned < steps:
                std = jnp.where((k < steps - self.learned)[..., None, None], fixed[k][..., None, None], std)
            return seen.out, std

        return flow.euler(field, flow.grid(steps, cfg.denoising.grid), self.given.options.denoised_clip or jnp.inf)


def actor(cfg: Config, spec: EnvSpec) -> tuple[Policy, Actor]:
    """Raises: ConfigError for goal-conditioned or discrete tasks, diffusion policies, and options out of range."""
    algorithm.require(spec, "reinflow", pixels=True, chunk=True)
    chunk_policy.require_family("reinflow", cfg.net, "reflow", "shortcut", "meanflow")
    if not 0 < cfg.std_min <= cfg.std_max or cfg.log_prob_min >= cfg.log_prob_max:
        raise ConfigError(
            f"needs 0 < std_min {cfg.std_min} <= std_max {cfg.std_max} and "
            f"log_prob_min {cfg.log_prob_min} < log_prob_max {cfg.log_prob_max}"
        )
    require_least(cfg, noise_steps=0, noise_decay=0, noise_clip=0, sampling_std=0)
    if not 0 <= cfg.noise_hold <= 1:
        raise ConfigError(f"noise_hold {cfg.noise_hold} is a share: it must lie in [0, 1]")
    given = chunk_policy.policy(cfg.net, spec)
    chains = NoisyFlow(cfg, given)

    def init(key: Key, start: Start) -> tuple[PyTree, PyTree, Norm]:
        keys = streams(key, "policy", "noise", "blank")
        policy, norm = chain_bc.pretrained(keys.policy, start, given, spec)
        frozen = jax.tree.map(jnp.copy, policy) if cfg.bc_weight else ()
        return chains.init(keys.noise, policy, given.encoded(keys.blank, spec)[0]), frozen, norm

    def step(params: PyTree, state: State, obs: Observation) -> Step:
        return chains.step(params, given.read(params["policy"], state.norm, obs), chains.bound(state.iteration))

    def clamp(value: Array) -> Array:
        return jnp.clip(value, cfg.log_prob_min, cfg.log_prob_max)

    def play(state: State, obs: Observation, key: Key) -> tuple[Array, Record]:
        return noisy(state.actor.params, state, obs, key)

    def noisy(params: PyTree, state: State, obs: Observation, key: Key) -> tuple[Array, Record]:
        start, normals = given.noises(key, len(obs.step), chains.steps)
        states, law = chain.sample(step(params, state, obs), start, normals, chains.floor, cfg.noise_clip, 1.0)
        return states[:, -1], Record(states, clamp(log_prob(law, states, cfg)[0])[:, None])

    def best(state: State, obs: Observation, key: Key) -> Array:
        start, normals = given.noises(key, len(obs.step), chains.steps)
        states, _ = chain.sample(step(state.actor.params, state, obs), start, jnp.zeros_like(normals), last=1.0)
        return states[:, -1]

    def judge(params: PyTree, state: State, obs: Observation, states: Array, level: Array) -> Judged:
        value, entropy = log_prob(chain.moves(step(params, state, obs), states), states, cfg)
        return Judged(clamp(value), entropy, (value != clamp(value)).astype(value.dtype))

    def penalty(params: PyTree, state: State, obs: Observation, key: Key) -> Array:
        if cfg.regulariser == "bc":
            frozen = jax.lax.stop_gradient({**params, "policy": state.frozen})
            record = noisy(frozen, state, obs, key)[1]
            return -judge(params, state, obs, record.chain, jnp.zeros_like(obs.step)).log_prob.mean()
        start = given.noises(key, len(obs.step), 0)[0] * (cfg.w2_start == "noise")
        tuned, frozen = (
            given.step(policy, given.read(policy, state.norm, obs), cfg.denoising)
            for policy in (params["policy"], state.frozen)
        )
        return w2(tuned, frozen, chains.steps, start, start)

    return given, Actor(1, init, play, best, judge, lambda level: cfg.clip, lambda advantage, level: advantage, penalty)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError, see `actor`."""
    return chain_ppo.make(cfg, spec, *actor(cfg, spec))
