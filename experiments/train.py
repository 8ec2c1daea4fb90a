"""Train and resume a run: the loop, and what happens between its epochs."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from core import loop
from core.config import ConfigError
from core.dataset import DataError
from core.locks import alone
from core.metrics import Lines, Progress, read_lines, sink
from core.types import RunState
from experiments import options, parents, runs
from experiments.job import Job
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
        print(
            "stopping after this epoch, with the state saved; Ctrl-C again aborts at once", file=sys.stderr, flush=True
        )


def train(algo: str, task: str, chosen: options.Train, quiet: bool = False) -> Path:
    """Run from the beginning; returns the run folder.

    Raises: ConfigError for whatever is refused, before anything is written; Stopped after a signal; Failed.
    """
    if chosen.parent:
        chosen = dataclasses.replace(chosen, parent=str(Path(chosen.parent).absolute()))
    job = Job(Run(None, algo, task, chosen))
    job.prepare()
    identity = job.identity(job.card["sha256"])
    job.place(Path(chosen.out) / algo / task / (chosen.name or identity[:8]))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    with _Live(job, identity, quiet) as live:
        meta = {**runs.provenance(), "device": device, "data": {"path": job.chosen.data.path, **job.card}}
        runs.create(job.run, {**meta, "parent": job.parent.card} if job.parent else meta)
        with alone(job.run.folder):
            live.go(job.begin(), 0)
    return job.run.folder


def resume(
    folder: str | Path,
    checkpoint: int | None = None,
    steps: int | None = None,
    data: str | None = None,
    quiet: bool = False,
) -> Path:
    """Go on from the last checkpoint or from the one at step `checkpoint`.

    Args: steps: train longer than first planned; data: where the dataset lies now.
    """
    runs.load(folder)  # a run folder, before a lock is put into it
    with alone(Path(folder)):
        return _resume(folder, checkpoint, steps, data, quiet)


def _resume(folder: str | Path, step: int | None, steps: int | None, data: str | None, quiet: bool) -> Path:
    run = runs.load(folder)
    chosen = run.train if steps is None else dataclasses.replace(run.train, steps=steps)
    if data:
        chosen = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, path=str(data)))
    job, state = Job(run._replace(train=chosen)), None
    job.prepare()
    if job.card["sha256"] != runs.data_hash(run.folder):
        raise DataError(f"{job.chosen.data.path} is not the data that {run.folder} was begun with; restore that file")
    identity = job.identity(job.card["sha256"])
    if job.checkpoints.steps() or step is not None:
        step, state = job.restore(identity, step)
        state = job.reenter(step, state, identity)
    elif runs.status(run.folder).get("saved"):
        raise ConfigError(f"the checkpoints of {run.folder} are gone; restore {run.folder / 'ckpt'} or start a new run")
    step = step or 0  # stopped before its first checkpoint: it begins anew
    if step > chosen.steps:
        raise ConfigError(f"{run.folder} is at step {step} already, beyond --steps {chosen.steps}")
    lost = state is not None and np.asarray(state.failed).all()  # `loop.train` raises Diverged for it
    if step == chosen.steps and not lost and _evaluated(run.folder, step, chosen.seeds):
        raise ConfigError(
            f"{run.folder} is done: {step} of {chosen.steps} steps. To train longer: "
            f"rheostat resume {run.folder} --steps {2 * step}"
        )
    with _Live(job, identity, quiet) as live:
        live.go(job.begin() if state is None else state, step)
    return run.folder


def _evaluated(folder: Path, step: int, seeds: tuple[int, ...]) -> bool:
    return {row["seed"] for row in read_lines(folder / "eval.jsonl") if row["step"] == step} >= set(seeds)


class _Live:
    """What happens between epochs, and all that must be closed after them."""

    def __init__(self, job: Job, identity: str, quiet: bool):
        self.job, self.chosen, self.run, self.identity = job, job.chosen, job.run, identity
        self.evaluator = job.evaluator(self.chosen.eval.envs, self.chosen.eval.episodes)
        self.stopping, self.sinks, self.note = Stopping(), [], ""
        self.evaluator.interrupted = lambda: self.stopping.signal is not None
        self.quiet, self.progress = quiet, None

    def __enter__(self) -> _Live:
        self.stopping.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self.stopping.__exit__()
        self.evaluator.env.close()
        self.job.close()
        for copy in self.sinks:
            copy.close()
        if self.progress:
            self.progress.close()

    def go(self, state: RunState, step: int) -> None:
        """Train; the caller holds the folder's lock."""
        self.step = self.saved = step
        self.losers = self._failed_seeds(np.asarray(state.failed))
        self.progress = Progress(self.chosen.steps, quiet=self.quiet)
        try:
            self._go(state, step)
        except Stopped:
            self._status("stopped")
            raise
        except BaseException as error:
            self._status("failed", reason=str(error) or type(error).__name__)
            if self.saved and not isinstance(error, Failed):
                self.progress.say(f"to go on with what was saved: rheostat resume {self.run.folder}")
            raise

    def _go(self, state: RunState, step: int) -> None:
        chosen, folder = self.chosen, self.run.folder
        self._status("running")
        runs.save(self.run._replace(train=chosen))
        self.job.drop_after(step)
        self.progress.say(f"{self.run.algo} on {self.run.task}, seeds {' '.join(map(str, chosen.seeds))} -> {folder}")
        if self.job.parent:
            if not step:
                self.progress.say(parents.told(self.job.parent))
            parents.keep(self.job.parent, folder)
        self.metrics, self.evals = (Lines(folder / name, resume_at=step) for name in ("metrics.jsonl", "eval.jsonl"))
        self.sinks = [sink(kind, folder, "-".join(folder.parts[-4:])) for kind in chosen.sinks]
        self.progress.stage("compiling")
        state, self.program = self.job.program(state)
        self.progress.say(f"compiled in {self.program.seconds:.1f} s")
        self.progress.start_at(step)
        # what a run starts from is judged first; and what it ended with between saving and evaluating
        due = step % chosen.eval.every == 0 or step == chosen.steps if step else bool(self.job.parent)
        if due and not _evaluated(folder, step, chosen.seeds):
            self.evals = Lines(self.evals.path, resume_at=step - 1)
            if not self._evaluate(state):
                self._stop()
        self.progress.stage("training")
        try:
            for report in loop.train(self.program, state, step, chosen.steps):
                self._between(report)
        except loop.Diverged as error:
            raise Failed(f"{folder}: {error}") from error
        self._status("done")

    def _between(self, report: loop.Report) -> None:
        """Log; save; then evaluate, which takes longest: a stop in the meantime loses nothing."""
        chosen, self.step = self.chosen, report.step
        failed = np.asarray(report.run.failed)
        self.losers = self._failed_seeds(failed)
        ratio = report.metrics.get("policy/first_ratio", np.ones(1))
        if (np.abs(ratio - 1) > 1e-3).any():
            self.progress.say(f"policy/first_ratio is {ratio}, not 1: acting and updating disagree on what is likely")
        evaluate = self.step >= chosen.steps or failed.all() or self.step % chosen.eval.every == 0
        stop = self.stopping.signal is not None
        self._write(self.metrics, self._metric_rows(report, failed))
        if evaluate or stop or self.step % chosen.save_every == 0:
            self.job.save(self.step, report.run, self.identity)
            self.saved = self.step
            self._status("running")
        judged = evaluate and not stop and self._evaluate(report.run)
        if stop or judged != evaluate:
            self._stop()
        lost = f"  FAILED: seeds {self.losers}" if self.losers else ""
        self.progress.advance(self.step, f"{self.note}{lost}", chosen.epoch / report.seconds)

    def _metric_rows(self, report: loop.Report, failed: np.ndarray) -> list[dict[str, Any]]:
        times = {
            "time/steps_per_second": self.chosen.epoch / report.seconds,
            "time/compile_seconds": self.program.seconds,
            "time/at": time.time(),
        }
        return [
            {"step": report.step, "seed": seed, "failed": bool(failed[i]), **times,
             **{name: float(value[i]) for name, value in report.metrics.items()}}
            for i, seed in enumerate(self.chosen.seeds)
        ]  # fmt: skip

    def _evaluate(self, state: RunState) -> bool:
        """Whether it was played to its end."""
        self.progress.stage("evaluating")
        rows = self.job.judge(self.evaluator, state, self.step, self.chosen.eval.seed)
        if rows is None:
            return False
        self._write(self.evals, rows)
        sound = [row for row in rows if not row["failed"]]
        if sound:
            score = float(np.mean([row["return"] for row in sound]))
            if self.step:  # the start has no checkpoint
                self.job.checkpoints.score(self.step, score)
            self.note = f"return {score:.1f}  success {np.mean([row['success'] for row in sound]):.2f}"
        self.progress.stage("training")
        return True

    def _stop(self) -> None:
        raise Stopped(
            self.stopping.signal, f"state saved at step {self.step}; go on: rheostat resume {self.run.folder}"
        )

    def _failed_seeds(self, failed: np.ndarray) -> list[int]:
        return [seed for seed, bad in zip(self.chosen.seeds, failed, strict=True) if bad]

    def _write(self, lines: Lines, rows: list[dict[str, Any]]) -> None:
        lines.write(rows)
        for copy in self.sinks:
            for row in rows:
                copy.write(row)

    def _status(self, state: str, **more: Any) -> None:
        where = {"step": self.step, "saved": self.saved, "steps": self.chosen.steps, "failed_seeds": self.losers}
        runs.set_status(self.run.folder, state, **where, **more)
