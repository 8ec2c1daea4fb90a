"""OGBench's files, compact and full.

compact: a trajectory of T transitions has T + 1 rows, and `terminals` marks the last: our own layout.  As the library
loads it, `terminals` marks the last two, and `valids` says which rows start a transition.
full: T rows with `next_observations`; `terminals` marks the last transition.

`terminals` marks where a trajectory was cut, never the end of a task.  The data carry no reward, which is 0, unless
they were relabelled for a single task (`rewards`, `masks`): a row whose mask is 0 then ends the task, and its
trajectory goes on as another episode.  The validation split is a file of its own, NAME-val.

Reference: Park et al., 2025, arXiv:2410.20092; ogbench.utils.load_dataset.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from envs.readers.files import Column, File
from envs.readers.layout import Read, arrange, assemble


def read(file: File) -> Read:
    """The dataset of a file.  Raises: DataError naming the key and row of what cannot be used."""
    observations, actions = file.column("observations"), file.column("actions")
    n = observations.require(rank=(2, 4)).rows
    cut = file.column("terminals").flags(n)
    if "valids" in file:
        cut = ~file.column("valids").flags(n)
    if not cut[-1]:
        file.column("valids" if "valids" in file else "terminals").refuse(
            f"row {n - 1}, the file's last, does not end its trajectory: the file is cut off; make or copy it again"
        )
    relabelled = "masks" in file and "rewards" in file
    over = ~file.column("masks").flags(n) if relabelled else np.zeros(n, bool)
    if "next_observations" in file:
        final, ended, after = np.zeros(n, bool), cut | over, file.column("next_observations")
    else:
        final, ended, after = cut, over & ~cut, _below(observations)
    rewards = file.column("rewards") if relabelled else None
    layout = arrange(final, ended, file.name)
    arrays = assemble(layout, over & ~final, observations, actions, rewards, after)
    if relabelled:
        last = np.cumsum(layout.length + 1) - 2  # row of each episode's last transition
        arrays["success"][:] = arrays["terminated"][last]
        return Read(arrays, ["relabelled for a single task: an episode ends where its mask is 0"])
    return Read(arrays, ["goal-conditioned data: reward and success are 0 everywhere"])


def _below(observations: Column) -> Column:
    """The same rows, each replaced by the one below it."""

    def parts() -> Iterator[np.ndarray]:
        first = True
        for part in observations.parts():
            yield part[1:] if first else part
            first = False
        yield part[-1:]

    return observations._replace(parts=parts)
