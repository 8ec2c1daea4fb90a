"""GCIQL: goal-conditioned implicit Q-learning (Kostrikov et al., 2021, arXiv:2110.06169), as in OGBench.

With u = min_e Q'_e(s, a, g) - V(s, g):
    L_V = mean_B |tau - 1{u < 0}| u^2
    L_Q = mean_B sum_e (Q_e(s, a, g) - r - gamma mask V(s', g))^2      of the current V: only Q has a target
and the policy's loss, on goals of its own:
    ddpgbc   -mean Q / |Q| - alpha mean log pi(a|s, g),   Q = min_e Q_e(s, clip(mean of pi), g)
    awr      -mean min(exp(alpha A), 100) log pi(a|s, g), A = min_e Q_e(s, a, g) - V(s, g)
Reference: OGBench (arXiv:2410.20092).
Axes: B batch, S state, A action, E = 2 critics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from algos import goal_conditioned as gc
from core.algorithm import Algorithm
from core.config import require_least
from core.goals import Mixture
from core.losses import ensemble_mse, expectile, mean
from core.networks import Net
from core.types import Array, EnvSpec, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    hidden: tuple[int, ...] = (512, 512, 512)  # of Q and V
    tau: float = 0.005  # rate of Q's target
    expectile: float = 0.9
    actor_loss: Literal["ddpgbc", "awr"] = "ddpgbc"
    alpha: float = 0.3  # ddpgbc: weight of cloning; awr: inverse temperature
    value_goals: Mixture = field(default_factory=lambda: gc.VALUE_GOALS)
    actor_goals: Mixture = field(default_factory=Mixture)


class Networks(NamedTuple):
    value: Net  # (params, s, g) -> f32[B]
    critic: Net  # (params, s, g, a) -> f32[E, B]
    actor: Net  # (params, s, g) -> f32[B, A] means or logits


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    value, critic = (gc.value_net(cfg, spec, cfg.hidden, heads) for heads in (1, 2))
    return Networks(value, critic, gc.actor_net(cfg, spec))


def value_loss(
    value_params: PyTree, critic_target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
):
    """L_V -> (f32[], metrics)."""
    action = gc.critic_action(spec, batch.action)
    q = nets.critic.apply(critic_target, batch.obs, batch.goal, action).min(axis=0)
    value = nets.value.apply(value_params, batch.obs, batch.goal)
    loss = mean(expectile(q - value, cfg.expectile))
    return loss, {"loss": loss, **gc.spread(value)}


def critic_loss(
    critic_params: PyTree, value_params: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
):
    """L_Q -> (f32[], metrics)."""
    q = nets.critic.apply(critic_params, batch.obs, batch.goal, gc.critic_action(spec, batch.action))
    following = nets.value.apply(value_params, batch.next_obs, batch.goal)
    target = batch.reward + cfg.discount * batch.mask * following
    loss = ensemble_mse(q, target)
    return loss, {"loss": loss, "q": q.mean(), **gc.under("target_", gc.spread(target))}


def actor_loss(actor_params: PyTree, frozen: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec):
    """The policy's loss -> (f32[], metrics)."""
    pi = gc.policy(spec, nets.actor.apply(actor_params, batch.obs, batch.actor_goal))

    def q(action: Array) -> Array:
        return nets.critic.apply(frozen["critic"], batch.obs, batch.actor_goal, action).min(axis=0)

    def advantage() -> Array:
        value = nets.value.apply(frozen["value"], batch.obs, batch.actor_goal)
        return q(gc.critic_action(spec, batch.action)) - value

    return gc.extraction(cfg, pi, batch.action, q, advantage)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: gc.Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """The sum of all three."""
    return gc.total({
        "value": value_loss(params["value"], target["critic"], batch, nets, cfg, spec),
        "critic": critic_loss(params["critic"], frozen["value"], batch, nets, cfg, spec),
        "actor": actor_loss(params["actor"], frozen, batch, nets, cfg, spec),
    })  # fmt: skip


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), gc.Batch, ("critic",))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, "gciql")
    gc.require_continuous(cfg, spec, "gciql")
    require_least(cfg, alpha=0)
    own, (state, action) = parts(cfg, spec), gc.blank(spec)
    nets = own.nets
    return gc.assemble(
        cfg, spec, own,
        init={
            "value": lambda key: nets.value.init(key, state, state),
            "critic": lambda key: nets.critic.init(key, state, state, action),
            "actor": lambda key: nets.actor.init(key, state, state),
        },
        sample=gc.sampled(cfg, spec, cfg.value_goals, cfg.actor_goals),
        play=gc.flat_play(nets.actor, spec),
        value=lambda params, s, g: nets.value.apply(params["value"], s, g),
    )  # fmt: skip
