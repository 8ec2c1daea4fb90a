"""Minari's HDF5 (`main_data.hdf5`), read without the library.

A group `episode_N` holds `observations` of T + 1 rows and `actions, rewards, terminations, truncations` of T.  Where
observations are a dictionary (or a tuple) of arrays, they are joined in the order of their names, at each level, as
`gymnasium.spaces.flatten` joins them: `achieved_goal, desired_goal, observation` in a point maze.  Bounds of the
actions and the environment's id come from the file's attributes or from `metadata.json` beside it.

Reference: minari.farama.org, Dataset Standards.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np

from core.dataset import DataError
from envs.readers.files import File, admit, damage, plain
from envs.readers.layout import ROUNDING, UNIT, Box, Read

EPISODE = re.compile(r"episode_(\d+)")


def read(file: File, box: Box = UNIT) -> Read:
    """The dataset of a file.

    Args: box: of the actions, where the file does not say.
    Raises: DataError naming the key and row of what cannot be used.
    """
    env, said = _metadata(file)
    numbers = sorted(int(match[1]) for match in map(EPISODE.fullmatch, file.keys) if match)
    with damage(file.name), np.errstate(over="ignore", invalid="ignore"):
        root = file.handle["/"].id
        episodes = [_Episode(file.name, f"episode_{n}", plain(root, f"episode_{n}", file.name)) for n in numbers]
        return Read(*_read(episodes, said or box), env)


class _Episode:
    """A group of the file; its arrays by their paths."""

    def __init__(self, file: str, name: str, group: Any):
        self.file, self.name, self.group = file, name, group

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise DataError(f"{self.file}: key '{self.name}/{key}': {problem}")

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
        return [leaf for name in names for leaf in self.leaves(f"{key}/{name}")] or self.refuse(key, "it is empty")

    def array(self, key: str) -> Any:
        """An array that was not read yet."""
        import h5py

        found = self.member(key)
        if not isinstance(found, h5py.h5d.DatasetID) or not found.shape or found.dtype.kind not in "biuf":
            self.refuse(key, "it is no array of numbers with a row per step")
        return found

    def values(self, key: str, rows: int, shape: tuple[int, ...]) -> np.ndarray:
        import h5py

        array = self.array(key)
        if array.shape != (rows, *shape):
            self.refuse(
                key, f"its shape is {array.shape}, but {(rows, *shape)} belongs there (observations: one row more)"
            )
        out = np.empty(array.shape, array.dtype)
        array.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
        return out

    def actions(self, rows: int, shape: tuple[int, ...], box: Box) -> np.ndarray:
        """In [-1, 1]."""
        action = box.scaled(self.values("actions", rows, shape))
        outside = (np.abs(action) > 1 + ROUNDING).reshape(rows, -1).any(1)
        if outside.any():
            row = int(np.argmax(outside))
            self.refuse(
                "actions", f"row {row} is {action[row].tolist()} in units of the task's box, outside [-1, 1]; "
                "scale or clip the actions of the file"
            )  # fmt: skip
        return np.clip(action, -1, 1)

    def success(self) -> float | None:
        """Whether `infos/success` was ever set; newer files keep their infos as text, which is left alone."""
        import h5py

        infos = plain(self.group, "infos", self.file) if b"infos" in self.group else None
        if not isinstance(infos, h5py.h5g.GroupID) or b"success" not in infos:
            return None
        success = self.array("infos/success")
        return float(self.values("infos/success", success.shape[0], success.shape[1:]).any())


def _read(episodes: list[_Episode], box: Box) -> tuple[dict[str, np.ndarray], list[str]]:
    length = np.array([episode.array("rewards").shape[0] for episode in episodes], np.int32)
    if not length.all():
        episodes[int(np.argmin(length))].refuse("rewards", "the episode has no step")
    first = episodes[0]
    leaves = first.leaves("observations")
    shapes = {key: first.array(key).shape[1:] for key in (*leaves, "actions")}
    pixels = len(leaves) == 1 and len(shapes[leaves[0]]) == 3 and first.array(leaves[0]).dtype == np.uint8
    discrete = first.array("actions").dtype.kind in "iu" and shapes["actions"] == ()
    columns = np.cumsum([0, *(int(np.prod(shapes[key])) for key in leaves)])
    rows = int(length.sum(dtype=np.int64)) + len(length)
    state = (shapes[leaves[0]], np.uint8) if pixels else ((int(columns[-1]),), np.float32)
    action = () if discrete else shapes["actions"] or (1,)
    admit(first.file, rows * (int(np.prod(state[0])) * np.dtype(state[1]).itemsize + 4 * sum(action) + 9))
    arrays = {
        "state": np.empty((rows, *state[0]), state[1]),
        "action": np.zeros((rows, *action), np.int32 if discrete else np.float32),
        "reward": np.zeros(rows, np.float32),
        "terminated": np.zeros(rows, bool),
        "length": length,
        "success": np.zeros(len(length), np.float32),
    }
    begin, known = 0, False
    for e, (episode, steps) in enumerate(zip(episodes, length.tolist(), strict=True)):
        end = begin + steps
        for i, key in enumerate(leaves):
            values, to = episode.values(key, steps + 1, shapes[key]), arrays["state"][begin : end + 1]
            if pixels:
                to[:] = values
            else:
                to[:, columns[i] : columns[i + 1]] = values.reshape(steps + 1, -1)
        if discrete:
            arrays["action"][begin:end] = episode.values("actions", steps, ())
        else:
            arrays["action"][begin:end] = episode.actions(steps, shapes["actions"], box).reshape(steps, *action)
        arrays["reward"][begin:end] = episode.values("rewards", steps, ())
        arrays["terminated"][begin:end] = episode.values("terminations", steps, ())
        if (success := episode.success()) is not None:
            known, arrays["success"][e] = True, success
        begin = end + 1
    _require_finite(episodes, arrays, leaves, columns)
    return arrays, [] if known else ["no success in the file: 0 everywhere"]


def _require_finite(
    episodes: list[_Episode], arrays: dict[str, np.ndarray], leaves: list[str], columns: np.ndarray
) -> None:
    first = np.concatenate([[0], np.cumsum(arrays["length"] + 1)])
    for name, key in (("action", "actions"), ("reward", "rewards"), ("state", "")):
        if arrays[name].dtype != np.float32:
            continue
        finite = np.isfinite(arrays[name].reshape(first[-1], -1))
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            e = int(np.searchsorted(first, row, side="right")) - 1
            key = key or leaves[int(np.searchsorted(columns, column, side="right")) - 1]
            episodes[e].refuse(key, f"row {row - first[e]} is not finite as float32; leave such episodes out")


def _metadata(file: File) -> tuple[str, Box | None]:
    """(Gymnasium's id or "", bounds of the actions or None)."""
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

    env, space = str(part("env_spec").get("id", "")), part("action_space")
    try:
        low, high = (np.asarray(space[end], np.float64) for end in ("low", "high"))
    except (KeyError, TypeError, ValueError):
        return env, None
    bounded = low.shape == high.shape and np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()
    return env, Box(low, high) if bounded else None
