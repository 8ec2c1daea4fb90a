"""How a goal-conditioned value fares as the goal moves away: the diagnostics that OTA argues with (arXiv:2505.12737).

Along trajectories of the run's dataset, for goals d steps ahead of a state, d from 1 to the longest:
    order    share of pairs in which the state k steps on is valued above the state, the goal the same: the sign of the
             upper policy's advantage, which ought to be 1 (k the run's subgoal steps, or d where that is less)
    value    mean of V(s, g), beside V(d), what it would be at the distance d: -(1 - gamma^d) / (1 - gamma) for values
             of steps, of ceil(d / n) - 1 for OTA's of n-step options, -d for quasimetrics
A trajectory that wanders takes d steps where fewer would do, so V(d) is a lower bound and the order may be rightly
reversed; both are for comparing values learned from one dataset, where the paper has trajectories of an optimal policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from core import batches
from core.config import ConfigError
from core.metrics import Lines
from core.types import Array, Dataset, Observation
from envs import datasets
from experiments.evaluate import checkpoint
from experiments.plots import COLOURS, STYLE

PAIRS = 4096  # of states and goals at each distance
LADDER = (1, 2, 5, 10, 25, 50, 100, 200, 500, 1000, 2000, 4000)
STEPS = 25  # k where the algorithm has no subgoals


def pairs(data: Dataset, distance: int, steps: int, seed: int, history: int = 1) -> tuple[Observation, Observation]:
    """(states, the same `min(steps, distance)` steps on) [PAIRS], with the goal `distance` steps ahead (host).

    Raises: ConfigError where no episode is as long.
    """
    row = np.asarray(data.row)
    row = row[row + distance <= np.asarray(data.last)[row] - (distance > 1)]  # a last state is no goal, but a successor
    if not len(row):
        raise ConfigError(f"no episode has a goal {distance} steps ahead")
    row = row[np.random.default_rng(seed).integers(len(row), size=PAIRS)]
    goal = np.asarray(batches.stacked(data, row + distance, history))

    def seen(at: Array) -> Observation:
        blank = np.zeros(PAIRS, np.float32)
        return Observation(np.asarray(batches.stacked(data, at, history)), goal, blank, blank.astype(np.int32))

    return seen(row), seen(row + min(steps, distance))


def profile(
    value: Callable[[Observation], Array],
    expected: Callable[[int], float],
    data: Dataset,
    steps: int,
    seed: int = 0,
    history: int = 1,
) -> list[dict[str, float]]:
    """A row for each distance of `LADDER` that the episodes have: order, value, expected, error.

    Args: value: obs [B] with goals -> V(s, g) f32[B]; expected: V(d); steps: k.
    """  # fmt: skip
    longest = int((np.asarray(data.last) - np.asarray(data.first)).max()) - 1
    rows = []
    for distance in (d for d in LADDER if d <= max(longest, 1)):
        now, later = pairs(data, distance, steps, seed + distance, history)
        here, there = (np.asarray(value(obs), np.float64) for obs in (now, later))
        wanted = float(expected(distance))
        rows.append({
            "distance": distance, "order": float((there > here).mean()), "value": float(here.mean()),
            "expected": wanted, "error": float(here.mean()) - wanted,
        })  # fmt: skip
    return rows


def measure(folder: str | Path, step: int | None = None, best: bool = False) -> list[dict[str, Any]]:
    """Judge a run's value on its dataset: print, append a row per seed and distance to RUN/horizon.jsonl, and draw.

    Raises: ConfigError for an algorithm without a value of states and goals.
    """
    job, step, state = checkpoint(folder, step, best)
    algorithm, chosen = job.algorithm, job.chosen
    if algorithm.goal_value is None:
        raise ConfigError(f"--horizon: {job.run.algo} has no value of states and goals to judge; leave it out")
    data, _ = datasets.read(chosen.data.path, job.spec, None)
    program, steps = jax.jit(algorithm.goal_value), getattr(chosen.config, "subgoal_steps", STEPS)
    rows = []
    for i, seed in enumerate(chosen.seeds):
        own = jax.tree.map(lambda x, i=i: x[i], state.algo)
        found = profile(lambda obs, own=own: program(own, obs), algorithm.value_at, data, steps, 0, job.spec.history)
        rows += [{"step": step, "seed": seed, "k": steps, **row} for row in found]
    print("distance    order      value   at that distance")
    for distance in dict.fromkeys(row["distance"] for row in rows):
        order, value, wanted = _means(rows, distance)
        print(f"{distance:8,d}   {order:6.3f}  {value:9.2f}  {wanted:9.2f}")
    Lines(job.run.folder / "horizon.jsonl").write(rows)
    out = job.run.folder / "horizon.png"
    figure({job.run.algo: rows}).savefig(out)
    print(f"-> {out}")
    return rows


def _means(rows: Sequence[dict[str, Any]], distance: int) -> tuple[float, float, float]:
    own = [row for row in rows if row["distance"] == distance]
    return tuple(float(np.mean([row[name] for row in own])) for name in ("order", "value", "expected"))


def figure(runs: dict[str, Sequence[dict[str, Any]]]) -> plt.Figure:
    """Order and value against distance, a colour per run; lines are means over seeds, thin ones single seeds."""
    with plt.rc_context(STYLE):
        drawn, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), dpi=200, layout="constrained")
        for (name, rows), colour in zip(runs.items(), COLOURS, strict=False):
            distances = list(dict.fromkeys(row["distance"] for row in rows))
            means = np.array([_means(rows, distance) for distance in distances])
            for seed in dict.fromkeys(row["seed"] for row in rows):
                own = [row for row in rows if row["seed"] == seed]
                for axes, column in ((left, "order"), (right, "value")):
                    axes.plot(distances, [row[column] for row in own], color=colour, alpha=0.25, linewidth=0.8)
            left.plot(distances, means[:, 0], color=colour, marker="o", markersize=3, label=name)
            right.plot(distances, means[:, 1], color=colour, marker="o", markersize=3, label=name)
            right.plot(distances, means[:, 2], color=colour, linestyle=":", label=f"{name}, by the distance")
        left.axhline(0.5, color="0.6", linewidth=0.8)
        left.set(title="order: nearer by k steps is valued more", ylabel="share of pairs", ylim=(0, 1.03))
        right.set(title="value of a goal so far ahead", ylabel="V(s, g)")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="steps to the goal in the data")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        plt.close(drawn)
        return drawn
