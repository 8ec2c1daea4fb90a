"""The goal-conditioned algorithms at published sizes (batch 1024, 3 x 512 units, 29 state and 8 action dimensions).

Beside each in the same run: the machine's own rate on the products that its update consists of, as XLA counts them.
Goals are drawn inside the program, from a million transitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

import algos
from benchmarks.contenders import interleaved, row
from benchmarks.updates import looped, product_loop, rows_of
from core import batches, dataset, loop
from core.algorithm import Algorithm
from core.types import Data, EnvSpec, Norm, Start

SPEC = EnvSpec("benchmark", (29,), 8, (29,))
ROUNDS = 3
UPDATES = 8  # of a measurement
# CPU-seconds of an official update, on a loaded machine of another kind: for orientation
MRN = "qrl, MRN in place of IQE"
OFFICIAL = {"gcbc": 0.04, "gcivl": 0.27, "gciql": 0.33, "crl": 0.69, "qrl": 2.11, "hiql": 0.50, "ota": 0.84}


def work_of(algorithm: Algorithm, data: Data, norm: Norm) -> float:
    """Floating-point operations of one update, as XLA counts them: a few in a hundred are no products."""
    run = loop.begin(algorithm, Start(norm), (0,))
    cost = jax.jit(loop.epoch(algorithm, 1)).lower(run, data).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def cpu_seconds(program: Callable[[], float], updates: int) -> float:
    """Of both cores, for one update."""
    began = time.process_time()
    program()
    return (time.process_time() - began) / updates


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    transitions, updates = (100_000, 2) if quick else (1_000_000, UPDATES)
    rows = rows_of(transitions, SPEC)
    norm = dataset.identity_norm(29, 8)
    data = batches.data(rows, norm)
    programs, work = {"products": product_loop(512, 1024, 40)}, {}
    for name in (*OFFICIAL, MRN):
        module = algos.load(name.partition(",")[0])
        cfg = module.Config() if name != MRN else module.Config(quasimetric="mrn")
        algorithm = module.make(cfg, SPEC)
        programs[name], work[name] = looped(algorithm, data, 1, updates), work_of(algorithm, data, norm)
    seen, table = interleaved(programs, rounds), []
    machine = seen.median("products")
    table.append(row("products of 1024 x 512 by 512 x 512", machine, "GFLOP/s", "the machine"))
    for name, flops in work.items():
        spent, official = cpu_seconds(programs[name], updates), OFFICIAL.get(name)
        said = f"{spent:.3f} CPU-seconds each{f', official {official}' * bool(official)}; {flops / 1e9:.1f} GFLOP"
        table.append(row(name, seen.median(name), "updates/s", said))
        share = 100 * seen.ratio(name, "products", flops / 1e9)
        table.append(row(f"{name}, of the machine's products", share, "%", "median of rounds; asked: 50"))
    table.append(row("IQE beside MRN, time of an update of QRL", seen.ratio(MRN, "qrl"), "x", "median of rounds"))
    return table
