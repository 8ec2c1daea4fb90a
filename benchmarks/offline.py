"""Algorithms that learn from a dataset, one seed at published sizes, beside d3rlpy's; weights of transitions.

The data are Hopper's: a file that is given, or 100k transitions of random feedback policies played in the simulator.
d3rlpy gets the same rows, its states normalised already, and networks of the same hidden layers.  Rates include the
sampling.  What PRDC's search costs depends on how far the policy is from the data, so its update is compared with
TD3+BC's over a run from the first update on, both in turn, a chunk of updates at a time.
"""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from algos import cql, iql, prdc, rebrac, td3_bc
from benchmarks.contenders import CORES, HERE, PEERS, Peer, Seen, interleaved, row
from benchmarks.neighbors import Restless
from benchmarks.updates import D3RLPY, looped, rows_of
from core import batches, dataset, sampling, weights
from core.types import Data, Dataset, EnvSpec, Sampler, Start
from envs import collect, datasets

SPEC = EnvSpec("mujoco/hopper-v5", (11,), 3)
TRANSITIONS = 100_000
RUN, CHUNKS = 10_000, 20  # updates of PRDC and TD3+BC from the first on, and measurements that they are cut into
WEIGHTED, LENGTH = 10_000_000, 100  # transitions that get weights, in episodes of so many
DRAWS, BATCH = 20_000, 256  # draws in a program, transitions each
DRAWN = 1_000_000, 10_000_000  # from so many rows


class Contender(NamedTuple):
    """An algorithm, and d3rlpy's."""

    module: Any
    updates: int  # in a measurement
    peer: str = ""  # class in d3rlpy.algos
    options: dict[str, Any] | None = None  # of its config
    differs: str = "the same update"


ALGORITHMS = {
    "TD3+BC": Contender(td3_bc, 1_000, "TD3PlusBC"),
    "IQL": Contender(iql, 1_000, "IQL", differs="one Adam for Q and V; the policy's rate is constant"),
    "CQL": Contender(
        cql, 100, "CQL", {"n_action_samples": 10, "conservative_weight": 10.0, "alpha_learning_rate": 0.0},
        "targets take the policy's mode, ours a sample",
    ),
    "ReBRAC": Contender(rebrac, 100),
    "PRDC": Contender(prdc, 1_000, "PRDC", differs="nearest rows by scikit-learn, over all cores"),
}  # fmt: skip


def played(transitions: int) -> Path:
    """Whole episodes of Hopper with at least so many transitions, kept in benchmarks/out."""
    path = HERE / "out" / f"offline-hopper-{transitions}.npz"
    if not path.exists():
        recipe = collect.Recipe(SPEC.name, transitions=transitions)
        recipe, source = collect.policies(recipe, [Restless], [{"player": "random feedback"}])
        collect.collect(recipe, source, path, CORES, made={})
    return path


class Prepared(NamedTuple):
    """What an algorithm trains on."""

    data: Data
    seconds: float  # that its `prepare` took
    nbytes: int  # of what it made


def prepared(module: Any, data: Dataset) -> Prepared:
    """Put on the device; nothing that an earlier run has kept is used."""
    cfg = module.Config()
    algorithm, norm = module.make(cfg, SPEC), dataset.norm(data, cfg.state_norm, cfg.action_norm)
    if not algorithm.prepare:
        return Prepared(batches.data(data, norm), 0.0, 0)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, RHEOSTAT_CACHE=folder):
        began = time.perf_counter()
        extra = algorithm.prepare(data, Start(norm))
        seconds = time.perf_counter() - began
    return Prepared(batches.data(data, norm, extra=extra), seconds, sum(x.nbytes for x in jax.tree.leaves(extra)))


def export(data: Dataset, path: Path) -> None:
    """The transitions as d3rlpy's MDPDataset takes them, standardised."""
    rows, norm = data.row, dataset.norm(data, "standard")
    ends = rows + 1 == data.last[rows]
    np.savez(
        path, observations=norm.state(data.state[rows]), actions=data.action[rows], rewards=data.reward[rows],
        terminals=data.terminated[rows], timeouts=ends & ~data.terminated[rows],
    )  # fmt: skip


