"""Judge a run's critic: what it says of the policy's actions beside the Monte Carlo returns that followed.

For every step t of fresh episodes of T steps, played as the policy is judged:
    G_t = r_t + gamma G_{t+1},    G_T = 0 where the task ended, Q(s_T, pi(s_T)) where the clock did
beside Q(s_t, a_t); r are the rewards that the run learned from, gamma is its discount.  So a critic's own word stands
for what would have followed an episode that was cut, and hides as much of its error: `tail` is the mean of that part,
gamma^(T - t) Q(s_T, pi(s_T)).
Q is the critic's for what it was trained to say: SAC's has the entropy in it, ReBRAC's the penalty, and IQL's is of
actions of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from core import batches, dataset
from core.algorithm import Algorithm
from core.config import ConfigError
from core.metrics import Lines
from core.types import Array, Dataset, Observation, PyTree
from envs import datasets
from envs.players import Rollouts
from experiments import options, runs
from experiments.collect import RunPolicy
from experiments.evaluate import checkpoint
from experiments.runs import Run

ROWS = 4096  # that the critic judges at once: programs of one size compile once


class Values(NamedTuple):
    """Of every transition of some episodes, f64[N]."""

    q: np.ndarray  # Q(s_t, a_t)
    ret: np.ndarray  # G_t
    tail: np.ndarray  # of G_t, what the critic itself says of the rest


def compare(
    value: Callable[[Observation, Array], Array],
    policy: Callable[[Observation], Array],
    data: Dataset,
    discount: float,
    history: int = 1,
) -> Values:
    """Q beside G along episodes (host, float64).

    Args: value: (obs [B], action [B, A]) -> [B]; policy: obs [B] -> [B, A], asked for the last states; data: the
        episodes, with rewards in the critic's units; history: frames in a state, as in `EnvSpec.history`.
    """
    of = dataset.episodes(data)
    last = (of.first + of.length).astype(np.int32)
    action = np.array(data.action)
    action[last] = policy(_observed(data, last, history))
    rows = np.arange(len(action), dtype=np.int32)
    q = np.asarray(value(_observed(data, rows, history), action), np.float64)
    ret, tail = np.zeros((2, len(q)))
    ret[last] = tail[last] = np.where(data.terminated[last - 1], 0, q[last])
    for row in data.row[::-1]:
        ret[row] = data.reward[row] + discount * ret[row + 1]
        tail[row] = discount * tail[row + 1]
    return Values(q[data.row], ret[data.row], tail[data.row])


def _observed(data: Dataset, row: np.ndarray, history: int) -> Observation:
    """What the policy saw at rows i32[B]."""
    step = row - data.first[row]
    before = np.where(step > 0, data.reward[row - 1], 0).astype(np.float32)
    state = np.asarray(batches.stacked(data, row, history))
    return Observation(state, np.zeros((len(row), 0), np.float32), before, step.astype(np.int32))


def summary(values: Values) -> dict[str, Any]:
    """Means over all transitions; `percent`: the difference in % of the mean |G|, None where that is 0."""
    q, ret, size = values.q.mean(), values.ret.mean(), np.abs(values.ret).mean()
    means = {"q": q, "monte_carlo": ret, "difference": q - ret, "tail": values.tail.mean()}
    percent = float(100 * (q - ret) / size) if size else None
    return {**{name: float(mean) for name, mean in means.items()}, "percent": percent}


def judged(algorithm: Algorithm) -> tuple[Callable[[PyTree, Observation, Array], Array], Callable]:
    """(value, policy) of a state of the algorithm, jitted, for any number of rows."""

    def policy(state: PyTree, obs: Observation) -> Array:
        return algorithm.act_eval(state, obs, algorithm.init_carry(len(obs.step)), jax.random.key(0)).action.clip(-1, 1)

    program = jax.jit(algorithm.value)

    def value(state: PyTree, obs: Observation, action: Array) -> Array:
        parts = []
        for begin in range(0, len(action), ROWS):
            rows = np.minimum(np.arange(begin, begin + ROWS), len(action) - 1)
            parts.append(np.asarray(program(state, *jax.tree.map(lambda x, rows=rows: x[rows], (obs, action)))))
        return np.concatenate(parts)[: len(action)]

    return value, jax.jit(policy)


def learned_from(run: Run) -> Callable[[Array], Array]:
    """Of rewards f32[M] of the task, those that the run learns from.

    Raises: ConfigError for a run whose meta.json does not say its dataset's returns, where they are needed.
    """
    data = run.train.data
    ret = runs.data_returns(run.folder) if data.reward_range else (0.0, 0.0)
    change = {"scale": data.reward_scale, "shift": data.reward_shift, "span": data.reward_range}
    return functools.partial(dataset.training_reward, ret=ret, **change)


def measure(
    folder: str | Path, episodes: int, envs: int, seed: int, step: int | None = None, best: bool = False
) -> list[dict[str, Any]]:
    """Play `episodes` fresh episodes per seed, `envs` at a time, print and append a row for each to RUN/values.jsonl.

    A task with several variants draws one per episode.
    Raises: ConfigError for an algorithm without a critic of single actions, and for numbers that do not fit together.
    """
    job, step, state = checkpoint(folder, step, best)
    run, seeds = job.run, job.chosen.seeds
    if job.algorithm.value is None:
        raise ConfigError(f"--values: {run.algo} has no critic of states and single actions to judge; leave it out")
    options.check_evaluation(episodes, envs, seed, prefix="--")
    makers = [lambda spec, i=i: RunPolicy(run.folder.absolute(), step, i, False, spec) for i in range(len(seeds))]
    (value, policy), learned, rows = judged(job.algorithm), learned_from(run), []
    player = Rollouts(run.task, makers, envs, job.chosen.env, 0.0, seed)
    try:
        for i in range(len(seeds)):
            played = datasets.index(player.play(i, range(i, len(seeds) * episodes, len(seeds))))
            own = jax.tree.map(lambda x, i=i: x[i], state.algo)
            values = compare(
                lambda obs, action, own=own: value(own, obs, action), lambda obs, own=own: policy(own, obs),
                played._replace(reward=learned(played.reward)), job.chosen.config.discount, job.spec.history,
            )  # fmt: skip
            rows.append({
                "step": step, "seed": seeds[i], "failed": bool(state.failed[i]), "episodes": episodes,
                "transitions": len(values.q), "discount": job.chosen.config.discount, **summary(values),
                "eval_seed": seed,
            })  # fmt: skip
            print(_line(rows[-1]), flush=True)
    finally:
        player.close()
    Lines(run.folder / "values.jsonl").write(rows)
    return rows


def _line(row: dict[str, Any]) -> str:
    percent = "" if row["percent"] is None else f" ({row['percent']:+.1f} %)"
    return (
        f"seed {row['seed']}  step {row['step']}  {row['episodes']} episodes  Q {row['q']:.2f}  Monte Carlo "
        f"{row['monte_carlo']:.2f}, of it {row['tail']:.2f} by Q itself  difference {row['difference']:+.2f}{percent}"
        f"{'  FAILED' if row['failed'] else ''}"
    )
