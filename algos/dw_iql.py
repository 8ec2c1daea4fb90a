"""DW+IQL: implicit Q-learning on data weighted by a learned density ratio (see `algos.dw`, `algos.iql`).

Logits c = (clip(f_sa) + clip(f_s)) / T, clip to +- (1 + c0): no row counts more than exp(4 (1 + c0) / T) times another.
The losses of V, of the policy and of Q are weighted.  Published grids: F 1 and 5, K 0.2 and 1.
Axes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from algos import dw, iql
from core.algorithm import Algorithm
from core.types import Array, EnvSpec


@dataclass(frozen=True)
class Config(iql.Config, dw.Options):
    ratio_reward: Literal["std", "range"] = "std"


def logits(f_sa: Array, f_s: Array, cfg: dw.Options) -> dw.Logits:
    """f32[B] of f32[B] and f32[B]."""
    return dw.Logits((dw.bounded(f_sa, cfg) + dw.bounded(f_s, cfg)) / cfg.ratio_temperature)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError where `algos.iql` does, and for options out of range."""
    return dw.weighted(iql.make(cfg, spec), cfg, spec, dw.networks(cfg.hidden, cfg.weights), logits)
