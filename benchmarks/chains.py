"""Fine-tuning flow and diffusion policies on Hopper, in chunks of 4: what an iteration, a gradient step, a call cost.

Published sizes: an iteration is 500 chunks of 40 simulators, then 5 epochs of 200,000 items (ReinFlow visits each chunk
ten times, DPPO has ten tuned steps of each) in minibatches of 50,000, critic and actor each.  Networks are new, not
pre-trained.  Measured are an epoch of `update` on a made-up rollout of full size, its advantages alone, and 50 chunks
of a real rollout, of which an iteration is made:
    rollout = 500 / 50 of the chunks measured,   update = 5 (epoch - advantages) + advantages
PyTorch's iteration is made of our rollout with its policy's time in the place of ours, its gradient steps, our
advantages.
The `cpu` presets' iterations are measured whole.  Beside it in the same run the machine's own rate on float32 products,
and of others the same gradient steps and exploring policies in PyTorch.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import algos
import envs
from algos import chain_bc, chain_ppo
from benchmarks.contenders import CORES, PEERS, Peer, Seen, interleaved, row
from benchmarks.online import timed
from benchmarks.updates import product_loop
from core import critics, diffusion, online
from core.algorithm import Algorithm
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.dataset import identity_norm
from core.rollout import RolloutState, host_rollout
from core.types import Array, EnvSpec, Observation, PyTree, Start, Transition
from envs.registry import Options
from experiments.presets import preset

TASK, CHUNK = "mujoco/hopper-v5", 4
ROUNDS = 3  # unless said otherwise
SMALL = ("reinflow", "dppo", "gaussian_ppo")  # `cpu` presets
SHORTCUT = PolicyNet("shortcut", cond=(64, 16), combine="add")
R4, S4, R1, DPPO = "ReinFlow R, K=4", "ReinFlow S, K=4", "ReinFlow R, K=1", "DPPO, K=20, K'=10"
TORCH = {R4: "torch_reinflow", DPPO: "torch_dppo"}


class Sizes(NamedTuple):
    """How much is measured."""

    envs: int = 40
    chunks: int = 500  # of each simulator in an iteration
    part: int = 50  # of them measured
    batch: int = 50_000  # items of a minibatch
    calls: int = 200  # of a policy in a round


QUICK = Sizes(4, 50, 5, 500, 5)


class Tuning(NamedTuple):
    """An algorithm with a first state and a rollout to learn from."""

    cfg: chain_ppo.Config  # of a single epoch
    given: Policy
    actor: chain_ppo.Actor
    algorithm: Algorithm
    state: chain_ppo.State
    rollout: Transition  # [T, B]

    @property
    def rows(self) -> int:
        """How often the actor's networks are asked for an item."""
        return 1 if self.actor.levels > 1 else self.given.steps(self.cfg.denoising)

    @property
    def steps(self) -> int:
        """Gradient steps of an epoch."""
        return self.rollout.reward.size * self.actor.levels * self.cfg.duplicates // self.cfg.batch_size

    @property
    def flops(self) -> float:
        """Of a gradient step: see `flops`."""
        actor, critic = self.state.actor.params, self.state.critic.params
        return flops(actor, self.rows * self.cfg.batch_size) + flops(critic, self.cfg.batch_size)


def flops(params: PyTree, rows: int) -> float:
    """Multiply-adds, times two, of the products: forward with each weight once, backward twice; nothing else.

    Counted though not needed: the first layers' gradients to their inputs, and time's code anew for each row.
    """
    return 2 * (1 + 2) * rows * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)


def published() -> dict[str, tuple[str, chain_ppo.Config]]:
    """Contenders: algorithm and config."""
    flow = preset("reinflow", TASK).config
    return {
        R4: ("reinflow", flow), S4: ("reinflow", replace(flow, net=SHORTCUT)),
        R1: ("reinflow", replace(flow, denoising=Denoising(1))), DPPO: ("dppo", preset("dppo", TASK).config),
    }  # fmt: skip


def seen(rng: np.random.Generator, spec: EnvSpec, *lead: int) -> Observation:
    """Made-up observations, in NumPy."""
    state, zeros = rng.standard_normal((*lead, *spec.obs_shape), np.float32), np.zeros(lead, np.float32)
    return Observation(state, zeros[..., None][..., :0], zeros, zeros.astype(np.int32))


