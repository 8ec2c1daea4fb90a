"""PPO on the chains of denoising policies: what ReinFlow, DPPO and Gaussian PPO share.  Not an algorithm by itself.

A call of `update` on a rollout [T, B] of chunks:
    r~     = rewards over the running standard deviation of the discounted return
    A      = generalised advantage estimates by chunk (gamma, lambda), R = A + V(s)
    items  = pairs (chunk, level): a whole chain is one item, or each of its J tuned steps is
    rho    = exp(l - l_old), l what the policy makes of an item's log-probability
    L_pi   = mean max(-A' rho, -A' clip(rho, 1 - eps_j, 1 + eps_j)),  A' standardised over the minibatch
    L_V    = mean (V(s) - R)^2 / 2
by AdamW, apart for actor and critic, `epochs` times over the items in shuffled minibatches; an epoch leaves out what
does not fill one.  When a step's estimate of the KL divergence exceeds its limit, the iteration's later steps are left
out.  Learning rates follow a schedule over iterations (calls of `update`).
Beyond the official code (ReinFlow's and DPPO's): a time limit bootstraps with the value of the true successor; their
rule, by which it ends the task, is `time_limit="terminate"`.  The return that scales rewards is discounted by gamma, as
ReinFlow's is (DPPO's always by 0.99).  A minibatch goes through the networks in parts (`microbatch`), of which the
gradients are averaged.
Axes: T time, B environments, N = T * B chunks, J levels, H steps of a chunk, A action, K steps of a chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core import algorithm, augment, batches, chunk_policy, critics, optim, running
from core.algorithm import Algorithm
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import ConfigError, require_choices, require_least
from core.critics import Network, TimeLimit, value_ends
from core.losses import ppo_clip
from core.networks import Net
from core.optim import Trained
from core.returns import gae
from core.rng import streams
from core.running import RewardScale
from core.types import ActOut, Array, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

HIGHEST = "highest"  # precision of products: with a GPU's default, acting and updating disagree by 1e-3 in l


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 50_000  # items of a minibatch
    microbatch: int = 0  # items of it that the networks see at a time; 0: all, on a CPU about a thousand
    epochs: int = 5  # passes over the items
    duplicates: int = 1  # how often an epoch visits each item
    net: PolicyNet = field(default_factory=PolicyNet)
    denoising: Denoising = field(default_factory=Denoising)
    discount: float = 0.99  # gamma, per chunk
    lam: float = 0.95  # lambda
    clip: float = 0.01  # eps
    normalize_advantage: bool = True  # A' standardised over the minibatch
    value_weight: float = 0.5  # of L_V
    value_clip: float = 0.0  # V moves by at most this from its value at the rollout; 0: freely
    entropy_weight: float = 0.0
    bc_weight: float = 0.0  # of the regulariser towards the policy that fine-tuning starts from
    actor_lr: float = 1e-4
    actor_lr_min: float = 0.0  # at the end of a cycle, and where it warms up at its beginning
    critic_lr: float = 1e-3
    critic_lr_min: float = 0.0
    lr_cycle: int = 0  # iterations of a cosine cycle; 0: constant rates
    lr_warmup: int = 0  # of those, from the least to the full rate
    actor_decay: float = 0.0  # of AdamW
    critic_decay: float = 0.0
    max_grad_norm: float = 0.0  # 0: not clipped
    critic_warmup: int = 0  # iterations in which only the critic learns
    target_kl: float = 1.0  # 0: no limit
    critic: Network = field(default_factory=Network)
    scale_rewards: bool = True
    reward_shift: float = 0.0  # added to the reward for each step of the environment
    success_bonus: float = 0.0  # added for a chunk that succeeds
    time_limit: TimeLimit = "bootstrap"  # what follows a truncated episode
    augment: int = 0  # images are shifted at random by up to this many pixels; 0: not


class State(NamedTuple):
    actor: Trained
    critic: Trained
    frozen: PyTree  # parameters that fine-tuning began with, where something needs them
    rewards: RewardScale
    norm: Norm
    iteration: Array  # i32[] calls of `update`


class Judged(NamedTuple):
    """What the policy now makes of items, f32[b] each."""

    log_prob: Array  # l
    entropy: Array
    clamped: Array  # share that is at a bound of its range, and gives no gradient


class Record(NamedTuple):
    """What acting leaves for the update."""

    chain: Array  # f32[B, K + 1, H, A]; of DPPO the tuned part, K' + 1
    log_prob: Array  # f32[B, J] l at the time


class Actor(NamedTuple):
    """What a kind of policy brings."""

    levels: int  # J
    init: Callable[[Key, Start], tuple[PyTree, PyTree, Norm]]  # -> (parameters, frozen, statistics of its data)
    play: Callable[[State, Observation, Key], tuple[Array, Record]]  # -> (end of the chain f32[B, H, A], record)
    best: Callable[[State, Observation, Key], Array]  # f32[B, H, A] as it is judged
    judge: Callable[[PyTree, State, Observation, Array, Array], Judged]  # (params, state, obs, chain, level i32[b])
    clip: Callable[[Array], Array]  # level -> eps_j
    shape_advantage: Callable[[Array, Array], Array]  # (advantage, standardised or not, level) -> A'
    penalty: Callable[[PyTree, State, Observation, Key], Array] | None = None  # f32[], taken bc_weight times


class Batch(NamedTuple):
    obs: Observation  # [b]
    chain: Array  # f32[b, K + 1, H, A]
    log_prob: Array  # f32[b] l_old
    level: Array  # i32[b]
    advantage: Array  # f32[b]
    ret: Array  # f32[b] R
    value: Array  # f32[b] V(s) at the rollout


def advantages(state: State, t: Transition, net: Net, cfg: Config) -> tuple[RewardScale, Array, Array]:
    """(statistics of rewards, A, V) f32[T, B] of a rollout."""
    over, rewards = t.terminated | t.truncated, running.renewed(state.rewards, t.obs.step[0] == 0)
    executed = t.next_obs.step - t.obs.step  # a chunk stops where its episode ends
    reward = t.reward + cfg.reward_shift * executed + cfg.success_bonus * t.success
    if cfg.scale_rewards:
        rewards, reward = running.scale_rewards(rewards, reward, over, cfg.discount, ddof=1)
    value, next_value = (net.apply(state.critic.params, state.norm, obs) for obs in (t.obs, t.next_obs))
    terminated = value_ends(t, cfg.time_limit)
    return rewards, gae(reward, value, next_value, terminated, t.truncated, cfg.discount, cfg.lam), value


def shaped(batch: Batch, actor: Actor, cfg: Config) -> Batch:
    """A whole minibatch with A' in the place of A."""
    advantage = batch.advantage
    if cfg.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    return batch._replace(advantage=actor.shape_advantage(advantage, batch.level))


