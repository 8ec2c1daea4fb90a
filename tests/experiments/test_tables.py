"""Tables and learning curves from run folders whose numbers are known."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from algos import bc, td3_bc
from experiments import plots, results, runs, tables
from experiments.cli import main
from experiments.options import EvalOptions, Train
from experiments.statistics import iqm

STEPS = (10, 20, 30)


def made(root, task, scores, name="run", seeds=None, failed=(), algo="td3_bc", alpha=2.5, config=None):
    """A run folder: scores[i] are the returns of seed i at STEPS, as far as it got; successes are a tenth of them."""
    seeds = tuple(range(len(scores))) if seeds is None else seeds
    train = Train(
        config or td3_bc.Config(alpha=alpha), eval=EvalOptions(every=10), seeds=seeds, steps=STEPS[-1], epoch=10
    )
    run = runs.Run(root / algo / task / name, algo, task, train)
    runs.create(run, {"data": {"sha256": "0" * 64}})
    rows = [
        {"step": step, "seed": seed, "failed": seed in failed, "episodes": 5, "return": float(value),
         "success": value / 10, "length": 7.0}
        for seed, values in zip(seeds, scores, strict=False) for step, value in zip(STEPS, values, strict=False)
    ]  # fmt: skip
    (run.folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.folder


FIVE = np.array([[1, 2, 3], [2, 8, 5], [3, 6, 4], [0, 1, 9], [5, 9, 1]])


def test_a_row_by_hand(tmp_path):
    made(tmp_path, "toy/match", FIVE)
    (row,) = tables.rows([tmp_path], 2, "return")
    last = FIVE[:, 1:].mean(1)
    assert (row.seeds, row.k, row.best_step, row.steps, row.episodes) == ("5/5", 2, 20, 30, 20)
    assert (row.final, row.last, row.last_median) == pytest.approx((4.4, last.mean(), np.median(last)))
    assert row.best == pytest.approx(5.2)
    assert row.last_iqm == pytest.approx(iqm(last)) == pytest.approx(5.0)
    assert row.last_low < row.last_iqm < row.last_high
    assert row.final_se == pytest.approx(np.std(FIVE[:, 2], ddof=1) / np.sqrt(5))


def test_missing_failed_and_unfinished_seeds_are_counted_and_not_averaged(tmp_path):
    scores = [[1, 2, 3], [1, 2, 5], [9, 9, 9], [7, 7]]
    made(tmp_path, "toy/match", scores, seeds=(0, 1, 2, 3, 4), failed=(2,))
    (row,) = tables.rows([tmp_path], 1, "return")
    assert (row.seeds, row.final, row.best, row.best_step) == ("2/5", 4.0, 4.0, 30)


def test_seeds_of_one_method_join_and_configurations_do_not(tmp_path):
    made(tmp_path, "toy/match", FIVE[:2], "a")
    made(tmp_path, "toy/match", FIVE[2:], "b", seeds=(2, 3, 4))
    made(tmp_path, "toy/match", FIVE, "c", alpha=1.0)
    rows = tables.rows([tmp_path], 1, "return")
    assert [(row.runs, row.seeds) for row in rows] == [("a, b", "5/5"), ("c", "5/5")]


def test_one_seed_has_no_interval(tmp_path):
    made(tmp_path, "toy/match", FIVE[:1])
    (row,) = tables.rows([tmp_path], 1, "return")
    assert np.isnan([row.final_se, row.last_se, row.best_se, row.last_low, row.last_high]).all()
    assert "| 3.0 | 3.0 | - | 3.0 (step 30) |" in tables.markdown([row])
    assert "none from one seed" in tables.markdown([row])


def test_tasks_are_aggregated_where_a_metric_compares(tmp_path):
    made(tmp_path, "toy/match", FIVE)
    made(tmp_path, "toy/bandit", FIVE[::-1, ::-1] / 2)
    *single, row = tables.rows([tmp_path], 1, "success")
    assert [one.task for one in single] == ["toy/bandit", "toy/match"]
    a, b = FIVE[::-1, 0] / 20, FIVE[:, 2] / 10
    assert (row.task, row.seeds, row.steps, row.best_step) == ("all 2 tasks", "10/10", 30, None)
    assert row.last == pytest.approx((a.mean() + b.mean()) / 2)
    assert row.last_se == pytest.approx(np.hypot(single[0].last_se, single[1].last_se) / 2)
    assert row.last_iqm == pytest.approx(iqm(np.concatenate([a, b])))
    assert row.last_low < row.last_iqm < row.last_high
    assert len(tables.rows([tmp_path], 1, "return")) == 2, "returns of different tasks do not compare"
    made(tmp_path, "toy/match", FIVE, "other", alpha=1.0)
    assert len(tables.rows([tmp_path], 1, "success")) == 3, "which of two configurations would the aggregate take?"


def test_scores_are_normalised_returns(tmp_path, monkeypatch):
    scores = pytest.importorskip("envs.scores")
    made(tmp_path, "mujoco/hopper-v4", FIVE)
    (row,) = tables.rows([tmp_path], 1, "score")
    wanted = [scores.normalised("mujoco/hopper-v4", float(value)) for value in FIVE[:, 2]]
    assert row.final == pytest.approx(np.mean(wanted))


def test_a_task_without_constants_has_no_score_and_stops_no_other(tmp_path, capsys):
    for task in ("toy/match", "mujoco/hopper-v4", "mujoco/ant-v4"):
        made(tmp_path / "runs", task, FIVE)
    *_, toy, both = table = tables.rows([tmp_path / "runs"], 1, "score")
    assert (toy.task, toy.seeds, both.task) == ("toy/match", "5/5", "all 2 tasks")
    text = tables.markdown(table)
    assert "| td3_bc | toy/match | run | full | 5/5 | 30 | 20 | - | - (k = 1) | - | - | - | - |" in text
    plotted = ["plot", str(tmp_path / "runs"), "--metric", "score", "--out", str(tmp_path / "c.png")]
    assert main(plotted) == 0
    assert "left out: toy/match, which have no normalised score" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert {row["task"] for row in rows} == {"mujoco/hopper-v4", "mujoco/ant-v4"}
    assert main(["plot", str(tmp_path / "runs/td3_bc/toy"), *plotted[2:]]) == 2


def test_runs_that_share_a_seed_have_a_row_each(tmp_path):
    made(tmp_path / "x", "toy/match", FIVE[:2], "a")
    made(tmp_path / "x", "toy/match", FIVE[1:3], "b", seeds=(1, 2))
    far = made(tmp_path / "y", "toy/match", FIVE[:2], "a")
    rows = tables.rows([tmp_path], 1, "return")
    near = tmp_path / "x/td3_bc/toy/match/a"
    assert [(row.runs, row.seeds) for row in rows] == [(str(near), "2/2"), (str(far), "2/2"), ("b", "2/2")]


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    made(tmp_path, "toy/match", FIVE)
    monkeypatch.chdir(tmp_path)
    (row,) = tables.rows([tmp_path, Path("td3_bc")], 1, "return")
    assert row.seeds == "5/5"


def test_a_damaged_run_is_left_out_and_named(tmp_path, capsys):
    made(tmp_path, "toy/match", FIVE)
    damaged = made(tmp_path, "toy/bandit", FIVE)
    (damaged / "config.json").write_text("{")
    assert main(["tables", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "toy/match" in said.out
    assert f"left out: {damaged}" in said.err
    assert main(["tables", str(damaged)]) == 2
    assert "no runs that can be read" in capsys.readouterr().err


def test_csv_has_six_digits(tmp_path):
    made(tmp_path, "toy/match", [[0.1, 0.2, 0.8999999761581421]])
    (row,) = csv.DictReader(tables.csv_text(tables.rows([tmp_path], 1, "return")).splitlines())
    assert (row["final"], row["best"], row["best_step"], row["final_se"]) == ("0.9", "0.9", "30", "nan")


def test_latex_tells_configurations_apart(tmp_path):
    made(tmp_path, "toy/match", FIVE, "a_1")
    made(tmp_path, "toy/match", FIVE, "b", alpha=1.0)
    text = tables.tables([tmp_path], 1, "return", None, "latex")
    assert r"td3\_bc & toy/match & a\_1 & full & 5/5" in text
    assert r"\begin{tabular}{llllrr" in text


def test_all_formats_say_the_same(tmp_path, capsys):
    folder = made(tmp_path / "runs", "toy/match", FIVE, "a_b")
    made(tmp_path / "runs", "toy/bandit", FIVE)
    out = tmp_path / "out"
    assert main(["tables", str(tmp_path / "runs"), "--metric", "success", "--format", "latex", "--out", str(out)]) == 0
    assert capsys.readouterr().out == (out / "table.tex").read_text()
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    bandit, match, both = list(csv.DictReader((out / "table.csv").open()))
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    for line, row in zip(lines[2:], (bandit, match, both), strict=True):
        assert f"[{float(row['last_low']):.3f}, {float(row['last_high']):.3f}]" in line
    assert both["best_step"] == ""
    assert folder.name in lines[3]


def test_latex_is_escaped_and_rectangular(tmp_path):
    made(tmp_path, "toy/match", FIVE)
    made(tmp_path, "toy/bandit", FIVE)
    text = tables.tables([tmp_path], 1, "success", None, "latex")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if "&" in line]
    columns = text[text.index("{ll") + 1 : text.index("}", text.index("{ll"))]
    assert [line.count(" & ") for line in lines] == [len(columns) - 1] * 4
    assert all(line.endswith(r"\\") for line in lines)
    assert r"td3\_bc & toy/match & full & 5/5" in text
    assert body.count(r"\midrule") == 2
    assert tables.escape("a_b & 50% ±\\") == r"a\_b \& 50\% $\pm$\textbackslash{}"


def test_curves_are_written_and_drawn(tmp_path):
    made(tmp_path, "toy/match", FIVE[:3], "a", seeds=(0, 1, 2, 9), failed=(2,))
    made(tmp_path, "toy/bandit", FIVE[:, :2], "b")
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "new" / "c.png")]) == 0
    assert (tmp_path / "new" / "c.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((tmp_path / "new" / "c.csv").open()))
    drawn = {(row["run"], int(row["seed"]), int(row["step"])): float(row["return"]) for row in rows}
    wanted = {("a", seed, step): FIVE[seed, i] for seed in (0, 1) for i, step in enumerate(STEPS)}
    wanted |= {("b", seed, step): FIVE[seed, i] for seed in range(5) for i, step in enumerate(STEPS[:2])}
    assert drawn == wanted
    assert list(rows[0]) == list(plots.COLUMNS)


def test_curves_against_the_time_of_training(tmp_path, monkeypatch):
    """Two runs of one method, one at 2 steps a second and one at 4 and then 1: the mean over their seeds."""
    for number, rates in enumerate([(2, 2, 2), (4, 1, 1)]):
        folder = made(tmp_path, "toy/match", FIVE[:1] + number, f"run{number}", seeds=(number,))
        rows = [{"step": step, "seed": number, "time/steps_per_second": rate}
                for step, rate in zip(STEPS, rates, strict=True)]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure, close = drawn(monkeypatch, tmp_path, against="seconds")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [(5 + 2.5) / 2, (10 + 12.5) / 2, (15 + 22.5) / 2])
    assert axes.get_xlabel() == "seconds of training"
    close()
    written = csv.DictReader((tmp_path / "c.csv").open())
    assert [float(row["seconds"]) for row in written] == [5, 10, 15, 2.5, 12.5, 22.5]


def test_a_level_is_drawn_in_every_panel(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    made(tmp_path, "toy/match", FIVE, "a")
    made(tmp_path, "toy/bandit", FIVE, "b")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plots.curve([tmp_path], tmp_path / "c.png", tmp_path / "c.csv", "return", ("before", 12.0))
    for axes in plt.gcf().axes:
        curve, level = axes.lines
        assert "5 seeds" in curve.get_label()
        assert (level.get_label(), *level.get_ydata()) == ("before", 12.0, 12.0)
    monkeypatch.undo()
    plt.close("all")


def test_the_band_is_the_interval_of_the_mean_and_ends_where_a_seed_does(tmp_path):
    import matplotlib.pyplot as plt

    made(tmp_path, "toy/match", [*FIVE[:4].tolist(), [7, 7]])
    (group,) = results.groups([tmp_path])
    figure, axes = plt.subplots()
    plots._line(axes, group, "return", "mine", {"color": "black"})
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xdata(), STEPS[:2])
    np.testing.assert_allclose(line.get_ydata(), [(1 + 2 + 3 + 0 + 7) / 5, (2 + 8 + 6 + 1 + 7) / 5])
    assert line.get_label() == "mine (5 seeds)"
    box = band.get_paths()[0].get_extents()
    assert box.y0 < 2.6 < 4.8 < box.y1
    plt.close(figure)


def drawn(monkeypatch, tmp_path, **options):
    """The figure of all runs below a folder, and what closes it."""
    import matplotlib.pyplot as plt

    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda figure: None)
        plots.curve([tmp_path], tmp_path / "c.png", tmp_path / "c.csv", **options)
    return plt.gcf(), lambda: plt.close("all")


def test_an_algorithm_keeps_its_colour_and_one_evaluation_is_seen(tmp_path, monkeypatch):
    made(tmp_path, "toy/bandit", FIVE[:1, :1], algo="bc", config=bc.Config())
    made(tmp_path, "toy/bandit", FIVE, "a")
    made(tmp_path, "toy/bandit", FIVE, "b", alpha=1.0)
    made(tmp_path, "toy/match", FIVE, "a")
    figure, close = drawn(monkeypatch, tmp_path)
    (cloned, first, second), (alone,) = (axes.lines for axes in figure.axes)
    assert first.get_color() == second.get_color() == alone.get_color() != cloned.get_color()
    assert first.get_linestyle() == alone.get_linestyle() != second.get_linestyle()
    assert len(cloned.get_xdata()) == 1
    assert cloned.get_marker() == "o"
    close()


def test_the_configurations_of_a_single_algorithm_look_different(tmp_path, monkeypatch):
    for number in range(6):
        made(tmp_path, "toy/match", FIVE, f"run{number}", alpha=1.0 + number)
    figure, close = drawn(monkeypatch, tmp_path)
    assert len({line.get_color() for line in figure.axes[0].lines}) == 6
    close()
    looks = [plots._look(0, number, algos=1) for number in range(25)]
    assert len({tuple(look.values()) for look in looks}) == 25


def test_what_cannot_be_drawn_is_refused(tmp_path, capsys):
    made(tmp_path / "runs", "toy/match", [[]])
    for where, out, said in [
        ("runs", "c.png", "no evaluations"),
        ("runs", "c.gif", "must end"),
        ("no", "c.png", "no run"),
    ]:
        assert main(["plot", str(tmp_path / where), "--out", str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
