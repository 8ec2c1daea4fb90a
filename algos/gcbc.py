"""GCBC: goal-conditioned behaviour cloning (Lynch et al., 2019; Ghosh et al., 2019, arXiv:1912.06088).

    L = -mean_B log pi(a|s, g),    g a later state of the episode
As in OGBench (arXiv:2410.20092); networks and conventions are those of `goal_conditioned.py`.
Axes: B batch, S state, A action.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from algos import goal_conditioned as gc
from core import goals
from core.algorithm import Algorithm
from core.goals import Mixture
from core.networks import Net
from core.types import Array, EnvSpec, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    actor_goals: Mixture = field(default_factory=Mixture)


class Networks(NamedTuple):
    actor: Net  # (params, s, g) -> f32[B, A] means or logits


class Batch(NamedTuple):
    obs: Array  # f32[B, S] or u8[B, H, W, C]
    action: Array  # f32[B, A] or i32[B]
    goal: Array  # as obs


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    return Networks(gc.actor_net(cfg, spec))


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """L."""
    cloned = gc.cloning(gc.policy(spec, nets.actor.apply(params["actor"], batch.obs, batch.goal)), batch.action)
    return -cloned["log_prob"], gc.under("actor/", {"loss": -cloned["log_prob"], **cloned})


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), Batch)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, "gcbc")
    own, (state, _) = parts(cfg, spec), gc.blank(spec)
    nets = own.nets

    def of(dataset, row, key):
        return goals.draw(dataset, row, key, cfg.actor_goals, cfg.discount), {}, {}

    return gc.assemble(
        cfg, spec, own,
        init={"actor": lambda key: nets.actor.init(key, state, state)},
        sample=goals.sampled(cfg.batch_size, of, spec.history, cfg.last_alone),
        play=gc.flat_play(nets.actor, spec),
    )  # fmt: skip
