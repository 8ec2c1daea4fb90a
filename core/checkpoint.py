"""Checkpoints by orbax: pytrees of arrays, atomically, restorable bit for bit.

    ckpt/000010000/state/  orbax's arrays     ckpt/000010000/meta/  step, config, digest     ckpt/scores.json
Orbax writes into a temporary folder and renames it, so a killed process or a full disk leaves the older ones as
they were.  The digest is a SHA-256 over all arrays; it is checked when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from core.config import ConfigError
from core.metrics import write_json
from core.types import PyTree

logging.getLogger("absl").setLevel(logging.ERROR)


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used; the message names the one that can."""


def digest(tree: PyTree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bits of all arrays, typed keys included."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if key else leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _solid(tree: PyTree) -> PyTree:
    """Without arrays of no elements (a task without goals), which orbax does not store."""
    return jax.tree.map(lambda x: x if x.size else (), tree)


def _refilled(tree: PyTree, template: PyTree) -> PyTree:
    """The inverse of `_solid`."""
    stored = iter(jax.tree.leaves(tree))
    leaves, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, [next(stored) if x.size else jnp.zeros(x.shape, x.dtype) for x in leaves])


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best by score."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder).absolute(), keep
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def save(self, step: int, state: PyTree, config: str) -> None:
        """Write a checkpoint, then drop those that are neither among the last nor the best.

        Args: config: fingerprint of the configuration it belongs to.
        Raises: OSError when it cannot be written (a full disk); the older ones stay.
        """
        meta = {"step": step, "config": config, "digest": digest(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(_solid(state)), meta=ocp.args.JsonSave(meta))
        try:
            self._orbax.save(self._path(step), args, force=True)
        except Exception as error:
            raise OSError(
                f"checkpoint {step} could not be written to {self.folder} ({_short(error)}); the older ones "
                f"{self.steps()} are as they were. Free some space, then resume"
            ) from error
        for old in set(self.steps()) - {*self.steps()[-self.keep :], self.best()}:
            self._remove(old)
        for leftover in [*self.folder.glob(".old-*"), *self.folder.glob("*orbax-checkpoint-tmp*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def score(self, step: int, score: float) -> None:
        """Note how good a checkpoint is; higher is better."""
        if math.isfinite(score):
            write_json(self.folder / "scores.json", {**self._scores(), str(step): score})

    def best(self) -> int | None:
        """Step of the highest score, None when nothing was scored."""
        known = self._scores()
        scores = {step: known.get(str(step), -math.inf) for step in self.steps()}
        step = max(scores, key=scores.__getitem__, default=None)
        return None if step is None or scores[step] == -math.inf else step

    def drop_after(self, step: int) -> None:
        """Forget the later ones and their scores: a run that goes on from here writes them anew."""
        for later in self.steps():
            if later > step:
                self._remove(later)
        if scores := self._scores():
            write_json(self.folder / "scores.json", {s: value for s, value in scores.items() if int(s) <= step})

    def meta(self, step: int) -> dict[str, Any]:
        """step, config and digest of a checkpoint.  Raises: CheckpointError when they cannot be read."""
        try:
            meta = self._orbax.restore(self._path(step), ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            return {key: meta[key] for key in ("step", "config", "digest")}
        except Exception as error:
            raise CheckpointError(f"its meta data cannot be read ({_short(error)})") from error

    def restore(self, template: PyTree, config: str, step: int | None = None) -> tuple[int, PyTree]:
        """Read one back.

        Args: template: the state's structure (arrays or `jax.ShapeDtypeStruct`); config: fingerprint that the
            checkpoint must carry; step: which one, default the last.
        Returns: (step, state).
        Raises: CheckpointError when there is none, when it belongs to another configuration, or when it is damaged;
            the message names the last older one that is whole.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"no checkpoint{'' if step is None else f' {step}'} in {self.folder}; it has {steps}")
        step = steps[-1] if step is None else step
        try:
            return step, self._read(template, config, step)
        except CheckpointError as error:
            good = "no older one can be used"
            for older in reversed([s for s in steps if s < step]):
                with contextlib.suppress(CheckpointError):
                    self._read(template, config, older)
                    good = f"the last good one before it is {older}: add --checkpoint {older}"
                    break
            raise CheckpointError(f"checkpoint {step} in {self.folder} is refused: {error}; {good}") from error

    def _read(self, template: PyTree, config: str, step: int) -> PyTree:
        meta = self.meta(step)
        if meta["config"] != config:
            raise CheckpointError("it was written with another configuration or other data")
        try:
            here = SingleDeviceSharding(jax.devices()[0])  # whatever devices it was saved from
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), _solid(template))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = _refilled(self._orbax.restore(self._path(step), args).state, template)
        except Exception as error:
            raise CheckpointError(f"it cannot be read ({_short(error)})") from error
        if digest(state) != meta["digest"]:
            raise CheckpointError("its arrays are not those that were saved")
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def _remove(self, step: int) -> None:
        """Out of the list first, in one rename: a kill in between leaves no half of a checkpoint."""
        gone = self.folder / f".old-{step}"
        shutil.rmtree(gone, ignore_errors=True)
        self._path(step).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _scores(self) -> dict[str, float]:
        """Steps as strings; none where the file is missing or damaged: then no checkpoint is the best."""
        try:
            return dict(json.loads((self.folder / "scores.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
