"""What each command of `rheostat` does; tyro makes their options and help from the signatures.

A command imports what it needs when it runs; parsing imports jax for `train` only, whose algorithm has the options.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from core.config import ConfigError

TRAIN = """\
usage: rheostat train ALGO TASK [options]

algorithms: {algos}
tasks:      rheostat list tasks
options:    rheostat train ALGO TASK --help shows them all, with the preset's defaults

examples, on a dataset and by acting:
  rheostat collect metaworld/push --episodes 100 --noise 0.5 --out data/push.npz
  rheostat train td3_bc metaworld/push --data.path data/push.npz --seeds 0 1 2 3
  rheostat train sac mujoco/hopper-v5 --seeds 0

--from RUN starts where another run ended, with its policy and --env options, in algorithms that can
"""


def _jax(acting: bool = False) -> None:
    from core import runtime

    runtime.configure(acting)


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
    names = "--preset", "--config.net.family", "--from", "--data.path"
    size, family, parent, data = (_value(rest, option) for option in names)
    if parent:
        from experiments import parents

        default = parents.defaults(algo, preset(algo, task, size or "full", parents.family(parent)), parent)
    else:
        default = preset(algo, task, size or "full", family, data)
    chosen = tyro.cli(
        options.Train, args=rest, default=default, prog=f"rheostat train {algo} {task}",
        description=f"Train {algo} on {task}.  The defaults are the preset's.",
    )  # fmt: skip
    if chosen.data.path and chosen.online != default.online:
        raise ConfigError("--online options are for training without a dataset; leave them or --data.path out")
    _jax()
    from experiments.train import train

    print(f"done: {train(algo, task, chosen)}")


def _value(args: list[str], option: str) -> str:
    """What the words of a command line give an option, before they are parsed; "" for nothing."""
    values = [word.partition("=")[2] for word in args if word.startswith(f"{option}=")]
    values += [after for word, after in itertools.pairwise(args) if word == option]
    return values[-1] if values else ""


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
    denoising_steps: int = 0,
    values: bool = False,
    horizon: bool = False,
) -> None:
    """Judge a run on fresh episodes; adds rows to RUN/eval_fresh.jsonl, with --values to RUN/values.jsonl.

    Args:
        run: the run folder.
        episodes: episodes for each seed of the run.
        envs: simulators for each seed, side by side.
        seed: base of the episodes' seeds; other numbers than in training give fresh ones.
        checkpoint: judge the one at this step; default the last.
        best: judge the checkpoint with the best score in training.
        denoising_steps: denoising steps to act with, for policies that have some; 0: as in training.
        values: judge the critic: Q beside the discounted rewards that followed; for what the clock cut off, its own Q.
        horizon: judge a goal-conditioned value on the run's dataset, as goals move away: RUN/horizon.jsonl and .png.
    """
    _jax(acting=True)
    if horizon:
        from experiments import horizon as diagnostics

        if values or denoising_steps:
            raise ConfigError("--horizon plays nothing: leave --values and --denoising-steps out")
        diagnostics.measure(run, checkpoint, best)
        return
    if values:
        from experiments.values import measure

        if denoising_steps:
            raise ConfigError("--values judges critics of single actions: leave --denoising-steps out")
        measure(run, episodes, envs, seed, checkpoint, best)
        return
    from experiments.evaluate import evaluate

    evaluate(run, episodes, envs, seed, checkpoint, best, denoising_steps)


def collect(
    task: Annotated[str, Positional, tyro.conf.arg(metavar="TASK")] = "",
    mixture: Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="FILE:WEIGHT ...")] = (),
    out: Path | None = None,
    episodes: int = 0,
    transitions: int = 0,
    noise: float | None = None,
    kind: Literal["navigate", "stitch", "explore", "play", "noisy"] | None = None,
    policy: Path | None = None,
    activation: Literal["relu", "tanh"] | None = None,
    source: str = "",
    run: Path | None = None,
    checkpoint: int | None = None,
    best: bool = False,
    replay: bool = False,
    explore: bool = False,
    seed_index: int | None = None,
    random: bool = False,
    replacement: bool = False,
    max_steps: int = 0,
    seed: int = 0,
    workers: int = 0,
) -> None:
    """Make a dataset: by a scripted expert, an oracle, weights, a run, random actions, or from other datasets.

    rheostat collect metaworld/push --episodes 100 --noise 0.5

    rheostat collect ogbench/pointmaze-medium --kind navigate

    rheostat collect mujoco/hopper-v5 --policy ppo.npz --activation relu --transitions 100000

    rheostat collect --run RUN --replay --transitions 200000

    rheostat collect mix expert.npz:0.5 medium.npz:0.5 --transitions 200000 --out both.npz

    The same command after a stop goes on where it was; the bits do not depend on the number of workers.

    Args:
        task: suite/name, such as metaworld/push; not needed with --run; the word mix for a mixture.
        mixture: with mix: datasets and their shares of transitions.
        out: the file; default a name in data/ made of the task and the options.
        episodes: how many; default 100, for OGBench's oracles the size of the published set.
        transitions: instead of episodes: whole episodes until there are as many.
        noise: std of Gaussian noise on actions, in units of the action box; default 0, for oracles as published.
        kind: which of OGBench's sets; default navigate in mazes, play in manipulation.
        policy: weights in an npz: SAC or TQC (actor.latent_pi.*, actor.mu.*), or w0, b0, ... (PPO, TRPO, A2C, ARS).
        activation: between the layers w0, w1, ..., where the file does not say it.
        source: where the weights come from (repository, commit), for the card.
        run: play the policies of a run: of all its seeds, equal shares.
        checkpoint: the one at this step; default the last.
        best: the checkpoint with the best score in training.
        replay: all checkpoints, equal shares, as a replay buffer has them; a run keeps the last --keep N and the best.
        explore: act as in training, instead of as in evaluation.
        seed_index: only this one of the run's seeds, from 0.
        random: uniformly random actions.
        replacement: with mix: draw every episode from all of its file, as the mixtures of trajectory weighting do.
        max_steps: shorter episodes than the task's own; for oracles any length.
        seed: base of the episodes' seeds; episode e depends on it and e only.
        workers: processes that play, beside this one; 0: as many as cores.
    """
    from envs.collect import Recipe
    from experiments.collect import Asked, command

    recipe = Recipe(task, episodes, noise, seed, max_steps, transitions, kind or "")
    of_run = (run, checkpoint, best, replay, explore, seed_index)
    player = Asked(mixture, policy, activation or "", source, *of_run, random, replacement)
    command(recipe, player, out, workers)


def data(
    action: Positional[Literal["describe", "convert"]],
    path: Annotated[str, Positional, tyro.conf.arg(metavar="FILE")],
    out: Path | None = None,
    task: str | None = None,
    max_steps: int | None = None,
    reference: str | None = None,
) -> None:
    """What a dataset holds; or the same in our own format.  Reads D4RL, Minari, OGBench, DPPO and ours.

    Args:
        action: describe prints the card; convert writes --out.
        path: a file, or a published name such as d4rl/hopper-medium-v2 or ogbench/pointmaze-medium-navigate-v0.
        out: with convert: the npz to write.
        task: which task it is from, where neither the file nor its name says.
        max_steps: steps of an episode, for a flat file that does not say where its episodes end.
        reference: with describe: another dataset of the task, to whose unique states with actions these are compared.
    """
    from experiments import data

    if (action == "convert") != (out is not None):
        raise ConfigError("convert needs --out FILE.npz; describe takes none")
    if out is None:
        print(data.describe(path, task, max_steps, reference))
        return
    if reference:
        raise ConfigError("--reference is for describe; leave it out")
    print(data.convert(path, out, task, max_steps))


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
    metric: Literal["return", "success", "score"] = "return",
    format: Literal["markdown", "csv", "latex"] = "markdown",
    out: Path | None = None,
) -> None:
    """Final, last-k and best scores over seeds with IQM and intervals, one row per algorithm, task and configuration.

    Args:
        runs: run folders, or folders that hold some.
        last: how many of the last evaluations the last-k score averages.
        metric: which number; score is the return normalised as in D4RL, where a task has the constants.
        format: what is printed.
        out: folder for table.md, table.csv and table.tex.
    """
    from experiments.tables import tables

    print(tables(list(runs), last, metric, out, format))


def plot(
    runs: Positional[tuple[Path, ...]] = (Path("runs"),),
    out: Path = Path("curves.png"),
    metric: Literal["return", "success", "score"] = "return",
    against: Literal["steps", "seconds"] = "steps",
) -> None:
    """Learning curves over seeds: a panel per task, a line per algorithm and configuration with its 95 % interval.

    Args:
        runs: run folders, or folders that hold some.
        out: the picture, by its ending: .png, .pdf or .svg; what it shows is written beside it as .csv.
        metric: which number; score is the return normalised as in D4RL, where a task has the constants.
        against: steps, or seconds of training of the program that all seeds of a run share, compiling and evaluations
            left out.
    """
    from experiments.plots import curve

    curve(list(runs), out, out.with_suffix(".csv"), metric, against=against)
    print(f"{out}  {out.with_suffix('.csv')}")


def video(
    run: Positional[Path],
    out: Path | None = None,
    episodes: int = 2,
    task: int = 0,
    checkpoint: int | None = None,
    best: bool = False,
    seed_index: int = 0,
    seed: int = 3_000_000,
    size: int = 256,
    every: int = 4,
    fps: int = 20,
) -> None:
    """Write an mp4 of the run's policy on fresh episodes.

    Args:
        run: the run folder.
        out: the file; default RUN/video-STEP-seedSEED.mp4.
        episodes: how many, one after the other.
        task: number of the task in goal-conditioned tasks; 0 for those of the run's evaluation, else drawn.
        checkpoint: play the one at this step; default the last.
        best: play the checkpoint with the best score in training.
        seed_index: which of the run's seeds, from 0.
        seed: base of the episodes' seeds; other numbers than in training give fresh ones.
        size: width and height in pixels, even.
        every: steps of the environment per frame.
        fps: frames per second.
    """
    _jax(acting=True)
    from experiments.video import View, record, told

    print(told(record(run, out, View(episodes, seed, task, size, every, fps), checkpoint, best, seed_index)))


def doctor() -> None:
    """What works on this machine, and what to do about the rest; exit code 1 if something needed does not work."""
    from experiments.doctor import doctor

    doctor()


COMMANDS: dict[str, Callable] = {
    "collect": collect, "train": train, "resume": resume, "eval": evaluate, "data": data, "list": listing,
    "tables": tables, "plot": plot, "video": video, "doctor": doctor,
}  # fmt: skip