def actor_loss(
    params: PyTree, state: State, batch: Batch, key: Key, actor: Actor, cfg: Config
) -> tuple[Array, Metrics]:
    """L_pi - entropy_weight * entropy + bc_weight * regulariser of `shaped` items -> (f32[], metrics)."""
    with jax.default_matmul_precision(HIGHEST):
        judged = actor.judge(params, state, batch.obs, batch.chain, batch.level)
        penalty = actor.penalty(params, state, batch.obs, key) if cfg.bc_weight else None
    log_ratio = judged.log_prob - batch.log_prob
    total, metrics = ppo_clip(log_ratio, batch.advantage, actor.clip(batch.level))
    entropy = judged.entropy.mean()
    metrics |= {"policy/loss": total, "policy/entropy": entropy, "policy/clamped": judged.clamped.mean()}
    total = total - cfg.entropy_weight * entropy
    if cfg.bc_weight:
        metrics["policy/bc"] = penalty
        total = total + cfg.bc_weight * penalty
    return total, metrics


def critic_loss(params: PyTree, norm: Norm, batch: Batch, net: Net, cfg: Config) -> tuple[Array, Metrics]:
    """L_V of items, unweighted -> (f32[], metrics)."""
    value = net.apply(params, norm, batch.obs)
    squared = jnp.square(value - batch.ret)
    if cfg.value_clip:
        moved = batch.value + jnp.clip(value - batch.value, -cfg.value_clip, cfg.value_clip)
        squared = jnp.maximum(squared, jnp.square(moved - batch.ret))
    return squared.mean() / 2, {"value/loss": squared.mean() / 2, "value/mean": value.mean()}


