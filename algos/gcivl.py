"""GCIVL: goal-conditioned implicit V-learning, as in OGBench (Park et al., 2024, arXiv:2410.20092).

IQL (arXiv:2110.06169) without a Q: V is regressed, by expectiles, to r + gamma V' of the data's own next states
(`goal_conditioned.implicit_value`), which is right where they follow for certain.
    A    = mean_e V_e(s', g) - mean_e V_e(s, g)
    L_pi = -mean_B min(exp(alpha A), 100) log pi(a|s, g)
A is of the current V: no reward and no discount in it.
Axes: B batch, S state, A action, E = 2 heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from algos import goal_conditioned as gc
from core.algorithm import Algorithm
from core.config import require_least
from core.goals import Mixture
from core.networks import Net
from core.types import Array, EnvSpec, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    hidden: tuple[int, ...] = (512, 512, 512)  # of V
    tau: float = 0.005  # rate of V's target
    expectile: float = 0.9
    alpha: float = 10.0  # inverse temperature of the policy's weights
    value_goals: Mixture = field(default_factory=lambda: gc.VALUE_GOALS)
    actor_goals: Mixture = field(default_factory=Mixture)


class Networks(NamedTuple):
    value: Net  # (params, s, g) -> f32[E, B]
    actor: Net  # (params, s, g) -> f32[B, A] means or logits


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    return Networks(gc.value_net(cfg, spec, cfg.hidden), gc.actor_net(cfg, spec))


def value_loss(value_params: PyTree, target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config):
    """L_V -> (f32[], metrics)."""
    value = nets.value.apply(value_params, batch.obs, batch.goal)
    now, following = (nets.value.apply(target, s, batch.goal) for s in (batch.obs, batch.next_obs))
    return gc.implicit_value(value, now, following, batch.reward, batch.mask, cfg.discount, cfg.expectile)


def actor_loss(actor_params: PyTree, value_params: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec):
    """L_pi -> (f32[], metrics)."""
    now, following = (nets.value.apply(value_params, s, batch.actor_goal).mean(0) for s in (batch.obs, batch.next_obs))
    pi = gc.policy(spec, nets.actor.apply(actor_params, batch.obs, batch.actor_goal))
    return gc.awr(pi, batch.action, following - now, cfg.alpha)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """L_V + L_pi."""
    return gc.total({
        "value": value_loss(params["value"], target["value"], batch, nets, cfg),
        "actor": actor_loss(params["actor"], frozen["value"], batch, nets, cfg, spec),
    })  # fmt: skip


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), gc.Batch, ("value",))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, "gcivl")
    require_least(cfg, alpha=0)
    own, (state, _) = parts(cfg, spec), gc.blank(spec)
    nets = own.nets
    return gc.assemble(
        cfg, spec, own,
        init={name: lambda key, net=net: net.init(key, state, state) for name, net in nets._asdict().items()},
        sample=gc.sampled(cfg, spec, cfg.value_goals, cfg.actor_goals),
        play=gc.flat_play(nets.actor, spec),
        value=lambda params, s, g: nets.value.apply(params["value"], s, g).mean(axis=0),
    )  # fmt: skip
