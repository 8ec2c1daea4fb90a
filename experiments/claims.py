"""ReinFlow's claims computed as its abstract does, on the published figures and on runs of ours.

`python -m experiments.claims RUN ...` prints the growth and the seconds per iteration of fine-tuning runs that judged
their start (those begun by --from), beside what `experiments/published/reinflow.csv` says.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.config import ConfigError
from core.metrics import read_lines
from experiments import results, runs
from experiments.statistics import stratified

PUBLISHED = Path(__file__).parent / "published" / "reinflow.csv"
LEVEL = 0.95  # of DPPO's end: where equal returns are compared
SLIP = ("ant-v2", "ReinFlow-S")  # its cell in the authors' sheet repeats ReinFlow-R's


class Published(NamedTuple):
    task: str
    method: str
    start: float
    end: float
    seconds: float  # per iteration

    @property
    def growth(self) -> float:
        return self.end / self.start - 1


def published() -> dict[tuple[str, str], Published]:
    """By task and method."""
    with PUBLISHED.open() as file:
        rows = [
            Published(r["task"], r["method"], float(r["start"]), float(r["end"]), float(r["seconds_per_iteration"]))
            for r in csv.DictReader(file)
        ]
    return {(row.task, row.method): row for row in rows}


def growth(methods: tuple[str, ...], slip: bool = False) -> float:
    """Mean net growth of return over tasks and methods; slip: with the sheet's repeated cell, as published."""
    rows = published()
    cells = [row for row in rows.values() if row.method in methods]
    taken = [rows[row.task, "ReinFlow-R"] if slip and (row.task, row.method) == SLIP else row for row in cells]
    return float(np.mean([row.growth for row in taken]))


def saving(methods: tuple[str, ...]) -> float:
    """Mean reduction of the seconds per iteration against DPPO's over tasks and methods."""
    rows = published()
    cells = [row for row in rows.values() if row.method in methods]
    return float(np.mean([1 - row.seconds / rows[row.task, "DPPO"].seconds for row in cells]))


class Measured(NamedTuple):
    name: str
    algo: str
    task: str
    preset: str
    metric: str
    values: np.ndarray  # f64[seeds, evaluations] of the metric, the start's first
    spent: np.ndarray  # f64[evaluations] seconds of training until each
    seconds: float  # per 10,000 environment steps of each seed, median over epochs

    @property
    def start(self) -> np.ndarray:
        return self.values[:, 0]

    @property
    def end(self) -> np.ndarray:
        return self.values[:, -1]

    def change(self, seeds: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Of the means over seeds i64[..., n]: net growth of a return, gain in success, f64[...]."""
        start, end = self.start[seeds].mean(axis=-1), self.end[seeds].mean(axis=-1)
        return end - start if self.metric == "success" else end / start - 1

    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap over seeds; NaN for one."""
        return stratified([range(len(self.start))], lambda redrawn: self.change(redrawn.astype(int)))

    def seconds_to(self, level: float) -> float:
        """Seconds of training until an evaluation's mean over seeds is at least so high; NaN where none is."""
        there = self.values.mean(axis=0) >= level
        return float(self.spent[there.argmax()]) if there.any() else math.nan


def measured(folder: Path) -> Measured | None:
    """A run's start and end over the seeds that did not fail; None where it did not judge its start, or has not come
    to its end.
    """
    run, by_seed = runs.load(folder), defaultdict(list)
    metric = "return" if run.task.startswith("mujoco/") else "success"
    for row in read_lines(folder / "eval.jsonl"):
        by_seed[row["seed"]].append((row["step"], row[metric], row["failed"]))
    sound = [rows for rows in by_seed.values() if not rows[-1][2]]
    if not sound or any((rows[0][0], rows[-1][0]) != (0, run.train.steps) for rows in sound):
        return None
    values, spent = np.array([[row[1] for row in rows] for rows in sound]), results.seconds(folder)
    rates = [row["time/steps_per_second"] for row in read_lines(folder / "metrics.jsonl")]
    spent = np.array([spent.get(row[0], math.nan) for row in sound[0]])
    return Measured(
        folder.name, run.algo, run.task, run.train.preset, metric, values, spent, float(10_000 / np.median(rates))
    )


def _published_table() -> list[str]:
    both = ("ReinFlow-R", "ReinFlow-S")
    lines = ["| published | growth | seconds per iteration saved |", "| --- | --- | --- |"]
    lines.append(f"| the abstract's, with the slip | {growth(both, slip=True):.2%} | {saving(both):.2%} |")
    for name, methods in (("both, corrected", both), ("ReinFlow-R", both[:1]), ("ReinFlow-S", both[1:])):
        lines.append(f"| {name} | {growth(methods):.2%} | {saving(methods):.2%} |")
    return [*lines, f"| DPPO | {growth(('DPPO',)):.2%} | - |"]


def _costs(row: Measured, dppo: Measured) -> list[str]:
    """Seconds over DPPO's by step; seconds to its level, and over its own, where it came there by training."""
    level = LEVEL * dppo.end.mean()
    ours, theirs = row.seconds_to(level), dppo.seconds_to(level)
    reached = ["-", "-"]
    if level > 0 and theirs > 0:
        reached = ["not reached", "-"] if math.isnan(ours) else [f"{ours:.0f}", f"{ours / theirs:.2f}x"]
    return [f"{row.seconds / dppo.seconds:.2f}x", *reached]


def _our_table(rows: list[Measured]) -> list[str]:
    lines = [
        "| ours | task | preset | seeds | start | end | change | 95 % interval | s per 10,000 steps | over DPPO's | "
        f"s to {LEVEL:.0%} of DPPO's end | over DPPO's |",
        f"|{' --- |' * 12}",
    ]
    dppo = defaultdict(list)  # with equal numbers of seeds, which share a program
    for row in rows:
        if row.algo == "dppo":
            dppo[row.task, row.preset, len(row.start)].append(row)
    for row in rows:
        unit, digits = (" points", "{:.2f}") if row.metric == "success" else (" %", "{:,.0f}")
        start, end = (digits.format(x.mean()) for x in (row.start, row.end))
        low, high = (100 * bound for bound in row.interval())
        costs = ["-"] * 3
        if len(others := dppo[row.task, row.preset, len(row.start)]) == 1:
            costs = _costs(row, *others)
        lines.append(
            f"| {row.algo} {row.name} | {row.task} | {row.preset} | {len(row.start)} | {start} | {end} | "
            f"{100 * row.change():+.1f}{unit} | {low:+.1f} to {high:+.1f} | {row.seconds:.2f} | {' | '.join(costs)} |"
        )
    return lines


def main(folders: list[str]) -> None:
    rows = []
    for folder in sorted({folder for root in folders for folder in runs.find(Path(root))}):
        try:
            rows.append(measured(folder))
        except ConfigError as error:
            print(f"left out: {folder}: {error}", file=sys.stderr)
    rows = [row for row in rows if row]
    print("\n".join([*_published_table(), "", *_our_table(rows)]))


if __name__ == "__main__":
    main(sys.argv[1:] or ["runs"])
