"""Behaviour cloning by flow and diffusion policies: chains of denoising steps from Gaussian noise to an action chunk.

    reflow:     L = mean (v(x_t, t, s) - (x_1 - x_0))^2,   x_t = (1 - t) x_0 + t x_1               arXiv:2209.03003
    shortcut:   reflow at span 0; a share of rows fits v(x_t, t, s; D) to two steps of D / 2       arXiv:2410.12557
    meanflow:   u(x_t, t, s; r - t) fitted to v + (r - t) du/dt along the path                     arXiv:2505.13447
    gaussian:   L = mean (pi(s) - x_1)^2, the mean of a Gaussian: a chain of one step, the control of the comparison
    diffusion:  L = mean (eps(x_k, k, s) - eps)^2, cosine schedule; or the clean chunk is predicted  arXiv:2006.11239
by AdamW; the policy acts with an exponential moving average of the weights, and fine-tuning starts from it.
Published values and updates are those of ReinFlow's and DPPO's code, except where said: flows ask for velocities at
k / K (the official ones sample at linspace(0, 1, K): `walk.grid inclusive`); spans of shortcuts are 2^-b with b up to
4, as the paper means it (the official bound is 18: `shortcut_highest`).  Their code has no mean flow.
Axes: B batch, S state, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core import algorithm, augment, batches, chain, dataset, diffusion, flow, optim
from core.algorithm import Algorithm, as_input
from core.chain import Move, Regression, Step
from core.config import ConfigError, choose, require_choices
from core.losses import mse
from core.networks import Denoised, Denoiser, encoder, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Net:
    """What the policy is.  A run that starts from another takes this over whole."""

    family: Literal["reflow", "shortcut", "meanflow", "diffusion", "gaussian"] = "reflow"
    hidden: tuple[int, ...] = (512, 512, 512)
    activation: str = "relu"
    residual: bool = True  # hidden sizes are then equal and odd in number
    time_dim: int = 16  # of the time's embedding
    cond: tuple[int, ...] = ()  # MLP that encodes the state; none: the state itself
    combine: Literal["concat", "add", "multiply"] = "concat"  # shortcut, meanflow: time's code with the state's
    levels: int = 20  # diffusion: times of the noising
    predicts: Literal["noise", "clean"] = "noise"  # diffusion
    limit: float = 1.0  # flows: the means of all steps are clipped to +-limit; diffusion: the clean chunk; 0: not
    obs_limit: float = 0.0  # normalised states are clipped to +-obs_limit; 0: not
    encoder: str = "impala_small"  # of images


@dataclass(frozen=True)
class Walk:
    """How the policy's chain is walked."""

    steps: int = 0  # K; 0: 4 for flows, all levels for diffusion
    grid: Literal["left", "inclusive"] = "left"  # flows: times k / K, or linspace(0, 1, K)
    sampler: Literal["ddpm", "ddim"] = "ddpm"  # diffusion; ddim takes fewer steps than levels


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 128
    state_norm: Literal["none", "standard", "minmax"] = "minmax"
    action_norm: Literal["none", "minmax"] = "minmax"
    net: Net = field(default_factory=Net)
    walk: Walk = field(default_factory=Walk)
    times: Literal["uniform", "logitnormal", "beta"] = "uniform"  # flows: law of t
    shortcut_share: float = 0.25  # of the rows, self-consistent
    shortcut_highest: int = 4  # b is drawn from 0 to this
    shortcut_delta: float = 1e-5  # share of the noise left at t = 1
    meanflow_instant: float = 0.75  # share of the rows with r = t
    augment: int = 0  # images are shifted at random by up to this many pixels; 0: not
    lr: float = 1e-3
    lr_min: float = 1e-4  # at the beginning and end of a cycle
    lr_warmup: int = 0  # updates from lr_min to lr
    lr_cycle: int = 0  # updates of a cosine cycle; 0: constant
    weight_decay: float = 1e-6
    ema_rate: float = 0.995  # per blending
    ema_every: int = 10  # updates between blendings
    ema_start: int = 2_000  # updates during which the average only copies


class State(NamedTuple):
    net: Trained  # params of `Policy`
    ema: PyTree  # moving average of the params: what acts
    norm: Norm
    step: Array  # i32[] updates done


