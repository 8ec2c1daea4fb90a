"""IQL: implicit Q-learning (Kostrikov et al., 2021, arXiv:2110.06169).

A call of `update`, with q = min_e Q'_e(s, a) of the target critics and u = q - V(s):
    L_V  = mean_B |kappa - 1{u < 0}| u^2                                 expectile regression, Eq. (5)
    y    = r + gamma (1 - terminated) V(s')
    L_Q  = sum_e mean_B (Q_e(s, a) - y)^2                                Eq. (6)
    w    = min(exp(beta (q - V(s))), 100)
    L_pi = -mean_B w log pi(a|s)                                         Eq. (7)
then the critics' targets move by tau.  pi = N(tanh(f(s)), std^2) with one std per action, whatever the state; it is not
squashed, so that a is scored as it is.  It is judged by its mean.
Two orders are in use.  "original", as the authors': V is stepped first, then the policy, then Q, and both of these read
the new V.  "corl", as CORL's port: w and y are of V before its step, and L_Q is half as large.  What else CORL has:
log_std_min -20, torch's initialisers, standardised states, and a deterministic policy for some tasks, whose
L_pi = mean_B w sum_A (tanh(f(s)) - a)^2.
Rewards are learned from as the data has them: the authors' changes of it are options of the dataset.
Axes: B batch, S state, A action, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, batches, optim
from core.algorithm import Algorithm, as_input
from core.config import ConfigError, require_choices
from core.distributions import Gaussian
from core.losses import awr_weight, check_shapes, ensemble_mse, expectile, mean, td_target
from core.networks import MLP, Net, ensemble, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    hidden: tuple[int, ...] = (256, 256)
    weights: str = "orthogonal"  # initialiser of every layer, see core.networks.INITIALIZERS
    policy: Literal["gaussian", "deterministic"] = "gaussian"
    order: Literal["original", "corl"] = "original"  # which V the policy and Q read: the new one, or the old one
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    actor_steps: int = 1_000_000  # updates in which actor_lr falls to 0 by half a cosine, whatever --steps; 0: no
    discount: float = 0.99  # gamma
    tau: float = 0.005  # Polyak rate of the critics' targets
    expectile: float = 0.7  # kappa
    beta: float = 3.0  # inverse temperature of the policy's weights
    max_weight: float = 100.0  # limit of w
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    dropout: float = 0.0  # share of the policy's hidden units that are dropped while it learns
    action_limit: float = 1 - 1e-5  # the data's actions are clipped to +- this


class State(NamedTuple):
    actor: Trained  # params {"mean": ..., "log_std": f32[A]}; a deterministic policy has no "log_std"
    critic: Trained  # leading axis E = 2 on every parameter
    critic_target: PyTree
    value: Trained
    norm: Norm


class Networks(NamedTuple):
    actor: Net  # (params, s f32[B, S], dropout key or None) -> mean f32[B, A] in [-1, 1]
    critic: Net  # (params, s, a) -> f32[E, B]
    value: Net  # (params, s) -> f32[B]


class Batch(NamedTuple):
    """Transitions as the networks read them."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A]
    reward: Array  # f32[B]
    next_obs: Array  # f32[B, S]
    terminated: Array  # bool[B]
    weight: Array | None = None  # f32[B] of each row in all three losses; None: 1


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    policy = MLP((*cfg.hidden, spec.action_dim), final="tanh", weights=cfg.weights, dropout=cfg.dropout)
    value = MLP((*cfg.hidden, 1), weights=cfg.weights)
    critics = ensemble(value, 2)

    def init(key: Key, obs: Array) -> PyTree:
        log_std = {"log_std": jnp.zeros(spec.action_dim, float_dtype())} if cfg.policy == "gaussian" else {}
        return {"mean": policy.init(key, obs), **log_std}

    def apply(params: PyTree, obs: Array, dropout: Key | None = None) -> Array:
        return policy.apply(params["mean"], obs, rngs=None if dropout is None else {"dropout": dropout})

    return Networks(
        Net(init, apply),
        Net(critics.init, lambda params, obs, action: critics.apply(params, obs, action)[..., 0]),
        Net(value.init, lambda params, obs: value.apply(params, obs)[..., 0]),
    )


def optimisers(cfg: Config):
    """(actor's, critic's, value's)."""
    actor_lr = optim.cosine(cfg.actor_lr, cfg.actor_steps) if cfg.actor_steps else cfg.actor_lr
    return optim.adam(actor_lr), optim.adam(cfg.critic_lr), optim.adam(cfg.value_lr)


def value_loss(value_params: PyTree, q: Array, batch: Batch, nets: Networks, cfg: Config) -> tuple[Array, Metrics]:
    """L_V for the target critics' minimum q f32[B]."""
    value = nets.value.apply(value_params, batch.obs)
    check_shapes(q=q, value=value)
    loss = mean(expectile(q - value, cfg.expectile), batch.weight)
    return loss, {"value/loss": loss, "value/mean": value.mean()}


def log_std(actor_params: PyTree, cfg: Config) -> Array:
    """f32[A] of the Gaussian policy, within its bounds."""
    return jnp.clip(actor_params["log_std"], cfg.log_std_min, cfg.log_std_max)


