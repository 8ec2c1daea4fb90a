"""SAC: soft actor-critic with a learned temperature (Haarnoja et al., 2018, arXiv:1812.05905).

A call of `update`, with the policy pi(a|s) = law of tanh(u), u ~ N(mean(s), std(s)^2):
    y       = r + gamma^n (1 - terminated) (min_e Q'_e(s', a') - alpha log pi(a'|s')),   a' ~ pi(s')      Eq. (5)
    L_Q     = sum_e mean_B (Q_e(s, a) - y)^2 / 2                                                          Eq. (5)
    L_pi    = mean_B (alpha log pi(a~|s) - min_e Q_e(s, a~)),   a~ ~ pi(s) reparameterised                Eq. (9)
    L_alpha = mean_B -alpha (log pi(a~|s) + H),   H the target entropy                                    Eq. (18)
then the critics' targets move by tau.  r is the sum of n discounted rewards (n = 1 in the paper).
As in the paper: Adam 3e-4, two critics, 2 x 256, H = -A.  The step on the policy sees the critics just updated, and
the temperature the log-density that this step computed, as in the authors' code; that code's log std is kept in
[-20, 2].  The gradient of L_alpha is taken in log alpha.
Axes: B batch, S state, A action, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, batches, optim
from core.algorithm import Algorithm, as_input
from core.config import ConfigError, require_least
from core.distributions import TanhGaussian
from core.losses import check_shapes, ensemble_mse, td_target
from core.networks import MLP, Net, ensemble, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    hidden: tuple[int, ...] = (256, 256)
    weights: str = "torch"  # initialiser of every layer, see core.networks.INITIALIZERS
    critics: int = 2  # E
    critic_norm: str = "none"  # LayerNorm beside the critics' activations: none, before or after
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    discount: float = 0.99  # gamma
    tau: float = 0.005  # Polyak rate of the critics' targets
    n_step: int = 1  # n
    alpha: float = 1.0  # temperature at the start
    entropy_per_action: float = -1.0  # H / A
    log_std_min: float = -20.0
    log_std_max: float = 2.0


class State(NamedTuple):
    actor: Trained
    critic: Trained  # leading axis E on every parameter
    critic_target: PyTree
    log_alpha: Trained  # f32[]
    norm: Norm


class Networks(NamedTuple):
    actor: Net  # (params, s f32[B, S]) -> TanhGaussian of [B, A]
    critic: Net  # (params, s, a) -> f32[E, B]


class Batch(NamedTuple):
    """Transitions as the networks read them."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A]
    reward: Array  # f32[B] sum of n discounted rewards
    next_obs: Array  # f32[B, S]
    terminated: Array  # bool[B]
    discount: Array  # f32[B] gamma^n


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    policy = MLP((*cfg.hidden, 2 * spec.action_dim), weights=cfg.weights)
    critics = ensemble(MLP((*cfg.hidden, 1), norm=cfg.critic_norm, weights=cfg.weights), cfg.critics)

    def law(params: PyTree, obs: Array) -> TanhGaussian:
        mean, log_std = jnp.split(policy.apply(params, obs), 2, axis=-1)
        return TanhGaussian(mean, jnp.clip(log_std, cfg.log_std_min, cfg.log_std_max))

    return Networks(
        Net(policy.init, law), Net(critics.init, lambda params, obs, a: critics.apply(params, obs, a)[..., 0])
    )


def optimisers(cfg: Config):
    """(actor's, critic's, temperature's)."""
    return optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr), optim.adam(cfg.alpha_lr)


def soft_target(state: State, batch: Batch, noise: Array, nets: Networks) -> Array:
    """y f32[B]; noise f32[B, A] standard normal."""
    check_shapes(noise=noise, action=batch.action)
    law = nets.actor.apply(state.actor.params, batch.next_obs)
    action, u = law.sample(noise)
    q = nets.critic.apply(state.critic_target, batch.next_obs, action).min(axis=0)
    value = q - jnp.exp(state.log_alpha.params) * law.log_prob(u)
    return td_target(batch.reward, batch.terminated, value, batch.discount)


def critic_loss(critic_params: PyTree, target: Array, batch: Batch, nets: Networks) -> tuple[Array, Metrics]:
    """L_Q for targets f32[B]."""
    q = nets.critic.apply(critic_params, batch.obs, batch.action)  # f32[E, B]
    loss = ensemble_mse(q, target) / 2
    return loss, {"critic/loss": loss, "critic/q": q.mean()}


