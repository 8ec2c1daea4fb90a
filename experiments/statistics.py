"""Intervals.  Every one names how it was made."""

from __future__ import annotations

import math

import numpy as np


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate from independent episodes (Wilson, 1927, JASA 22)."""
    p, shrink = successes / trials, 1 + z**2 / trials
    center = (p + z**2 / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / shrink
    return max(center - half, 0.0), min(center + half, 1.0)


def bootstrap(scores: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of scores [seeds, episodes]: seeds are redrawn, then episodes in each.

    Training seeds differ more than episodes do, so pooling the episodes would promise too much.
    """
    rng = np.random.default_rng(seed)
    seeds, episodes = scores.shape
    means = np.empty(draws)
    for i in range(draws):
        chosen = scores[rng.integers(0, seeds, seeds)]
        means[i] = np.take_along_axis(chosen, rng.integers(0, episodes, (seeds, episodes)), 1).mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