def actor_loss(
    actor_params: PyTree, advantage: Array, batch: Batch, dropout: Key | None, nets: Networks, cfg: Config
) -> tuple[Array, Metrics]:
    """L_pi for advantages f32[B]; without a dropout key no unit is dropped."""
    average = nets.actor.apply(actor_params, batch.obs, dropout)
    check_shapes(mean=average, action=batch.action)
    if cfg.policy == "deterministic":
        cost = jnp.square(average - batch.action).sum(axis=-1)
    else:
        cost = -Gaussian(average, log_std(actor_params, cfg)).log_prob(batch.action)
    weight = awr_weight(advantage, cfg.beta, cfg.max_weight)
    check_shapes(cost=cost, weight=weight)
    loss = mean(weight * cost, batch.weight)
    return loss, {"actor/loss": loss, "actor/weight": weight.mean(), "actor/advantage": advantage.mean()}


def critic_loss(critic_params: PyTree, target: Array, batch: Batch, nets: Networks, cfg: Config):
    """L_Q for targets f32[B] -> (f32[], metrics)."""
    q = nets.critic.apply(critic_params, batch.obs, batch.action)  # f32[E, B]
    loss = ensemble_mse(q, target, batch.weight) / (2 if cfg.order == "corl" else 1)
    return loss, {"critic/loss": loss, "critic/q": q.mean()}


def update_with(state: State, batch: Batch, dropout: Key | None, nets: Networks, cfg: Config) -> tuple[State, Metrics]:
    """One whole update for a given key of the policy's dropout; None drops nothing."""
    actor_tx, critic_tx, value_tx = optimisers(cfg)
    # --- value ---
    q = nets.critic.apply(state.critic_target, batch.obs, batch.action).min(axis=0)
    value, value_metrics = optim.step(value_tx, value_loss, state.value, q, batch, nets, cfg)
    # --- what the others read of it ---
    read = state.value.params if cfg.order == "corl" else value.params
    advantage = q - nets.value.apply(read, batch.obs)
    target = td_target(batch.reward, batch.terminated, nets.value.apply(read, batch.next_obs), cfg.discount)
    # --- actor ---
    actor, actor_metrics = optim.step(actor_tx, actor_loss, state.actor, advantage, batch, dropout, nets, cfg)
    # --- critics and their targets ---
    critic, critic_metrics = optim.step(critic_tx, critic_loss, state.critic, target, batch, nets, cfg)
    critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
    metrics = {**value_metrics, **actor_metrics, **critic_metrics, "critic/target": target.mean()}
    return State(actor, critic, critic_target, value, state.norm), metrics


def to_batch(norm: Norm, t: Transition, cfg: Config) -> Batch:
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    action = jnp.clip(norm.action(t.action), -cfg.action_limit, cfg.action_limit)
    return Batch(obs, action, t.reward, next_obs, t.terminated, dict(t.extras).get("weight"))


def check(cfg: Config) -> None:
    """Raises: ConfigError for options out of range; UnknownName."""
    require_choices(cfg)
    if not 0 < cfg.expectile < 1 or not 0 <= cfg.dropout < 1:
        raise ConfigError(f"expectile {cfg.expectile} must lie in (0, 1) and dropout {cfg.dropout} in [0, 1)")
    algorithm.require_rates(cfg.discount, cfg.tau)
    if cfg.beta < 0 or cfg.actor_steps < 0 or min(cfg.max_weight, cfg.action_limit) <= 0:
        raise ConfigError(
            f"beta {cfg.beta} and actor_steps {cfg.actor_steps} must be at least 0, "
            f"max_weight {cfg.max_weight} and action_limit {cfg.action_limit} above 0"
        )
    if cfg.log_std_min > cfg.log_std_max:
        raise ConfigError(f"log_std_min {cfg.log_std_min} is above log_std_max {cfg.log_std_max}: exchange them")


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "iql")
    check(cfg)
    nets = networks(cfg, spec)
    actor_tx, critic_tx, value_tx = optimisers(cfg)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "actor", "critic", "value")
        obs = jnp.zeros((1, *spec.obs_shape), float_dtype())
        critic = nets.critic.init(keys.critic, obs, jnp.zeros((1, spec.action_dim), float_dtype()))
        return State(
            optim.start(actor_tx, nets.actor.init(keys.actor, obs)),
            optim.start(critic_tx, critic),
            jax.tree.map(jnp.copy, critic),
            optim.start(value_tx, nets.value.init(keys.value, obs)),
            start.norm,
        )

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        dropout = streams(key, "dropout").dropout if cfg.dropout else None
        return update_with(state, to_batch(state.norm, t, cfg), dropout, nets, cfg)

    def mode(state: State, obs: Observation) -> Array:
        return nets.actor.apply(state.actor.params, as_input(state.norm, obs))

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        action = mode(state, obs)
        if cfg.policy == "gaussian":
            noise = jax.random.normal(key, action.shape, action.dtype)
            action = Gaussian(action, log_std(state.actor.params, cfg)).sample(noise)
        return ActOut(state.norm.raw_action(jnp.clip(action, -1, 1)), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(state.norm.raw_action(jnp.clip(mode(state, obs), -1, 1)), carry)

    value = algorithm.least_q(nets.critic.apply, limit=cfg.action_limit)
    return Algorithm(init, update, act, act_eval, sample=batches.sampled(cfg.batch_size, spec.history), value=value)
