"""Which format a file has, by its arrays and not by its name."""

from __future__ import annotations

from core.dataset import DataError
from envs.readers import d4rl, dppo, minari, ogbench
from envs.readers.files import File, many
from envs.readers.layout import UNIT, Bounds, Read

OURS = "rheostat"
SUFFIXES = (".npz", ".hdf5", ".h5")


def recognise(file: File) -> str:
    """One of "rheostat", "D4RL", "Minari", "OGBench" or "DPPO".  Raises: DataError for arrays of no known layout."""
    keys = set(file.keys)
    if "card" in keys or {"state", "length"} <= keys:
        return OURS
    if any(map(minari.EPISODE.fullmatch, keys)):
        return "Minari"
    if {"states", "actions", "traj_lengths"} <= keys:
        return "DPPO"
    if {"observations", "actions", "terminals"} <= keys:
        return "D4RL" if "rewards" in keys and not {"masks", "valids"} & keys else "OGBench"
    raise DataError(
        f"{file.name}: no known layout: it has {', '.join(sorted(keys)[:12]) or 'no arrays'}. Flat files have "
        "observations, actions, terminals (D4RL: and rewards), DPPO's states, actions, traj_lengths, Minari's episode_0"
    )


def read(file: File, kind: str, bounds: Bounds = UNIT, limit: int | None = None) -> Read:
    """The dataset of a foreign file.

    Args: kind: what `recognise` said; bounds: of the actions, where the file does not say; limit: steps of an
        episode, where the file does not say where episodes end.
    """
    if kind == "D4RL":
        return d4rl.read(file, bounds, limit)
    if kind == "Minari":
        return minari.read(file, bounds)
    return ogbench.read(file) if kind == "OGBench" else dppo.read(file, bounds)


def glance(file: File) -> str:
    """A line about a foreign file, from what it declares."""
    kind = recognise(file)
    if kind == "Minari":
        return f"{kind}  {many(sum(map(bool, map(minari.EPISODE.fullmatch, file.keys))), 'episode')}"
    shape = file.column("states" if kind == "DPPO" else "observations").shape
    return f"{kind}  {many(shape[0], 'row')} of {'x'.join(map(str, shape[1:]))}"
