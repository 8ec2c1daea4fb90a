"""Tuned values per algorithm and task, each with its source.  A preset is a function of the task to options.

The defaults in `algos/*.py` are the papers' own; a preset says only what differs.
"""

from __future__ import annotations

from typing import Any

import algos
from experiments.options import EvalOptions, OnlineOptions, Train


def million() -> dict[str, Any]:
    """The budget that offline papers share: 1M updates (Fujimoto & Gu 2021, D4RL locomotion; 10 episodes each 5k)."""
    return {"steps": 1_000_000, "eval": EvalOptions(every=50_000, episodes=10), "save_every": 50_000}


def td3_bc(task: str) -> dict[str, Any]:
    # Fujimoto & Gu 2021, appendix: alpha 2.5 and batch 256 on every locomotion task, as the defaults.
    return million()


def bc(task: str) -> dict[str, Any]:
    return million()


def sac(task: str) -> dict[str, Any]:
    # Haarnoja et al. 2018, table 1: one update per step, a replay of 1M.  Ten thousand random steps as its authors
    # take on HalfCheetah and Ant; eight simulators instead of one, so that the policy is asked once for eight steps.
    online = OnlineOptions(envs=8, warmup=10_000)
    return {
        "steps": 1_000_000, "epoch": 2_000, "save_every": 50_000, "online": online,
        "eval": EvalOptions(every=20_000, episodes=10),
    }  # fmt: skip


def ppo(task: str) -> dict[str, Any]:
    # Schulman et al. 2017, table 3: horizon 2048, 10 epochs, minibatches of 64; here of 16 simulators x 128 steps.
    online = OnlineOptions(envs=16, length=128)
    chosen = {
        "steps": 1_024_000, "epoch": 10_240, "save_every": 102_400, "online": online,
        "eval": EvalOptions(every=20_480, episodes=10),
    }  # fmt: skip
    if task.startswith("mujoco/"):
        # ours: with the paper's network HalfCheetah-v5 stays at a slow gait, see experiments/RESULTS.md
        chosen["config"] = algos.load("ppo").Config(hidden=(256, 256), activation="relu", log_std=-1.0)
    return chosen


PRESETS = {"td3_bc": td3_bc, "bc": bc, "sac": sac, "ppo": ppo}


def preset(algo: str, task: str) -> Train:
    """What `rheostat train ALGO TASK` runs when no option is given."""
    config = algos.load(algo).Config()
    options = PRESETS[algo](task) if algo in PRESETS else {}
    return Train(**{"config": config, **options})
