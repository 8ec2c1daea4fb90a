"""Learning while acting: SAC on HalfCheetah-v5, and PPO on a jitted toy in one program.

SAC: batch 256, 2 x 256 units, one update per environment step, a replay of a million; environment steps per second of
the whole loop (act, step, store, sample, update), after everything has compiled.
PPO: 2 x 64 units, 4 epochs over 256 x 32 steps in minibatches of 2,048.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp

import envs
from algos import ppo, sac
from benchmarks.contenders import PEERS, Peer, interleaved, row
from core import loop, online
from core.dataset import identity_norm
from core.rollout import rollout
from core.types import Start

TASK, TOY = "HalfCheetah-v5", "toy/pointmass"
STEPS = 4_000  # of SAC's environments together, in a round
ITERATIONS = 40  # of PPO, in a round


def sac_loop(num_envs: int, steps: int, stack: ExitStack) -> Callable[[], float]:
    """Our SAC: environment steps per second."""
    env = envs.make(f"mujoco/{TASK.lower()}", num_envs)
    stack.callback(env.close)
    algorithm, norm = sac.make(sac.Config(), env.spec), identity_norm(*env.spec.obs_shape, env.spec.action_dim)
    plan = online.Plan(num_envs, updates=num_envs, warmup=1_000)
    run = online.begin(algorithm, Start(norm, num_envs), (0,), env, plan)
    return timed(online.hosted(algorithm, run, env, plan, norm, steps), run, warm=-(-2_000 // steps))


def timed(program: loop.Program, run: Any, warm: int) -> Callable[[], float]:
    """Steps per second of an epoch, after `warm` of them."""

    def measure() -> float:
        nonlocal run
        began = time.perf_counter()
        run = jax.block_until_ready(program.epoch(run)[0])
        return program.steps / (time.perf_counter() - began)

    for _ in range(warm):
        measure()
    return measure


def ppo_loop(iterations: int) -> dict[str, Callable[[], float]]:
    """Our PPO: environment steps per second, whole and of the updates alone."""
    plan = online.Plan(256, 32)
    batch = envs.make(TOY, plan.num_envs)
    algorithm = ppo.make(ppo.Config(batch_size=2_048, epochs=4), batch.spec)
    norm = identity_norm(*batch.spec.obs_shape, batch.spec.action_dim)
    run = online.begin(algorithm, Start(norm, plan.num_envs), (0,), batch, plan)
    collect = jax.jit(rollout(algorithm.act, algorithm.init_carry, batch, plan.length))
    state, at = jax.tree.map(lambda x: x[0], (run.algo, run.rollout.at))
    _, made = collect(state, at, jax.random.key(0))

    @jax.jit
    def updates(state, made):
        def one(state, i):
            return algorithm.update(state, made, jax.random.fold_in(jax.random.key(0), i))[0], None

        return jax.lax.scan(one, state, jnp.arange(iterations))[0]

    def update_alone() -> float:
        began = time.perf_counter()
        jax.block_until_ready(updates(state, made))
        return iterations * plan.steps / (time.perf_counter() - began)

    update_alone()
    whole = online.compiled(algorithm, run, batch, plan, norm, iterations * plan.steps)
    return {"PPO, whole": timed(whole, run, warm=1), "PPO, updates alone": update_alone}


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    steps, iterations = (STEPS // 10, ITERATIONS // 10) if quick else (STEPS, ITERATIONS)
    sizes = {1: "1 environment", 8: "8 environments"}
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], float]] = {
            f"SAC, ours, {name}": sac_loop(num, steps, stack) for num, name in sizes.items()
        }
        if with_peers:
            for num, name in sizes.items():
                peer = Peer("sbx", PEERS, name=TASK, num_envs=num, steps=steps)
                contenders[f"SAC, SBX, {name}"] = stack.enter_context(peer)
        contenders |= ppo_loop(iterations)
        seen = interleaved(contenders, rounds)
    table = [row(name, seen.median(name), "environment steps/s") for name in seen]
    if with_peers:
        for name in sizes.values():
            value = seen.ratio(f"SAC, ours, {name}", f"SAC, SBX, {name}")
            table.append(row(f"SAC beside SBX, {name}", value, "x", "median of rounds"))
    share = 100 * seen.ratio("PPO, whole", "PPO, updates alone")
    return [*table, row("PPO, whole beside its updates alone", share, "%", f"{TOY}, jitted: one program")]
