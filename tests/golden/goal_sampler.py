"""`goal_sampler_*`: how often each row is drawn as a goal, for some fixed rows, and stacks of frames."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from core import dataset, goals
from core.goals import Mixture
from core.types import Dataset
from tests.golden.case import Case, Row, Uncheckable

SIGMAS, SLACK = 5.0, 2e-5
BASE = {  # what holds where a file does not say otherwise
    "discount": 0.9, "value_p_curgoal": 0.2, "value_p_trajgoal": 0.5, "value_p_randomgoal": 0.3,
    "value_geom_sample": True, "actor_p_curgoal": 0.0, "actor_p_trajgoal": 1.0, "actor_p_randomgoal": 0.0,
    "actor_geom_sample": False, "subgoal_steps": 5, "abstraction_factor": 4,
}  # fmt: skip
DRAWS = 400_000  # likewise
# changes of the file's base: probabilities of (current, later, random) goals of values, and of policies
VALUE = {"crl": (0.0, 1.0, 0.0), "qrl": (0.0, 0.0, 1.0)}
POLICY = {"stitch": (0.0, 0.5, 0.5), "explore": (0.0, 0.0, 1.0)}


def mixture(said: dict, of: str, changed: tuple[float, ...] | None) -> Mixture:
    parts = changed or tuple(said[f"{of}_p_{kind}goal"] for kind in ("cur", "traj", "random"))
    return Mixture(*parts, geometric=said[f"{of}_geom_sample"])


def episodes(case: Case) -> Dataset:
    state, length = case.read("observations"), case.read("raw_lengths")
    rows = len(state)
    nothing = np.zeros(rows, np.float32)
    return dataset.from_lengths(state, nothing[:, None], nothing, np.zeros(rows, bool), length - 1)


def check_index(case: Case, data: Dataset) -> None:
    """Where episodes begin and end, as their compact format says it."""
    first, last = np.unique(data.first), np.unique(data.last)
    ends = np.sort(np.concatenate([last - 1, last]))
    flags = np.zeros((2, len(data.state)))
    flags[0, ends], flags[1, data.row] = 1, 1
    for name, ours in (
        ("terminals", flags[0]), ("valids", flags[1]), ("terminal_locs", ends),
        ("initial_locs", np.sort(np.concatenate([first, last]))),
    ):  # fmt: skip
        case.check(name, ours, name, 0, 0)


def frequencies(case: Case, key: str, ours: np.ndarray, draws: int) -> None:
    """Our rows' shares beside the file's counts, each bin within so many standard errors of a difference."""
    p = case.read(key) / draws
    share = np.zeros(p.size)
    np.add.at(share, np.asarray(ours).ravel(), 1 / draws)
    _within(case, key, share.reshape(p.shape), p, draws)


def _within(case: Case, key: str, share, p, draws: int) -> None:
    bound = np.atleast_1d(SIGMAS * np.sqrt(2 * p * (1 - p) / draws) + SLACK).ravel()
    error = np.atleast_1d(np.abs(share - p)).ravel()
    worst = np.argmax(error / bound)
    case.rows.append(Row(key, float(error[worst]), float(bound[worst]), bool((error <= bound).all())))


def share(case: Case, key: str, happened, draws: int) -> None:
    p = np.abs(case.read(key))
    _within(case, key, np.abs(np.asarray(happened, np.float64).mean()), p, draws)


def run(case: Case) -> None:
    said = {**BASE, **(json.loads(str(case.read("config_json"))) if case.has("config_json") else {})}
    draws = int(case.read("num_samples")) if case.has("num_samples") else DRAWS
    discount = said["discount"]
    data = jax.tree.map(jnp.asarray, episodes(case))
    case.ignore("fixed_idxs")  # the names of the histograms say it
    check_index(case, jax.tree.map(np.asarray, data))
    key, size = jax.random.key(0), len(data.state)
    groups = {tuple(key.split("/")[:3]) for key in case.keys("") if key.split("/")[0] in ("gc", "hgc", "ota")}
    for kind, variant, *where in sorted(groups):
        name = "/".join((kind, variant, *where))
        key, *keys = jax.random.split(key, 5)
        value = mixture(said, "value", VALUE.get(variant))
        policy = mixture(said, "actor", POLICY.get(variant))
        if variant == "random_idx_hist":
            frequencies(case, name, goals.random(data, keys[0], (draws,)), draws)
            continue
        if where == ["overall_success_rate"]:
            row = goals.random(data, keys[0], (draws,))
            share(case, name, row == goals.draw(data, row, keys[1], value, discount), draws)
            continue
        row = jnp.full(draws, int(where[0].removeprefix("idx")), jnp.int32)
        goal = goals.draw(data, row, keys[0], value, discount)
        found = {"value_goal": goal, "value_goals": goal}
        said_of = {"mean_mask": row != goal, "mean_reward": goals.reward(row == goal)}
        joint = {}
        if kind == "gc":
            found["actor_goal"] = goals.draw(data, row, keys[1], policy, discount)
        else:
            ahead = discount if policy.geometric else None
            sub = goals.subgoals(data, row, keys[1], said["subgoal_steps"], policy.random, ahead)
            found |= {"low_actor_goals": sub.low, "high_actor_goals": sub.goal, "high_actor_targets": sub.target}
            joint["high_actor_goal_x_target_joint"] = sub.goal * size + sub.target
        if kind == "ota":
            option = goals.option(data, row, keys[2], value, said["abstraction_factor"], discount)
            found |= {"high_value_goals": option.goal, "high_value_option_observations": option.end}
            said_of["high_mean_mask"] = option.end != option.goal
            said_of["high_mean_reward"] = goals.reward(option.end == option.goal)
            joint["high_goal_x_option_joint"] = option.goal * size + option.end
        for name, ours in found.items():
            _if_there(case, f"{kind}/{variant}/{where[0]}/{name}_hist", frequencies, ours, draws)
        for name, ours in joint.items():
            _if_there(case, f"{kind}/{variant}/{where[0]}/{name}", frequencies, ours, draws)
        for name, ours in said_of.items():
            _if_there(case, f"{kind}/{variant}/{where[0]}/{name}", share, ours, draws)
        if case.has(following := f"{kind}/{variant}/{where[0]}/next_observation"):
            t = goals.relabelled(data, row[:1], goal[:1])
            case.check(following, t.next_obs.state[0], following, 0, 0)
    check_stacks(case, data)


def _if_there(case: Case, key: str, compare, ours, draws: int) -> None:
    if case.has(key):
        compare(case, key, ours, draws)


def check_stacks(case: Case, data: Dataset) -> None:
    for prefix in {key.split("/")[0] for key in case.keys("framestack")}:
        length, row = int(prefix.removeprefix("framestack")), jnp.asarray(case.read(f"{prefix}/idxs"), jnp.int32)
        t = goals.relabelled(data, row, row, length, alone=True)
        if length < 2:
            raise Uncheckable(f"{prefix}: a stack of one frame")
        case.check(f"{prefix} observations", t.obs.state, f"{prefix}/observations", 0, 0)
        case.check(f"{prefix} next", t.next_obs.state, f"{prefix}/next_observations", 0, 0)
