"""Train and resume: data, algorithm, loop, evaluation, checkpoints and the run folder, wired together."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import algos
import envs
from core import batches, dataset, loop, sampling, sharding
from core.checkpoint import Checkpoints
from core.config import ConfigError
from core.dataset import DataError
from core.metrics import Lines, Progress, read_lines, sink
from core.rollout import Evaluator, JaxBatch, Judged
from core.types import Data, Dataset, RunState, Start
from envs import datasets, registry
from experiments import options, runs
from experiments.runs import Failed, Run, Stopped


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
    """A run with everything that does not change while it trains; making one writes nothing.

    Args: data: the dataset, to train; None to judge only.
    Raises: ConfigError for whatever is refused.
    """

    def __init__(self, run: Run, data: Dataset | None, data_hash: str):
        options.check(run.train)
        registry.check(run.task)
        self.run, self.chosen, self.data = run, run.train, data
        one = envs.make(run.task, 1, dataclasses.replace(run.train.env, workers=0))
        one.close()
        self.spec, self.jitted = one.spec, isinstance(one, JaxBatch)
        if data is not None:
            dataset.check(data, run.train.data.path, self.spec)
        if any(not 1 <= task <= self.spec.num_tasks for task in run.train.eval.tasks):
            raise ConfigError(f"{run.task} has tasks 1 to {self.spec.num_tasks}, not {run.train.eval.tasks}")
        config = run.train.config
        self.algorithm = algos.load(run.algo).make(config, self.spec)
        width = 1 if self.spec.pixels else self.spec.frame_shape[0]
        self.start = Start(
            dataset.identity_norm(width, self.spec.action_dim)  # only its shapes count, to judge
            if data is None
            else dataset.norm(data, config.state_norm, config.action_norm)
        )
        self.identity = options.identity(run.algo, run.task, run.train, data_hash)
        self.template = jax.eval_shape(self.begin)
        self.checkpoints = Checkpoints(run.folder / "ckpt", run.train.keep)

    def begin(self) -> RunState:
        return loop.begin(self.algorithm, self.start, self.chosen.seeds)

    def device_data(self) -> Data:
        """The dataset with what the algorithm prepares, sampled from the transitions that it can use."""
        extra = self.algorithm.prepare(self.data, self.start) if self.algorithm.prepare else ()
        usable = self.algorithm.eligible(self.data) if self.algorithm.eligible else None
        sampler = None if usable is None else sampling.alias_table(usable)
        return batches.data(self.data, self.start.norm, sampler, extra=extra)

    def evaluator(self, simulators: int, episodes: int) -> Evaluator:
        """Judges all seeds at once on `episodes` each; close its `env` afterwards."""
        seeds = len(self.chosen.seeds)
        env = envs.make(self.run.task, simulators if self.jitted else simulators * seeds, self.chosen.env)
        return Evaluator(self.algorithm.act_eval, self.algorithm.init_carry, env, seeds, episodes // simulators)

    def judge(self, evaluator: Evaluator, state: RunState, step: int, seed: int) -> list[dict[str, Any]]:
        """Fresh episodes by seed -> one row for each of the run's seeds."""
        tasks = list(itertools.islice(itertools.cycle(self.chosen.eval.tasks), evaluator.slots)) or None
        judged = evaluator(state.algo, [seed + s for s in self.chosen.seeds], tasks)
        return _rows(judged, tasks, self.chosen.seeds, step, np.asarray(state.failed))


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


def _read(chosen: options.Train, task: str) -> tuple[Dataset, dict[str, Any]]:
    data, card = datasets.read(chosen.data.path)
    if card["task"] != task and not chosen.data.any_task:
        raise DataError(
            f"{chosen.data.path} was made on {card['task']}, not on {task}; --data.any-task trains on it all the same"
        )
    return data, card


def train(algo: str, task: str, chosen: options.Train, quiet: bool = False) -> Path:
    """Run from the beginning; returns the run folder.

    Raises: ConfigError for whatever is refused, before anything is written; Stopped after a signal; Failed.
    """
    options.check(chosen)
    data, card = _read(chosen, task)
    name = chosen.name or options.identity(algo, task, chosen, card["sha256"])[:8]
    live = _Live(Job(Run(Path(chosen.out) / algo / task / name, algo, task, chosen), data, card["sha256"]), quiet)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    with live:
        runs.create(live.run, {**runs.provenance(), "device": device, "data": {"path": chosen.data.path, **card}})
        live.go(live.job.begin(), 0)
    return live.run.folder


