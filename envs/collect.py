"""Making datasets from scripted experts: parallel, resumable, the same bits for any number of workers.

Blocks of episodes are written to OUT.parts as they finish; the same command after a stop goes on with those that are
missing, then joins them.  Episode e depends on (seed, e) only.  The action that is stored is the noisy one that was
executed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.config import ConfigError
from core.seeds import derive
from envs import registry

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
    if recipe.episodes < 1 or recipe.noise < 0 or recipe.seed < 0:
        raise ConfigError(f"episodes {recipe.episodes}, noise {recipe.noise} and seed {recipe.seed} must be >= 1, 0, 0")


def play(recipe: Recipe, episodes: range) -> dict[str, np.ndarray]:
    """The episodes of these numbers, in the layout of `envs.datasets`."""
    suite, name = registry.check(recipe.task)
    expert = registry.suite(suite).expert
    env = registry.make(recipe.task, 1, registry.Options(max_steps=recipe.max_steps))
    columns: dict[str, list] = {key: [] for key in ("state", "action", "reward", "terminated", "length", "success")}
    try:
        for episode in episodes:
            obs, policy = env.reset([derive(recipe.seed, episode)]), expert(name)
            noise = np.random.default_rng(derive(recipe.seed, episode, 1))
            success, over = [], False
            while not over:
                intended = np.clip(policy.get_action(obs.state[0].astype(np.float64)), -1, 1)
                action = np.clip(intended + recipe.noise * noise.standard_normal(intended.shape), -1, 1)
                action = action.astype(np.float32)
                ts = env.step(action[None])
                row = (obs.state[0], action, ts.reward[0], ts.terminated[0])
                for key, value in zip(("state", "action", "reward", "terminated"), row, strict=True):
                    columns[key].append(value)
                success.append(ts.success[0])
                obs, over = ts.obs, bool(ts.terminated[0] or ts.truncated[0])
            last = (ts.final_obs.state[0], np.zeros_like(action), np.float32(0), np.False_)
            for key, value in zip(("state", "action", "reward", "terminated"), last, strict=True):
                columns[key].append(value)
            columns["length"].append(np.int32(len(success)))
            columns["success"].append(np.float32(max(success) if env.spec.success == "any" else success[-1]))
    finally:
        env.close()
    return {key: np.stack(values) for key, values in columns.items()}


def _play_block(recipe: Recipe, block: int, path: Path) -> int:
    """Write one block atomically; returns its number of episodes."""
    episodes = range(block * BLOCK, min((block + 1) * BLOCK, recipe.episodes))
    arrays = play(recipe, episodes)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)
    return len(episodes)


def collect(
    recipe: Recipe, out: Path, workers: int, made: dict[str, Any], report: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Play what is missing, join the blocks into `out`, and return its card.

    Args: workers: processes; made: goes on the card; report: called with the episodes done so far.
    Raises: ConfigError when `out` exists, or when the blocks beside it belong to another recipe.
    """
    from envs import datasets  # needs jax, which the workers do without

    check(recipe)
    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out, or delete it to make it anew")
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    note = parts / "recipe.json"
    if note.exists() and json.loads(note.read_text()) != asdict(recipe):
        raise ConfigError(f"{parts} holds the beginning of another collection ({note.read_text()}); delete it first")
    note.write_text(json.dumps(asdict(recipe)))
    files = [parts / f"{block:06d}.npz" for block in range(-(-recipe.episodes // BLOCK))]
    missing = [block for block, path in enumerate(files) if not path.exists()]
    done = sum(min(BLOCK, recipe.episodes - block * BLOCK) for block, path in enumerate(files) if path.exists())
    report(done)
    context = multiprocessing.get_context("spawn")
    quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to handle
    with ProcessPoolExecutor(min(workers, max(len(missing), 1)), context, signal.signal, quiet) as pool:
        try:
            for future in as_completed([pool.submit(_play_block, recipe, block, files[block]) for block in missing]):
                done += future.result()
                report(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    blocks = [np.load(path, allow_pickle=False) for path in files]
    arrays = {key: np.concatenate([block[key] for block in blocks]) for key in datasets.ARRAYS}
    card = datasets.write(out, arrays, {"task": recipe.task, "recipe": asdict(recipe), **made})
    shutil.rmtree(parts)
    return card
