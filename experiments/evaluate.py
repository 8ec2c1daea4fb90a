"""Judge a run's checkpoint on fresh episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.config import ConfigError
from core.metrics import Lines
from core.types import RunState
from experiments import runs
from experiments.train import Job, eval_rows, evaluator


def checkpoint(folder: str | Path, step: int | None = None, best: bool = False) -> tuple[Job, int, RunState]:
    """A run, and the state at its last, best or given checkpoint."""
    job = Job(runs.load(folder))
    checkpoints = job.checkpoints()
    if best:
        step = checkpoints.best()
        if step is None:
            raise ConfigError(f"{folder} has no checkpoint with a score; it is saved where an evaluation falls on one")
    return job, *checkpoints.restore(job.template(), job.identity, step)


def evaluate(
    folder: str | Path, episodes: int, envs: int, seed: int, step: int | None = None, best: bool = False
) -> list[dict]:
    """Play `episodes` fresh episodes per seed, print and append them to RUN/eval_fresh.jsonl; returns the rows."""
    if episodes < 1 or envs < 1 or episodes % envs:
        raise ConfigError(f"--episodes {episodes} must be a multiple of --envs {envs}")
    job, step, state = checkpoint(folder, step, best)
    judge = evaluator(job.algorithm, job.run, envs, episodes)
    try:
        judged = judge(state.algo, [seed + s for s in job.chosen.seeds])
    finally:
        judge.env.close()
    rows = [{**row, "eval_seed": seed} for row in eval_rows(judged, job.run, step, np.asarray(state.failed))]
    Lines(job.folder / "eval_fresh.jsonl").write(rows)
    for row in rows:
        failed = "  FAILED in training" if row["failed"] else ""
        print(
            f"seed {row['seed']}  update {step}  {row['episodes']} episodes  return {row['return']:.2f}  "
            f"success {row['success']:.3f}  length {row['length']:.1f}{failed}"
        )
    return rows
