"""`rheostat collect`: a dataset with its card, and progress on the way.

Policies come from finished runs and from files of weights.  This module imports no jax: the workers that play a run
limit its threads first.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import algos
from core.config import ConfigError
from core.metrics import Progress
from core.types import Array, EnvSpec, Observation
from envs import collect as maker
from envs import mix as mixing
from envs import players, policies, registry
from envs.collect import Recipe, Source
from envs.readers.files import many
from envs.workers import cores
from experiments import runs
from experiments.runs import Stopped


def collect(
    recipe: Recipe,
    out: Path | None = None,
    workers: int = 0,
    quiet: bool = False,
    made_by: tuple[Recipe, Source] | None = None,
) -> dict[str, Any]:
    """Make the dataset of a recipe; returns its card.

    Args: made_by: the recipe completed and who acts, as `of_run` and `of_weights` return them; default the task's
        scripted expert or oracle.
    Raises: ConfigError for whatever is refused.
    """
    recipe, source = made_by or maker.scripted(recipe)
    out = out or Path("data") / _name(recipe, source)
    total, unit = maker.measure(recipe, source)
    progress = Progress(total, unit, quiet)
    progress.say(f"{recipe.task}, {_who(source)}, noise {recipe.noise:g} -> {out}")
    progress.stage("playing")
    begun = False

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number, f"what was played is kept: run the same command again to go on with {out}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def report(done: int) -> None:
        nonlocal begun
        if not begun:
            progress.start_at(done)
            begun = True
        progress.advance(done)

    try:
        card = maker.collect(recipe, source, out, workers or cores(), runs.provenance(), report)
    finally:
        progress.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    progress.say(_summary(out, card))
    return card


def mix(
    texts: Sequence[str], transitions: int, seed: int, out: Path | None, replacement: bool = False
) -> dict[str, Any]:
    """Mix datasets named `FILE:WEIGHT`; returns the card.  Raises: ConfigError."""
    if not transitions or not out:
        raise ConfigError("a mixture needs --transitions N and --out FILE")
    parts = mixing.parse(texts)
    progress = Progress(transitions, "transitions")
    progress.say(f"{len(parts)} files, seed {seed} -> {out}")
    progress.stage("drawing")
    try:
        card = mixing.mix(parts, transitions, seed, out, runs.provenance(), progress.advance, replacement)
    finally:
        progress.close()
    for parent in card["parents"]:
        again = "" if parent["episodes"] == parent["different episodes"] else ", some more than once"
        print(
            f"{parent['file']}: {parent['share']:.3f} of the transitions (asked for {parent['weight']:.3f}), "
            f"{parent['episodes']} episodes{again}"
        )
    print(_summary(out, card))
    return card


class Asked(NamedTuple):
    """Who is to play, as the command line has it."""

    mixture: tuple[str, ...] = ()
    policy: Path | None = None
    activation: str = ""
    source: str = ""
    run: Path | None = None
    checkpoint: int | None = None
    best: bool = False
    replay: bool = False
    explore: bool = False
    seed_index: int | None = None
    random: bool = False
    replacement: bool = False

    def without(self, names: Sequence[str], why: str) -> None:
        """Raises: ConfigError `why`, with the option in the place of {}, when one of these was given."""
        for name in names:
            value = getattr(self, name)
            if not (value is None or value is False or value in ("", ())):
                raise ConfigError(why.format(f"--{name.replace('_', '-')}"))


WEIGHTS = ("policy", "activation", "source")
RUN = ("run", "checkpoint", "best", "replay", "explore", "seed_index")


def command(recipe: Recipe, asked: Asked, out: Path | None, workers: int) -> dict[str, Any]:
    """Do what the command line asks for; returns the card.

    Raises: ConfigError for options that do not go together.
    """
    if recipe.task == "mix":
        leave = "a mixture is made of FILE:WEIGHT ..., --transitions, --replacement, --seed and --out; leave {} out"
        asked.without((*WEIGHTS, *RUN, "random"), leave)
        if replace(recipe, transitions=0, seed=0) != Recipe("mix") or workers:
            raise ConfigError(leave.format("the other options"))
        return mix(asked.mixture, recipe.transitions, recipe.seed, out, asked.replacement)
    if asked.mixture:
        raise ConfigError(f"'{asked.mixture[0]}' is one word too many, unless it belongs to a mixture: collect mix ...")
    asked.without(["replacement"], "{} is for mixtures, collect mix ...; leave it out")
    if asked.run:
        asked.without((*WEIGHTS, "random"), "--run plays a run's own policies; leave {} out")
        chosen = {name: getattr(asked, name) for name in ("best", "replay", "explore", "seed_index")}
        made_by = of_run(recipe, asked.run, asked.checkpoint, **chosen)
        if asked.replay:
            print(_kept(asked.run, made_by[1]))
        return collect(recipe, out, workers, made_by=made_by)
    asked.without(RUN, "{} is for --run RUN; leave it out")
    if not recipe.task:
        raise ConfigError("which task? rheostat collect TASK (see `rheostat list tasks`), or --run RUN")
    if asked.random:
        asked.without(WEIGHTS, "--random plays uniformly random actions; leave {} out")
        card = {"player": "uniformly random actions", "name": "random"}
        return collect(recipe, out, workers, made_by=maker.policies(recipe, [players.Random], [card]))
    if asked.policy:
        made_by = of_weights(recipe, asked.policy, asked.activation, asked.source)
        return collect(recipe, out, workers, made_by=made_by)
    asked.without(WEIGHTS, "{} is for --policy FILE; leave it out")
    return collect(recipe, out, workers)


def _summary(out: Path, card: dict[str, Any]) -> str:
    return (
        f"{out}: {many(card['episodes'], 'episode')}, {many(card['transitions'], 'transition')}, "
        f"return {card['return']['mean']:.1f} ({card['return']['min']:.1f} to {card['return']['max']:.1f}), "
        f"success {card['success']:.2f}"
    )


def _who(source: Source) -> str:
    one = source.cards[0]["player"]
    return one if len(source.cards) == 1 else f"{len(source.cards)} policies from {one}"


def _kept(folder: Path, source: Source) -> str:
    """Which checkpoints a replay set is made of."""
    steps = sorted({card["checkpoint"] for card in source.cards})
    more = "" if len(steps) > 2 else "; few for a replay set: train with --keep N to keep more"
    return f"checkpoints that {folder} keeps: {len(steps)}, steps {steps[0]:,} to {steps[-1]:,}{more}"


def _name(recipe: Recipe, source: Source) -> str:
    card = source.cards[0]
    who = recipe.kind or card.get("name", "expert")
    size = f"t{recipe.transitions}" if recipe.transitions else f"e{recipe.episodes}"
    length = f"-l{recipe.max_steps}" if recipe.max_steps else ""
    return f"{recipe.task.replace('/', '-')}-{who}-n{recipe.noise:g}-{size}{length}-s{recipe.seed}.npz"


def of_weights(recipe: Recipe, path: Path, activation: str, source: str) -> tuple[Recipe, Source]:
    """Play a policy from an npz; see `envs.policies`.

    Args: source: where the file comes from, for the card.
    Raises: ConfigError.
    """
    registry.check(recipe.task)
    walked = maker.walker(recipe.task)
    weights = policies.load(path, activation)
    card = {
        "player": f"weights in {path.name}", "name": path.stem, "sha256": policies.digest(path), "source": source,
        "layers": [list(weight.shape) for weight, _ in weights.layers], "activation": weights.hidden,
    }  # fmt: skip
    build = functools.partial(policies.WeightsPolicy, path.absolute(), activation, walked or recipe.task)
    return maker.guided(recipe, build, card) if walked else maker.policies(recipe, [build], [card])


def of_run(
    recipe: Recipe,
    folder: Path,
    step: int | None = None,
    best: bool = False,
    replay: bool = False,
    explore: bool = False,
    seed_index: int | None = None,
) -> tuple[Recipe, Source]:
    """Play the policies of a run.

    Args: recipe: its task may be empty; step, best: which checkpoint, default the last; replay: all that are kept;
        explore: by `act` instead of `act_eval`; seed_index: one of the run's seeds, default all that have not failed.
    Raises: ConfigError.
    """
    from experiments.evaluate import checkpoint

    run = runs.load(folder)
    walked = maker.walker(recipe.task) if recipe.task else ""
    if recipe.task not in ("", run.task) and walked != run.task:
        raise ConfigError(f"{folder} was trained on {run.task}, not on {recipe.task}; leave the task out")
    if replay and (step is not None or best):
        raise ConfigError("--replay plays all checkpoints that are kept; leave --checkpoint and --best out")
    job, last, state = checkpoint(folder, step, best)
    seeds, failed = run.train.seeds, np.asarray(state.failed)
    if seed_index is not None:
        runs.require_seed(run, seed_index)
    chosen = [i for i in range(len(seeds)) if not failed[i]] if seed_index is None else [seed_index]
    if not chosen or failed[chosen].any():
        raise ConfigError(f"{folder}: seed {seeds[(chosen or [0])[0]]} has failed; choose another run or --seed-index")
    makers, cards = [], []
    for at in job.checkpoints.steps() if replay else [last]:
        digest = job.checkpoints.meta(at)["digest"]
        for i in chosen:
            makers.append(functools.partial(RunPolicy, folder.absolute(), at, i, explore))
            cards.append({
                "player": str(folder), "name": f"{run.algo}-{folder.name}{'-replay' if replay else ''}",
                "algo": run.algo, "checkpoint": at, "seed": seeds[i], "by": "act" if explore else "act_eval",
                "sha256": digest,
            })  # fmt: skip
    if walked == run.task:
        if len(makers) > 1:
            raise ConfigError(f"{recipe.task} is walked by one expert: leave --replay out, and give --seed-index")
        return maker.guided(recipe, makers[0], cards[0])
    return maker.policies(replace(recipe, task=run.task), makers, cards, run.train.env)


@functools.lru_cache(maxsize=1)
def _states(folder: Path, step: int) -> Any:
    """The algorithm's state at a checkpoint; leading axis: seeds."""
    from experiments.evaluate import checkpoint

    return checkpoint(folder, step)[2].algo


