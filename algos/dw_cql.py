"""DW+CQL: conservative Q-learning on data weighted by a learned density ratio (see `algos.dw`, `algos.cql`).

Logits c = clip(f_sa / T) + clip(f_s / T), clip to +- (1 + c0): no row counts more than exp(4 (1 + c0)) times another,
whatever T is.  The losses of alpha, of the policy and of Q are weighted, the conservative term too.  Published grids:
F 0.001, 0.1 and 5, K 0.
Axes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from algos import cql, dw
from core.algorithm import Algorithm
from core.types import Array, EnvSpec


@dataclass(frozen=True)
class Config(cql.Config, dw.Options):
    ratio_flow: float = 0.1
    ratio_kl: float = 0.0


def logits(f_sa: Array, f_s: Array, cfg: dw.Options) -> dw.Logits:
    """f32[B] of f32[B] and f32[B]."""
    return dw.Logits(sum(dw.bounded(f / cfg.ratio_temperature, cfg) for f in (f_sa, f_s)))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError where `algos.cql` does, and for options out of range."""
    return dw.weighted(cql.make(cfg, spec), cfg, spec, dw.networks(cfg.hidden, cfg.critic_weights), logits)
