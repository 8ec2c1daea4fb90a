"""One process at a time: an advisory lock on a file, freed by the system when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from core.config import ConfigError


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold FOLDER/lock.  Raises: ConfigError when another process holds it."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is at work in {folder}; wait for it or stop it first") from None
        yield


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Hold FOLDER/lock, waiting for it as long as it takes."""
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def held(folder: Path) -> bool:
    """Whether a process is at work in the folder; changes nothing there."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
