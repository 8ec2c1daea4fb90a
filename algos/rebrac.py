"""ReBRAC: behaviour regularised actor-critic, revisited (Tarasov et al., 2023, arXiv:2305.09836).

TD3+BC with a penalty on the critic's side too, and LayerNorm in the critics.  Call t = 1, 2, ... of `update`:
    a~  = clip(pi'(s') + clip(sigma eps, -c, c), -1, 1)                target policy smoothing
    y   = r + gamma (1 - terminated) (min_e Q'_e(s', a~) - beta_c sum_A (a~ - a')^2),   a' the data's next action
    L_Q = sum_e mean_B (Q_e(s, a) - y)^2                               one Adam step on both critics
    on calls 1, 1 + actor_period, ..., with the critics just updated:
    L_pi = mean_B (beta_a sum_A (pi(s) - a)^2 - lambda min_e Q_e(s, pi(s))),   lambda = 1 / mean_B |min_e Q_e(s, pi(s))|
    then the targets of critics and actor move by tau.
Sums over A, where TD3+BC has means: a beta that suits one task is not that of another with more actions.  As in the
authors' code (CORL), the actor's target moves towards the actor from before this call's step (`target_lag`), the
critics' targets towards the new critics; states are not normalised; LayerNorm (eps 1e-6) follows the ReLU.
A transition that only the clock ended may lack a': files like D4RL's have that action, in the row of the last state,
while collections and other formats have zeros there.  Where it is missing, y has no penalty; the authors' data have no
such transitions.  Terminal ones ignore a' anyway.
Axes: B batch, S state, A action, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from algos.td3_bc import State, critic_loss, first_state, optimisers, players, smoothed_action
from core import algorithm, batches, optim
from core.algorithm import Algorithm, as_input
from core.config import require_least
from core.losses import check_shapes, mean, td_target
from core.networks import MLP, Net, ensemble
from core.rng import streams
from core.types import Array, Data, EnvSpec, Key, Metrics, Norm, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 1024  # B
    hidden: tuple[int, ...] = (256, 256, 256)
    weights: str = "torch_bias:0.1"  # initialisers, see core.networks.INITIALIZERS
    actor_head_weights: str = "uniform:0.001"
    critic_head_weights: str = "uniform:0.003"
    actor_norm: Literal["none", "before", "after"] = "none"  # LayerNorm beside the activations
    critic_norm: Literal["none", "before", "after"] = "after"
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    discount: float = 0.99  # gamma
    tau: float = 0.005  # Polyak rate of the targets, per actor update
    actor_bc: float = 0.01  # beta_a
    critic_bc: float = 0.01  # beta_c
    normalize_q: bool = True  # False: lambda = 1
    actor_period: int = 2  # critic updates per actor and target update
    target_lag: bool = True  # the actor's target follows the actor as it was one step earlier
    policy_noise: float = 0.2  # sigma of the target policy
    noise_clip: float = 0.5  # c
    exploration: float = 0.1  # sigma of the exploring policy


class Networks(NamedTuple):
    actor: Net  # (params, s f32[B, S]) -> f32[B, A] in [-1, 1]
    critic: Net  # (params, s, a) -> f32[E, B]


class Batch(NamedTuple):
    """Transitions as the networks read them."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A]
    reward: Array  # f32[B]
    next_obs: Array  # f32[B, S]
    terminated: Array  # bool[B]
    next_action: Array  # f32[B, A] a'
    known: Array  # bool[B] whether the data have a'
    weight: Array | None = None  # f32[B] of each row in both losses; None: 1


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    def mlp(out: int, norm: str, head: str, final: str = "identity") -> MLP:
        return MLP((*cfg.hidden, out), final=final, norm=norm, norm_eps=1e-6, weights=cfg.weights, head_weights=head)

    policy = mlp(spec.action_dim, cfg.actor_norm, cfg.actor_head_weights, "tanh")
    critics = ensemble(mlp(1, cfg.critic_norm, cfg.critic_head_weights), 2)
    return Networks(
        Net(policy.init, policy.apply),
        Net(critics.init, lambda params, obs, action: critics.apply(params, obs, action)[..., 0]),
    )


