"""Simulators on the host with a policy in the loop: ours beside the simulator alone and beside other vectors of them.

All run the same jitted policy, 2 x 256 units, one call per batch of observations, and as many transitions in a round;
`peers.py` says how each is counted.  Ours is `core.rollout.host_rollout`, records of the transitions included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import envs
from benchmarks import peers
from benchmarks.contenders import CORES, PEERS, Peer, at_once, interleaved, row
from core.rollout import RolloutState, host_rollout
from core.types import ActOut
from envs.registry import Options

LOCOMOTION = {"mujoco/hopper-v5": "Hopper-v5", "mujoco/halfcheetah-v5": "HalfCheetah-v5"}
SLOW = {  # ours -> the library's name and transitions per environment and round
    "metaworld/push": ("Meta-World/push-v3", 250),
    "metaworld/reach": ("Meta-World/reach-v3", 250),
    "ogbench/antmaze-medium": ("antmaze-medium-v0", 150),
    "ogbench/cube-single": ("cube-single-v0", 50),
}
ENVS = 64  # locomotion
FEW = 16  # the others, and what suits Gymnasium's vectors best
ROUNDED = "median of rounds"
STEPS = 400  # transitions per environment and round, of 64


def ours(task: str, num_envs: int, steps: int, options: Options, stack: ExitStack) -> Callable[[], float]:
    """Our vector with the policy: transitions per second."""
    env = envs.make(task, num_envs, options)
    stack.callback(env.close)
    width = env.spec.obs_shape[0]
    layers, key = jax.device_put(peers.weights(width, env.spec.action_dim)), jax.random.key(0)

    def act(layers, obs, carry, key):
        return ActOut(peers.action(layers, obs.state, key), carry)

    collect = host_rollout(act, lambda num_envs: (), env, steps)
    roll = RolloutState((), env.reset(0), ())

    def measure() -> float:
        nonlocal roll, key
        key, now = jax.random.split(key)
        began = time.perf_counter()
        roll, _ = collect(layers, roll, now)
        return num_envs * steps / (time.perf_counter() - began)

    measure()
    return measure


def locomotion(task: str, rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """Rows of one of Gymnasium's tasks."""
    name, steps = LOCOMOTION[task], STEPS // 10 if quick else STEPS
    few = steps * ENVS // FEW
    with ExitStack() as stack:
        peer = partial(_peer, stack)
        contenders: dict[str, Callable[[], Any]] = {
            "bare, 1 thread": peer("bare", name=name, num_envs=ENVS, steps=steps, threads=1),
            "bare, all": peer("bare", name=name, num_envs=ENVS, steps=steps, threads=CORES),
            **{
                f"{kind}VectorEnv, {num}": peer("gymnasium", name=name, kind=kind, num_envs=num, steps=count)
                for kind in ("Sync", "Async")
                for num, count in ((FEW, few), (ENVS, steps))
            },
        }
        if with_peers:
            pool = partial(peer, "envpool", PEERS, name=name, num_envs=ENVS, steps=steps, threads=CORES)
            contenders["EnvPool, 64"] = pool(batch=ENVS)
            contenders["EnvPool, 64, asynchronous"] = pool(batch=ENVS // 2)
        made = partial(ours, task, ENVS, steps, stack=stack)
        contenders["ours, 1 thread"] = made(options=Options(threads=1))
        contenders["ours, all"] = made(options=Options(threads=CORES))
        env = envs.make(task)
        shape = {"states": env.spec.obs_shape[0], "actions": env.spec.action_dim}
        env.close()
        contenders["policy"] = peer("policy", **shape, num_envs=ENVS, steps=steps)
        seen = interleaved(contenders, rounds)
    notes = {
        "bare, 1 thread": "`mj_step` alone, from Python, same states and controls", "bare, all": f"{CORES} threads",
        "EnvPool, 64": "its own MuJoCo", "EnvPool, 64, asynchronous": "half of them at a time",
        "policy": "the jitted call alone", "ours, all": f"{CORES} threads; records of the transitions included",
    }  # fmt: skip
    units = dict.fromkeys(seen, "transitions/s") | {"policy": "actions/s"}
    table = [row(f"{task}: {name}", seen.median(name), units[name], notes.get(name, "")) for name in seen]
    rivals = [seen.best([name for name in seen if "VectorEnv" in name])]
    rivals += [name for name in seen if name.startswith("EnvPool")]
    return [
        *table,
        row(f"{task}: ours of bare, 1 thread", 100 * seen.ratio("ours, 1 thread", "bare, 1 thread"), "%", ROUNDED),
        row(f"{task}: ours of bare, all", 100 * seen.ratio("ours, all", "bare, all"), "%", ROUNDED),
        *(row(f"{task}: ours beside {rival}", seen.ratio("ours, all", rival), "x", ROUNDED) for rival in rivals),
    ]


def processes(task: str, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of a task that steps in Python: ours with as many processes as cores, beside the library's own."""
    name, steps = SLOW[task]
    steps = max(steps // 10, 5) if quick else steps
    with ExitStack() as stack:
        peer = partial(_peer, stack)
        sync = partial(peer, "gymnasium", name=name, kind="Sync", steps=steps)
        contenders = {
            "SyncVectorEnv": sync(num_envs=FEW),
            "independent": at_once([sync(num_envs=FEW // CORES or 1) for _ in range(CORES)]),
            "inside": peer("inside", name=name, steps=FEW * steps // 4),
            "ours": ours(task, FEW, steps, Options(workers=CORES - 1), stack),
        }
        seen = interleaved(contenders, rounds)
    physics, whole = 1e6 * np.median(seen["inside"], axis=0)
    where = f"{physics:.0f} of {whole:.0f} us, random actions; the rest is the library's Python"
    return [
        row(f"{task}: SyncVectorEnv, {FEW}", seen.median("SyncVectorEnv"), "transitions/s"),
        row(f"{task}: {CORES} of them at once", seen.median("independent"), "transitions/s", "the limit"),
        row(f"{task}: ours", seen.median("ours"), "transitions/s", f"{FEW} environments, {CORES} processes"),
        row(f"{task}: ours beside SyncVectorEnv", seen.ratio("ours", "SyncVectorEnv"), "x", ROUNDED),
        row(f"{task}: ours of the limit", 100 * seen.ratio("ours", "independent"), "%", "the rest is transport, waits"),
        row(f"{task}: a step inside `mj_step`", 100 * physics / whole, "%", where),
    ]


def _peer(stack: ExitStack, contender: str, python: Path | None = None, **arguments: Any) -> Peer:
    return stack.enter_context(Peer(contender, python, **arguments))


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    table = []
    for task in LOCOMOTION:
        table += locomotion(task, rounds, quick, with_peers)
    for task in SLOW:
        table += processes(task, rounds, quick)
    return table
