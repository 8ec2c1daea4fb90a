"""What the goal-conditioned algorithms share: options, networks, the policy's losses, one update, how they act.

Every one of them has some networks and the sum of their losses.  A call of `update` takes one Adam step on that sum;
then each target follows the parameters from before the step, target <- tau theta_t + (1 - tau) target, as the official
code does.  A loss gets the parameters that it trains first; all else it reads is frozen.
Networks as OGBench's (Park et al., 2024, arXiv:2410.20092): Dense, GELU (tanh approximation), LayerNorm in values;
without the norm in policies, whose last layer starts at a hundredth.  A policy is N(mean, 1), not squashed, or
categorical.  Goals are states.
Axes: B batch, S state, A action, E value heads.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core import algorithm, augment, goals, optim
from core.algorithm import Algorithm
from core.config import ConfigError, require_choices
from core.distributions import Categorical, Gaussian
from core.goals import Mixture
from core.losses import awr_weight, check_shapes, expectile_weight
from core.networks import MLP, Net, behind, encoder, ensemble, float_dtype, plain
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, Dataset, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition

PAD = 3  # pixels on each side, from which augmented pictures are cut


@dataclass(frozen=True)
class Config(algorithm.Config):
    batch_size: int = 1024
    actor_hidden: tuple[int, ...] = (512, 512, 512)  # of each policy
    lr: float = 3e-4
    discount: float = 0.99  # gamma, also of goals that are drawn geometrically
    temperature: float = 0.0  # of the policy that is judged: its standard deviation; logits are divided by it
    encoder: str = "impala_small"  # of pictures
    crop: float = 0.0  # pictures: how often a batch is cropped at random
    last_alone: bool = False  # histories: OGBench's, in which an episode's last state repeats itself


class State(NamedTuple):
    net: Trained  # parameters by the networks' names
    target: dict[str, PyTree]  # slow copies of some of them
    norm: Norm


class Batch(NamedTuple):
    """Transitions as the networks of those without a hierarchy read them."""

    obs: Array  # f32[B, S] or u8[B, H, W, C], as all states
    action: Array  # f32[B, A] or i32[B]
    reward: Array  # f32[B] success - 1
    mask: Array  # f32[B] 1 - success
    next_obs: Array
    goal: Array  # of the values
    actor_goal: Array  # of the policy


Policy = Gaussian | Categorical
VALUE_GOALS = Mixture(current=0.2, future=0.5, random=0.3, geometric=True)  # of values that are learned by one step


# --- networks ---


def eyes(cfg: Config, spec: EnvSpec) -> nn.Module | None:
    """A new encoder, None for states."""
    return encoder(cfg.encoder) if spec.pixels else None


def trunk(sizes: tuple[int, ...]) -> MLP:
    """Dense layers of a value."""
    return MLP(sizes, "gelu_tanh", norm="after", norm_eps=1e-6, weights="glorot")


def embedding(cfg: Config, spec: EnvSpec, sizes: tuple[int, ...], heads: int = 1, images: int = 1) -> Net:
    """(params, inputs [B, ...]) -> f32[B, D], or f32[E, B, D] of several heads; the first `images` are states."""
    module = trunk(sizes)
    return behind(eyes(cfg, spec), plain(module) if heads == 1 else ensemble(module, heads), images)


def value_net(cfg: Config, spec: EnvSpec, hidden: tuple[int, ...], heads: int = 2, images: int = 2) -> Net:
    """(params, inputs [B, ...]) -> f32[E, B], or f32[B] of one head; its first `images` inputs are states."""
    net = embedding(cfg, spec, (*hidden, 1), heads, images)
    return Net(net.init, lambda params, *inputs: net.apply(params, *inputs)[..., 0])


def actor_net(cfg: Config, spec: EnvSpec, size: int = 0, images: int = 2) -> Net:
    """(params, inputs) -> f32[B, size]: means or logits of actions where no size is given."""
    size = size or spec.num_actions or spec.action_dim
    module = MLP((*cfg.actor_hidden, size), "gelu_tanh", weights="glorot", head_weights="glorot:0.01")
    return behind(eyes(cfg, spec), plain(module), images)


def policy(spec: EnvSpec, out: Array) -> Policy:
    """Of actions, from the network's output."""
    return Categorical(out) if spec.num_actions else Gaussian(out, 0.0)


