"""Scores over seeds: one row per (algorithm, task, configuration), from the runs' eval.jsonl.

Final is a seed's last evaluation, last-k the mean of its last k; both are given as mean +- standard error over
seeds, and named.  A seed that failed or is missing counts: 3/5.  No error from one seed.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.config import ConfigError
from core.metrics import read_lines
from experiments import options, runs


class Row(NamedTuple):
    algo: str
    task: str
    runs: str  # their names
    metric: str
    seeds: str  # seeds that have a final score / seeds that were started
    steps: int  # at the final evaluation
    episodes: int  # per seed and evaluation
    final: float
    final_se: float
    last: float
    last_se: float
    k: int  # evaluations in "last": fewer than asked for where a run has fewer


def mean_se(values: list[float]) -> tuple[float, float]:
    """Mean and standard error (ddof 1) over seeds; NaN error for fewer than two."""
    if not values:
        return math.nan, math.nan
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def rows(folders: list[Path], k: int, metric: str) -> list[Row]:
    """One row per group of runs that differ in their seeds, names and machinery only.

    Raises: ConfigError when there is no run, or when a group holds the same seed twice: it would be counted twice.
    """
    groups: dict[tuple, list[runs.Run]] = defaultdict(list)
    for folder in sorted({run for root in folders for run in runs.find(root)}):
        run = runs.load(folder)
        method = options.method(run.algo, run.task, run.train, runs.data_hash(folder))
        groups[run.algo, run.task, method, run.train.steps, run.train.eval].append(run)
    if not groups:
        raise ConfigError(f"no runs below {', '.join(map(str, folders))}; a run folder has a config.json")
    ordered = sorted(groups.values(), key=lambda members: (members[0].algo, members[0].task, members[0].folder.name))
    return [_row(members, k, metric) for members in ordered]


def _row(members: list[runs.Run], k: int, metric: str) -> Row:
    final, last, used, started = [], [], k, {}
    for run in members:
        for seed in run.train.seeds:
            if seed in started:
                raise ConfigError(f"seed {seed} is in {started[seed]} and in {run.folder}: name one of them only")
            started[seed] = run.folder
        curves = defaultdict(list)
        for row in read_lines(run.folder / "eval.jsonl"):
            curves[row["seed"]].append(row)
        for curve in curves.values():
            if curve[-1]["failed"] or curve[-1]["step"] < run.train.steps:
                continue  # a failed seed has no score
            final.append(curve[-1][metric])
            last.append(float(np.mean([row[metric] for row in curve[-k:] if not row["failed"]])))
            used = min(used, len(curve))
    first = members[0]
    return Row(
        first.algo, first.task, ", ".join(run.folder.name for run in members), metric, f"{len(final)}/{len(started)}",
        first.train.steps, first.train.eval.episodes, *mean_se(final), *mean_se(last), used,
    )  # fmt: skip


def _score(mean: float, error: float, metric: str) -> str:
    digits = 3 if metric == "success" else 1
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def markdown(table: list[Row]) -> str:
    metric = table[0].metric
    head = f"| algorithm | task | runs | seeds | steps | episodes | {metric}, final | {metric}, mean of last k |"
    lines = [head, "|" + " --- |" * 8]
    for r in table:
        lines.append(
            f"| {r.algo} | {r.task} | {r.runs} | {r.seeds} | {r.steps:,} | {r.episodes} | "
            f"{_score(r.final, r.final_se, metric)} | {_score(r.last, r.last_se, metric)} (k = {r.k}) |"
        )
    note = "Mean ± standard error over seeds; seeds: finished / started; episodes: per seed and evaluation."
    return "\n".join([*lines, "", note])


def tables(folders: list[Path], k: int, metric: str, out: Path | None) -> str:
    """The Markdown table; also written to out/table.md and out/table.csv when a folder is given."""
    if k < 1:
        raise ConfigError(f"--last {k}: average at least the last evaluation")
    table = rows(folders, k, metric)
    text = markdown(table)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(text + "\n")
        with (out / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows(table)
    return text
