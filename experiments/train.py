"""Train and resume: data, algorithm, loop, evaluation, checkpoints and the run folder, wired together."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import algos
import envs
from core import batches, dataset, loop, sharding
from core.algorithm import Algorithm
from core.checkpoint import Checkpoints
from core.config import ConfigError
from core.metrics import Lines, Progress, sink
from core.rollout import Evaluator, JaxBatch, Judged
from core.types import Data, Dataset, EnvSpec, RunState, Start
from envs import datasets, registry
from experiments import options, runs
from experiments.runs import Run, Stopped


class Stopping:
    """SIGTERM and Ctrl-C ask the loop to stop after its epoch; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> Stopping:
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number


class Job:
    """A run with everything that does not change while it trains."""

    def __init__(self, run: Run):
        """Raises: ConfigError for whatever is refused, before anything is written."""
        options.check(run.train)
        registry.check(run.task)
        self.run, self.folder, self.chosen = run, run.folder, run.train
        self.spec = spec_of(run.task, run.train.env)
        self.data, self.card = datasets.read(run.train.data.path, self.spec)
        self.identity = options.identity(run.algo, run.task, run.train, self.card["sha256"])
        self.algorithm, self.start = build(run, self.spec, self.data)

    def begin(self) -> RunState:
        return loop.begin(self.algorithm, self.start, self.chosen.seeds)

    def template(self) -> RunState:
        """The shapes of the state, without making it."""
        return jax.eval_shape(self.begin)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "ckpt", self.chosen.keep)

    def device_data(self) -> Data:
        extra = self.algorithm.prepare(self.data, self.start.norm) if self.algorithm.prepare else ()
        return batches.data(self.data, self.start.norm, extra=extra)


def spec_of(task: str, env: registry.Options) -> EnvSpec:
    one = envs.make(task, 1, dataclasses.replace(env, workers=0))
    one.close()
    return one.spec


def build(run: Run, spec: EnvSpec, data: Dataset) -> tuple[Algorithm, Start]:
    """The algorithm of a run, and what it starts from."""
    config = run.train.config
    algorithm = algos.load(run.algo).make(config, spec)
    return algorithm, Start(dataset.norm(data, config.state_norm, config.action_norm))


