"""Checkpoints by orbax: the whole RunState, atomically, restorable bit for bit.

    ckpt/000010000/state/   orbax's arrays        ckpt/000010000/meta/   step, config, digest, score
Orbax writes into a temporary folder and renames it, so a killed process or a full disk leaves the older ones as
they were.  The digest is a SHA-256 over all arrays; it is checked when they are read.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from core.config import ConfigError
from core.types import PyTree

logging.getLogger("absl").setLevel(logging.ERROR)


class CheckpointError(ConfigError):
    """A checkpoint that cannot be resumed from; the message names the one that can."""


def _raw(leaf: Any) -> np.ndarray:
    """The bits of an array, a typed key's included."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def digest(tree: PyTree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bits of all arrays."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = _raw(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


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

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def save(self, step: int, state: PyTree, config: str, score: float | None = None) -> None:
        """Write a checkpoint, then drop those that are neither among the last nor the best.

        Args: config: fingerprint of the configuration it belongs to; score: higher is better.
        Raises: CheckpointError when it cannot be written (a full disk); the older ones stay.
        """
        meta = {"step": step, "config": config, "digest": digest(state), "score": score}
        try:
            self._orbax.save(
                self._path(step), ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
                force=True,
            )  # fmt: skip
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {step} could not be written to {self.folder} ({error}); the older ones "
                f"{self.steps()} are as they were. Free some space, then resume"
            ) from error
        scores = {s: self._score(s) for s in self.steps()}
        best = [max(scores, key=scores.__getitem__)] if max(scores.values()) > -np.inf else []
        for old in set(scores) - set(self.steps()[-self.keep :]) - set(best):
            shutil.rmtree(self._path(old))

    def drop_after(self, step: int) -> None:
        """Forget the later ones: a run that goes on from here writes them anew."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self._path(later))

    def _score(self, step: int) -> float:
        try:
            score = self.meta(step)["score"]
        except CheckpointError:
            return -np.inf
        return -np.inf if score is None or not np.isfinite(score) else score

    def best(self) -> int | None:
        """Step of the highest score, None when nothing was scored."""
        scores = {s: self._score(s) for s in self.steps()}
        step = max(scores, key=scores.__getitem__, default=None)
        return None if step is None or scores[step] == -np.inf else step

    def meta(self, step: int) -> dict[str, Any]:
        """Raises: CheckpointError when it cannot be read."""
        try:
            return self._orbax.restore(self._path(step), ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        except Exception as error:
            raise self._refuse(step, f"its meta data cannot be read ({_short(error)})") from error

    def restore(self, template: PyTree, config: str, step: int | None = None) -> tuple[int, PyTree]:
        """Read one back.

        Args: template: the state's structure (arrays or `jax.ShapeDtypeStruct`); config: fingerprint that the
            checkpoint must carry; step: which one, default the last.
        Returns: (step, state).
        Raises: CheckpointError when there is none, when it belongs to another configuration, or when it is damaged;
            the message names the older good one.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"no checkpoint{'' if step is None else f' {step}'} in {self.folder}; it has {steps}")
        step = steps[-1] if step is None else step
        meta = self.meta(step)
        if meta["config"] != config:
            raise self._refuse(step, "it was written with another configuration", "Restore config.json, or start anew")
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._orbax.restore(self._path(step), args).state
        except Exception as error:
            raise self._refuse(step, f"it cannot be read ({_short(error)})") from error
        if digest(state) != meta["digest"]:
            raise self._refuse(step, "its arrays are not those that were saved")
        return step, state

    def _refuse(self, step: int, why: str, advice: str | None = None) -> CheckpointError:
        older = [s for s in self.steps() if s < step]
        advice = advice or (
            f"The last good one before it is {older[-1]}: add --step {older[-1]}" if older else "No older one is left"
        )
        return CheckpointError(f"checkpoint {step} in {self.folder} is refused: {why}. {advice}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
