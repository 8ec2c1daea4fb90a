"""DAWR: advantage-weighted regression (Peng et al., 2019, arXiv:1910.00177) of a diffusion policy, of action chunks.

A call of `update` on a rollout [T, B] of chunks, which joins the last C steps of each environment:
    G    = V(s) + c A,   A = advantages (gamma, lambda) by the critic as it is           TD(lambda)
    L_V  = mean (V(s) - G)^2,   U / p steps on batches of all that is kept, G fixed
    A    = the same, by the critic as it has become
    L_pi = mean_B w mean (eps(x_k, k, s) - eps)^2,   w = min(exp(beta A'), w_max),   U steps on such batches
A' is A standardised over each batch; U = rho T B / batch size, rho the replay ratio.  One step stands for a chunk:
gamma is per chunk, r the chunk's sum.  After a rollout's last step the value of its successor is taken.
Values are those of the DPPO tree's baseline (arXiv:2409.00588): c A is its recursion val = c err + gamma lambda (1 -
over) val, and the chains that explore have a floor under their noise.  That code draws the critic's batches from the
first C rows of the C * B only, ours from all; and it carries its sums over a time limit that does not terminate, which
ours cuts.
Axes: T time, B environments, C steps kept, S state, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos import chain_bc
from algos.chain_bc import Fit
from core import algorithm, chunk_policy, critics, optim, replay
from core.algorithm import Algorithm
from core.chain import Regression
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, require_choices
from core.critics import Network, TimeLimit
from core.losses import awr_weight, check_shapes, mse
from core.networks import Net, float_dtype
from core.optim import Trained
from core.returns import gae
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Replay, Start, Transition

PARENTS = ("chain_bc", "dawr")
INHERITS = ("net", "critic")


@dataclass(frozen=True)
class Config(algorithm.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(family="diffusion"))  # or reflow
    denoising: Denoising = field(default_factory=Denoising)
    fit: Fit = field(default_factory=Fit)  # what the policy's network is fitted to
    critic: Network = field(default_factory=Network)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    discount: float = 0.99  # gamma, of a chunk
    lam: float = 0.95  # lambda
    td_factor: float = 0.95  # c
    beta: float = 10.0  # inverse temperature of the weights
    max_weight: float = 100.0  # w_max
    buffer: int = 5_000  # C, a whole number of rollouts
    replay_ratio: float = 64.0  # rho: how often a step is learned from for each that is taken
    critic_period: int = 4  # p: policy steps for each of the critic's
    noise_floor: float = 0.1  # least std of a chain's steps where the policy explores
    noise_clip: float = 3.0  # of the normals of those chains
    reward_scale: float = 1.0  # factor of the rewards
    time_limit: TimeLimit = "bootstrap"  # terminate: nothing follows a time limit, the published protocol


class State(NamedTuple):
    actor: Trained  # params of chain_bc's `Policy`
    critic: Trained
    kept: Replay  # [C * B]
    norm: Norm


def advantages(kept: Replay, value: Array, next_value: Array, cfg: Config) -> Array:
    """c A f32[C * B] of what is kept, for values f32[C * B]; meaningless where nothing is yet."""
    added, envs = kept.added[0], len(kept.added)
    steps, t = len(value) // envs, kept.transition
    oldest = jnp.where(added > steps, added % steps, 0)

    def in_time(x: Array) -> Array:
        return jnp.roll(x.reshape(steps, envs), -oldest, axis=0)

    newest = jnp.arange(steps)[:, None] == jnp.minimum(added, steps) - 1
    ends, cut = in_time(critics.value_ends(t, cfg.time_limit)), in_time(t.truncated) | newest
    reward, value, next_value = (in_time(x) for x in (cfg.reward_scale * t.reward, value, next_value))
    advantage = gae(reward, value, next_value, ends, cut, cfg.discount, cfg.lam)
    return cfg.td_factor * jnp.roll(advantage, oldest, axis=0).ravel()


def weights(advantage: Array, cfg: Config) -> Array:
    """w f32[B] of a batch."""
    standard = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-6)
    return awr_weight(standard, cfg.beta, cfg.max_weight)


def critic_loss(critic_params: PyTree, state: Array, ret: Array, v: Net) -> tuple[Array, Metrics]:
    """L_V for targets G f32[B]."""
    value = v.apply(critic_params, state)
    loss = mse(value, ret)
    return loss, {"critic/loss": loss, "critic/value": value.mean()}


def actor_loss(
    actor_params: PyTree, state: Array, fit: Regression, weight: Array, given: Policy
) -> tuple[Array, Metrics]:
    """L_pi of one batch for weights f32[B]."""
    out = given.denoise(actor_params, state, fit.x, fit.t, fit.span).out
    error = jnp.square(out - fit.target).mean(axis=(1, 2))
    check_shapes(error=error, weight=weight)
    loss = (weight * error).mean()
    return loss, {"actor/loss": loss, "actor/bc": error.mean(), "actor/weight": weight.mean()}


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete or pixel tasks, and for options that do not fit together."""
    algorithm.require(spec, "dawr", chunk=True)
    require_choices(cfg)
    algorithm.require_rates(cfg.discount, reward_scale=cfg.reward_scale)
    chunk_policy.require_family("dawr", cfg.net, "diffusion", "reflow")
    if not 0 <= cfg.lam <= 1 or min(cfg.td_factor, cfg.beta, cfg.max_weight, cfg.critic_period, cfg.buffer) <= 0:
        raise ConfigError(
            f"lam {cfg.lam} must lie in [0, 1], td_factor {cfg.td_factor}, beta {cfg.beta}, max_weight "
            f"{cfg.max_weight}, critic_period {cfg.critic_period} and buffer {cfg.buffer} above 0"
        )
    if cfg.batch_size < 2:
        raise ConfigError(f"batch_size {cfg.batch_size} must be at least 2: advantages are standardised over it")
    chunk_policy.require_noise(cfg.noise_floor, cfg.noise_clip)
    given, v = chunk_policy.policy(cfg.net, spec), critics.of_states(cfg.critic)
    steps = given.steps(cfg.denoising)
    actor_tx, critic_tx = optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr)

    def init(key: Key, start: Start) -> State:
        keys, parent = streams(key, "actor", "critic"), start.parent
        kept = replay.empty(spec, start.num_envs, 1, cfg.buffer * start.num_envs)
        if isinstance(parent, State):  # its steps are of other episodes
            return parent._replace(kept=kept)
        actor, norm = chain_bc.pretrained(keys.actor, start, given, spec)
        critic = v.init(keys.critic, jnp.zeros((1, *spec.obs_shape), float_dtype()))
        return State(optim.start(actor_tx, actor), optim.start(critic_tx, critic), kept, norm)

    def judged(critic: PyTree, kept: Replay, norm: Norm) -> tuple[Array, Array]:
        """(V(s), c A) f32[C * B]."""

        def values(obs: Observation) -> Array:
            one = lambda obs: v.apply(critic, given.read({}, norm, obs))  # noqa: E731
            return jax.lax.map(one, obs, batch_size=8192)  # wide layers for all at once would not fit

        value = values(kept.transition.obs)
        return value, advantages(kept, value, values(kept.transition.next_obs), cfg)

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        length, size = t.reward.shape[0], t.reward.size
        updates = int(size * cfg.replay_ratio / cfg.batch_size + 1e-6)
        if cfg.buffer % length or updates < cfg.critic_period:
            raise ConfigError(
                f"rollouts of {length} steps must fill a buffer of {cfg.buffer} in whole numbers, and make at least "
                f"{cfg.critic_period} updates: {size} steps times {cfg.replay_ratio} over batches of {cfg.batch_size} "
                f"make {updates}; see --online.length, --config.buffer and --config.replay-ratio"
            )
        keys, norm = streams(key, "critic", "actor", "fit"), state.norm
        kept = replay.add(replay.cut(state.kept, t.obs.step[0] == 0), t)  # new episodes may begin after a resume
        there = jnp.minimum(kept.added[0], cfg.buffer) * len(kept.added)

        def rows(key: Key, number: int) -> Array:
            return jax.random.randint(key, (number, cfg.batch_size), 0, there)

        def read(rows: Array) -> Array:
            return given.read({}, norm, jax.tree.map(lambda x: x[rows], kept.transition.obs))

        # --- critic ---
        value, advantage = judged(state.critic.params, kept, norm)
        ret = value + advantage

        def regress(critic: Trained, rows: Array) -> tuple[Trained, Metrics]:
            return optim.step(critic_tx, critic_loss, critic, read(rows), ret[rows], v)

        critic, metrics = jax.lax.scan(regress, state.critic, rows(keys.critic, updates // cfg.critic_period))
        # --- actor ---
        _, advantage = judged(critic.params, kept, norm)

        def imitate(actor: Trained, inputs: tuple[Array, Key]) -> tuple[Trained, Metrics]:
            rows, key = inputs
            s, x1 = read(rows), given.chunk(norm, kept.transition.action[rows])
            fit = chain_bc.regression(actor.params, s, x1, key, given, cfg.fit)
            return optim.step(actor_tx, actor_loss, actor, s, fit, weights(advantage[rows], cfg), given)

        draws = rows(keys.actor, updates), jax.random.split(keys.fit, updates)
        actor, actor_metrics = jax.lax.scan(imitate, state.actor, draws)
        return State(actor, critic, kept, norm), jax.tree.map(jnp.mean, {**metrics, **actor_metrics})

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        params, noise = state.actor.params, given.noises(key, len(obs.step), steps)
        seen = given.read(params, state.norm, obs)
        x = given.ends(params, seen, noise, cfg.denoising, cfg.noise_floor, cfg.noise_clip)
        return ActOut(given.out(state.norm, x), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(given.judged(state.actor.params, state.norm, obs, key, cfg.denoising), carry)

    return Algorithm(init, update, act, act_eval)
