"""QRL: quasimetric reinforcement learning (Wang et al., 2023, arXiv:2304.01203), as in OGBench.

A distance d(s, g) = -V(s, g) that obeys the triangle inequality is pushed apart everywhere, while steps stay short:
    L_far  = mean_B 100 softplus(5 - d(s, g) / 100)       g random
    L_near = mean_B max(0, d(s, s') - 1)^2
    L_d    = L_far + lambda L_near,    L_lambda = lambda (eps - L_near), L_near constant
with d = IQE or MRN of one network's latents (`core.quasimetrics`).  The policy's loss, on goals of its own:
    ddpgbc   of -d(z + f(z, a), z_g), z = phi(s), with a model f of the latents' change, for which
             L_f = mean_B (d(z', z + f(z, a)) + d(z + f(z, a), z')) / 2, which trains phi as well
    awr      of A = d(s, g) - d(s', g)
No reward, no discount, no target.
Reference: OGBench (arXiv:2410.20092).
Axes: B batch, S state, A action, D latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from algos import goal_conditioned as gc
from core import quasimetrics
from core.algorithm import Algorithm
from core.config import ConfigError, require_least
from core.goals import Mixture
from core.losses import mean
from core.networks import Net, float_dtype, plain
from core.types import Array, EnvSpec, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    hidden: tuple[int, ...] = (512, 512, 512)  # of phi and f
    latent: int = 512  # D
    quasimetric: Literal["iqe", "mrn"] = "iqe"
    eps: float = 0.05  # how far L_near may be from 0
    actor_loss: Literal["ddpgbc", "awr"] = "ddpgbc"
    alpha: float = 0.003  # ddpgbc: weight of cloning; awr: inverse temperature
    value_goals: Mixture = field(default_factory=lambda: Mixture(future=0.0, random=1.0))
    actor_goals: Mixture = field(default_factory=Mixture)


class Networks(NamedTuple):
    phi: Net  # (params, s) -> f32[B, D]
    model: Net  # (params, z, a) -> f32[B, D] f; of ddpgbc
    actor: Net  # (params, s, g) -> f32[B, A] means or logits


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    sizes = (*cfg.hidden, cfg.latent)
    return Networks(gc.embedding(cfg, spec, sizes), plain(gc.trunk(sizes)), gc.actor_net(cfg, spec))


def apart(params: PyTree, x: Array, y: Array, cfg: Config) -> Array:
    """d(x, y) f32[B] of latents; IQE's mix is the sigmoid of params["mix"]."""
    if cfg.quasimetric == "mrn":
        return quasimetrics.mrn(x, y)
    return quasimetrics.iqe(x, y, jax.nn.sigmoid(params["mix"]))


def value_loss(params: PyTree, frozen: PyTree, batch: gc.Batch, nets: Networks, cfg: Config) -> tuple[Array, Metrics]:
    """L_d + L_lambda; each takes the other's factor as it is."""
    s, following, g = (nets.phi.apply(params["phi"], x) for x in (batch.obs, batch.next_obs, batch.goal))
    far, near = apart(params, s, g, cfg), apart(params, s, following, cfg)
    far_loss = mean(100 * jax.nn.softplus(5 - far / 100))
    near_loss = mean(jnp.square(jnp.maximum(near - 1, 0)))
    weight, fixed = jnp.exp(params["log_lambda"]), jnp.exp(frozen["log_lambda"])
    distance_loss = far_loss + fixed * near_loss
    weight_loss = weight * (cfg.eps - jax.lax.stop_gradient(near_loss))  # phi must not serve the constraint's price
    loss = distance_loss + weight_loss
    return loss, {
        "loss": loss, "distance_loss": distance_loss, "lambda_loss": weight_loss, "lambda": weight,
        "far_loss": far_loss, "near_loss": near_loss,
        **gc.under("far_", gc.spread(far)), **gc.under("near_", gc.spread(near)),
    }  # fmt: skip


def model_loss(params: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec) -> tuple[Array, Metrics]:
    """L_f."""
    z, reached = (nets.phi.apply(params["phi"], x) for x in (batch.obs, batch.next_obs))
    expected = z + nets.model.apply(params["model"], z, gc.critic_action(spec, batch.action))
    loss = mean(apart(params, reached, expected, cfg) + apart(params, expected, reached, cfg)) / 2
    return loss, {"loss": loss}


def actor_loss(actor_params: PyTree, frozen: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec):
    """The policy's loss -> (f32[], metrics)."""
    pi = gc.policy(spec, nets.actor.apply(actor_params, batch.obs, batch.actor_goal))
    z, goal = (nets.phi.apply(frozen["phi"], x) for x in (batch.obs, batch.actor_goal))

    def q(action: Array) -> Array:
        return -apart(frozen, z + nets.model.apply(frozen["model"], z, action), goal, cfg)

    def advantage() -> Array:
        following = nets.phi.apply(frozen["phi"], batch.next_obs)
        return apart(frozen, z, goal, cfg) - apart(frozen, following, goal, cfg)

    return gc.extraction(cfg, pi, batch.action, q, advantage)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """The sum of all."""
    parts = {
        "value": value_loss(params, frozen, batch, nets, cfg),
        "actor": actor_loss(params["actor"], frozen, batch, nets, cfg, spec),
    }
    if cfg.actor_loss == "ddpgbc":
        parts["model"] = model_loss(params, batch, nets, cfg, spec)
    return gc.total(parts)


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), gc.Batch)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, "qrl")
    gc.require_continuous(cfg, spec, "qrl")
    require_least(cfg, alpha=0, latent=1, eps=0)
    size = quasimetrics.INTERVALS if cfg.quasimetric == "iqe" else 2
    if cfg.latent % size:
        raise ConfigError(f"latent {cfg.latent} must be a multiple of {size} for {cfg.quasimetric}")
    own, (state, action) = parts(cfg, spec), gc.blank(spec)
    nets = own.nets
    zero = jnp.zeros((), float_dtype())
    init = {
        "phi": lambda key: nets.phi.init(key, state),
        "log_lambda": lambda key: zero,
        "actor": lambda key: nets.actor.init(key, state, state),
    }
    if cfg.quasimetric == "iqe":
        init["mix"] = lambda key: zero
    if cfg.actor_loss == "ddpgbc":
        init["model"] = lambda key: nets.model.init(key, jnp.zeros((1, cfg.latent), float_dtype()), action)
    return gc.assemble(
        cfg, spec, own, init=init,
        sample=gc.sampled(cfg, spec, cfg.value_goals, cfg.actor_goals),
        play=gc.flat_play(nets.actor, spec),
        value=lambda params, s, g: -apart(
            params, nets.phi.apply(params["phi"], s), nets.phi.apply(params["phi"], g), cfg
        ),
        value_at=lambda d: -d,
    )  # fmt: skip
