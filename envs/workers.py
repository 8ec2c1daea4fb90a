"""Processes that each hold one object and answer calls on it, and memory that they share.

They are fresh interpreters, never forks (JAX is multithreaded) and never re-imports of the main module (which may
import JAX): a worker imports only what its factory needs.  A worker ends by itself when its parent is gone, because
its end of the pipe then reads end-of-file; it ignores the signals that ask the parent to stop.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from core.config import ConfigError
from envs.render import RenderError

_PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # before the imports, which take seconds
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from envs.workers import serve; serve(int(sys.argv[1]))"
)
_CLOSE_SECONDS = 5.0
_ALIGNMENT = 64  # bytes: no two arrays in one cache line
_REFUSALS = (ConfigError, RenderError)  # the object says no, and is as it was: raised here as they are


class WorkerError(RuntimeError):
    """A worker failed; the message holds its traceback, or how its process ended."""


class Pool:
    """One worker per factory.

    Args: factories: picklable callables that make the objects; module-level functions or `functools.partial` of them.
        files: descriptors that the workers get too, by the same numbers; meanwhile: called here while they build.
    Raises: WorkerError when a worker fails or dies; then all are ended.  ConfigError and RenderError come through as
        they are, and end the workers only when a factory raised them.  What `meanwhile` raises ends them too.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], Any]],
        files: Sequence[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ):
        self._files, self._connections = tuple(files), list[Connection]()
        self._processes: list[subprocess.Popen] = []
        self.close = weakref.finalize(self, _stop, self._connections, self._processes)  # also at exit
        try:
            for _ in factories:
                self._start()
            self._exchange(range(len(factories)), factories, meanwhile)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def call(self, method: str, arguments: Sequence[tuple], meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """`object.method(*arguments[i])` in worker i, and `meanwhile` here, all at the same time.

        The workers beyond the last argument rest.
        """
        return self._exchange(range(len(arguments)), [(method, args) for args in arguments], meanwhile)

    def call_one(self, index: int, method: str, *args: Any) -> Any:
        return self._exchange([index], [(method, args)])[0]

    def each(self, method: str, jobs: Iterator[tuple]) -> Iterator[tuple[tuple, Any]]:
        """`object.method(*job)` in whichever worker is free; yields (job, value) in the order in which they finish.

        A job is asked for only when a worker is free, after what is finished has been taken: it may depend on that.
        What interrupts this ends the workers.
        """
        free, busy = list(range(len(self._connections))), {}
        try:
            while True:
                while free and (job := next(jobs, None)) is not None:
                    index = free.pop()
                    self._send(index, (method, job))
                    busy[self._connections[index]] = index, job
                if not busy:
                    return
                index, job = busy.pop(wait(list(busy))[0])
                value = _value(*self._receive(index))
                free.append(index)
                yield job, value
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        ours, theirs = Pipe()
        # one thread each: the workers themselves are the parallelism
        env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)]
        self._connections.append(ours)
        with theirs:
            files = (theirs.fileno(), *self._files)
            self._processes.append(subprocess.Popen(command, pass_fds=files, stdin=subprocess.DEVNULL, env=env))

    def _exchange(
        self, indices: Sequence[int], messages: Sequence[Any], meanwhile: Callable[[], None] = lambda: None
    ) -> list[Any]:
        try:
            for index, message in zip(indices, messages, strict=True):
                self._send(index, message)
            meanwhile()
            replies = [self._receive(index) for index in indices]
        except BaseException:
            self.close()  # replies may be outstanding: the conversation cannot go on
            raise
        return [_value(*reply) for reply in replies]

    def _send(self, index: int, message: Any) -> None:
        if not self.close.alive:
            raise WorkerError("the environment workers are closed: they were ended, or one of them failed before")
        # a dead worker cannot be written to; reading its answer says how it ended
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connections[index].send_bytes(pickle.dumps(message))  # `send` pickles 15 times slower

    def _receive(self, index: int) -> tuple[str, Any]:
        process = self._processes[index]
        try:
            kind, value = pickle.loads(self._connections[index].recv_bytes())
        except (EOFError, OSError):
            try:
                code = process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                code = "unknown"
            raise WorkerError(f"environment worker {index} (process {process.pid}) died: {_ending(code)}") from None
        if kind == "error":
            raise WorkerError(f"environment worker {index} (process {process.pid}) failed:\n{value}")
        return kind, value


def _value(kind: str, value: Any) -> Any:
    """What a worker answered.  Raises: ConfigError or RenderError when it refused."""
    if kind == "refused":
        raise value[0](value[1])
    return value


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ending(code: int | str) -> str:
    if isinstance(code, int) and code < 0:
        return f"exit code {code} ({signal.Signals(-code).name})"
    return f"exit code {code}"


def _stop(connections: list[Connection], processes: list[subprocess.Popen]) -> None:
    """End all workers: by end-of-file, and by force those that have not gone in time."""
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + _CLOSE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def nameless_file() -> int:
    """Descriptor of an empty file that has no name, in memory where the system can: it is gone with its last user."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rheostat")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def shared_arrays(file: int, kinds: Sequence[tuple[tuple[int, ...], np.dtype]]) -> list[np.ndarray]:
    """Arrays of the given shapes and types over a file, the same ones in every process that maps it.

    The memory lives as long as any of the arrays; the descriptor may be closed.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
    ends = np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]).tolist()
    os.ftruncate(file, ends[-1])
    memory = mmap.mmap(file, ends[-1])
    places = zip([0, *ends[:-1]], kinds, strict=True)
    return [np.ndarray(shape, dtype, memory, start) for start, (shape, dtype) in places]


def serve(descriptor: int) -> None:
    """The worker's loop: first a factory, then (method, args) until the parent is gone."""
    # a stop is the parent's to handle: it saves its state, and its end is ours
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection, target = Connection(descriptor), None
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            message = connection.recv_bytes()
            try:
                if target is None:
                    target, value = pickle.loads(message)(), None
                else:
                    method, args = pickle.loads(message)
                    value = getattr(target, method)(*args)
                reply = ("ok", value)
            except _REFUSALS as error:
                kind = next(known for known in _REFUSALS if isinstance(error, known))
                reply = ("refused", (kind, str(error)))
            except Exception:
                reply = ("error", traceback.format_exc())
            connection.send_bytes(pickle.dumps(reply))
    if target is not None:
        target.close()
