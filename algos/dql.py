"""DQL: diffusion Q-learning (Wang et al., 2022, arXiv:2208.06193), here of action chunks.

A call of `update`, with pi(s) the chunk that a denoising chain ends in:
    y      = r + gamma (1 - terminated) min_e Q'_e(s', a'),   a' ~ pi(s')
    L_Q    = sum_e mean_B (Q_e(s, a) - y)^2
    L_pi   = L_BC + eta L_q,   L_BC that of `algos.chain_bc` on the batch's chunks
    L_q    = -mean_B Q_i(s, a~) / mean_B |Q_j(s, a~)|,   a~ ~ pi(s);   (i, j) = (1, 2) or (2, 1) by a coin
The gradient of L_q goes through the whole chain; its denominator is a constant.  The actor's step sees the critics
just updated; then their targets move by tau.  One step stands for a chunk: gamma is per chunk, r the chunk's sum.
Values are those of the DPPO tree's baseline (arXiv:2409.00588); from there too come a' of the policy itself where the
authors have a moving average of it, one sample where they judge one of fifty by their values, and chains that explore
and train with a floor under their noise.  Its L_BC is on chunks freshly drawn from the policy; the paper's, and ours,
on data.
Axes: B batch, S state, H steps of a chunk, A action, E critics, K steps of a chain.
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
from core.chain import Regression
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, require_choices
from core.critics import Batch, Network, TimeLimit
from core.losses import td_target
from core.networks import Net, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

PARENTS = ("chain_bc", "dql")
INHERITS = ("net", "critic")


@dataclass(frozen=True)
class Config(algorithm.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(family="diffusion"))  # or reflow
    denoising: Denoising = field(default_factory=Denoising)
    fit: Fit = field(default_factory=Fit)  # what the policy's network is fitted to
    critic: Network = field(default_factory=Network)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    discount: float = 0.99  # gamma, of a chunk
    tau: float = 0.005  # Polyak rate of the critics' targets
    eta: float = 1.0  # weight of L_q
    actor_start: int = 0  # updates during which only the critics learn
    noise_floor: float = 0.1  # least std of a chain's steps, but where the policy is judged
    noise_clip: float = 3.0  # of the normals of those chains
    reward_scale: float = 1.0  # factor of the rewards
    time_limit: TimeLimit = "bootstrap"  # terminate: nothing follows a time limit, the published protocol


class State(NamedTuple):
    actor: Trained  # params of chain_bc's `Policy`
    critic: Trained  # leading axis E = 2 on every parameter
    critic_target: PyTree
    norm: Norm
    step: Array  # i32[] updates done


class Draws(NamedTuple):
    """What an update draws."""

    next_noise: tuple[Array, Array]  # start f32[B, H, A] and normals f32[B, K, H, A] of the chains to a'
    noise: tuple[Array, Array]  # those to a~
    first: Array  # bool[] i = 1
    fit: Regression  # of L_BC


def played(params: PyTree, state: Array, noise: tuple[Array, Array], given: Policy, cfg: Config) -> Array:
    """pi(s) f32[B, H, A] in [-1, 1] with the floor, a differentiable function of the parameters."""
    return given.ends(params, state, noise, cfg.denoising, cfg.noise_floor, cfg.noise_clip)


def bootstrap(
    critic_target: PyTree, actor_params: PyTree, batch: Batch, noise: tuple, given: Policy, q: Net, cfg: Config
) -> Array:
    """y f32[B]."""
    action = played(actor_params, batch.next_state, noise, given, cfg)
    value = q.apply(critic_target, batch.next_state, action).min(axis=0)
    return td_target(batch.reward, batch.terminated, value, cfg.discount)


def improvement(value: Array, first: Array) -> Array:
    """L_q of f32[2, B] critics of a~ -> f32[]."""
    mean, size = value.mean(axis=1), jax.lax.stop_gradient(jnp.abs(value).mean(axis=1))
    return -jnp.where(first, mean[0] / size[1], mean[1] / size[0])


def actor_loss(
    actor_params: PyTree, critic_params: PyTree, norm: Norm, obs: Observation, draws: Draws, given: Policy, q: Net,
    cfg: Config,
) -> tuple[Array, Metrics]:  # fmt: skip
    """L_pi with the critics' current parameters -> (f32[], metrics)."""
    bc, _ = chain_bc.loss(actor_params, norm, obs, draws.fit, given)
    state = given.read(actor_params, norm, obs)
    value = q.apply(critic_params, state, played(actor_params, state, draws.noise, given, cfg))
    loss = bc + cfg.eta * improvement(value, draws.first)
    return loss, {"actor/loss": loss, "actor/bc": bc, "actor/q": value.mean()}


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete or pixel tasks, and for options that do not fit together."""
    algorithm.require(spec, "dql", chunk=True)
    require_choices(cfg)
    algorithm.require_rates(cfg.discount, cfg.tau, cfg.reward_scale)
    chunk_policy.require_family("dql", cfg.net, "diffusion", "reflow")
    if min(cfg.eta, cfg.actor_start) < 0:
        raise ConfigError(f"eta {cfg.eta} and actor_start {cfg.actor_start} must be at least 0")
    chunk_policy.require_noise(cfg.noise_floor, cfg.noise_clip)
    given, q = chunk_policy.policy(cfg.net, spec), critics.of_chunks(cfg.critic)
    steps = given.steps(cfg.denoising)
    actor_tx, critic_tx = optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr)

    def init(key: Key, start: Start) -> State:
        if isinstance(start.parent, State):
            return start.parent
        keys = streams(key, "actor", "critic")
        actor, norm = chain_bc.pretrained(keys.actor, start, given, spec)
        obs, action = jnp.zeros((1, *spec.obs_shape), float_dtype()), jnp.zeros((1, *given.shape), float_dtype())
        critic = q.init(keys.critic, obs, action)
        return State(
            optim.start(actor_tx, actor), optim.start(critic_tx, critic), jax.tree.map(jnp.copy, critic), norm,
            jnp.zeros((), jnp.int32),
        )  # fmt: skip

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        keys, params, norm = streams(key, "next_action", "action", "coin", "fit"), state.actor.params, state.norm
        batch = critics.to_batch(t, given, params, norm, cfg.reward_scale, cfg.time_limit)
        size = len(batch.reward)
        draws = Draws(
            given.noises(keys.next_action, size, steps),
            given.noises(keys.action, size, steps),
            jax.random.bernoulli(keys.coin),
            chain_bc.regression(params, batch.state, batch.action, keys.fit, given, cfg.fit),
        )
        # --- critics ---
        target = bootstrap(state.critic_target, params, batch, draws.next_noise, given, q, cfg)
        critic, metrics = optim.step(critic_tx, critics.q_loss, state.critic, target, batch, q)

        # --- actor ---
        def learn(actor: Trained) -> tuple[Trained, Metrics]:
            return optim.step(actor_tx, actor_loss, actor, critic.params, norm, t.obs, draws, given, q, cfg)

        actor, actor_metrics = optim.when(optim.lockstep(state.step) >= cfg.actor_start, learn, state.actor)
        # --- targets ---
        critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
        return State(actor, critic, critic_target, norm, state.step + 1), {**metrics, **actor_metrics}

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        params, noise = state.actor.params, given.noises(key, len(obs.step), steps)
        x = played(params, given.read(params, state.norm, obs), noise, given, cfg)
        return ActOut(given.out(state.norm, x), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(given.judged(state.actor.params, state.norm, obs, key, cfg.denoising), carry)

    return Algorithm(
        init, update, act, act_eval, eligible=lambda data: dataset.whole(data, given.shape[0]),
        sample=batches.sampled(cfg.batch_size, spec.history, chunk=spec.chunk), explores=True,
    )  # fmt: skip
