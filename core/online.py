"""The online loop: environments take some steps, the algorithm learns, and again.

An iteration is T steps of B environments, then one `update` on the whole rollout (on-policy), or some updates on
batches from the circular replay that the rollout went into (off-policy).  The clock, `RunState.step`, counts
environment steps, all B of them; a chunk of H actions counts as H.  With a jitted environment an epoch of iterations
is one program; a host environment is stepped by a Python loop between two jitted functions.  Both give the same numbers
for the same episodes.
An iteration that begins at step t draws from fold_in(key, t): the length of an epoch changes no draw.
Axes: S seeds, B environments of each, T steps of a rollout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core import loop, optim, replay
from core.algorithm import Act, Algorithm
from core.config import ConfigError
from core.env import HostEnv
from core.loop import Program
from core.rng import streams
from core.rollout import JaxBatch, RolloutState, host_rollout, over_seeds, rollout
from core.seeds import derive, slot_seeds
from core.types import (
    ActOut,
    Array,
    EnvSpec,
    Key,
    Metrics,
    Norm,
    Observation,
    PyTree,
    Replay,
    RunState,
    Start,
    TimeStep,
    Transition,
    blank_observation,
)


class Plan(NamedTuple):
    """What an iteration consists of."""

    num_envs: int = 1  # B, of each seed
    length: int = 1  # T, of each environment: actions, or chunks of them
    updates: int = 1  # off-policy: gradient updates
    warmup: int = 0  # off-policy: environment steps of uniformly random actions before the first update
    capacity: int = 1_000_000  # off-policy: transitions that the replay holds
    chunk: int = 1  # H, environment steps that an action stands for

    @property
    def steps(self) -> int:
        """Environment steps of an iteration."""
        return self.num_envs * self.length * self.chunk


class Tally(NamedTuple):
    """The episode under way in each environment."""

    ret: Array  # f32[B] return so far
    success: Array  # f32[B] by the task's rule


class Playing(NamedTuple):
    """`RunState.rollout` of the online loop."""

    at: RolloutState  # `env` holds the snapshot of a host environment that can give one
    tally: Tally


def check(algorithm: Algorithm, plan: Plan, spec: EnvSpec) -> None:
    """Raises: ConfigError for a plan that makes no sense with the algorithm."""
    if not algorithm.online:
        raise ConfigError("this algorithm learns from a dataset: it does not explore")
    if plan.chunk != max(spec.chunk, 1):
        raise ConfigError(f"{spec.name} takes chunks of {max(spec.chunk, 1)} actions, the plan says {plan.chunk}")
    if min(plan.num_envs, plan.length, plan.updates) < 1 or plan.warmup < 0:
        raise ConfigError(f"an iteration needs environments, steps and updates, and a warm-up of 0 or more: {plan}")
    if algorithm.on_policy and (plan.warmup or plan.updates > 1):
        raise ConfigError(f"on-policy: it learns once from each rollout, of its own actions; not with {plan}")
    if not algorithm.on_policy:
        replay.ring_steps(plan.num_envs, plan.length, plan.capacity)


def begin(algorithm: Algorithm, start: Start, seeds: Sequence[int], env: JaxBatch | HostEnv, plan: Plan) -> RunState:
    """The state before the first step.

    Args: env: B slots when jitted (vmapped over seeds), S * B on the host, which is reset here.
    """
    run, spec, shape = loop.begin(algorithm, start, seeds), env.spec, (len(seeds), plan.num_envs)
    slots = np.array([slot_seeds(seed, plan.num_envs) for seed in seeds], np.uint32)
    if isinstance(env, JaxBatch):
        state, obs = jax.jit(jax.vmap(env.reset))(jnp.asarray(slots))
    else:
        obs = _reset(env, slots.ravel().tolist(), shape)
        state = _snapshot(env, shape)

    def blank(_) -> tuple[PyTree, Tally, PyTree]:
        kept = () if algorithm.on_policy else replay.empty(spec, plan.num_envs, plan.length, plan.capacity)
        return algorithm.init_carry(plan.num_envs), Tally(*jnp.zeros((2, plan.num_envs))), kept

    carry, tally, kept = jax.jit(jax.vmap(blank))(jnp.arange(len(seeds)))
    return run._replace(rollout=Playing(RolloutState(state, obs, carry), tally), replay=kept)


def _reset(env: HostEnv, slots: list[int], shape: tuple[int, int]) -> Observation:
    """Begin episodes by one seed per slot -> [S, B]."""
    return jax.tree.map(lambda x: jnp.asarray(x.reshape(*shape, *x.shape[1:])), env.reset(slots))


def _snapshot(env: HostEnv, shape: tuple[int, int]) -> PyTree:
    words = env.snapshot()
    return () if words is None else jnp.asarray(words).reshape(*shape, -1)


def exact(run: RunState) -> bool:
    """Whether the run's environments can be put where they were."""
    return not isinstance(run.rollout.at.env, tuple)


