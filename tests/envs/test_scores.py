"""Normalised scores by the constants of D4RL."""

import numpy as np
import pytest

from core.config import UnknownName
from envs import scores


def test_every_row_has_a_source_and_a_range():
    table = scores.references()
    assert len(table) == 115
    assert all(row.source and row.low < row.high for row in table.values())


@pytest.mark.parametrize(
    "name",
    [
        "hopper-medium-v2",
        "d4rl/hopper-expert-v0",
        "hopper-random-medium-v2",
        "mujoco/hopper-v5",
        "mujoco/hopper-v4",
        "mjx/hopper-v5",
    ],
)
def test_an_environment_has_one_pair(name):
    returns = np.array([-20.272305, 3234.3, 1607.0138475])
    np.testing.assert_allclose(scores.normalised(name, returns), [0, 100, 50], atol=1e-9)


def test_a_value():
    assert scores.normalised("antmaze-umaze-v2", 0.35) == pytest.approx(35)
    assert scores.normalised("mujoco/halfcheetah-v5", 12135.0) == 100


@pytest.mark.parametrize("name", ["mujoco/swimmer-v5", "hopper", "hopper-random-bad-v2", "metaworld/push", ""])
def test_names_without_constants(name):
    with pytest.raises(UnknownName, match="unknown normalised score"):
        scores.reference(name)
