"""What each command of `rheostat` does; tyro makes their options and help from the signatures.

A command imports what it needs when it runs; parsing imports jax for `train` only, whose algorithm has the options.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from core.config import ConfigError

TRAIN = """\
usage: rheostat train ALGO TASK [options]

algorithms: {algos}
tasks:      rheostat list tasks
options:    rheostat train ALGO TASK --help shows them all, with the preset's defaults

example:
  rheostat collect metaworld/push --episodes 100 --noise 0.5 --out data/push.npz
  rheostat train td3_bc metaworld/push --data.path data/push.npz --seeds 0 1 2 3
"""


def _jax() -> None:
    from core import compile_cache

    compile_cache.enable()


def train(args: list[str]) -> None:
    import algos
    from envs import registry
    from experiments import options
    from experiments.presets import preset

    if len(args) < 2 or any(word.startswith("-") for word in args[:2]):
        print(TRAIN.format(algos=", ".join(algos.names())))
        if not {"-h", "--help"} & set(args):
            raise ConfigError("train needs an algorithm and a task")
        return
    algo, task, *rest = args
    registry.check(task)
    chosen = tyro.cli(
        options.Train, args=rest, default=preset(algo, task), prog=f"rheostat train {algo} {task}",
        description=f"Train {algo} on {task}.  The defaults are the preset's.",
    )  # fmt: skip
    _jax()
    from experiments.train import train

    print(f"done: {train(algo, task, chosen)}")


def resume(
    run: Positional[Path],
    checkpoint: int | None = None,
    steps: int | None = None,
    data: Path | None = None,
) -> None:
    """Go on with a run from its last checkpoint.

    Args:
        run: the run folder.
        checkpoint: go on from the checkpoint at this step instead of the last; later ones are dropped.
        steps: train to this many steps instead of those first planned.
        data: where the dataset lies now, if it was moved; its hash must be the same.
    """
    _jax()
    from experiments.train import resume

    print(f"done: {resume(run, checkpoint, steps, data)}")


def evaluate(
    run: Positional[Path],
    episodes: int = 100,
    envs: int = 10,
    seed: int = 2_000_000,
    checkpoint: int | None = None,
    best: bool = False,
) -> None:
    """Judge a run on fresh episodes; adds rows to RUN/eval_fresh.jsonl.

    Args:
        run: the run folder.
        episodes: episodes for each seed of the run.
        envs: simulators for each seed, side by side.
        seed: base of the episodes' seeds; other numbers than in training give fresh ones.
        checkpoint: judge the one at this step; default the last.
        best: judge the checkpoint with the best score in training.
    """
    _jax()
    from experiments.evaluate import evaluate

    evaluate(run, episodes, envs, seed, checkpoint, best)


def collect(
    task: Positional[str],
    out: Path | None = None,
    episodes: int = 100,
    noise: float = 0.0,
    seed: int = 0,
    max_steps: int = 0,
    workers: int = 0,
) -> None:
    """Make a dataset from the task's scripted expert.  A collection that was stopped goes on where it was.

    Args:
        task: suite/name, such as metaworld/push.
        out: the file; default a name in data/ made of the task and the numbers below.
        episodes: how many.
        noise: standard deviation of Gaussian noise on the expert's actions, in units of the action box.
        seed: base of the episodes' seeds; episode e depends on it and e only.
        max_steps: shorter episodes than the task's own; 0 keeps those.
        workers: processes; 0 for all cores.
    """
    from envs.collect import Recipe
    from experiments.collect import collect

    collect(Recipe(task, episodes, noise, seed, max_steps), out, workers)


def listing(what: Positional[Literal["algos", "tasks", "datasets", "runs"]], root: Path | None = None) -> None:
    """List algorithms, tasks, dataset files or runs.

    Args:
        what: what to list.
        root: folder to look in; default data for datasets, runs for runs.
    """
    from experiments.listing import listing

    listing(what, root)


def tables(
    runs: Positional[tuple[Path, ...]] = (Path("runs"),),
    last: int = 3,
    metric: Literal["return", "success"] = "return",
    out: Path | None = None,
) -> None:
    """Final and last-k scores over seeds, one row per algorithm, task and configuration.

    Args:
        runs: run folders, or folders that hold some.
        last: how many of the last evaluations the last-k score averages.
        metric: which number.
        out: folder for table.md and table.csv; default: print the Markdown only.
    """
    from experiments.tables import tables

    print(tables(list(runs), last, metric, out))


COMMANDS: dict[str, Callable] = {
    "collect": collect, "train": train, "resume": resume, "eval": evaluate, "list": listing, "tables": tables
}  # fmt: skip
