"""Summaries over seeds and their intervals.  Every interval names how it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000  # of a bootstrap


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate from independent episodes (Wilson, 1927, JASA 22)."""
    p, shrink = successes / trials, 1 + z**2 / trials
    center = (p + z**2 / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / shrink
    return max(center - half, 0.0), min(center + half, 1.0)


def bootstrap(scores: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
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


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: a quarter of the values, rounded down, is cut off at each end.

    Reference: Agarwal et al. 2021, arXiv:2108.13264; rounded as by their library, `scipy.stats.trim_mean(x, 0.25)`.
    """
    cut = np.shape(values)[-1] // 4
    ordered = np.sort(values, axis=-1)
    return mean(ordered[..., cut : ordered.shape[-1] - cut])


def stratified(
    strata: Sequence[Sequence[float]],
    statistic: Callable[[np.ndarray], np.ndarray] = iqm,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of all values: the values of each stratum are redrawn among themselves.

    Args: strata: one per task, holding one value per seed; statistic: reduces the last axis.
    Returns: (low, high); NaN when some stratum has fewer than two values, which say nothing about their spread.
    Reference: Agarwal et al. 2021, section 4.1.
    """
    if not strata or min(map(len, strata)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    redrawn = [np.asarray(s, float)[rng.integers(0, len(s), (draws, len(s)))] for s in strata]
    low, high = np.quantile(statistic(np.concatenate(redrawn, axis=1)), [0.025, 0.975])
    return float(low), float(high)


def mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (ddof 1); a NaN error of fewer than two values, a NaN mean of none."""
    if not len(values):
        return math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


class Summary(NamedTuple):
    """Over the seeds of one task, or over several tasks that count alike."""

    mean: float  # of the tasks' means
    se: float  # its standard error (ddof 1); NaN where a task has one seed
    median: float  # over seeds; of the tasks' means when there are several tasks
    iqm: float  # over all seeds of all tasks
    low: float  # 95 % interval of the IQM, see `stratified`
    high: float


def summary(strata: Sequence[Sequence[float]]) -> Summary:
    """Args: strata: one per task, holding one value per seed.  Returns: all NaN when some task has no value."""
    if not strata or not all(map(len, strata)):
        return Summary(*[math.nan] * 6)
    means, errors = zip(*map(mean_se, strata), strict=True)
    median = np.median(means if len(strata) > 1 else strata[0])
    pooled = iqm(np.concatenate([np.asarray(s, float) for s in strata]))
    error = math.hypot(*errors) / len(strata)
    return Summary(float(np.mean(means)), error, float(median), float(pooled), *stratified(strata))
