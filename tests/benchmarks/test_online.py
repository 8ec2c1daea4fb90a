"""The online benchmark's rows are what was measured, and ours steps as much as it says."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from benchmarks import online


def test_an_epoch_is_divided_by_its_time(monkeypatch):
    ticks = iter([0.0, 9.0, 9.0, 18.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(online, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    program = SimpleNamespace(epoch=lambda run: (run + 1, {}), steps=100)
    measure = online.timed(program, jnp.zeros(()), warm=2)
    assert [measure(), measure()] == [25.0, 50.0]


@pytest.mark.slow
def test_all_rows_at_quick_sizes():
    table = {row["what"]: row for row in online.measure(1, quick=True, with_peers=False)}
    assert list(table) == [
        "SAC, ours, 1 environment", "SAC, ours, 8 environments", "PPO, whole", "PPO, updates alone",
        "PPO, whole beside its updates alone",
    ]  # fmt: skip
    assert all(row["value"] > 0 for row in table.values())
    share = 100 * table["PPO, whole"]["value"] / table["PPO, updates alone"]["value"]
    assert table["PPO, whole beside its updates alone"]["value"] == pytest.approx(share)
