"""Trajectory weighting: how often a transition is drawn, by the return of its episode (host).

Axes: E episodes, S state.  Episode i has T_i transitions, the return G_i and the initial state s0_i.  Each of its
transitions is drawn with the probability p_i, so that sum_i T_i p_i = 1:

    rw:T      p_i ~ exp(u_i / T),  u = (G - min G) / (max G - min G)
    aw:T      the same of G - V(s0),  V the least-squares fit of G to s0 with an intercept
    top:x     uniform over the floor(x E) episodes with the highest returns
    half:x    half of the draws are uniform over those episodes, half over the others
    half      half of the draws from each of the two datasets that a mixture is made of
    uniform   every transition alike

Scores are brought to [0, 1] before the temperature, and the softmax is over transitions: a long episode is drawn in
proportion to its length.  Equal scores give uniform ones.  The weights are fixed before training and nothing corrects
for them; statistics for normalisation stay those of all data.  A T or x that is left out is 0.1: T as in the authors'
runs of IQL and TD3+BC (CQL: 0.2), x as in their tables.

Their third baseline, Half, draws half of each batch from the good source of a mixture.  Here that holds in expectation,
`half` needs a mixture of two, and `half:x`, ours, splits any dataset by its returns.

Reference: Hong et al., 2023, arXiv:2306.13085, Sec. 4 and 5.
"""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

import numpy as np

from core.config import ConfigError
from core.dataset import ROUNDING
from core.types import Array

FORMS = {"uniform": "uniform", "rw": "rw:T", "aw": "aw:T", "top": "top:x", "half": "half or half:x"}
TAKES = {
    "uniform": "no number", "rw": "a temperature above 0", "aw": "a temperature above 0",
    "top": "a share above 0, at most 1", "half": "a share above 0, below 1",
}  # fmt: skip
DEFAULTS = {"rw": 0.1, "aw": 0.1, "top": 0.1}


class Scheme(NamedTuple):
    kind: str  # one of `FORMS`
    value: float | None = None  # T or x

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value!r}"


def parse(text: str) -> Scheme:
    """A scheme as it is written above.  Raises: ConfigError that lists them and names the nearest."""
    kind, colon, number = text.partition(":")
    if kind not in FORMS:
        near = difflib.get_close_matches(kind.lower(), FORMS, n=1, cutoff=0.5)
        hint = f"; nearest: {FORMS[near[0]]}" if near else ""
        raise ConfigError(f"unknown weights '{text}'; they are {', '.join(FORMS.values())}{hint}")
    if not colon:
        return Scheme(kind, DEFAULTS.get(kind))
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    allowed = {"rw": value < math.inf, "aw": value < math.inf, "top": value <= 1, "half": value < 1}
    if not (value > 0 and allowed.get(kind)):
        raise ConfigError(f"weights '{text}': {kind} takes {TAKES[kind]}")
    return Scheme(kind, value)


def unit(score: Array, size: float) -> np.ndarray:
    """(score - min) / (max - min) f64[E]; 0 where all are equal up to the rounding of numbers of this size."""
    score = np.asarray(score, np.float64)
    spread = np.ptp(score)
    return (score - score.min()) / spread if spread > ROUNDING * size else np.zeros_like(score)


def linear_value(ret: Array, initial: Array) -> tuple[np.ndarray, float]:
    """(f64[S] slopes, intercept) of the least-squares fit of returns f[E] to initial states f[E, S].

    The shortest slopes where several fit.  With no more episodes than S + 1 in general position it passes through all.
    Raises: ConfigError for states that are not vectors.
    """
    initial = np.asarray(initial)
    if initial.ndim != 2:
        raise ConfigError("aw fits returns to initial states that are vectors, not pictures: take rw instead")
    ret, initial = np.asarray(ret, np.float64), initial.astype(np.float64)
    centre, mean = initial.mean(0), ret.mean()
    slopes = np.linalg.lstsq(initial - centre, ret - mean, rcond=None)[0]
    return slopes, float(mean - centre @ slopes)


def scores(kind: str, ret: Array, initial: Array) -> np.ndarray:
    """u f64[E] in [0, 1] of `rw` or `aw`: 0 for the worst episode, 1 for the best."""
    ret = np.asarray(ret, np.float64)
    size = np.abs(ret).max()
    if kind == "rw":
        return unit(ret, size)
    slopes, intercept = linear_value(ret, initial)
    return unit(ret - (np.asarray(initial, np.float64) @ slopes + intercept), size)


def softmax(score: Array, count: Array, temperature: float) -> np.ndarray:
    """p f64[E] ~ exp(score / T) with sum(count * p) = 1, for `count` i[E] transitions of each episode."""
    score, count = np.asarray(score, np.float64), np.asarray(count)
    weight = np.exp((score - score[count > 0].max()).clip(max=0) / temperature)
    return weight / (count * weight).sum()


def best(ret: Array, share: float) -> np.ndarray:
    """i64[floor(share E)] the episodes with the highest returns, best first, of equal ones the later first.

    Raises: ConfigError when that is none.
    """
    kept = math.floor(share * len(ret) + 1e-9)  # 0.29 * 100 is 28.999...
    if not kept:
        raise ConfigError(f"a share of {share:g} of {len(ret)} episodes is none of them; take a larger one")
    return np.argsort(np.asarray(ret), kind="stable")[::-1][:kept]


def shared(group: Array, count: Array) -> np.ndarray:
    """p f64[E]: each group of episodes gets the same part of the draws, its transitions the same part of that.

    Args: group: i[E] number of an episode's group, from 0 on, or -1 where it is left out; count: as for `softmax`.
    Raises: ConfigError for a group without transitions.
    """
    group, count = np.asarray(group), np.asarray(count)
    size = np.bincount(group[group >= 0], weights=count[group >= 0])
    if not size.all():
        raise ConfigError("the episodes to draw from have no transitions to learn from; choose other weights")
    return np.where(group >= 0, 1 / (len(size) * size[group]), 0.0)


def probabilities(scheme: Scheme, ret: Array, count: Array, initial: Array, source: Array | None = None) -> np.ndarray:
    """p f64[E] of each transition of an episode; sum(count * p) = 1.

    Args: ret: f[E] returns; count: i[E] transitions of each that may be drawn, which may be 0; initial: f[E, S]
        initial states; source: i[E] which dataset of a mixture an episode is from, None when it is not known.
    Raises: ConfigError for a scheme that these episodes do not allow.
    """
    kind, value = scheme
    if kind in ("rw", "aw"):
        return softmax(scores(kind, ret, initial), count, value)
    group = np.zeros(len(ret), np.int64)
    if kind == "top":
        group[:] = -1
        group[best(ret, value)] = 0
    elif kind == "half" and value is None:
        if source is None or len(np.unique(source)) != 2:
            raise ConfigError(
                "half draws from both datasets of a mixture of two, which this dataset is not; half:x splits any "
                "dataset by its returns"
            )
        group[:] = source
    elif kind == "half":
        group[best(ret, value)] = 1
    return shared(group, count)


def effective(p: Array, count: Array) -> tuple[float, float]:
    """Effective numbers of transitions, 1 / sum(count p^2), and of episodes, 1 / sum((count p)^2).

    So many, drawn alike, would repeat as often: all of them when p is uniform, one when p is 1 there.
    """
    p, count = np.asarray(p, np.float64), np.asarray(count)
    return float(1 / (count * p**2).sum()), float(1 / ((count * p) ** 2).sum())
