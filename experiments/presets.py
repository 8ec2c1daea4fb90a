"""Tuned values per algorithm and task, each with its source.  A preset is a function of the task to options.

The defaults in `algos/*.py` are the papers' own for D4RL locomotion; a preset says only what differs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import algos
from experiments.options import EvalOptions, Train


def td3_bc(task: str) -> dict[str, Any]:
    # Fujimoto & Gu 2021, appendix: alpha 2.5, batch 256, 1M updates on every locomotion task; evaluation: 10 episodes.
    return {"updates": 1_000_000, "eval": EvalOptions(every=50_000, episodes=10), "save_every": 50_000}


def bc(task: str) -> dict[str, Any]:
    # The budget of the methods it stands beside.
    return td3_bc(task)


PRESETS = {"td3_bc": td3_bc, "bc": bc}


def preset(algo: str, task: str) -> Train:
    """What `rheostat train ALGO TASK` runs when no option is given."""
    config = algos.load(algo).Config()
    options = PRESETS[algo](task) if algo in PRESETS else {}
    config = dataclasses.replace(config, **options.pop("config", {}))
    return Train(config=config, **options)
