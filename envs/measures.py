"""What a dataset is like: how good, how varied, how uneven its episodes are.  Goes on every card.

    TQ     trajectory quality: (mean return - random) / (expert - random), by D4RL's constants of the task
    PSV    positive-sided variance E[max(G - E[G], 0)^2] of returns brought to [0, 1] by the smallest and the largest
    SACo   state-action coverage: unique pairs of state and action over those of a reference set

TQ and SACo are of Schweighofer et al. (2022, arXiv:2111.04714), who take the best online policy for the expert and its
replay for the reference; PSV is of Hong et al. (2023, arXiv:2306.13085), the range of its returns is our choice.
Where the former's code puts each number into one of about 100 equal parts of its range and counts by HyperLogLog, here
each is rounded to a hundredth of its range, and all pairs are counted by 64-bit hashes: exact but for collisions, of
which 10^9 pairs have less than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from core import dataset as ds
from core import weights
from core.config import UnknownName
from core.dataset import DataError
from core.types import Array, Dataset
from envs import scores

PARTS = 100  # of the range of a number
BLOCK = 1 << 16  # transitions at a time


class Grid(NamedTuple):
    """The smallest and the largest of each number, f64[S] and f64[A]; () for pictures and discrete actions."""

    state: tuple[Array, Array] | tuple[()]
    action: tuple[Array, Array] | tuple[()]


def measures(dataset: Dataset, task: str | None) -> dict[str, Any]:
    """TQ where the task has constants, with them; PSV; unique pairs on the dataset's own grid, and their share."""
    ret, pairs = ds.episodes(dataset).ret, unique_pairs(dataset, grid(dataset))
    excess = weights.unit(ret, np.abs(ret).max())
    found = {
        "PSV": float(np.square((excess - excess.mean()).clip(min=0)).mean()),
        "unique pairs": pairs,
        "unique share": pairs / len(dataset.row),
    }
    try:
        low, high, source = scores.reference(task or "")
    except UnknownName:
        return found
    quality = float(scores.normalised(task, ret.mean())) / 100
    return {"TQ": quality, "TQ reference": {"random": low, "expert": high, "source": source}, **found}


def coverage(dataset: Dataset, reference: Dataset) -> float:
    """SACo: unique pairs over those of the reference, both on the grid of the reference.

    It grows with the number of transitions, and can exceed 1.  Raises: DataError for other states or actions.
    """
    for key in ("state", "action"):
        ours, theirs = (getattr(data, key) for data in (dataset, reference))
        if (ours.dtype, ours.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
            raise DataError(f"key '{key}': rows {ours.dtype}{ours.shape[1:]}, in the reference {theirs.shape[1:]}")
    of = grid(reference)
    return unique_pairs(dataset, of) / unique_pairs(reference, of)


def grid(dataset: Dataset) -> Grid:
    """That of the transitions of a dataset."""

    def ends(key: str) -> tuple[Array, Array] | tuple[()]:
        if getattr(dataset, key).dtype.kind != "f":
            return ()
        low, high = zip(*((x.min(0), x.max(0)) for x in _blocks(dataset, key)), strict=True)
        return np.min(low, 0).astype(np.float64), np.max(high, 0).astype(np.float64)

    return Grid(ends("state"), ends("action"))


def unique_pairs(dataset: Dataset, of: Grid) -> int:
    """Different pairs of state and action among the transitions, as the grid tells them apart.

    It goes on outside its ranges; where a number does not vary it has steps of 1.  Pictures and discrete actions are
    counted as they are.
    """
    pairs = zip(_blocks(dataset, "state"), _blocks(dataset, "action"), strict=True)
    hashes = np.concatenate([_hash(_words(state, of.state), _words(action, of.action)) for state, action in pairs])
    hashes.sort()  # ten times as fast as np.unique
    return 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))


def _blocks(dataset: Dataset, key: str) -> Iterator[np.ndarray]:
    array = getattr(dataset, key)
    for begin in range(0, len(dataset.row), BLOCK):
        yield array[dataset.row[begin : begin + BLOCK]]


def _words(x: np.ndarray, ends: tuple[Array, Array] | tuple[()]) -> np.ndarray:
    """u64[W, n] what tells the rows of x [n, ...] apart."""
    if ends:
        low, high = ends
        step = np.where(high > low, (high - low) / PARTS, 1.0)
        part = (np.ascontiguousarray(x.T) - low[:, None]) / step[:, None]
        return (np.rint(part, out=part) + 0.0).view(np.uint64)  # + 0: there are two zeros
    flat = np.ascontiguousarray(x.reshape(len(x), -1)).view(np.uint8)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8)))
    return np.ascontiguousarray(flat.view(np.uint64).T)


def _hash(*words: np.ndarray) -> np.ndarray:
    """u64[n] of u64[W, n]: one by one each is mixed in by steps that lose nothing."""
    total = np.zeros(words[0].shape[1], np.uint64)
    for word in (row for part in words for row in part):
        total = (total ^ word) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(32)
    return total
