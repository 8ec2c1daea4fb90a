"""CRL: contrastive reinforcement learning (Eysenbach et al., 2022, arXiv:2206.07568), as in OGBench.

The critic says which later state belongs to which state and action, among those of the batch:
    l_ije = phi_e(s_i, a_i) . psi_e(g_j) / sqrt(D)
    L_Q   = mean_ije BCE(sigmoid(l_ije), 1{i = j}),    g_j geometrically later than row j
and Q_e(s_i, a_i, g_i) = l_iie, the logarithm of a ratio of densities up to a constant.  No reward, no target.
The policy's loss, on goals of its own, is ddpgbc or awr of `gciql.py` with Q = min_e Q_e; awr also learns a V, the same
contrast of one phi(s) and psi(g).
Reference: OGBench (arXiv:2410.20092).
Axes: B batch, S state, A action, D latent, E = 2 critics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax

from algos import goal_conditioned as gc
from core.algorithm import Algorithm
from core.config import require_least
from core.goals import Mixture
from core.losses import check_shapes
from core.networks import Net
from core.types import Array, EnvSpec, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    hidden: tuple[int, ...] = (512, 512, 512)  # of phi and psi
    latent: int = 512  # D
    actor_loss: Literal["ddpgbc", "awr"] = "ddpgbc"
    alpha: float = 0.1  # ddpgbc: weight of cloning; awr: inverse temperature
    value_goals: Mixture = field(default_factory=lambda: Mixture(geometric=True))
    actor_goals: Mixture = field(default_factory=Mixture)


class Networks(NamedTuple):
    phi: Net  # (params, s, a) -> f32[E, B, D]
    psi: Net  # (params, g) -> f32[E, B, D]
    value_phi: Net  # (params, s) -> f32[B, D]; of awr, as the next
    value_psi: Net  # (params, g) -> f32[B, D]
    actor: Net  # (params, s, g) -> f32[B, A] means or logits


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    sizes = (*cfg.hidden, cfg.latent)
    two, one = (gc.embedding(cfg, spec, sizes, heads) for heads in (2, 1))
    return Networks(two, two, one, one, gc.actor_net(cfg, spec))


def agreement(phi: Array, psi: Array) -> Array:
    """phi . psi / sqrt(D) of f32[..., B, D], row by row -> f32[..., B]."""
    check_shapes(phi=phi, psi=psi)
    return (phi * psi).sum(axis=-1) / jnp.sqrt(phi.shape[-1])


def contrast(phi: Array, psi: Array) -> tuple[Array, Metrics]:
    """Mean over all pairs and members of the cross-entropy: f32[E, B, D] each -> (f32[], metrics)."""
    check_shapes(phi=phi, psi=psi)
    logits = jnp.einsum("eid,ejd->eij", phi, psi) / jnp.sqrt(phi.shape[-1])
    same = jnp.eye(phi.shape[1], dtype=logits.dtype)
    loss = optax.sigmoid_binary_cross_entropy(logits, jnp.broadcast_to(same, logits.shape)).mean()
    average = logits.mean(axis=0)  # f32[B, B]
    return loss, {
        "loss": loss,
        "logit": average.mean(),
        "own_logit": (average * same).sum() / same.sum(),
        "other_logit": (average * (1 - same)).sum() / jnp.maximum((1 - same).sum(), 1),
        "accuracy": ((average > 0) == same).mean(),
        "top": (average.argmax(axis=1) == jnp.arange(len(same))).mean(),
    }


def critic_loss(params: PyTree, batch: gc.Batch, nets: Networks, spec: EnvSpec) -> tuple[Array, Metrics]:
    """L_Q of params {"phi", "psi"}."""
    action = gc.critic_action(spec, batch.action)
    return contrast(nets.phi.apply(params["phi"], batch.obs, action), nets.psi.apply(params["psi"], batch.goal))


def value_loss(params: PyTree, batch: gc.Batch, nets: Networks) -> tuple[Array, Metrics]:
    """The same for V, params {"value_phi", "value_psi"}."""
    phi = nets.value_phi.apply(params["value_phi"], batch.obs)
    return contrast(phi[None], nets.value_psi.apply(params["value_psi"], batch.goal)[None])


def actor_loss(actor_params: PyTree, frozen: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec):
    """The policy's loss -> (f32[], metrics)."""
    pi = gc.policy(spec, nets.actor.apply(actor_params, batch.obs, batch.actor_goal))
    psi = nets.psi.apply(frozen["psi"], batch.actor_goal)

    def q(action: Array) -> Array:
        return agreement(nets.phi.apply(frozen["phi"], batch.obs, action), psi).min(axis=0)

    def advantage() -> Array:
        phi = nets.value_phi.apply(frozen["value_phi"], batch.obs)
        value = agreement(phi, nets.value_psi.apply(frozen["value_psi"], batch.actor_goal))
        return q(gc.critic_action(spec, batch.action)) - value

    return gc.extraction(cfg, pi, batch.action, q, advantage)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """The sum of all."""
    parts = {
        "critic": critic_loss(params, batch, nets, spec),
        "actor": actor_loss(params["actor"], frozen, batch, nets, cfg, spec),
    }
    if cfg.actor_loss == "awr":
        parts["value"] = value_loss(params, batch, nets)
    return gc.total(parts)


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), gc.Batch)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, "crl")
    gc.require_continuous(cfg, spec, "crl")
    require_least(cfg, alpha=0, latent=1)
    own, (state, action) = parts(cfg, spec), gc.blank(spec)
    nets = own.nets
    init = {
        "phi": lambda key: nets.phi.init(key, state, action),
        "psi": lambda key: nets.psi.init(key, state),
        "actor": lambda key: nets.actor.init(key, state, state),
    }
    if cfg.actor_loss == "awr":
        init["value_phi"] = lambda key: nets.value_phi.init(key, state)
        init["value_psi"] = lambda key: nets.value_psi.init(key, state)
    return gc.assemble(
        cfg, spec, own, init=init,
        sample=gc.sampled(cfg, spec, cfg.value_goals, cfg.actor_goals),
        play=gc.flat_play(nets.actor, spec),
    )  # fmt: skip