def rate(high: float, low: float, cfg: Config) -> optim.Schedule:
    """Learning rate by iteration."""
    return optim.warmup_cosine(low, high, cfg.lr_warmup, cfg.lr_cycle) if cfg.lr_cycle else lambda iteration: high


def at_once(cfg: Config) -> int:
    """Items of a minibatch that the networks see at a time."""
    if cfg.microbatch or jax.default_backend() != "cpu":
        return cfg.microbatch or cfg.batch_size
    fitting = max(size for size in range(1, min(cfg.batch_size, 1_000) + 1) if cfg.batch_size % size == 0)
    return fitting if fitting >= 100 else cfg.batch_size  # short of divisors


def check(cfg: Config, given: Policy, actor: Actor) -> None:
    """Raises: ConfigError for options out of range; UnknownName."""
    require_choices(cfg)
    if min(cfg.epochs, cfg.duplicates) < 1 or cfg.batch_size < 2 or cfg.clip <= 0:
        raise ConfigError(
            f"epochs {cfg.epochs} and duplicates {cfg.duplicates} must be at least 1, batch_size {cfg.batch_size} 2, "
            f"clip {cfg.clip} positive"
        )
    if not 0 <= cfg.lam <= 1 or not 0 <= cfg.discount <= 1:
        raise ConfigError(f"lam {cfg.lam} and discount {cfg.discount} must lie in [0, 1]")
    if cfg.microbatch < 0 or (cfg.microbatch and cfg.batch_size % cfg.microbatch):
        raise ConfigError(f"microbatch {cfg.microbatch} must divide batch_size {cfg.batch_size}, or be 0")
    names = ("value_weight", "value_clip", "entropy_weight", "bc_weight", "target_kl", "max_grad_norm", "augment")
    require_least(cfg, **dict.fromkeys(names, 0))
    chunk_policy.require_images(cfg.augment, given)
    if cfg.bc_weight and not actor.penalty:
        raise ConfigError("bc_weight: this policy has no regulariser, leave it at 0")


