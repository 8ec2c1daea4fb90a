"""TD3+BC at published sizes (batch 256, 2 x 256 units, 17 state and 6 action dimensions).

Beside it in the same run: the machine's own rate on the products that the update consists of, and what a user would
write first, a jitted update called once per step on batches that NumPy gathers.  Everything is interleaved and the
median of the rounds is given, because a shared machine's clock drifts.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algos import td3_bc
from benchmarks.contenders import CORES, PEERS, Peer, interleaved, row
from core import batches, dataset, loop
from core.algorithm import Algorithm
from core.rng import streams
from core.types import Data, Dataset, EnvSpec, Observation, Start, Transition
from envs import datasets

SPEC = EnvSpec("benchmark", (17,), 6)
CONFIG = td3_bc.Config()
TRANSITIONS = 100_000
PRODUCTS = 400  # in one program of the product loop
D3RLPY = {f"d3rlpy, torch threads: {count}": count for count in sorted({1, CORES})}  # more are not always faster


def flops_per_update(cfg: td3_bc.Config, spec: EnvSpec) -> float:
    """Multiply-adds, times two, of the matrix products that one update needs on average; nothing else is counted."""
    state, action = spec.obs_shape[0], spec.action_dim

    def layers(*sizes: int) -> list[int]:
        return [a * b for a, b in itertools.pairwise(sizes)]

    actor, critic = layers(state, *cfg.hidden, action), layers(state + action, *cfg.hidden, 1)
    target = sum(actor) + 2 * sum(critic)
    critics = 2 * (2 * sum(critic) + sum(critic[1:]))  # forward, weights, and inputs of all but the first layer
    through = sum(critic) + action * cfg.hidden[0] + sum(critic[1:])  # Q_1 forward, and back to the action
    policy = 2 * sum(actor) + sum(actor[1:])
    return 2 * cfg.batch_size * (target + critics + (through + policy) / cfg.actor_period)


def rows_of(transitions: int, spec: EnvSpec, length: int = 1000) -> Dataset:
    rng = np.random.default_rng(0)
    episodes = transitions // length
    rows = episodes * (length + 1)
    return dataset.from_lengths(
        rng.standard_normal((rows, *spec.obs_shape), np.float32),
        rng.uniform(-1, 1, (rows, spec.action_dim)).astype(np.float32),
        rng.standard_normal(rows, np.float32), np.zeros(rows, bool), np.full(episodes, length),
    )  # fmt: skip


def product_loop(size: int = 256, rows: int = 0, products: int = PRODUCTS):
    """A jitted loop of dependent float32 products, of `rows` x size (0: size x size) by size x size.

    Returns: a measurement in GFLOP/s.
    """

    @jax.jit
    def run(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, products)[0]

    x, w = jnp.ones((rows or size, size)), jnp.eye(size)
    jax.block_until_ready(run(x, w))

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(x, w))
        return products * 2 * x.size * size / (time.perf_counter() - began) / 1e9

    return measure


def looped(algorithm: Algorithm, data: Data, seeds: int, updates: int, warm: int = 1):
    """Our loop; returns updates/s summed over seeds when called.  Args: warm: measurements that are not given."""
    run = loop.begin(algorithm, Start(data.norm), range(seeds))
    program = loop.compiled(algorithm, run, data, updates).epoch

    def measure() -> float:
        nonlocal run
        began = time.perf_counter()
        run = jax.block_until_ready(program(run))[0]
        return seeds * updates / (time.perf_counter() - began)

    for _ in range(warm):
        measure()
    return measure


def scanned(seeds: int, updates: int):
    """TD3+BC by our loop."""
    data = rows_of(TRANSITIONS, SPEC)
    on_device = batches.data(data, dataset.norm(data, CONFIG.state_norm))
    return looped(td3_bc.make(CONFIG, SPEC), on_device, seeds, updates)


def per_step(updates: int):
    """A jitted update per step, its batch gathered by NumPy."""
    data = rows_of(TRANSITIONS, SPEC)
    norm = dataset.norm(data, CONFIG.state_norm)
    algorithm = td3_bc.make(CONFIG, SPEC)
    state = algorithm.init(jax.random.key(0), Start(norm))
    update = jax.jit(algorithm.update, donate_argnums=0)
    rng, key = np.random.default_rng(0), streams(jax.random.key(0), "update").update
    zeros = np.zeros(CONFIG.batch_size, np.float32)

    def gathered() -> Transition:
        row = data.row[rng.integers(0, len(data.row), CONFIG.batch_size)]
        goal, steps = zeros[:, None][:, :0], zeros.astype(np.int32)
        obs = Observation(data.state[row], goal, zeros, steps)
        next_obs = Observation(data.state[row + 1], goal, data.reward[row], steps)
        return Transition(obs, data.action[row], data.reward[row], next_obs, data.terminated[row], data.terminated[row])

    def measure() -> float:
        nonlocal state
        began = time.perf_counter()
        for step in range(updates):
            state, _ = update(state, gathered(), jax.random.fold_in(key, step))
        jax.block_until_ready(state)
        return updates / (time.perf_counter() - began)

    measure()
    return measure


def help_seconds() -> float:
    """Wall time of `rheostat --help`, interpreter included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "experiments.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


