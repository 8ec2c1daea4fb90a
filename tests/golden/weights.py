"""`traj_weights_*`: trajectory weighting on the three ways in which its authors cut transitions into trajectories.

A file's names `RW_T`, `AW_T` and `Top_x` are our schemes rw:T, aw:T and top:x.  Besides the probabilities themselves,
those that our sampler's table draws with are compared.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from algos import iql
from core import dataset as ds
from core import sampling, weights
from core.config import ConfigError
from core.types import Dataset
from core.weights import Scheme
from envs import datasets
from envs.readers import d4rl
from tests.golden.case import Case, Row, Uncheckable, compare

RTOL = 1e-5  # theirs are float32
KINDS = {"RW": "rw", "AW": "aw", "Top": "top"}


def _schemes(case: Case, prefix: str, ending: str = "") -> Iterator[tuple[str, Scheme]]:
    """(name without its ending, scheme) of the arrays `PREFIX RW_0.1 ENDING`."""
    for key in case.keys(prefix):
        if match := re.fullmatch(rf"{re.escape(prefix)}((RW|AW|Top)_([\d.e-]+)){re.escape(ending)}", key):
            yield f"{prefix}{match[1]}", Scheme(KINDS[match[2]], float(match[3]))


def _check(case: Case, key: str, scheme: Scheme, ret: np.ndarray, count: np.ndarray, initial: np.ndarray) -> None:
    """Probabilities of the transitions, `count` of each trajectory, against the array `key`."""
    theirs = case.read(key)
    if not theirs.size:
        try:
            weights.probabilities(scheme, ret, count, initial)
        except ConfigError:
            case.rows.append(Row(key, 0, 0, True, "nothing is kept, which is refused"))
            return
        raise Uncheckable(f"{key}: it is empty, but {scheme} keeps some of {len(ret)} trajectories")
    if len(theirs) != count.sum():
        raise Uncheckable(f"{key}: {len(theirs)} transitions in the file, {count.sum()} here")
    note, first = "", np.minimum(np.cumsum(count) - count, count.sum() - 1)
    p = None
    if np.isnan(theirs).all() and not np.ptp(ret):
        note, theirs = "theirs is 0 / 0, ours uniform", np.full(count.sum(), 1 / count.sum())
    elif scheme.kind == "aw" and not weights.scores("aw", ret, initial).any():
        # their advantages are rounding errors: all there is to check is what they do with them
        note, score = "V meets every return; their scores", 1 + scheme.value * np.log(theirs[first] / theirs.max())
        p = weights.softmax(weights.unit(score, 1.0), count, scheme.value)
    elif scheme.kind == "top" and (kept := _other_ties(theirs[first] > 0, ret, scheme.value)) is not None:
        note, p = "another choice among equal returns", weights.shared(kept - 1, count)
    p = weights.probabilities(scheme, ret, count, initial) if p is None else p
    ours = np.repeat(p, count)
    drawn = sampling.probabilities(sampling.alias_table(ours))
    for name, values in ((key, ours), (f"sampler of {key}", drawn)):
        case.rows.append(compare(name, values, theirs, RTOL, 1e-12, note))
    total = key.removesuffix("transition") + "trajectory"
    if key.endswith(".p_transition") and case.has(total):
        whole = np.add.reduceat(theirs, first) if np.isnan(case.read(total)).all() else case.read(total)
        case.rows.append(compare(total, count * p, whole, RTOL, 1e-12, note))


def _other_ties(kept: np.ndarray, ret: np.ndarray, share: float) -> np.ndarray | None:
    """i64[E] 1 where a trajectory is kept, when that is as good a choice as ours, and another."""
    ours = weights.best(ret, share)
    same = kept.sum() == len(ours) and np.array_equal(np.sort(ret[kept]), np.sort(ret[ours]))
    return kept.astype(np.int64) if same and not kept[ours].all() else None


def run_given(case: Case) -> None:
    """Returns, lengths and initial states are given, of one set of trajectories or of several named ones."""
    for key in [key for key in case.keys("") if re.fullmatch(r"(.*\.)?returns", key)]:
        prefix = key.removesuffix("returns")
        ret, count, initial = (case.read(f"{prefix}{name}") for name in ("returns", "lengths", "s0"))
        for name, scheme in _schemes(case, prefix):
            _check(case, name, scheme, ret, count, initial)


def run_cql(case: Case) -> None:
    """Trajectories of the flat data with their last rows, an unfinished one left out; weights of the transitions."""
    raw = {key: case.read(f"raw.{key}") for key in (*d4rl.KEYS, "timeouts")}
    parts = d4rl.sequence(raw)
    raw = {key: values[: parts[-1].stop] for key, values in raw.items()}
    reward = raw["rewards"].reshape(-1)
    ret = np.array([reward[part].sum(dtype=np.float64) for part in parts])
    length = np.array([part.stop - part.start for part in parts])
    initial = raw["observations"][[part.start for part in parts]]
    kept, transitions = ~d4rl.open_ended(raw["timeouts"].reshape(-1).astype(bool)), d4rl.qlearning(raw)
    count = np.add.reduceat(kept, np.cumsum(length) - length, dtype=np.int64)
    for name in ("RW", "AW"):
        score = np.repeat(weights.scores(KINDS[name], ret, initial), length)
        case.check(f"{name}.score", score, f"{name}.flat_normalized_score", RTOL, 1e-6)
        case.check(f"{name}.score of transitions", score[kept], f"{name}.transition_score", RTOL, 1e-6)
        for key in ("observations", "rewards", "terminals"):
            case.check(f"{name}.q.{key}", transitions[key], f"{name}.q.{key}", 0, 0)
    for name, scheme in _schemes(case, "", ".p_transition"):
        _check(case, f"{name}.p_transition", scheme, ret, count, initial)
    for name, scheme in _schemes(case, "", ".n"):
        rows = np.concatenate([reward[parts[i]] for i in weights.best(ret, scheme.value)])
        case.check(f"{name}.n", len(rows), f"{name}.n", 0, 0)
        case.check(f"{name}.rewards", rows, f"{name}.rewards", 0, 0)


def run_iql(case: Case) -> None:
    """Trajectories as our reader finds them in transitions with successors, on rewards as they are and normalised."""
    raw = {key: case.read(f"in.{key}") for key in (*d4rl.KEYS, "next_observations")}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", **{**raw, "actions": np.clip(raw["actions"], -1, 1)})
        data, _ = datasets.read(Path(folder) / "in.npz")
    of, row = ds.episodes(data), data.row
    last = np.zeros(len(row))
    last[np.cumsum(of.length) - 1] = 1
    limit = iql.Config().action_limit
    found = {
        "actions_clipped": np.clip(data.action[row], -limit, limit), "dones_float": last,
        "masks": 1 - data.terminated[row],
    }  # fmt: skip
    _check_named(case, "", {name: (values, 0.0) for name, values in found.items()})
    for prefix in ("", "rawreward."):
        _check_iql(case, prefix, data)
    if case.has("rewards_normalized") or case.keys("normreward."):
        normalised = data._replace(reward=ds.training_reward(data.reward, of.ret, span=1000.0))
        for prefix in ("", "normreward."):
            _check_named(case, prefix, {"rewards_normalized": (normalised.reward[row], 0.0)})
        _check_iql(case, "normreward.", normalised)


def _check_named(case: Case, prefix: str, found: dict[str, tuple[np.ndarray, float]]) -> None:
    """Arrays of these names, each with its absolute tolerance, as far as the file has them."""
    for name, (values, atol) in found.items():
        if case.has(f"{prefix}{name}"):
            case.check(f"{prefix}{name}", values, f"{prefix}{name}", RTOL, atol)


def _check_iql(case: Case, prefix: str, data: Dataset) -> None:
    of = ds.episodes(data)
    initial = data.state[of.first]
    slopes, intercept = weights.linear_value(of.ret, initial)
    value = initial.astype(np.float64) @ slopes + intercept
    size = RTOL * np.abs(of.ret).max()  # of rounding errors in float32
    found = {
        "traj_lengths": (of.length, 0.0), "traj_returns": (of.ret, size), "traj_s0": (initial, 0.0),
        "v_s0": (value, size), "v_coef": (slopes, 10 * size), "v_intercept": (intercept, 10 * size),
        "traj_id_per_transition": (np.repeat(np.arange(len(of.length)), of.length), 0.0),
    }  # fmt: skip
    _check_named(case, prefix, found)
    for name, scheme in _schemes(case, prefix, ".p_transition"):
        _check(case, f"{name}.p_transition", scheme, of.ret, of.length, initial)
