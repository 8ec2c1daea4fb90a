"""Tables of scores over seeds, as Markdown, CSV and LaTeX: one row per algorithm, task and configuration.

Final is a seed's last evaluation, last-k the mean of its last k, best the checkpoint with the highest mean; each is
named.  A seed that failed or is missing counts: 3/5.  No error and no interval from one seed.  Runs of one
configuration that share a seed have a row each.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from core.config import ConfigError
from experiments.results import Curve, Group, Metric, groups, has
from experiments.statistics import DRAWS, Summary, mean_se, summary

Format = Literal["markdown", "csv", "latex"]


class Row(NamedTuple):
    """As in table.csv, there with six digits; NaN, or None for a whole number, where there is nothing to say."""

    algo: str
    task: str  # or "all n tasks"
    runs: str  # their names
    preset: str  # full, or of which other size their defaults were
    metric: str
    seeds: str  # seeds that have finished / seeds that were started
    steps: int | None  # at the final evaluation
    episodes: int | None  # per seed and evaluation
    final: float
    final_se: float
    last: float
    last_se: float
    last_median: float
    last_iqm: float
    last_low: float  # 95 % interval of the IQM
    last_high: float
    k: int  # evaluations in "last": fewer than asked for where a run has fewer
    best: float
    best_se: float
    best_step: int | None

    @property
    def aggregate(self) -> bool:
        return not self.runs


class _Scores(NamedTuple):
    """What a row is computed from; values are per seed."""

    group: Group
    final: list[float]
    last: list[float]
    k: int


def rows(folders: Sequence[Path], k: int, metric: Metric) -> list[Row]:
    """One row per group of runs, then one per algorithm over all its tasks where `_aggregates` says so.

    A task that does not have the metric has a row without numbers.

    Raises: ConfigError for what `results.groups` refuses.
    """
    scores = [_scores(group, k, metric) for group in groups(folders)]
    return [_row(one, metric) for one in scores] + _aggregates(scores, metric)


def _scores(group: Group, k: int, metric: Metric) -> _Scores:
    curves = [group.values(_trained(curve), metric) for curve in group.finished] if has(group.task, metric) else []
    used = min([k, *map(len, curves)])
    return _Scores(group, [c[-1] for c in curves], [float(np.mean(c[-k:])) for c in curves], used)


def _trained(curve: Curve) -> Curve:
    """Without the judgement of what a run started from."""
    return curve._replace(rows=[row for row in curve.rows if row["step"]])


def _best(group: Group, metric: Metric) -> tuple[float, float, int | None]:
    """Mean, standard error and step of the evaluation with the highest mean over the finished seeds."""
    at = defaultdict(list)
    for curve in group.finished if has(group.task, metric) else []:
        for row, value in zip(_trained(curve).rows, group.values(_trained(curve), metric), strict=True):
            at[row["step"]].append(value)
    whole = {step: values for step, values in at.items() if len(values) == len(group.finished)}
    if not whole:
        return math.nan, math.nan, None
    step = max(whole, key=lambda step: np.mean(whole[step]))
    return *mean_se(whole[step]), step


def _row(scores: _Scores, metric: Metric) -> Row:
    group, chosen = scores.group, scores.group.members[0].train
    seeds = f"{len(group.finished)}/{len(group.curves)}"
    return Row(
        group.algo, group.task, group.names, chosen.preset, metric, seeds, chosen.steps,
        chosen.eval.episodes, *mean_se(scores.final), *_last(summary([scores.last])), scores.k, *_best(group, metric),
    )  # fmt: skip


def _last(s: Summary) -> tuple[float, ...]:
    return s.mean, s.se, s.median, s.iqm, s.low, s.high


def _aggregates(scores: list[_Scores], metric: Metric) -> list[Row]:
    """One row per algorithm that has several tasks, each in one configuration and with a finished seed; for metrics
    that mean the same on every task, over the tasks that have them."""
    if metric == "return":
        return []
    by_algo: dict[str, list[_Scores]] = defaultdict(list)
    for one in scores:
        if has(one.group.task, metric):
            by_algo[one.group.algo].append(one)
    table = []
    for algo, parts in by_algo.items():
        tasks = {one.group.task for one in parts}
        if len(tasks) == 1 or len(tasks) < len(parts) or not all(one.final for one in parts):
            continue
        finals, lasts = (summary([getattr(one, field) for one in parts]) for field in ("final", "last"))
        seeds = f"{sum(len(one.final) for one in parts)}/{sum(len(one.group.curves) for one in parts)}"
        steps, episodes = (
            common.pop() if len(common) == 1 else None
            for common in (
                {one.group.members[0].train.steps for one in parts},
                {one.group.members[0].train.eval.episodes for one in parts},
            )
        )
        presets = "/".join(sorted({one.group.members[0].train.preset for one in parts}))
        table.append(Row(
            algo, f"all {len(tasks)} tasks", "", presets, metric, seeds, steps, episodes, finals.mean, finals.se,
            *_last(lasts), min(one.k for one in parts), math.nan, math.nan, None,
        ))  # fmt: skip
    return table


def _plus_minus(mean: float, error: float, digits: int) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _columns(table: list[Row]) -> dict[str, list[str]]:
    """The cells of a printed table, by heading."""
    metric = table[0].metric
    digits = 3 if metric == "success" else 1

    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    def number(value: float) -> str:
        return _plus_minus(value, math.nan, digits)

    def interval(r: Row) -> str:
        return "-" if math.isnan(r.last_low) else f"[{r.last_low:.{digits}f}, {r.last_high:.{digits}f}]"

    def best(r: Row) -> str:
        where = "" if r.best_step is None else f" (step {r.best_step:,})"
        return _plus_minus(r.best, r.best_se, digits) + where

    cells = {
        "algorithm": lambda r: r.algo,
        "task": lambda r: r.task,
        "runs": lambda r: r.runs or "-",
        "preset": lambda r: r.preset,
        "seeds": lambda r: r.seeds,
        "steps": lambda r: count(r.steps),
        "episodes": lambda r: count(r.episodes),
        f"{metric}, final": lambda r: _plus_minus(r.final, r.final_se, digits),
        "mean of last k": lambda r: f"{_plus_minus(r.last, r.last_se, digits)} (k = {r.k})",
        "median": lambda r: number(r.last_median),
        "IQM": lambda r: number(r.last_iqm),
        "95 % interval": interval,
        "best checkpoint": best,
    }
    return {heading: [cell(r) for r in table] for heading, cell in cells.items()}


def _notes(table: list[Row]) -> str:
    several = any(r.aggregate for r in table)
    metric = {
        "return": "Return: undiscounted.",
        "success": "Success: rate over episodes.",
        "score": "Score: return normalised as in D4RL, 0 a random policy, 100 an expert; - without those constants.",
    }[table[0].metric]
    return " ".join([
        metric,
        "Seeds: finished / started; ±: standard error over seeds.",
        "Median, IQM and interval are over seeds, of each seed's mean of its last k evaluations.",
        "IQM: mean of the values without the lowest and the highest quarter, rounded down (arXiv:2108.13264).",
        f"Interval: percentile bootstrap of the IQM, {DRAWS:,} draws of seeds"
        + (" within each task; none from one seed." if several else "; none from one seed."),
        *(["Over tasks, mean and median are those of the tasks' means."] if several else []),
        "Best checkpoint: highest mean over seeds, picked by these same episodes, so it flatters.",
    ])  # fmt: skip


def markdown(table: list[Row]) -> str:
    columns = _columns(table)
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(
        [*(f"| {' | '.join(line)} |" for line in lines), "", f"{_notes(table)} Episodes: per seed and evaluation."]
    )


def csv_text(table: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in table)
    return out.getvalue().rstrip("\n")


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX shows it literally."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: list[Row]) -> str:
    """A floating table; its preamble needs `\\usepackage{booktabs}`.

    It is wide, so the runs are named only where an algorithm has several rows of a task, and episodes not at all.
    """
    told_apart = len({(r.algo, r.task) for r in table}) == len(table)
    left_out, texts = (("runs", "episodes"), 3) if told_apart else (("episodes",), 4)
    columns = {heading: cells for heading, cells in _columns(table).items() if heading not in left_out}
    body = [" & ".join(map(escape, line)) + r" \\" for line in zip(*columns.values(), strict=True)]
    aggregate = [r.aggregate for r in table]
    if any(aggregate):
        body.insert(aggregate.index(True), r"\midrule")
    return "\n".join([
        r"\begin{table}", r"  \centering", rf"  \caption{{{escape(_notes(table))}}}",
        rf"  \begin{{tabular}}{{{'l' * texts}{'r' * (len(columns) - texts)}}}", r"    \toprule",
        f"    {' & '.join(map(escape, columns))} \\\\", r"    \midrule",
        *(f"    {line}" for line in body), r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
    ])  # fmt: skip


FORMATS = {"markdown": (markdown, "table.md"), "csv": (csv_text, "table.csv"), "latex": (latex, "table.tex")}


def tables(folders: Sequence[Path], k: int, metric: Metric, out: Path | None, form: Format = "markdown") -> str:
    """The table in one format; in all of them as files of the folder `out` when one is given."""
    if k < 1:
        raise ConfigError(f"--last {k}: average at least the last evaluation")
    table = rows(folders, k, metric)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for write, name in FORMATS.values():
            (out / name).write_text(write(table) + "\n")
    return FORMATS[form][0](table)
