"""Data on the device: transitions, windows and batches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from core import replay, sampling
from core.returns import n_step
from core.types import Array, Data, Dataset, Key, Norm, Observation, PyTree, Replay, Sampler, Transition


def data(dataset: Dataset, norm: Norm, sampler: Sampler | None = None, extra: PyTree = ()) -> Data:
    """Put a dataset on the device, by default uniformly sampled."""
    sampler = sampling.uniform(len(dataset.row)) if sampler is None else sampler
    return jax.tree.map(jnp.asarray, Data(dataset, sampler, norm, extra))


def stacked(dataset: Dataset, row: Array, length: int) -> Array:
    """The last L = `length` frames up to `row` i32[B], an episode's first one repeated.

    Returns: f32[B, L * S] or uint8[B, H, W, L * C], the newest last.
    """
    if length == 1:
        return dataset.state[row]
    rows = jnp.maximum(row[:, None] + jnp.arange(1 - length, 1, dtype=row.dtype), dataset.first[row][:, None])
    frames = jnp.moveaxis(dataset.state[rows], 1, -2)  # [B, ..., L, S]
    return frames.reshape(*frames.shape[:-2], -1)


def transitions(dataset: Dataset, row: Array, history: int = 1, steps: int = 1, discount: float = 1.0) -> Transition:
    """The transitions that start at `row` i32[B], unnormalised.

    Args: history: frames in a state, as in `EnvSpec.history`; steps: n > 1 sums rewards over up to n steps of the
        episode (see `core.returns.n_step`), and what follows is that of the last one counted.
    Returns: Transition; extras {"row": row, "discount": f32[B] discount^m, the factor of the successor's value}.
    """
    if steps > 1:
        rows = jnp.minimum(row + jnp.arange(steps, dtype=row.dtype)[:, None], dataset.last[row] - 1)  # i32[n, B]
        total, count = n_step(dataset.reward[rows], rows + 1 < dataset.last[row], discount)
        first, last = (
            transitions(dataset, row, history),
            transitions(dataset, row + count.astype(row.dtype) - 1, history),
        )
        factor = (discount**count).astype(total.dtype)
        return last._replace(obs=first.obs, action=first.action, reward=total, extras={"row": row, "discount": factor})
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
        extras={"row": row, "discount": jnp.full(row.shape, discount, dataset.reward.dtype)},
    )


def chunks(dataset: Dataset, row: Array, size: int, history: int = 1) -> Transition:
    """Transitions of chunks f32[B, H, A] of H = `size` actions that start at `row` i32[B], as a chunked task has them.

    The reward is the sum, what follows is that of the last step.  Rows must have H transitions ahead in their episode:
    `core.dataset.whole` says which do.
    """
    t = transitions(dataset, row, history, size)
    action = dataset.action[row[:, None] + jnp.arange(size, dtype=row.dtype)]
    after = t.next_obs._replace(reward=t.reward)
    return t._replace(action=action, next_obs=after, extras={**t.extras, "discount": jnp.ones_like(t.reward)})


def sampled(
    batch_size: int, history: int = 1, steps: int = 1, discount: float = 1.0, chunk: int = 0
) -> Callable[[Data, Key], Transition]:
    """The plain `sample` of an algorithm: B independent transitions by the data's sampler.

    Args: as for `transitions`; chunk: H > 0 draws transitions of chunks (`chunks`; a replay holds such already).
    Extras: "discount"; from a dataset also "row".
    """

    if chunk and steps > 1:
        raise ValueError(f"chunks of {chunk} are not summed over {steps} steps")

    def sample(data: Data, key: Key) -> Transition:
        position = sampling.draw(data.sampler, key, (batch_size,))
        if isinstance(data.dataset, Replay):  # its states hold their history already
            return replay.transitions(data.dataset, position, steps, discount)
        row = data.dataset.row[position]
        if chunk:
            return chunks(data.dataset, row, chunk, history)
        return transitions(data.dataset, row, history, steps, discount)

    return sample


def minibatches(key: Key, items: int, size: int, epochs: int, visits: int = 1) -> Array:
    """i32[epochs * whole minibatches, size] of 0 .. items - 1; each epoch shuffles all of them, `visits` times each.

    An epoch leaves out what does not fill a minibatch.
    """
    total = items * visits
    whole = total // size * size
    shuffle = lambda key: jax.random.permutation(key, total)[:whole] % items  # noqa: E731
    return jax.vmap(shuffle)(jax.random.split(key, epochs)).reshape(-1, size)


def windows(dataset: Dataset, row: Array, before: int, after: int) -> tuple[Array, Array]:
    """Rows around `row` i32[B] within its episode: `before` earlier ones, itself, `after` later ones.

    Returns: (i32[B, L] rows, bool[B, L] whether they exist), L = before + 1 + after.  Missing ones repeat the
        episode's first or last transition, so that every row may be read.
    """
    wanted = row[:, None] + jnp.arange(-before, after + 1, dtype=row.dtype)
    low, high = dataset.first[row][:, None], dataset.last[row][:, None] - 1
    return jnp.clip(wanted, low, high), (wanted >= low) & (wanted <= high)


def nbytes_per_transition(data: Data) -> float:
    """Device bytes of dataset and sampler, per transition."""
    arrays = jax.tree.leaves((data.dataset, data.sampler))
    return sum(a.nbytes for a in arrays) / len(data.dataset.row)
