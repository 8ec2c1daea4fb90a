"""What the benchmark of nearest rows compares: the same queries, and rows as near."""

import numpy as np
import pytest

from benchmarks import neighbors
from benchmarks.contenders import Seen


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbors, "HERE", tmp_path)
    return tmp_path


def test_rows_are_played_once_and_differ_between_episodes(folder, monkeypatch):
    rows = neighbors.played("hopper", 300)
    assert rows.state.shape == (300, 11)
    assert rows.action.shape == (300, 3)
    np.testing.assert_allclose(rows.state.mean(0), 0, atol=1e-4)
    assert np.abs(rows.action).max() <= 1
    assert rows.action.std() > 0.2
    monkeypatch.setattr(neighbors, "Rollouts", None)
    np.testing.assert_array_equal(neighbors.played("hopper", 300).action, rows.action)


def test_regimes_lie_farther_and_farther_from_the_data(folder):
    rows = neighbors.played("hopper", 300)
    away = []
    for regime in neighbors.REGIMES:
        row, action = neighbors.queries(rows, regime, np.arange(100), 2)
        assert row.shape == (2, 256)
        assert row.max() < 100
        away.append(np.square(action - rows.action[row]).mean())
    assert away == sorted(away)


def test_everybody_answers_the_same_question(folder):
    lines = neighbors.compare("hopper", 2_000, 1, False)
    assert [line["unit"] for line in lines] == ["s", "MB", *["ms", "x"] * 3]
    assert all(line["value"] > 0 for line in lines)
    assert all(line["note"].startswith("exact 100.00%") for line in lines if line["unit"] == "ms")


def test_a_row_that_is_farther_is_told_and_an_equal_one_is_not():
    key = np.array([[0.0], [1.0], [1.0 + 1e-4], [1.0]], np.float32)
    truth = np.array([0, 1, 1, 1])
    assert neighbors._exact(key, key[truth], np.array([0, 1, 2, 3]), truth) == 0.75
    seen = Seen({name: np.ones(1) for name in ("ours", *neighbors.OTHERS)})
    assert "exact 75.00%; KD-tree" in neighbors._rows("set", seen, {"ours": 0.75})[0]["note"]
