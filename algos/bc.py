"""Behaviour cloning of continuous actions.

    mse:       L = mean_{B,A} (pi(s) - a)^2,     pi = tanh(MLP(s))
    gaussian:  L = -mean_B log N(a; mu(s), diag(std(s)^2)),  mu = tanh(MLP(s))

The Gaussian acts by its mean when judged and by a sample when exploring.  Images go through an IMPALA encoder.
Axes: B batch, S state, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core import algorithm, batches, optim
from core.algorithm import Algorithm, as_input
from core.config import choose
from core.distributions import Gaussian
from core.losses import mse
from core.networks import MLP, encoder, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Config(algorithm.Config):
    state_norm: Literal["none", "standard", "minmax"] = "standard"
    hidden: tuple[int, ...] = (256, 256)
    weights: str = "torch"  # initialiser of every layer, see core.networks.INITIALIZERS
    layer_norm: Literal["none", "before", "after"] = "none"  # beside the activation
    encoder: str = "impala_small"  # of images; states need none
    loss: Literal["mse", "gaussian"] = "mse"
    log_std_min: float = -5.0  # bounds of the Gaussian's log std
    log_std_max: float = 2.0
    lr: float = 3e-4
    weight_decay: float = 0.0  # of AdamW
    max_norm: float = 0.0  # clip of the gradient's global norm; 0 for none
    exploration: float = 0.1  # sigma of the exploring policy under mse


class State(NamedTuple):
    actor: Trained
    norm: Norm
    step: Array  # i32[] updates done


class Policy(nn.Module):
    """s f32[..., S] or uint8[..., H, W, C] -> Gaussian over normalised actions [..., A]; under mse log_std is 0."""

    cfg: Config
    action_dim: int
    pixels: bool

    @nn.compact
    def __call__(self, obs: Array) -> Gaussian:
        cfg = self.cfg
        heads = 2 if cfg.loss == "gaussian" else 1
        x = encoder(cfg.encoder)(obs) if self.pixels else obs
        x = MLP((*cfg.hidden, heads * self.action_dim), norm=cfg.layer_norm, weights=cfg.weights)(x)
        if heads == 1:
            return Gaussian(jnp.tanh(x), jnp.zeros((), x.dtype))
        mean, log_std = jnp.split(x, 2, axis=-1)
        return Gaussian(jnp.tanh(mean), jnp.clip(log_std, cfg.log_std_min, cfg.log_std_max))


def actor_loss(params: PyTree, obs: Array, action: Array, policy: Policy) -> tuple[Array, Metrics]:
    """L for normalised obs [B, ...] and action f32[B, A]."""
    law = policy.apply(params, obs)
    squared = mse(law.mode(), action)
    loss = squared if policy.cfg.loss == "mse" else -law.log_prob(action).mean()
    return loss, {"actor/loss": loss, "actor/mse": squared}


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete or chunked tasks; UnknownName for a bad option."""
    algorithm.require(spec, "bc", pixels=True)
    choose("loss", cfg.loss, {"mse": 1, "gaussian": 2})
    policy = Policy(cfg, spec.action_dim, spec.pixels)
    tx = optim.adam(cfg.lr, weight_decay=cfg.weight_decay, max_norm=cfg.max_norm)

    def init(key: Key, start: Start) -> State:
        obs = jnp.zeros((1, *spec.obs_shape), jnp.uint8 if spec.pixels else float_dtype())
        params = policy.init(streams(key, "actor").actor, obs)
        return State(optim.start(tx, params), start.norm, jnp.zeros((), jnp.int32))

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        obs, action = as_input(state.norm, batch.obs), state.norm.action(batch.action)
        actor, metrics = optim.step(tx, actor_loss, state.actor, obs, action, policy)
        return state._replace(actor=actor, step=state.step + 1), metrics

    def law(state: State, obs: Observation) -> Gaussian:
        return policy.apply(state.actor.params, as_input(state.norm, obs))

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        given = law(state, obs)
        given = given if cfg.loss == "gaussian" else given._replace(log_std=jnp.log(cfg.exploration))
        action = given.sample(jax.random.normal(key, given.mean.shape, given.mean.dtype))
        return ActOut(state.norm.raw_action(jnp.clip(action, -1, 1)), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(state.norm.raw_action(law(state, obs).mode()), carry)

    return Algorithm(init, update, act, act_eval, sample=batches.sampled(cfg.batch_size, spec.history))