def tuning(algo: str, cfg: chain_ppo.Config, spec: EnvSpec, sizes: Sizes) -> Tuning:
    """With the chains that the first policy draws, and made-up states and rewards."""
    cfg, norm = replace(cfg, epochs=1, batch_size=sizes.batch), identity_norm(*spec.obs_shape, spec.action_dim)
    given, actor = algos.load(algo).actor(cfg, spec)
    algorithm, key = chain_ppo.make(cfg, spec, given, actor), jax.random.key(0)
    state = jax.jit(lambda key: algorithm.init(key, Start(norm, sizes.envs)))(key)
    rng, shape = np.random.default_rng(0), (sizes.chunks, sizes.envs)
    obs, after = (seen(rng, spec, sizes.chunks * sizes.envs) for _ in range(2))
    out = jax.jit(algorithm.act)(state, obs, (), key)
    reward, never = rng.standard_normal(len(obs.step), np.float32), np.zeros(len(obs.step), bool)
    after = after._replace(step=obs.step + max(spec.chunk, 1))
    t = Transition(obs, out.action, reward, after, never, never, out.extras, np.zeros_like(reward))
    return Tuning(
        cfg, given, actor, algorithm, state, jax.tree.map(lambda x: jnp.asarray(x).reshape(*shape, *x.shape[1:]), t)
    )


def advantages(made: Tuning, state: chain_ppo.State, t: Transition) -> tuple[Array, Array]:
    """(A, V) f32[T, B], as an update takes them."""
    return chain_ppo.advantages(state, t, critics.of_observations(made.cfg.critic, made.given), made.cfg)[1:]


def stopwatch(fn: Callable, *args: Any) -> Callable[[], float]:
    """Seconds of a jitted call."""
    program = jax.jit(fn).lower(*args).compile()

    def measure() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        return time.perf_counter() - began

    return measure


def playing(made: Tuning, sizes: Sizes, stack: ExitStack) -> Callable[[], float]:
    """Seconds of an iteration's rollout, from a part of it."""
    env = envs.make(TASK, sizes.envs, Options(chunk=CHUNK))
    stack.callback(env.close)
    collect = host_rollout(made.algorithm.act, made.algorithm.init_carry, env, sizes.part)
    roll, key = RolloutState((), env.reset(0), ()), jax.random.key(1)

    def measure() -> float:
        nonlocal roll, key
        key, now = jax.random.split(key)
        began = time.perf_counter()
        roll, _ = collect(made.state, roll, now)
        return (time.perf_counter() - began) * sizes.chunks / sizes.part

    measure()
    return measure


def called(act: Callable, state: PyTree, spec: EnvSpec, size: int, calls: int) -> Callable[[], float]:
    """Microseconds of a policy's jitted call on observations [size], NumPy in and out, as a rollout makes it."""
    obs, key = seen(np.random.default_rng(0), spec, size), jax.random.key(0)
    policy = jax.jit(lambda state, obs, key, t: act(state, obs, (), jax.random.fold_in(key, t)))

    def measure() -> float:
        began = time.perf_counter()
        for t in range(calls):
            np.asarray(policy(state, obs, key, t).action)
        return 1e6 * (time.perf_counter() - began) / calls

    measure()
    return measure


def families() -> dict[str, tuple[PolicyNet, Denoising]]:
    """Policies that are judged."""
    flows = {"reflow": PolicyNet(), "shortcut": SHORTCUT, "meanflow": PolicyNet("meanflow")}
    noisy = PolicyNet("diffusion")
    return {
        **{f"{name}, K={steps}": (net, Denoising(steps)) for name, net in flows.items() for steps in (1, 2, 4)},
        "diffusion, DDPM, K=20": (noisy, Denoising()),
        "diffusion, DDIM, 5 of 20": (noisy, Denoising(5, sampler="ddim")),
        "gaussian": (PolicyNet("gaussian"), Denoising()),
    }


def judging(spec: EnvSpec, sizes: Sizes) -> dict[str, Callable[[], float]]:
    """Microseconds of `act_eval`, by family and batch."""
    contenders, start = {}, Start(identity_norm(*spec.obs_shape, spec.action_dim))
    for name, (net, denoising) in families().items():
        algorithm = chain_bc.make(chain_bc.Config(net=net, denoising=denoising), spec)
        state = jax.jit(lambda key, algorithm=algorithm: algorithm.init(key, start))(jax.random.key(0))
        for size in (1, 64):
            measure = called(algorithm.act_eval, state, spec, size, sizes.calls)
            contenders[f"act_eval, {name}, batch {size}"] = measure
    return contenders


def whole(algo: str, quick: bool, stack: ExitStack) -> Callable[[], float]:
    """Seconds of an iteration of a `cpu` preset, as training runs it."""
    train = preset(algo, TASK, "cpu")
    chosen, cfg = train.online, train.config
    if quick:
        chosen, cfg = replace(chosen, length=13), replace(cfg, epochs=1)
    env = envs.make(TASK, chosen.envs, train.env)
    stack.callback(env.close)
    plan = online.Plan(chosen.envs, chosen.length, chunk=env.spec.chunk)
    algorithm, norm = algos.load(algo).make(cfg, env.spec), identity_norm(*env.spec.obs_shape, env.spec.action_dim)
    run = online.begin(algorithm, Start(norm, plan.num_envs), (0,), env, plan)
    rate = timed(online.hosted(algorithm, run, env, plan, norm, plan.steps), run, warm=1)
    return lambda: plan.steps / rate()