def enter(run: RunState, seeds: Sequence[int], env: HostEnv) -> RunState:
    """Put a host environment where a restored run was.

    One that cannot be restored (see `exact`) begins new episodes, other than those that the run has seen: what was
    under way in it is lost, and only that.
    """
    at = run.rollout.at
    shape = at.obs.step.shape
    if exact(run):
        env.restore(np.asarray(at.env).reshape(env.num_envs, -1))
        return run
    slots = [derive(s, int(run.step[i]), 1) for i, seed in enumerate(seeds) for s in slot_seeds(seed, shape[1])]
    obs = _reset(env, slots, shape)
    tally = jax.tree.map(jnp.zeros_like, run.rollout.tally)
    kept = jax.jit(jax.vmap(replay.cut))(run.replay) if isinstance(run.replay, Replay) else run.replay
    return run._replace(rollout=Playing(RolloutState((), obs, at.carry), tally), replay=kept)


def _exploring(algorithm: Algorithm, spec: EnvSpec, plan: Plan) -> Act:
    """The exploring policy as a function of (state, whether it is still warming up)."""

    def act(state: tuple[PyTree, Array], obs, carry, key: Key) -> ActOut:
        algo, warming = state
        if not plan.warmup:
            return algorithm.act(algo, obs, carry, key)
        keys = streams(key, "act", "warmup")
        out = algorithm.act(algo, obs, carry, keys.act)
        shape = out.action.shape
        if spec.num_actions:
            uniform = jax.random.randint(keys.warmup, shape, 0, spec.num_actions, out.action.dtype)
        else:
            uniform = jax.random.uniform(keys.warmup, shape, out.action.dtype, -1, 1)
        return out._replace(action=jnp.where(warming, uniform, out.action))

    return act


def _count(spec: EnvSpec, tally: Tally, t: Transition) -> tuple[Tally, Metrics]:
    """Episodes that ended in a rollout [T, B]: means, NaN where there were none."""

    def one(tally: Tally, t: Transition) -> tuple[Tally, Tally]:
        now = Tally(tally.ret + t.reward, spec.held(tally.success, t.success))
        return jax.tree.map(lambda x: jnp.where(t.terminated | t.truncated, 0.0, x), now), now

    tally, ended = jax.lax.scan(one, tally, t._replace(extras=()))
    over = t.terminated | t.truncated

    def mean(x: Array) -> Array:
        return jnp.where(over, x, 0).sum() / over.sum()

    names = {"return": ended.ret, "length": t.next_obs.step, "success": ended.success}
    return tally, {f"episode/{name}": mean(x) for name, x in names.items()}


