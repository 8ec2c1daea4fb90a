"""The offline loop: one jitted program is an epoch of K updates with the sampling inside; `core.online` has the other.

Seeds are an array axis: `RunState` leads with it and the data are shared.  Update t of a seed draws from
fold_in(key, t), so that the numbers do not depend on K, and K = 1 is the debugger's mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core import sharding
from core.algorithm import Algorithm
from core.config import ConfigError
from core.rng import streams
from core.rollout import over_seeds
from core.types import Array, Data, Metrics, Norm, PyTree, RunState, Start


def begin(algorithm: Algorithm, start: Start, seeds: Sequence[int]) -> RunState:
    """The state of update 0 for every seed, by one jitted program.

    Args: start: its `parent` leads with the seeds; each starts from its own.
    """

    @jax.jit
    def init(seeds: Array, norm: Norm, parent: PyTree) -> RunState:
        def one(of_seed: tuple[Array, PyTree]) -> RunState:
            seed, parent = of_seed
            keys = streams(jax.random.key(seed), "init", "run")
            algo = algorithm.init(keys.init, Start(norm, start.num_envs, parent))
            return RunState(algo, (), (), keys.run, jnp.int32(0), jnp.bool_(False))

        return jax.lax.map(one, (seeds, parent))

    return init(jnp.asarray(seeds, jnp.uint32), start.norm, start.parent)


def finite(tree: PyTree) -> Array:
    """bool[]: every float in the tree is finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(x).all() for x in floats], bool).all()


def guard(run: RunState, algo: PyTree, step: Array) -> RunState:
    """A seed whose state is no longer finite after an epoch keeps that of its beginning and is marked failed."""
    failed = run.failed | ~finite(run.algo)
    algo, step = jax.tree.map(lambda new, old: jnp.where(failed, old, new), (run.algo, run.step), (algo, step))
    return run._replace(algo=algo, step=step, failed=failed)


def epoch(
    algorithm: Algorithm, updates: int, mesh: Mesh | None = None
) -> Callable[[RunState, Data], tuple[RunState, Metrics]]:
    """K updates of every seed as one pure function; jit it with the first argument donated.

    Args: mesh: when given, batches are spread over its "data" axis.
    See `guard` for a seed that turns non-finite.
    Returns metrics f32[seeds]: means over the epoch of the updates that reported a number (a delayed update reports
    NaN in between).
    """

    def one(run: RunState, data: Data) -> tuple[RunState, Metrics]:
        def update(run: RunState, _):
            keys = streams(jax.random.fold_in(run.key, run.step), "sample", "update")
            batch = algorithm.sample(data, keys.sample)
            batch = sharding.split_batch(batch, data, mesh) if mesh else batch
            algo, metrics = algorithm.update(run.algo, batch, keys.update)
            return run._replace(algo=algo, step=run.step + 1), metrics

        after, metrics = jax.lax.scan(update, run, None, updates)
        return guard(after, run.algo, run.step), jax.tree.map(jnp.nanmean, metrics)

    return over_seeds(one, (0, None))


class Program(NamedTuple):
    """An epoch, compiled."""

    epoch: Callable[[RunState], tuple[RunState, Metrics]]  # gives up its argument's memory
    steps: int  # that it takes, by the run's clock
    seconds: float  # that compiling took


def compiled(algorithm: Algorithm, run: RunState, data: Data, updates: int, mesh: Mesh | None = None) -> Program:
    """Compile `epoch` for the shapes and devices of its arguments, and bind the data."""
    began = time.perf_counter()
    program = jax.jit(epoch(algorithm, updates, mesh), donate_argnums=0).lower(run, data).compile()
    return Program(lambda run: program(run, data), updates, time.perf_counter() - began)


class Report(NamedTuple):
    """What an epoch leaves; `run` is valid until the next one is asked for."""

    run: RunState
    step: int  # done
    metrics: dict[str, np.ndarray]  # f32[seeds]
    seconds: float  # that it took


class Diverged(RuntimeError):
    """No seed is left that could train."""


def train(program: Program, run: RunState, step: int, steps: int) -> Iterator[Report]:
    """Train from `step` to `steps` in epochs; what happens between them (logs, evaluation, checkpoints) is the
    caller's.

    Raises: ConfigError when what is left is not a whole number of epochs; Diverged when every seed has failed.
    """
    if (steps - step) % program.steps:
        raise ConfigError(
            f"{steps - step} steps are not a whole number of epochs of {program.steps}; change one of them"
        )
    while True:
        if np.asarray(run.failed).all():
            raise Diverged(
                f"every seed turned non-finite by step {step}; the last finite states are kept. "
                "Look at metrics.jsonl, then lower the learning rate or check the rewards' scale"
            )
        if step >= steps:
            return
        began = time.perf_counter()
        run, metrics = program.epoch(run)
        metrics = jax.tree.map(np.asarray, metrics)
        step += program.steps
        yield Report(run, step, metrics, time.perf_counter() - began)
