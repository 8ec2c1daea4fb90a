"""FQL: flow Q-learning (Park et al., 2025, arXiv:2502.02538), here of action chunks.

A flow mu_F imitates the data; a network mu(s, z) takes its place in one step, and improves on it.  A call of `update`:
    y      = r + gamma (1 - terminated) mean_e Q'_e(s', mu(s', z')),   mu clipped to [-1, 1] wherever Q reads it
    L_Q    = sum_e mean_B (Q_e(s, a) - y)^2
    L_F    = the rectified flow's loss of `algos.chain_bc`
    L_mu   = alpha mean (mu(s, z) - mu_F(s, z))^2 - lambda mean_B mean_e Q_e(s, mu(s, z)),   lambda = 1 / mean_B |Q|
with z, z' normal chunks and mu_F(s, z) the end of K Euler steps from z, a constant.  All three steps see the parameters
from before the call, as one step on the sum does in the authors' code; then the critics' targets move by tau.
One step stands for a chunk: gamma is per chunk, r the chunk's sum.
Values are those of ReinFlow's port (arXiv:2505.22094): alpha 3, lambda on, mu of 512 x 2 GELU without LayerNorm, and
critics of 256 x 2 with one, whose GELU is ours.  The paper's networks are 512 x 4, its alpha is tuned for each task,
and lambda is 1 unless asked for.  K = 10, tau, Adam 3e-4 and batches of 256 are the paper's.
Online it learns from what it plays alone: the replay begins empty, also after a run on data.
Until update `flow_acts` the flow acts in mu's place: from a parent's flow, online, mu would begin at random.
Axes: B batch, S state, H steps of a chunk, A action, E critics, K steps of the flow.
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
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, require_choices
from core.critics import Batch, Network, TimeLimit
from core.losses import mse, td_target
from core.networks import MLP, Net, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

PARENTS = ("chain_bc", "fql")
INHERITS = ("net", "hidden", "activation", "critic")
ONE_STEP = True  # what acts takes one step, whatever `denoising` says of its teacher


@dataclass(frozen=True)
class Config(algorithm.Config):
    net: PolicyNet = field(default_factory=lambda: PolicyNet(denoised_clip=0.0))  # of the flow: reflow
    denoising: Denoising = field(default_factory=lambda: Denoising(steps=10))  # K
    fit: Fit = field(default_factory=Fit)  # what the policy's network is fitted to
    hidden: tuple[int, ...] = (512, 512)  # of mu
    activation: str = "gelu"
    critic: Network = field(default_factory=lambda: Network((256, 256), "gelu", residual=False, norm="before"))
    flow_lr: float = 3e-4
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    discount: float = 0.99  # gamma, of a chunk
    tau: float = 0.005  # Polyak rate of the critics' targets
    alpha: float = 3.0  # weight of the distillation
    normalize_q: bool = True  # lambda; else 1
    flow_acts: int = 0  # updates until which the flow acts
    reward_scale: float = 1.0  # factor of the rewards
    time_limit: TimeLimit = "bootstrap"  # terminate: nothing follows a time limit, the published protocol


class State(NamedTuple):
    flow: Trained  # params of chain_bc's `Policy`
    actor: Trained
    critic: Trained  # leading axis E = 2 on every parameter
    critic_target: PyTree
    norm: Norm
    step: Array  # i32[] updates done


class Networks(NamedTuple):
    given: Policy
    mu: Net  # (params, s f32[B, S], z f32[B, H, A]) -> f32[B, H, A], not clipped
    q: Net  # (params, s, chunk f32[B, H, A]) -> f32[E, B]


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    given = chunk_policy.policy(cfg.net, spec)
    height, width = given.shape
    module = MLP((*cfg.hidden, height * width), cfg.activation)

    def flat(z: Array) -> Array:
        return z.reshape(len(z), -1)

    mu = Net(
        lambda key, state, z: module.init(key, state, flat(z)),
        lambda params, state, z: module.apply(params, state, flat(z)).reshape(z.shape),
    )
    return Networks(given, mu, critics.of_chunks(cfg.critic))


def flowed(flow_params: PyTree, state: Array, z: Array, given: Policy, denoising: Denoising) -> Array:
    """mu_F f32[B, H, A] in [-1, 1]."""
    still = jnp.zeros((len(z), given.steps(denoising), *given.shape), z.dtype)
    return given.ends(flow_params, state, (z, still), denoising)


def bootstrap(critic_target: PyTree, actor_params: PyTree, batch: Batch, z: Array, nets: Networks, cfg: Config):
    """y f32[B]; z f32[B, H, A] standard normal."""
    action = jnp.clip(nets.mu.apply(actor_params, batch.next_state, z), -1, 1)
    value = nets.q.apply(critic_target, batch.next_state, action).mean(axis=0)
    return td_target(batch.reward, batch.terminated, value, cfg.discount)


def actor_loss(
    actor_params: PyTree, critic_params: PyTree, state: Array, z: Array, wanted: Array, nets: Networks, cfg: Config
) -> tuple[Array, Metrics]:
    """L_mu for noise z and the flow's answer to it, `wanted`, f32[B, H, A] each -> (f32[], metrics)."""
    action = nets.mu.apply(actor_params, state, z)
    distilled = mse(action, wanted)
    q = nets.q.apply(critic_params, state, jnp.clip(action, -1, 1)).mean(axis=0)
    scale = 1 / jax.lax.stop_gradient(jnp.abs(q).mean()) if cfg.normalize_q else 1.0
    loss = cfg.alpha * distilled - scale * q.mean()
    return loss, {"actor/loss": loss, "actor/distill": distilled, "actor/q": q.mean()}


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete or pixel tasks, and for options that do not fit together."""
    algorithm.require(spec, "fql", chunk=True)
    require_choices(cfg)
    algorithm.require_rates(cfg.discount, cfg.tau, cfg.reward_scale)
    chunk_policy.require_family("fql", cfg.net, "reflow")
    if min(cfg.alpha, cfg.flow_acts) < 0:
        raise ConfigError(f"alpha {cfg.alpha} and flow_acts {cfg.flow_acts} must be at least 0")
    nets = networks(cfg, spec)
    given = nets.given
    given.steps(cfg.denoising)
    flow_tx, actor_tx, critic_tx = (optim.adam(lr) for lr in (cfg.flow_lr, cfg.actor_lr, cfg.critic_lr))

    def init(key: Key, start: Start) -> State:
        if isinstance(start.parent, State):
            return start.parent
        keys = streams(key, "flow", "actor", "critic")
        flow, norm = chain_bc.pretrained(keys.flow, start, given, spec)
        obs, action = jnp.zeros((1, *spec.obs_shape), float_dtype()), jnp.zeros((1, *given.shape), float_dtype())
        critic = nets.q.init(keys.critic, obs, action)
        return State(
            optim.start(flow_tx, flow),
            optim.start(actor_tx, nets.mu.init(keys.actor, obs, action)),
            optim.start(critic_tx, critic),
            jax.tree.map(jnp.copy, critic),
            norm,
            jnp.zeros((), jnp.int32),
        )

    def normals(key: Key, size: int) -> Array:
        return given.noises(key, size, 0)[0]

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        keys, norm, params = streams(key, "next_action", "action", "fit"), state.norm, state.flow.params
        batch = critics.to_batch(t, given, params, norm, cfg.reward_scale, cfg.time_limit)
        next_z, z = (normals(k, len(batch.reward)) for k in (keys.next_action, keys.action))
        # --- critics ---
        target = bootstrap(state.critic_target, state.actor.params, batch, next_z, nets, cfg)
        critic, metrics = optim.step(critic_tx, critics.q_loss, state.critic, target, batch, nets.q)
        # --- flow ---
        fit = chain_bc.regression(params, batch.state, batch.action, keys.fit, given, cfg.fit)
        flow, flow_metrics = optim.step(flow_tx, chain_bc.loss, state.flow, norm, t.obs, fit, given)
        # --- actor ---
        wanted = flowed(params, batch.state, z, given, cfg.denoising)
        actor, actor_metrics = optim.step(
            actor_tx, actor_loss, state.actor, state.critic.params, batch.state, z, wanted, nets, cfg
        )
        # --- targets ---
        critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
        metrics = {**metrics, **actor_metrics, "flow/loss": flow_metrics["loss"]}
        return State(flow, actor, critic, critic_target, norm, state.step + 1), metrics

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        s, z = given.read(state.flow.params, state.norm, obs), normals(key, len(obs.step))

        def by_flow() -> Array:
            return flowed(state.flow.params, s, z, given, cfg.denoising)

        def by_mu() -> Array:
            return jnp.clip(nets.mu.apply(state.actor.params, s, z), -1, 1)

        x = jax.lax.cond(optim.lockstep(state.step) < cfg.flow_acts, by_flow, by_mu) if cfg.flow_acts else by_mu()
        return ActOut(given.out(state.norm, x), carry)

    return Algorithm(
        init, update, act, act, eligible=lambda data: dataset.whole(data, given.shape[0]),
        sample=batches.sampled(cfg.batch_size, spec.history, chunk=spec.chunk), explores=True,
    )  # fmt: skip
