"""TD3+BC: a minimalist approach to offline reinforcement learning (Fujimoto & Gu, 2021, arXiv:2106.06860).

Call t = 1, 2, ... of `update`:
    a~  = clip(pi'(s') + clip(sigma m eps, -c m, c m), -m, m)          target policy smoothing
    y   = r + gamma (1 - terminated) min_e Q'_e(s', a~)
    L_Q = sum_e mean_B (Q_e(s, a) - y)^2                               one Adam step on both critics
    on every `actor_period`-th call, with the critics just updated:
    L_pi = -lambda mean_B Q_1(s, pi(s)) + mean_{B,A} (pi(s) - a)^2,    lambda = alpha / mean_B |Q_1(s, pi(s))|
    then the targets of critics and actor move by tau.
Same as the authors' code; lambda is a constant to the gradient and has no epsilon.
Axes: B batch, S state, A action, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, batches, optim
from core.algorithm import Act, Algorithm, as_input
from core.config import require_least
from core.losses import check_shapes, ensemble_mse, mean, mse, td_target
from core.networks import MLP, Net, ensemble, float_dtype, member
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    state_norm: Literal["none", "standard", "minmax"] = "standard"
    hidden: tuple[int, ...] = (256, 256)
    weights: str = "torch"  # initialiser of every layer, see core.networks.INITIALIZERS
    critic_norm: Literal["none", "before", "after"] = "none"  # LayerNorm beside the critics' activations
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    discount: float = 0.99  # gamma
    tau: float = 0.005  # Polyak rate of the targets, per actor update
    alpha: float = 2.5  # weight of Q against cloning; 0 clones only
    actor_period: int = 2  # critic updates per actor and target update
    max_action: float = 1.0  # m: the networks see actions in [-m, m] where the environment has [-1, 1]
    policy_noise: float = 0.2  # sigma of the target policy, in units of m
    noise_clip: float = 0.5  # c, in units of m
    exploration: float = 0.1  # sigma of the exploring policy, in units of m


class State(NamedTuple):
    actor: Trained
    critic: Trained  # leading axis E = 2 on every parameter
    actor_target: PyTree
    critic_target: PyTree
    norm: Norm
    step: Array  # i32[] updates done


class Networks(NamedTuple):
    actor: Net  # (params, s f32[B, S]) -> f32[B, A] in [-m, m]
    critic: Net  # (params, s, a) -> f32[E, B]
    critic_1: Net  # the same network for one member's parameters -> f32[B]


class Batch(NamedTuple):
    """Transitions as the networks read them: states normalised, actions normalised and times m."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A] in [-m, m]
    reward: Array  # f32[B]
    next_obs: Array  # f32[B, S]
    terminated: Array  # bool[B]
    weight: Array | None = None  # f32[B] of each row's squared errors; None: 1
    policy_weight: Array | None = None  # f32[B] of each row's Q in the policy's loss; None: 1


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    policy = MLP((*cfg.hidden, spec.action_dim), final="tanh", weights=cfg.weights)
    value = MLP((*cfg.hidden, 1), norm=cfg.critic_norm, weights=cfg.weights)
    critics = ensemble(value, 2)
    return Networks(
        Net(policy.init, lambda params, obs: cfg.max_action * policy.apply(params, obs)),
        Net(critics.init, lambda params, obs, action: critics.apply(params, obs, action)[..., 0]),
        Net(value.init, lambda params, obs, action: value.apply(params, obs, action)[..., 0]),
    )


def optimisers(cfg: Config):
    """(actor's, critic's)."""
    return optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr)


def smoothed_action(state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config, m: float) -> Array:
    """a~ f32[B, A] of the target policy; noise f32[B, A] standard normal."""
    check_shapes(noise=noise, action=batch.action)
    noise = jnp.clip(cfg.policy_noise * m * noise, -cfg.noise_clip * m, cfg.noise_clip * m)
    return jnp.clip(nets.actor.apply(state.actor_target, batch.next_obs) + noise, -m, m)


def td3_target(state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config) -> Array:
    """y f32[B] by the target networks; noise f32[B, A] standard normal."""
    action = smoothed_action(state, batch, noise, nets, cfg, cfg.max_action)
    q = nets.critic.apply(state.critic_target, batch.next_obs, action).min(axis=0)
    return td_target(batch.reward, batch.terminated, q, cfg.discount)


def critic_loss(critic_params: PyTree, target: Array, batch: Batch, nets: Networks) -> tuple[Array, Metrics]:
    """L_Q for targets f32[B]."""
    q = nets.critic.apply(critic_params, batch.obs, batch.action)  # f32[E, B]
    loss = ensemble_mse(q, target, batch.weight)
    return loss, {"critic/loss": loss, "critic/q": q.mean()}


def policy_objective(action: Array, critic_params: PyTree, batch: Batch, nets: Networks, alpha: float):
    """-lambda mean Q_1(s, action), the part of L_pi that follows the critic -> (f32[], metrics)."""
    q = nets.critic_1.apply(member(critic_params, 0), batch.obs, action)
    scale = alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    return -scale * mean(q, batch.policy_weight), {"actor/q": q.mean(), "actor/lambda": scale}


