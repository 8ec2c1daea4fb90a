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


def made(folder, task, values, metric, algo="reinflow"):
    chosen: Train = preset(algo, task, "cpu")
    runs.create(runs.Run(folder, algo, task, chosen), {})
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


def costs(tmp_path, metric, ours, *dppo):
    """The last three cells of ReinFlow's row beside runs of DPPO, for values at 0, 50 and END steps."""
    task, algos = (
        {"return": "mujoco/hopper-v5", "success": "metaworld/push"}[metric],
        ["reinflow", *["dppo"] * len(dppo)],
    )
    rows = [
        made(tmp_path / f"{i}", task, {(step, 0): value for step, value in zip((0, 50, END), values, strict=True)},
             metric, algo)
        for i, (algo, values) in enumerate(zip(algos, (ours, *dppo), strict=True))
    ]  # fmt: skip
    told = claims._our_table(rows)
    assert [line.startswith(f"| {row.algo} {row.name} |") for line, row in zip(told[2:], rows, strict=True)]
    return [cell.strip() for cell in told[2].split("|")[-4:-1]]


def test_time_to_where_dppo_ends(tmp_path):
    """The last evaluation comes after 250 seconds, the one before after a hundredth of one."""
    whole = 50 / 5_000 + (END - 50) / 2_000
    assert costs(tmp_path / "a", "return", (100, 200, 300), (100, 150, 280)) == ["1.00x", f"{whole:.0f}", "1.00x"]
    assert costs(tmp_path / "b", "return", (100, 270, 300), (100, 150, 280)) == ["1.00x", "0", "0.00x"]
    assert costs(tmp_path / "c", "return", (100, 120, 130), (100, 150, 280)) == ["1.00x", "not reached", "-"]


@pytest.mark.parametrize(
    ("metric", "dppo"),
    [
        ("return", (290, 250, 300)),
        ("return", (-200, -150, -100)),
        ("return", (-200, -50, -100)),
        ("return", (-5, -3, 0)),
        ("success", (0.0, 0.0, 0.0)),
    ],
    ids=["its start is there already", "it ends below 0", "and was higher", "it ends at 0", "no success"],
)
def test_no_time_is_told_where_dppo_did_not_come_there_by_training(metric, dppo, tmp_path):
    assert costs(tmp_path, metric, (0.2, 0.5, 1.0), dppo) == ["1.00x", "-", "-"]


def test_of_two_runs_of_dppo_none_is_compared_with(tmp_path):
    assert costs(tmp_path, "return", (100, 200, 300), (100, 150, 280), (100, 150, 270)) == ["-", "-", "-"]


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
