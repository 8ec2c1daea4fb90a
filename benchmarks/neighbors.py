"""Nearest rows of a dataset under PRDC's key, 256 queries at once: ours beside scipy's KD-tree, faiss and brute force.

Rows are states and actions of real simulators: each episode is played by a random linear feedback, sinusoids and
noise, drawn anew.  A query's state is a row's own; its action is the row's plus N(0, 0.1) (near, a trained policy) or
N(0, 0.3) (mid), or tanh of a standard normal (far, the start of training).  Everybody's rows are compared with the
KD-tree's by their distances in float64: exact is what lies at most 1e-6 of it farther.  With a million rows the state
lists are made for the queried rows only, and the time of all is extrapolated.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import HERE, PEERS, Peer, Seen, interleaved, row
from core import dataset, neighbors
from core.config import ConfigError
from core.types import Array, EnvSpec, Observation
from envs import datasets
from envs.players import Rollouts
from envs.registry import Options

ROUNDS = 3
QUERIES = 256  # in a batch
QUERIED = 50_000  # rows that have lists where there are a million
ROBOTS = {"hopper": 2.0, "walker2d": 2.0, "ant": 7.5}  # beta
REGIMES = ("near", "mid", "far")
OTHERS = {"KD-tree, 1 worker": {"kind": "scipy", "workers": 1}, "KD-tree, all": {"kind": "scipy", "workers": -1}}
FLAT = {"faiss flat": {"kind": "faiss", "workers": 0}}
BATCHES = {100_000: 16, 1_000_000: 4}  # a measurement; brute force takes two


class Restless:
    """A policy for each episode: tanh(W z + amplitude * sin(omega t + phase) + noise), z a squashed state."""

    def __init__(self, spec: EnvSpec):
        self._spec = spec

    def reset(self, seeds: Sequence[int]) -> None:
        self._draws = [np.random.default_rng(seed) for seed in seeds]
        (states,), actions = self._spec.obs_shape, self._spec.action_dim

        def each(draw: Callable[[np.random.Generator], Array]) -> Array:
            return np.stack([draw(rng) for rng in self._draws])

        self._feedback = each(lambda rng: rng.normal(size=(actions, states)) * rng.uniform(0, 1) / np.sqrt(states))
        self._wave = each(lambda rng: rng.uniform(0, 1, (3, actions))) * [[[1.0], [0.5], [2 * np.pi]]]
        self._noise = each(lambda rng: rng.uniform(0.05, 0.5, (1,)))

    def act(self, obs: Observation) -> Array:
        noise = np.stack([rng.standard_normal(self._spec.action_dim) for rng in self._draws])
        amplitude, omega, phase = self._wave.swapaxes(0, 1)
        pushed = np.einsum("bas,bs->ba", self._feedback, np.tanh(obs.state))
        pushed += amplitude * np.sin(omega * obs.step[:, None] + phase) + self._noise * noise
        return np.tanh(pushed).astype(np.float32)


class Rows(NamedTuple):
    state: np.ndarray  # f32[N, S] standardised
    action: np.ndarray  # f32[N, A]


def played(robot: str, transitions: int) -> Rows:
    """Transitions of a robot, kept in benchmarks/out; the ant's states are its first 27, without contact forces."""
    path = HERE / "out" / f"neighbors-{robot}-{transitions}.npz"
    if not path.exists():
        player = Rollouts(f"mujoco/{robot}-v5", [Restless], 32, Options(), 0.0, 0)
        parts: list[dict[str, np.ndarray]] = []
        while (begun := 32 * len(parts)) == 0 or sum(part["length"].sum() for part in parts) < transitions:
            parts.append(player.play(0, range(begun, begun + 32)))
        player.close()
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in datasets.ARRAYS}
        data = dataset.from_lengths(*(arrays[key] for key in datasets.ARRAYS[:5]))
        rows = data.row[:transitions]
        path.parent.mkdir(exist_ok=True)
        np.savez(path, state=data.state[rows][:, :27], action=data.action[rows])
    with np.load(path) as file:
        state, action = file["state"], file["action"]
    return Rows(((state - state.mean(0)) / (state.std(0) + 1e-3)).astype(np.float32), action)


