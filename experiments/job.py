"""A run put together: task, algorithm, data, checkpoints, and how it is judged."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

import algos
import envs
from core import batches, dataset, loop, online, replay, sampling, sharding, weights
from core.checkpoint import CheckpointError, Checkpoints
from core.config import ConfigError
from core.dataset import DataError
from core.evaluate import Evaluator, Judged
from core.rollout import JaxBatch
from core.types import Array, RunState, Sampler
from envs import datasets, mix
from envs.readers.files import memory
from experiments import options, parents
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
        self.parent = parents.of(run)
        if self.parent and not run.folder:
            parents.check(run, self.spec, self.parent)
        self.plan = None if run.train.data.path else self._plan()
        self.start = parents.outset(run, self.spec)
        self.template = parents.template(run, self.spec)
        self.data, self.world, self.card = None, None, {"sha256": ""}
        if run.folder:
            self.place(run.folder)

    def _plan(self) -> online.Plan:
        """An iteration of the online loop, as the options say."""
        chosen, algo = self.chosen.online, self.run.algo
        if not self.algorithm.online:
            raise ConfigError(f"{algo} needs --data.path FILE; `rheostat collect TASK` makes one")
        if (self.chosen.config.state_norm, self.chosen.config.action_norm) != ("none", "none"):
            raise ConfigError("state_norm and action_norm are statistics of a dataset; without one leave them at none")
        updates = chosen.utd * chosen.envs * chosen.length
        on_policy = self.algorithm.on_policy
        if not on_policy and (updates < 0.5 or not math.isclose(updates, round(updates), rel_tol=1e-6)):
            raise ConfigError(
                f"--online.utd {chosen.utd} times {chosen.envs} environments times {chosen.length} steps must be a "
                f"whole number of updates, at least 1"
            )
        updates, chunk = 1 if on_policy else round(updates), max(self.spec.chunk, 1)
        plan = online.Plan(chosen.envs, chosen.length, updates, chosen.warmup, chosen.replay, chunk)
        online.check(self.algorithm, plan, self.spec)
        if self.chosen.epoch % plan.steps:
            raise ConfigError(
                f"--epoch {self.chosen.epoch} is not a whole number of iterations of {plan.steps} steps "
                f"(--online.envs {chosen.envs} times --online.length {chosen.length}, by chunks of {chunk})"
            )
        if plan.warmup >= self.chosen.steps:
            raise ConfigError(f"--online.warmup {plan.warmup} leaves none of --steps {self.chosen.steps} to learn in")
        return plan

    def place(self, folder: Path) -> None:
        """Where the run lies."""
        self.run = self.run._replace(folder=folder)
        self.checkpoints = Checkpoints(folder / "ckpt", self.chosen.keep)
        # two: a kill between the two writes of a checkpoint leaves the one before it whole
        self.experience = Checkpoints(folder / "experience", 2) if self.plan else None

    def identity(self, data_hash: str) -> str:
        parent = self.parent and self.parent.card
        return options.identity(self.run.algo, self.run.task, self.chosen, data_hash, parent)

    def prepare(self) -> None:
        """Make ready what a run learns from: its parent's state, and its environments or its dataset."""
        if self.parent:
            state = parents.state(self.parent, self.spec, len(self.chosen.seeds))
            self.start = self.start._replace(parent=state)
        if self.plan:
            self._admit_replay()
            online.trace(self.algorithm, self.start, self.chosen.seeds, self.spec, self.plan)
            num = self.plan.num_envs * (1 if self.jitted else len(self.chosen.seeds))
            self.world = envs.make(self.run.task, num, self.chosen.env)
        elif self.algorithm.on_policy:
            raise ConfigError(f"{self.run.algo} is on-policy: it learns from what it does, leave out --data.path")
        else:
            self._read()

    def _admit_replay(self) -> None:
        """Raises: ConfigError for a replay that the memory cannot hold."""
        plan, seeds = self.plan, len(self.chosen.seeds)
        if self.algorithm.on_policy:
            return
        kept = jax.eval_shape(lambda: replay.empty(self.spec, plan.num_envs, plan.length, plan.capacity))
        size = seeds * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        stats = jax.devices()[0].memory_stats()  # of an accelerator; None on a CPU
        free = len(jax.devices()) * (stats["bytes_limit"] - stats["bytes_in_use"]) if stats else memory().free
        if size > free:
            raise ConfigError(
                f"--online.replay {plan.capacity} for {seeds} seeds takes {size / 1e9:,.1f} GB, but "
                f"{free / 1e9:,.1f} GB are free: make it smaller, or train fewer seeds at once"
            )

    def close(self) -> None:
        if self.world:
            self.world.close()

    def _read(self) -> None:
        """Read the dataset, put it on the device with what the algorithm prepares, and trace an update."""
        # absolute: the run may be moved, and resumed from elsewhere
        path = str(datasets.locate(self.chosen.data.path).absolute())
        self.chosen = dataclasses.replace(self.chosen, data=dataclasses.replace(self.chosen.data, path=path))
        self.run = self.run._replace(train=self.chosen)
        source, config = self.chosen.data, self.chosen.config
        self.data, self.card = datasets.read(source.path, self.spec, None if source.any_task else self.run.task)
        usable = self._usable()
        sampler = self._sampler(usable)
        self._change_rewards()
        self.start = self.start._replace(
            norm=dataset.norm(self.data, config.state_norm, config.action_norm, config.norm_floor)
        )
        extra = self.algorithm.prepare(self.data, self.start) if self.algorithm.prepare else ()
        self.on_device = batches.data(self.data, self.start.norm, sampler, extra=extra)
        jax.eval_shape(loop.epoch(self.algorithm, 1), self.template, self.on_device)  # refuses what only tracing shows

    def _usable(self) -> np.ndarray:
        """bool[N] transitions that the algorithm can learn from.  Raises: DataError when there are none."""
        if not self.algorithm.eligible:
            return np.ones(len(self.data.row), bool)
        usable = np.asarray(self.algorithm.eligible(self.data), bool)
        if not usable.any():
            raise DataError(
                f"{self.chosen.data.path} has no transition that {self.run.algo} can learn from: no episode is as long "
                f"as --env.chunk {self.spec.chunk}; take a smaller chunk or longer episodes"
            )
        return usable

    def _sampler(self, usable: Array) -> Sampler | None:
        """Draws the transitions bool[N] that are usable as --data.weights says, and says on the card how unevenly.

        None where all are drawn alike.

        Returns are of the file's own rewards: where every step costs 1 to learn from, as is usual in AntMaze, a return
        would be minus the length, and the best episodes those that are cut short.
        """
        scheme = weights.parse(self.chosen.data.weights)
        if scheme.kind == "uniform":
            return None if usable.all() else sampling.alias_table(usable)
        of = dataset.episodes(self.data)
        if scheme.kind == "aw" and len(of.length) <= self.data.state.shape[-1] + 1:
            raise ConfigError(
                f"--data.weights {scheme}: {len(of.length)} episodes leave no advantage over a value that is fitted to "
                f"{self.data.state.shape[-1]} numbers of their first states; take rw, or more episodes"
            )
        count = np.add.reduceat(usable, np.cumsum(of.length) - of.length, dtype=np.int64)
        try:
            p = weights.probabilities(scheme, of.ret, count, self.data.state[of.first], mix.sources(self.card))
        except ConfigError as error:
            raise ConfigError(f"--data.weights {scheme} on {self.chosen.data.path}: {error}") from error
        transitions, episodes = weights.effective(p, count)
        self.card["weights"] = {
            "scheme": str(scheme), "effective transitions": transitions, "effective episodes": episodes
        }  # fmt: skip
        print(
            f"weights {scheme}: draws repeat as if {transitions:,.0f} of {count.sum():,} transitions, {episodes:,.1f} "
            f"of {len(count):,} episodes were drawn alike", flush=True,
        )  # fmt: skip
        return sampling.alias_table(np.repeat(p, of.length) * usable)

    def _change_rewards(self) -> None:
        """Scale and shift the rewards as the options say."""
        source = self.chosen.data
        change = source.reward_scale, source.reward_shift, source.reward_range
        if change == (1.0, 0.0, 0.0):
            return
        try:
            reward = dataset.training_reward(self.data.reward, dataset.episodes(self.data).ret, *change)
        except ConfigError as error:
            raise ConfigError(f"--data.reward-...: {source.path}: {error}") from error
        self.data = self.data._replace(reward=reward)
        self.card["rewards"] = dict(zip(("scale", "shift", "range"), change, strict=True))

    def begin(self) -> RunState:
        if self.plan:
            return online.begin(self.algorithm, self.start, self.chosen.seeds, self.world, self.plan)
        return loop.begin(self.algorithm, self.start, self.chosen.seeds)

    def save(self, step: int, state: RunState, identity: str) -> None:
        """Write a checkpoint; where its environments are, and their replay, lie apart: only resuming needs them."""
        if self.plan:
            self.experience.save(step, {"rollout": state.rollout, "replay": state.replay}, identity)
        self.checkpoints.save(step, state._replace(rollout=(), replay=()), identity)

    def drop_after(self, step: int) -> None:
        """Forget later checkpoints."""
        for kept in filter(None, (self.checkpoints, self.experience)):
            kept.drop_after(step)

    def restore(self, identity: str, step: int | None = None) -> tuple[int, RunState]:
        """(step, state) of a checkpoint, default the last, without what only resuming needs."""
        return self.checkpoints.restore(self.template, identity, step)

    def reenter(self, step: int, state: RunState, identity: str) -> RunState:
        """A restored state, back among its environments."""
        if not self.plan:
            return state
        if step not in (kept := self.experience.steps()):
            instead = f"add --checkpoint N, N one of {kept}" if kept else "this run can be judged, but not resumed"
            raise CheckpointError(f"what checkpoint {step} had of its environments was not kept; {instead}")
        begun = self.begin()
        shapes = {"rollout": begun.rollout, "replay": begun.replay}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
        del begun  # a second replay would take as much memory again
        state = state._replace(**self.experience.restore(shapes, identity, step)[1])
        if self.jitted:
            return state
        if not online.exact(state):
            print("the simulators cannot be put where they were: new episodes begin", flush=True)
        return online.enter(state, self.chosen.seeds, self.world)

    def program(self, state: RunState) -> tuple[RunState, loop.Program]:
        """An epoch, compiled, and the state on its devices."""
        seeds, steps = len(self.chosen.seeds), self.chosen.epoch
        # placed also on one device: a restored state then compiles to the program that the cache holds
        if not self.plan:
            mesh = sharding.mesh(seeds)
            state, data = sharding.place(state, self.on_device, mesh)
            return state, loop.compiled(self.algorithm, state, data, steps, mesh)
        devices = jax.devices()
        mesh = sharding.mesh(seeds, devices[: math.gcd(seeds, len(devices))])  # whole seeds on each
        state, _ = sharding.place(state, (), mesh)
        build = online.compiled if self.jitted else online.hosted
        return state, build(self.algorithm, state, self.world, self.plan, self.start.norm, steps)

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