def critic_action(spec: EnvSpec, action: Array) -> Array:
    """Actions as critics read them: f32[B, A], discrete ones as one-hot rows."""
    return jax.nn.one_hot(action, spec.num_actions, dtype=float_dtype()) if spec.num_actions else action


def blank(spec: EnvSpec) -> tuple[Array, Array]:
    """(a state [1, ...], an action f32[1, ...] as critics read it) to make parameters with."""
    state = jnp.zeros((1, *spec.obs_shape), jnp.uint8 if spec.pixels else float_dtype())
    return state, jnp.zeros((1, spec.num_actions or spec.action_dim), float_dtype())


# --- losses ---


def implicit_value(
    value: Array, target: Array, target_next: Array, reward: Array, mask: Array, discount: float, tau: float
) -> tuple[Array, Metrics]:
    """Expectile regression of V towards what the best of the data's actions lead to, without a Q.

        y_e = r + gamma mask V'_e(s', g)
        u   = r + gamma mask min_e V'_e(s', g) - mean_e V'_e(s, g)
        L   = sum_e mean_B |tau - 1{u < 0}| (y_e - V_e(s, g))^2

    Args: value f32[E, B] V(s, g); target, target_next f32[E, B] the targets' at s and s'; reward, mask f32[B].
    """
    check_shapes(value=value, target=target, target_next=target_next)
    check_shapes(head=value[0], reward=reward, mask=mask)
    wanted = reward + discount * mask * target_next
    advantage = reward + discount * mask * target_next.min(axis=0) - target.mean(axis=0)
    loss = (expectile_weight(advantage, tau) * jnp.square(wanted - value)).mean(axis=1).sum()
    return loss, {"loss": loss, **spread(value.mean(axis=0))}


def spread(x: Array) -> Metrics:
    return {"mean": x.mean(), "max": x.max(), "min": x.min()}


def under(prefix: str, metrics: Metrics) -> Metrics:
    """The metrics with a prefix to their names."""
    return {f"{prefix}{name}": x for name, x in metrics.items()}


def cloning(pi: Policy, action: Array) -> Metrics:
    if isinstance(pi, Categorical):
        return {"log_prob": pi.log_prob(action).mean()}
    return {"log_prob": pi.log_prob(action).mean(), "mse": jnp.square(pi.mode() - action).mean()}


def awr(pi: Policy, action: Array, advantage: Array, alpha: float) -> tuple[Array, Metrics]:
    """-mean_B min(exp(alpha A), 100) log pi(a), for advantages f32[B] that carry no gradient."""
    log_prob = pi.log_prob(action)
    check_shapes(log_prob=log_prob, advantage=advantage)
    loss = -(awr_weight(advantage, alpha) * log_prob).mean()
    return loss, {"loss": loss, "advantage": advantage.mean(), **cloning(pi, action)}


def ddpg_bc(pi: Gaussian, action: Array, q: Array, alpha: float) -> tuple[Array, Metrics]:
    """-mean q / |q| - alpha mean log pi(a), for values f32[B] of the policy's own actions; |q| is their mean size."""
    log_prob = pi.log_prob(action)
    check_shapes(log_prob=log_prob, q=q)
    size = jnp.abs(q).mean()
    q_loss, bc_loss = -q.mean() / jax.lax.stop_gradient(size + 1e-6), -alpha * log_prob.mean()
    loss = q_loss + bc_loss
    metrics = {"loss": loss, "q_loss": q_loss, "bc_loss": bc_loss, "q": q.mean(), "q_size": size}
    return loss, {**metrics, **cloning(pi, action)}


