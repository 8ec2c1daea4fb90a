"""Judge a run's checkpoint on fresh episodes.  The dataset is not needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import algos
from core.config import ConfigError
from core.metrics import Lines
from core.types import RunState
from experiments import options, parents, runs
from experiments.job import Job


def checkpoint(
    folder: str | Path, step: int | None = None, best: bool = False, denoising_steps: int = 0
) -> tuple[Job, int, RunState]:
    """A run, and the state at its last, best or given checkpoint.

    Args: denoising_steps: denoising steps to act with, instead of the run's own.
    Raises: ConfigError when both a step and the best are asked for, there is no such checkpoint, or no denoising steps.
    """
    if best and step is not None:
        raise ConfigError(f"--best and --checkpoint {step} both choose a checkpoint; leave one of them out")
    run = runs.load(folder)
    job = Job(_denoising(run, denoising_steps) if denoising_steps else run)
    if denoising_steps and job.template != parents.template(run, job.spec):
        raise ConfigError(f"--denoising-steps {denoising_steps}: the parameters of {folder} are of its own steps only")
    if best:
        step = job.checkpoints.best()
        if step is None:
            raise ConfigError(f"{folder} has no checkpoint with a score yet")
    return job, *job.restore(runs.identity(run), step)


def _denoising(run: runs.Run, steps: int) -> runs.Run:
    config = run.train.config
    if not hasattr(config, "denoising") or getattr(algos.load(run.algo), "ONE_STEP", False):
        raise ConfigError(f"--denoising-steps {steps}: {run.algo} has no denoising steps")
    config = replace(config, denoising=replace(config.denoising, steps=steps))
    return run._replace(train=replace(run.train, config=config))


def evaluate(
    folder: str | Path,
    episodes: int,
    envs: int,
    seed: int,
    step: int | None = None,
    best: bool = False,
    denoising_steps: int = 0,
) -> list[dict]:
    """Play `episodes` fresh episodes per seed, print and append them to RUN/eval_fresh.jsonl; returns the rows."""
    job, step, state = checkpoint(folder, step, best, denoising_steps)
    options.check_evaluation(episodes, envs, seed, job.chosen.eval.tasks, prefix="--")
    evaluator = job.evaluator(envs, episodes)
    try:
        rows = job.judge(evaluator, state, step, seed)
    finally:
        evaluator.env.close()
    said = {"denoising_steps": denoising_steps} if denoising_steps else {}
    rows = [{**row, "eval_seed": seed, **said} for row in rows]
    for row in rows:
        print(
            f"seed {row['seed']}  step {step}  {row['episodes']} episodes  return {row['return']:.2f}  "
            f"success {row['success']:.3f}  length {row['length']:.1f}{'  FAILED' if row['failed'] else ''}"
        )
    Lines(job.run.folder / "eval_fresh.jsonl").write(rows)
    return rows
