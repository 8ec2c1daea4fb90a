"""Presets of the algorithms that learn from a dataset: values per task and kind of dataset, with their sources.

full: the budget of the papers, 1M updates.  cpu: 30k (CQL 10k) of half as wide networks, and ReBRAC's batches are a
quarter.  matched and cpu-matched, of TD3+BC with DW or without: PRDC's alpha and rewards, so that what differs is the
neighbour.

Rewards of AntMaze are 0 and 1 in D4RL and -1 and 0 in OGBench's single tasks, one less: a published a r + b is written
here as a r + (a + b).
"""

from __future__ import annotations

import re
from typing import Any

import algos
from experiments.options import DataOptions, EvalOptions

KINDS = ("medium-expert", "medium-replay", "full-replay", "replay", "random", "medium", "expert")


def kind_of(data: str) -> str:
    """Which of D4RL's kinds of dataset a name or a file's name says, or none; a replay is taken for medium-replay."""
    words = f"-{'-'.join(re.findall('[a-z0-9]+', data.lower().rsplit('/', 1)[-1]))}-"
    found = []
    for kind in KINDS:
        if f"-{kind}-" in words:
            found.append(kind)
            words = words.replace(f"-{kind}-", "-")
    kind = found[0] if len(found) == 1 else ""  # a mixture of several is no kind of D4RL's
    return "medium-replay" if kind == "replay" else kind


def robot_of(task: str) -> str:
    """Which of Gymnasium's robots, or none."""
    return task.partition("/")[2].partition("-")[0] if task.startswith("mujoco/") else ""


def _budget(task: str, size: str, updates: int = 30_000) -> dict[str, Any]:
    if size == "cpu":
        return {"steps": updates, "save_every": 10_000, "eval": EvalOptions(every=10_000, episodes=10)}
    # 10 episodes each 5k updates in most papers, 100 in AntMaze
    episodes = 100 if "antmaze" in task else 10
    return {"steps": 1_000_000, "save_every": 50_000, "eval": EvalOptions(every=50_000, episodes=episodes)}


def _config(algo: str, size: str, **values: Any) -> Any:
    if size == "cpu":
        values["hidden"] = (128,) * len(values.get("hidden", algos.load(algo).Config().hidden))
    return algos.load(algo).Config(**values)


def bc(task: str, size: str, data: str = "") -> dict[str, Any]:
    return {"config": _config("bc", size), **_budget(task, size)}


def td3_bc(task: str, size: str, data: str = "") -> dict[str, Any]:
    # Fujimoto & Gu 2021, appendix: alpha 2.5 and batch 256 on every locomotion task, as the defaults.
    if "matched" not in size:
        return {"config": _config("td3_bc", size), **_budget(task, size)}
    size = "cpu" if size == "cpu-matched" else "full"
    twin = prdc(task, size, data)
    return {**twin, "config": _config("td3_bc", size, alpha=twin["config"].alpha)}


def prdc(task: str, size: str, data: str = "") -> dict[str, Any]:
    # PRDC's README (commit 9f38464): alpha 40 on halfcheetah, 2.5 on hopper and walker2d, beta 2; AntMaze alpha and
    # beta 7.5 and rewards 10000 r - 1
    chosen = _budget(task, size)
    if "antmaze" in task:
        rewards = DataOptions(reward_scale=10_000.0, reward_shift=9_999.0)
        return {"config": _config("prdc", size, alpha=7.5, beta=7.5), "data": rewards, **chosen}
    return {"config": _config("prdc", size, alpha=40.0 if robot_of(task) == "halfcheetah" else 2.5), **chosen}


def iql(task: str, size: str, data: str = "") -> dict[str, Any]:
    # Kostrikov et al. 2021 and its code: kappa 0.7, beta 3 on locomotion with returns that span 1000, but for ant;
    # AntMaze kappa 0.9, beta 10 and rewards r - 1.  The policy's rate falls over the preset's steps.
    chosen = _budget(task, size)
    more = {"expectile": 0.9, "beta": 10.0} if "antmaze" in task else {}
    if robot_of(task) in ("hopper", "halfcheetah", "walker2d"):
        chosen["data"] = DataOptions(reward_range=1000.0)
    return {"config": _config("iql", size, actor_steps=chosen["steps"], **more), **chosen}


