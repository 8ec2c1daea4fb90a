"""IDQL: implicit Q-learning with a diffusion policy for its actor (Hansen-Estruch et al., 2023, arXiv:2304.10573).

Here of action chunks.  A call of `update`:
    L_V  = mean_B |kappa - 1{u < 0}| u^2,   u = min_e Q'_e(s, a) - V(s)        expectile regression
    y    = r + gamma (1 - terminated) V(s'),   V just updated
    L_Q  = sum_e mean_B (Q_e(s, a) - y)^2,   then the targets Q' move by tau
    L_pi = L_BC, that of `algos.chain_bc`: the policy only imitates the data
What it does is chosen from N chunks a_n that the policy proposes in s: judged, the one of the highest
min_e Q'_e(s, a_n); exploring, one by lot, with weight w where min_e Q'_e(s, a_n) > V(s) and 1 - w elsewhere.
One step stands for a chunk: gamma is per chunk, r the chunk's sum.  Values and order are those of the DPPO tree's
baseline (arXiv:2409.00588), whose proposals have a floor under their noise while it explores.  Its agent explores with
as many proposals as it is judged with; the 10 here are its model's default.
Axes: B batch, S state, H steps of a chunk, A action, E critics, N proposals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algos import chain_bc
from algos.chain_bc import Fit
from core import algorithm, batches, chunk_policy, critics, dataset, optim
from core.algorithm import Algorithm
from core.chunk_policy import Denoising, PolicyNet
from core.config import ConfigError, require_choices
from core.critics import Batch, Network, TimeLimit
from core.losses import check_shapes, expectile, td_target
from core.networks import Net, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

PARENTS = ("chain_bc", "idql")
INHERITS = ("net", "critic")


@dataclass(frozen=True)
class Config(algorithm.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(family="diffusion"))  # or reflow
    denoising: Denoising = field(default_factory=Denoising)
    fit: Fit = field(default_factory=Fit)  # what the policy's network is fitted to
    critic: Network = field(default_factory=Network)  # of Q and of V
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    discount: float = 0.99  # gamma, of a chunk
    tau: float = 0.001  # Polyak rate of the critics' targets
    expectile: float = 0.8  # kappa
    samples: int = 20  # N where the policy is judged
    explore_samples: int = 10  # N where it explores
    explore_weight: float = 0.7  # w
    actor_start: int = 0  # updates during which only the critics learn
    noise_floor: float = 0.1  # least std of a chain's steps where the policy explores
    noise_clip: float = 3.0  # of the normals of those chains
    reward_scale: float = 1.0  # factor of the rewards
    time_limit: TimeLimit = "bootstrap"  # terminate: nothing follows a time limit, the published protocol


class State(NamedTuple):
    actor: Trained  # params of chain_bc's `Policy`
    critic: Trained  # of Q; leading axis E = 2 on every parameter
    critic_target: PyTree
    value: Trained  # of V
    norm: Norm
    step: Array  # i32[] updates done


class Networks(NamedTuple):
    q: Net  # (params, s f32[B, S], chunk f32[B, H, A]) -> f32[E, B]
    v: Net  # (params, s) -> f32[B]


def value_loss(value_params: PyTree, critic_target: PyTree, batch: Batch, nets: Networks, cfg: Config):
    """L_V -> (f32[], metrics)."""
    q = nets.q.apply(critic_target, batch.state, batch.action).min(axis=0)
    value = nets.v.apply(value_params, batch.state)
    check_shapes(q=q, value=value)
    loss = expectile(q - value, cfg.expectile).mean()
    return loss, {"value/loss": loss, "value/mean": value.mean(), "value/advantage": (q - value).mean()}


def log_weights(score: Array, value: Array, weight: float) -> Array:
    """Logarithms f32[B, N] of the weights that proposals of scores f32[B, N] are drawn with, for values f32[B]."""
    return jnp.log(jnp.where(score > value[:, None], weight, 1 - weight))


def scores(critic_target: PyTree, state: Array, proposals: Array, nets: Networks) -> Array:
    """min_e Q'_e f32[B, N] of f32[B, N, H, A]."""
    size = proposals.shape[1]
    flat = proposals.reshape(-1, *proposals.shape[2:])
    return nets.q.apply(critic_target, jnp.repeat(state, size, axis=0), flat).min(axis=0).reshape(-1, size)


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete or pixel tasks, and for options that do not fit together."""
    algorithm.require(spec, "idql", chunk=True)
    require_choices(cfg)
    algorithm.require_rates(cfg.discount, cfg.tau, cfg.reward_scale)
    chunk_policy.require_family("idql", cfg.net, "diffusion", "reflow")
    if not 0 < cfg.expectile < 1 or not 0 < cfg.explore_weight < 1 or min(cfg.samples, cfg.explore_samples) < 1:
        raise ConfigError(
            f"expectile {cfg.expectile} and explore_weight {cfg.explore_weight} must lie between 0 and 1, "
            f"samples {cfg.samples} and explore_samples {cfg.explore_samples} be at least 1"
        )
    if cfg.actor_start < 0:
        raise ConfigError(f"actor_start {cfg.actor_start} must be at least 0")
    chunk_policy.require_noise(cfg.noise_floor, cfg.noise_clip)
    given = chunk_policy.policy(cfg.net, spec)
    nets = Networks(critics.of_chunks(cfg.critic), critics.of_states(cfg.critic))
    steps = given.steps(cfg.denoising)
    actor_tx, critic_tx = optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr)

    def init(key: Key, start: Start) -> State:
        if isinstance(start.parent, State):
            return start.parent
        keys = streams(key, "actor", "critic", "value")
        actor, norm = chain_bc.pretrained(keys.actor, start, given, spec)
        obs, action = jnp.zeros((1, *spec.obs_shape), float_dtype()), jnp.zeros((1, *given.shape), float_dtype())
        critic = nets.q.init(keys.critic, obs, action)
        return State(
            optim.start(actor_tx, actor),
            optim.start(critic_tx, critic),
            jax.tree.map(jnp.copy, critic),
            optim.start(critic_tx, nets.v.init(keys.value, obs)),
            norm,
            jnp.zeros((), jnp.int32),
        )

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        params, norm = state.actor.params, state.norm
        batch = critics.to_batch(t, given, params, norm, cfg.reward_scale, cfg.time_limit)
        # --- values ---
        value, value_metrics = optim.step(critic_tx, value_loss, state.value, state.critic_target, batch, nets, cfg)
        # --- critics and their targets ---
        target = td_target(batch.reward, batch.terminated, nets.v.apply(value.params, batch.next_state), cfg.discount)
        critic, metrics = optim.step(critic_tx, critics.q_loss, state.critic, target, batch, nets.q)
        critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
        # --- actor ---
        fit = chain_bc.regression(params, batch.state, batch.action, streams(key, "fit").fit, given, cfg.fit)

        def learn(actor: Trained) -> tuple[Trained, Metrics]:
            actor, metrics = optim.step(actor_tx, chain_bc.loss, actor, norm, t.obs, fit, given)
            return actor, {"actor/bc": metrics["loss"]}

        actor, actor_metrics = optim.when(optim.lockstep(state.step) >= cfg.actor_start, learn, state.actor)
        metrics = {**value_metrics, **metrics, **actor_metrics}
        return State(actor, critic, critic_target, value, norm, state.step + 1), metrics

    def chosen(state: State, proposals: Array, which: Array) -> ActOut:
        x = jnp.take_along_axis(proposals, which[:, None, None, None], axis=1)[:, 0]
        return given.out(state.norm, x)

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        keys, size = streams(key, "proposals", "lot"), cfg.explore_samples
        s = given.read(state.actor.params, state.norm, obs)
        many, noise = jnp.repeat(s, size, axis=0), given.noises(keys.proposals, len(s) * size, steps)
        x = given.ends(state.actor.params, many, noise, cfg.denoising, cfg.noise_floor, cfg.noise_clip)
        proposals = x.reshape(len(s), size, *given.shape)
        score = scores(state.critic_target, s, proposals, nets)
        weights = log_weights(score, nets.v.apply(state.value.params, s), cfg.explore_weight)
        return ActOut(chosen(state, proposals, jax.random.categorical(keys.lot, weights)), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        s = given.read(state.actor.params, state.norm, obs)
        x = given.sample(state.actor.params, jnp.repeat(s, cfg.samples, axis=0), key, cfg.denoising)
        proposals = x.reshape(len(s), cfg.samples, *given.shape)
        best = scores(state.critic_target, s, proposals, nets).argmax(axis=1)
        return ActOut(chosen(state, proposals, best), carry)

    return Algorithm(
        init, update, act, act_eval, eligible=lambda data: dataset.whole(data, given.shape[0]),
        sample=batches.sampled(cfg.batch_size, spec.history, chunk=spec.chunk), explores=True,
    )  # fmt: skip