def algorithms(data: Dataset, index: Prepared, rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """Updates per second.  Args: index: `prepared` for PRDC."""
    contenders: dict[str, Callable[[], float]] = {}
    threads = dict(list(D3RLPY.items())[:1]) if quick else D3RLPY  # they start slowly
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "data.npz"
        export(data, path)
        for name, (module, count, theirs, options, _) in ALGORITHMS.items():
            cfg, count = module.Config(), count // 10 if quick else count
            on_device = index.data if name == "PRDC" else prepared(module, data).data
            contenders[name] = looped(module.make(cfg, SPEC), on_device, 1, count)
            if theirs and with_peers:
                work = {"path": str(path), "updates": max(count // 5, 2), "hidden": cfg.hidden, "options": options}
                for peer, number in threads.items():
                    made = Peer("d3rlpy", PEERS, algorithm=theirs, threads=number, **work)
                    contenders[f"{name}, {peer}"] = stack.enter_context(made)
        seen = interleaved(contenders, rounds)
    return [line for name in ALGORITHMS for line in compared(name, seen)]


def compared(name: str, seen: Seen) -> list[dict[str, Any]]:
    """An algorithm's rows: ours, d3rlpy's where it was measured, and how they compare."""
    cfg, theirs = ALGORITHMS[name].module.Config(), [key for key in seen if key.startswith(f"{name}, ")]
    sizes = f"batch {cfg.batch_size}, {len(cfg.hidden)} x {cfg.hidden[0]} units, sampling included"
    table = [row(name, seen.median(name), "updates/s", sizes)]
    table += [row(key, seen.median(key), "updates/s", ALGORITHMS[name].differs) for key in theirs]
    if theirs:
        best = seen.best(theirs)
        table.append(row(f"{name} beside d3rlpy", seen.ratio(name, best), "x", f"median of rounds; {best}"))
    return table


def search(index: Prepared, updates: int) -> list[dict[str, Any]]:
    """PRDC's update over TD3+BC's in a run of so many updates, and its index."""
    chunk = updates // CHUNKS
    seen = interleaved(
        {name: looped(ALGORITHMS[name].module.make(ALGORITHMS[name].module.Config(), SPEC), index.data, 1, chunk, 0)
         for name in ("PRDC", "TD3+BC")}, CHUNKS,
    )  # fmt: skip
    whole, first, last = over_run(seen)
    count, size = len(index.data.dataset.row), index.nbytes
    said = f"mean of {updates:,} updates from the first on; first chunk {first:.3g}, last {last:.3g}; asked: 1.5"
    return [
        row("PRDC's update over TD3+BC's", whole, "x", said),
        row("PRDC's index, building", index.seconds, "s", f"{count:,} transitions; once per dataset, then from disk"),
        row("PRDC's index", size, "bytes", f"{size / count:.0f} per transition"),
    ]


def over_run(seen: Seen) -> tuple[float, float, float]:
    """PRDC's time over TD3+BC's: of all chunks together, of the first and of the last."""
    mine, base = 1 / seen["PRDC"], 1 / seen["TD3+BC"]
    return float(mine.sum() / base.sum()), float(mine[0] / base[0]), float(mine[-1] / base[-1])


def table_of(scheme: str, data: Dataset) -> Sampler:
    """From rewards to the alias table, as a run makes it."""
    of = dataset.episodes(data)
    p = weights.probabilities(weights.parse(scheme), of.ret, of.length, data.state[of.first])
    return sampling.alias_table(np.repeat(p, of.length))


def weighting(transitions: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds and memory of weights."""
    data = rows_of(transitions, SPEC, LENGTH)

    def timed(scheme: str) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            table_of(scheme, data)
            return time.perf_counter() - began

        return measure

    schemes = {name: f"{name}:0.1" for name in ("rw", "aw")}
    seen = interleaved({name: timed(scheme) for name, scheme in schemes.items()}, rounds)
    size, table = f"{transitions:,} transitions", []
    for name, scheme in schemes.items():
        tracemalloc.start()
        try:
            table_of(scheme, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        table += [
            row(f"weights {scheme} of {size}", seen.median(name), "s", "with the alias table; asked: 10"),
            row(f"weights {scheme} of {size}, peak", peak / 1e6, "MB", "beside the data"),
        ]
    return table


def drawing(draw: Callable[..., jax.Array], draws: int, *args: Any) -> Callable[[], float]:
    """Microseconds of `draw(key, *args)` in a jitted loop."""

    @jax.jit
    def program(key, *args):
        def one(total, step):
            return total + draw(jax.random.fold_in(key, step), *args).sum(), None

        return jax.lax.scan(one, jnp.int32(0), jnp.arange(draws))[0]

    args = jax.device_put((jax.random.key(0), *args))
    jax.block_until_ready(program(*args))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        return 1e6 * (time.perf_counter() - began) / draws

    return measure


def draws(rows: tuple[int, ...], count: int, rounds: int) -> list[dict[str, Any]]:
    """Weighted draws beside uniform ones."""
    contenders, runs = {}, {}
    for size in rows:
        sampler = table_of("rw:0.1", rows_of(size, SPEC, LENGTH))
        runs[size] = len(sampler.keep)
        contenders[f"alias, {size}"] = drawing(lambda key, of: sampling.draw(of, key, (BATCH,)), count, sampler)
        contenders[f"randint, {size}"] = drawing(lambda key, n=size: jax.random.randint(key, (BATCH,), 0, n), count)
    seen, table = interleaved(contenders, rounds), []
    for size in rows:
        mine, base = f"alias, {size}", f"randint, {size}"
        said = f"{runs[size]:,} runs of equal weights"
        table += [
            row(f"weighted draw of {BATCH} from {size:,}", seen.median(mine), "us", said),
            row(f"uniform draw of {BATCH} from {size:,}", seen.median(base), "us", "jax.random.randint"),
            row(f"weighted over uniform, {size:,}", seen.ratio(mine, base), "x", "median of rounds; asked: 1.5"),
        ]
    return table


def measure(rounds: int, quick: bool, with_peers: bool, path: str = "") -> list[dict[str, Any]]:
    """All rows of the table.  Args: path: a dataset of Hopper, else it is played."""
    part = 10 if quick else 1
    data, _ = datasets.read(path or played(TRANSITIONS // part), SPEC)
    index = prepared(ALGORITHMS["PRDC"].module, data)
    return [
        *algorithms(data, index, rounds, quick, with_peers),
        *search(index, RUN // part),
        *weighting(WEIGHTED // part, rounds),
        *draws(tuple(size // part for size in DRAWN), DRAWS // part, rounds),
    ]
