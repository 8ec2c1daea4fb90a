"""CQL: conservative Q-learning (Kumar et al., 2020, arXiv:2006.04779), on SAC with a tanh-Gaussian policy.

A call of `update`; all losses from the parameters at its start, alpha = multiplier exp(log alpha):
    L_alpha = -log alpha mean_B (log pi(a~|s) + H),     a~ ~ pi(s), H the target entropy
    L_pi    = mean_B (alpha log pi(a~|s) - min_e Q_e(s, a~))
    y       = r + gamma (1 - terminated) min_e Q'_e(s', a'),   a' ~ pi(s')
              (max_backup: the largest such minimum over n draws; backup_entropy: less alpha log pi(a'|s'))
    gap_e   = clip(T log sum_c exp((Q_e(s, a_c) - log mu(a_c)) / T) - Q_e(s, a))          Eq. (4), CQL(H)
              over 3n columns: a_c uniform in the box, from pi(s), and from pi(s') though valued at s; mu their density
    L_Q     = sum_e mean_B (Q_e(s, a) - y)^2 + alpha' w mean_B (gap_e - target_gap)
    L_alpha'= -alpha' w mean_{E,B} (gap_e - target_gap),   alpha' = exp(log alpha') up to 1e6
then the critics' targets move by tau.  Without `lagrange`, alpha' = 1 and target_gap = 0; without
`importance_sampling`, log mu is left out and the action of the data is a column too.  log std = c1 out + c0 with c1, c0
trained, as in young-geng's code (JaxCQL) and CORL.  Defaults are CORL's for locomotion; JaxCQL's: hidden (256, 256),
weights "lecun", heads "fan_in:0.01", actor_lr 3e-4, conservative_weight 5, action_limit 0.999, state_norm none.
Departs from CORL, where one critic keeps three hidden layers whatever is asked for: both are as `hidden` says.
Axes: B batch, S state, A action, E critics, C columns of sampled actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, batches, optim
from core.algorithm import Algorithm, as_input
from core.config import ConfigError, require_least
from core.distributions import TanhGaussian
from core.losses import check_shapes, ensemble_mse, mean, td_target
from core.networks import MLP, Net, ensemble, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

LOG_STD, MAX_ALPHA_PRIME = (-20.0, 2.0), 1e6


@dataclass(frozen=True)
class Config(algorithm.Config):
    state_norm: Literal["none", "standard", "minmax"] = "standard"
    hidden: tuple[int, ...] = (256, 256, 256)
    actor_hidden: tuple[int, ...] = ()  # empty: as `hidden`
    actor_weights: str = "torch"  # initialisers, see core.networks.INITIALIZERS
    actor_head_weights: str = "glorot:1e-4"
    critic_weights: str = "orthogonal"
    critic_head_weights: str = "orthogonal:0.01"
    actor_lr: float = 3e-5  # of log alpha too
    critic_lr: float = 3e-4  # of log alpha' too
    discount: float = 0.99  # gamma
    tau: float = 0.005  # Polyak rate of the critics' targets
    action_limit: float = 1.0  # actions of the data are clipped to +- this
    learn_alpha: bool = True  # False: alpha stays at alpha_multiplier
    alpha_multiplier: float = 1.0
    entropy_per_action: float = -1.0  # H / A
    log_std: tuple[float, float] = (1.0, -1.0)  # c1 and c0 at the start
    backup_entropy: bool = False
    max_backup: bool = False
    samples: int = 10  # n, of each kind
    importance_sampling: bool = True
    temperature: float = 1.0  # T
    conservative_weight: float = 10.0  # w
    gap_clip: tuple[float | None, float | None] = (None, None)  # least and most; None: without
    lagrange: bool = False
    target_gap: float = 0.8  # the gap that alpha' holds, with lagrange


class State(NamedTuple):
    actor: Trained  # {"net": ..., "log_std": f32[2] c1 and c0}
    critic: Trained  # leading axis E = 2 on every parameter
    critic_target: PyTree
    log_alpha: Trained  # f32[]
    log_alpha_prime: Trained  # f32[]
    norm: Norm


class Networks(NamedTuple):
    actor: Net  # (params, s f32[..., S]) -> TanhGaussian of [..., A]
    critic: Net  # (params, s f32[..., S], a f32[..., A]) -> f32[E, ...]


class Batch(NamedTuple):
    """Transitions as the networks read them."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A]
    reward: Array  # f32[B]
    next_obs: Array  # f32[B, S]
    terminated: Array  # bool[B]
    weight: Array | None = None  # f32[B] of each row in every loss; None: 1


