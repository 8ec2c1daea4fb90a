"""Minari's HDF5 (`main_data.hdf5`), read without the library.

A group `episode_N` holds `observations` of T + 1 rows and `actions, rewards, terminations, truncations` of T.  Where
observations are a dictionary (or a tuple) of arrays, they are joined in the order of their names, at each level, as
`gymnasium.spaces.flatten` joins them: `achieved_goal, desired_goal, observation` in a point maze.  Bounds of the
actions and the environment's id come from the file's attributes or from `metadata.json` beside it.

Reference: minari.farama.org, Dataset Standards.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import numpy as np

from core.dataset import DataError
from envs.readers.files import Column, File, damage, hdf5_column, many, plain
from envs.readers.layout import UNIT, Bounds, Read, blank, place

EPISODE = re.compile(r"episode_(\d+)")


def read(file: File, bounds: Bounds = UNIT) -> Read:
    """The dataset of a file.

    Args: bounds: of the actions, where the file does not say.
    Raises: DataError naming the key and row of what cannot be used.
    """
    env, said, total = _metadata(file)
    numbers = sorted(int(match[1]) for match in map(EPISODE.fullmatch, file.keys) if match)
    if len(numbers) < total:
        lost = next(n for n in itertools.count() if n not in set(numbers))
        raise DataError(
            f"{file.name}: key 'episode_{lost}' is missing: 'total_episodes' is {total:,}, but the file has "
            f"{many(len(numbers), 'episode')}. Make or copy it again"
        )
    with damage(file.name):
        root = file.handle["/"].id
        episodes = [_Episode(file.name, f"episode_{n}", plain(root, f"episode_{n}", file.name)) for n in numbers]
        return Read(*_read(episodes, said or bounds), env)


class _Episode:
    """A group of the file; its arrays by their paths."""

    def __init__(self, file: str, name: str, group: Any):
        self.file, self.name, self.group = file, name, group

    def member(self, key: str) -> Any:
        found = self.group
        for part in key.split("/"):
            found = plain(found, part, self.file)
        return found

    def leaves(self, key: str) -> list[str]:
        """Paths of the arrays at or below a key, by name at each level (parts of a tuple, `_index_10`, by number)."""
        import h5py

        member = self.member(key)
        if not isinstance(member, h5py.h5g.GroupID):
            return [key]
        names = [name.decode() for name in member]
        names.sort(key=lambda name: (int(name[7:]) if re.fullmatch(r"_index_\d+", name) else 0, name))
        found = [leaf for name in names for leaf in self.leaves(f"{key}/{name}")]
        if not found:
            raise DataError(f"{self.file}: key '{self.name}/{key}': it is empty")
        return found

    def column(self, key: str) -> Column:
        column = hdf5_column(self.member(key), f"{self.name}/{key}", self.file)
        return column.require(rank=(1, 2, 3, 4))

    def shaped(self, key: str, rows: int, shape: tuple[int, ...]) -> Column:
        column = self.column(key)
        if column.shape != (rows, *shape):
            column.refuse(
                f"its shape is {column.shape}, but {(rows, *shape)} belongs there (observations: one row more)"
            )
        return column

    def steps(self, leaf: str) -> int:
        """Transitions by most of its arrays, so that the one that disagrees is refused by its name."""
        return sorted((self.column(leaf).rows - 1, self.column("actions").rows, self.column("rewards").rows))[1]

    def whole(self, steps: int) -> None:
        """Raises: DataError when a time limit ended it before its last step."""
        if b"truncations" not in self.group:
            return
        column = self.column("truncations")
        early = np.flatnonzero(column.flags(steps)[:-1])
        if len(early):
            column.refuse(
                f"row {early[0]} ends the episode with {many(steps - 1 - early[0], 'step')} left: split it there"
            )

    def success(self, steps: int) -> bool | None:
        """Whether `infos/success`, of each step and maybe of the reset, was ever set; newer files keep their infos as
        text, which is left alone.
        """
        import h5py

        infos = plain(self.group, "infos", self.file) if b"infos" in self.group else None
        if not isinstance(infos, h5py.h5g.GroupID) or b"success" not in infos:
            return None
        success = self.column("infos/success")
        return bool(success.flags(steps + (success.rows == steps + 1)).any())


def _read(episodes: list[_Episode], bounds: Bounds) -> tuple[dict[str, np.ndarray], list[str]]:
    first = episodes[0]
    leaves = first.leaves("observations")
    length = np.array([episode.steps(leaves[0]) for episode in episodes], np.int64)
    shapes = {key: first.column(key).shape[1:] for key in (*leaves, "actions")}
    pixels = len(leaves) == 1 and len(shapes[leaves[0]]) == 3 and first.column(leaves[0]).dtype == np.uint8
    discrete = first.column("actions").dtype.kind in "iu" and shapes["actions"] == ()
    ends = list(itertools.accumulate((math.prod(shapes[key]) for key in leaves), initial=0))
    columns = [slice(None)] if pixels else [slice(*pair) for pair in itertools.pairwise(ends)]
    arrays = blank(
        first.file, length,
        (shapes[leaves[0]], np.uint8) if pixels else ((ends[-1],), np.float32),
        ((), np.int32) if discrete else (shapes["actions"] or (1,), np.float32),
    )  # fmt: skip
    begin, known = 0, False
    for e, (episode, steps) in enumerate(zip(episodes, length.tolist(), strict=True)):
        rows = np.arange(begin, begin + steps + 1)
        for key, part in zip(leaves, columns, strict=True):
            place(arrays["state"][:, part], episode.shaped(key, steps + 1, shapes[key]), rows)
        actions = episode.shaped("actions", steps, shapes["actions"])
        place(arrays["action"], actions, rows, None if discrete else bounds.scaled, bounded=not discrete)
        place(arrays["reward"], episode.shaped("rewards", steps, ()), rows)
        episode.whole(steps)
        arrays["terminated"][rows[:-1]] = episode.column("terminations").flags(steps)
        if (success := episode.success(steps)) is not None:
            known, arrays["success"][e] = True, success
        begin += steps + 1
    return arrays, [] if known else ["no success in the file: 0 everywhere"]


def _metadata(file: File) -> tuple[str, Bounds | None, int]:
    """(Gymnasium's id or "", bounds of the actions or None, number of episodes or 0 where it is not said)."""
    beside = file.path.parent / "metadata.json"
    with damage(str(beside)):
        found = json.loads(beside.read_text()) if beside.is_file() and beside.stat().st_size < 1 << 24 else {}
    with damage(file.name):
        found = {**found, **{key: file.handle.attrs[key] for key in file.handle.attrs}}

    def part(key: str) -> dict[str, Any]:
        value = found.get(key, {})
        try:
            value = json.loads(value) if isinstance(value, str | bytes) else value
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    total = found.get("total_episodes", 0)
    total = int(total) if np.ndim(total) == 0 and np.asarray(total).dtype.kind in "iu" else 0
    env, space = str(part("env_spec").get("id", "")), part("action_space")
    try:
        low, high = (np.asarray(space[end], np.float64) for end in ("low", "high"))
    except (KeyError, TypeError, ValueError):
        return env, None, total
    bounded = low.shape == high.shape and np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()
    return env, Bounds(low, high) if bounded else None, total
