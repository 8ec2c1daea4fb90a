"""Data on the device: transitions, windows and batches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from core import sampling
from core.types import Array, Data, Dataset, Key, Norm, Observation, PyTree, Sampler, Transition


def data(dataset: Dataset, norm: Norm, sampler: Sampler | None = None, extra: PyTree = ()) -> Data:
    """Put a dataset on the device, uniformly sampled unless a sampler is given."""
    n = len(dataset.row)
    weight = np.ones(n, np.float32)
    return jax.tree.map(jnp.asarray, Data(dataset, sampler or sampling.uniform(n), norm, weight, extra))


def transitions(dataset: Dataset, row: Array) -> Transition:
    """The transitions that start at `row` i32[...], unnormalised; `extras` is {"row": row}."""
    step = row - dataset.first[row]
    goal = jnp.zeros((*row.shape, 0), dataset.reward.dtype)
    before = jnp.where(step > 0, dataset.reward[row - 1], 0)
    terminated = dataset.terminated[row]
    return Transition(
        obs=Observation(dataset.state[row], goal, before, step),
        action=dataset.action[row],
        reward=dataset.reward[row],
        next_obs=Observation(dataset.state[row + 1], goal, dataset.reward[row], step + 1),
        terminated=terminated,
        truncated=(row + 1 == dataset.last[row]) & ~terminated,
        extras={"row": row},
    )


def sampled(batch_size: int) -> Callable[[Data, Key], Transition]:
    """The plain `sample` of an algorithm: B independent transitions by the data's sampler."""

    def sample(data: Data, key: Key) -> Transition:
        return transitions(data.dataset, data.dataset.row[sampling.draw(data.sampler, key, (batch_size,))])

    return sample


def windows(dataset: Dataset, row: Array, before: int, after: int) -> tuple[Array, Array]:
    """Rows around `row` i32[B] within its episode: `before` earlier ones, itself, `after` later ones.

    Returns: (i32[B, L] rows, bool[B, L] whether they exist), L = before + 1 + after.  Missing ones repeat the
        episode's first or last transition, so that every row may be read.
    """
    wanted = row[:, None] + jnp.arange(-before, after + 1, dtype=row.dtype)
    low, high = dataset.first[row][:, None], dataset.last[row][:, None] - 1
    return jnp.clip(wanted, low, high), (wanted >= low) & (wanted <= high)


def nbytes_per_transition(data: Data) -> float:
    """Device bytes of dataset, sampler and loss weights, per transition."""
    arrays = [*data.dataset, *data.sampler, data.loss_weight]
    return sum(a.nbytes for a in arrays) / len(data.dataset.row)
