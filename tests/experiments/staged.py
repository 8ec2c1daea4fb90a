"""An algorithm for tests of stages: behaviour cloning that goes on from a run, on a dataset or on what it plays.

Its state holds that of its parent whole, so that the shapes of a line of runs depend on each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algos import bc
from core.algorithm import Algorithm
from core.types import EnvSpec, PyTree

PARENTS = ("bc", "staged")
INHERITS = ("hidden", "exploration", "what bc does not have")


@dataclass(frozen=True)
class Config(bc.Config):
    state_norm: str = "none"


class State(NamedTuple):
    policy: bc.State
    parent: PyTree  # () where it started from nothing


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    base = bc.make(cfg, spec)

    def init(key, start):
        parent = start.parent
        if parent is None:
            return State(base.init(key, start), ())
        return State(parent.policy if isinstance(parent, State) else parent, parent)

    def update(state, batch, key):
        policy, metrics = base.update(state.policy, batch, key)
        return state._replace(policy=policy), metrics

    return base._replace(
        init=init, update=update, explores=True,
        act=lambda state, *rest: base.act(state.policy, *rest),
        act_eval=lambda state, *rest: base.act_eval(state.policy, *rest),
    )  # fmt: skip
