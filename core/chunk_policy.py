"""Policies over action chunks: a denoising network and how its chain of steps is taken, by options.

Flows ask for velocities at k / K, or with `grid` "inclusive" at linspace(0, 1, K), as ReinFlow's sampler does.
A gaussian policy is a chain of one step, from a network of the state alone.
Axes: B batch, S state, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core import chain, diffusion, flow
from core.algorithm import as_input
from core.chain import Move, Step
from core.config import ConfigError, choose
from core.networks import Denoised, Denoiser, encoder, float_dtype
from core.rng import streams
from core.types import Array, EnvSpec, Key, Norm, Observation, PyTree


@dataclass(frozen=True)
class PolicyNet:
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
    denoised_clip: float = 1.0  # means of a flow's steps, a diffusion's clean chunk, are clipped to +- this; 0: not
    obs_clip: float = 0.0  # normalised states are clipped to +- this; 0: not
    encoder: str = "impala_small"  # of images


@dataclass(frozen=True)
class Denoising:
    """How many steps its chain takes, and which."""

    steps: int = 0  # K; 0: 4 for flows, all levels for diffusion
    grid: Literal["left", "inclusive"] = "left"  # reflow: times k / K, or linspace(0, 1, K)
    sampler: Literal["ddpm", "ddim"] = "ddpm"  # diffusion; ddim takes fewer steps than levels


class Policy(NamedTuple):
    """The network and how its steps are taken.  Its params: {"denoiser", "encoder" (images)}."""

    options: PolicyNet
    denoiser: Denoiser
    encoder: nn.Module | None
    shape: tuple[int, int]  # (H, A)
    action_shape: tuple[int, ...]  # the task's: (H, A), or (A,) of one without chunks

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
        state, limit = as_input(norm, obs), self.options.obs_clip
        if self.encoder:
            return self.encoder.apply(params["encoder"], state)
        return jnp.clip(state, -limit, limit) if limit else state

    def denoise(self, params: PyTree, state: Array, x: Array, t: Array, span: Array | None = None) -> Denoised:
        return self.denoiser.apply(params["denoiser"], x, state, t, span)

    def steps(self, denoising: Denoising) -> int:
        """K.  Raises: ConfigError for steps that the family does not have."""
        family, levels, (steps, grid, sampler) = self.options.family, self.options.levels, astuple(denoising)
        diffuses = family == "diffusion"
        if (grid != "left" and family != "reflow") or (sampler != "ddpm" and not diffuses):
            raise ConfigError(
                f"denoising.grid {grid} and sampler {sampler} with {family}: only reflow policies have another grid "
                "than left, only diffusion policies another sampler than ddpm"
            )
        if steps < 0:
            raise ConfigError(f"denoising.steps {steps} must be at least 1, or 0 for the family's own")
        if family == "gaussian":
            if steps > 1:
                raise ConfigError(f"denoising.steps {steps}: a gaussian policy takes one step")
            return 1
        if diffuses and (steps > levels or (sampler == "ddpm" and steps not in (0, levels))):
            raise ConfigError(
                f"denoising.steps {steps}: a diffusion policy of {levels} levels takes {levels} steps by ddpm, and "
                "fewer only where it was trained with denoising.sampler ddim"
            )
        return steps or (levels if diffuses else 4)

    def step(
        self, params: PyTree, state: Array, denoising: Denoising, eta: float = 0.0, noise_limit: float = jnp.inf
    ) -> Step:
        """The chain of states f32[B, S]; flows are deterministic.

        Args: eta, noise_limit: of DDIM, see `core.diffusion.ddim`.
        """
        net, steps, zero = self.options, self.steps(denoising), jnp.zeros((), float_dtype())
        if net.family == "gaussian":
            return lambda x, k: Move(self.denoise(params, state, x, zero).out, zero)
        if net.family != "diffusion":
            field = lambda x, t, span, k: (self.denoise(params, state, x, t, span).out, zero)  # noqa: E731
            return flow.euler(field, flow.grid(steps, denoising.grid), net.denoised_clip or jnp.inf)
        predict = lambda x, k: self.denoise(params, state, x, k).out  # noqa: E731
        schedule = diffusion.cosine(net.levels)
        limit = net.denoised_clip or jnp.inf
        if denoising.sampler == "ddpm":
            return diffusion.ddpm(schedule, predict, net.predicts, limit)
        return diffusion.ddim(schedule, predict, steps, eta, net.predicts, limit, noise_limit)

    def noises(self, key: Key, size: int, steps: int) -> tuple[Array, Array]:
        """(start f32[B, H, A], normals f32[B, K, H, A]) of a chain."""
        keys = streams(key, "start", "steps")
        return (
            jax.random.normal(keys.start, (size, *self.shape), float_dtype()),
            jax.random.normal(keys.steps, (size, steps, *self.shape), float_dtype()),
        )

    def eval_floor(self, denoising: Denoising) -> Array:
        """f32[K] floor of the standard deviations of a chain that is judged: DDPM's stays noisy but for its end."""
        steps = self.steps(denoising)
        noisy = self.options.family == "diffusion" and denoising.sampler == "ddpm"
        return jnp.where(jnp.arange(steps) < steps - 1, 1e-3, 0.0) * noisy

    def ends(
        self, params: PyTree, state: Array, noise: tuple[Array, Array], denoising: Denoising,
        floor: float | Array = 0.0, clip: float = jnp.inf,
    ) -> Array:  # fmt: skip
        """Chunks f32[B, H, A] in [-1, 1] where chains for states f32[B, S] end, by their `noises`.

        Args: floor, clip: as for `core.chain.sample`.
        """
        return chain.sample(self.step(params, state, denoising), *noise, floor, clip, 1.0)[0][:, -1]

    def sample(self, params: PyTree, state: Array, key: Key, denoising: Denoising, clip: float = 10.0) -> Array:
        """`ends` as the policy is judged: the start is random."""
        noise = self.noises(key, len(state), self.steps(denoising))
        return self.ends(params, state, noise, denoising, self.eval_floor(denoising), clip)

    def judged(self, params: PyTree, norm: Norm, obs: Observation, key: Key, denoising: Denoising) -> Array:
        """The action that the policy is judged by, see `out`."""
        return self.out(norm, self.sample(params, self.read(params, norm, obs), key, denoising))

    def out(self, norm: Norm, x: Array) -> Array:
        """The task's action in [-1, 1], f32[B, H, A] or f32[B, A], that a chain's end f32[B, H, A] means."""
        return jnp.clip(norm.raw_action(x), -1, 1).reshape(-1, *self.action_shape)

    def chunk(self, norm: Norm, action: Array) -> Array:
        """f32[B, H, A] normalised, of a task's actions."""
        return norm.action(action).reshape(len(action), *self.shape)


