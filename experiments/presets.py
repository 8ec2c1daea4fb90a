"""Tuned values per algorithm and task, each with its source.  A preset is a function of the task to options.

The defaults in `algos/*.py` are the papers' own for D4RL locomotion; a preset says only what differs.
"""

from __future__ import annotations

from typing import Any

import algos
from experiments.options import EvalOptions, Train


def million() -> dict[str, Any]:
    """The budget that offline papers share: 1M updates (Fujimoto & Gu 2021, D4RL locomotion; 10 episodes each 5k)."""
    return {"steps": 1_000_000, "eval": EvalOptions(every=50_000, episodes=10), "save_every": 50_000}


def td3_bc(task: str) -> dict[str, Any]:
    # Fujimoto & Gu 2021, appendix: alpha 2.5 and batch 256 on every locomotion task, as the defaults.
    return million()


def bc(task: str) -> dict[str, Any]:
    return million()


PRESETS = {"td3_bc": td3_bc, "bc": bc}


def preset(algo: str, task: str) -> Train:
    """What `rheostat train ALGO TASK` runs when no option is given."""
    config = algos.load(algo).Config()
    options = PRESETS[algo](task) if algo in PRESETS else {}
    return Train(**{"config": config, **options})
