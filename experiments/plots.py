"""Figures from run folders.  One look: a colour per method, a thick line for the mean over its seeds."""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from core.config import ConfigError
from experiments.results import Curve, Group, Metric, groups, has, measured
from experiments.statistics import mean, stratified

COLOURS = [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["tab20"].colors]
COLOURS = (*COLOURS[::2], *COLOURS[1::2])  # the dark ones first
LINES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v")
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "savefig.bbox": "tight", "pdf.fonttype": 42}
AXIS = {"return": "return", "success": "success rate", "score": "normalised score"}
INSIDE = 2  # labels that a legend has inside a panel; one of more stands below, where it hides nothing
PICTURES = (".png", ".pdf", ".svg")
COLUMNS = ("algo", "task", "run", "step", "seconds", "seed", "return", "success", "length", "episodes")  # of the CSV
Against = Literal["steps", "seconds"]


def _together(seeds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps or seconds [n], a mean over seeds, and values [seeds, n], as far as all seeds have got."""
    shortest = min(len(at) for at, _ in seeds)
    at, values = (np.array([one[:shortest] for one in part], float) for part in zip(*seeds, strict=True))
    return at.mean(0), values


def _dress(axes: plt.Axes, metric: str, title: str, against: Against) -> None:
    axes.set(title=title, xlabel={"steps": "steps", "seconds": "seconds of training"}[against], ylabel=AXIS[metric])
    if metric == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(_count)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    below = len(axes.lines) > INSIDE
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.26)} if below else {"loc": "best"}
    axes.legend(frameon=False, **place)


def _count(x: float, _position: Any = None) -> str:
    return f"{x / 1e6:g}M" if abs(x) >= 1e6 else f"{x / 1e3:g}k" if abs(x) >= 1e3 else f"{x:g}"


def curve(
    folders: Sequence[Path],
    out: Path,
    out_csv: Path,
    metric: Metric = "return",
    level: tuple[str, float] | None = None,
    against: Against = "steps",
) -> None:
    """Learning curves of all runs in and below the folders: a panel per task, a line per algorithm and configuration.

    A line is the mean over the seeds that did not fail, as far as all of them have got; its band is the 95 %
    percentile bootstrap interval of that mean over seeds, and there is none of one seed.  The legend counts the seeds.
    An algorithm has one colour in all panels, its configurations differ in their lines; of a single algorithm they
    differ in colours.  Tasks that do not have the metric are left out, and named on stderr.

    Args:
        out: the picture; its ending is one of PICTURES.
        out_csv: every evaluation that is drawn, one row per step and seed: COLUMNS, and the metric beside them.
        level: name and height of a horizontal line in every panel.
        against: seconds are those of the whole program, all its seeds, without compiling and evaluations.
    Raises: ConfigError when there is nothing to draw.
    """
    if out.suffix not in PICTURES:
        raise ConfigError(f"the picture {out} must end in {', '.join(PICTURES)}")
    found = [group for group in groups(folders) if _sound(group)]
    drawn = [group for group in found if has(group.task, metric)]
    if without := dict.fromkeys(group.task for group in found if not has(group.task, metric)):
        print(f"left out: {', '.join(without)}, which have no {AXIS[metric]}", file=sys.stderr)
    if not drawn:
        raise ConfigError(
            f"no evaluations {'with this metric' if found else 'yet'} below {', '.join(map(str, folders))}"
        )
    by_task = defaultdict(list)
    for group in drawn:
        by_task[group.task].append(group)
    algos = list(dict.fromkeys(g.algo for g in drawn))
    with plt.rc_context(STYLE):
        columns = min(len(by_task), 3)
        lines, labels = -(-len(by_task) // columns), max(map(len, by_task.values())) + bool(level)
        height = 2.6 + 0.17 * labels * (labels > INSIDE)
        figure, panels = plt.subplots(
            lines, columns, figsize=(3.4 * columns, height * lines), dpi=300, squeeze=False, layout="constrained"
        )
        for axes, (task, members) in zip(panels.flat, by_task.items(), strict=False):
            several, seen = Counter(g.algo for g in members), Counter()
            for group in members:
                look = _look(algos.index(group.algo), seen[group.algo], len(algos))
                seen[group.algo] += 1
                label = f"{group.algo}, {group.names}" if several[group.algo] > 1 else group.algo
                _line(axes, group, metric, label, look, against)
            if level:
                axes.axhline(level[1], color="0.35", linestyle="--", linewidth=1.2, label=level[0])
            _dress(axes, metric, task, against)
        for axes in panels.flat[len(by_task) :]:
            axes.remove()
        for path in (out, out_csv):
            path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
        plt.close(figure)
    _write(out_csv, drawn, metric)


def _sound(group: Group) -> list[Curve]:
    return [c for c in group.curves.values() if c.rows and not c.failed]


def _look(algo: int, configuration: int, algos: int) -> dict[str, Any]:
    """Colour, line and marker of the n-th configuration of an algorithm, one of `algos`, in a panel."""
    if algos == 1:
        algo, configuration = configuration, configuration // len(COLOURS)
    return {
        "color": COLOURS[algo % len(COLOURS)],
        "linestyle": LINES[configuration % len(LINES)],
        "marker": MARKERS[configuration % len(MARKERS)],
    }


def _line(
    axes: plt.Axes, group: Group, metric: Metric, label: str, look: dict[str, Any], against: Against = "steps"
) -> None:
    sound, at = _sound(group), {"steps": "step", "seconds": "seconds"}[against]
    x, values = _together([([row[at] for row in c.rows], group.values(c, metric)) for c in sound])
    count = len(sound) if len(sound) == len(group.curves) else f"{len(sound)}/{len(group.curves)}"
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    axes.plot(x, values.mean(0), **look, markersize=2.5, linewidth=1.4, label=f"{label} ({seeds})")
    if len(sound) > 1:
        low, high = np.transpose([stratified([column], mean) for column in values.T])
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _write(out: Path, drawn: list[Group], metric: Metric) -> None:
    columns = COLUMNS if metric in COLUMNS else (*COLUMNS, metric)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for group in drawn:
            for one in _sound(group):
                for row in one.rows:
                    extra = {} if metric in COLUMNS else {metric: measured(group.task, row, metric)}
                    known = {**row, "algo": group.algo, "task": group.task, "run": one.run, **extra}
                    values = [known[name] for name in columns]
                    writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
