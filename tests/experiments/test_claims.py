"""The abstract's figures come out of the authors' numbers, slip included; ours out of run folders."""

import json
import math

import pytest

from experiments import claims, runs
from experiments.options import Train
from experiments.presets import preset

END = 500_000  # steps of the preset
BOTH = ("ReinFlow-R", "ReinFlow-S")


def test_the_abstract():
    assert claims.growth(BOTH, slip=True) == pytest.approx(1.3536, abs=5e-5)
    assert claims.saving(BOTH) == pytest.approx(0.8263, abs=5e-5)
    assert claims.growth(BOTH) == pytest.approx(1.192, abs=5e-4)
    assert claims.growth(BOTH[:1]) == pytest.approx(1.408, abs=5e-4)
    assert claims.growth(BOTH[1:]) == pytest.approx(0.976, abs=5e-4)


def made(folder, task, values, metric):
    chosen: Train = preset("reinflow", task, "cpu")
    runs.create(runs.Run(folder, "reinflow", task, chosen), {})
    rows = [{"step": step, "seed": seed, metric: value, "failed": False} for (step, seed), value in values.items()]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rates = [
        {"step": i, "seed": 0, "time/steps_per_second": rate} for i, rate in ((0, 1_000), (50, 5_000), (END, 2_000))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rates))
    return claims.measured(folder)


def test_our_runs(tmp_path):
    values = {(0, 0): 1000, (0, 1): 2000, (50, 0): 1100, (50, 1): 1900, (END, 0): 1500, (END, 1): 2500}
    row = made(tmp_path / "hopper", "mujoco/hopper-v5", values, "return")
    assert row.change() == pytest.approx(4000 / 3000 - 1)
    assert row.interval() == pytest.approx((0.25, 0.5))
    assert (row.preset, row.seconds) == ("cpu", 5.0)
    row = made(tmp_path / "window", "metaworld/window-open", {(0, 0): 0.25, (END, 0): 1.0}, "success")
    assert row.change() == pytest.approx(0.75)
    assert made(tmp_path / "scratch", "mujoco/hopper-v5", {(END, 0): 1.0}, "return") is None
    assert row.seconds_to(0.9) == pytest.approx(50 / 5_000 + (END - 50) / 2_000)
    assert math.isnan(row.seconds_to(1.1))
    assert made(tmp_path / "unfinished", "mujoco/hopper-v5", {(0, 0): 1.0, (50, 0): 1.0}, "return") is None


def test_the_page(tmp_path, capsys):
    made(
        tmp_path / "hopper", "mujoco/hopper-v5", {(0, 0): 1000, (0, 1): 2000, (END, 0): 2000, (END, 1): 2000}, "return"
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    claims.main([str(tmp_path)])
    out, said = capsys.readouterr()
    assert f"left out: {tmp_path / 'broken'}" in said
    assert "135.36%" in out
    assert "| reinflow hopper | mujoco/hopper-v5 | cpu | 2 | 1,500 | 2,000 | +33.3 % |" in out