def resume(folder: str | Path, step: int | None = None, updates: int | None = None, quiet: bool = False) -> Path:
    """Go on from the last checkpoint or from the one at `step`; `updates`: train longer than first planned."""
    run = runs.load(folder)
    runs.refuse_if_alive(run.folder)
    if updates is not None:
        run = run._replace(train=dataclasses.replace(run.train, updates=updates))
    data, card = _read(run.train, run.task)
    if card["sha256"] != runs.data_hash(run.folder):
        raise DataError(f"{run.train.data.path} is not the data that {run.folder} was begun with; restore that file")
    job, state = Job(run, data, card["sha256"]), None
    if job.checkpoints.steps() or step is not None:
        step, state = job.checkpoints.restore(job.template, job.identity, step)
    step = step or 0  # without a checkpoint it begins anew
    if step >= run.train.updates:
        raise ConfigError(
            f"{run.folder} is done: {step} of {run.train.updates} updates. To train longer: "
            f"rheostat resume {run.folder} --updates {2 * step}"
        )
    with _Live(job, quiet) as live:
        job.checkpoints.drop_after(step)
        runs.save(run)
        live.go(job.begin() if state is None else state, step)
    return run.folder


class _Live:
    """What happens between epochs, and all that must be closed after them."""

    def __init__(self, job: Job, quiet: bool):
        self.job, self.chosen, self.run = job, job.chosen, job.run
        self.evaluator = job.evaluator(self.chosen.eval.envs, self.chosen.eval.episodes)
        self.quiet, self.sinks, self.progress = quiet, [], None
        self.stopping, self.note = Stopping(), ""

    def __enter__(self) -> _Live:
        self.stopping.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self.stopping.__exit__()
        self.evaluator.env.close()
        for copy in self.sinks:
            copy.close()
        if self.progress:
            self.progress.close()
            if error is not None and not isinstance(error, Stopped):
                self._status("failed", reason=str(error) or kind.__name__)

    def go(self, state: RunState, step: int) -> None:
        chosen, folder = self.chosen, self.run.folder
        self.step, self.losers = step, []
        self.progress = Progress(chosen.updates, quiet=self.quiet)
        self.progress.say(f"{self.run.algo} on {self.run.task}, seeds {' '.join(map(str, chosen.seeds))} -> {folder}")
        self._status("running")
        self.metrics, self.evals = (Lines(folder / name, resume_at=step) for name in ("metrics.jsonl", "eval.jsonl"))
        self.sinks = [sink(kind, folder, "-".join(folder.parts[-4:])) for kind in chosen.sinks]
        self.progress.stage("compiling")
        # placed also on one device: a restored state then compiles to the program that the cache holds
        mesh = sharding.mesh(len(chosen.seeds))
        state, data = sharding.place(state, self.job.device_data(), mesh)
        self.program = loop.compiled(self.job.algorithm, state, data, chosen.epoch, mesh)
        self.progress.say(f"compiled in {self.program.seconds:.1f} s")
        self.progress.start_at(step)
        if step and step % chosen.eval.every == 0 and step not in {row["step"] for row in read_lines(self.evals.path)}:
            self._evaluate(state)  # stopped after saving, before evaluating
        self.progress.stage("training")
        try:
            for report in loop.offline(self.program, state, data, step, chosen.updates):
                self._between(report)
        except loop.Diverged as error:
            raise Failed(f"{folder}: {error}") from error

    def _between(self, report: loop.Report) -> None:
        """Log; save; then evaluate, which takes longest: a stop in the meantime loses nothing."""
        chosen, self.step = self.chosen, report.step
        failed = np.asarray(report.run.failed)
        self.losers = [seed for seed, bad in zip(chosen.seeds, failed, strict=True) if bad]
        last = self.step >= chosen.updates or failed.all()
        evaluate = last or self.step % chosen.eval.every == 0
        self._write(self.metrics, self._metric_rows(report, failed))
        if evaluate or self.stopping.signal or self.step % chosen.save_every == 0:
            self.job.checkpoints.save(self.step, report.run, self.job.identity)
            self._status("running")
        if evaluate and not (self.stopping.signal and not last):
            self._evaluate(report.run)
        done = self.step >= chosen.updates
        if self.stopping.signal and not done:
            if self.step not in self.job.checkpoints.steps():
                self.job.checkpoints.save(self.step, report.run, self.job.identity)
            self._status("stopped")
            raise Stopped(self.stopping.signal, self.run.folder, self.step)
        if done:
            self._status("done")
        lost = f"  FAILED: seeds {self.losers}" if self.losers else ""
        self.progress.advance(self.step, f"{self.note}{lost}", chosen.epoch / report.seconds)

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

    def _evaluate(self, state: RunState) -> None:
        self.progress.stage("evaluating")
        rows = self.job.judge(self.evaluator, state, self.step, self.chosen.eval.seed)
        self._write(self.evals, rows)
        sound = [row for row in rows if not row["failed"]]
        if sound:
            score = float(np.mean([row["return"] for row in sound]))
            self.job.checkpoints.score(self.step, score)
            self.note = f"return {score:.1f}  success {np.mean([row['success'] for row in sound]):.2f}"
        self.progress.stage("training")

    def _write(self, lines: Lines, rows: list[dict[str, Any]]) -> None:
        lines.write(rows)
        for copy in self.sinks:
            for row in rows:
                copy.write(row)

    def _status(self, state: str, **more: Any) -> None:
        where = {"step": self.step, "updates": self.chosen.updates, "failed_seeds": self.losers}
        runs.set_status(self.run.folder, state, **where, **more)