class Draws(NamedTuple):
    """All that is random in an update: standard normals, but for `uniform`."""

    policy: Array  # f32[B, A] for a~
    target: Array  # f32[B, A] for a', with max_backup f32[n, B, A]
    uniform: Array  # f32[n, B, A] in [-1, 1]
    now: Array  # f32[n, B, A] for actions from pi(s)
    after: Array  # f32[n, B, A] for actions from pi(s')


def networks(cfg: Config, spec: EnvSpec) -> Networks:
    sizes = (*(cfg.actor_hidden or cfg.hidden), 2 * spec.action_dim)
    policy = MLP(sizes, weights=cfg.actor_weights, head_weights=cfg.actor_head_weights)
    critics = ensemble(MLP((*cfg.hidden, 1), weights=cfg.critic_weights, head_weights=cfg.critic_head_weights), 2)

    def init(key: Key, obs: Array) -> PyTree:
        return {"net": policy.init(key, obs), "log_std": jnp.asarray(cfg.log_std, float_dtype())}

    def law(params: PyTree, obs: Array) -> TanhGaussian:
        (mean, out), (slope, offset) = jnp.split(policy.apply(params["net"], obs), 2, axis=-1), params["log_std"]
        return TanhGaussian(mean, jnp.clip(slope * out + offset, *LOG_STD))

    return Networks(Net(init, law), Net(critics.init, lambda params, obs, a: critics.apply(params, obs, a)[..., 0]))


def optimisers(cfg: Config):
    """(actor's and alpha's, critic's and alpha's prime)."""
    return optim.adam(cfg.actor_lr), optim.adam(cfg.critic_lr)


def valued(critic_params: PyTree, obs: Array, action: Array, nets: Networks) -> Array:
    """Q f32[E, ..., B] of actions f32[..., B, A] at obs f32[B, S]."""
    return nets.critic.apply(critic_params, jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1])), action)


def next_value(critic_target: PyTree, law: TanhGaussian, alpha: Array, batch: Batch, noise: Array, nets, cfg) -> Array:
    """What y discounts, f32[B]; law: pi(s'); noise: `Draws.target`."""
    check_shapes(noise=noise[0] if cfg.max_backup else noise, mean=law.mean)
    action, u = law.sample(noise)
    q, log_prob = valued(critic_target, batch.next_obs, action, nets).min(axis=0), law.log_prob(u)
    if cfg.max_backup:
        best = q.argmax(axis=0)[None]
        q, log_prob = (jnp.take_along_axis(x, best, axis=0)[0] for x in (q, log_prob))
    return q - alpha * log_prob if cfg.backup_entropy else q


def proposals(law: TanhGaussian, next_law: TanhGaussian, draws: Draws) -> tuple[Array, Array]:
    """Sampled actions f32[3n, B, A] and their log-densities f32[3n, B]: uniform, from pi(s), from pi(s')."""
    (now, u), (after, next_u) = law.sample(draws.now), next_law.sample(draws.after)
    flat = jnp.full(now.shape[:-1], now.shape[-1] * jnp.log(0.5), now.dtype)
    log_density = jnp.concatenate([flat, law.log_prob(u), next_law.log_prob(next_u)])
    return jnp.concatenate([draws.uniform, now, after]), log_density


