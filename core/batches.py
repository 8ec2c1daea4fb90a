"""Data on the device: transitions, windows and batches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from core import sampling
from core.types import Array, Data, Dataset, Key, Norm, Observation, PyTree, Sampler, Transition


def data(
    dataset: Dataset, norm: Norm, sampler: Sampler | None = None, loss_weight: Array | None = None, extra: PyTree = ()
) -> Data:
    """Put a dataset on the device; by default uniformly sampled, every transition of weight one."""
    n = len(dataset.row)
    sampler = sampling.uniform(n) if sampler is None else sampler
    weight = np.ones(n, np.float32) if loss_weight is None else loss_weight
    return jax.tree.map(jnp.asarray, Data(dataset, sampler, norm, weight, extra))


def stacked(dataset: Dataset, row: Array, length: int) -> Array:
    """The last L = `length` frames up to `row` i32[B], an episode's first one repeated.

    Returns: f32[B, L * S] or uint8[B, H, W, L * C], the newest last.
    """
    if length == 1:
        return dataset.state[row]
    rows = jnp.maximum(row[:, None] + jnp.arange(1 - length, 1, dtype=row.dtype), dataset.first[row][:, None])
    frames = jnp.moveaxis(dataset.state[rows], 1, -2)  # [B, ..., L, S]
    return frames.reshape(*frames.shape[:-2], -1)


def transitions(dataset: Dataset, row: Array, history: int = 1) -> Transition:
    """The transitions that start at `row` i32[B], unnormalised; `extras` is {"row": row}.

    Args: history: frames in a state, as in `EnvSpec.history`.
    """
    step = row - dataset.first[row]
    goal = jnp.zeros((*row.shape, 0), dataset.reward.dtype)
    before = jnp.where(step > 0, dataset.reward[row - 1], 0)
    terminated = dataset.terminated[row]
    return Transition(
        obs=Observation(stacked(dataset, row, history), goal, before, step),
        action=dataset.action[row],
        reward=dataset.reward[row],
        next_obs=Observation(stacked(dataset, row + 1, history), goal, dataset.reward[row], step + 1),
        terminated=terminated,
        truncated=(row + 1 == dataset.last[row]) & ~terminated,
        extras={"row": row},
    )


def sampled(batch_size: int, history: int = 1) -> Callable[[Data, Key], Transition]:
    """The plain `sample` of an algorithm: B independent transitions by the data's sampler, with their loss weights."""

    def sample(data: Data, key: Key) -> Transition:
        position = sampling.draw(data.sampler, key, (batch_size,))
        t = transitions(data.dataset, data.dataset.row[position], history)
        return t._replace(extras={**t.extras, "weight": data.loss_weight[position]})

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