class Policy(NamedTuple):
    """The network and how its steps are taken.  Its params: {"denoiser", "encoder" (images)}."""

    options: Net
    denoiser: Denoiser
    encoder: nn.Module | None
    shape: tuple[int, int]  # (H, A)

    def init(self, key: Key, spec: EnvSpec) -> PyTree:
        keys = streams(key, "denoiser", "encoder")
        state, params = self.encoded(keys.encoder, spec)
        time = jnp.zeros(1, float_dtype())
        return {**params, "denoiser": self.denoiser.init(keys.denoiser, jnp.zeros((1, *self.shape)), state, time, time)}

    def encoded(self, key: Key, spec: EnvSpec) -> tuple[Array, PyTree]:
        """(a blank state f32[1, S] as networks see it, parameters of a new encoder: {"encoder"} or {})."""
        state = jnp.zeros((1, *spec.obs_shape), jnp.uint8 if self.encoder else float_dtype())
        if not self.encoder:
            return state, {}
        state, params = self.encoder.init_with_output(key, state)
        return state, {"encoder": params}

    def read(self, params: PyTree, norm: Norm, obs: Observation) -> Array:
        """What the network is told of observations: f32[B, S]."""
        state, limit = as_input(norm, obs), self.options.obs_limit
        if self.encoder:
            return self.encoder.apply(params["encoder"], state)
        return jnp.clip(state, -limit, limit) if limit else state

    def denoise(self, params: PyTree, state: Array, x: Array, t: Array, span: Array | None = None) -> Denoised:
        return self.denoiser.apply(params["denoiser"], x, state, t, span)

    def steps(self, walk: Walk) -> int:
        """K.  Raises: ConfigError for a walk that the family does not have."""
        diffuses, levels = self.options.family == "diffusion", self.options.levels
        if self.options.family == "gaussian":
            if walk.steps > 1:
                raise ConfigError(f"walk.steps {walk.steps}: a gaussian policy takes one step")
            return 1
        steps = walk.steps or (levels if diffuses else 4)
        if steps < 1 or (diffuses and (steps > levels or (walk.sampler == "ddpm" and steps != levels))):
            raise ConfigError(
                f"walk.steps {steps}: at least 1; a diffusion of {levels} levels takes {levels} by ddpm, fewer by "
                "--config.walk.sampler ddim"
            )
        return steps

    def step(self, params: PyTree, state: Array, walk: Walk, eta: float = 0.0, noise_limit: float = jnp.inf) -> Step:
        """The chain of states f32[B, S]; flows are deterministic.

        Args: eta, noise_limit: of DDIM, see `core.diffusion.ddim`.
        """
        net, steps = self.options, self.steps(walk)
        if net.family == "gaussian":
            zero = jnp.zeros((), float_dtype())
            return lambda x, k: Move(self.denoise(params, state, x, zero).out, zero)
        if net.family != "diffusion":
            zero = jnp.zeros((), float_dtype())
            field = lambda x, t, span, k: (self.denoise(params, state, x, t, span).out, zero)  # noqa: E731
            return flow.euler(field, flow.grid(steps, walk.grid), net.limit or jnp.inf)
        predict = lambda x, k: self.denoise(params, state, x, k).out  # noqa: E731
        schedule = diffusion.cosine(net.levels)
        limit = net.limit or jnp.inf
        if walk.sampler == "ddpm":
            return diffusion.ddpm(schedule, predict, net.predicts, limit)
        return diffusion.ddim(schedule, predict, steps, eta, net.predicts, limit, noise_limit)

    def noises(self, key: Key, size: int, steps: int) -> tuple[Array, Array]:
        """(start f32[B, H, A], normals f32[B, K, H, A]) of a chain."""
        keys = streams(key, "start", "steps")
        return (
            jax.random.normal(keys.start, (size, *self.shape), float_dtype()),
            jax.random.normal(keys.steps, (size, steps, *self.shape), float_dtype()),
        )

    def still(self, walk: Walk) -> Array:
        """f32[K] floor of the standard deviations of a chain that is judged: DDPM's stays noisy but for its end."""
        steps = self.steps(walk)
        noisy = self.options.family == "diffusion" and walk.sampler == "ddpm"
        return jnp.where(jnp.arange(steps) < steps - 1, 1e-3, 0.0) * noisy

    def sample(self, params: PyTree, state: Array, key: Key, walk: Walk, clip: float = 10.0) -> Array:
        """Chunks f32[B, H, A] for states f32[B, S], as the policy is judged: the start is random."""
        start, normals = self.noises(key, len(state), self.steps(walk))
        states, _ = chain.sample(self.step(params, state, walk), start, normals, self.still(walk), clip, 1.0)
        return states[:, -1]

    def out(self, norm: Norm, x: Array) -> Array:
        """The action f32[B, H, A] in [-1, 1], or f32[B, A] of a task without chunks, that a chain's end means."""
        return jnp.clip(norm.raw_action(x), -1, 1)

    def chunk(self, norm: Norm, action: Array) -> Array:
        """f32[B, H, A] normalised, of a task's actions."""
        return norm.action(action).reshape(len(action), *self.shape)