def export(made: Tuning, path: Path) -> None:
    """What `peers.Torch` reads: weights by part and layer, the rollout's chunks, and numbers by item or diffusion time.

    The policy's networks are plain: a rectified flow's or a diffusion's, without an encoder of the state.
    """
    cfg, state, t, levels = made.cfg, made.state, made.rollout, jnp.arange(made.actor.levels)
    actor = state.actor.params
    denoiser = actor.get("policy", actor)["denoiser"]["params"]
    parts = {
        "time": denoiser, "body": denoiser["ResidualMLP_0"], "critic": state.critic.params["value"]["params"],
        "noise": actor["noise"]["params"]["MLP_0"] if "noise" in actor else {},
    }  # fmt: skip
    advantage, value = advantages(made, state, t)
    chunks = {"state": t.obs.state, "chain": t.extras.chain, "log_prob": t.extras.log_prob}
    arrays = {name: x.reshape(t.reward.size, *x.shape[2:]) for name, x in chunks.items()}
    arrays |= {
        "chain": arrays["chain"].reshape(*arrays["chain"].shape[:2], -1),
        "advantage": advantage.ravel(), "ret": (advantage + value).ravel(),
        "clip": jnp.broadcast_to(made.actor.clip(levels), levels.shape),
        "weight": made.actor.shape_advantage(jnp.ones(levels.shape), levels),
        "schedule": np.stack(diffusion.cosine(cfg.net.levels)),
    }  # fmt: skip
    for part, layers in parts.items():
        for i in range(sum(name.startswith("Dense_") for name in layers)):
            arrays |= {f"{part}/{i}/{kind}": layers[f"Dense_{i}"][kind] for kind in ("kernel", "bias")}
    options = {name: x for name, x in vars(cfg).items() if isinstance(x, int | float)}
    options["limit"] = cfg.net.denoised_clip
    for name in ("actor", "critic"):
        high, low = getattr(cfg, f"{name}_lr"), getattr(cfg, f"{name}_lr_min")
        options[f"{name}_lr"] = float(chain_ppo.rate(high, low, cfg)(state.iteration))
    np.savez(path, options=json.dumps(options), **arrays)


def peers(made: dict[str, Tuning], sizes: Sizes, stack: ExitStack) -> dict[str, Callable[[], float]]:
    """PyTorch's gradient steps, on all cores, and exploring policies."""
    contenders = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, contender in TORCH.items():
            path = Path(folder) / f"{contender}.npz"
            export(made[name], path)
            given, calls = {"path": str(path)}, {"size": sizes.envs, "calls": sizes.calls}
            part = chain_ppo.at_once(made[name].cfg)
            for how, size in (("torch", 0), ("torch in parts", part)):
                step = Peer(contender, PEERS, what="update", threads=CORES, size=sizes.batch, part=size, **given)
                contenders[f"{name}: gradient step, {how}"] = stack.enter_context(step)
            for threads in sorted({1, CORES}):
                peer = Peer(contender, PEERS, what="acting", threads=threads, **given, **calls)
                contenders[f"{name}: acting, torch, threads: {threads}"] = stack.enter_context(peer)
    return contenders


def derive(found: Seen, name: str, made: Tuning, epochs: int) -> None:
    """Add what follows round by round: what an iteration of `epochs` is made of, and the share of the product rate."""
    step = (found[f"{name}: epoch"] - found["advantages"]) / made.steps
    best = found.best([loop for loop in found if loop.startswith("products")])
    found[f"{name}: gradient step"] = step
    found[f"{name}: update"] = epochs * made.steps * step + found["advantages"]
    found[f"{name}: iteration"] = found[f"{name}: rollout"] + found[f"{name}: update"]
    found[f"{name}: gradient step, of {best}"] = 100 * made.flops / 1e9 / step / found[best]


def tabled(found: Seen, what: str, unit: str, note: str = "") -> dict[str, Any]:
    """A line with the median of the rounds, and their range in the note."""
    spread = f"{found[what].min():.4g} to {found[what].max():.4g}"
    return row(what, found.median(what), unit, f"{spread}; {note}" if note else spread)


def ratio(found: Seen, what: str, of: str, over: str, note: str = "median of rounds") -> dict[str, Any]:
    return row(what, found.ratio(of, over), "x", note)


