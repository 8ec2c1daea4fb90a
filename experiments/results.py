"""Evaluations of finished and unfinished runs, by what determines their numbers."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.config import ConfigError, UnknownName
from core.metrics import read_lines
from experiments import options, runs

Metric = Literal["return", "success", "score"]


class Curve(NamedTuple):
    """The evaluations of one seed, in the order of their steps; those after it failed are left out."""

    run: str  # its name
    rows: list[dict[str, Any]]  # as in eval.jsonl, and seconds, see `seconds`
    failed: bool  # by its last evaluation
    done: bool  # it has reached the last step, and did not fail


class Group(NamedTuple):
    """Runs that differ in their seeds, names and machinery only; no seed is in two of them."""

    algo: str
    task: str
    members: list[runs.Run]
    curves: dict[int, Curve]  # by seed, every seed that was started

    @property
    def names(self) -> str:
        return ", ".join(dict.fromkeys(curve.run for curve in self.curves.values()))

    @property
    def finished(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.done]

    def values(self, curve: Curve, metric: Metric) -> list[float]:
        return [measured(self.task, row, metric) for row in curve.rows]


def has(task: str, metric: Metric) -> bool:
    """Whether a metric can be computed on a task: a score needs the task's constants."""
    if metric != "score":
        return True
    from envs import scores

    try:
        scores.reference(task)
    except UnknownName:
        return False
    return True


def measured(task: str, row: dict[str, Any], metric: Metric) -> float:
    """A metric of one evaluation; score is the return normalised as in D4RL.

    Raises: UnknownName for a score where the task has no constants.
    """
    if metric != "score":
        return row[metric]
    from envs import scores

    return float(scores.normalised(task, row["return"]))


def groups(folders: Sequence[Path]) -> list[Group]:
    """All runs in and below the folders, ordered by algorithm, task and name.

    Runs that share a seed are a group each, so that none counts twice.  A run that cannot be read is left out, and
    named on stderr.

    Raises: ConfigError when there is no run.
    """
    found: dict[tuple, list[runs.Run]] = defaultdict(list)
    unique = {run.resolve(): run for root in folders for run in runs.find(root)}
    for folder in sorted(unique.values()):
        try:
            run = runs.load(folder)
            method = options.method(run.algo, run.task, run.train, runs.data_hash(folder), runs.parent(folder))
        except ConfigError as error:
            print(f"left out: {folder}: {error}", file=sys.stderr)
            continue
        found[run.algo, run.task, method, run.train.steps, run.train.eval].append(run)
    if not found:
        where, readable = ", ".join(map(str, folders)), " that can be read" if unique else ""
        raise ConfigError(f"no runs{readable} below {where}; a run folder has a config.json")
    split = [part for members in found.values() for part in _apart(members)]
    ordered = sorted(split, key=lambda members: (members[0].algo, members[0].task, members[0].folder.name))
    names = Counter(_name(run) for members in ordered for run in members)
    return [Group(members[0].algo, members[0].task, members, _curves(members, names)) for members in ordered]


def _apart(members: list[runs.Run]) -> list[list[runs.Run]]:
    seeds = [seed for run in members for seed in run.train.seeds]
    return [members] if len(set(seeds)) == len(seeds) else [[run] for run in members]


def _name(run: runs.Run) -> tuple[str, str, str]:
    return run.algo, run.task, run.folder.name


def seconds(folder: Path) -> dict[int, float]:
    """By step, how long a run had trained until then, all seeds of its program: without compiling and evaluations."""
    spent, last = {0: 0.0}, 0
    for row in read_lines(folder / "metrics.jsonl"):
        if (step := row["step"]) > last:
            spent[step] = spent[last] + (step - last) / row["time/steps_per_second"]
            last = step
    return spent


def _curves(members: list[runs.Run], names: Counter[tuple[str, str, str]]) -> dict[int, Curve]:
    """By seed; a run is called by its folder's name, by all of its path where that is ambiguous."""
    curves: dict[int, Curve] = {}
    for run in members:
        name = str(run.folder) if names[_name(run)] > 1 else run.folder.name
        rows = defaultdict(list)
        spent = seconds(run.folder)
        for row in read_lines(run.folder / "eval.jsonl"):
            rows[row["seed"]].append({**row, "seconds": spent.get(row["step"], math.nan)})
        for seed in run.train.seeds:
            mine = rows[seed]
            failed = bool(mine) and mine[-1]["failed"]
            done = bool(mine) and not failed and mine[-1]["step"] >= run.train.steps
            curves[seed] = Curve(name, [row for row in mine if not row["failed"]], failed, done)
    return curves
