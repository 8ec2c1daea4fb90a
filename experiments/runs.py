"""Run folders: where everything of a run lies, and what state it is in.

runs/<algo>/<task>/<name>/  config.json  meta.json  status.json  metrics.jsonl  eval.jsonl  ckpt/
and experience/ of an online run, eval_fresh.jsonl and values.jsonl once it is judged again, parent/ of one that starts
from another
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import algos
from core.config import ConfigError, from_dict, to_dict
from core.locks import held
from core.metrics import write_json
from experiments import options
from experiments.options import Train

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "mujoco", "gymnasium", "metaworld", "ogbench"
)  # fmt: skip
CARD = ("run", "algo", "step", "identity")  # of the run that another started from, in meta.json
PARENT = "parent"  # folder in a run folder: what is kept of the run that it started from


class Run(NamedTuple):
    folder: Path | None  # None until it has begun
    algo: str
    task: str
    train: Train


class Failed(Exception):
    """A run that could not finish; what it had is saved."""


class Stopped(Exception):
    """A signal ended the work; the message says how to go on with what was saved."""

    def __init__(self, number: int, message: str):
        self.code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}, exit code {self.code}; {message}")


def create(run: Run, meta: dict[str, Any]) -> None:
    """Make the folder and write down what will be run.

    Raises: ConfigError, with the command that resumes it, when it exists.
    """
    try:
        run.folder.mkdir(parents=True)
    except FileExistsError:
        state = status(run.folder).get("state", "unknown")
        raise ConfigError(
            f"the run {run.folder} exists (state: {state}). To go on with it: rheostat resume {run.folder}\n"
            "To run the same once more beside it, give another --name"
        ) from None
    write_json(run.folder / "meta.json", meta)
    save(run)


def save(run: Run) -> None:
    write_json(run.folder / "config.json", {"algo": run.algo, "task": run.task, **to_dict(run.train)})


def load(folder: str | Path) -> Run:
    """Read a run back from its folder.

    Raises: ConfigError when it is no run folder; UnknownName when its options are not those of this version.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.json (see `rheostat list runs`)")
    try:
        values = json.loads((folder / "config.json").read_text())
        algo, task = values.pop("algo"), values.pop("task")
        config = from_dict(algos.load(algo).Config, values.pop("config"))
        return Run(folder, algo, task, from_dict(Train, {"config": config, **values}))
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} is damaged ({error!r}); restore it or start the run anew"
        ) from None


def require_seed(run: Run, index: int) -> None:
    """Raises: ConfigError unless the run has a seed of this number, from 0."""
    if not 0 <= index < (count := len(run.train.seeds)):
        raise ConfigError(f"--seed-index {index}: {run.folder} has {count} seeds, 0 to {count - 1}")


def status(folder: str | Path) -> dict[str, Any]:
    """The last status written, "killed" where its process has gone without a word; {} before the first."""
    path = Path(folder) / "status.json"
    try:
        last = json.loads(path.read_text()) if path.exists() else {}
        return {**last, "state": "killed"} if last.get("state") == "running" and not held(Path(folder)) else last
    except (ValueError, AttributeError):
        return {"state": "damaged status.json"}


def set_status(folder: Path, state: str, **more: Any) -> None:
    """States: running, done, stopped (by a signal, resumable), failed."""
    process = {"pid": os.getpid(), "host": platform.node(), "time": now()}  # for a reader; nothing depends on it
    write_json(folder / "status.json", {"state": state, **process, **more})


def data_hash(folder: Path) -> str:
    """SHA-256 of the data that a run was made with, from its meta.json."""
    return _meta(folder, lambda meta: meta["data"]["sha256"])


def data_returns(folder: Path) -> tuple[float, float]:
    """Least and largest return of the episodes that a run was made with, from its meta.json."""
    return _meta(folder, lambda meta: (meta["data"]["return"]["min"], meta["data"]["return"]["max"]))


def parent(folder: Path) -> dict[str, Any] | None:
    """From meta.json: run, algo, step and identity of the run that this one started from, None without one."""
    return _meta(folder, lambda meta: {key: meta["parent"][key] for key in CARD} if meta.get("parent") else None)


def _meta(folder: Path, read: Callable[[Any], Any]) -> Any:
    try:
        return read(json.loads((folder / "meta.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'meta.json'} is missing or damaged ({error}); restore it") from None


def identity(run: Run) -> str:
    """The fingerprint that the checkpoints of a run carry."""
    return options.identity(run.algo, run.task, run.train, data_hash(run.folder), parent(run.folder))


def find(root: str | Path = "runs") -> list[Path]:
    """All run folders below `root`, sorted; not those that are kept in others."""
    found = [path.parent for path in Path(root).rglob("config.json")]
    return sorted(one for one in found if one == Path(root) or not (one.parent / "config.json").is_file())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Commit, versions, machine: what someone needs to run it again."""
    here = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    ours = git("rev-parse", "--show-toplevel") == str(here)  # not a repository that we are installed in
    return {
        "time": now(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git("rev-parse", "HEAD") if ours else None,
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")) if ours else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
