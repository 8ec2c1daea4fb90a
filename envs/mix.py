"""Mixtures of datasets: whole episodes of several files, drawn by weights into a new one.

With replacement this is the recipe of the mixed datasets of trajectory weighting, 5 % of expert transitions among N of
a random policy: `expert.npz:0.05 random.npz:0.95 --replacement --transitions N`.  Its authors draw from D4RL's flat
files, where an unfinished last episode is glued to whatever is drawn behind it; here it stays an episode of its own.

Reference: Hong et al., 2023, arXiv:2306.13085; williamd4112/suboptimal_offline_datasets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.config import ConfigError
from core.dataset import DataError
from core.seeds import derive
from envs import datasets
from envs.collect import refuse_existing

PER_EPISODE = ("length", "success")


class Part(NamedTuple):
    path: Path
    weight: float  # share of transitions, in proportion to the other weights


def parse(texts: Sequence[str]) -> list[Part]:
    """Parts from `FILE:WEIGHT`.  Raises: ConfigError."""
    parts = []
    for text in texts:
        path, _, weight = text.rpartition(":")
        try:
            parts.append(Part(Path(path), float(weight)))
        except ValueError:
            raise ConfigError(f"'{text}' is not FILE:WEIGHT, such as data/expert.npz:0.5") from None
        if not path or not 0 < parts[-1].weight < np.inf:
            raise ConfigError(f"'{text}': the weight must be a number above zero, and the file must be named")
    if len({part.path.absolute() for part in parts}) < len(parts) or len(parts) < 2:
        raise ConfigError("a mixture needs at least two different files, each named once with its whole weight")
    return parts


def draw(length: np.ndarray, transitions: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of episodes whose lengths add up to at least `transitions`, the last one needed for it.

    Without replacement while there are any left; then all are put back, so that their counts differ by one at most.
    """
    chosen, total = [], 0
    while total < transitions:
        order = rng.permutation(len(length))
        reached = total + np.cumsum(length[order])
        order = order[: int(np.searchsorted(reached, transitions)) + 1]
        chosen.append(order)
        total += int(length[order].sum())
    return np.concatenate(chosen)


def draw_again(length: np.ndarray, beyond: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of independent episodes, alike and with replacement, until their lengths exceed `beyond`."""
    chosen, total = [np.zeros(0, np.int64)], 0
    while total <= beyond:
        order = rng.integers(len(length), size=int((beyond - total) // length.mean()) + 1)
        reached = total + np.cumsum(length[order])
        order = order[: int(np.searchsorted(reached, beyond, side="right")) + 1]
        chosen.append(order)
        total += int(length[order].sum())
    return np.concatenate(chosen)


def sources(card: dict[str, Any]) -> np.ndarray | None:
    """i64[E] which of its parents an episode is from, by the card of a dataset; None when it is no mixture."""
    if "mix" not in card:
        return None
    count = [parent["episodes"] for parent in card["parents"]]
    return np.repeat(np.arange(len(count)), count) if sum(count) == card["episodes"] else None


def take(arrays: dict[str, np.ndarray], episodes: np.ndarray) -> dict[str, np.ndarray]:
    """Episodes by their numbers, in that order, in the layout of `envs.datasets`."""
    rows = arrays["length"].astype(np.int64) + 1
    first, rows = (np.cumsum(rows) - rows)[episodes], rows[episodes]
    index = np.repeat(first - (np.cumsum(rows) - rows), rows) + np.arange(rows.sum())
    return {key: arrays[key][episodes if key in PER_EPISODE else index] for key in datasets.ARRAYS}


def mix(
    parts: Sequence[Part],
    transitions: int,
    seed: int,
    out: Path,
    made: dict[str, Any],
    report: Callable[[int], None] = lambda done: None,
    replacement: bool = False,
) -> dict[str, Any]:
    """Write the mixture and return its card, which holds those of the files.

    Args: transitions: at least so many, each file's share rounded; made: goes on the card; report: called with the
        transitions drawn so far, after each file; replacement: draw every episode from all of its file, more than the
        share, rounded down, of each file but the last, and of that until there are more than `transitions`.
    Raises: ConfigError for files of different tasks or shapes, when `out` exists, or when nothing is left for the last
        file; DataError for damaged ones.
    """
    if out.suffix != ".npz" or seed < 0 or transitions < len(parts):
        raise ConfigError(f"{out} must end in .npz, seed {seed} be >= 0, transitions {transitions} >= {len(parts)}")
    refuse_existing(out)
    total, parents, taken = sum(part.weight for part in parts), [], []
    for number, part in enumerate(parts):
        arrays, card = datasets.load(part.path)
        _agree(part.path, card["task"], arrays, parents, taken)
        rng = np.random.default_rng(derive(seed, number))
        if replacement:
            share, drawn = math.floor(transitions * part.weight / total + 1e-9), sum(p["transitions"] for p in parents)
            beyond = share if number < len(parts) - 1 else transitions - drawn
            if beyond < 0:
                raise ConfigError(f"{drawn} transitions are drawn before {part.path}: take more than {transitions}")
            chosen = draw_again(arrays["length"], beyond, rng)
        else:
            chosen = draw(arrays["length"], max(1, round(transitions * part.weight / total)), rng)
        taken.append(take(arrays, chosen))
        parents.append({
            "file": str(part.path), "sha256": card["sha256"], "weight": part.weight / total,
            "transitions": int(taken[-1]["length"].sum()), "episodes": len(chosen),
            "different episodes": len(np.unique(chosen)), "card": card,
        })  # fmt: skip
        report(sum(parent["transitions"] for parent in parents))
    del arrays
    whole = {key: np.concatenate([part.pop(key) for part in taken]) for key in datasets.ARRAYS}
    for parent in parents:
        parent["share"] = parent["transitions"] / int(whole["length"].sum())
    recipe = {"transitions": transitions, "seed": seed, "replacement": replacement}
    return datasets.write(out, whole, {"task": parents[0]["card"]["task"], "mix": recipe, "parents": parents, **made})


def _agree(path: Path, task: str | None, arrays: dict, parents: list[dict], taken: list[dict]) -> None:
    if not parents:
        return
    if task != (known := parents[0]["card"]["task"]):
        if not (task and known):
            nameless = parents[0]["file"] if task else path
            raise ConfigError(
                f"{nameless} does not say which task it is from, as the others do: make a file that does by "
                f"`rheostat data convert {nameless} --task {task or known} --out FILE`"
            )
        raise ConfigError(f"{path} was made on {task}, {parents[0]['file']} on {known}")
    for key in datasets.ARRAYS:
        kind, first = ((str(x[key].dtype), *x[key].shape[1:]) for x in (arrays, taken[0]))
        if kind != first:
            raise DataError(f"{path}: key '{key}' has rows {kind}, but {parents[0]['file']} has {first}")
