"""DPPO's and ReinFlow's npz: `states, actions, traj_lengths`, and where there are some `rewards, terminals, images`.

Trajectories lie back to back.  One that did not end its task has no successor of its last row: no transition starts
there, but the row keeps its action and reward.  Published files hold states and actions that were scaled to [-1, 1] by
their extremes; `normalization.npz` beside the file undoes it, as the policy will act in the task's own units.

Reference: Ren et al., 2024, arXiv:2409.00588; agent/dataset/sequence.py of irom-princeton/dppo.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from core.dataset import DataError
from envs.readers.files import File, many, open_file
from envs.readers.layout import UNIT, Bounds, Read, arrange, assemble

NORMALISATION = "normalization.npz"
EPS = 1e-6  # of 2 (x - min) / (max - min + EPS) - 1, which wrote the files


def read(file: File, bounds: Bounds = UNIT) -> Read:
    """The dataset of a file.

    Args: bounds: of the actions after `normalization.npz` was undone.
    Raises: DataError naming the key and row of what cannot be used.
    """
    observations, actions = file.column("states"), file.column("actions")
    n = observations.require(rank=(2,)).rows
    lengths = file.column("traj_lengths").vector()
    length = lengths.array().reshape(-1)
    if length.dtype.kind not in "iu":
        lengths.refuse(f"it must list whole numbers, the rows of each trajectory; its dtype is {length.dtype}")
    if (length < 1).any():
        bad = int(np.argmax(length < 1))
        lengths.refuse(f"trajectory {bad} has {length[bad]} rows; leave empty ones out, and make no length negative")
    if (total := sum(length.tolist())) != n:  # Python's integers: NumPy's would wrap around
        lengths.refuse(f"the trajectories have {many(total, 'row')} in all, but 'states' has {n:,}; they must agree")
    last = np.zeros(n, bool)
    last[np.cumsum(length) - 1] = True
    notes = ["no success in the file: 0 everywhere"]
    terminals = file.column("terminals").flags(n) if "terminals" in file else np.zeros(n, bool)
    inside = np.flatnonzero(terminals & ~last)
    if len(inside):
        file.column("terminals").refuse(f"row {inside[0]} ends the task, but not its trajectory in 'traj_lengths'")
    if "rewards" not in file:
        notes.append("no reward in the file: 0 everywhere")
    if "images" in file:
        notes.append("its pictures are left out: the state is that of 'states'")
    path = file.path.parent / NORMALISATION
    undo_state = undo_action = None
    if path.is_file():
        undo_state, undo_action = _undo(path, observations.shape[1:], actions.shape[1:])
        notes.append(f"states and actions are in the task's units again, by {NORMALISATION} beside the file")
    else:
        notes.append(f"states and actions are as in the file; {NORMALISATION} beside it would undo its scaling")
    arrays = assemble(
        arrange(last & ~terminals, last & terminals, file.name), terminals, observations, actions,
        file.column("rewards") if "rewards" in file else None,
        bounds=bounds if undo_action else UNIT, state=undo_state, action=undo_action,
    )  # fmt: skip
    return Read(arrays, notes)


def _undo(path, *shapes: tuple[int, ...]) -> list[Callable[[np.ndarray], np.ndarray]]:
    """The inverse scaling of states and of actions."""
    undo = []
    with open_file(path) as file:
        for name, shape in zip(("obs", "action"), shapes, strict=True):
            low, high = (file.column(f"{name}_{end}").array().astype(np.float64) for end in ("min", "max"))
            if low.shape != shape or high.shape != shape or not np.isfinite(high - low).all():
                raise DataError(f"{path}: key '{name}_min': expected {shape} finite numbers, as the data have columns")
            undo.append(lambda x, low=low, scale=high - low + EPS: (x + 1) / 2 * scale + low)
    return undo
