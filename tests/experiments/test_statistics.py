"""Intervals against closed forms, and figures that are really drawn."""

import json

import numpy as np
import pytest

from experiments import plots
from experiments.statistics import bootstrap, wilson
from experiments.tables import mean_se


def test_wilson_solves_its_quadratic():
    """The ends are where (p_hat - p)^2 = z^2 p (1 - p) / n."""
    for successes, n in [(0, 10), (3, 10), (50, 100), (100, 100)]:
        for p in wilson(successes, n):
            assert (successes / n - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)


def test_bootstrap_of_equal_episodes_redraws_seeds():
    """With seeds at 0 and 1 and no noise the mean of k redrawn seeds is binomial: its quantiles are known."""
    scores = np.repeat([[0.0], [0.0], [1.0], [1.0]], 7, axis=1)
    assert bootstrap(scores) == (0.0, 1.0)
    assert bootstrap(np.full((4, 5), 0.3)) == pytest.approx((0.3, 0.3))
    rng = np.random.default_rng(0)
    low, high = bootstrap(rng.normal(0, 1, (200, 1)))
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.15)


def test_standard_errors():
    assert mean_se([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert np.isnan(mean_se([1.0])[1])
    assert np.isnan(mean_se([])[0])


def test_learning_curves_are_drawn(tmp_path):
    rows = [{"step": step, "seed": seed, "return": step + seed} for step in (10, 20) for seed in (0, 1)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, scores = plots.curve(tmp_path, "return")
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(scores, [[10, 20], [11, 21]])
    out = tmp_path / "curve.png"
    plots.learning_curves({"mine": tmp_path}, "return", "title", out, ("level", 12.0))
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_flops_of_an_update_by_hand():
    """One hidden unit layer: count the products of a 1-1-1 actor and 2-1-1 critics on paper."""
    from algos import td3_bc
    from benchmarks.updates import flops_per_update
    from core.types import EnvSpec

    cfg = td3_bc.Config(hidden=(1,), batch_size=1, actor_period=2)
    # forward: actor 2 products, critic 3; target: 2 + 2 * 3
    # critics: 2 * (forward 3 + weights 3 + inputs of layer two 1)
    # actor, every other time: forward 2 + weights 2 + inputs of layer two 1 + Q_1 forward 3 + back to the action 1 + 1
    assert flops_per_update(cfg, EnvSpec("tiny", (1,), 1)) == 2 * (8 + 14 + (5 + 5) / 2)
