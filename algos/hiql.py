"""HIQL: hierarchical implicit Q-learning (Park et al., 2023, arXiv:2307.11949), as in OGBench.

One V and two policies drawn from it.  A goal is read with the state that it is seen from, as z = phi([s; g]) of length
sqrt(D); phi is shared by V, its target and the lower policy, and has no slow copy of its own.
    L_V    expectile regression of V_e(s, phi([s; g])), `goal_conditioned.implicit_value`, which trains phi
    L_low  AWR of log pi_low(a | s, phi([s; w])), w the state k steps on,        A = V(s', w) - V(s, w)
    L_high AWR of log pi_high(phi([s; h]) | s, g), h on the way to g, k steps on, A = V(h, g) - V(s, g)
with V the mean of its heads.  phi learns from L_low only where `low_rep_grad` says so, never from L_high.
To act, z is drawn from pi_high, brought to length sqrt(D) again, and handed to pi_low: a new one every step.
All three are trained together, where the paper presents them one after the other: no loss but L_V reaches V.
Reference: OGBench (arXiv:2410.20092).
Axes: B batch, S state, A action, D representation, E = 2 heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp

from algos import goal_conditioned as gc
from core import goals
from core.algorithm import Algorithm
from core.config import require_least
from core.distributions import Gaussian
from core.goals import Mixture
from core.networks import Net, float_dtype, unit_length
from core.rng import streams
from core.types import Array, Dataset, EnvSpec, Key, Metrics, PyTree


@dataclass(frozen=True)
class Config(gc.Config):
    hidden: tuple[int, ...] = (512, 512, 512)  # of V and phi
    rep_dim: int = 10  # D
    tau: float = 0.005  # rate of V's target
    expectile: float = 0.7
    low_alpha: float = 3.0  # inverse temperature of the lower policy's weights
    high_alpha: float = 3.0  # of the upper one's
    subgoal_steps: int = 25  # k
    low_rep_grad: Literal["pixels", "always", "never"] = "pixels"  # where L_low trains phi
    value_goals: Mixture = field(default_factory=lambda: gc.VALUE_GOALS)
    high_random: float = 0.0  # probability that the upper policy's goal is a random state; else a later one
    high_geometric: bool = False  # how much later: by the discount; else uniformly


class Batch(NamedTuple):
    """Transitions as the networks read them; all goals are states."""

    obs: Array  # f32[B, S] or u8[B, H, W, C]
    action: Array  # f32[B, A] or i32[B]
    reward: Array  # f32[B] success - 1
    mask: Array  # f32[B] 1 - success
    next_obs: Array
    goal: Array  # of V
    low_goal: Array  # w
    high_goal: Array  # g of the upper policy
    high_target: Array  # h


class Networks(NamedTuple):
    rep: Net  # (params, s, g) -> f32[B, D] phi
    value: Net  # (params, s, z) -> f32[E, B]
    low: Net  # (params, s, z) -> f32[B, A] means or logits
    high: Net  # (params, s, g) -> f32[B, D] means


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    plain = gc.embedding(cfg, spec, (*cfg.hidden, cfg.rep_dim), images=2)
    return Networks(
        Net(plain.init, lambda params, *inputs: unit_length(plain.apply(params, *inputs))),
        gc.value_net(cfg, spec, cfg.hidden, images=1),
        gc.actor_net(cfg, spec, images=1),
        gc.actor_net(cfg, spec, cfg.rep_dim),
    )


def value(value_params: PyTree, rep_params: PyTree, obs: Array, goal: Array, nets: Networks) -> Array:
    """V_e(s, phi([s; g])) f32[E, B]."""
    return nets.value.apply(value_params, obs, nets.rep.apply(rep_params, obs, goal))


def value_loss(
    value_params: PyTree,
    rep_params: PyTree,
    fixed_rep: PyTree,
    target: PyTree,
    batch: Batch,
    nets: Networks,
    cfg: Config,
) -> tuple[Array, Metrics]:
    """L_V; the target reads goals by phi as it is now, without a gradient."""
    now, following = (value(target, fixed_rep, s, batch.goal, nets) for s in (batch.obs, batch.next_obs))
    own = value(value_params, rep_params, batch.obs, batch.goal, nets)
    return gc.implicit_value(own, now, following, batch.reward, batch.mask, cfg.discount, cfg.expectile)


def gain(value_params: PyTree, rep_params: PyTree, since: Array, until: Array, goal: Array, nets: Networks) -> Array:
    """mean_e V_e(until, goal) - mean_e V_e(since, goal), f32[B]."""
    before, after = (value(value_params, rep_params, s, goal, nets).mean(axis=0) for s in (since, until))
    return after - before


def low_loss(
    low_params: PyTree, rep_params: PyTree, frozen: PyTree, batch: Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """L_low; rep_params: phi where it learns from this, else frozen."""
    advantage = gain(frozen["value"], frozen["rep"], batch.obs, batch.next_obs, batch.low_goal, nets)
    z = nets.rep.apply(rep_params, batch.obs, batch.low_goal)
    pi = gc.policy(spec, nets.low.apply(low_params, batch.obs, z))
    return gc.awr(pi, batch.action, advantage, cfg.low_alpha)


def high_loss(
    high_params: PyTree, value_params: PyTree, rep_params: PyTree, batch: Batch, nets: Networks, cfg: Config
) -> tuple[Array, Metrics]:
    """L_high with the given V and phi, both frozen."""
    advantage = gain(value_params, rep_params, batch.obs, batch.high_target, batch.high_goal, nets)
    named = nets.rep.apply(rep_params, batch.obs, batch.high_target)
    pi = Gaussian(nets.high.apply(high_params, batch.obs, batch.high_goal), 0.0)
    return gc.awr(pi, named, advantage, cfg.high_alpha)


def trains_rep(cfg: Config, spec: EnvSpec) -> bool:
    """Whether phi learns from L_low."""
    return cfg.low_rep_grad == "always" or (cfg.low_rep_grad == "pixels" and spec.pixels)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: Batch, nets: Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """L_V + L_low + L_high."""
    rep = params["rep"] if trains_rep(cfg, spec) else frozen["rep"]
    return gc.total({
        "value": value_loss(params["value"], params["rep"], frozen["rep"], target["value"], batch, nets, cfg),
        "low": low_loss(params["low"], rep, frozen, batch, nets, cfg, spec),
        "high": high_loss(params["high"], frozen["value"], frozen["rep"], batch, nets, cfg),
    })  # fmt: skip


def play(nets: Networks, spec: EnvSpec):
    """How both policies act: see `goal_conditioned.assemble`."""

    def act(params: PyTree, obs: Array, goal: Array, key: Key, temperature: float) -> Array:
        keys = streams(key, "high", "low")
        named = gc.sample_at(Gaussian(nets.high.apply(params["high"], obs, goal), 0.0), keys.high, temperature)
        pi = gc.policy(spec, nets.low.apply(params["low"], obs, unit_length(named)))
        return gc.sample_at(pi, keys.low, temperature)

    return act


def drawn(cfg: Config, dataset: Dataset, row: Array, key: Key) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Goals of V and of both policies, as `core.goals.sampled` takes them."""
    keys = streams(key, "value", "policies")
    goal = goals.draw(dataset, row, keys.value, cfg.value_goals, cfg.discount)
    ahead = cfg.discount if cfg.high_geometric else None
    sub = goals.subgoals(dataset, row, keys.policies, cfg.subgoal_steps, cfg.high_random, ahead)
    return goal, {"low_goal": sub.low, "high_goal": sub.goal, "high_target": sub.target}, {}


