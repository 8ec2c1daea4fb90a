"""OTA: option-aware temporally abstracted value (Ahn et al., 2025, arXiv:2505.12737).

HIQL with a second V for the upper policy, V^h, which counts options of n steps instead of steps, so that its horizon is
n times shorter.  Omega is the state n steps on, at the goal or at the episode's end, what comes first:
    L_Vh   expectile regression of V^h_e(s, phi([s; g])) to R + gamma M V^h'_e(Omega, phi([Omega; g])),
           R = 1{Omega = g} - 1, M = 1 - 1{Omega = g}; gamma, not gamma^n
    L_high as HIQL's with V^h
and L_V, L_low as HIQL's.  phi is one for all.  Success is tested on Omega, so at the distance d
    V^h(s, g) -> -(1 - gamma^(ceil(d / n) - 1)) / (1 - gamma)
which for n = 1 is one step less than HIQL's.
The authors' code crops all pictures but those of L_Vh; `crop_options` crops them as well, as is surely meant.
Axes: B batch, S state, A action, D representation, E = 2 heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from algos import goal_conditioned as gc
from algos import hiql
from core import goals
from core.algorithm import Algorithm
from core.config import ConfigError, require_least
from core.rng import streams
from core.types import Array, Dataset, EnvSpec, Key, Metrics, PyTree


@dataclass(frozen=True)
class Config(hiql.Config):
    abstraction: int = 5  # n
    high_discount: float = 0.0  # gamma of V^h; 0: as the other
    crop_options: bool = True  # pictures: Omega and its goals are cropped with the others


class Batch(NamedTuple):
    """HIQL's, and what V^h reads."""

    obs: Array
    action: Array
    reward: Array
    mask: Array
    next_obs: Array
    goal: Array
    low_goal: Array
    high_goal: Array
    high_target: Array
    option_end: Array  # Omega, a state
    option_goal: Array  # g of V^h
    option_reward: Array  # f32[B] R
    option_mask: Array  # f32[B] M


def option_loss(
    params: PyTree,
    rep_params: PyTree,
    fixed_rep: PyTree,
    target: PyTree,
    batch: Batch,
    nets: hiql.Networks,
    cfg: Config,
) -> tuple[Array, Metrics]:
    """L_Vh of params."""
    goal, discount = batch.option_goal, cfg.high_discount or cfg.discount
    now, following = (hiql.value(target, fixed_rep, s, goal, nets) for s in (batch.obs, batch.option_end))
    own = hiql.value(params, rep_params, batch.obs, goal, nets)
    return gc.implicit_value(own, now, following, batch.option_reward, batch.option_mask, discount, cfg.expectile)


def loss(
    params: PyTree, frozen: PyTree, target: PyTree, batch: Batch, nets: hiql.Networks, cfg: Config, spec: EnvSpec
) -> tuple[Array, Metrics]:
    """L_V + L_Vh + L_low + L_high."""
    rep = params["rep"] if hiql.trains_rep(cfg, spec) else frozen["rep"]
    both = params["rep"], frozen["rep"]
    return gc.total({
        "value": hiql.value_loss(params["value"], *both, target["value"], batch, nets, cfg),
        "option": option_loss(params["option"], *both, target["option"], batch, nets, cfg),
        "low": hiql.low_loss(params["low"], rep, frozen, batch, nets, cfg, spec),
        "high": hiql.high_loss(params["high"], frozen["option"], frozen["rep"], batch, nets, cfg),
    })  # fmt: skip


def drawn(cfg: Config, dataset: Dataset, row: Array, key: Key) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """HIQL's goals, and an option with its own."""
    keys = streams(key, "option", "others")
    goal, states, given = hiql.drawn(cfg, dataset, row, keys.others)
    option = goals.option(dataset, row, keys.option, cfg.value_goals, cfg.abstraction, cfg.discount)
    reward = goals.reward(option.end == option.goal)
    more = {"option_end": option.end, "option_goal": option.goal}
    return goal, {**states, **more}, {**given, "option_reward": reward, "option_mask": -reward}


def parts(cfg: Config, spec: EnvSpec) -> gc.Parts:
    return gc.Parts(loss, hiql.networks(cfg, spec), Batch, ("value", "option"))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks whose goals are no states, and for options out of range."""
    hiql.check(cfg, spec, "ota")
    require_least(cfg, abstraction=1)
    if not 0 <= cfg.high_discount <= 1:
        raise ConfigError(f"high_discount {cfg.high_discount} must lie in [0, 1]")
    own = parts(cfg, spec)
    nets = own.nets
    if not cfg.crop_options and not cfg.crop:
        raise ConfigError("crop_options is about cropped pictures: set crop above 0 or leave it out")
    first = hiql.initial(nets, cfg, spec)
    return gc.assemble(
        cfg, spec, own, init={**first, "option": first["value"]},
        sample=goals.sampled(cfg.batch_size, partial(drawn, cfg), spec.history, cfg.last_alone),
        play=hiql.play(nets, spec),
        value=lambda params, s, g: hiql.value(params["option"], params["rep"], s, g, nets).mean(axis=0),
        value_at=lambda d: gc.discounted_steps(cfg.high_discount or cfg.discount, math.ceil(d / cfg.abstraction) - 1),
        uncropped=() if cfg.crop_options else ("option_end", "option_goal"),
    )  # fmt: skip
