"""Files in the layouts of others, written as they write them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np


def flat(ends: str, state_dim: int = 3, action_dim: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """D4RL's flat arrays; `ends` has a letter per row: "." none, "T" the task ended, "L" the time limit, "B" both."""
    rng, n = np.random.default_rng(seed), len(ends)
    letters = np.array(list(ends))
    return {
        "observations": rng.standard_normal((n, state_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": (letters == "T") | (letters == "B"),
        "timeouts": (letters == "L") | (letters == "B"),
    }


def hdf5(path: Path, arrays: dict[str, np.ndarray], **options) -> Path:
    """Slashes in names make groups."""
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file.create_dataset(key, data=value, **options)
    return path


def npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def minari(path: Path, lengths=(4, 3), nested: bool = False, dtype=np.float64, seed: int = 0) -> list[dict]:
    """Writes episodes, the last step of the first ending its task; returns their arrays."""
    rng, episodes = np.random.default_rng(seed), []
    with h5py.File(path, "w") as file:
        for e, steps in enumerate(lengths):
            widths = {"observation": 3, "desired_goal": 2, "achieved_goal": 2} if nested else {"": 3}
            observations = {key: rng.standard_normal((steps + 1, width)) for key, width in widths.items()}
            episode = {
                **{f"observations/{key}".rstrip("/"): x.astype(dtype) for key, x in observations.items()},
                "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
                "rewards": rng.standard_normal(steps),
                "terminations": np.arange(steps) == (steps - 1 if e == 0 else -1),
                "truncations": np.arange(steps) == (steps - 1 if e else -1),
            }
            for key, value in episode.items():
                file.create_dataset(f"episode_{e}/{key}", data=value, chunks=True, maxshape=(None, *value.shape[1:]))
            file[f"episode_{e}"].attrs["total_steps"] = steps
            episodes.append(episode)
        file.attrs["total_episodes"] = len(lengths)
    return episodes


def minari_metadata(path: Path, env: str, low: list[float], high: list[float]) -> None:
    """`metadata.json` beside the data, whose spaces are JSON inside JSON."""
    space = {"type": "Box", "dtype": "float32", "shape": [len(low)], "low": low, "high": high}
    text = {"action_space": json.dumps(space), "env_spec": json.dumps({"id": env}), "data_format": "hdf5"}
    (path.parent / "metadata.json").write_text(json.dumps(text))


def ogbench(lengths=(4, 3), seed: int = 0, state_dim: int = 3) -> dict[str, np.ndarray]:
    """The compact layout: T + 1 rows for T transitions, the last marked."""
    rng, rows = np.random.default_rng(seed), sum(lengths) + len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(np.add(lengths, 1)) - 1] = True
    return {
        "observations": rng.standard_normal((rows, state_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": rng.standard_normal((rows, 5)),
    }


def dppo(lengths=(4, 3), ended=(True, False), seed: int = 0) -> dict[str, np.ndarray]:
    rng, rows = np.random.default_rng(seed), sum(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(lengths) - 1] = ended
    return {
        "states": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": terminals,
        "traj_lengths": np.array(lengths),
    }


def member(shape, dtype="<f4", body=b"") -> bytes:
    """A member of an npz, whose header can say what it likes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body