def queries(rows: Rows, regime: str, among: np.ndarray, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows i32[R, 256], actions f32[R, 256, A])."""
    rng = np.random.default_rng(REGIMES.index(regime))
    row = among[rng.integers(len(among), size=(batches, QUERIES))]
    noise = rng.standard_normal((batches, QUERIES, rows.action.shape[1]))
    own = rows.action[row]
    action = np.tanh(noise) if regime == "far" else np.clip(own + {"near": 0.1, "mid": 0.3}[regime] * noise, -1, 1)
    return row.astype(np.int32), action.astype(np.float32)


def ours(index: neighbors.Index, asked: tuple[np.ndarray, np.ndarray], beta: float):
    """(a measurement in ms per batch, rows i32[R, 256]); batches follow each other in one program."""
    row, action = map(jnp.asarray, asked)

    @jax.jit
    def program(index, row, action):
        ask = lambda at: neighbors.nearest(index, *at, beta)  # noqa: E731
        return jax.lax.map(ask, (row, action)).row

    found = jax.block_until_ready(program(index, row, action))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(index, row, action))
        return 1e3 * (time.perf_counter() - began) / len(row)

    return measure, np.asarray(found)


def by_products(rows: Rows, asked: tuple[np.ndarray, np.ndarray], beta: float, block: int = 8_192):
    """What one would write first: blocks of |x|^2 - 2xy + |y|^2 at HIGHEST precision and a running minimum."""
    key = np.concatenate([beta * rows.state, rows.action], axis=1)
    key = jnp.asarray(np.pad(key, ((0, -len(key) % block), (0, 0)), mode="edge").reshape(-1, block, key.shape[1]))
    square = jnp.square(key).sum(-1)
    query = jnp.asarray(np.concatenate([beta * rows.state[asked[0]], asked[1]], axis=-1)[:2])

    @jax.jit
    def program(key, square, query):
        def batch(query):
            def look(best, part):
                number, there, own = part
                apart = own - 2 * jnp.matmul(query, there.T, precision="highest")
                nearer, row = apart.min(axis=1), number * block + apart.argmin(axis=1)
                return (jnp.minimum(best[0], nearer), jnp.where(nearer < best[0], row, best[1])), None

            start = jnp.full(len(query), jnp.inf), jnp.zeros(len(query), int)
            return jax.lax.scan(look, start, (jnp.arange(len(key)), key, square))[0][1]

        return jax.lax.map(batch, query)

    found = jax.block_until_ready(program(key, square, query))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(key, square, query))
        return 1e3 * (time.perf_counter() - began) / len(query)

    return measure, np.minimum(found, len(rows.state) - 1)  # the padding repeats the last row


def indexed(rows: Rows) -> tuple[neighbors.Index, np.ndarray, dict[str, float]]:
    """(index, rows that may be asked for, seconds of the lists of all and of the rest, and bytes)."""
    count, size = len(rows.state), neighbors.list_size(len(rows.state))
    rng = np.random.default_rng(0)
    among = np.arange(count) if count <= 100_000 else rng.choice(count, QUERIED, replace=False)
    began = time.perf_counter()
    index = neighbors.build(*rows, listed=1)
    rest = time.perf_counter() - began
    listed, apart = np.zeros((count, size), np.int32), np.zeros((count, size), np.float32)
    reach, state = np.zeros(count, np.float32), np.asarray(index.state)
    began = time.perf_counter()
    listed[among], apart[among], reach[among] = neighbors.lists(state, among, size)
    whole = (time.perf_counter() - began) * count / len(among)
    index = jax.tree.map(jnp.asarray, index._replace(listed=listed, apart=apart, reach=reach))
    return index, among, {"lists": whole, "rest": rest, "bytes": sum(x.nbytes for x in index), "K": size}


def compare(robot: str, transitions: int, rounds: int, with_peers: bool) -> list[dict[str, Any]]:
    """Rows of the table for one set."""
    rows, beta, table = played(robot, transitions), ROBOTS[robot], []
    index, among, cost = indexed(rows)
    name = f"{robot}, {transitions // 1000}k"
    scaled = "" if len(among) == transitions else f"; lists of {len(among):,} rows, extrapolated"
    table += [
        row(f"{name}: building", sum(cost[part] for part in ("lists", "rest")), "s", f"K {cost['K']:.0f}{scaled}"),
        row(f"{name}: memory", cost["bytes"] / 1e6, "MB", "states, actions, lists and leaves"),
    ]
    batches = BATCHES.get(transitions, 4)
    for regime in REGIMES:
        asked = queries(rows, regime, among, batches)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = Path(folder) / "keys.npz"
            key = np.concatenate([beta * rows.state, rows.action], axis=1)
            query = np.concatenate([beta * rows.state[asked[0]], asked[1]], axis=-1)
            np.savez(path, key=key, query=query)
            measured, found = {}, {}
            measured["ours"], found["ours"] = ours(index, asked, beta)
            measured["brute force"], found["brute force"] = by_products(rows, asked, beta)
            for other, how in {**OTHERS, **(FLAT if with_peers else {})}.items():
                python = PEERS if how["kind"] == "faiss" else None
                slow = {"batches": 2} if how["kind"] == "faiss" else {"batches": batches}
                peer = stack.enter_context(Peer("nearest", python, path=str(path), **how, **slow))
                measured[other] = lambda peer=peer: peer()
            seen = interleaved(measured, rounds)
            truth = np.load(path.with_name("scipy.npy"))
            if with_peers:
                found |= {of: np.load(path.with_name("faiss.npy")) for of in FLAT}
        exact = {of: _exact(key, query[: len(at)], at, truth[: len(at)]) for of, at in found.items()}
        table += _rows(f"{name}, {regime}", seen, exact)
    return table


def _exact(key: np.ndarray, query: np.ndarray, row: np.ndarray, truth: np.ndarray) -> float:
    """The share of rows that are, in float64, as near as the true ones."""
    own, best = (np.linalg.norm(query.astype(np.float64) - key[at], axis=-1) for at in (row, truth))
    return float((own <= (1 + 1e-6) * best).mean())


def _rows(name: str, seen: Seen, exact: dict[str, float]) -> list[dict[str, Any]]:
    said = {of: f", exact {share:.2%}" for of, share in exact.items()}
    others = "; ".join(f"{of} {seen.median(of):.3g}{said.get(of, '')}" for of in seen if of != "ours")
    best = min(OTHERS, key=seen.median)
    return [
        row(name, seen.median("ours"), "ms", f"exact {exact['ours']:.2%}; {others}"),
        row(f"{name}, beside the KD-tree", seen.ratio(best, "ours"), "x", f"median of rounds; {best}"),
    ]


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    if with_peers and not PEERS.exists():
        raise ConfigError(f"the peers' environment {PEERS.parents[1]} is not there: `make bench` builds it")
    sizes = (10_000,) if quick else (100_000, 1_000_000)
    return [line for size in sizes for robot in ROBOTS for line in compare(robot, size, rounds, with_peers)]
