"""Making datasets from scripted experts: parallel, resumable, the same bits for any number of workers.

Blocks of episodes are written to OUT.parts as they finish; the same command after a stop goes on with those that are
missing, then joins them.  Episode e depends on (seed, e) only.  The action that is stored is the noisy one that was
executed.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.config import ConfigError, require_finite
from core.locks import alone
from core.metrics import write_json
from core.seeds import derive
from envs import datasets, registry
from envs.workers import Pool

BLOCK = 5  # episodes per file of a collection under way


@dataclass(frozen=True)
class Recipe:
    """What a collection consists of."""

    task: str
    episodes: int
    noise: float = 0.0  # standard deviation of Gaussian noise on the expert's actions, in units of the action box
    seed: int = 0
    max_steps: int = 0  # shorter episodes than the task's own; 0 keeps those


def check(recipe: Recipe) -> None:
    """Raises: ConfigError for a task without a scripted expert, or for numbers that make no dataset."""
    if not hasattr(registry.suite(registry.check(recipe.task)[0]), "expert"):
        have = [s for s in registry.SUITES if hasattr(registry.suite(s), "expert")]
        raise ConfigError(f"{recipe.task} has no scripted expert; the tasks of {', '.join(have)} have one")
    require_finite(recipe)
    if recipe.episodes < 1 or recipe.noise < 0 or recipe.seed < 0:
        raise ConfigError(f"episodes {recipe.episodes}, noise {recipe.noise} and seed {recipe.seed} must be >= 1, 0, 0")


class Player:
    """Plays episodes of a recipe by their numbers."""

    def __init__(self, recipe: Recipe):
        family, self._name = registry.check(recipe.task)
        self._expert = registry.suite(family).expert
        self.recipe = recipe
        self._env = registry.make(recipe.task, 1, registry.Options(max_steps=recipe.max_steps))

    def play(self, episodes: range) -> dict[str, np.ndarray]:
        """Arrays in the layout of `envs.datasets`."""
        columns: dict[str, list] = {key: [] for key in datasets.ARRAYS}

        def add(*row) -> None:
            for key, value in zip(datasets.ARRAYS, row, strict=False):
                columns[key].append(value)

        for episode in episodes:
            obs, policy = self._env.reset([derive(self.recipe.seed, episode)]), self._expert(self._name)
            noise = np.random.default_rng(derive(self.recipe.seed, episode, 1))
            success, over = [], False
            while not over:
                intended = np.clip(policy.get_action(obs.state[0].astype(np.float64)), -1, 1)
                action = np.clip(intended + self.recipe.noise * noise.standard_normal(intended.shape), -1, 1)
                action = action.astype(np.float32)
                ts = self._env.step(action[None])
                add(obs.state[0], action, ts.reward[0], ts.terminated[0])
                success.append(ts.success[0])
                obs, over = ts.obs, bool(ts.terminated[0] or ts.truncated[0])
            add(ts.final_obs.state[0], np.zeros_like(action), np.float32(0), np.False_)
            columns["length"].append(np.int32(len(success)))
            columns["success"].append(np.float32(max(success) if self._env.spec.success == "any" else success[-1]))
        return {key: np.stack(values) for key, values in columns.items()}

    def write(self, block: int, path: Path) -> None:
        """Play one block and write it atomically."""
        arrays = self.play(range(block * BLOCK, min((block + 1) * BLOCK, self.recipe.episodes)))
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)

    def close(self) -> None:
        self._env.close()


def collect(
    recipe: Recipe, out: Path, workers: int, made: dict[str, Any], report: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Play what is missing, join the blocks into `out`, and return its card.

    Args: workers: processes; made: goes on the card; report: called with the episodes done so far.
    Raises: ConfigError when `out` exists, or when the blocks beside it belong to another recipe; WorkerError.
    """
    check(recipe)
    if workers < 1 or out.suffix != ".npz":
        raise ConfigError(f"workers {workers} must be at least 1, and {out} must end in .npz")
    _refuse_existing(out)
    registry.make(recipe.task, 1, registry.Options(max_steps=recipe.max_steps)).close()  # refuses before we write
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    with alone(parts):
        try:
            _refuse_existing(out)  # another process may have been faster
        except ConfigError:
            shutil.rmtree(parts)
            raise
        card = _collect(recipe, out, parts, workers, made, report)
        shutil.rmtree(parts)
    return card


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out, or delete it to make it anew")


def _collect(recipe: Recipe, out: Path, parts: Path, workers: int, made: dict[str, Any], report) -> dict[str, Any]:
    note = parts / "recipe.json"
    if note.exists() and _recipe(note) != asdict(recipe):
        raise ConfigError(f"{parts} holds the beginning of another collection ({note.read_text()}); delete it first")
    write_json(note, asdict(recipe))
    files = [parts / f"{block:06d}.npz" for block in range(-(-recipe.episodes // BLOCK))]
    missing = [block for block, path in enumerate(files) if not _whole(path)]

    def size(block: int) -> int:
        return min(BLOCK, recipe.episodes - block * BLOCK)

    done = recipe.episodes - sum(map(size, missing))
    report(done)
    pool = Pool([functools.partial(Player, recipe)] * min(workers, len(missing))) if missing else None
    try:
        for begin in range(0, len(missing), workers):
            batch = missing[begin : begin + workers]
            pool.call("write", [(block, files[block]) for block in batch])
            done += sum(size(block) for block in batch)
            report(done)
    finally:
        if pool:
            pool.close()
    blocks = [_load(path) for path in files]
    arrays = {key: np.concatenate([block[key] for block in blocks]) for key in datasets.ARRAYS}
    return datasets.write(out, arrays, {"task": recipe.task, "recipe": asdict(recipe), **made})


def _recipe(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except ValueError:
        return None


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as block:
        return {key: block[key] for key in datasets.ARRAYS}


def _whole(path: Path) -> bool:
    """Whether a block was written and can be read; one that was damaged is played again."""
    try:
        return bool(_load(path))
    except datasets.DAMAGED:
        return False
