"""Normalised scores: 0 for a random policy, 100 for an expert, by the constants in `scores.csv`.

Every dataset of an environment has the same pair, and so have the environments themselves in all their versions.

Reference: Fu et al., 2020, arXiv:2004.07219; d4rl/infos.py of Farama-Foundation/D4RL.
"""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from core.config import UnknownName


class Reference(NamedTuple):
    low: float  # return of a random policy
    high: float  # return of an expert
    source: str


@functools.cache
def references() -> dict[str, Reference]:
    """D4RL dataset -> its constants."""
    with (Path(__file__).parent / "scores.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return {row["name"]: Reference(float(row["min"]), float(row["max"]), row["source"]) for row in rows}


def reference(name: str) -> Reference:
    """The constants of a D4RL dataset (`hopper-medium-v2`, also with `d4rl/` before it), of a mixture of those
    (`hopper-random-medium-v2`), or of a task (`mujoco/hopper-v5`, `mjx/hopper-v5`).

    Raises: UnknownName.
    """
    table = references()
    bare = name.removeprefix("d4rl/")
    if bare in table:
        return table[bare]
    robots = "ant|halfcheetah|hopper|walker2d"
    if match := re.fullmatch(rf"(?:mujoco|mjx)/({robots})-v[45]|({robots})-random-(?:medium|expert)-v[012]", bare):
        return table[f"{match[1] or match[2]}-medium-v2"]
    raise UnknownName("normalised score", name, [*table, *(f"mujoco/{r}-v5" for r in robots.split("|"))])


def normalised(name: str, ret: Any) -> Any:
    """100 (G - min) / (max - min) for undiscounted returns G, a number or an array.  Raises: UnknownName."""
    low, high, _ = reference(name)
    return 100 * (ret - low) / (high - low)