def policy(net: PolicyNet, spec: EnvSpec) -> Policy:
    """Raises: ConfigError, UnknownName for options that do not fit together."""
    if min(net.denoised_clip, net.obs_clip) < 0:
        raise ConfigError(f"denoised_clip {net.denoised_clip} and obs_clip {net.obs_clip} must be at least 0")
    spans = net.combine
    combine = {"reflow": "none", "diffusion": "none", "shortcut": spans, "meanflow": spans, "gaussian": "alone"}
    chosen = choose("family", net.family, combine)
    denoiser = Denoiser(net.hidden, net.activation, net.residual, net.time_dim, net.cond, chosen)
    shape = max(spec.chunk, 1), spec.action_dim
    return Policy(net, denoiser, encoder(net.encoder) if spec.pixels else None, shape, spec.action_shape)


def require_family(learner: str, net: PolicyNet, *families: str) -> None:
    """Raises: ConfigError for a policy that the algorithm does not learn."""
    if net.family not in families:
        possible = " or ".join(families)
        raise ConfigError(f"{learner} learns {possible} policies, not {net.family}: see --config.net.family")


def require_noise(floor: float, clip: float) -> None:
    """Raises: ConfigError for noise that no chain can explore with."""
    if floor < 0 or clip <= 0:
        raise ConfigError(f"noise_floor {floor} must be at least 0, noise_clip {clip} positive")


def require_images(pad: int, given: Policy) -> None:
    """Raises: ConfigError for an augmentation of what is no image."""
    if pad < 0 or (pad and not given.encoder):
        raise ConfigError(f"augment {pad} shifts images by so many pixels; of states leave it at 0")
