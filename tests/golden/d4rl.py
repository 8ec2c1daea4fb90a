"""`d4rl_flat_to_transitions*`: flat data to transitions and episodes.  `d4rl_ref_scores*`: constants of the scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs import datasets, scores
from envs.readers import d4rl
from tests.golden.case import Case, Uncheckable, compare

LIMITS = ("max_episode_steps", "limit", "horizon")  # names under which a file may say an episode's steps


def _limit(case: Case) -> int:
    """Steps of an episode for a file without timeouts: said, else the longest run of one true episode."""
    for key in (f"{prefix}{name}" for name in LIMITS for prefix in ("hp.", "raw.", "")):
        if case.has(key):
            return int(case.read(key))
    if case.has("raw.true_episode_id"):
        return int(np.unique(case.read("raw.true_episode_id"), return_counts=True)[1].max())
    raise Uncheckable(f"without 'raw.timeouts' the steps of an episode must be known, as 'hp.{LIMITS[0]}'")


def _readings(case: Case) -> list[tuple[Mapping[str, np.ndarray], int | None, str]]:
    """(flat data, steps of an episode, note): without timeouts, steps counted as D4RL's loops do, and from 0 on."""
    case.ignore("raw.true_episode_id", "raw.next_observations")  # D4RL takes the row below
    case.ignore(*(key for key in case.keys("raw.") if key.startswith(("raw.infos", "raw.metadata"))))
    raw = {key: case.read(f"raw.{key}") for key in d4rl.KEYS}
    if case.has("raw.timeouts"):
        return [({**raw, "timeouts": case.read("raw.timeouts")}, None, "")]
    limit = _limit(case)
    counted = {**raw, "timeouts": d4rl.counted(raw["terminals"].reshape(-1).astype(bool), limit)}
    return [(raw, limit, "steps counted as D4RL does"), (counted, None, "steps counted from 0 in each episode")]


def run_transitions(case: Case) -> None:
    readings = _readings(case)
    for group, on_end in (("d4rl_qlearning", False), ("d4rl_qlearning_terminate_on_end", True)):
        if case.has(f"{group}.rewards"):
            found = [(d4rl.qlearning(raw, on_end, limit), note) for raw, limit, note in readings]
            reward = case.read(f"{group}.rewards")
            ours, note = next((pair for pair in found if np.array_equal(pair[0]["rewards"], reward)), found[0])
            for key, values in ours.items():
                case.check(f"{group}.{key}", values, f"{group}.{key}", 0, 0, note)
    if case.has("d4rl_qlearning.rewards"):
        _check_read(case, readings[-1][0])
    if case.has("d4rl_sequence.lengths"):
        found = [(d4rl.sequence(raw, limit), note) for raw, limit, note in readings]
        lengths = case.read("d4rl_sequence.lengths").tolist()
        parts, note = next((pair for pair in found if _lengths(pair[0]) == lengths), found[0])
        state, reward = case.read("raw.observations"), case.read("raw.rewards").reshape(-1).astype(np.float64)
        returns = [reward[part].sum() for part in parts]  # theirs are sums in float32
        case.check("d4rl_sequence.lengths", _lengths(parts), "d4rl_sequence.lengths", 0, 0, note)
        case.check("d4rl_sequence.returns", returns, "d4rl_sequence.returns", 1e-5, 1e-5)
        case.check("d4rl_sequence.s0", np.stack([state[part.start] for part in parts]), "d4rl_sequence.s0", 1e-7, 0)


def _check_read(case: Case, raw: Mapping[str, np.ndarray]) -> None:
    """`datasets.read` of the data as a D4RL file, with timeouts, against `qlearning`; no target needs the successor of
    a row that ended the task, and it is another there.
    """
    scale = 2.0 ** np.ceil(np.log2(max(1, np.abs(raw["actions"]).max())))  # a power of two: exact
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "raw.npz", **{**raw, "actions": raw["actions"] / scale})
        dataset, _ = datasets.read(Path(folder) / "raw.npz")
    row, theirs = dataset.row, d4rl.qlearning(raw)
    ended = theirs["terminals"]
    ours = {
        "observations": dataset.state[row], "actions": dataset.action[row] * scale, "rewards": dataset.reward[row],
        "terminals": dataset.terminated[row], "next_observations": dataset.state[row + 1],
    }  # fmt: skip
    for key, values in ours.items():
        kept = ~ended if key == "next_observations" and len(row) == len(ended) else slice(None)
        case.rows.append(compare(f"datasets.read {key}", values[kept], theirs[key][kept], 0, 0))


def _lengths(parts: list[slice]) -> list[int]:
    return [part.stop - part.start for part in parts]


def run_scores(case: Case) -> None:
    for name in case.groups():
        ours = scores.reference(name)
        case.check(name, [ours.low, ours.high], name, 0, 0)
        low, high = ours.low, ours.high
        score = scores.normalised(name, np.array([low, high, (low + high) / 2]))
        if not np.allclose(score, [0, 100, 50], rtol=0, atol=1e-9):
            raise Uncheckable(f"{name}: its own constants and their mean score {score}, not 0, 100, 50")