def policy(net: Net, spec: EnvSpec) -> Policy:
    """Raises: ConfigError, UnknownName for options that do not fit together."""
    if min(net.limit, net.obs_limit) < 0:
        raise ConfigError(f"limit {net.limit} and obs_limit {net.obs_limit} must be at least 0")
    spans = net.combine
    combine = {"reflow": "none", "diffusion": "none", "shortcut": spans, "meanflow": spans, "gaussian": "alone"}
    chosen = choose("family", net.family, combine)
    denoiser = Denoiser(net.hidden, net.activation, net.residual, net.time_dim, net.cond, chosen)
    return Policy(net, denoiser, encoder(net.encoder) if spec.pixels else None, (max(spec.chunk, 1), spec.action_dim))


def require_images(pad: int, given: Policy) -> None:
    """Raises: ConfigError for an augmentation of what is no image."""
    if pad < 0 or (pad and not given.encoder):
        raise ConfigError(f"augment {pad} shifts images by so many pixels; of states leave it at 0")


def regression(params: PyTree, state: Array, x1: Array, key: Key, given: Policy, cfg: Config) -> Regression:
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
        interval = flow.draw_intervals(keys.time, cfg.times, size, cfg.meanflow_instant)
        return flow.mean_flow(velocity(slice(None)), x0, x1, *interval)
    t = choose("time law", cfg.times, flow.TIMES)(keys.time, (size,))
    if family == "reflow":
        return flow.rectified(x0, x1, t)
    first, rest = slice(int(cfg.shortcut_share * size)), slice(int(cfg.shortcut_share * size), None)
    delta = cfg.shortcut_delta
    plain = flow.rectified(x0[rest], x1[rest], t[rest], delta)
    if not first.stop:
        return plain
    drawn = flow.draw_shortcuts(keys.rows, first.stop, cfg.shortcut_highest)
    consistent = flow.self_consistent(velocity(first), x0[first], x1[first], *drawn, delta)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), consistent, plain)


def loss(params: PyTree, norm: Norm, obs: Observation, fit: Regression, given: Policy) -> tuple[Array, Metrics]:
    """L of one batch -> (f32[], metrics)."""
    value = mse(given.denoise(params, given.read(params, norm, obs), fit.x, fit.t, fit.span).out, fit.target)
    return value, {"loss": value}


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned or discrete tasks, and for options that do not fit together."""
    algorithm.require(spec, "chain_bc", pixels=True, chunk=True)
    require_choices(cfg)
    given = policy(cfg.net, spec)
    given.steps(cfg.walk)
    require_images(cfg.augment, given)
    for name in ("shortcut_share", "meanflow_instant"):
        if not 0 <= (share := getattr(cfg, name)) <= 1:
            raise ConfigError(f"{name} {share} must lie in [0, 1]")
    if not 0 <= cfg.shortcut_highest <= 30:
        raise ConfigError(f"shortcut_highest {cfg.shortcut_highest} must lie between 0 and 30: spans are 2^-b")
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
        fit = regression(params, given.read(params, norm, obs), x1, keys.fit, given, cfg)
        net, metrics = optim.step(tx, loss, state.net, norm, obs, fit, given)

        # --- moving average ---
        def blend(ema: PyTree) -> tuple[PyTree, Metrics]:
            share = jnp.where(state.step < cfg.ema_start, 1.0, 1 - cfg.ema_rate)
            return optim.polyak(ema, net.params, share), {}

        ema, _ = optim.every(cfg.ema_every, state.step, blend, state.ema)
        return State(net, ema, norm, state.step + 1), metrics

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        x = given.sample(state.ema, given.read(state.ema, state.norm, obs), key, cfg.walk)
        return ActOut(given.out(state.norm, x).reshape(-1, *spec.action_shape), carry)

    return Algorithm(
        init, update, act, act, eligible=lambda data: dataset.whole(data, given.shape[0]),
        sample=batches.sampled(cfg.batch_size, spec.history, chunk=spec.chunk),
    )  # fmt: skip
