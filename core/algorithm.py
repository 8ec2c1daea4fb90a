"""An algorithm is a record of pure functions closed over (config, spec); it holds no arrays itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from core.config import ConfigError
from core.types import ActOut, Array, Data, Dataset, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start

Act = Callable[[PyTree, Observation, PyTree, Key], ActOut]  # (state, obs [B], carry [B], key)
Value = Callable[[PyTree, Observation, Array], Array]  # (state, obs [B], action [B, A] in [-1, 1]) -> f32[B]


def no_carry(num_envs: int) -> PyTree:
    """The memory of a policy that has none."""
    return ()


@dataclass(frozen=True)
class Config:
    """Options that every algorithm has; each `algos/*.py` extends it."""

    batch_size: int = 256  # B
    state_norm: Literal["none", "standard", "minmax"] = "none"  # standard: mean and std + 1e-3; minmax: to [-1, 1]
    action_norm: Literal["none", "minmax"] = "none"
    norm_floor: float = 0.0  # minmax: a state's number that ranges less is scaled as if it ranged over this much


class Algorithm(NamedTuple):
    """See `WORKSPACE.md` for a worked example.

    `update` is one gradient step (or, on-policy, all steps on one rollout); `sample` is None on-policy, where
    `update` gets the rollout's whole `Transition[T, B]`.
    """

    init: Callable[[Key, Start], PyTree]  # -> state: arrays only
    update: Callable[[PyTree, PyTree, Key], tuple[PyTree, Metrics]]  # (state, batch, key)
    act: Act  # exploring policy
    act_eval: Act  # policy to be judged
    init_carry: Callable[[int], PyTree] = no_carry  # num_envs -> carry
    sample: Callable[[Data, Key], PyTree] | None = None
    prepare: Callable[[Dataset, Start], PyTree] | None = None  # host, before training; becomes `Data.extra`
    eligible: Callable[[Dataset], Array] | None = None  # host: bool[N], which transitions may be drawn; None: all
    explores: bool = False  # `act` explores: without a dataset it learns online, from a replay
    value: Value | None = None  # Q(s, a) in units of the rewards learned from; None: it has no such critic
    # V(s, g) f32[B] of a state and observations with goals, where each step costs 1; None: it has no such value
    goal_value: Callable[[PyTree, Observation], Array] | None = None
    value_at: Callable[[int], float] | None = None  # what that is where the goal is so many steps away

    @property
    def on_policy(self) -> bool:
        """Whether it learns from whole rollouts of its own."""
        return self.sample is None

    @property
    def online(self) -> bool:
        """Whether it can learn by acting."""
        return self.on_policy or self.explores


def require(spec: EnvSpec, name: str, goal=False, discrete=False, pixels=False, chunk=False) -> None:
    """Refuse a task that an algorithm cannot act in; each flag says what it can deal with.

    Raises: ConfigError that says what to do.
    """
    if spec.goal_shape != (0,) and not goal:
        raise ConfigError(f"{name} does not read goals, which {spec.name} has; use a single-task variant of the task")
    if spec.num_actions and not discrete:
        raise ConfigError(f"{name} needs continuous actions; {spec.name} has {spec.num_actions} discrete ones")
    if spec.pixels and not pixels:
        raise ConfigError(f"{name} reads states, {spec.name} shows images {spec.obs_shape}; use its state variant")
    if spec.chunk and not chunk:
        raise ConfigError(f"{name} acts one step at a time; make {spec.name} without chunks")


def require_rates(discount: float, tau: float = 1.0, reward_scale: float = 1.0) -> None:
    """Raises: ConfigError for options that no critic can learn with."""
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount {discount} must lie in [0, 1]")
    if not 0 < tau <= 1:
        raise ConfigError(f"tau {tau} must lie in (0, 1]")
    if reward_scale <= 0:
        raise ConfigError(f"reward_scale {reward_scale} must be above 0")


def as_input(norm: Norm, obs: Observation) -> Array:
    """What a network reads: the normalised state [..., S]."""
    return norm.state(obs.state)


def least_q(critic: Callable[[PyTree, Array, Array], Array], scale: float = 1.0, limit: float = float("inf")) -> Value:
    """The `value` of states with `critic` and `norm`: min_e Q_e(s, a) by the critics' current parameters.

    Args: critic: (params, normalised s [B, S], normalised a [B, A]) -> f32[E, B]; scale, limit: it reads actions times
        `scale`, then clipped to +- `limit`.
    """

    def value(state: PyTree, obs: Observation, action: Array) -> Array:
        action = (scale * state.norm.action(action)).clip(-limit, limit)
        return critic(state.critic.params, as_input(state.norm, obs), action).min(axis=0)

    return value