def check(cfg: Config, spec: EnvSpec, name: str) -> None:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    gc.check(cfg, spec, name)
    require_least(cfg, low_alpha=0, high_alpha=0, subgoal_steps=1, rep_dim=1)
    goals.check(Mixture(future=1 - cfg.high_random, random=cfg.high_random, geometric=cfg.high_geometric), cfg.discount)


def initial(nets: Networks, cfg: Config, spec: EnvSpec):
    """Parameters by the networks' names, of keys."""
    state, _ = gc.blank(spec)
    z = jnp.zeros((1, cfg.rep_dim), float_dtype())
    return {
        "rep": lambda key: nets.rep.init(key, state, state),
        "value": lambda key: nets.value.init(key, state, z),
        "low": lambda key: nets.low.init(key, state, z),
        "high": lambda key: nets.high.init(key, state, state),
    }


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, networks(cfg, spec), Batch, ("value",))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    check(cfg, spec, "hiql")
    own = parts(cfg, spec)
    nets = own.nets
    return gc.assemble(
        cfg, spec, own, init=initial(nets, cfg, spec),
        sample=goals.sampled(cfg.batch_size, partial(drawn, cfg), spec.history, cfg.last_alone),
        play=play(nets, spec),
        value=lambda params, s, g: value(params["value"], params["rep"], s, g, nets).mean(axis=0),
    )  # fmt: skip
