"""Contenders in one run: others in processes of their own, everybody in turn, ratios round by round."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.config import ConfigError
from envs.workers import cores

HERE = Path(__file__).parent
CORES = cores()
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"  # made by `make bench`


class PeerError(RuntimeError):
    """A contender of `peers.py` failed; the message holds the end of what it printed."""


class Peer:
    """A contender of `peers.py` in a process of its own, which rests between two measurements.

    Args: python: its interpreter; None for ours.
    Raises: ConfigError when the interpreter is not there; PeerError when the contender cannot be built.
    """

    def __init__(self, contender: str, python: Path | None = None, **arguments: Any):
        if python and not python.exists():
            raise ConfigError(f"the peers' environment {python.parents[1]} is not there: `make bench` builds it")
        self.name = f"{contender} {arguments}"
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed when the contender is
        command = [str(python or sys.executable), str(HERE / "peers.py"), contender, json.dumps(arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True)
        try:
            self._read()  # that it is ready
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends with its input
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def begin(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died; `end` says how
            self._process.stdin.write("measure\n")
            self._process.stdin.flush()

    def end(self) -> Any:
        return json.loads(self._read())

    def __call__(self) -> Any:
        """Measure once."""
        self.begin()
        return self.end()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise PeerError(f"{self.name} ended:\n{self._said.read()[-2000:]}")
        return line


def at_once(peers: list[Peer]) -> Callable[[], float]:
    """The summed rate of contenders that measure at the same time."""

    def measure() -> float:
        for peer in peers:
            peer.begin()
        return sum(peer.end() for peer in peers)

    return measure


class Seen(dict[str, np.ndarray]):
    """What was measured: values [rounds, ...] by contender."""

    def median(self, name: str) -> float:
        return float(np.median(self[name]))

    def ratio(self, name: str, other: str, factor: float = 1.0) -> float:
        """Median of the rounds' ratios."""
        return float(np.median(factor * self[name] / self[other]))

    def best(self, names: list[str]) -> str:
        return max(names, key=self.median)


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> Seen:
    """Measure each once per round, every other round in reverse, because a shared machine's clock drifts."""
    seen: dict[str, list] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            seen[name].append(contenders[name]())
    return Seen((name, np.array(values)) for name, values in seen.items())


def row(what: str, value: float, unit: str, note: str = "") -> dict[str, Any]:
    """A line of a table."""
    return {"what": what, "value": value, "unit": unit, "note": note}
