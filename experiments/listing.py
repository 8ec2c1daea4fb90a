"""`rheostat list`."""

from __future__ import annotations

import json
from pathlib import Path

import algos
import envs
from core.config import ConfigError
from core.dataset import DataError
from envs.readers import dppo, formats, published
from envs.readers.files import many, open_file
from experiments import runs


def listing(what: str, root: Path | None) -> None:
    lines = {"algos": _algos, "tasks": _tasks, "datasets": _datasets, "runs": _runs}[what](root)
    print("\n".join(lines))


def _algos(_: Path | None) -> list[str]:
    return list(algos.names())


def _tasks(_: Path | None) -> list[str]:
    return envs.tasks()


def _datasets(root: Path | None) -> list[str]:
    """One line for each file, from its card or from what it declares; no array is read."""
    folders = [root] if root else published.folders()
    found = sorted({path for folder in folders for path in folder.rglob("*") if path.suffix in formats.SUFFIXES})
    hidden = [path for path in found if path.parent.suffix == ".parts" or path.name == dppo.NORMALISATION]
    lines = [f"{path}  {_dataset(path)}" for path in found if path not in hidden]
    return lines or [f"no datasets below {' or '.join(map(str, folders))}; make one: rheostat collect TASK"]


def _dataset(path: Path) -> str:
    try:
        with open_file(path) as file:
            if "card" not in file:
                return formats.glance(file)
            card = json.loads(file.text("card"))
        return (
            f"{card['task']}  {many(card['episodes'], 'episode')}  {many(card['transitions'], 'transition')}  "
            f"return {card['return']['mean']:.1f}  success {card['success']:.2f}"
        )
    except (DataError, ValueError, KeyError, TypeError) as error:
        return f"no dataset ({str(error).removeprefix(f'{path}: ')})"


def _runs(root: Path | None) -> list[str]:
    lines = []
    for folder in runs.find(root or "runs"):
        try:
            runs.load(folder)
            parent = runs.parent(folder)
        except ConfigError as error:
            lines.append(f"{folder}  {error}")
            continue
        last = runs.status(folder)
        origin = f"  from {parent['run']} at {parent['step']}" if parent else ""
        lines.append(
            f"{folder}  {last.get('state', 'created')}  {last.get('step', 0)}/{last.get('steps', '?')}{origin}"
        )
    return lines or [f"no runs below {root or 'runs'}; make one: rheostat train ALGO TASK"]
