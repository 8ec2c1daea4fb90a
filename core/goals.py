"""Goals in hindsight: what each drawn transition is asked to reach, among the rows of its dataset, on the device.

All goals are rows i32[B].  With i the transition's row, final(i) = last[i] - 1 starts the last transition of its
episode: no goal is the state after that, as in OGBench, whose conventions these are (Park et al., 2024,
arXiv:2410.20092).  Reaching is equality of rows, success = 1[i = g], r = success - 1, and a reached goal ends the task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core import batches, sampling
from core.config import ConfigError
from core.rng import streams
from core.types import Array, Data, Dataset, Key, Transition


@dataclass(frozen=True)
class Mixture:
    """Probabilities of three kinds of goals; they sum to 1."""

    current: float = 0.0  # the state itself
    future: float = 1.0  # a later one of its episode
    random: float = 0.0  # any state of the dataset
    geometric: bool = False  # how far later: by the discount, as often as it weighs them; else uniform up to final(i)


def check(mixture: Mixture, discount: float) -> None:
    """Raises: ConfigError for what are no probabilities, or a discount without a geometric distribution."""
    parts = mixture.current, mixture.future, mixture.random
    if min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
        raise ConfigError(f"goals: current, future and random {parts} must be at least 0 and sum to 1")
    if mixture.geometric and not 0 <= discount < 1:
        raise ConfigError(f"geometric goals need a discount in [0, 1), not {discount}: draw them uniformly")


def final(dataset: Dataset, row: Array) -> Array:
    """i32[B] the last transition of the episode of `row`."""
    return dataset.last[row] - 1


def random(dataset: Dataset, key: Key, shape: tuple[int, ...]) -> Array:
    """Rows i32[shape], each transition alike."""
    return dataset.row[jax.random.randint(key, shape, 0, len(dataset.row), jnp.int32)]


def future(dataset: Dataset, row: Array, key: Key, discount: float | None) -> Array:
    """A later row of the episode, and final(i) itself for final(i).

    Args: discount: min(i + k, final(i)) with P(k > n) = discount^n, k >= 1; None: uniformly between i + 1 and final(i),
        rounded, so that both ends have half the probability of the others.
    """
    end, u = final(dataset, row), jax.random.uniform(key, row.shape)
    if discount is None:
        low = jnp.minimum(row + 1, end)
        return low + jnp.round((end - low) * u).astype(row.dtype)
    steps = 1 + jnp.floor(jnp.log1p(-u) / jnp.log(discount))
    return jnp.minimum(row + steps.astype(row.dtype), end)


def _happens(key: Key, probability: float, shape: tuple[int, ...]) -> Array | bool:
    """bool[shape]; what is certain is drawn by nobody."""
    return probability > 0.5 if probability in (0.0, 1.0) else jax.random.bernoulli(key, probability, shape)


def _either(chosen: Array | bool, one: Array, other: Array) -> Array:
    return jnp.where(chosen, one, other) if isinstance(chosen, jax.Array) else one if chosen else other


class _Kinds(NamedTuple):
    later: Array | bool  # bool[B] whether the goal is a later row
    now: Array | bool  # bool[B] whether it is the current one, whatever else was drawn
    ahead: Array  # i32[B] the later row
    goal: Array  # i32[B] the later or the random one


def _kinds(dataset: Dataset, row: Array, key: Key, mixture: Mixture, discount: float) -> _Kinds:
    keys = streams(key, "future", "random", "is_future", "is_current")
    later = _happens(keys.is_future, min(mixture.future / ((1 - mixture.current) or 1), 1.0), row.shape)
    now = _happens(keys.is_current, mixture.current, row.shape)
    ahead = future(dataset, row, keys.future, discount if mixture.geometric else None)
    return _Kinds(later, now, ahead, _either(later, ahead, random(dataset, keys.random, row.shape)))


def draw(dataset: Dataset, row: Array, key: Key, mixture: Mixture, discount: float) -> Array:
    """Goals i32[B] of transitions `row`: any of a mixture."""
    kinds = _kinds(dataset, row, key, mixture, discount)
    return _either(kinds.now, row, kinds.goal)


class Subgoals(NamedTuple):
    """What a hierarchy learns to reach, i32[B] each."""

    low: Array  # min(i + k, final(i)): of the lower policy
    goal: Array  # of the upper policy
    target: Array  # what it is to name on the way there: min(i + k, goal); min(i + k, final(i)) where that is random


def subgoals(dataset: Dataset, row: Array, key: Key, steps: int, p_random: float, discount: float | None) -> Subgoals:
    """Args: steps: k; p_random: probability that the upper goal is random; else a `future` one, as `discount` says."""
    keys = streams(key, "future", "random", "is_random")
    low, ahead = jnp.minimum(row + steps, final(dataset, row)), future(dataset, row, keys.future, discount)
    anywhere = _happens(keys.is_random, p_random, row.shape)
    goal = _either(anywhere, random(dataset, keys.random, row.shape), ahead)
    return Subgoals(low, goal, _either(anywhere, low, jnp.minimum(row + steps, ahead)))


class Option(NamedTuple):
    """Where n steps lead, i32[B] each."""

    end: Array  # Omega: n steps ahead, at the goal or at final(i), what comes first
    goal: Array  # reached where the option ends at it


def option(dataset: Dataset, row: Array, key: Key, mixture: Mixture, steps: int, discount: float) -> Option:
    """Options of n = `steps` for a value that counts options instead of steps; "current" goals are where one ends.

    Reference: the sampler of OTA (Ahn et al., 2025, arXiv:2505.12737).
    """
    kinds = _kinds(dataset, row, key, mixture, discount)
    end = jnp.minimum(row + steps, _either(kinds.later, kinds.ahead, final(dataset, row)))
    return Option(end, _either(kinds.now, end, kinds.goal))


def reward(reached: Array) -> Array:
    """success - 1, f32[B]."""
    return reached.astype(jnp.float32) - 1


def relabelled(dataset: Dataset, row: Array, goal: Array, history: int = 1, alone: bool = False) -> Transition:
    """The transitions of `row` with the goals' states, success and reward; no other reward is in them.

    Args: history: frames in a state and in a goal; alone: a state after its episode's last transition repeats itself
        in place of the frames before it, as in OGBench's code.
    """
    t, reached = batches.transitions(dataset, row, history), row == goal
    state, following = batches.stacked(dataset, goal, history), t.next_obs.state
    if alone and history > 1:
        ended = (row == final(dataset, row)).reshape(-1, *[1] * (following.ndim - 1))
        following = jnp.where(ended, jnp.tile(dataset.state[row + 1], history), following)
    return t._replace(
        obs=t.obs._replace(goal=state),
        next_obs=t.next_obs._replace(state=following, goal=state),
        reward=reward(reached),
        terminated=reached,
        truncated=t.truncated & ~reached,
    )


def sampled(
    batch_size: int,
    of: Callable[[Dataset, Array, Key], tuple[Array, dict[str, Array], dict[str, Array]]],
    history: int = 1,
    alone: bool = False,
) -> Callable[[Data, Key], Transition]:
    """The `sample` of a goal-conditioned algorithm: B transitions by the data's sampler, with goals.

    Args: of: (dataset, row, key) -> (goal row of obs.goal, rows by the name of the state to be read, other arrays by
        their name); the rest as for `relabelled`.
    Extras: "states" and "given", what `of` names.
    """

    def sample(data: Data, key: Key) -> Transition:
        keys = streams(key, "row", "goals")
        row = data.dataset.row[sampling.draw(data.sampler, keys.row, (batch_size,))]
        goal, rows, given = of(data.dataset, row, keys.goals)
        t = relabelled(data.dataset, row, goal, history, alone)
        states = {name: batches.stacked(data.dataset, at, history) for name, at in rows.items()}
        return t._replace(extras={**t.extras, "states": states, "given": given})

    return sample
