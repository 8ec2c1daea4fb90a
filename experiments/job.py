"""A run put together: task, algorithm, data, checkpoints, and how it is judged."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

import algos
import envs
from core import batches, dataset, loop, sampling
from core.checkpoint import Checkpoints
from core.config import ConfigError
from core.evaluate import Evaluator, Judged
from core.rollout import JaxBatch
from core.types import RunState, Start
from envs import datasets
from experiments import options
from experiments.runs import Run


class Job:
    """A run with everything that does not change while it trains; making one writes nothing.

    Raises: ConfigError for whatever is refused.
    """

    def __init__(self, run: Run):
        options.check(run.train)
        self.run, self.chosen = run, run.train
        one = envs.make(run.task, 1, dataclasses.replace(run.train.env, workers=0))
        one.close()
        self.spec, self.jitted = one.spec, isinstance(one, JaxBatch)
        if any(not 1 <= task <= self.spec.num_tasks for task in run.train.eval.tasks):
            raise ConfigError(f"{run.task} has tasks 1 to {self.spec.num_tasks}, not {run.train.eval.tasks}")
        self.algorithm = algos.load(run.algo).make(run.train.config, self.spec)
        width = 1 if self.spec.pixels else self.spec.frame_shape[0]
        self.start = Start(dataset.identity_norm(width, self.spec.action_dim))  # its shapes count, until there are data
        self.template = jax.eval_shape(self.begin)
        self.data, self.card = None, {}
        self.place(run.folder)

    def place(self, folder: Path) -> None:
        """Where the run lies."""
        self.run = self.run._replace(folder=folder)
        self.checkpoints = Checkpoints(folder / "ckpt", self.chosen.keep)

    def identity(self, data_hash: str) -> str:
        return options.identity(self.run.algo, self.run.task, self.chosen, data_hash)

    def read(self) -> None:
        """Read the dataset, put it on the device with what the algorithm prepares, and trace an update."""
        source, config = self.chosen.data, self.chosen.config
        self.data, self.card = datasets.read(source.path, self.spec, None if source.any_task else self.run.task)
        self.start = Start(dataset.norm(self.data, config.state_norm, config.action_norm))
        extra = self.algorithm.prepare(self.data, self.start) if self.algorithm.prepare else ()
        usable = self.algorithm.eligible(self.data) if self.algorithm.eligible else None
        sampler = None if usable is None else sampling.alias_table(usable)
        self.on_device = batches.data(self.data, self.start.norm, sampler, extra=extra)
        jax.eval_shape(loop.epoch(self.algorithm, 1), self.template, self.on_device)  # refuses what only tracing shows

    def begin(self) -> RunState:
        return loop.begin(self.algorithm, self.start, self.chosen.seeds)

    def evaluator(self, simulators: int, episodes: int) -> Evaluator:
        """Judges all seeds at once on `episodes` each; close its `env` afterwards."""
        seeds = len(self.chosen.seeds)
        env = envs.make(self.run.task, simulators if self.jitted else simulators * seeds, self.chosen.env)
        return Evaluator(self.algorithm.act_eval, self.algorithm.init_carry, env, seeds, episodes // simulators)

    def judge(self, evaluator: Evaluator, state: RunState, step: int, seed: int) -> list[dict[str, Any]] | None:
        """Fresh episodes by seed -> one row for each of the run's seeds; None when it was interrupted."""
        tasks = list(itertools.islice(itertools.cycle(self.chosen.eval.tasks), evaluator.slots)) or None
        judged = evaluator(state.algo, [seed + s for s in self.chosen.seeds], tasks)
        return judged and _rows(judged, tasks, self.chosen.seeds, step, np.asarray(state.failed))


def _rows(judged: Judged, tasks: list[int] | None, seeds: tuple[int, ...], step: int, failed: np.ndarray) -> list[dict]:
    """Means, every episode's return and success, and whether the seed has failed."""
    rows = []
    for i, seed in enumerate(seeds):
        ret, success = judged.ret[i], judged.success[i]
        rows.append({
            "step": step, "seed": seed, "failed": bool(failed[i]) or not np.isfinite(ret).all(), "episodes": ret.size,
            "return": float(ret.mean()), "success": float(success.mean()), "length": float(judged.length[i].mean()),
            "returns": ret.ravel().tolist(), "successes": success.ravel().tolist(),
            "tasks": np.repeat(tasks, ret.shape[1]).tolist() if tasks else None,
        })  # fmt: skip
    return rows