RESUME = """
import sys, jax
counts = {"hit": 0, "miss": 0}
def listen(event, **_):
    for kind in counts:
        counts[kind] += event == f"/jax/compilation_cache/cache_{'hits' if kind == 'hit' else 'misses'}"
jax.monitoring.register_event_listener(listen)
from experiments.cli import main
assert main(sys.argv[1:]) == 0
print(counts["hit"], counts["miss"])
"""


def resume_compilations() -> tuple[int, int]:
    """Programs that a resumed run read from the compilation cache, and those that it had to compile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        data = rows_of(2_000, EnvSpec("toy/match", (2,), 2), 10)
        arrays = dict(zip(datasets.ARRAYS[:4], data[:4], strict=True))
        length = np.full(200, 10, np.int32)
        datasets.write(path, {**arrays, "length": length, "success": np.zeros(200, np.float32)}, {"task": "toy/match"})
        env = {**os.environ, "RHEOSTAT_CACHE": f"{folder}/cache"}
        sizes = ["--steps", "200", "--epoch", "100", "--eval.every", "100", "--save-every", "100"]
        where = ["--data.path", str(path), "--out", folder, "--name", "run"]

        def run(*words: str) -> tuple[int, int]:
            command = [sys.executable, "-c", RESUME, *words]
            out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
            hit, miss = out.splitlines()[-1].split()
            return int(hit), int(miss)

        run("train", "td3_bc", "toy/match", *where, *sizes)
        return run("resume", f"{folder}/td3_bc/toy/match/run", "--steps", "400")


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    updates = 100 if quick else 1000
    contenders = {
        "products": product_loop(),
        "one seed": scanned(1, updates),
        "four seeds": scanned(4, max(updates // 4, 1)),
        "per step": per_step(updates // 2),
    }
    with ExitStack() as stack:
        if with_peers:
            work = {"states": SPEC.obs_shape[0], "actions": SPEC.action_dim, "updates": max(updates // 5, 10)}
            for name, threads in D3RLPY.items():
                peer = Peer("d3rlpy", PEERS, transitions=TRANSITIONS, threads=threads, **work)
                contenders[name] = stack.enter_context(peer)
        seen = interleaved(contenders, rounds)
    median, ratio, rounded = seen.median, seen.ratio, "median of rounds"
    flops = flops_per_update(CONFIG, SPEC) / 1e9
    million = batches.data(rows_of(1_000_000, EnvSpec("hopper", (11,), 3)), dataset.identity_norm(11, 3))
    nbytes = batches.nbytes_per_transition(million)
    hits, misses = resume_compilations()
    table = [
        row("256 x 256 x 256 products in a jitted loop", median("products"), "GFLOP/s", "the machine's rate, same run"),
        row("TD3+BC, one seed", median("one seed"), "updates/s", f"{flops * 1e3:.0f} MFLOP each, sampling included"),
        row(
            "TD3+BC, one seed, of the product rate", 100 * ratio("one seed", "products", flops), "%", "median of rounds"
        ),
        row("TD3+BC, four vmapped seeds", median("four seeds"), "seed-updates/s"),
        row("TD3+BC, four seeds, of the product rate", 100 * ratio("four seeds", "products", flops), "%"),
        row("TD3+BC, jitted per step, NumPy sampling", median("per step"), "updates/s", "what one would write first"),
        row("scanned beside per step", ratio("one seed", "per step"), "x", rounded),
    ]
    if with_peers:
        table += [row(f"TD3+BC, {name}", median(name), "updates/s", "sampling included, no logging") for name in D3RLPY]
        best = seen.best(list(D3RLPY))
        table.append(row("one seed beside d3rlpy", ratio("one seed", best), "x", f"{rounded}; {best}"))
    return [
        *table,
        row("1M Hopper transitions on the device", nbytes, "bytes each", "with sampler"),
        row("rheostat --help", np.median([help_seconds() for _ in range(rounds)]), "s", "interpreter included"),
        row("programs that resuming compiles", misses, "", f"{hits} read from the cache"),
    ]