def extraction(
    cfg: Any, pi: Policy, action: Array, q: Callable[[Array], Array], advantage: Callable[[], Array]
) -> tuple[Array, Metrics]:
    """The policy's loss by `cfg.actor_loss`: `ddpg_bc` of q(clip(mean of pi)), or `awr` of the data's advantages."""
    if cfg.actor_loss == "ddpgbc":
        return ddpg_bc(pi, action, q(jnp.clip(pi.mode(), -1, 1)), cfg.alpha)
    return awr(pi, action, advantage(), cfg.alpha)


def total(parts: dict[str, tuple[Array, Metrics]]) -> tuple[Array, Metrics]:
    """The sum of losses, and their metrics under their names."""
    metrics = [under(f"{group}/", own) for group, (_, own) in parts.items()]
    return sum(loss for loss, _ in parts.values()), dict(ChainMap(*metrics))


# --- the update ---


class Parts(NamedTuple):
    """What an algorithm brings."""

    # (params, the same frozen, targets, batch, nets, cfg, spec) -> (f32[], metrics): the sum of its losses
    loss: Callable[..., tuple[Array, Metrics]]
    nets: Any
    batch: type  # NamedTuple that the loss reads
    targets: tuple[str, ...] = ()  # networks with a slow copy


def objective(parts: Parts, cfg: Config, spec: EnvSpec) -> Callable[..., tuple[Array, Metrics]]:
    """(params, the same frozen, targets, batch) -> (f32[], metrics)."""
    return partial(parts.loss, nets=parts.nets, cfg=cfg, spec=spec)


def update_with(state: State, batch: Any, parts: Parts, cfg: Config, spec: EnvSpec) -> tuple[State, Metrics]:
    """One whole update."""
    before = state.net.params
    # --- all networks ---
    loss = objective(parts, cfg, spec)
    net, metrics = optim.step(optim.adam(cfg.lr), loss, state.net, before, state.target, batch)
    # --- targets, behind the parameters before the step ---
    target = {name: optim.polyak(old, before[name], cfg.tau) for name, old in state.target.items()}
    return State(net, target, state.norm), metrics


# --- the record ---


def to_batch(
    kind: type, norm: Norm, t: Transition, key: Key, cfg: Config, spec: EnvSpec, uncropped: tuple[str, ...] = ()
) -> Any:
    """A `Batch`, or another NamedTuple of its kind, whose other fields are what `core.goals.sampled` names.

    Args: uncropped: states that stay as they are where the others are cropped.
    """
    states = {"obs": t.obs.state, "next_obs": t.next_obs.state, "goal": t.obs.goal, **t.extras["states"]}
    states = {name: norm.state(x) for name, x in states.items()}
    if cfg.crop:
        keys = streams(key, "crop", "place")
        cropped = jax.random.bernoulli(keys.crop, cfg.crop)
        for name in states.keys() - uncropped:  # one place for all pictures of a row
            states[name] = jnp.where(cropped, augment.random_shift(keys.place, states[name], PAD), states[name])
    action = t.action if spec.num_actions else norm.action(t.action)
    mask = 1 - t.terminated.astype(t.reward.dtype)
    read = {**states, **t.extras["given"], "action": action, "reward": t.reward, "mask": mask}
    return kind(**{name: read[name] for name in kind._fields})


def sampled(cfg: Config, spec: EnvSpec, value: Mixture, actor: Mixture) -> Callable:
    """The `sample` of those without a hierarchy: goals of values and of the policy, drawn apart."""

    def of(dataset: Dataset, row: Array, key: Key):
        keys = streams(key, "value", "actor")
        goal, actor_goal = (
            goals.draw(dataset, row, key, mixture, cfg.discount)
            for key, mixture in ((keys.value, value), (keys.actor, actor))
        )
        return goal, {"actor_goal": actor_goal}, {}

    return goals.sampled(cfg.batch_size, of, spec.history, cfg.last_alone)