def _learner(algorithm: Algorithm, spec: EnvSpec, plan: Plan, norm: Norm):
    """(RunState of one seed, replay, rollout [T, B]) -> (RunState, metrics): what an iteration learns.

    The replay holds the rollout already; it is only read, so that no program copies it.
    """

    def learn(run: RunState, kept: PyTree, t: Transition) -> tuple[RunState, Metrics]:
        key, step = jax.random.fold_in(run.key, run.step), run.step + plan.steps
        tally, episodes = _count(spec, run.rollout.tally, t)
        if algorithm.on_policy:
            algo, metrics = algorithm.update(run.algo, t, streams(key, "update").update)
        else:
            data = replay.view(kept, norm)

            def update(algo: PyTree, i: Array) -> tuple[PyTree, Metrics]:
                keys = streams(jax.random.fold_in(key, i), "sample", "update")
                return algorithm.update(algo, algorithm.sample(data, keys.sample), keys.update)

            def train(algo: PyTree) -> tuple[PyTree, Metrics]:
                algo, metrics = jax.lax.scan(update, algo, jnp.arange(plan.updates))
                return algo, jax.tree.map(jnp.nanmean, metrics)

            warm = optim.lockstep(step) > plan.warmup
            algo, metrics = optim.when(warm, train, run.algo) if plan.warmup else train(run.algo)
        rollout = run.rollout._replace(tally=tally)
        return run._replace(algo=algo, step=step, rollout=rollout), {**metrics, **episodes}

    return learn


def _keeper(algorithm: Algorithm) -> Callable[[PyTree, Transition], PyTree]:
    """What becomes of the replay, () on-policy, when a rollout has been made."""
    return (lambda kept, t: kept) if algorithm.on_policy else replay.add


def _iterations(plan: Plan, steps: int) -> int:
    """Raises: ConfigError unless an epoch is a whole number of iterations."""
    if steps < 1 or steps % plan.steps:
        raise ConfigError(
            f"an epoch of {steps} steps is not a whole number of iterations: {plan.length} steps of each of "
            f"{plan.num_envs} environments, by {plan.chunk}, are {plan.steps}"
        )
    return steps // plan.steps


def epoch(
    algorithm: Algorithm, batch: JaxBatch, plan: Plan, norm: Norm, steps: int
) -> Callable[[RunState], tuple[RunState, Metrics]]:
    """An epoch in a jitted environment as one pure function; jit it with its argument donated.

    See `loop.guard` for a seed that turns non-finite.
    Returns metrics f32[S]: means over the epoch of the iterations that reported a number.
    Raises: ConfigError, see `check`.
    """
    check(algorithm, plan, batch.spec)
    iterations = _iterations(plan, steps)
    collect = rollout(_exploring(algorithm, batch.spec, plan), algorithm.init_carry, batch, plan.length)
    keep, learn = _keeper(algorithm), _learner(algorithm, batch.spec, plan, norm)

    def one(run: RunState) -> tuple[RunState, Metrics]:
        def iteration(run: RunState, _) -> tuple[RunState, Metrics]:
            at, t = collect((run.algo, run.step < plan.warmup), run.rollout.at, _acting_key(run.key, run.step))
            kept = keep(run.replay, t)
            run, metrics = learn(run._replace(rollout=run.rollout._replace(at=at), replay=()), kept, t)
            return run._replace(replay=kept), metrics

        after, metrics = jax.lax.scan(iteration, run, None, iterations)
        return loop.guard(after, run.algo, run.step), jax.tree.map(jnp.nanmean, metrics)

    return over_seeds(one, (0,))


class _Still(NamedTuple):
    """An environment of a spec's shapes, in which nothing happens."""

    spec: EnvSpec

    def reset(self, key: Key, task: Array) -> tuple[PyTree, Observation]:
        return (), blank_observation(self.spec, xp=jnp)

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        obs = self.reset(key, 0)[1]
        return (), TimeStep(obs, obs, jnp.float32(0), jnp.bool_(False), jnp.bool_(False), jnp.float32(0))


def trace(algorithm: Algorithm, start: Start, seeds: Sequence[int], spec: EnvSpec, plan: Plan) -> None:
    """Trace an iteration.  Raises: whatever is refused and only tracing shows."""
    still = JaxBatch(_Still(spec), plan.num_envs)
    run = jax.eval_shape(lambda: begin(algorithm, start, seeds, still, plan))
    jax.eval_shape(epoch(algorithm, still, plan, start.norm, plan.steps), run)


