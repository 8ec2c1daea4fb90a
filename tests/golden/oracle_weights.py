"""Cases of trajectory weighting on transitions with successors, by plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_iql(path: Path, seed: int = 0, episodes: int = 12, state_dim: int = 3, equal: bool = False) -> Path:
    """`traj_weights_iql_path` of random walks, of which the task ends about half, and something else the others.

    Args: equal: every reward is 0, so that all their scores are 0 / 0.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {
        key: [] for key in ("observations", "next_observations", "actions", "rewards", "terminals")
    }
    owner, state = [], rng.standard_normal(state_dim)
    for episode in range(episodes):
        length, ends = int(rng.integers(2, 9)), bool(rng.random() < 0.5)
        begun = state
        for t in range(length):
            terminal = ends and t == length - 1
            after = rng.standard_normal(state_dim)  # the first state of the next episode behind a terminal row
            rows["observations"].append(state)
            rows["next_observations"].append(after)
            rows["actions"].append(rng.choice([-1.0, 1.0, 0.3], 2))
            rows["rewards"].append(0.0 if equal else begun[0] + episode % 3 + 0.1 * rng.standard_normal())
            rows["terminals"].append(terminal)
            owner.append(episode)
            state = after
        state = state if ends else rng.standard_normal(state_dim)
    data = {key: np.array(x, bool if key == "terminals" else np.float32) for key, x in rows.items()}
    owner = np.array(owner)
    out = {f"in.{key}": values for key, values in data.items()}
    out["actions_clipped"] = np.clip(data["actions"], np.float32(-1 + 1e-5), np.float32(1 - 1e-5))
    out["dones_float"] = np.append(owner[1:] != owner[:-1], True).astype(np.float32)
    out["masks"] = 1 - data["terminals"].astype(np.float32)
    length = np.bincount(owner)
    first = np.cumsum(length) - length
    reward = data["rewards"]
    ret = np.array([reward[owner == i].sum() for i in range(episodes)])
    if not equal:
        out["rewards_normalized"] = reward * (1000 / (ret.max() - ret.min()))
    initial = data["observations"][first]
    for prefix, rewards in (("rawreward.", reward), ("normreward.", out.get("rewards_normalized"))):
        if rewards is None:
            continue
        ret = np.array([rewards[owner == i].sum() for i in range(episodes)])
        design = np.column_stack([np.ones(episodes), initial]).astype(np.float64)
        intercept, *slopes = np.linalg.solve(design.T @ design, design.T @ ret)
        value = initial @ np.array(slopes) + intercept
        said = {"traj_lengths": length, "traj_returns": ret, "traj_s0": initial, "v_s0": value, "v_coef": slopes,
                "v_intercept": intercept, "traj_id_per_transition": owner}  # fmt: skip
        for name, score in (("RW", ret), ("AW", ret - value)):
            for temperature in (0.05, 1.0):
                with np.errstate(invalid="ignore"):
                    weight = np.exp((score - score.min()) / np.ptp(score) / temperature)[owner]
                said[f"{name}_{temperature}.p_transition"] = weight / weight.sum()
                said[f"{name}_{temperature}.p_trajectory"] = np.bincount(owner, weight / weight.sum())
        order = sorted(range(episodes), key=lambda i: ret[i])  # of equal ones the later counts as better
        for share in (0.05, 0.2):
            kept = np.isin(owner, order[episodes - int(share * episodes) :])
            kept = kept if int(share * episodes) else kept[:0]
            said[f"Top_{share}.p_transition"] = kept / kept.sum() if kept.size else np.zeros(0)
        out |= {f"{prefix}{name}": values for name, values in said.items()}
    np.savez(path, **out)
    return path
