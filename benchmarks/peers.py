"""What others do with the same work, each in a process of its own: `python peers.py CONTENDER '{"argument": 1}'`.

The program imports nothing of ours, so that it runs in the peers' environment too.  It builds the contender, writes a
line when it is ready, and then, for each line that it reads, measures once and writes the result as JSON; it ends
with its input.  `benchmarks.contenders` is the other side.

Rates are per second; PyTorch's fine-tuning is given in seconds of a gradient step and microseconds of a call.  A step
that only resets an environment, as Gymnasium's and EnvPool's default has it after each end of an episode, is no
transition and is not counted.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
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
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


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


# Training.


def d3rlpy(transitions: int, states: int, actions: int, updates: int, threads: int) -> Measure:
    """TD3+BC by d3rlpy, batch 256, its sampling included and its logging left out: updates per second."""
    import d3rlpy
    import torch

    torch.set_num_threads(threads)
    rng, length = np.random.default_rng(0), 1000
    rows = transitions // length * length
    timeouts = np.zeros(rows, bool)
    timeouts[length - 1 :: length] = True
    data = d3rlpy.dataset.MDPDataset(
        rng.standard_normal((rows, states), np.float32),
        rng.uniform(-1, 1, (rows, actions)).astype(np.float32),
        rng.standard_normal(rows, np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=timeouts,
    )
    algo = d3rlpy.algos.TD3PlusBCConfig(batch_size=256).create(device="cpu:0")  # 2 x 256 units are its default
    algo.build_with_dataset(data)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(updates):
            algo.update(data.sample_transition_batch(256))
        return updates / (time.perf_counter() - began)

    measure()
    return measure


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


# Fine-tuning of denoising policies in PyTorch, eager, with the losses of ReinFlow and of DPPO.
# Axes: b items, B observations, N chunks, J items of a chunk, K steps of a chain, D numbers of a chunk, E time's code.


class Torch:
    """A policy and its critic with the weights, options and rollout that `benchmarks.chains.export` wrote."""

    def __init__(self, path: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        with np.load(path) as file:
            arrays = dict(file)
        self.options = json.loads(str(arrays.pop("options")))
        parts = ("time", "body", "noise", "critic")
        self.time, self.body, self.noise, self.critic = (self._linears(arrays, part) for part in parts)
        self.data = {name: torch.from_numpy(x) for name, x in arrays.items() if "/" not in name}
        half = self.time[0].in_features // 2
        self._waves = torch.exp(torch.arange(half) * (-np.log(10000.0) / (half - 1)))
        actor = [*self.time.parameters(), *self.body.parameters(), *self.noise.parameters()]
        self._actor, self._critic = (
            torch.optim.AdamW(
                params, self.options[f"{name}_lr"], weight_decay=self.options[f"{name}_decay"], fused=True
            )
            for name, params in (("actor", actor), ("critic", self.critic.parameters()))
        )

    def _linears(self, arrays: dict[str, np.ndarray], part: str):
        torch, layers = self.torch, self.torch.nn.ModuleList()
        while (name := f"{part}/{len(layers)}") + "/kernel" in arrays:
            kernel, bias = (torch.from_numpy(arrays[f"{name}/{kind}"]) for kind in ("kernel", "bias"))
            layers.append(torch.nn.Linear(*kernel.shape))
            layers[-1].weight.data, layers[-1].bias.data = kernel.T.contiguous(), bias
        return layers

    def code(self, net, t):
        """Times [...] -> [..., E]."""
        angle = t[..., None] * self._waves
        hidden = net[0](self.torch.cat([angle.sin(), angle.cos()], -1))
        return net[1](self.torch.nn.functional.mish(hidden))

    def log_density(self, x, mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - std.log() - HALF_LOG_TWO_PI

    def noisy(self, mean, std):
        return mean + std * self.torch.randn_like(mean).clamp(-self.options["noise_clip"], self.options["noise_clip"])

    def step(self, items) -> tuple[Any, Any]:
        """A gradient step of critic and actor on the minibatch of items [b]: their losses before it."""
        torch, options, levels = self.torch, self.options, self.data["log_prob"].shape[1]
        row, level = items // levels, items % levels
        state, chain, advantage, ret = (self.data[name][row] for name in ("state", "chain", "advantage", "ret"))
        value = residual(self.critic, state, torch.nn.functional.mish)[:, 0]
        critic_loss = ((value - ret) ** 2).mean() / 2
        self._critic.zero_grad()
        (options["value_weight"] * critic_loss).backward()
        self._critic.step()

        log_prob, entropy = self.judge(state, chain, level)
        ratio, clip = (log_prob - self.data["log_prob"][row, level]).exp(), self.data["clip"][level]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8) * self.data["weight"][level]
        loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
        actor_loss = loss - options["entropy_weight"] * entropy
        self._actor.zero_grad()
        actor_loss.backward()
        self._actor.step()
        return critic_loss, actor_loss

    def update(self, size: int) -> Measure:
        """An epoch over the items in shuffled minibatches of `size`: seconds per gradient step."""
        torch, count = self.torch, self.data["log_prob"].numel()
        total = count * self.options["duplicates"]
        steps = total // size

        def measure() -> float:
            began = time.perf_counter()
            for items in (torch.randperm(total)[: steps * size] % count).split(size):
                self.step(items)
            return (time.perf_counter() - began) / steps

        self.step(torch.arange(size) % count)
        return measure

    def losses(self) -> Measure:
        """Another step on all items at once: the losses before it."""
        items = self.torch.arange(self.data["log_prob"].numel())
        return lambda: [x.item() for x in self.step(items)]

    def acting(self, size: int, calls: int) -> Measure:
        """The exploring policy with the record that it leaves, NumPy in and out: microseconds per call."""
        state = self.data["state"][:size].numpy()

        @self.torch.inference_mode()
        def measure() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                self.play(self.torch.from_numpy(state))[0].numpy()
            return 1e6 * (time.perf_counter() - began) / calls

        measure()
        return measure


def residual(layers, x, activation):
    """Dense, blocks y + L2(act(L1(act(y)))), Dense."""
    first, *inner, last = layers
    x = first(x)
    for one, two in zip(inner[::2], inner[1::2], strict=True):
        x = x + two(activation(one(activation(x))))
    return last(x)


class Reinflow(Torch):
    """A rectified flow with learned noise; a chain is one item."""

    def law(self, state, x, k):
        """(mean, std) [b, k, D] of steps k [k] from x [b, k, D], state [b, k, S]."""
        torch, limit, steps = self.torch, self.options["limit"], self.data["chain"].shape[1] - 1
        code = self.code(self.time, k / steps).expand(len(x), -1, -1)
        velocity = residual(self.body, torch.cat([x, code, state], -1), torch.relu)
        raw = torch.cat([code.detach(), state], -1)
        for layer in self.noise[:-1]:
            raw = layer(raw).tanh()
        low, high = np.log(self.options["std_min"]), np.log(self.options["std_max"])
        std = (low + (high - low) * (self.noise[-1](raw).tanh() + 1) / 2).exp()
        return (x + velocity / steps).clamp(-limit, limit), std

    def log_prob(self, chain, mean, std):
        """(l, entropy) [b]."""
        low, high = self.options["log_prob_min"], self.options["log_prob_max"]
        start = (-0.5 * chain[:, 0] ** 2 - HALF_LOG_TWO_PI).sum(-1)
        total = start + self.log_density(chain[:, 1:], mean, std).sum((1, 2))
        numbers = chain[0].numel()
        return (total / numbers).clamp(low, high), std.log().sum((1, 2)) / numbers + 0.5 + HALF_LOG_TWO_PI

    def judge(self, state, chain, level):
        """(l [b], entropy)."""
        k = self.torch.arange(chain.shape[1] - 1)
        log_prob, entropy = self.log_prob(chain, *self.law(state[:, None].expand(-1, len(k), -1), chain[:, :-1], k))
        return log_prob, entropy.mean()

    def play(self, state):
        """(action [B, D], chain [B, K + 1, D], l [B])."""
        _, states, numbers = self.data["chain"].shape
        chain, laws = [self.torch.randn(len(state), 1, numbers)], []
        for k in self.torch.arange(states - 1)[:, None]:
            laws.append(self.law(state[:, None], chain[-1], k))
            chain.append(self.noisy(*laws[-1]))
        chain[-1] = chain[-1].clamp(-1, 1)
        chain, mean, std = (self.torch.cat(parts, 1) for parts in (chain, *zip(*laws, strict=True)))
        return chain[:, -1], chain, self.log_prob(chain, mean, std)[0]


class Dppo(Torch):
    """A denoising diffusion whose last J steps are tuned; each is an item."""

    def __init__(self, path: str, threads: int):
        super().__init__(path, threads)
        beta, bar, before = self.data["schedule"]
        # by diffusion time: of what the clean chunk and the mean are made
        self._table = self.torch.stack([
            1 / bar.sqrt(), (1 - bar).sqrt() / bar.sqrt(), beta * before.sqrt() / (1 - bar),
            (1 - before) * (1 - beta).sqrt() / (1 - bar), (beta * (1 - before) / (1 - bar)).clamp_min(1e-20).sqrt(),
        ])  # fmt: skip
        self._frozen = copy.deepcopy((self.time, self.body))

    def law(self, nets, state, x, k):
        """(mean [b, D], std [b, 1]) of steps from x [b, D] at diffusion times k [b], or [1] for all."""
        (time, body), limit = nets, self.options["limit"]
        code = self.code(time, k).expand(len(x), -1)
        noise = residual(body, self.torch.cat([x, code, state], -1), self.torch.relu)
        of_x, of_noise, of_clean, also_x, std = self._table[:, k, None]
        return of_clean * (of_x * x - of_noise * noise).clamp(-limit, limit) + also_x * x, std

    def log_prob(self, after, mean, std):
        each = self.log_density(after, mean, std.clamp_min(self.options["log_prob_std"]))
        return each.clamp(self.options["log_prob_min"], self.options["log_prob_max"]).mean(-1)

    def judge(self, state, chain, level):
        """(l [b], entropy)."""
        rows, k = self.torch.arange(len(chain)), chain.shape[1] - 2 - level
        law = self.law((self.time, self.body), state, chain[rows, level], k)
        return self.log_prob(chain[rows, level + 1], *law), 0.0

    def play(self, state):
        """(action [B, D], chain [B, J + 1, D], l [B, J])."""
        torch, tuned = self.torch, self.data["log_prob"].shape[1]
        x, chain, log_probs = torch.randn(len(state), self.data["chain"].shape[2]), [], []
        for k in torch.arange(self._table.shape[1]).flip(0)[:, None]:
            before, frozen = x, k >= tuned
            mean, std = self.law(self._frozen if frozen else (self.time, self.body), state, x, k)
            x = self.noisy(mean, std.clamp_min(self.options["sampling_std"]))
            if not frozen:
                chain.append(before)
                log_probs.append(self.log_prob(x, mean, std))
        return x.clamp(-1, 1), torch.stack([*chain, x], 1), torch.stack(log_probs, 1)


def torch_reinflow(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """ReinFlow.  Args: what: update, losses or acting, with their `sizes`."""
    return getattr(Reinflow(path, threads), what)(**sizes)


def torch_dppo(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """DPPO, as `torch_reinflow`."""
    return getattr(Dppo(path, threads), what)(**sizes)


ALL = (policy, gymnasium, envpool, bare, inside, d3rlpy, sbx, torch_reinflow, torch_dppo)
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
