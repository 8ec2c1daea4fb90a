"""Diagnostics of goal-conditioned values: exact for values that are known, and by the command."""

import json

import numpy as np
import pytest

from core import dataset
from core.config import ConfigError
from envs import datasets
from experiments import horizon
from experiments.cli import main


def straight(length=60):
    """Episodes that go on by one each step."""
    state = np.tile(np.arange(length + 1, dtype=np.float32)[:, None], (3, 1))
    nothing = np.zeros(len(state), np.float32)
    return dataset.from_lengths(state, nothing[:, None], nothing, np.zeros(len(state), bool), np.full(3, length))


def left(obs):
    return obs.goal[:, 0] - obs.state[:, 0]


def test_a_true_value_is_in_order_and_without_error():
    rows = horizon.profile(lambda obs: -(1 - 0.9 ** left(obs)) / 0.1, lambda d: -(1 - 0.9**d) / 0.1, straight(), 25)
    assert [row["distance"] for row in rows] == [1, 2, 5, 10, 25, 50]
    assert all(row["order"] == 1 for row in rows)
    np.testing.assert_allclose([row["error"] for row in rows], 0, atol=1e-5)


def test_a_value_that_levels_off_loses_its_order_there():
    rows = horizon.profile(lambda obs: -np.minimum(left(obs), 8), lambda d: -d, straight(), 3)
    assert [row["order"] for row in rows] == [1, 1, 1, 1, 0, 0]
    assert [row["error"] for row in rows] == [0, 0, 0, 2, 17, 42]


def test_refused_beyond_the_episodes():
    with pytest.raises(ConfigError, match="70 steps ahead"):
        horizon.pairs(straight(), 70, 5, 0)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = 4 * 31
    arrays = {
        "state": rng.uniform(1, 6, (rows, 2)).astype(np.float32),
        "action": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "reward": np.zeros(rows, np.float32), "terminated": np.zeros(rows, bool), "length": np.full(4, 30, np.int32),
        "success": np.zeros(4, np.float32),
    }  # fmt: skip
    datasets.write("maze.npz", arrays, {"task": "toy/pointmaze"})
    small = ["--config.hidden", "8", "--config.actor-hidden", "8", "--config.batch-size", "8", "--eval.episodes", "10"]
    once = ["--steps", "10", "--epoch", "10", "--eval.every", "10", "--save-every", "10", "--name", "a"]
    assert main(["train", "ota", "toy/pointmaze", "--data.path", "maze.npz", *small, *once, "--seeds", "0", "1"]) == 0
    run = "runs/ota/toy/pointmaze/a"
    assert main(["eval", run, "--horizon"]) == 0
    assert "distance" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / run / "horizon.jsonl").read_text().splitlines()]
    assert {row["seed"] for row in written} == {0, 1}
    assert [row["expected"] for row in written if row["seed"] == 0][:4] == pytest.approx([0, 0, 0, -1])
    assert (tmp_path / run / "horizon.png").stat().st_size > 10_000
    assert main(["eval", run, "--horizon", "--values"]) == 2
    assert main(["train", "gcbc", "toy/pointmaze", "--data.path", "maze.npz", *small[2:], *once]) == 0
    assert main(["eval", "runs/gcbc/toy/pointmaze/a", "--horizon"]) == 2
    assert "has no value of states and goals" in capsys.readouterr().err
