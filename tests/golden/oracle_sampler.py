"""Options and goals drawn by NumPy one rule after another, in files of the layout of `goal_sampler_ogb.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LENGTHS = (7, 23, 12)  # stored states of each trajectory
VALUE = (0.2, 0.5, 0.3)  # of current, later, random goals
POLICY = {"default": 0.0, "stitch": 0.5}  # how often the upper policy's goal is random
DISCOUNT, SUBGOAL, OPTION = 0.9, 5, 4
DRAWS = 60_000


def write(path: Path, rows=(0, 4, 9, 28, 31), *, seed=0) -> Path:
    """Histograms of OTA's draws at some rows, without what says the options, which are the base's."""
    rng, size = np.random.default_rng(seed), sum(LENGTHS)
    stops = np.cumsum(LENGTHS)
    valid = np.setdiff1d(np.arange(size), stops - 1)
    flags = np.zeros(size)
    flags[[*(stops - 1), *(stops - 2)]] = 1
    out = {
        "terminals": flags, "valids": np.isin(np.arange(size), valid) * 1.0, "terminal_locs": np.flatnonzero(flags),
        "initial_locs": np.sort([*(stops - LENGTHS), *(stops - 1)]), "observations": np.arange(size)[:, None] * 1.0,
        "raw_lengths": np.asarray(LENGTHS), "fixed_idxs": np.asarray(rows), "num_samples": np.asarray(DRAWS),
    }  # fmt: skip
    out["observations"] = out["observations"].astype(np.float32)
    current, later, _ = VALUE

    def geometric(row, final):
        return np.minimum(row + rng.geometric(1 - DISCOUNT, DRAWS), final)

    def uniform(row, final):
        share = rng.random(DRAWS)
        return np.round(min(row + 1, final) * share + final * (1 - share)).astype(int)

    def one(row, random_high):
        final = min(x for x in np.flatnonzero(flags) if x >= row)
        anywhere = [rng.choice(valid, DRAWS) for _ in range(3)]
        ahead, whether, now = geometric(row, final), rng.random(DRAWS) < later / (1 - current), rng.random(DRAWS)
        goal = np.where(now < current, row, np.where(whether, ahead, anywhere[0]))
        # --- policies ---
        high, near = uniform(row, final), min(row + SUBGOAL, final)
        target, other = np.minimum(row + SUBGOAL, high), rng.random(DRAWS) < random_high
        high, target = np.where(other, anywhere[1], high), np.where(other, near, target)
        # --- options ---
        ahead, whether = geometric(row, final), rng.random(DRAWS) < later / (1 - current + 1e-6)
        end = np.where(whether, np.minimum(row + OPTION, ahead), min(row + OPTION, final))
        aim = np.where(rng.random(DRAWS) < current, end, np.where(whether, ahead, anywhere[2]))
        drawn = {
            "value_goals": goal, "low_actor_goals": np.full(DRAWS, near), "high_actor_goals": high,
            "high_actor_targets": target, "high_value_goals": aim, "high_value_option_observations": end,
        }  # fmt: skip
        found = {f"{name}_hist": np.bincount(x, minlength=size) for name, x in drawn.items()}
        pairs = {"high_actor_goal_x_target_joint": (high, target), "high_goal_x_option_joint": (aim, end)}
        for name, (x, y) in pairs.items():
            found[name] = np.bincount(x * size + y, minlength=size**2).reshape(size, size)
        return found | {"mean_mask": np.mean(goal != row), "high_mean_mask": np.mean(aim != end)}

    for variant, random_high in POLICY.items():
        for row in rows:
            out |= {f"ota/{variant}/idx{row}/{name}": x for name, x in one(row, random_high).items()}
    np.savez(path, **out)
    return path
