"""Evaluations of finished and unfinished runs, by what determines their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.config import ConfigError
from core.metrics import read_lines
from experiments import options, runs

Metric = Literal["return", "success", "score"]


class Curve(NamedTuple):
    """The evaluations of one seed, in the order of their steps; those after it failed are left out."""

    run: runs.Run
    rows: list[dict[str, Any]]
    failed: bool  # by its last evaluation
    done: bool  # it has reached the last step, and did not fail


class Group(NamedTuple):
    """Runs that differ in their seeds, names and machinery only."""

    algo: str
    task: str
    members: list[runs.Run]
    curves: dict[int, Curve]  # by seed, every seed that was started

    @property
    def names(self) -> str:
        return ", ".join(run.folder.name for run in self.members)

    @property
    def finished(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.done]

    def values(self, curve: Curve, metric: Metric) -> list[float]:
        return [measured(self.task, row, metric) for row in curve.rows]


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

    Raises: ConfigError when there is no run, or when a group holds the same seed twice: it would be counted twice.
    """
    found: dict[tuple, list[runs.Run]] = defaultdict(list)
    for folder in sorted({run for root in folders for run in runs.find(root)}):
        run = runs.load(folder)
        method = options.method(run.algo, run.task, run.train, runs.data_hash(folder))
        found[run.algo, run.task, method, run.train.steps, run.train.eval].append(run)
    if not found:
        raise ConfigError(f"no runs below {', '.join(map(str, folders))}; a run folder has a config.json")
    ordered = sorted(found.values(), key=lambda members: (members[0].algo, members[0].task, members[0].folder.name))
    return [Group(members[0].algo, members[0].task, members, _curves(members)) for members in ordered]


def _curves(members: list[runs.Run]) -> dict[int, Curve]:
    curves: dict[int, Curve] = {}
    for run in members:
        rows = defaultdict(list)
        for row in read_lines(run.folder / "eval.jsonl"):
            rows[row["seed"]].append(row)
        for seed in run.train.seeds:
            if seed in curves:
                raise ConfigError(f"seed {seed} is in {curves[seed].run.folder} and in {run.folder}: name one of them")
            mine = rows[seed]
            failed = bool(mine) and mine[-1]["failed"]
            done = bool(mine) and not failed and mine[-1]["step"] >= run.train.steps
            curves[seed] = Curve(run, [row for row in mine if not row["failed"]], failed, done)
    return curves
