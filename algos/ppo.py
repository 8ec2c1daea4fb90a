"""PPO: proximal policy optimisation with a clipped objective (Schulman et al., 2017, arXiv:1707.06347), Gaussian.

A call of `update` on a rollout [T, B] of the policy pi_old = N(mean(s), std^2), std independent of the state:
    A     = generalised advantage estimates (gamma, lambda), R = A + V_old(s)                             Eq. (11)
    rho   = pi(a|s) / pi_old(a|s)
    L_pi  = -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A),   A standardised over each minibatch         Eq. (7)
    L_V   = mean (V(s) - R)^2 / 2
    L     = L_pi + c_V L_V - c_H entropy                                                                  Eq. (9)
by Adam, `epochs` times over the rollout in shuffled minibatches of `batch_size` transitions.
Beyond the paper, and in its authors' code: standardised observations and scaled rewards (`core.running`), orthogonal
initialisation, clipping of the gradient's norm.  The statistics of observations enter after the update, so that the
ratio is exactly 1 before its first step.  A time limit bootstraps with the value of the true successor.  The
environment gets the action clipped to [-1, 1]; the density is that of the unclipped one.
Axes: T time, B environments, N = T * B transitions, S state, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, batches, optim, running
from core.algorithm import Algorithm, as_input
from core.config import ConfigError
from core.distributions import Gaussian
from core.losses import ppo_clip
from core.networks import MLP, float_dtype
from core.optim import Trained
from core.returns import gae
from core.rng import streams
from core.running import Moments, RewardScale
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 64  # transitions of a minibatch
    epochs: int = 10  # passes over a rollout
    hidden: tuple[int, ...] = (64, 64)  # of the policy and of the value
    activation: str = "tanh"
    lr: float = 3e-4
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    discount: float = 0.99  # gamma
    lam: float = 0.95  # lambda
    clip: float = 0.2  # eps
    value_weight: float = 0.5  # c_V
    entropy_weight: float = 0.0  # c_H
    log_std: float = 0.0  # at the start
    normalize_obs: bool = True
    normalize_reward: bool = True


class State(NamedTuple):
    net: Trained  # params {"policy", "log_std" f32[A], "value"}
    seen: Moments  # of observations f32[S]
    rewards: RewardScale
    norm: Norm


class Batch(NamedTuple):
    obs: Array  # f32[N, S] as the networks read it
    action: Array  # f32[N, A]
    log_prob: Array  # f32[N] under pi_old
    advantage: Array  # f32[N]
    ret: Array  # f32[N] R


def loss(params: PyTree, batch: Batch, nets: Networks, cfg: Config) -> tuple[Array, Metrics]:
    """L of one minibatch -> (f32[], metrics)."""
    law = nets.law(params, batch.obs)
    log_ratio = law.log_prob(batch.action) - batch.log_prob
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy, metrics = ppo_clip(log_ratio, advantage, cfg.clip)
    value = jnp.square(nets.value(params, batch.obs) - batch.ret).mean() / 2
    entropy = law.entropy().mean()
    total = policy + cfg.value_weight * value - cfg.entropy_weight * entropy
    return total, {**metrics, "policy/loss": policy, "policy/entropy": entropy, "value/loss": value}


class Networks(NamedTuple):
    policy: MLP
    critic: MLP

    def law(self, params: PyTree, obs: Array) -> Gaussian:
        return Gaussian(self.policy.apply(params["policy"], obs), params["log_std"])

    def value(self, params: PyTree, obs: Array) -> Array:
        return self.critic.apply(params["value"], obs)[..., 0]


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    def head(size: int, gain: float) -> MLP:
        sizes = (*cfg.hidden, size)
        return MLP(sizes, cfg.activation, weights="orthogonal", head_weights=f"orthogonal:{gain}")

    return Networks(head(spec.action_dim, 0.01), head(1, 1.0))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "ppo")
    algorithm.require_rates(cfg.discount)
    if cfg.epochs < 1 or cfg.clip <= 0 or not 0 <= cfg.lam <= 1:
        raise ConfigError(f"epochs {cfg.epochs} must be at least 1, clip {cfg.clip} positive, lam {cfg.lam} in [0, 1]")
    nets, tx = networks(cfg, spec), optim.adam(cfg.lr, eps=cfg.adam_eps, max_norm=cfg.max_grad_norm)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "policy", "value")
        obs = jnp.zeros((1, *spec.obs_shape), float_dtype())
        params = {
            "policy": nets.policy.init(keys.policy, obs),
            "log_std": jnp.full(spec.action_dim, cfg.log_std, float_dtype()),
            "value": nets.critic.init(keys.value, obs),
        }
        width = spec.obs_shape[0]
        return State(optim.start(tx, params), running.moments(width), running.reward_scale(start.num_envs), start.norm)

    def read(state: State, obs: Observation) -> Array:
        x = as_input(state.norm, obs)
        return running.standard(state.seen, x) if cfg.normalize_obs else x

    def to_batch(state: State, t: Transition, reward: Array) -> Batch:
        obs = read(state, t.obs)
        value, next_value = nets.value(state.net.params, jnp.stack([obs, read(state, t.next_obs)]))
        advantage = gae(reward, value, next_value, t.terminated, t.truncated, cfg.discount, cfg.lam)
        batch = Batch(obs, t.extras["sampled"], t.extras["log_prob"], advantage, advantage + value)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        size = t.reward.size
        if size % cfg.batch_size:
            raise ConfigError(f"a rollout of {size} transitions does not fill whole minibatches of {cfg.batch_size}")
        # --- advantages ---
        rewards, reward = running.renewed(state.rewards, t.obs.step[0] == 0), t.reward
        if cfg.normalize_reward:
            rewards, reward = running.scale_rewards(rewards, reward, t.terminated | t.truncated, cfg.discount)
        batch = to_batch(state, t, reward)

        # --- gradient steps ---
        def one(net: Trained, rows: Array) -> tuple[Trained, Metrics]:
            return optim.step(tx, loss, net, jax.tree.map(lambda x: x[rows], batch), nets, cfg)

        rows = batches.minibatches(streams(key, "shuffle").shuffle, size, cfg.batch_size, cfg.epochs)
        net, metrics = jax.lax.scan(one, state.net, rows)
        # --- statistics ---
        seen = running.include(state.seen, as_input(state.norm, t.obs)) if cfg.normalize_obs else state.seen
        return State(net, seen, rewards, state.norm), jax.tree.map(jnp.mean, metrics)

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        law = nets.law(state.net.params, read(state, obs))
        action = law.sample(jax.random.normal(key, law.mean.shape, law.mean.dtype))
        extras = {"sampled": action, "log_prob": law.log_prob(action)}
        return ActOut(jnp.clip(action, -1, 1), carry, extras)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(jnp.clip(nets.law(state.net.params, read(state, obs)).mode(), -1, 1), carry)

    return Algorithm(init, update, act, act_eval)