def actor_loss(actor_params: PyTree, critic_params: PyTree, alpha: Array, batch: Batch, noise: Array, nets: Networks):
    """L_pi -> (f32[], metrics); noise f32[B, A] standard normal."""
    check_shapes(noise=noise, action=batch.action)
    law = nets.actor.apply(actor_params, batch.obs)
    action, u = law.sample(noise)
    log_prob = law.log_prob(u)
    q = nets.critic.apply(critic_params, batch.obs, action).min(axis=0)
    loss = (alpha * log_prob - q).mean()
    return loss, {"actor/loss": loss, "actor/entropy": -log_prob.mean()}


def alpha_loss(log_alpha: Array, entropy: Array, target_entropy: float) -> tuple[Array, Metrics]:
    """L_alpha, for the mean entropy f32[] of the batch."""
    alpha = jnp.exp(log_alpha)
    return alpha * (entropy - target_entropy), {"alpha/alpha": alpha}


def update_with(
    state: State, batch: Batch, next_noise: Array, noise: Array, nets: Networks, cfg: Config
) -> tuple[State, Metrics]:
    """One whole update for given draws: next_noise and noise f32[B, A] standard normal, for a' and a~."""
    actor_tx, critic_tx, alpha_tx = optimisers(cfg)
    # --- critics ---
    target = soft_target(state, batch, next_noise, nets)
    critic, critic_metrics = optim.step(critic_tx, critic_loss, state.critic, target, batch, nets)
    # --- actor ---
    alpha = jnp.exp(state.log_alpha.params)
    actor, actor_metrics = optim.step(actor_tx, actor_loss, state.actor, critic.params, alpha, batch, noise, nets)
    # --- temperature ---
    wanted = cfg.entropy_per_action * batch.action.shape[-1]
    entropy = actor_metrics["actor/entropy"]
    log_alpha, alpha_metrics = optim.step(alpha_tx, alpha_loss, state.log_alpha, entropy, wanted)
    # --- targets ---
    critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
    metrics = {**critic_metrics, **actor_metrics, **alpha_metrics, "critic/target": target.mean()}
    return State(actor, critic, critic_target, log_alpha, state.norm), metrics


def to_batch(norm: Norm, t: Transition) -> Batch:
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    return Batch(obs, norm.action(t.action), t.reward, next_obs, t.terminated, t.extras["discount"])


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "sac")
    algorithm.require_rates(cfg.discount, cfg.tau)
    require_least(cfg, critics=1, n_step=1)
    if cfg.alpha <= 0:
        raise ConfigError(f"alpha {cfg.alpha} must be above 0")
    nets = networks(cfg, spec)
    actor_tx, critic_tx, alpha_tx = optimisers(cfg)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "actor", "critic")
        obs = jnp.zeros((1, *spec.obs_shape), float_dtype())
        critic = nets.critic.init(keys.critic, obs, jnp.zeros((1, spec.action_dim), float_dtype()))
        return State(
            optim.start(actor_tx, nets.actor.init(keys.actor, obs)),
            optim.start(critic_tx, critic),
            jax.tree.map(jnp.copy, critic),
            optim.start(alpha_tx, jnp.log(jnp.asarray(cfg.alpha, float_dtype()))),
            start.norm,
        )

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        keys = streams(key, "next_action", "action")
        shape, dtype = batch.action.shape, batch.action.dtype
        next_noise, noise = (jax.random.normal(k, shape, dtype) for k in (keys.next_action, keys.action))
        return update_with(state, to_batch(state.norm, batch), next_noise, noise, nets, cfg)

    def law(state: State, obs: Observation) -> TanhGaussian:
        return nets.actor.apply(state.actor.params, as_input(state.norm, obs))

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        policy = law(state, obs)
        action, _ = policy.sample(jax.random.normal(key, policy.mean.shape, policy.mean.dtype))
        return ActOut(state.norm.raw_action(action), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(state.norm.raw_action(law(state, obs).mode()), carry)

    sample = batches.sampled(cfg.batch_size, spec.history, cfg.n_step, cfg.discount)
    value = algorithm.least_q(nets.critic.apply)
    return Algorithm(init, update, act, act_eval, sample=sample, explores=True, value=value)
