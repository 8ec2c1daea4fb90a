"""What others do with the same work, each in a process of its own: `python peers.py CONTENDER '{"argument": 1}'`.

The program imports nothing of ours, so that it runs in the peers' environment too.  It builds the contender, writes a
line when it is ready, and then, for each line that it reads, measures once and writes the result as JSON; it ends
with its input.  `benchmarks.contenders` is the other side.

Rates are per second.  A step that only resets an environment, as Gymnasium's and EnvPool's default has it after each
end of an episode, is no transition and is not counted.
"""

from __future__ import annotations

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


# Fine-tuning of denoising policies in PyTorch, with the losses of ReinFlow and of DPPO.


class Torch:
    """A policy's and its critic's networks, and a rollout, as `benchmarks.chains` wrote them; eager, no compiler.

    Axes: b items, N chunks, J items of a chunk, K steps of a chain, D numbers of a chunk of actions.
    """

    def __init__(self, path: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        with np.load(path) as file:
            arrays = dict(file)
        self.options = json.loads(str(arrays.pop("options")))
        self.time, self.body, self.noise, self.critic = (
            self._linears(arrays, part) for part in ("time", "body", "noise", "critic")
        )
        self.data = {name: torch.from_numpy(x) for name, x in arrays.items() if "/" not in name}
        optimizer, o = torch.optim.AdamW, self.options
        actor = itertools.chain(*(net.parameters() for net in (self.time, self.body, self.noise)))
        self._actor = optimizer(actor, o["actor_lr"], weight_decay=o["actor_decay"], fused=True)
        self._critic = optimizer(
            self.critic.parameters(), o["critic_lr"], weight_decay=o["critic_decay"], fused=True
        )  # fmt: skip

    def _linears(self, arrays: dict[str, np.ndarray], part: str):
        torch, layers = self.torch, self.torch.nn.ModuleList()
        while f"{part}/{len(layers)}/kernel" in arrays:
            kernel, bias = (torch.from_numpy(arrays[f"{part}/{len(layers)}/{name}"]) for name in ("kernel", "bias"))
            layers.append(torch.nn.Linear(*kernel.shape))
            layers[-1].weight.data, layers[-1].bias.data = kernel.T.contiguous(), bias
        return layers

    def code(self, time):
        """The embedding [..., E] of times [...]."""
        torch, half = self.torch, self.time[0].in_features // 2
        angle = time[..., None] * torch.exp(torch.arange(half) * (-np.log(10000.0) / (half - 1)))
        return self.time[1](torch.nn.functional.mish(self.time[0](torch.cat([angle.sin(), angle.cos()], -1))))

    def log_density(self, x, mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * np.log(2 * np.pi)

    def items(self, rows):
        """What a minibatch reads of the rollout: (level [b], the rest by name)."""
        levels = self.data["log_prob"].shape[1]
        row, level = rows // levels, rows % levels
        found = {name: self.data[name][row] for name in ("state", "chain", "advantage", "ret")}
        return level, found | {"log_prob": self.data["log_prob"][row, level]}

    def step(self, rows) -> tuple[Any, Any]:
        """A gradient step of both on a minibatch of items [b]: the losses of critic and actor before it."""
        torch, o = self.torch, self.options
        level, item = self.items(rows)
        value = residual(self.critic, item["state"], torch.nn.functional.mish)[:, 0]
        critic_loss = ((value - item["ret"]) ** 2).mean() / 2
        self._critic.zero_grad()
        (o["value_weight"] * critic_loss).backward()
        self._critic.step()

        log_prob, entropy = self.judge(item["state"], item["chain"], level)
        advantage = item["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8) * self.data["weight"][level]
        ratio, clip = (log_prob - item["log_prob"]).exp(), self.data["clip"][level]
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
        actor_loss = loss - o["entropy_weight"] * entropy
        self._actor.zero_grad()
        actor_loss.backward()
        self._actor.step()
        return critic_loss, actor_loss

    def update(self, size: int) -> Measure:
        """One pass over the items in shuffled minibatches: seconds per gradient step."""
        torch, total = self.torch, self.data["log_prob"].numel()

        def measure() -> float:
            began = time.perf_counter()
            order = torch.randperm(total * self.options["duplicates"]) % total
            whole = len(order) // size
            for rows in order[: whole * size].split(size):
                self.step(rows)
            return (time.perf_counter() - began) / whole

        self.step(torch.arange(min(size, total)))
        return measure

    def losses(self) -> Measure:
        """Those of critic and actor before another step on all items at once."""
        rows = self.torch.arange(self.data["log_prob"].numel())
        return lambda: [x.item() for x in self.step(rows)]

    def acting(self, size: int, calls: int) -> Measure:
        """The exploring policy with the record that it leaves, NumPy in and out: microseconds per call."""
        states = self.data["state"][:size].numpy()

        def measure() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                self.play(self.torch.from_numpy(states))[0].numpy()
            return 1e6 * (time.perf_counter() - began) / calls

        with self.torch.inference_mode():
            measure()
        return self.torch.inference_mode()(measure)


def residual(layers, x, activation):
    """Dense, blocks y + L2(act(L1(act(y)))), Dense."""
    first, *inner, last = layers
    x = first(x)
    for one, two in zip(inner[::2], inner[1::2], strict=True):
        x = x + two(activation(one(activation(x))))
    return last(x)


class Reinflow(Torch):
    """A rectified flow of K steps with learned noise; a chain is one item."""

    def law(self, state, x, first: int = 0):
        """(means, codes of the times) of steps from the `first` on: x [b, k, D] -> [b, k, D]."""
        torch, steps, count = self.torch, self.data["chain"].shape[1] - 1, x.shape[1]
        code = self.code((first + torch.arange(count)) / steps).expand(len(x), -1, -1)
        velocity = residual(self.body, torch.cat([x, code, state], -1), torch.relu)
        return (x + velocity / steps).clamp(-self.options["limit"], self.options["limit"]), code

    def std(self, code, state):
        raw = self.torch.cat([code.detach(), state], -1)
        for layer in self.noise[:-1]:
            raw = layer(raw).tanh()
        low, high = np.log(self.options["std_min"]), np.log(self.options["std_max"])
        return (low + (high - low) * (self.noise[-1](raw).tanh() + 1) / 2).exp()

    def log_prob(self, chain, mean, std):
        """(l [b], entropy [b])"""
        start = self.log_density(chain[:, 0], 0.0, self.torch.ones(())).sum(-1)
        total = start + self.log_density(chain[:, 1:], mean, std).sum((1, 2))
        known = 0.5 + 0.5 * np.log(2 * np.pi)
        entropy = std.log().sum((1, 2)) + known * chain[0].numel()
        numbers = chain[0].numel()
        return (total / numbers).clamp(self.options["log_prob_min"], self.options["log_prob_max"]), entropy / numbers

    def judge(self, state, chain, level):
        before = chain[:, :-1]
        state = state[:, None].expand(-1, before.shape[1], -1)
        mean, code = self.law(state, before)
        log_prob, entropy = self.log_prob(chain, mean, self.std(code, state))
        return log_prob, entropy.mean()

    def play(self, state):
        """(action [b, D], chain [b, K + 1, D], l [b])."""
        torch, state = self.torch, state[:, None]
        _, last, numbers = self.data["chain"].shape
        states, means, stds = [torch.randn(len(state), 1, numbers)], [], []
        for k in range(last - 1):
            mean, code = self.law(state, states[-1], k)
            std = self.std(code, state)
            x = mean + std * torch.randn_like(mean).clamp(-self.options["noise_clip"], self.options["noise_clip"])
            states.append(x.clamp(-1, 1) if k == last - 2 else x)
            means.append(mean)
            stds.append(std)
        chain = torch.cat(states, 1)
        log_prob, _ = self.log_prob(chain, torch.cat(means, 1), torch.cat(stds, 1))
        return chain[:, -1].clamp(-1, 1), chain, log_prob


class Dppo(Torch):
    """A denoising diffusion of which the last J steps are tuned; each is an item."""

    def __init__(self, path: str, threads: int):
        super().__init__(path, threads)
        beta, bar, before = self.data["schedule"]
        # by diffusion time: the clean chunk of (state, prediction), and the mean of (clean chunk, state)
        self._clean = self.torch.stack([1 / bar.sqrt(), (1 - bar).sqrt() / bar.sqrt()])
        self._mean = self.torch.stack(
            [beta * before.sqrt() / (1 - bar), (1 - before) * (1 - beta).sqrt() / (1 - bar)]
        )  # fmt: skip
        self._std = (beta * (1 - before) / (1 - bar)).clamp_min(1e-20).sqrt()
        self._frozen = copy.deepcopy((self.time, self.body))

    def law(self, state, x, k, code, body):
        """(mean [b, D], std [b, 1]) of steps at diffusion times k [b] or []."""
        predicted = residual(body, self.torch.cat([x, code.expand(len(x), -1), state], -1), self.torch.relu)
        (of_x, of_predicted), (of_clean, also_x) = self._clean[:, k, None], self._mean[:, k, None]
        clean = (of_x * x - of_predicted * predicted).clamp(-self.options["limit"], self.options["limit"])
        return of_clean * clean + also_x * x, self._std[k, None]

    def log_prob(self, after, mean, std):
        each = self.log_density(after, mean, std.clamp_min(self.options["log_prob_std"]))
        return each.clamp(self.options["log_prob_min"], self.options["log_prob_max"]).mean(-1)

    def judge(self, state, chain, level):
        rows, k = self.torch.arange(len(chain)), chain.shape[1] - 2 - level
        mean, std = self.law(state, chain[rows, level], k, self.code(k), self.body)
        return self.log_prob(chain[rows, level + 1], mean, std), 0.0

    def play(self, state):
        """(action [b, D], chain [b, J + 1, D], l [b, J])."""
        torch, o, tuned = self.torch, self.options, self.data["log_prob"].shape[1]
        x, states, log_probs = torch.randn(len(state), self.data["chain"].shape[2]), [], []
        for k in reversed(range(len(self._std))):
            k = torch.tensor(k)
            if len(states) <= 1 and k == tuned - 1:
                states = [x]
            time, body = (self.time, self.body) if states else self._frozen
            mean, std = self.law(state, x, k, self.code(k), body)
            noise = torch.randn_like(mean).clamp(-o["noise_clip"], o["noise_clip"])
            x = mean + std.clamp_min(o["sampling_std"]) * noise
            if states:
                states.append(x)
                log_probs.append(self.log_prob(x, mean, std))
        return x.clamp(-1, 1), torch.stack(states, 1), torch.stack(log_probs, 1)


def torch_reinflow(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """ReinFlow.  Args: what: update, losses or acting, see `Torch`."""
    return getattr(Reinflow(path, threads), what)(**sizes)


def torch_dppo(path: str, what: str, threads: int, **sizes: int) -> Measure:
    """DPPO.  Args: what: update, losses or acting, see `Torch`."""
    return getattr(Dppo(path, threads), what)(**sizes)


CONTENDERS = {
    f.__name__: f for f in (policy, gymnasium, envpool, bare, inside, d3rlpy, sbx, torch_reinflow, torch_dppo)
}  # fmt: skip


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    measure = CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


if __name__ == "__main__":
    main()
