"""Named random streams: a key is consumed once, and adding a stream leaves the others as they were."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import jax

from core.types import Key


def streams(key: Key, *names: str) -> SimpleNamespace:
    """One key per name, by `fold_in` of the name's CRC-32: `keys = streams(key, "noise")`, `keys.noise`.

    Raises: ValueError when a name is given twice, because its key would be used twice.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"a stream is named twice in {names}")
    return SimpleNamespace(**{name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names})