def actor_loss(
    actor_params: PyTree, critic_params: PyTree, batch: Batch, wanted: Array, nets: Networks, cfg: Config
) -> tuple[Array, Metrics]:
    """L_pi with the critics' current parameters, cloning actions `wanted` f32[B, A] -> (f32[], metrics)."""
    action = nets.actor.apply(actor_params, batch.obs)
    policy, metrics = policy_objective(action, critic_params, batch, nets, cfg.alpha)
    bc = mse(action, wanted, batch.weight)
    return policy + bc, {"actor/loss": policy + bc, "actor/bc": bc, **metrics}


def update_critic(state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config) -> tuple[State, Metrics]:
    target = td3_target(state, batch, noise, nets, cfg)
    critic, metrics = optim.step(optimisers(cfg)[1], critic_loss, state.critic, target, batch, nets)
    return state._replace(critic=critic), {**metrics, "critic/target": target.mean()}


def update_targets(state: State, cfg: Config) -> State:
    return state._replace(
        critic_target=optim.polyak(state.critic_target, state.critic.params, cfg.tau),
        actor_target=optim.polyak(state.actor_target, state.actor.params, cfg.tau),
    )


def stored(state: State, batch: Batch) -> tuple[Array, Metrics]:
    """What the policy clones: the action of the data."""
    return batch.action, {}


def update_with(
    state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config, cloned=stored
) -> tuple[State, Metrics]:
    """One whole update for given draws: noise f32[B, A] standard normal.

    Args: cloned: (state, batch) -> (f32[B, A] actions that the policy clones, metrics), asked on the actor's calls.
    """
    # --- critics ---
    state, metrics = update_critic(state, batch, noise, nets, cfg)

    # --- delayed actor and targets ---
    def late(state):
        wanted, of_wanted = cloned(state, batch)
        losses = state.critic.params, batch, wanted, nets, cfg
        actor, metrics = optim.step(optimisers(cfg)[0], actor_loss, state.actor, *losses)
        return update_targets(state._replace(actor=actor), cfg), {**metrics, **of_wanted}

    state, late_metrics = optim.every(cfg.actor_period, state.step, late, state)
    return state._replace(step=state.step + 1), {**metrics, **late_metrics}


def to_batch(norm: Norm, t: Transition, cfg: Config) -> Batch:
    action = cfg.max_action * norm.action(t.action)
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    given = dict(t.extras)
    weights = given.get("weight"), given.get("policy_weight")
    return Batch(obs, action, t.reward, next_obs, t.terminated, *weights)


def first_state(key: Key, start: Start, nets: Networks, cfg: Config, spec: EnvSpec) -> State:
    """The state before training, of ReBRAC's networks and options too; targets are copies."""
    keys = streams(key, "actor", "critic")
    obs, action = (jnp.zeros((1, *shape), float_dtype()) for shape in (spec.obs_shape, spec.action_shape))
    actor, critic = nets.actor.init(keys.actor, obs), nets.critic.init(keys.critic, obs, action)
    actor_tx, critic_tx = optimisers(cfg)
    return State(
        optim.start(actor_tx, actor),
        optim.start(critic_tx, critic),
        jax.tree.map(jnp.copy, actor),
        jax.tree.map(jnp.copy, critic),
        start.norm,
        jnp.zeros((), jnp.int32),
    )


def players(actor: Net, exploration: float, m: float) -> tuple[Act, Act]:
    """(act, act_eval): the policy with noise of std `exploration` m, clipped to [-m, m]; and without."""

    def policy(state: State, obs: Observation) -> Array:
        return actor.apply(state.actor.params, as_input(state.norm, obs))

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        action = policy(state, obs)
        noise = exploration * m * jax.random.normal(key, action.shape, action.dtype)
        return ActOut(state.norm.raw_action(jnp.clip(action + noise, -m, m) / m), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(state.norm.raw_action(policy(state, obs) / m), carry)

    return act, act_eval


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "td3_bc")
    algorithm.require_rates(cfg.discount, cfg.tau)
    require_least(cfg, actor_period=1, max_action=1e-6, alpha=0, policy_noise=0, noise_clip=0, exploration=0)
    nets = networks(cfg, spec)

    def init(key: Key, start: Start) -> State:
        return first_state(key, start, nets, cfg, spec)

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        noise = jax.random.normal(streams(key, "target_noise").target_noise, batch.action.shape, batch.action.dtype)
        return update_with(state, to_batch(state.norm, batch, cfg), noise, nets, cfg)

    act, act_eval = players(nets.actor, cfg.exploration, cfg.max_action)
    value = algorithm.least_q(nets.critic.apply, cfg.max_action)
    return Algorithm(init, update, act, act_eval, sample=batches.sampled(cfg.batch_size, spec.history), value=value)
