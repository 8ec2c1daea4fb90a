"""Figures from run folders.  One look: a colour per method, thin lines for seeds, a thick one for their mean."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from core.metrics import read_lines

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a")


def curve(folder: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and scores [seeds, n] of a run's evaluations, as far as all seeds have got."""
    seeds = defaultdict(list)
    for row in read_lines(folder / "eval.jsonl"):
        seeds[row["seed"]].append((row["step"], row[metric]))
    shortest = min(map(len, seeds.values()))
    points = np.array([rows[:shortest] for rows in seeds.values()])
    return points[0, :, 0], points[:, :, 1]


def learning_curves(
    runs: dict[str, Path], metric: str, title: str, out: Path, level: tuple[str, float] | None = None
) -> None:
    """Draw one panel of runs by label; `level` adds a named horizontal line."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150)
    for colour, (label, folder) in zip(itertools.cycle(COLOURS), runs.items(), strict=False):
        steps, scores = curve(folder, metric)
        axes.plot(steps, scores.T, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(steps, scores.mean(0), color=colour, linewidth=2.2, marker="o", markersize=4, label=label)
    if level:
        axes.axhline(level[1], color="0.35", linestyle="--", linewidth=1.2, label=level[0])
    axes.set(title=title, xlabel="steps", ylabel=metric)
    if metric == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)