def check(cfg: Config, spec: EnvSpec, name: str) -> None:
    """Raises: ConfigError for tasks without goals or whose goals are no states, and for options out of range."""
    algorithm.require(spec, name, goal=True, discrete=True, pixels=True)
    require_choices(cfg)
    algorithm.require_rates(cfg.discount, getattr(cfg, "tau", 1.0))
    for mixture in (x for x in vars(cfg).values() if isinstance(x, Mixture)):
        goals.check(mixture, cfg.discount)
    if spec.goal_shape != spec.obs_shape:
        has = f"has goals {spec.goal_shape}" if spec.goal_shape != (0,) else "has no goal"
        raise ConfigError(f"{name} is told its goal as a state {spec.obs_shape}; {spec.name} {has}")
    if not 0 <= cfg.crop <= 1 or (cfg.crop and not spec.pixels):
        raise ConfigError(f"crop {cfg.crop} is a probability, and 0 where states are no pictures")
    if cfg.temperature < 0:
        raise ConfigError(f"temperature {cfg.temperature} must be at least 0")
    if cfg.last_alone and spec.history == 1:
        raise ConfigError("last_alone is about histories: set --env.history above 1 or leave it out")


def require_continuous(cfg: Any, spec: EnvSpec, name: str) -> None:
    """Raises: ConfigError where `ddpgbc` would take the gradient of a discrete action."""
    if spec.num_actions and cfg.actor_loss == "ddpgbc":
        raise ConfigError(f"{name}: {spec.name} has discrete actions, through which ddpgbc has no gradient; take awr")


def sample_at(pi: Policy, key: Key, temperature: float) -> Array:
    """Actions at a temperature; at 0 the mode."""
    if not temperature:
        return pi.mode()
    if isinstance(pi, Categorical):
        logits = pi.logits / temperature
        return Categorical(logits).sample(jax.random.gumbel(key, logits.shape, logits.dtype))
    return pi.sample(temperature * jax.random.normal(key, pi.mean.shape, pi.mean.dtype))


def flat_play(actor: Net, spec: EnvSpec) -> Callable[[PyTree, Array, Array, Key, float], Array]:
    """How one policy acts: see `assemble`."""

    def play(params: PyTree, obs: Array, goal: Array, key: Key, temperature: float) -> Array:
        return sample_at(policy(spec, actor.apply(params["actor"], obs, goal)), key, temperature)

    return play


def discounted_steps(discount: float, distance: float) -> float:
    """-(1 + gamma + ... + gamma^(d - 1))."""
    return -distance if discount == 1 else -(1 - discount**distance) / (1 - discount)


def assemble(
    cfg: Config,
    spec: EnvSpec,
    parts: Parts,
    init: dict[str, Callable[[Key], PyTree]],
    sample: Callable,
    play: Callable[[PyTree, Array, Array, Key, float], Array],
    value: Callable[[PyTree, Array, Array], Array] | None = None,
    value_at: Callable[[int], float] | None = None,
    uncropped: tuple[str, ...] = (),
) -> Algorithm:
    """The record of an algorithm.

    Args: init: key -> parameters, by the networks' names; play: (params, s, g, key, temperature) -> actions;
        value: (params, s, g) -> f32[B] V(s, g); value_at: what it is at a distance, by default -(1 - gamma^d) / (1 -
        gamma); uncropped: as for `to_batch`.
    """

    def first(key: Key, start: Start) -> State:
        keys = streams(key, *init)
        params = {name: net(getattr(keys, name)) for name, net in init.items()}
        target = {name: jax.tree.map(jnp.copy, params[name]) for name in parts.targets}
        return State(optim.start(optim.adam(cfg.lr), params), target, start.norm)

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        batch = to_batch(parts.batch, state.norm, t, key, cfg, spec, uncropped)
        return update_with(state, batch, parts, cfg, spec)

    def act(temperature: float, state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        norm = state.norm
        action = play(state.net.params, norm.state(obs.state), norm.state(obs.goal), key, temperature)
        return ActOut(action if spec.num_actions else norm.raw_action(jnp.clip(action, -1, 1)), carry)

    def goal_value(state: State, obs: Observation) -> Array:
        return value(state.net.params, state.norm.state(obs.state), state.norm.state(obs.goal))

    return Algorithm(
        first, update, partial(act, 1.0), partial(act, cfg.temperature), sample=sample,
        goal_value=goal_value if value else None,
        value_at=(value_at or partial(discounted_steps, cfg.discount)) if value else None,
    )  # fmt: skip
