"""The demo, of which nothing is trained: what it refuses to show, and what it leaves."""

import json
from pathlib import Path

import pytest

from envs.render import RenderError
from experiments import demo
from experiments.cli import guarded
from experiments.statistics import wilson

ORDER = ("before", "before_1_step", "after", "after_1_step")


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A function: run the demo with these successes, in ORDER -> (exit code, what was called)."""
    out = tmp_path / "demo"

    def run(*means, render=None):
        told, left = [], iter(means)

        def fake(name, result=None):
            def call(*args):
                told.append((name, *args))
                return result

            return call

        def judged(folder, steps):
            told.append(("judged", folder.name, steps))
            mean, episodes = next(left), demo.FRESH
            low, high = wilson(mean * episodes, episodes)
            return {"mean": mean, "low": low, "high": high, "episodes": episodes}

        def record(folder, path):
            if render:
                raise RenderError(render)
            told.append(("record", folder, path))

        def collect(recipe, path, processes):
            out.mkdir(parents=True)
            told.append(("collect", recipe, path))

        monkeypatch.setattr(demo, "OUT", out)
        for name, stand_in in (
            ("collect", collect), ("judged", judged), ("record", record), ("tables", fake("tables", "THE TABLES")),
            ("pretrained", fake("pretrained", Path("flow"))), ("tuned", fake("tuned", Path("reinflow"))),
        ):  # fmt: skip
            monkeypatch.setattr(demo, name, stand_in)
        monkeypatch.setattr(demo.plots, "curve", fake("curve"))
        return guarded("demo", demo.main), told

    return run


@pytest.mark.parametrize("before", [0.19, 0.61])
def test_a_start_outside_the_band_is_refused_before_anything_is_tuned(shown, before, capsys, tmp_path):
    code, told = shown(before, before)
    assert code == 2
    assert (
        f"demo: the pre-trained policy succeeds in {before:.0%} of episodes, outside 20% to" in capsys.readouterr().err
    )
    assert "tuned" not in [name for name, *_ in told]
    assert not (tmp_path / "demo" / "summary.json").exists()


@pytest.mark.parametrize("before", [0.2, 0.6])
def test_a_start_at_the_ends_of_the_band_is_shown(shown, before):
    assert shown(before, before, 0.9, 0.9)[0] == 0


def test_an_end_that_is_too_low_is_told_after_all_is_written(shown, capsys, tmp_path):
    code, _ = shown(0.4, 0.3, 0.89, 1.0)
    assert code == 2
    assert "demo: fine-tuning ended at 89%, below 90%" in capsys.readouterr().err
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["after"] == 0.89


def test_what_it_leaves(shown, capsys, tmp_path):
    code, told = shown(0.4, 0.3, 0.97, 0.95)
    said, out = capsys.readouterr().out, tmp_path / "demo"
    assert code == 0
    judged = [call[1:] for call in told if call[0] == "judged"]
    assert judged == [("flow", 4), ("flow", 1), ("reinflow", 4), ("reinflow", 1)]

    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("wall_s") >= 0
    assert summary == {
        "task": demo.TASK, "algo": "reinflow", "seeds": [0], "metric": "success rate",
        "before": 0.4, "before_1_step": 0.3, "after": 0.97, "after_1_step": 0.95,
        "interval_95": {
            name: list(wilson(100 * mean, 100)) for name, mean in zip(ORDER, (0.4, 0.3, 0.97, 0.95), strict=True)
        },
        "episodes": dict.fromkeys(ORDER, 100),
    }  # fmt: skip

    rows = [
        "| metaworld/window-open | success | 95 % interval | episodes |",
        "| --- | --- | --- | --- |",
        "| flow policy, pre-trained | 0.40 | 0.31 to 0.50 | 100 |",
        "| the same, 1 denoising step | 0.30 | 0.22 to 0.40 | 100 |",
        "| fine-tuned by ReinFlow | 0.97 | 0.92 to 0.99 | 100 |",
        "| the same, 1 denoising step | 0.95 | 0.89 to 0.98 | 100 |",
    ]
    table = (out / "table.md").read_text()
    assert table.splitlines()[:6] == rows
    assert table.endswith("## During training\n\nTHE TABLES")
    assert "\n".join(rows) in said

    [curve] = [call[1:] for call in told if call[0] == "curve"]
    level = ("flow policy, pre-trained", 0.4)
    assert curve == ([Path("reinflow")], out / "curve.png", out / "curve.csv", "success", level)
    for name in ("table.md", "curve.png", "summary.json", "clip.mp4"):
        assert str(out / name) in said


def test_where_nothing_can_be_drawn_only_the_clip_is_missing(shown, capsys, tmp_path):
    assert shown(0.4, 0.3, 0.97, 0.95, render="no display")[0] == 0
    said = capsys.readouterr().out
    assert "no clip: no display" in said
    assert "clip.mp4" not in said
    assert (tmp_path / "demo" / "summary.json").exists()
