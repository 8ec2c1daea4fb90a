"""Dataset files and their cards.  Our own format is one npz:

    state f32[M, S]   action f32[M, A]   reward f32[M]   terminated bool[M]      rows as `core.types.Dataset` draws them
    length i32[E] transitions of each episode      success f32[E] whether it succeeded, by the task's rule
    card: JSON: how it was made, statistics, and a SHA-256 over the arrays, checked when it is read
Files of D4RL, Minari, OGBench and DPPO are read into the same arrays, with a card made on the spot; a dataset that one
of those published goes by its name.  Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from core import dataset as ds
from core.dataset import DataError
from core.types import Dataset, EnvSpec
from envs import measures
from envs.readers import formats, published
from envs.readers.files import File, open_file
from envs.readers.formats import OURS

# what reading a damaged npz has been seen to raise
DAMAGED = (
    *(OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
UNNAMED = "neither the file nor its name says which task it is from"  # a note
ARRAYS = ("state", "action", "reward", "terminated", "length", "success")


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the arrays."""
    total = hashlib.sha256()
    for name in ARRAYS:
        total.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def describe(arrays: dict[str, np.ndarray], task: str | None = None) -> dict[str, Any]:
    """Statistics of a dataset: size, quantiles of return and length, success, and its `envs.measures`."""
    dataset = index(arrays)
    of = ds.episodes(dataset)

    def quantiles(x: np.ndarray) -> dict[str, float]:
        values = [float(v) for v in np.quantile(x, [0, 0.25, 0.5, 0.75, 1])]
        return {**dict(zip(("min", "q25", "median", "q75", "max"), values, strict=True)), "mean": float(x.mean())}

    return {
        "episodes": len(of.length),
        "transitions": len(dataset.row),
        "state": list(dataset.state.shape[1:]),
        "action": list(dataset.action.shape[1:]),
        "return": quantiles(of.ret),
        "length": quantiles(of.length),
        "success": float(arrays["success"].mean()),
        "terminated": int(arrays["terminated"].sum()),
        "action_range": [float(arrays["action"].min()), float(arrays["action"].max())],
        "measures": measures.measures(dataset, task),
    }