def conservative_gap(q: Array, columns: Array, log_density: Array, cfg: Config) -> Array:
    """gap_e f32[E, B] of Q(s, a) f32[E, B] and of columns f32[E, C, B] with log-densities f32[C, B]."""
    check_shapes(column=columns[0], log_density=log_density)
    columns = columns - log_density if cfg.importance_sampling else jnp.concatenate([columns, q[:, None]], axis=1)
    soft = cfg.temperature * jax.nn.logsumexp(columns / cfg.temperature, axis=1)
    return jnp.clip(soft - q, *cfg.gap_clip)


def critic_loss(critic_params: PyTree, target: Array, proposed: tuple, alpha_prime: Array, batch: Batch, nets, cfg):
    """L_Q -> (f32[], metrics), for targets f32[B], what `proposals` made and alpha' f32[] (1 without lagrange)."""
    actions, log_density = proposed
    q = valued(critic_params, batch.obs, jnp.concatenate([batch.action[None], actions]), nets)  # f32[E, 1 + C, B]
    td = ensemble_mse(q[:, 0], target, batch.weight)
    gap = mean(conservative_gap(q[:, 0], q[:, 1:], log_density, cfg).T, batch.weight)  # over critics too
    loss = td + alpha_prime * cfg.conservative_weight * len(q) * (gap - cfg.target_gap if cfg.lagrange else gap)
    return loss, {"critic/loss": loss, "critic/td": td, "critic/gap": gap, "critic/q": q[:, 0].mean()}


def actor_loss(actor_params: PyTree, critic_params: PyTree, alpha: Array, batch: Batch, noise: Array, nets: Networks):
    """L_pi -> (f32[], metrics); noise: `Draws.policy`."""
    check_shapes(noise=noise, action=batch.action)
    law = nets.actor.apply(actor_params, batch.obs)
    action, u = law.sample(noise)
    log_prob = law.log_prob(u)
    loss = mean(alpha * log_prob - nets.critic.apply(critic_params, batch.obs, action).min(axis=0), batch.weight)
    return loss, {"actor/loss": loss, "actor/entropy": -log_prob.mean()}


def alpha_loss(log_alpha: Array, log_prob: Array, batch: Batch, cfg: Config) -> tuple[Array, Metrics]:
    """L_alpha for log pi(a~|s) f32[B]."""
    loss = -log_alpha * mean(log_prob + cfg.entropy_per_action * batch.action.shape[-1], batch.weight)
    return loss, {"alpha/loss": loss, "alpha/alpha": cfg.alpha_multiplier * jnp.exp(log_alpha)}


def alpha_prime_loss(log_alpha_prime: Array, gap: Array, cfg: Config) -> tuple[Array, Metrics]:
    """L_alpha' for the mean gap f32[] of batch and critics."""
    alpha_prime = jnp.minimum(jnp.exp(log_alpha_prime), MAX_ALPHA_PRIME)
    loss = -alpha_prime * cfg.conservative_weight * (gap - cfg.target_gap)
    return loss, {"alpha_prime/loss": loss, "alpha_prime/alpha_prime": alpha_prime}


