"""What a training run can be told; the command line is tyro over these.  Imports no jax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from core.config import ConfigError, fingerprint, to_dict
from envs.registry import Options


@dataclass(frozen=True)
class DataOptions:
    path: str = ""  # dataset file, as `rheostat collect` writes it


@dataclass(frozen=True)
class EvalOptions:
    every: int = 10_000  # updates between evaluations; the last update is always evaluated
    episodes: int = 20  # fresh episodes per seed
    envs: int = 10  # simulators per seed that play them side by side
    seed: int = 1_000_000  # base of the episodes' seeds


@dataclass(frozen=True)
class Train:
    """One run: some seeds of one algorithm on one task."""

    config: Any  # the algorithm's own options
    data: DataOptions = field(default_factory=DataOptions)
    env: Options = field(default_factory=Options)
    eval: EvalOptions = field(default_factory=EvalOptions)
    seeds: tuple[int, ...] = (0,)  # trained side by side in one program
    updates: int = 100_000  # gradient updates per seed
    epoch: int = 1_000  # updates per jitted program; logs, evaluations and checkpoints fall between programs
    save_every: int = 10_000  # updates between checkpoints; the last update is always saved
    keep: int = 2  # checkpoints kept besides the best
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()  # copies of the metrics: tensorboard, wandb
    out: str = "runs"  # where run folders are made
    name: str = ""  # name of the run folder; default: first digits of the configuration's fingerprint


def check(train: Train) -> None:
    """Raises: ConfigError for numbers that do not fit together."""
    for name, every in (
        ("updates", train.updates), ("eval.every", train.eval.every), ("save-every", train.save_every)
    ):  # fmt: skip
        if train.epoch < 1 or every < 1 or every % train.epoch:
            raise ConfigError(f"--{name} {every} is not a whole number of epochs (--epoch {train.epoch})")
    if train.eval.episodes < 1 or train.eval.envs < 1 or train.eval.episodes % train.eval.envs:
        raise ConfigError(
            f"--eval.episodes {train.eval.episodes} must be a multiple of --eval.envs {train.eval.envs}, "
            "so that every simulator plays the same number"
        )
    if not train.seeds or len(set(train.seeds)) < len(train.seeds) or min(train.seeds) < 0:
        raise ConfigError(f"--seeds {train.seeds} must be different non-negative numbers")
    if not train.data.path:
        raise ConfigError("an offline algorithm needs --data.path FILE; `rheostat collect TASK` makes one")


def identity(algo: str, task: str, train: Train, data_hash: str) -> str:
    """Fingerprint of what determines the numbers: not where they are written, nor how long or how often."""
    values = to_dict(train)
    chosen = {key: values[key] for key in ("config", "env", "seeds")}
    return fingerprint({"algo": algo, "task": task, "data": data_hash, **chosen})
