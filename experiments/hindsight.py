"""Presets of the goal-conditioned algorithms: OGBench's values per family of datasets (arXiv:2410.20092, its commands).

full: 1M updates on states, 500k of batches of 256 on pictures.  cpu: 30k of 128 wide networks and batches of 256.
Judged as published: each of five tasks by 50 episodes at temperature 0, every 100k updates; a score is the mean over
the last three evaluations (`rheostat tables --last 3`).  All tasks play side by side.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import algos
from core.goals import Mixture
from experiments.options import EvalOptions

ALGOS = ("gcbc", "gcivl", "gciql", "qrl", "crl", "hiql", "ota")
MANIPULATION = ("cube", "scene", "puzzle")
# family: alpha of GCIVL, GCIQL, QRL, CRL and HIQL, and HIQL's subgoal steps
VALUES = {
    "pointmaze": (10.0, 0.003, 0.0003, 0.03, 3.0, 25),
    "antmaze": (10.0, 0.3, 0.003, 0.1, 3.0, 25),
    "antmaze-explore": (10.0, 0.01, 0.001, 0.003, 10.0, 25),
    "humanoidmaze": (10.0, 0.1, 0.001, 0.1, 3.0, 100),
    "antsoccer": (10.0, 0.1, 0.003, 0.3, 3.0, 25),
    "play": (10.0, 1.0, 0.3, 3.0, 3.0, 10),
    "noisy": (10.0, 0.03, 0.03, 0.1, 3.0, 10),
}
KINDS = ("navigate", "stitch", "explore", "play", "noisy")


def kind_of(data: str) -> str:
    """Which of OGBench's kinds of dataset a name or a file's name says, or none."""
    words = set(re.findall("[a-z0-9]+", data.lower().rsplit("/", 1)[-1]))
    found = [kind for kind in KINDS if kind in words]
    return found[0] if len(found) == 1 else ""


def family_of(task: str, data: str) -> str:
    """Row of `VALUES`, or none."""
    robot = task.partition("/")[2].removeprefix("visual-").partition("-")[0]
    if robot in MANIPULATION:
        return "noisy" if kind_of(data) == "noisy" else "play"
    explored = f"{robot}-explore" if kind_of(data) == "explore" else robot
    return explored if explored in VALUES else robot if robot in VALUES else ""


def goal_conditioned(algo: str, task: str, size: str, data: str = "") -> dict[str, Any]:
    """What `rheostat train ALGO TASK` runs when no option is given."""
    config = algos.load(algo).Config()
    family, pixels = family_of(task, data), "visual-" in task
    if family:
        gcivl, gciql, qrl, crl, hiql, steps = VALUES[family]
        alpha = {"gcivl": gcivl, "gciql": gciql, "qrl": qrl, "crl": crl}.get(algo)
        if alpha is not None:
            config = replace(config, alpha=alpha)
        if algo in ("hiql", "ota"):
            config = replace(config, low_alpha=hiql, high_alpha=hiql, subgoal_steps=steps)
    if "giant" in task or "humanoid" in task:
        config = replace(config, discount=0.995)
    p_random = {"stitch": 0.5, "explore": 1.0}.get(kind_of(data), 0.0)
    if algo in ("hiql", "ota"):
        config = replace(config, high_random=p_random)
    elif algo != "gcbc":
        config = replace(config, actor_goals=Mixture(future=1 - p_random, random=p_random))
    if pixels:
        config = replace(config, batch_size=256, crop=0.5 if family in ("play", "noisy") else 0.0)
    judged = EvalOptions(every=100_000, episodes=250, tasks=(1, 2, 3, 4, 5))
    chosen = {"steps": 500_000 if pixels else 1_000_000, "save_every": 100_000}
    if size == "cpu":
        small = {name: (128,) * 3 for name in ("hidden", "actor_hidden") if hasattr(config, name)}
        config = replace(config, batch_size=256, **small)
        chosen, judged = {"steps": 30_000, "save_every": 10_000}, replace(judged, every=10_000, episodes=50)
    if not task.startswith("ogbench/"):
        judged = replace(judged, tasks=())
    return {"config": config, "eval": judged, **chosen}