def distance(action: Array, other: Array) -> Array:
    """sum_A (a - b)^2, f32[B] of f32[B, A]."""
    check_shapes(action=action, other=other)
    return jnp.square(action - other).sum(axis=-1)


def penalised_target(state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config) -> Array:
    """y f32[B] by the target networks; noise f32[B, A] standard normal."""
    action = smoothed_action(state, batch, noise, nets, cfg, 1.0)
    q = nets.critic.apply(state.critic_target, batch.next_obs, action).min(axis=0)
    penalty = cfg.critic_bc * jnp.where(batch.known, distance(action, batch.next_action), 0)
    return td_target(batch.reward, batch.terminated, q - penalty, cfg.discount)


def actor_loss(actor_params: PyTree, critic_params: PyTree, batch: Batch, nets: Networks, cfg: Config):
    """L_pi with the critics' current parameters -> (f32[], metrics)."""
    action = nets.actor.apply(actor_params, batch.obs)
    q = nets.critic.apply(critic_params, batch.obs, action).min(axis=0)
    scale = 1 / jax.lax.stop_gradient(jnp.abs(q).mean()) if cfg.normalize_q else jnp.ones_like(q[0])
    bc = distance(action, batch.action)
    loss = mean(cfg.actor_bc * bc - scale * q, batch.weight)
    return loss, {"actor/loss": loss, "actor/bc": bc.mean(), "actor/q": q.mean(), "actor/lambda": scale}


def update_with(state: State, batch: Batch, noise: Array, nets: Networks, cfg: Config) -> tuple[State, Metrics]:
    """One whole update for given draws: noise f32[B, A] standard normal."""
    actor_tx, critic_tx = optimisers(cfg)
    # --- critics ---
    target = penalised_target(state, batch, noise, nets, cfg)
    critic, metrics = optim.step(critic_tx, critic_loss, state.critic, target, batch, nets)
    state = state._replace(critic=critic)

    # --- delayed actor and targets ---
    def late(state):
        actor, metrics = optim.step(actor_tx, actor_loss, state.actor, state.critic.params, batch, nets, cfg)
        followed = state.actor if cfg.target_lag else actor
        actor_target = optim.polyak(state.actor_target, followed.params, cfg.tau)
        critic_target = optim.polyak(state.critic_target, state.critic.params, cfg.tau)
        return state._replace(actor=actor, actor_target=actor_target, critic_target=critic_target), metrics

    state, late_metrics = optim.every(cfg.actor_period, state.step, late, state, first=1)
    metrics = {**metrics, **late_metrics, "critic/target": target.mean()}
    return state._replace(step=state.step + 1), metrics


def to_batch(norm: Norm, t: Transition) -> Batch:
    given = dict(t.extras)
    action, next_action = norm.action(t.action), norm.action(given["next_action"])
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    return Batch(obs, action, t.reward, next_obs, t.terminated, next_action, given["known"], given.get("weight"))


def sampled(batch_size: int, history: int):
    """`core.batches.sampled` with the next row's action: extras "next_action" f32[B, A] and "known" bool[B]."""
    plain = batches.sampled(batch_size, history)

    def sample(data: Data, key: Key) -> Transition:
        t, given = plain(data, key), data.dataset
        row = t.extras["row"]
        action = given.action[row + 1]
        known = (row + 1 < given.last[row]) | (action != 0).any(axis=-1)  # the row of a last state may hold none
        return t._replace(extras={**t.extras, "next_action": action, "known": known})

    return sample


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "rebrac")
    algorithm.require_rates(cfg.discount, cfg.tau)
    require_least(cfg, actor_period=1, actor_bc=0, critic_bc=0, policy_noise=0, noise_clip=0, exploration=0)
    nets = networks(cfg, spec)

    def init(key: Key, start: Start) -> State:
        return first_state(key, start, nets, cfg, spec)

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        noise = jax.random.normal(streams(key, "target_noise").target_noise, batch.action.shape, batch.action.dtype)
        return update_with(state, to_batch(state.norm, batch), noise, nets, cfg)

    act, act_eval = players(nets.actor, cfg.exploration, 1.0)
    value = algorithm.least_q(nets.critic.apply)
    return Algorithm(init, update, act, act_eval, sample=sampled(cfg.batch_size, spec.history), value=value)
