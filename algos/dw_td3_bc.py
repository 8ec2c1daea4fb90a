"""DW+TD3+BC: TD3+BC on data weighted by a learned density ratio (see `algos.dw`, `algos.td3_bc`).

Logits c = clip(f_sa + f_s) / T for the critics' loss and for the cloning; clip(f_s) / T, of the states alone, for
-lambda Q, which judges the policy's own actions, and for the penalty K.  lambda is not weighted.  Clips are to
+- (1 + c0).  Published grids: F 0.1, 1 and 5, K 0.2 and 1.
Axes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from algos import dw, td3_bc
from core.algorithm import Algorithm
from core.types import Array, EnvSpec


@dataclass(frozen=True)
class Config(td3_bc.Config, dw.Options):
    pass


def logits(f_sa: Array, f_s: Array, cfg: dw.Options) -> dw.Logits:
    """f32[B] each, of f32[B] and f32[B]."""
    return dw.Logits(*(dw.bounded(f, cfg) / cfg.ratio_temperature for f in (f_sa + f_s, f_s)))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError where `algos.td3_bc` does, and for options out of range."""
    return dw.weighted(td3_bc.make(cfg, spec), cfg, spec, dw.networks(cfg.hidden, cfg.weights), logits)
