"""What a training run can be told; the command line is tyro over these.  Imports no jax."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from core import weights
from core.config import ConfigError, changed, fingerprint, require_finite
from core.metrics import require_sink
from envs.registry import Options

PresetName = Literal["full", "cpu", "published", "matched", "cpu-matched"]


@dataclass(frozen=True)
class DataOptions:
    path: str = ""  # dataset file of any format, or the name of a published one, such as d4rl/hopper-medium-v2
    any_task: bool = False  # allow a dataset whose card names another task
    weights: str = "uniform"  # how often episodes are drawn: uniform, rw:T, aw:T, top:x, half, half:x (core/weights.py)
    # r <- scale * r * range / (largest - smallest return) + shift, to learn from; evaluations keep the task's rewards
    reward_scale: float = 1.0  # factor of the rewards
    reward_shift: float = 0.0  # added to them
    reward_range: float = 0.0  # difference of the returns before scaling, IQL: 1000; 0: as in the file


@dataclass(frozen=True)
class OnlineOptions:
    """An iteration without a dataset: the environments take steps, then the algorithm learns."""

    envs: int = 1  # environments per seed
    length: int = 1  # actions of each in an iteration; a chunk is one
    utd: float = 1.0  # off-policy: gradient updates per action
    warmup: int = 0  # off-policy: environment steps of uniformly random actions before the first update
    replay: int = 1_000_000  # off-policy: transitions kept per seed


@dataclass(frozen=True)
class EvalOptions:
    every: int = 10_000  # steps between evaluations; the last step is always evaluated
    episodes: int = 20  # fresh episodes per seed
    envs: int = 10  # simulators per seed that play them side by side
    seed: int = 1_000_000  # base of the episodes' seeds
    tasks: tuple[int, ...] = ()  # task numbers, dealt out to the simulators in turn; none: drawn per episode


@dataclass(frozen=True)
class Train:
    """One run: some seeds of one algorithm on one task."""

    config: Any  # the algorithm's own options
    parent: Annotated[str, tyro.conf.arg(name="from", metavar="RUN", help="run folder to start from, at its end")] = ""
    preset: PresetName = "full"  # where the defaults come from: see `experiments.presets`
    data: DataOptions = field(default_factory=DataOptions)
    online: OnlineOptions = field(default_factory=OnlineOptions)  # where no dataset is named
    env: Options = field(default_factory=Options)
    eval: EvalOptions = field(default_factory=EvalOptions)
    seeds: tuple[int, ...] = (0,)  # trained side by side in one program
    steps: int = 100_000  # per seed: gradient updates on a dataset, environment steps online
    epoch: int = 1_000  # steps per report; logs, evaluations and checkpoints fall between epochs
    save_every: int = 10_000  # steps between checkpoints; evaluated and last steps are always saved
    keep: int = 2  # checkpoints kept besides the best
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()  # copies of the metrics
    out: str = "runs"  # where run folders are made
    name: str = ""  # name of the run folder; default: first digits of the configuration's fingerprint


def check_evaluation(episodes: int, envs: int, seed: int, tasks: tuple[int, ...] = (), prefix: str = "--eval.") -> None:
    """Raises: ConfigError for numbers that do not fit together, named by their options, which begin with `prefix`."""
    for name, value in (("episodes", episodes), ("envs", envs)):
        if value < 1:
            raise ConfigError(f"{prefix}{name} {value} must be at least 1")
    if episodes % envs:
        raise ConfigError(
            f"{prefix}episodes {episodes} is not a multiple of {envs} simulators, which play as many each: "
            f"change it or {prefix}envs {envs}"
        )
    if tasks and envs % len(tasks):
        raise ConfigError(f"{prefix}envs {envs} must be a multiple of the {len(tasks)} tasks, which share simulators")
    if not 0 <= seed < 2**31:
        raise ConfigError(f"{prefix}seed {seed} must lie between 0 and 2^31")


def learned_from(data: DataOptions) -> dict[str, Any]:
    """What makes a run learn from other numbers than the dataset's own, drawn alike: the options that are changed.

    Raises: ConfigError for weights that are none.
    """
    scheme = str(weights.parse(data.weights))  # aw and aw:0.10 are the same
    return changed(replace(data, path="", any_task=False, weights=scheme))


def check(train: Train) -> None:
    """Raises: ConfigError for numbers that do not fit together, and for sinks that are not installed."""
    require_finite(train)
    if (data := learned_from(train.data)) and not train.data.path:
        names = ", ".join(f"--data.{name.replace('_', '-')}" for name in data)
        raise ConfigError(f"{names} is about a dataset: name one by --data.path, or leave it out")
    if train.steps < 1:
        raise ConfigError(f"--steps {train.steps} must be at least one epoch (--epoch {train.epoch})")
    for name, every in (
        ("steps", train.steps), ("eval.every", train.eval.every), ("save-every", train.save_every)
    ):  # fmt: skip
        if train.epoch < 1 or every < 1 or every % train.epoch:
            raise ConfigError(f"--{name} {every} is not a whole number of epochs (--epoch {train.epoch})")
    check_evaluation(train.eval.episodes, train.eval.envs, train.eval.seed, train.eval.tasks)
    seeds = train.seeds
    if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**31:
        raise ConfigError(f"--seeds {seeds} must be different numbers between 0 and 2^31")
    if train.config.batch_size < 1 or train.keep < 1:
        raise ConfigError(f"batch size {train.config.batch_size} and --keep {train.keep} must be at least 1")
    if "/" in train.name or train.name.startswith(".") or len(train.name) > 100:
        raise ConfigError(f"--name {train.name[:120]} must be at most 100 characters, without '/' and no '.' in front")
    for kind in train.sinks:
        require_sink(kind)


def method(algo: str, task: str, train: Train, data_hash: str, parent: dict[str, Any] | None = None) -> str:
    """Fingerprint of all that determines a seed's numbers: not where they are written, nor by how many processes.

    Args: parent: of the run that this one starts from, its identity and step, as in meta.json.
    Options at their defaults do not enter, so that an option which a later version adds changes no fingerprint.
    """
    env = replace(train.env, workers=0, threads=0, host=False)
    chosen = {"config": changed(train.config), "env": changed(env)}
    if not train.data.path:
        chosen["online"] = changed(train.online)
    if data := learned_from(train.data):
        chosen["data options"] = data
    if parent:
        chosen["parent"] = {key: parent[key] for key in ("identity", "step")}
    return fingerprint({"algo": algo, "task": task, "data": data_hash, **chosen})


def identity(algo: str, task: str, train: Train, data_hash: str, parent: dict[str, Any] | None = None) -> str:
    """Fingerprint of a run's state: its method and its seeds."""
    return fingerprint({"method": method(algo, task, train, data_hash, parent), "seeds": list(train.seeds)})
