"""PRDC: policy regularisation with dataset constraint for offline RL (Ran et al., 2023, arXiv:2306.06569).

TD3+BC, but that the policy clones the action of the dataset's row nearest to (s, pi(s)):
    j     = argmin_i |[beta s, pi(s)] - [beta s_i, a_i]|                  over all rows of the dataset
    L_pi  = -lambda mean_B Q_1(s, pi(s)) + mean_{B,A} (pi(s) - a_j)^2,    lambda = alpha / mean_B |Q_1(s, pi(s))|
The paper writes the distance of keys; as in the authors' code its square enters, and of it the action's part, which is
all that depends on the policy.  No gradient flows through j.  `k` = 3 means the third nearest row, as there.  Differs
from the authors' code in how j is found: exactly too, but jitted (`core.neighbors`).
The states of keys are normalised, actions times m.  With k = 1 and the transition's own row nearest, this is TD3+BC:
`prdc/other` is the share where the k-th nearest row is nearer than that, `prdc/bc` the loss that TD3+BC would have had.
Axes: B batch, S state, A action, M dataset rows, N transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos import td3_bc
from algos.td3_bc import Batch, Networks, State
from core import batches, neighbors, runtime
from core.algorithm import Algorithm
from core.config import ConfigError
from core.losses import mse
from core.neighbors import Index, Nearest
from core.rng import streams
from core.types import Array, Data, Dataset, EnvSpec, Key, Metrics, Start, Transition

MAX_BETA = 1e6  # its square times that of a state's range must be a float32


@dataclass(frozen=True)
class Config(td3_bc.Config):
    beta: float = 2.0  # weight of the state in the key
    k: int = 1  # take the k-th nearest row; above 1 all rows are looked at, which takes far longer


class Rows(NamedTuple):
    """The transitions that may be nearest."""

    index: Index
    number: Array  # i32[M] of the transition that starts at a row, in the index


def rows_of(dataset: Dataset, start: Start, cfg: Config, history: int = 1) -> Rows:
    """The index of a dataset (host), from the disk where it has been made before; states of `history` frames."""
    state = start.norm.state(np.asarray(batches.stacked(dataset, dataset.row, history)))
    action = cfg.max_action * start.norm.action(dataset.action[dataset.row])
    number = np.zeros(len(dataset.state), np.int32)
    number[dataset.row] = np.arange(len(dataset.row))
    return Rows(neighbors.cached(state, action, runtime.cache("neighbors")), number)


def search(index: Index, row: Array, action: Array, cfg: Config) -> Nearest:
    """The k-th nearest rows to (states of rows i32[B], actions f32[B, A])."""
    if cfg.k == 1:
        return neighbors.nearest(index, row, action, cfg.beta)
    keys = jnp.concatenate([cfg.beta * index.state, index.action], axis=1)
    query = jnp.concatenate([cfg.beta * index.state[row], action], axis=1)
    found = neighbors.brute_force(keys, query, cfg.k)
    return Nearest(found.row[:, -1], found.distance[:, -1])


def constraint(index: Index, row: Array, nets: Networks, cfg: Config):
    """What the policy clones, for `td3_bc.update_with`: the nearest row's action.  Rows i32[B] are the batch's own."""

    def cloned(state: State, batch: Batch) -> tuple[Array, Metrics]:
        action = jax.lax.stop_gradient(nets.actor.apply(state.actor.params, batch.obs))
        found = search(index, row, action, cfg)
        own = jnp.linalg.norm(action - index.action[row], axis=1)  # equal rows are not others
        return index.action[found.row], {
            "prdc/other": (found.distance < (1 - 1e-5) * own).mean(), "prdc/distance": found.distance.mean(),
            "prdc/bc": mse(action, batch.action),
        }  # fmt: skip

    return cloned


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for tasks that TD3+BC cannot have either, and for beta or k out of range."""
    base, nets = td3_bc.make(cfg, spec), td3_bc.networks(cfg, spec)
    if not 0 <= cfg.beta <= MAX_BETA or cfg.k < 1:
        raise ConfigError(f"beta {cfg.beta} must lie between 0 and {MAX_BETA:g}, and k {cfg.k} be at least 1")

    def prepare(dataset: Dataset, start: Start) -> Rows:
        if len(dataset.row) < cfg.k:
            raise ConfigError(f"the dataset has {len(dataset.row)} transitions, so none is the {cfg.k}-th nearest")
        return rows_of(dataset, start, cfg, spec.history)

    def sample(data: Data, key: Key) -> tuple[Transition, Rows]:
        return base.sample(data, key), data.extra

    def update(state: State, batch: tuple[Transition, Rows], key: Key) -> tuple[State, Metrics]:
        transition, rows = batch
        action = transition.action
        noise = jax.random.normal(streams(key, "target_noise").target_noise, action.shape, action.dtype)
        cloned = constraint(rows.index, rows.number[transition.extras["row"]], nets, cfg)
        return td3_bc.update_with(state, td3_bc.to_batch(state.norm, transition, cfg), noise, nets, cfg, cloned)

    return base._replace(prepare=prepare, sample=sample, update=update)
