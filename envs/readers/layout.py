"""From the rows of a foreign file to ours: `core.types.Dataset` draws the layout.

A row of a flat file either starts a transition or is the last of its episode; one that ends its episode and starts a
transition gets a successor row behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from core.dataset import DataError
from envs.readers.files import Column, admit

ROUNDING = 1e-3  # actions this far outside [-1, 1] are clipped; farther ones belong to another box


class Read(NamedTuple):
    """What a reader makes of a file."""

    arrays: dict[str, np.ndarray]  # those of `envs.datasets.ARRAYS`
    notes: list[str]  # what a reader of the card should know
    env: str = ""  # Gymnasium's id, where the file says it


class Bounds(NamedTuple):
    """Bounds of the actions in a file, scalars or f64[A]."""

    low: Any = -1.0
    high: Any = 1.0

    @property
    def unit(self) -> bool:
        return bool(np.all(np.equal(self.low, -1)) and np.all(np.equal(self.high, 1)))

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """To [-1, 1]."""
        if self.unit:
            return action
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        return 2 * (action - low) / (high - low) - 1


UNIT = Bounds()


class Layout(NamedTuple):
    target: np.ndarray  # i64[N] our row of each row of the file; -1 for rows of no transition
    ended: np.ndarray  # i64[K] rows of the file whose successor is a row of its own, behind it
    length: np.ndarray  # i64[E] transitions of each episode


def arrange(final: np.ndarray, ended: np.ndarray, name: str) -> Layout:
    """Where the rows of a flat file go.

    Args: final: bool[N] rows that are the last of their episode and start no transition, the file's last among them;
        ended: bool[N] other rows that are the last of their episode.
    Raises: DataError when no transition is left.
    """
    ended = ended & ~final
    last = final | ended
    episode = np.cumsum(last) - last
    length = np.bincount(episode, weights=~final).astype(np.int64)  # by episode
    kept = (length > 0)[episode]
    if not kept.any():
        raise DataError(f"{name}: it holds no transition: every row is the last of its episode")
    before = np.cumsum(kept) - kept + np.cumsum(ended) - ended
    return Layout(np.where(kept, before, -1), np.flatnonzero(ended), length[length > 0])


def blank(
    name: str, length: np.ndarray, state: tuple[tuple[int, ...], type], action: tuple[tuple[int, ...], type]
) -> dict[str, np.ndarray]:
    """Our arrays for episodes of so many transitions, zeros but for the states, which are to be filled in.

    Args: length: i64[E]; state, action: shape of a row, dtype.
    Raises: DataError when they do not fit into memory, or have too many rows to count in int32.
    """
    rows = int(length.sum()) + len(length)
    sizes = (np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object)) for shape, dtype in (state, action))
    admit(name, rows * (sum(sizes) + 5))
    if rows >= 2**31:
        raise DataError(f"{name}: more than 2^31 rows; use a part of the data")
    return {
        "state": np.empty((rows, *state[0]), state[1]),
        "action": np.zeros((rows, *action[0]), action[1]),
        "reward": np.zeros(rows, np.float32),
        "terminated": np.zeros(rows, bool),
        "length": length.astype(np.int32),
        "success": np.zeros(len(length), np.float32),
    }


def place(
    out: np.ndarray,
    column: Column,
    target: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
    bounded: bool = False,
) -> None:
    """out[target[i]] = change(row i of the column), for targets from 0 on.

    Args: bounded: the values must lie in [-1, 1], up to rounding.
    Raises: DataError naming the first row that is not finite or not in bounds.
    """
    for begin, part in column.blocks():
        to = target[begin : begin + len(part)]
        rows = np.flatnonzero(to >= 0)
        if not len(rows):
            continue
        if len(rows) < len(part):
            part, to = part[rows], to[rows]
        part = part.reshape(len(part), *out.shape[1:])
        with np.errstate(over="ignore", invalid="ignore"):
            part = (part if change is None else change(part)).astype(out.dtype, copy=False)
        if out.dtype.kind == "f" and not (finite := np.isfinite(part)).all():
            bad = rows[np.argmin(finite.reshape(len(part), -1).all(1))]
            column.refuse(f"row {begin + bad} is not finite as float32; leave such episodes out")
        if bounded:
            _check_bounds(column, begin, rows, part)
            part = np.clip(part, -1, 1)
        if to[-1] - to[0] + 1 == len(to):
            out[to[0] : to[-1] + 1] = part
        else:
            out[to] = part


def _check_bounds(column: Column, begin: int, rows: np.ndarray, part: np.ndarray) -> None:
    outside = (np.abs(part) > 1 + ROUNDING).reshape(len(part), -1).any(1)
    if outside.any():
        first = int(np.argmax(outside))
        column.refuse(
            f"row {begin + rows[first]} is {part[first].ravel().tolist()}, outside [-1, 1] in units of the task's box; "
            "scale or clip the actions of the file"
        )


def assemble(
    layout: Layout,
    terminated: np.ndarray,
    observations: Column,
    actions: Column,
    rewards: Column | None,
    next_observations: Column | None = None,
    *,
    bounds: Bounds = UNIT,
    state: Callable[[np.ndarray], np.ndarray] | None = None,
    action: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Our arrays from flat columns.  A successor row holds the file's next observation, else the last state again.

    Args: terminated: bool[N] rows of the file whose transition ended the task; rewards: None for zeros; bounds: of
        the file's actions; state, action: undo a normalisation.
    """
    n = len(layout.target)
    observations.require(n, rank=(2, 4))
    actions.require(n, rank=(1, 2))
    pixels, discrete = len(observations.shape) == 4, actions.dtype.kind in "iu" and len(actions.shape) == 1
    if pixels and observations.dtype != np.uint8:
        observations.refuse(f"pictures must be uint8, not {observations.dtype}")
    arrays = blank(
        observations.file, layout.length,
        (observations.shape[1:], np.uint8 if pixels else np.float32),
        ((), np.int32) if discrete else (actions.shape[1:] or (1,), np.float32),
    )  # fmt: skip
    place(arrays["state"], observations, layout.target, state)
    behind = layout.target[layout.ended] + 1
    if next_observations is not None:
        target = np.full(n, -1)
        target[layout.ended] = behind
        place(arrays["state"], next_observations.require(n, rank=(2, 4)), target, state)
    else:
        arrays["state"][behind] = arrays["state"][behind - 1]

    def to_unit(part: np.ndarray) -> np.ndarray:
        return bounds.scaled(part if action is None else action(part))

    place(arrays["action"], actions, layout.target, None if discrete else to_unit, bounded=not discrete)
    if rewards is not None:
        place(arrays["reward"], rewards.vector(n), layout.target)
    arrays["terminated"][layout.target[np.flatnonzero(terminated & (layout.target >= 0))]] = True
    return arrays