def update_with(state: State, batch: Batch, draws: Draws, nets: Networks, cfg: Config) -> tuple[State, Metrics]:
    """One whole update for given draws."""
    actor_tx, critic_tx = optimisers(cfg)
    metrics, log_alpha, log_alpha_prime = {}, state.log_alpha, state.log_alpha_prime
    alpha = cfg.alpha_multiplier * jnp.exp(log_alpha.params)
    alpha_prime = jnp.minimum(jnp.exp(log_alpha_prime.params), MAX_ALPHA_PRIME) if cfg.lagrange else 1.0
    law, next_law = (nets.actor.apply(state.actor.params, obs) for obs in (batch.obs, batch.next_obs))
    # --- temperature and actor ---
    if cfg.learn_alpha:
        log_prob = law.log_prob(law.sample(draws.policy)[1])
        log_alpha, metrics = optim.step(actor_tx, alpha_loss, log_alpha, log_prob, batch, cfg)
    args = state.critic.params, alpha, batch, draws.policy, nets
    actor, actor_metrics = optim.step(actor_tx, actor_loss, state.actor, *args)
    # --- critics, and the multiplier of their gap ---
    value = next_value(state.critic_target, next_law, alpha, batch, draws.target, nets, cfg)
    target = td_target(batch.reward, batch.terminated, value, cfg.discount)
    args = target, proposals(law, next_law, draws), alpha_prime, batch, nets, cfg
    critic, critic_metrics = optim.step(critic_tx, critic_loss, state.critic, *args)
    metrics |= {**actor_metrics, **critic_metrics, "critic/next_value": value.mean()}
    if cfg.lagrange:
        args = metrics["critic/gap"], cfg
        log_alpha_prime, gap_metrics = optim.step(critic_tx, alpha_prime_loss, log_alpha_prime, *args)
        metrics |= gap_metrics
    # --- targets ---
    critic_target = optim.polyak(state.critic_target, critic.params, cfg.tau)
    return State(actor, critic, critic_target, log_alpha, log_alpha_prime, state.norm), metrics


def to_batch(norm: Norm, t: Transition, cfg: Config) -> Batch:
    action = jnp.clip(norm.action(t.action), -cfg.action_limit, cfg.action_limit)
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    return Batch(obs, action, t.reward, next_obs, t.terminated, dict(t.extras).get("weight"))


def make(cfg: Config, spec: EnvSpec) -> Algorithm:
    """Raises: ConfigError for goal-conditioned, discrete, pixel or chunked tasks, and for options out of range."""
    algorithm.require(spec, "cql")
    algorithm.require_rates(cfg.discount, cfg.tau)
    require_least(cfg, samples=1, temperature=1e-6, alpha_multiplier=0, action_limit=1e-6, conservative_weight=0)
    low, high = cfg.gap_clip
    if None not in (low, high) and low > high:
        raise ConfigError(f"gap_clip {low} {high}: its lower bound must not be above the upper one")
    nets = networks(cfg, spec)
    actor_tx, critic_tx = optimisers(cfg)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "actor", "critic")
        obs, action = (jnp.zeros((1, *shape), float_dtype()) for shape in (spec.obs_shape, spec.action_shape))
        actor, critic = nets.actor.init(keys.actor, obs), nets.critic.init(keys.critic, obs, action)
        actor, log_alpha = (optim.start(actor_tx, x) for x in (actor, jnp.zeros((), float_dtype())))
        trained, log_alpha_prime = (optim.start(critic_tx, x) for x in (critic, jnp.ones((), float_dtype())))
        return State(actor, trained, jax.tree.map(jnp.copy, critic), log_alpha, log_alpha_prime, start.norm)

    def update(state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        keys, one, many = streams(key, *Draws._fields), batch.action.shape, (cfg.samples, *batch.action.shape)
        shapes = {"policy": one, "target": many if cfg.max_backup else one, "now": many, "after": many}
        draws = {k: jax.random.normal(getattr(keys, k), v, batch.action.dtype) for k, v in shapes.items()}
        draws = Draws(uniform=jax.random.uniform(keys.uniform, many, batch.action.dtype, -1, 1), **draws)
        return update_with(state, to_batch(state.norm, batch, cfg), draws, nets, cfg)

    def law(state: State, obs: Observation) -> TanhGaussian:
        return nets.actor.apply(state.actor.params, as_input(state.norm, obs))

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        policy = law(state, obs)
        normal = jax.random.normal(key, policy.mean.shape, policy.mean.dtype)
        return ActOut(state.norm.raw_action(policy.sample(normal)[0]), carry)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(state.norm.raw_action(law(state, obs).mode()), carry)

    value = algorithm.least_q(nets.critic.apply, limit=cfg.action_limit)
    return Algorithm(init, update, act, act_eval, sample=batches.sampled(cfg.batch_size, spec.history), value=value)
