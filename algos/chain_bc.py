"""Behaviour cloning by flow and diffusion policies: chains of denoising steps from Gaussian noise to an action chunk.

    reflow:     L = mean (v(x_t, t, s) - (x_1 - x_0))^2,   x_t = (1 - t) x_0 + t x_1               arXiv:2209.03003
    shortcut:   reflow at span 0; a share of rows fits v(x_t, t, s; D) to two steps of D / 2       arXiv:2410.12557
    meanflow:   u(x_t, t, s; r - t) fitted to v + (r - t) du/dt along the path                     arXiv:2505.13447
    gaussian:   L = mean (pi(s) - x_1)^2, the mean of a Gaussian: a chain of one step, the control of the comparison
    diffusion:  L = mean (eps(x_k, k, s) - eps)^2, cosine schedule; or the clean chunk is predicted  arXiv:2006.11239
by AdamW; the policy acts with an exponential moving average of the weights, and fine-tuning starts from it.
Published values and updates are those of ReinFlow's and DPPO's code, except where said: flows ask for velocities at
k / K (the official ones sample at linspace(0, 1, K): `denoising.grid inclusive`); spans of shortcuts are 2^-b with b
up to 4, as the paper means it (the official bound is 18: `fit.shortcut_highest`); batches are drawn with replacement,
and no episode is skipped (theirs leave out those of a return of 0 or less).  Their code has no mean flow.
Axes: B batch, S state, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, augment, batches, chunk_policy, dataset, diffusion, flow, optim
from core.algorithm import Algorithm
from core.chain import Regression
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, choose, require_choices
from core.losses import mse
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Fit:
    """What a policy's network is fitted to."""

    times: Literal["uniform", "logitnormal", "beta"] = "uniform"  # flows: law of t
    shortcut_share: float = 0.25  # of the rows, self-consistent
    shortcut_highest: int = 4  # b is drawn from 0 to this
    shortcut_delta: float = 1e-5  # share of the noise left at t = 1
    meanflow_instant: float = 0.75  # share of the rows with r = t


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 128
    state_norm: Literal["none", "standard", "minmax"] = "minmax"
    action_norm: Literal["none", "minmax"] = "minmax"
    net: PolicyNet = field(default_factory=PolicyNet)
    fit: Fit = field(default_factory=Fit)
    denoising: Denoising = field(default_factory=Denoising)
    augment: int = 0  # images are shifted at random by up to this many pixels; 0: not
    lr: float = 1e-3
    lr_min: float = 1e-4  # at the end of a cycle, and where it warms up at its beginning
    lr_cycle: int = 0  # updates of a cosine cycle; 0: constant
    lr_warmup: int = 0  # of those, from lr_min to lr
    weight_decay: float = 1e-6
    ema_rate: float = 0.995  # per blending
    ema_every: int = 10  # updates between blendings
    ema_start: int = 2_000  # updates during which the average only copies


class State(NamedTuple):
    net: Trained  # params of `Policy`
    ema: PyTree  # moving average of the params: what acts
    norm: Norm
    step: Array  # i32[] updates done


