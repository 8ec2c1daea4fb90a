"""What others do with the same work, each in a process of its own: `python peers.py CONTENDER '{"argument": 1}'`.

The program imports nothing of ours but `peers_torch` beside it, so that it runs in the peers' environment too.  It
builds the contender, writes a line when it is ready, and then, for each line that it reads, measures once and writes
the result as JSON; it ends with its input.  `benchmarks.contenders` is the other side.

Rates are per second; PyTorch's fine-tuning is given in seconds of a gradient step and microseconds of a call.  A step
that only resets an environment, as Gymnasium's and EnvPool's default has it after each end of an episode, is no
transition and is not counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np

Measure = Callable[[], Any]
WIDTH = 256  # units in both layers of every network here
SIGMA = 0.5  # of the policy's noise, in units of the action box


# The policy that everybody runs: 2 x 256 units, one jitted call per batch of observations.


def weights(states: int, actions: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Layers of a policy that was not trained."""
    rng = np.random.default_rng(0)
    sizes = [states, WIDTH, WIDTH, actions]
    return [
        ((rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32), np.zeros(b, np.float32))
        for a, b in itertools.pairwise(sizes)
    ]


def action(layers, state, key):
    """Actions f32[B, A] in [-1, 1] of states [B, S]."""
    import jax
    import jax.numpy as jnp

    x = state
    for w, b in layers[:-1]:
        x = jax.nn.relu(x @ w + b)
    mean = jnp.tanh(x @ layers[-1][0] + layers[-1][1])
    return jnp.clip(mean + SIGMA * jax.random.normal(key, mean.shape), -1, 1)


class Policy:
    """`action` on the host, a fresh key for each call."""

    def __init__(self, states: int, actions: int):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)  # as core.runtime has it for what only acts
        self._layers = jax.device_put(weights(states, actions))
        self._key, self._calls = jax.random.key(0), 0
        self._act = jax.jit(lambda layers, state, key, t: action(layers, state, jax.random.fold_in(key, t)))

    def __call__(self, state: np.ndarray) -> np.ndarray:
        self._calls += 1
        return np.asarray(self._act(self._layers, np.asarray(state, np.float32), self._key, self._calls))


def policy(states: int, actions: int, num_envs: int, steps: int) -> Measure:
    """The policy alone: actions per second."""
    act, state = Policy(states, actions), np.zeros((num_envs, states))
    act(state)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            act(state)
        return num_envs * steps / (time.perf_counter() - began)

    return measure


# Simulators.


def library(name: str) -> Callable[[], Any]:
    """A library's own environment: `Meta-World/push-v3`, or an id of Gymnasium's or OGBench's."""
    import gymnasium

    if not name.startswith("Meta-World/"):
        if not name[0].isupper():
            import ogbench  # noqa: F401  registers its environments
        return lambda: gymnasium.make(name)

    import metaworld

    name = name.removeprefix("Meta-World/")
    benchmark = metaworld.MT1(name, seed=0)
    tasks = iter(benchmark.train_tasks)

    def make():
        env = benchmark.train_classes[name]()
        env.set_task(next(tasks))
        return gymnasium.wrappers.TimeLimit(env, env.max_path_length)

    return make


def gymnasium(name: str, kind: str, num_envs: int, steps: int) -> Measure:
    """Gymnasium's SyncVectorEnv or AsyncVectorEnv with the policy: transitions per second.  Args: kind: Sync, Async."""
    from gymnasium import vector

    # made before JAX starts its threads, which a fork would not survive
    env = getattr(vector, f"{kind}VectorEnv")([library(name)] * num_envs)
    act = Policy(env.single_observation_space.shape[0], env.single_action_space.shape[0])
    return _in_turn(env, act, num_envs, steps)


def envpool(name: str, num_envs: int, steps: int, threads: int, batch: int) -> Measure:
    """EnvPool with the policy: transitions per second.  Args: batch: less than num_envs for its asynchronous mode."""
    from types import ModuleType

    # the package registers all suites, for which it needs 700 MB of their assets; MuJoCo's needs none
    sys.modules["envpool.entry"] = ModuleType("envpool.entry")
    import envpool
    import envpool.mujoco.gym.registration

    env = envpool.make(
        name, env_type="gymnasium", num_envs=num_envs, batch_size=batch, num_threads=threads, seed=0
    )  # fmt: skip
    act = Policy(env.observation_space.shape[0], env.action_space.shape[0])
    if batch == num_envs:
        return _in_turn(env, act, num_envs, steps)
    over = np.zeros(num_envs, bool)
    env.async_reset()

    def measure() -> float:
        moved, began = 0, time.perf_counter()
        while moved < num_envs * steps:
            obs, _, terminated, truncated, info = env.recv()
            moved += batch - over[info["env_id"]].sum()
            over[info["env_id"]] = terminated | truncated
            env.send(act(obs).astype(np.float64), info["env_id"])
        return moved / (time.perf_counter() - began)

    measure()
    return measure


