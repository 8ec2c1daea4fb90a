"""`rheostat list`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import algos
import envs
from core.config import ConfigError
from envs import datasets
from experiments import runs


def listing(what: str, root: Path | None) -> None:
    lines = {"algos": _algos, "tasks": _tasks, "datasets": _datasets, "runs": _runs}[what](root)
    print("\n".join(lines))


def _algos(_: Path | None) -> list[str]:
    return list(algos.names())


def _tasks(_: Path | None) -> list[str]:
    return envs.tasks()


def _datasets(root: Path | None) -> list[str]:
    lines = []
    for path in sorted(Path(root or "data").rglob("*.npz")):
        if path.parent.suffix == ".parts":  # of a collection under way
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                card = json.loads(str(file["card"]))
            text = (
                f"{path}  {card['task']}  {card['episodes']} episodes  {card['transitions']} transitions  "
                f"return {card['return']['mean']:.1f}  success {card['success']:.2f}"
            )
        except datasets.DAMAGED as error:
            lines.append(f"{path}  not a dataset of ours ({type(error).__name__})")
            continue
        lines.append(text)
    return lines or [f"no datasets below {root or 'data'}; make one: rheostat collect TASK"]


def _runs(root: Path | None) -> list[str]:
    lines = []
    for folder in runs.find(root or "runs"):
        try:
            runs.load(folder)
        except ConfigError as error:
            lines.append(f"{folder}  {error}")
            continue
        last = runs.status(folder)
        lines.append(f"{folder}  {last.get('state', 'created')}  {last.get('step', 0)}/{last.get('steps', '?')}")
    return lines or [f"no runs below {root or 'runs'}; make one: rheostat train ALGO TASK"]