def make(cfg: Config, spec: EnvSpec, given: Policy, actor: Actor) -> Algorithm:
    """Raises: ConfigError for options out of range."""
    check(cfg, given, actor)
    net, clip, size = critics.of_observations(cfg.critic, given), cfg.max_grad_norm, at_once(cfg)
    # AdamW's step is proportional to the learning rate, which `optim.apply` puts in
    actor_tx, critic_tx = (
        optim.adam(1.0, weight_decay=decay, max_norm=clip) for decay in (cfg.actor_decay, cfg.critic_decay)
    )
    actor_lr, critic_lr = rate(cfg.actor_lr, cfg.actor_lr_min, cfg), rate(cfg.critic_lr, cfg.critic_lr_min, cfg)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "actor", "critic")
        params, frozen, norm = actor.init(keys.actor, start)
        rewards = running.reward_scale(start.num_envs, count=1e-4)
        values = net.init(keys.critic, spec)
        return State(optim.start(actor_tx, params), optim.start(critic_tx, values), frozen, rewards, norm, jnp.int32(0))

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        keys, chunks = streams(key, "augment", "epochs", "penalty"), t.reward.size
        items = chunks * actor.levels
        if items * cfg.duplicates < cfg.batch_size:
            raise ConfigError(
                f"a rollout of {chunks} chunks makes {items * cfg.duplicates} items, less than one minibatch of "
                f"{cfg.batch_size}: lower --config.batch-size, or raise --online.length or --online.envs"
            )
        # --- advantages ---
        rewards, advantage, value = advantages(state, t, net, cfg)
        flat = jax.tree.map(
            lambda x: x.reshape(chunks, *x.shape[2:]), (t.obs, t.extras, advantage, advantage + value, value)
        )
        obs, record, advantage, ret, value = flat
        if cfg.augment:
            obs = augment.shifted(keys.augment, obs, cfg.augment)
            record = record._replace(log_prob=_again(state, obs, record.chain))

        # --- gradient steps ---
        learns, lr = optim.lockstep(state.iteration) >= cfg.critic_warmup, critic_lr(state.iteration)
        lr_actor = actor_lr(jnp.maximum(state.iteration - cfg.critic_warmup, 0))

        def one(carry: tuple[Trained, Trained, Array], inputs: tuple[Array, Key]) -> tuple[PyTree, Metrics]:
            rows, key = inputs
            row, level = rows // actor.levels, rows % actor.levels
            of_row = (obs, record.chain), (advantage, ret, value)
            (o, c), rest = jax.tree.map(lambda x: x[row], of_row)
            batch = shaped(Batch(o, c, record.log_prob[row, level], level, *rest), actor, cfg)

            def step(carry: tuple[Trained, Trained, Array]) -> tuple[PyTree, Metrics]:
                trained, values, _ = carry

                def of_critic(params: PyTree, batch: Batch, _: None) -> tuple[Array, Metrics]:
                    return critic_loss(params, state.norm, batch, net, cfg)

                def of_actor(params: PyTree, batch: Batch, key: Key) -> tuple[Array, Metrics]:
                    return actor_loss(params, state, batch, key, actor, cfg)

                grads, metrics = optim.mean_grad(of_critic, values.params, batch, None, size)
                grads = jax.tree.map(lambda g: cfg.value_weight * g, grads)
                values = optim.apply(critic_tx, values, grads, lr)
                grads, more = optim.mean_grad(of_actor, trained.params, batch, key, size)
                moved = optim.apply(actor_tx, trained, grads, lr_actor)
                trained = jax.tree.map(lambda new, old: jnp.where(learns, new, old), moved, trained)
                stop = more["policy/kl"] > cfg.target_kl if cfg.target_kl else jnp.bool_(False)
                return (trained, values, stop), {**metrics, **more}

            # of several seeds it is decided one by one: all steps are computed, and some are not taken
            return optim.when(~carry[2], step, carry)

        rows = batches.minibatches(keys.epochs, items, cfg.batch_size, cfg.epochs, cfg.duplicates)
        start = state.actor, state.critic, jnp.bool_(False)
        (trained, values, _), metrics = jax.lax.scan(one, start, (rows, jax.random.split(keys.penalty, len(rows))))
        first = metrics.pop("policy/ratio")[0]  # 1 unless sampler and likelihood differ
        done = jnp.isfinite(metrics["policy/kl"]).mean()
        metrics = {**jax.tree.map(jnp.nanmean, metrics), "policy/first_ratio": first, "policy/steps_done": done}
        return State(trained, values, state.frozen, rewards, state.norm, state.iteration + 1), metrics

    def _again(state: State, obs: Observation, states: Array) -> Array:
        """l f32[N, J] of all items, as the policy sees them now."""

        def one(row: tuple[Observation, Array]) -> Array:
            repeated = jax.tree.map(lambda x: jnp.repeat(x[None], actor.levels, axis=0), row)
            with jax.default_matmul_precision(HIGHEST):
                return actor.judge(state.actor.params, state, *repeated, jnp.arange(actor.levels)).log_prob

        return jax.lax.map(one, (obs, states), batch_size=256)

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        with jax.default_matmul_precision(HIGHEST):
            x, record = actor.play(state, obs, key)
        return ActOut(given.out(state.norm, x), carry, record)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return ActOut(given.out(state.norm, actor.best(state, obs, key)), carry)

    return Algorithm(init, update, act, act_eval)