@functools.cache
def _program(folder: Path, explore: bool, spec: EnvSpec) -> tuple[Any, Any]:
    """A run's policy, jitted for the states of all its checkpoints, and its `init_carry`."""
    import jax

    from core import runtime
    from core.rollout import remembering

    runtime.configure(acting=True)
    run = runs.load(folder)
    algorithm = algos.load(run.algo).make(run.train.config, spec)
    acting = remembering(algorithm.act if explore else algorithm.act_eval, algorithm.init_carry)

    @jax.jit
    def act(state, obs, carry, keys, t):
        def alone(obs, carry, key):  # so that no slot's draws depend on how many there are
            obs, carry = jax.tree.map(lambda x: x[None], (obs, carry))
            out = acting(state, obs, carry, jax.random.fold_in(key, t))
            return jax.tree.map(lambda x: x[0], (out.action, out.carry))

        return jax.vmap(alone)(obs, carry, keys)

    return act, algorithm.init_carry


class RunPolicy:
    """The policy of one of a run's seeds at a checkpoint, for `envs.players.Rollouts`."""

    def __init__(self, folder: Path, step: int, index: int, explore: bool, spec: EnvSpec):
        import jax

        self._act, self._init_carry = _program(folder, explore, spec)
        self._state = jax.tree.map(lambda x: x[index], _states(folder, step))

    def reset(self, seeds: Sequence[int]) -> None:
        import jax

        self._keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
        self._t, self._carry = 0, self._init_carry(len(seeds))

    def act(self, obs: Observation) -> Array:
        action, self._carry = self._act(self._state, obs, self._carry, self._keys, self._t)
        self._t += 1
        return np.asarray(action)
