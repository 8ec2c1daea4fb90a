"""D4RL's flat files: `observations, actions, rewards, terminals` and mostly `timeouts`, as HDF5 or as npz.

With `next_observations` every row is a transition to its true successor.  D4RL's own conversions leave these out, as do
most files, and then the last row of an episode that a time limit ended has no successor: no transition starts there,
but the row keeps its own action and reward (ReBRAC's next action and returns of whole episodes need them).  The file's
last row is such a row too.  A row that ended the task has none either, which no target needs: its state stands there
once more, where D4RL's conversions put the next episode's first state.

Reference: Fu et al., 2020, arXiv:2004.07219; d4rl/__init__.py of Farama-Foundation/D4RL.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.readers.files import Column, File, many
from envs.readers.layout import UNIT, Bounds, Read, arrange, assemble

KEYS = ("observations", "actions", "rewards", "terminals")


def counted(terminals: np.ndarray, limit: int, after_terminal: int = 0, after_limit: int = 0) -> np.ndarray:
    """Rows where a counter of steps says that the time limit ended the episode, for files without `timeouts`.

    Args: terminals: bool[N]; limit: steps of an episode; after_terminal, after_limit: what the counter starts with
        behind a row that ended the task, and behind one of its own (D4RL's loops differ in this).
    Returns: bool[N].
    """
    limited, begin, count = np.zeros(len(terminals), bool), 0, 0
    for end in [*np.flatnonzero(terminals), len(terminals) - 1]:
        limited[begin + limit - 1 - count : end + 1 : limit - after_limit] = True
        count = after_limit if limited[end] else after_terminal
        begin = end + 1
    return limited


def _limited(data: Mapping[str, np.ndarray], limit: int | None, after: tuple[int, int]) -> np.ndarray:
    if "timeouts" in data:
        return np.asarray(data["timeouts"]).reshape(-1).astype(bool)
    if limit is None:
        raise ValueError("data without 'timeouts' need the limit of an episode's steps")
    return counted(np.asarray(data["terminals"]).reshape(-1).astype(bool), limit, *after)


def open_ended(limited: np.ndarray) -> np.ndarray:
    """bool[N] rows that start no transition when a successor is the row below: the last, and before a time limit."""
    return limited | (np.arange(len(limited)) == len(limited) - 1)


def qlearning(
    data: Mapping[str, np.ndarray], terminate_on_end: bool = False, limit: int | None = None
) -> dict[str, np.ndarray]:
    """D4RL's `qlearning_dataset` of a flat dataset: transitions in float32, the last row never among them.

    Rows that a time limit ended are left out; `terminate_on_end` keeps them, with the terminal of the file and the
    next episode's first state as successor.  Without `timeouts`, steps are counted to `limit` the way D4RL's loop
    does: from 1 on after a row that ended the task.
    """
    limited = _limited(data, limit, (1, 1) if terminate_on_end else (1, 0))
    rows = np.flatnonzero(~open_ended(limited & (not terminate_on_end)))
    state = np.asarray(data["observations"])
    return {
        "observations": state[rows].astype(np.float32),
        "actions": np.asarray(data["actions"])[rows].astype(np.float32),
        "next_observations": state[rows + 1].astype(np.float32),
        "rewards": np.asarray(data["rewards"]).reshape(-1)[rows].astype(np.float32),
        "terminals": np.asarray(data["terminals"]).reshape(-1)[rows].astype(bool),
    }


def sequence(data: Mapping[str, np.ndarray], limit: int | None = None) -> list[slice]:
    """D4RL's `sequence_dataset`: the rows of each complete episode; an unfinished tail is left out.

    Without `timeouts`, steps are counted to `limit` the way D4RL's loop does: from 1 on in all episodes but the first.
    """
    limited = _limited(data, limit, (1, 1))
    ends = np.flatnonzero(limited | np.asarray(data["terminals"]).reshape(-1).astype(bool)) + 1
    return [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []


def read(file: File, bounds: Bounds = UNIT, limit: int | None = None) -> Read:
    """The dataset of a flat file.

    Args: bounds: of the file's actions; limit: steps of an episode, where the file has no `timeouts`.
    Raises: DataError naming the key and row of what cannot be used.
    """
    observations, actions, rewards = (file.column(key) for key in KEYS[:3])
    n = observations.require(rank=(2, 4)).rows
    terminals = file.column("terminals").flags(n)
    after = file.column("next_observations").require(n, rank=(2, 4)) if "next_observations" in file else None
    notes = []
    if "timeouts" in file:
        limited = file.column("timeouts").flags(n)
    elif limit:
        limited = counted(terminals, limit)
        notes.append(f"no 'timeouts' in the file: episodes that did not end by themselves were cut at {limit} steps")
    elif after is not None:
        limited = _broken(observations, after)
        notes.append("no 'timeouts' in the file: an episode ends where the next row is not its successor")
    else:
        file.column("terminals").refuse(
            "without 'timeouts' the episodes' time limit must be known; give it by --max-steps, or train on a task"
        )
    last = open_ended(limited)
    final = last & (after is None)
    arrays = assemble(
        arrange(final, last | terminals, file.name), terminals & ~final, observations, actions, rewards, after,
        bounds=bounds,
    )  # fmt: skip
    left_out = int((terminals & final).sum())
    if left_out:
        notes.append(f"left out: {many(left_out, 'row')} at both the task's end and a time limit's or the file's")
    if after is not None:
        notes.append(
            f"{many(last.sum(), 'row')} with the successor in 'next_observations' alone: D4RL's conversion drops such"
        )
    return Read(arrays, [*notes, "no success in the file: 0 everywhere"])


def _broken(observations: Column, after: Column) -> np.ndarray:
    """bool[N] rows whose next observation is not the row below."""
    state, successor = observations.array(), after.array()
    different = (successor[:-1] != state[1:]).reshape(len(state) - 1, -1).any(1)
    return np.append(different, False)
