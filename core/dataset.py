"""Episodes in memory, on the host: indexing, checking, normalising.  Imports no jax."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from core.config import ConfigError, choose
from core.types import Array, Dataset, EnvSpec, Norm

ROUNDING = 1e-9  # returns that differ by less, relative to their size, are equal


class DataError(ConfigError):
    """A dataset that must not be trained on; the message names the file, the key and the row."""


def from_lengths(state: Array, action: Array, reward: Array, terminated: Array, length: Array) -> Dataset:
    """Index episodes that lie back to back (host).

    Args: arrays [M, ...] in the layout that `core.types.Dataset` draws; length i32[episodes] transitions of each,
        so that M = sum(length + 1).
    """
    length = np.asarray(length, np.int64)
    first = np.concatenate([[0], np.cumsum(length + 1)[:-1]])
    last = first + length
    episode = np.repeat(np.arange(len(length)), length + 1)
    starts = np.ones(len(state), bool)
    starts[last] = False
    return Dataset(
        state, action, reward, terminated, np.flatnonzero(starts).astype(np.int32),
        first[episode].astype(np.int32), last[episode].astype(np.int32),
    )  # fmt: skip


class Episodes(NamedTuple):
    first: np.ndarray  # i64[episodes] first row
    length: np.ndarray  # i64[episodes] transitions
    ret: np.ndarray  # f64[episodes] undiscounted return


def episodes(dataset: Dataset) -> Episodes:
    """First row, length and return of every episode (host).

    The return is over the transitions: what a flat file gives the last row of an episode, where none starts, is not in
    it.  Episodes of the same rewards have the same return, bit for bit.
    """
    first = np.unique(np.asarray(dataset.first)).astype(np.int64)
    last = np.asarray(dataset.last)[first]
    reward = np.array(dataset.reward, np.float64)
    reward[last] = 0
    return Episodes(first, last - first, np.add.reduceat(reward, first) if len(first) else np.zeros(0))


def training_reward(reward: Array, ret: Array, scale: float = 1.0, shift: float = 0.0, span: float = 0.0) -> Array:
    """Rewards to learn from: f32[M], computed in float64; what a policy is judged by stays as it is (host).

        r <- scale * r * span / (max G - min G) + shift,     without the fraction where span is 0

    Args: reward: f32[M]; ret: f[E] the returns G of its episodes.
    Raises: ConfigError for a span where all returns are equal, a scale of 0, and rewards that are then not finite.
    Reference: span 1000 is IQL's on D4RL's locomotion (Kostrikov et al., 2021, arXiv:2110.06169).
    """
    low, high = float(np.min(ret)), float(np.max(ret))
    if span < 0 or not scale:
        raise ConfigError(f"reward_range {span:g} must be at least 0, and reward_scale {scale:g} another than 0")
    if span and high - low <= ROUNDING * max(abs(low), abs(high)):
        raise ConfigError(f"reward_range {span:g}: all episodes have the return {high:g}; leave it at 0")
    with np.errstate(over="ignore"):
        factor = scale * (span / (high - low) if span else 1.0)
        changed = (np.asarray(reward, np.float64) * factor + shift).astype(np.float32)
    if not np.isfinite(changed).all():
        raise ConfigError(f"rewards up to {np.abs(reward).max():g} times {factor:g} plus {shift:g} leave float32")
    return changed


def whole(dataset: Dataset, size: int) -> np.ndarray:
    """bool[N]: transitions that begin a whole chunk of `size` in their episode (host)."""
    row = np.asarray(dataset.row)
    return row + size <= np.asarray(dataset.last)[row]


def check(dataset: Dataset, name: str, spec: EnvSpec | None = None) -> None:
    """Refuse what cannot be trained on.

    Raises: DataError naming `name`, the key and the first bad row: no transitions, NaN or infinity, a dtype other
        than float32 (uint8 for pixels, i32 for discrete actions), shapes that do not belong together or to `spec`
        (single frames and single actions: histories and chunks are put together when sampling), a task that ended
        in the middle of an episode, actions outside [-1, 1] or the task's numbers.
    """

    def refuse(key: str, problem: str):
        raise DataError(f"{name}: key '{key}': {problem}")

    rows = len(dataset.state)
    if not len(dataset.row):
        refuse("length", "no transitions")
    for key in ("action", "reward", "terminated", "first", "last"):
        if len(getattr(dataset, key)) != rows:
            refuse(key, f"{len(getattr(dataset, key))} rows, but 'state' has {rows}")
    pixels = dataset.state.ndim == 4
    discrete = dataset.action.ndim == 1
    single = spec and (() if spec.num_actions else (spec.action_dim,))
    wanted = {
        "state": ("uint8" if pixels else "float32", spec and spec.frame_shape),
        "action": ("int32" if discrete else "float32", single),
        "reward": ("float32", ()),
        "terminated": ("bool", ()),
    }
    for key, (dtype, shape) in wanted.items():
        array = getattr(dataset, key)
        if array.dtype != dtype:
            refuse(key, f"dtype {array.dtype}, but it must be {dtype}")
        if shape is not None and array.shape[1:] != shape:
            refuse(key, f"rows of shape {array.shape[1:]}, but {spec.name if spec else 'the layout'} has {shape}")
        if array.dtype == np.float32:
            bad = np.flatnonzero(~np.isfinite(array).reshape(rows, -1).all(1))
            if len(bad):
                refuse(key, f"row {bad[0]} is not finite ({len(bad)} such rows)")
    ended = np.flatnonzero(dataset.terminated)
    bad = ended[ended + 1 != dataset.last[ended]]
    if len(bad):
        refuse("terminated", f"row {bad[0]} ends the task, but it is not the last transition of its episode")
    if discrete:
        bad = np.flatnonzero((dataset.action < 0) | (dataset.action >= (spec.num_actions if spec else np.inf)))
        if len(bad):
            refuse("action", f"row {bad[0]} is {dataset.action[bad[0]]}, which is no action of the task")
    else:
        bad = np.flatnonzero((np.abs(dataset.action) > 1 + 1e-6).reshape(rows, -1).any(1))
        if len(bad):
            refuse("action", f"row {bad[0]} leaves [-1, 1] ({len(bad)} such rows); scale actions to the box")


def identity_norm(width: int, action_dim: int) -> Norm:
    """The normalisation that changes nothing, for states f32[..., width]."""
    return Norm(*(np.full(n, v, np.float32) for n in (width, action_dim) for v in (0, 1)))


def _standard(x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-3


def _minmax(x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    low, half = x.min(0).astype(np.float64), (np.ptp(x, 0).astype(np.float64) + 1e-6) / 2
    return low + half, np.maximum(half, floor / 2)


def _none(x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(x.shape[1:]), np.ones(x.shape[1:])


def norm(dataset: Dataset, state_norm: str = "none", action_norm: str = "none", floor: float = 0.0) -> Norm:
    """Statistics over the rows that start a transition (host, float64 inside).

    standard: mean and population std + 1e-3 (TD3+BC, PRDC); minmax: 2 (x - min) / (max - min + 1e-6) - 1 (DPPO,
    ReinFlow), states that range less than `floor` as if they ranged over it.  Pixels are left alone.
    Raises: UnknownName; ConfigError for a floor below 0, or of another norm than minmax.
    """
    if floor < 0 or (floor and state_norm != "minmax"):
        raise ConfigError(f"norm_floor {floor} must be at least 0, and 0 unless state_norm is minmax")
    width = 1 if dataset.state.ndim == 4 else dataset.state.shape[1]
    empty = np.zeros((1, width), np.float32)
    state = empty if dataset.state.ndim == 4 else dataset.state[dataset.row]
    action = empty[:, :0] if dataset.action.ndim == 1 else dataset.action[dataset.row]
    of_state = choose("state_norm", state_norm, {"none": _none, "standard": _standard, "minmax": _minmax})
    of_action = choose("action_norm", action_norm, {"none": _none, "minmax": _minmax})
    return Norm(*(a.astype(np.float32) for a in (*of_state(state, floor), *of_action(action, 0.0))))