def cql(task: str, size: str, data: str = "") -> dict[str, Any]:
    # CORL's configs (commit eeeeef2): weight 10 on locomotion, as the defaults, and returns that span 1000 on
    # hopper-medium; AntMaze with a Lagrange gap of 0.8, the largest of the sampled backups, gaps from -200 on, deeper
    # critics, no normalisation and rewards 10 r - 5
    chosen = _budget(task, size, 10_000)
    if "antmaze" not in task:
        if (robot_of(task), kind_of(data)) == ("hopper", "medium"):
            chosen["data"] = DataOptions(reward_range=1000.0)
        return {"config": _config("cql", size), **chosen}
    config = _config(
        "cql", size, state_norm="none", hidden=(256,) * 5, actor_hidden=(128 if size == "cpu" else 256,) * 3,
        actor_lr=1e-4, conservative_weight=5.0,
        lagrange=True, max_backup=True, gap_clip=(-200.0, None),
    )  # fmt: skip
    return {"config": config, "data": DataOptions(reward_scale=10.0, reward_shift=5.0), **chosen}


# ReBRAC's table 12 as CORL's configs have it: (beta_a, beta_c)
REBRAC = {
    "halfcheetah": {
        "random": (0.001, 0.1), "medium": (0.001, 0.01), "expert": (0.01, 0.01), "medium-expert": (0.01, 0.1),
        "medium-replay": (0.01, 0.001), "full-replay": (0.001, 0.1),
    },
    "hopper": {
        "random": (0.001, 0.01), "medium": (0.01, 0.01), "expert": (0.1, 0.1), "medium-expert": (0.1, 0.01),
        "medium-replay": (0.05, 0.5), "full-replay": (0.01, 0.01),
    },
    "walker2d": {
        "random": (0.01, 0.0), "medium": (0.05, 0.1), "expert": (0.01, 0.5), "medium-expert": (0.01, 0.01),
        "medium-replay": (0.05, 0.01), "full-replay": (0.01, 0.01),
    },
    # by mazes, of the sets that play in them
    "antmaze": {"medium": (0.001, 0.0005), "large": (0.002, 0.001)},
}  # fmt: skip


def rebrac(task: str, size: str, data: str = "") -> dict[str, Any]:
    chosen = _budget(task, size)
    if "antmaze" in task:
        maze = "large" if "large" in task or "giant" in task else "medium"
        weights = dict(zip(("actor_bc", "critic_bc"), REBRAC["antmaze"][maze], strict=True))
        rates = {"actor_lr": 3e-4, "critic_lr": 5e-5}
        config = _config("rebrac", size, batch_size=256, discount=0.999, **rates, **weights)
        return {"config": config, "data": DataOptions(reward_scale=100.0, reward_shift=100.0), **chosen}
    found = REBRAC.get(robot_of(task), {}).get(kind_of(data))
    weights = dict(zip(("actor_bc", "critic_bc"), found, strict=True)) if found else {}
    return {"config": _config("rebrac", size, batch_size=256 if size == "cpu" else 1024, **weights), **chosen}


def _weighted(base: str):
    """Density-ratio weighting of an algorithm: budget and rewards of that; its own coefficients are searched for."""

    def dw(task: str, size: str, data: str = "") -> dict[str, Any]:
        twin = PRESETS[base](task, size, data)
        Config = algos.load(f"dw_{base}").Config
        return {**twin, "config": Config(**vars(twin["config"]))}

    return dw


PRESETS = {"bc": bc, "td3_bc": td3_bc, "prdc": prdc, "iql": iql, "cql": cql, "rebrac": rebrac}
PRESETS |= {f"dw_{base}": _weighted(base) for base in ("iql", "td3_bc", "cql")}
