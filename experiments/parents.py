"""Stages: the run that another one starts from, what is taken over of it, and the copy that is kept.

The module of an algorithm names the algorithms whose runs it can start from, `PARENTS`, and the fields of its config
that say what their policy is, `INHERITS` (default: net).  A run folder keeps in parent/ what it needs of its parent.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import algos
import envs
from core import dataset, loop
from core.checkpoint import CheckpointError, Checkpoints
from core.chunk_policy import Denoising
from core.config import ConfigError
from core.types import Array, EnvSpec, PyTree, RunState, Start
from experiments import runs
from experiments.options import Train
from experiments.runs import Run

SHAPES = ("obs_shape", "action_dim", "goal_shape", "num_actions", "chunk", "history")  # of a spec: a policy's own


class Parent(NamedTuple):
    run: Run  # its folder is where it lies now
    step: int  # of the checkpoint
    identity: str  # fingerprint that the checkpoint carries

    @property
    def card(self) -> dict[str, Any]:
        """For meta.json."""
        folder = str(self.run.folder.absolute())
        return {"run": folder, "algo": self.run.algo, "step": self.step, "identity": self.identity}

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.run.folder / "ckpt")


def of(run: Run) -> Parent | None:
    """The run that a run starts from: the named one and its last checkpoint; once begun, what was kept of it.

    Raises: ConfigError.
    """
    if not run.train.parent:
        return None
    if run.folder is None:
        parent = Parent(runs.load(run.train.parent), 0, "")
        if not (steps := parent.checkpoints.steps()):
            state = runs.status(parent.run.folder).get("state", "created")
            raise ConfigError(f"{parent.run.folder} (state: {state}) has no checkpoint to start from; train it first")
        return parent._replace(step=steps[-1], identity=runs.identity(parent.run))
    card = runs.parent(run.folder)
    if not card:
        raise ConfigError(f"{run.folder / 'meta.json'} does not say what {run.folder} started from; restore it")
    for folder in (run.folder / runs.PARENT, Path(run.train.parent)):
        if (folder / "config.json").is_file():
            return Parent(runs.load(folder), card["step"], card["identity"])
    raise ConfigError(f"{run.folder} needs {run.folder / runs.PARENT}, which is gone; restore it")


def defaults(algo: str, chosen: Train, folder: str) -> Train:
    """A preset as it is for a run that starts from another: with the parent's policy and environment.

    Raises: ConfigError when that run is none, or one of an algorithm that this one cannot start from.
    """
    parent = runs.load(folder)
    _require_kin(algo, parent)
    env = replace(parent.train.env, workers=0, threads=0, host=False)
    taken, theirs = _inherited(algo, chosen.config, parent), parent.train.config
    if hasattr(theirs, "denoising") and getattr(chosen.config, "denoising", None) == Denoising():
        taken["denoising"] = theirs.denoising  # unlike the rest it may be chosen anew
    return replace(chosen, config=replace(chosen.config, **taken), env=env)


def family(folder: str) -> str:
    """Of the policy that a run learned; "" where it has none."""
    return getattr(getattr(runs.load(folder).train.config, "net", None), "family", "")


def check(run: Run, spec: EnvSpec, parent: Parent) -> None:
    """Raises: ConfigError unless a run of a task with this spec can start from that run."""
    train, theirs, folder = run.train, parent.run.train, parent.run.folder
    _require_kin(run.algo, parent.run)
    for name, value in _inherited(run.algo, train.config, parent.run).items():
        if differing := _differing(f"config.{name}", getattr(train.config, name), value):
            options = ", ".join(f"--{option.replace('_', '-')} {old}" for option, old in differing.items())
            raise ConfigError(f"from the run {folder} come {options}: leave {', '.join(differing)} as they are")
    was = spec if (parent.run.task, theirs.env) == (run.task, train.env) else _spec(parent.run)
    if other := [f"{name} {getattr(spec, name)}, not {getattr(was, name)}" for name in SHAPES
                 if getattr(spec, name) != getattr(was, name)]:  # fmt: skip
        raise ConfigError(
            f"{folder} acts in {parent.run.task}; {run.task} with these --env options has {'; '.join(other)}: "
            "a run starts from one whose task has the same shapes"
        )
    if len(theirs.seeds) not in (1, len(train.seeds)):
        raise ConfigError(
            f"{folder} has {len(theirs.seeds)} seeds, which serve as many, one by one, not {len(train.seeds)}: give "
            f"--seeds {' '.join(map(str, theirs.seeds))}, or start from a run of one seed, which serves all"
        )


def _require_kin(algo: str, parent: Run) -> None:
    possible = getattr(algos.load(algo), "PARENTS", ())
    if parent.algo not in possible:
        runs_of = f"runs of {' or '.join(possible)} only" if possible else "no other run"
        raise ConfigError(f"{algo} starts from {runs_of}; {parent.folder} is one of {parent.algo}: change --from")


def _inherited(algo: str, config: Any, parent: Run) -> dict[str, Any]:
    """Values of the fields that both configs have with the same type, of those that a run takes over."""
    names, theirs = getattr(algos.load(algo), "INHERITS", ("net",)), parent.train.config
    both = [name for name in names if hasattr(config, name) and hasattr(theirs, name)]
    return {name: getattr(theirs, name) for name in both if type(getattr(theirs, name)) is type(getattr(config, name))}


def _differing(name: str, ours: Any, theirs: Any) -> dict[str, Any]:
    """Options by which two values differ, and what they are in the second."""
    if not dataclasses.is_dataclass(ours):
        return {} if ours == theirs else {name: theirs}
    fields = [field.name for field in dataclasses.fields(ours)]
    parts = [_differing(f"{name}.{field}", getattr(ours, field), getattr(theirs, field)) for field in fields]
    return {option: value for part in parts for option, value in part.items()}


def _spec(run: Run) -> EnvSpec:
    env = envs.make(run.task, 1, replace(run.train.env, workers=0))
    env.close()
    return env.spec


def outset(run: Run, spec: EnvSpec) -> Start:
    """What a run begins with before there are data or a parent: its shapes count, and the number of environments."""
    width = 1 if spec.pixels else spec.frame_shape[0]
    train = run.train
    return Start(dataset.identity_norm(width, spec.action_dim), 1 if train.data.path else train.online.envs)


def template(run: Run, spec: EnvSpec) -> RunState:
    """Shapes of a run's state as its checkpoints hold it; no array is made.

    A run starts from one of the same shapes, so that its `spec` serves the whole line.
    """
    algorithm, seeds, parent = algos.load(run.algo).make(run.train.config, spec), run.train.seeds, of(run)

    def begin(above: PyTree) -> RunState:
        return loop.begin(algorithm, outset(run, spec)._replace(parent=above), seeds)

    def per_seed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(seeds), *x.shape[1:]), x.dtype)

    return jax.eval_shape(begin, parent and jax.tree.map(per_seed, template(parent.run, spec).algo))


def state(parent: Parent, spec: EnvSpec, seeds: int) -> PyTree:
    """The algorithm's state that a parent ended with, for each of the child's seeds; on the host.

    Raises: ConfigError when it cannot be read or a seed of it has failed.
    """
    folder = parent.run.folder
    try:
        _, last = parent.checkpoints.restore(template(parent.run, spec), parent.identity, parent.step)
    except CheckpointError as error:
        raise ConfigError(f"{folder} cannot be started from as it is; restore or resume it first: {error}") from error
    if failed := [seed for seed, bad in zip(parent.run.train.seeds, np.asarray(last.failed), strict=True) if bad]:
        raise ConfigError(f"seeds {failed} of {folder} have failed; start from a run without failed seeds")

    def per_seed(x: Array) -> Array:
        xp = jnp if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np
        return xp.broadcast_to(x, (seeds, *x.shape[1:]))

    return jax.tree.map(per_seed, last.algo)


def keep(parent: Parent, folder: Path) -> None:
    """Copy what is needed of a parent into the run folder, unless it is there: the child then stands alone.

    Raises: OSError.
    """
    source, part = parent.run.folder, folder / f".{runs.PARENT}"
    if (folder / runs.PARENT).is_dir():
        return

    def unneeded(at: str, names: list[str]) -> list[str]:
        if Path(at) == source:
            return [name for name in names if name not in ("config.json", "meta.json", "ckpt", runs.PARENT)]
        if Path(at) == source / "ckpt":
            return [name for name in names if not (name.isdigit() and int(name) == parent.step)]
        return []

    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(source, part, ignore=unneeded)
    except OSError as error:
        raise OSError(f"checkpoint {parent.step} of {source} could not be copied to {folder}: {error}") from error
    if above := of(parent.run):
        keep(above, part)
    os.replace(part, folder / runs.PARENT)


def told(parent: Parent) -> str:
    """For the terminal: where a run starts, and whether more of its parent was to come."""
    run, state = parent.run, runs.status(parent.run.folder).get("state", "done")
    more = "" if state == "done" else f" of {run.train.steps} (state: {state})"
    return f"starts from {run.folder}, {run.algo} on {run.task}, at step {parent.step}{more}"