def regression(params: PyTree, state: Array, x1: Array, key: Key, given: Policy, options: Fit) -> Regression:
    """What one update fits: chunks x1 f32[B, H, A] of states f32[B, S], noised; targets take no gradient."""
    keys, size, family = streams(key, "noise", "time", "rows"), len(x1), given.options.family
    if family == "gaussian":
        zero = jnp.zeros(size, x1.dtype)
        return Regression(jnp.zeros_like(x1), zero, zero, x1)
    x0 = jax.random.normal(keys.noise, x1.shape, x1.dtype)
    if family == "diffusion":
        k = jax.random.randint(keys.time, (size,), 0, given.options.levels)
        return diffusion.noised(diffusion.cosine(given.options.levels), x1, k, x0, given.options.predicts)
    velocity = lambda rows: lambda x, t, span: given.denoise(params, state[rows], x, t, span).out  # noqa: E731
    if family == "meanflow":
        interval = flow.draw_intervals(keys.time, options.times, size, options.meanflow_instant)
        return flow.mean_flow(velocity(slice(None)), x0, x1, *interval)
    t = choose("time law", options.times, flow.TIMES)(keys.time, (size,))
    if family == "reflow":
        return flow.rectified(x0, x1, t)
    first, rest = slice(int(options.shortcut_share * size)), slice(int(options.shortcut_share * size), None)
    delta = options.shortcut_delta
    plain = flow.rectified(x0[rest], x1[rest], t[rest], delta)
    if not first.stop:
        return plain
    drawn = flow.draw_shortcuts(keys.rows, first.stop, options.shortcut_highest)
    consistent = flow.self_consistent(velocity(first), x0[first], x1[first], *drawn, delta)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), consistent, plain)


def loss(params: PyTree, norm: Norm, obs: Observation, fit: Regression, given: Policy) -> tuple[Array, Metrics]:
    """L of one batch -> (f32[], metrics)."""
    value = mse(given.denoise(params, given.read(params, norm, obs), fit.x, fit.t, fit.span).out, fit.target)
    return value, {"loss": value}


def pretrained(key: Key, start: Start, given: Policy, spec: EnvSpec) -> tuple[PyTree, Norm]:
    """What learners that start from a run of this file begin with: its moving average, or random parameters."""
    parent: State | None = start.parent
    return (given.init(key, spec), start.norm) if parent is None else (parent.ema, parent.norm)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned or discrete tasks, and for options that do not fit together."""
    algorithm.require(spec, "chain_bc", pixels=True, chunk=True)
    require_choices(cfg)
    given = chunk_policy.policy(cfg.net, spec)
    given.steps(cfg.denoising)
    chunk_policy.require_images(cfg.augment, given)
    for name in ("shortcut_share", "meanflow_instant"):
        if not 0 <= (share := getattr(cfg.fit, name)) <= 1:
            raise ConfigError(f"{name} {share} must lie in [0, 1]")
    if not 0 <= cfg.fit.shortcut_highest <= 30:
        raise ConfigError(f"shortcut_highest {cfg.fit.shortcut_highest} must lie between 0 and 30: spans are 2^-b")
    lr = optim.warmup_cosine(cfg.lr_min, cfg.lr, cfg.lr_warmup, cfg.lr_cycle) if cfg.lr_cycle else cfg.lr
    tx = optim.adam(lr, weight_decay=cfg.weight_decay)

    def init(key: Key, start: Start) -> State:
        params = given.init(streams(key, "policy").policy, spec)
        return State(optim.start(tx, params), jax.tree.map(jnp.copy, params), start.norm, jnp.zeros((), jnp.int32))

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        keys, norm = streams(key, "fit", "augment"), state.norm
        obs = augment.shifted(keys.augment, batch.obs, cfg.augment)
        # --- one step ---
        params, x1 = state.net.params, given.chunk(norm, batch.action)
        fit = regression(params, given.read(params, norm, obs), x1, keys.fit, given, cfg.fit)
        net, metrics = optim.step(tx, loss, state.net, norm, obs, fit, given)

        # --- moving average ---
        def blend(ema: PyTree) -> tuple[PyTree, Metrics]:
            share = jnp.where(state.step < cfg.ema_start, 1.0, 1 - cfg.ema_rate)
            return optim.polyak(ema, net.params, share), {}

        ema, _ = optim.every(cfg.ema_every, state.step, blend, state.ema)
        return State(net, ema, norm, state.step + 1), metrics

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(given.judged(state.ema, state.norm, obs, key, cfg.denoising), carry)

    return Algorithm(
        init, update, act, act, eligible=lambda data: dataset.whole(data, given.shape[0]),
        sample=batches.sampled(cfg.batch_size, spec.history, chunk=spec.chunk),
    )  # fmt: skip
