"""`corl_reward_norm*`: rewards brought to a range of returns, and shifted ones."""

from __future__ import annotations

import numpy as np

from core.dataset import training_reward
from envs.readers import d4rl
from tests.golden.case import Case

STEPS = 1000  # of an episode, and the range of the returns


def run(case: Case) -> None:
    reward, terminals = (case.read(key).reshape(-1) for key in ("rewards", "terminals"))
    # their counter of steps begins anew behind either end; an unfinished episode has no return
    limited = d4rl.counted(terminals.astype(bool), STEPS)
    parts = d4rl.sequence({"terminals": terminals, "timeouts": limited})
    ret = np.array([reward[part].sum(dtype=np.float64) for part in parts])
    case.check("min_return", ret.min(), "min_return", 1e-10, 0)
    case.check("max_return", ret.max(), "max_return", 1e-10, 0)
    case.check("normalized", training_reward(reward, ret, span=STEPS), "normalized", 1e-6, 0)
    shifted = training_reward(case.read("antmaze_rewards"), ret, shift=-1.0)
    case.check("antmaze_modified", shifted, "antmaze_modified", 1e-6, 1e-7)