def write(path: str | Path, arrays: dict[str, np.ndarray], made: dict[str, Any]) -> dict[str, Any]:
    """Check, describe and write atomically; returns the card.

    Args: arrays: the names of `ARRAYS`; made: how the data came about (task, command, seed, versions).
    Raises: DataError for arrays that could not be trained on, or a disk that is full.
    """
    path = Path(path)
    check(arrays, str(path))
    card = {"format": "rheostat 1", **made, **describe(arrays, made.get("task")), "sha256": digest(arrays)}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez_compressed(file, card=np.array(json.dumps(card)), **{name: arrays[name] for name in ARRAYS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        advice = f"{path.parent} takes no files: choose another --out"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space and run the command again"
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
    return card


def check(arrays: dict[str, np.ndarray], name: str, spec: EnvSpec | None = None) -> None:
    """Raises: DataError for arrays that could not be trained on, or that do not fit `spec`."""
    ds.check(index(arrays, name), name, spec)


def locate(path: str | Path) -> Path:
    """The file of a path, of a folder that Minari made, or of a published name, which may be downloaded.

    Raises: UnknownName; DataError when there is none, saying what to do.
    """
    given, path = str(path), Path(path)
    if path.is_dir():
        inside = [path / name for name in ("data/main_data.hdf5", "main_data.hdf5")]
        path = next((file for file in inside if file.is_file()), path)
    if path.is_file():
        return path
    if published.is_name(given):
        return published.locate(given)
    if path.suffix == ".parts" and path.is_dir():
        raise DataError(
            f"{path} is a folder, the unfinished collection of {path.with_suffix('')}: "
            "run the `rheostat collect` command that began it again to finish it"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder without Minari's main_data.hdf5; name a file (`rheostat list datasets`)")
    raise DataError(
        f"{path}: no such dataset. Name another file, one that is published (d4rl/hopper-medium-v2), or make one "
        "(`rheostat collect --help`)"
    )


def read(path: str | Path, spec: EnvSpec | None = None, task: str | None = None) -> tuple[Dataset, dict[str, Any]]:
    """Read and check a dataset -> (Dataset in NumPy, card).

    Args: path: file of any format, or a published name; spec: what it is to be used for; shapes must agree.
        task: what the card must say it was made on, if it says so.
    Raises: DataError naming the file, the key and the row, and what to do.
    """
    arrays, card = load(path, task, published.limit_of(path) or (spec.max_steps if spec else None))
    if task not in (None, card["task"] or task):
        raise DataError(f"{path} was made on {card['task']}, not on {task}; --data.any-task trains on it all the same")
    dataset = index(arrays, str(path))
    ds.check(dataset, str(path), spec)
    return dataset, card


def load(
    path: str | Path, task: str | None = None, max_steps: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a dataset in our layout -> (arrays, card); hashes are checked.

    Args: task: which one a foreign file is for, where neither its name nor its content says; max_steps: of an episode,
        for a flat file that does not say where its episodes end.
    """
    path = locate(path)
    with open_file(path) as file:
        kind = formats.recognise(file)
        return _own(file) if kind == OURS else _foreign(file, kind, task, max_steps)


def _own(file: File) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    missing = [key for key in (*ARRAYS, "card") if key not in file]
    if missing:
        raise DataError(f"{file.name}: key '{missing[0]}' is missing; it has {', '.join(sorted(file.keys))}")
    try:
        card = json.loads(file.text("card"))
    except json.JSONDecodeError:
        card = None
    if not isinstance(card, dict) or not {"task", "sha256"} <= set(card):
        raise DataError(f"{file.name}: its card names no task and hash; write it by envs.datasets.write")
    arrays = {key: file.column(key).array() for key in ARRAYS}
    if digest(arrays) != card["sha256"]:
        raise DataError(f"{file.name}: its arrays do not have the hash on its card. Make or copy it again")
    return arrays, card


def _foreign(
    file: File, kind: str, task: str | None, max_steps: int | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    of = published.task_of(file.path)
    if "masks" in file and "singletask" not in (of or ""):  # relabelled for a task that the name does not say
        of = None
    limit = max_steps or published.limit_of(file.path)
    found = formats.read(file, kind, published.bounds_of(of or task), limit)
    of = published.task_of_env(found.env) or of
    notes = [*found.notes, *([] if of else [UNNAMED])]
    source = {"file": str(file.path.absolute()), "bytes": file.path.stat().st_size}
    check(found.arrays, file.name)
    card = {"format": kind, "task": of, "source": source, "notes": notes, **describe(found.arrays, of)}
    return found.arrays, {**card, "sha256": digest(found.arrays)}


def _check_lengths(arrays: dict[str, np.ndarray], name: str) -> None:
    length, success = arrays["length"], arrays["success"]
    if arrays["state"].ndim not in (2, 4):
        raise DataError(f"{name}: key 'state': {arrays['state'].shape} is neither [M, S] nor [M, H, W, C]")
    rows = len(arrays["state"])
    if length.ndim != 1 or length.dtype.kind not in "iu" or not len(length) or length.min() < 1:
        raise DataError(f"{name}: key 'length': it must list the transitions of each episode, each at least 1")
    if length.sum() + len(length) != rows:
        raise DataError(
            f"{name}: key 'length': {len(length)} episodes need {length.sum() + len(length)} rows "
            f"(one more than their transitions), but 'state' has {rows}"
        )
    if success.shape != length.shape or success.dtype != np.float32 or not np.isfinite(success).all():
        raise DataError(f"{name}: key 'success': it must be a finite float32 for each of the {len(length)} episodes")


def index(arrays: dict[str, np.ndarray], name: str = "dataset") -> Dataset:
    """The arrays of a dataset in our layout as a `Dataset`.  Raises: DataError for lengths that do not fit."""
    _check_lengths(arrays, name)
    return ds.from_lengths(*(arrays[name] for name in ARRAYS[:5]))
