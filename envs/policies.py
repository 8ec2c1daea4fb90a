"""Policies from weights in an npz: an MLP in NumPy, f32[B, S] -> f32[B, A] in units of the action box.

Two layouts, weights (out, in):
- `actor.latent_pi.{i}.weight|bias`, `actor.mu.weight|bias`: ReLU trunk, tanh of a linear mean (SAC, TQC);
- `w{i}`, `b{i}`: hidden activations by `activation`, linear output clipped to the task's box (PPO, TRPO, A2C; one layer
  for ARS), on clip((state - obs_mean) / sqrt(obs_var + 1e-8), -10, 10) where the file has these.
What else a file holds (log_std) is for exploring and is left out.  Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.config import ConfigError
from core.types import Array, EnvSpec, Observation
from envs.readers.files import File, open_file
from envs.readers.published import bounds_of

LAYOUTS = "actor.latent_pi.{i}.weight|bias with actor.mu.weight|bias, or w{i} and b{i} from 0 on"
HIDDEN: dict[str, Callable[[Array], Array]] = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


class Weights(NamedTuple):
    layers: tuple[tuple[Array, Array], ...]  # weight f32[out, in], bias f32[out] or f32[]
    hidden: str  # activation between layers
    squash: bool  # tanh on the output
    norm: tuple[Array, Array] | None  # shift and scale f64[S] of states, which are then clipped to [-10, 10]

    @property
    def inputs(self) -> int:
        return self.layers[0][0].shape[1]

    @property
    def outputs(self) -> int:
        return self.layers[-1][0].shape[0]


def digest(path: Path) -> str:
    """SHA-256 of the file.  Raises: ConfigError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: no policy can be read there ({error.strerror})") from None


def load(path: Path, activation: str = "") -> Weights:
    """Read and check weights.

    Args: activation: relu or tanh between the layers `w{i}`; needed unless the file has a key `activation`.
    Raises: ConfigError naming the file and the key.
    """
    digest(path)
    with open_file(path) as file:
        return _read(path, file, activation)


def _read(path: Path, file: File, activation: str) -> Weights:
    trunk = sorted(int(m[1]) for key in file.keys if (m := re.fullmatch(r"actor\.latent_pi\.(\d+)\.weight", key)))
    if trunk and "actor.mu.weight" in file:
        if activation not in ("", "relu"):
            raise ConfigError(f"{path}: its layout has a ReLU trunk; leave --activation out")
        names = [f"actor.latent_pi.{i}" for i in trunk] + ["actor.mu"]
        keys, hidden, squash = [(f"{name}.weight", f"{name}.bias") for name in names], "relu", True
    elif "w0" in file:
        count = next(i for i in itertools.count() if f"w{i}" not in file)
        keys, squash = [(f"w{i}", f"b{i}") for i in range(count)], False
        said = file.text("activation") if "activation" in file else ""
        if said and activation not in ("", said):
            raise ConfigError(f"{path}: it says activation {said}, not {activation}; leave --activation out")
        hidden = said or activation or ("" if count > 1 else "relu")
        if hidden not in HIDDEN:
            raise ConfigError(
                f"{path}: it does not say which activation lies between its layers; give --activation relu or tanh "
                "(of Stable-Baselines3's agents, PPO's tuned ones mostly have relu, A2C's and TRPO's tanh)"
            )
    else:
        raise ConfigError(f"{path}: its keys {sorted(file.keys)[:6]} are no layout that is known: {LAYOUTS}")
    layers = tuple((_numbers(file, w), _numbers(file, b)) for w, b in keys)
    for (name, _), (weight, bias), above in zip(keys, layers, [*layers[1:], None], strict=True):
        fits = weight.ndim == 2 and bias.shape in ((), weight.shape[:1])
        if not fits or (above is not None and above[0].shape[1:] != weight.shape[:1]):
            raise ConfigError(f"{path}: key '{name}': {weight.shape} does not fit its bias or the next layer")
    return Weights(layers, hidden, squash, _normalisation(file, layers[0][0].shape[1]))


def _normalisation(file: File, width: int) -> tuple[Array, Array] | None:
    if not {"obs_mean", "obs_var"} & set(file.keys):
        return None
    mean, var = (_numbers(file, key, np.float64) for key in ("obs_mean", "obs_var"))
    if mean.shape != (width,) or var.shape != (width,) or var.min() < 0:
        raise ConfigError(
            f"{file.name}: obs_mean {mean.shape} and obs_var {var.shape} must be {width} numbers, var >= 0"
        )
    return mean, np.sqrt(var + 1e-8)


def _numbers(file: File, key: str, dtype: type = np.float32) -> Array:
    column = file.column(key)
    array = column.array(scalar=True)
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        column.refuse(f"it has numbers that are not finite as {array.dtype}")
    return array


class WeightsPolicy:
    """Acts by weights for `envs.collect.Rollouts`; deterministic.

    Raises: ConfigError when the weights do not fit the task.
    """

    def __init__(self, path: Path, activation: str, task: str, spec: EnvSpec):
        self._weights = load(path, activation)
        takes, gives = (spec.obs_shape, (self._weights.inputs,)), (spec.action_shape, (self._weights.outputs,))
        if takes[0] != takes[1] or gives[0] != gives[1]:
            raise ConfigError(
                f"{path} maps states {takes[1]} to actions {gives[1]}; {task} has {takes[0]} and {gives[0]}"
            )
        self._bounds = bounds_of(task)

    def reset(self, seeds: Sequence[int]) -> None:
        """Nothing is drawn."""

    def act(self, obs: Observation) -> Array:
        x, w = obs.state, self._weights
        if w.norm:
            x = np.clip((x - w.norm[0]) / w.norm[1], -10, 10).astype(np.float32)
        for weight, bias in w.layers[:-1]:
            x = HIDDEN[w.hidden](x @ weight.T + bias)
        weight, bias = w.layers[-1]
        x = x @ weight.T + bias
        if w.squash:
            return np.tanh(x)
        return self._bounds.scaled(np.clip(x, self._bounds.low, self._bounds.high)).astype(np.float32)