def evaluator(algorithm: Algorithm, run: Run, envs_per_seed: int, episodes: int) -> Evaluator:
    """Judges all seeds of a run at once on `episodes` each; close its `env` afterwards."""
    seeds = len(run.train.seeds)
    env = envs.make(run.task, envs_per_seed, run.train.env)
    if not isinstance(env, JaxBatch) and seeds > 1:
        env.close()
        env = envs.make(run.task, envs_per_seed * seeds, run.train.env)
    return Evaluator(algorithm.act_eval, algorithm.init_carry, env, seeds, episodes // envs_per_seed)


def eval_rows(judged: Judged, run: Run, step: int, failed: np.ndarray) -> list[dict[str, Any]]:
    """One row per seed: means, every episode's return and success, and whether the seed has failed."""
    rows = []
    for i, seed in enumerate(run.train.seeds):
        ret, success = judged.ret[i].ravel(), judged.success[i].ravel()
        rows.append({
            "step": step, "seed": seed, "failed": bool(failed[i]), "episodes": len(ret), "return": float(ret.mean()),
            "success": float(success.mean()), "length": float(judged.length[i].mean()),
            "returns": ret.tolist(), "successes": success.tolist(),
        })  # fmt: skip
    return rows


def train(algo: str, task: str, chosen: options.Train, quiet: bool = False) -> Path:
    """Run from the beginning; returns the run folder.

    Raises: ConfigError for whatever is refused; Stopped after a signal.
    """
    job = Job(Run(Path(chosen.out), algo, task, chosen))
    job.folder = Path(chosen.out) / algo / task / (chosen.name or job.identity[:8])
    job.run = job.run._replace(folder=job.folder)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    runs.create(job.run, {**runs.provenance(), "device": device, "data": {"path": chosen.data.path, **job.card}})
    return _Live(job, quiet).go(job.begin(), 0)


def resume(folder: str | Path, step: int | None = None, updates: int | None = None, quiet: bool = False) -> Path:
    """Go on from the last checkpoint or from the one at `step`; `updates`: train longer than first planned."""
    run = runs.load(folder)
    runs.refuse_if_alive(run.folder)
    if updates is not None:
        run = run._replace(train=dataclasses.replace(run.train, updates=updates))
    job, state = Job(run), None
    checkpoints = job.checkpoints()
    if checkpoints.steps() or step is not None:
        step, state = checkpoints.restore(job.template(), job.identity, step)
    step = step or 0  # without a checkpoint it begins anew
    if step >= run.train.updates:
        raise ConfigError(
            f"{run.folder} is done: {step} of {run.train.updates} updates. To train longer: "
            f"rheostat resume {run.folder} --updates {2 * step}"
        )
    checkpoints.drop_after(step)
    runs.save(run)
    return _Live(job, quiet).go(job.begin() if state is None else state, step)


class _Live:
    """What happens between epochs."""

    def __init__(self, job: Job, quiet: bool):
        self.job, self.chosen, self.run = job, job.chosen, job.run
        self.progress = Progress(job.chosen.updates, quiet=quiet)
        self.checkpoints = job.checkpoints()
        self.sinks = [sink(kind, job.folder, "-".join(job.folder.parts[-4:])) for kind in self.chosen.sinks]
        self.judge = evaluator(job.algorithm, job.run, self.chosen.eval.envs, self.chosen.eval.episodes)
        self.note = ""

    def go(self, state: RunState, step: int) -> Path:
        chosen, folder = self.chosen, self.job.folder
        self.metrics, self.evals = (Lines(folder / name, resume_at=step) for name in ("metrics.jsonl", "eval.jsonl"))
        self.progress.say(f"{self.run.algo} on {self.run.task}, seeds {' '.join(map(str, chosen.seeds))} -> {folder}")
        runs.set_status(folder, "running", step=step, updates=chosen.updates)
        mesh = sharding.mesh(len(chosen.seeds))
        # also on one device: a restored state then compiles to the same program as a fresh one, which the cache holds
        state, data = sharding.place(state, self.job.device_data(), mesh)
        try:
            with Stopping() as stopping:
                self.progress.stage("compiling")
                self.program = loop.compiled(self.job.algorithm, state, data, chosen.epoch, mesh)
                self.progress.say(f"compiled in {self.program.seconds:.1f} s")
                self.progress.stage("training")
                self.progress.start_at(step)
                for report in loop.offline(self.program, state, data, chosen.updates):
                    self._between(report, stopping)
        except Exception as error:
            if not isinstance(error, Stopped):
                runs.set_status(folder, "failed", reason=str(error))
            raise
        finally:
            self.progress.close()
            self.judge.env.close()
        return folder

    def _between(self, report: loop.Report, stopping: Stopping) -> None:
        chosen, step = self.chosen, report.step
        failed = np.asarray(report.run.failed)
        last, stop = step >= chosen.updates or failed.all(), stopping.signal is not None
        self._write(self.metrics, self._metric_rows(report, failed))
        score = None
        if last or step % chosen.eval.every == 0:
            score = self._evaluate(report, failed)
        if last or stop or step % chosen.save_every == 0:
            self.checkpoints.save(step, report.run, self.job.identity, score)
        losers = [seed for seed, bad in zip(chosen.seeds, failed, strict=True) if bad]
        state = "done" if last else "stopped" if stop else "running"
        runs.set_status(self.job.folder, state, step=step, updates=chosen.updates, failed_seeds=losers)
        self.progress.advance(step, f"{self.note}{f'  FAILED: seeds {losers}' if losers else ''}")
        if stop and not last:
            raise Stopped(stopping.signal, self.job.folder, step)

    def _metric_rows(self, report: loop.Report, failed: np.ndarray) -> list[dict[str, Any]]:
        times = {
            "time/updates_per_second": self.chosen.epoch / report.seconds,
            "time/compile_seconds": self.program.seconds,
            "time/at": time.time(),
        }
        return [
            {"step": report.step, "seed": seed, "failed": bool(failed[i]), **times,
             **{name: float(value[i]) for name, value in report.metrics.items()}}
            for i, seed in enumerate(self.chosen.seeds)
        ]  # fmt: skip

    def _evaluate(self, report: loop.Report, failed: np.ndarray) -> float:
        self.progress.stage("evaluating")
        judged = self.judge(report.run.algo, [self.chosen.eval.seed + seed for seed in self.chosen.seeds])
        rows = eval_rows(judged, self.run, report.step, failed)
        self._write(self.evals, rows)
        score = float(np.mean([row["return"] for row in rows]))
        self.note = f"return {score:.1f}  success {np.mean([row['success'] for row in rows]):.2f}"
        self.progress.stage("training")
        return score

    def _write(self, lines: Lines, rows: list[dict[str, Any]]) -> None:
        lines.write(rows)
        for copy in self.sinks:
            for row in rows:
                copy(row)