def beside_torch(found: Seen, name: str, made: Tuning, epochs: int, sizes: Sizes) -> list[dict[str, Any]]:
    """What PyTorch measured, the faster of its two gradient steps in an iteration, and ratios to ours."""
    acting, step, part = f"{name}: acting", f"{name}: gradient step", chain_ppo.at_once(made.cfg)
    policy = min((what for what in found if what.startswith(f"{acting}, torch")), key=found.median)
    learner = min((f"{step}, torch", f"{step}, torch in parts"), key=found.median)
    played = found[f"{name}: rollout"] + sizes.chunks * (found[policy] - found[acting]) / 1e6
    learned = epochs * made.steps * found[learner] + found["advantages"]
    found[f"{name}: iteration, torch"] = played + learned
    return [
        tabled(found, f"{step}, torch", "s", "eager, a minibatch at once"),
        tabled(found, f"{step}, torch in parts", "s", f"eager, {part} items at a time"),
        *(tabled(found, what, "us/call") for what in found if what.startswith(f"{acting}, torch")),
        tabled(found, f"{name}: iteration, torch", "s", "put together from the parts"),
        ratio(found, f"{step}, torch over ours", learner, step, "the faster of the two; median of rounds"),
        ratio(found, f"{acting}, torch over ours", policy, acting, f"median of rounds; {policy.rpartition(', ')[2]}"),
        ratio(found, f"{name}: iteration, torch over ours", f"{name}: iteration, torch", f"{name}: iteration"),
    ]


def table(found: Seen, made: dict[str, Tuning], epochs: int, sizes: Sizes) -> list[dict[str, Any]]:
    """All rows of what was measured and derived."""

    def every(start: str, unit: str, note: str = "") -> list[dict[str, Any]]:
        return [tabled(found, what, unit, note) for what in found if what.startswith(start)]

    rows = every("products", "GFLOP/s", "float32, a jitted loop")
    rows += every("advantages", "s", f"{sizes.chunks} x {sizes.envs} chunks: the critic twice, GAE")
    part = f"from {sizes.part} of {sizes.chunks} chunks of {sizes.envs} simulators; a policy that was not trained"
    for name, one in made.items():
        count = f"{epochs * one.steps} gradient steps and the advantages, from an epoch's {one.steps}"
        rows += [
            *every(f"{name}: rollout", "s", part),
            *every(f"{name}: update", "s", count),
            *every(f"{name}: iteration", "s", "both"),
            tabled(found, f"{name}: gradient step", "s", f"{sizes.batch} items, {one.flops / 1e9:.4g} GFLOP"),
            *every(f"{name}: gradient step, of", "%"),
            tabled(found, f"{name}: acting", "us/call", f"exploring, {sizes.envs} observations"),
        ]
    rows += every("cpu preset", "s", "a whole iteration")
    rows += every("act_eval", "us/call")
    rows += [
        ratio(found, "sampling, K=4 over K=20", f"{R4}: acting", f"{DPPO}: acting", "acting; median of rounds"),
        ratio(found, "iteration, K=1 over K=4", f"{R1}: iteration", f"{R4}: iteration"),
        ratio(found, "iteration, ReinFlow R over DPPO", f"{R4}: iteration", f"{DPPO}: iteration"),
        ratio(found, "iteration, ReinFlow S over DPPO", f"{S4}: iteration", f"{DPPO}: iteration"),
    ]
    for name in TORCH:
        if f"{name}: gradient step, torch" in found:
            rows += beside_torch(found, name, made[name], epochs, sizes)
    return rows


def measure(rounds: int, quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    sizes, chosen = QUICK if quick else Sizes(), published()
    epochs = chosen[R4][1].epochs
    with ExitStack() as stack:
        env = envs.make(TASK, 1, Options(chunk=CHUNK))
        env.close()
        spec, key = env.spec, jax.random.key(2)
        made = {name: tuning(algo, cfg, spec, sizes) for name, (algo, cfg) in chosen.items()}
        contenders: dict[str, Callable[[], float]] = {
            "products, 256 x 256": product_loop(256),
            "products, 512 x 512": product_loop(512, products=100),
            "products, 2000 rows x 512 x 512": product_loop(512, 2_000, products=50),
        }
        one = made[DPPO]
        contenders["advantages"] = stopwatch(lambda state, t: advantages(one, state, t), one.state, one.rollout)
        for name, one in made.items():
            contenders[f"{name}: rollout"] = playing(one, sizes, stack)
            contenders[f"{name}: epoch"] = stopwatch(one.algorithm.update, one.state, one.rollout, key)
            contenders[f"{name}: acting"] = called(one.algorithm.act, one.state, spec, sizes.envs, sizes.calls)
        contenders |= peers(made, sizes, stack) if with_peers else {}
        contenders |= {f"cpu preset, {algo}": whole(algo, quick, stack) for algo in SMALL}
        found = interleaved(contenders | judging(spec, sizes), rounds)
    for name, one in made.items():
        derive(found, name, one, epochs)
    return table(found, made, epochs, sizes)