def _in_turn(env: Any, act: Policy, num_envs: int, steps: int) -> Measure:
    """Act on all observations, step all environments."""
    obs, over = env.reset()[0], np.zeros(num_envs, bool)
    double = env.action_space.dtype == np.float64  # EnvPool's, which converts nothing

    def measure() -> float:
        nonlocal obs, over
        moved, began = 0, time.perf_counter()
        for _ in range(steps):
            chosen = act(obs)
            obs, _, terminated, truncated, _ = env.step(chosen.astype(np.float64) if double else chosen)
            moved += num_envs - over.sum()
            over = terminated | truncated
        return moved / (time.perf_counter() - began)

    measure()
    return measure


def bare(name: str, num_envs: int, steps: int, threads: int) -> Measure:
    """`mj_step` and nothing else on the states that the policy visits: transitions per second.

    Gymnasium's environments are run with the policy once.  Measured is the replay of their controls and resets, one
    MjData per environment, by calls from Python threads; it ends in the same states.
    """
    import gymnasium
    import mujoco

    envs = [gymnasium.make(name).unwrapped for _ in range(num_envs)]
    limit = gymnasium.spec(name).max_episode_steps
    act = Policy(envs[0].observation_space.shape[0], envs[0].action_space.shape[0])
    model, skip, ages = envs[0].model, envs[0].frame_skip, np.zeros(num_envs, int)
    obs = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    controls = np.zeros((num_envs, steps, model.nu))
    begins = [{0: (env.data.qpos.copy(), env.data.qvel.copy())} for env in envs]
    for t in range(steps):
        chosen = act(obs)
        controls[:, t] = chosen
        for i, env in enumerate(envs):
            obs[i], _, terminated, _, _ = env.step(chosen[i])
            ages[i] += 1
            if (terminated or ages[i] == limit) and t + 1 < steps:
                obs[i], ages[i] = env.reset()[0], 0
                begins[i][t + 1] = env.data.qpos.copy(), env.data.qvel.copy()
    data = [mujoco.MjData(model) for _ in envs]

    def replay(part: range) -> None:
        mj_step, views = mujoco.mj_step, [data[i].ctrl for i in part]
        for t in range(steps):
            for view, i in zip(views, part, strict=True):
                if t in begins[i]:
                    mujoco.mj_resetData(model, data[i])
                    data[i].qpos[:], data[i].qvel[:] = begins[i][t]
                    mujoco.mj_forward(model, data[i])
                view[:] = controls[i, t]
                mj_step(model, data[i], skip)

    parts = [range(k, num_envs, threads) for k in range(threads)]

    def measure() -> float:
        began = time.perf_counter()
        workers = [Thread(target=replay, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return num_envs * steps / (time.perf_counter() - began)

    measure()
    for env, one in zip(envs, data, strict=True):
        np.testing.assert_array_equal(env.data.qpos, one.qpos)
    return measure


def inside(name: str, steps: int) -> Measure:
    """Where a step of a library's own environment goes: seconds in `mj_step` and seconds in all, per step."""
    import mujoco

    spent, mj_step = 0.0, mujoco.mj_step

    def timed(*args, **kwargs):
        nonlocal spent
        began = time.perf_counter()
        mj_step(*args, **kwargs)
        spent += time.perf_counter() - began

    mujoco.mj_step = timed
    env = library(name)()
    env.reset(seed=0)
    env.action_space.seed(0)

    def measure() -> tuple[float, float]:
        nonlocal spent
        spent = whole = 0.0
        for _ in range(steps):
            chosen = env.action_space.sample()
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(chosen)
            whole += time.perf_counter() - began
            if terminated or truncated:
                before = spent
                env.reset()
                spent = before  # only steps are counted, not what a reset simulates
        return spent / steps, whole / steps

    measure()
    return measure


# Nearest rows.


def nearest(path: str, kind: str, workers: int, batches: int) -> Measure:
    """Queries of `path` by a KD-tree of scipy's or a flat index of faiss: ms per batch.

    The rows that are found lie beside the file, in KIND.npy.
    """
    with np.load(path) as file:
        key, query = file["key"], file["query"][:batches]
    if kind == "faiss":
        import faiss

        index = faiss.IndexFlatL2(key.shape[1])
        index.add(key)
        ask = lambda batch: index.search(batch, 1)[1][:, 0]  # noqa: E731
    else:
        from scipy.spatial import cKDTree

        tree = cKDTree(key)
        ask = lambda batch: tree.query(batch, workers=workers)[1]  # noqa: E731
    np.save(os.path.join(os.path.dirname(path), f"{kind}.npy"), np.stack([ask(batch) for batch in query]))

    def measure() -> float:
        began = time.perf_counter()
        for batch in query:
            ask(batch)
        return 1e3 * (time.perf_counter() - began) / len(query)

    return measure


# Training.


def d3rlpy(
    updates: int, threads: int, transitions: int = 0, states: int = 0, actions: int = 0, path: str = "",
    algorithm: str = "TD3PlusBC", hidden: tuple[int, ...] = (WIDTH, WIDTH), options: dict[str, Any] | None = None,
) -> Measure:  # fmt: skip
    """An algorithm of d3rlpy, batch 256, its sampling included and its logging left out: updates per second.

    Args: path: an npz with the arguments of an MDPDataset, else `transitions` of noise; algorithm: class in
        d3rlpy.algos; hidden: units of every network; options: of its config.
    """
    import d3rlpy
    import torch

    torch.set_num_threads(threads)
    if path:
        with np.load(path) as file:
            columns = dict(file)
    else:
        columns = noise(transitions, states, actions)
    data = d3rlpy.dataset.MDPDataset(**columns)
    config = getattr(d3rlpy.algos, f"{algorithm}Config")
    factory = d3rlpy.models.VectorEncoderFactory(list(hidden))
    encoders = {field.name: factory for field in dataclasses.fields(config) if field.name.endswith("encoder_factory")}
    algo = config(batch_size=256, **encoders, **(options or {})).create(device="cpu:0")
    algo.build_with_dataset(data)
    if algorithm == "PRDC":  # as its `fit` begins
        algo._nbsr.fit(np.concatenate([algo.config.beta * columns["observations"], columns["actions"]], axis=1))

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(updates):
            algo.update(data.sample_transition_batch(256))
        return updates / (time.perf_counter() - began)

    measure()
    return measure


def noise(transitions: int, states: int, actions: int, length: int = 1000) -> dict[str, np.ndarray]:
    """Whole episodes of it, that the clock ended."""
    rng, rows = np.random.default_rng(0), transitions // length * length
    return {
        "observations": rng.standard_normal((rows, states), np.float32),
        "actions": rng.uniform(-1, 1, (rows, actions)).astype(np.float32),
        "rewards": rng.standard_normal(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(1, rows + 1) % length == 0,
    }


def sbx(name: str, num_envs: int, steps: int) -> Measure:
    """SAC by SBX, batch 256, one update per environment step, a replay of a million: environment steps per second."""
    from sbx import SAC
    from stable_baselines3.common.env_util import make_vec_env

    warm = 2_000
    model = SAC(
        "MlpPolicy", make_vec_env(name, num_envs), batch_size=256, buffer_size=1_000_000, learning_starts=warm // 2,
        train_freq=1, gradient_steps=-1, policy_kwargs={"net_arch": [WIDTH, WIDTH]}, seed=0,
    )  # fmt: skip
    model.learn(warm)  # compiles

    def measure() -> float:
        before, began = model.num_timesteps, time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        return (model.num_timesteps - before) / (time.perf_counter() - began)

    return measure


def torch_reinflow(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """ReinFlow in PyTorch.  Args: what: update, losses or acting, with their `sizes`."""
    import peers_torch

    return getattr(peers_torch.Reinflow(path, threads), what)(**sizes)


def torch_dppo(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """DPPO, as `torch_reinflow`."""
    import peers_torch

    return getattr(peers_torch.Dppo(path, threads), what)(**sizes)


ALL = (policy, gymnasium, envpool, bare, inside, d3rlpy, sbx, nearest, torch_reinflow, torch_dppo)
CONTENDERS = {f.__name__: f for f in ALL}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    measure = CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


if __name__ == "__main__":
    main()