def _acting_key(key: Key, step: Array) -> Key:
    return streams(jax.random.fold_in(key, step), "act").act


def compiled(algorithm: Algorithm, run: RunState, batch: JaxBatch, plan: Plan, norm: Norm, steps: int) -> Program:
    """Compile `epoch` for the shapes and devices of the run."""
    began = time.perf_counter()
    program = jax.jit(epoch(algorithm, batch, plan, norm, steps), donate_argnums=0).lower(run).compile()
    return Program(program, steps, time.perf_counter() - began)


def _like_a_rollout(policy: Act, algorithm: Algorithm, run: RunState, spec: EnvSpec, plan: Plan) -> Transition:
    """Zeros [S, T, B, ...] in NumPy, as `host_rollout` gives them, to compile for."""
    collect = rollout(policy, algorithm.init_carry, JaxBatch(_Still(spec), plan.num_envs), plan.length)

    def one(algo: PyTree, seeds: Array, key: Key) -> Transition:
        env, obs = JaxBatch(_Still(spec), plan.num_envs).reset(seeds)
        return collect((algo, True), RolloutState(env, obs, algorithm.init_carry(plan.num_envs)), key)[1]

    slots = jnp.zeros((run.step.shape[0], plan.num_envs), jnp.uint32)
    shapes = jax.eval_shape(jax.vmap(one), run.algo, slots, run.key)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def hosted(algorithm: Algorithm, run: RunState, env: HostEnv, plan: Plan, norm: Norm, steps: int) -> Program:
    """The same epoch around a host environment of S * B slots, which must be where the run is (`begin`, `enter`).

    Raises: ConfigError, see `check`.
    """
    check(algorithm, plan, env.spec)
    iterations, seeds, began = _iterations(plan, steps), run.step.shape[0], time.perf_counter()
    shape = (seeds, plan.num_envs)
    policy = _exploring(algorithm, env.spec, plan)
    collect = host_rollout(policy, algorithm.init_carry, env, plan.length, num_policies=seeds)
    acting_keys = jax.jit(jax.vmap(_acting_key))
    # two programs: in one, XLA would copy the replay that it writes and reads
    keep = jax.jit(over_seeds(_keeper(algorithm), (0, 0)), donate_argnums=0)
    learn = jax.jit(over_seeds(_learner(algorithm, env.spec, plan, norm), (0, 0, 0)), donate_argnums=0)
    copied, guard = jax.jit(partial(jax.tree.map, jnp.copy)), jax.jit(jax.vmap(loop.guard), donate_argnums=0)
    t = _like_a_rollout(policy, algorithm, run, env.spec, plan)

    def alone(run: RunState) -> RunState:
        """What is learned with, without what is handed over beside it."""
        return run._replace(rollout=run.rollout._replace(at=()), replay=())

    keep = keep.lower(run.replay, t).compile()
    learn = learn.lower(alone(run), run.replay, t).compile()
    copied = copied.lower((run.algo, run.step)).compile()
    guard = guard.lower(alone(run), run.algo, run.step).compile()

    def epoch(run: RunState) -> tuple[RunState, Metrics]:
        at, kept, reports, before = run.rollout.at, run.replay, [], copied((run.algo, run.step))
        run = alone(run)
        for _ in range(iterations):
            warming = np.asarray(run.step) < plan.warmup
            at, t = collect((run.algo, warming), at, acting_keys(run.key, run.step))
            kept = keep(kept, t)
            run, metrics = learn(run, kept, t)
            reports.append(metrics)
        at = jax.tree.map(jnp.asarray, at._replace(env=_snapshot(env, shape)))
        run = guard(run, *before)
        run = run._replace(rollout=run.rollout._replace(at=at), replay=kept)
        return run, jax.tree.map(lambda *x: jnp.nanmean(np.stack(x), axis=0), *reports)

    return Program(epoch, steps, time.perf_counter() - began)
