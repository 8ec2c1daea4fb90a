"""DW: density-ratio weighting of offline data (Hong et al., 2023, arXiv:2310.04413), around another algorithm.

Two networks f_sa(s, a) and f_s(s) give logits c_b for each row of a batch, by a rule of the algorithm's own (`Rule`);
w = softmax_B(c) stands for the ratio of a better behaviour's density to the data's.  A call of `update`:
    w from the networks before their step, as constants; the algorithm's own update, each of its means over the batch
    replaced by sum_b w_b x_b
    one Adam step on    -sum_b w_b r^_b                                                  the weighted return
                        + F mean_B (g exp((f_sa + f_s)(s, a) / T) - exp(f_s(s') / T))^2  conservation of flow
                        + K sum_b w_b log w_b                                            closeness to uniform
r^ is the reward over the data's standard deviation, or scaled to [0, 1]; because the weights sum to 1, they do not
depend on a factor or a shift of all rewards.
The logits of the flow are not clipped.  In the authors' code the s' of a transition that ended the task is the first
state of the episode stored behind it, so that the flow leaks across episodes; here s' is the true successor, always.
Axes: B batch, S state, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core import optim
from core.algorithm import Algorithm, as_input
from core.config import ConfigError, require_choices
from core.losses import check_shapes
from core.networks import MLP, Net, float_dtype
from core.optim import Trained
from core.rng import streams
from core.types import ActOut, Array, Data, Dataset, EnvSpec, Key, Metrics, Norm, Observation, PyTree, Start, Transition


@dataclass(frozen=True)
class Options:
    """What an algorithm's config has besides its own."""

    ratio_lr: float = 1e-4
    ratio_temperature: float = 1.0  # T
    ratio_clip: float = 0.2  # c0: logits are clipped to +- (1 + c0)
    ratio_flow: float = 1.0  # F
    ratio_flow_discount: float = 1.0  # g
    ratio_kl: float = 0.2  # K
    ratio_reward: Literal["std", "range"] = "range"  # r^: over its standard deviation, or from 0 to 1


class State(NamedTuple):
    base: PyTree  # the algorithm's own, with a `norm`
    ratio: Trained  # params {"sa", "s"}


class Networks(NamedTuple):
    sa: Net  # (params, s f32[B, S], a f32[B, A]) -> f_sa f32[B]
    s: Net  # (params, s) -> f_s f32[B]


class Batch(NamedTuple):
    """Transitions as the networks read them."""

    obs: Array  # f32[B, S]
    action: Array  # f32[B, A]
    next_obs: Array  # f32[B, S]
    reward: Array  # f32[B] r^


class Logits(NamedTuple):
    """Of weights over the batch, f32[B]."""

    row: Array  # c: of every mean
    policy: Array | None = None  # of Q in the policy's loss, and of the penalty K, where these have their own


class Scale(NamedTuple):
    """r^ = (r - shift) / scale."""

    shift: Array  # f32[]
    scale: Array  # f32[]


Rule = Callable[[Array, Array, Options], Logits]  # (f_sa f32[B], f_s f32[B], cfg)


def bounded(logit: Array, cfg: Options) -> Array:
    """`logit` within +- (1 + c0), elementwise."""
    return jnp.clip(logit, -1 - cfg.ratio_clip, 1 + cfg.ratio_clip)


def networks(hidden: tuple[int, ...], weights: str) -> Networks:
    mlp = MLP((*hidden, 1), weights=weights)
    return Networks(
        Net(mlp.init, lambda params, obs, action: mlp.apply(params, obs, action)[..., 0]),
        Net(mlp.init, lambda params, obs: mlp.apply(params, obs)[..., 0]),
    )


def raw_logits(params: PyTree, batch: Batch, nets: Networks) -> tuple[Array, Array]:
    """(f_sa f32[B], f_s f32[B]) of the batch."""
    return nets.sa.apply(params["sa"], batch.obs, batch.action), nets.s.apply(params["s"], batch.obs)


def weights(params: PyTree, batch: Batch, nets: Networks, cfg: Options, rule: Rule) -> dict[str, Array]:
    """{"weight"} and, where the rule has one, {"policy_weight"}, f32[B], as the algorithm finds them in its extras.

    B times a softmax, so that a mean over the batch of weight times x is sum_b w_b x_b.
    """
    logits = rule(*raw_logits(params, batch, nets), cfg)
    named = {"weight": logits.row} | ({} if logits.policy is None else {"policy_weight": logits.policy})
    return {name: len(logit) * jax.nn.softmax(logit) for name, logit in named.items()}


def loss(params: PyTree, batch: Batch, nets: Networks, cfg: Options, rule: Rule) -> tuple[Array, Metrics]:
    """What the networks descend."""
    f_sa, f_s = raw_logits(params, batch, nets)
    check_shapes(f_sa=f_sa, f_s=f_s, reward=batch.reward)
    logits, temperature = rule(f_sa, f_s, cfg), cfg.ratio_temperature
    reward = (jax.nn.softmax(logits.row) * batch.reward).sum()
    after = jnp.exp(nets.s.apply(params["s"], batch.next_obs) / temperature)
    flow = jnp.square(cfg.ratio_flow_discount * jnp.exp((f_sa + f_s) / temperature) - after).mean()
    log_w = jax.nn.log_softmax(logits.row if logits.policy is None else logits.policy)
    kl = (jnp.exp(log_w) * log_w).sum()
    total = -reward + cfg.ratio_flow * flow + cfg.ratio_kl * kl
    return total, {"ratio/loss": total, "ratio/reward": reward, "ratio/flow": flow, "ratio/kl": kl}


def to_batch(norm: Norm, t: Transition) -> Batch:
    obs, next_obs = as_input(norm, t.obs), as_input(norm, t.next_obs)
    return Batch(obs, norm.action(t.action), next_obs, t.extras["ratio_reward"])


Learn = Callable[[PyTree, Transition], tuple[PyTree, Metrics]]  # the algorithm's update for given draws


def update_with(
    state: State, t: Transition, learn: Learn, nets: Networks, cfg: Options, rule: Rule
) -> tuple[State, Metrics]:
    """One whole update; extras of `t`: "ratio_reward" f32[B]."""
    batch = to_batch(state.base.norm, t)
    # --- weights, then the algorithm ---
    given = weights(state.ratio.params, batch, nets, cfg, rule)
    base, metrics = learn(state.base, t._replace(extras={**t.extras, **given}))
    # --- density ratio ---
    ratio, own = optim.step(optim.adam(cfg.ratio_lr), loss, state.ratio, batch, nets, cfg, rule)
    own |= {"ratio/weight_max": given["weight"].max(), "ratio/weight_min": given["weight"].min()}
    return State(base, ratio), {**metrics, **own}


def reward_scale(dataset: Dataset, kind: str) -> Scale:
    """How the rewards of a dataset become r^ (host).

    Raises: ConfigError where all rewards are alike.
    """
    reward = np.asarray(dataset.reward, np.float64)[np.asarray(dataset.row)]
    shift, scale = (0.0, reward.std()) if kind == "std" else (reward.min(), np.ptp(reward))
    if not np.ptp(reward):
        raise ConfigError(f"all rewards are {reward[0]:g}: no weights can be learned from them, train without DW")
    return Scale(np.float32(shift), np.float32(scale))


def check(cfg: Options) -> None:
    """Raises: ConfigError for options out of range; UnknownName."""
    require_choices(cfg)
    if cfg.ratio_temperature <= 0 or cfg.ratio_clip <= -1 or cfg.ratio_lr < 0:
        raise ConfigError(
            f"ratio_temperature {cfg.ratio_temperature} must be above 0, ratio_clip {cfg.ratio_clip} above -1, "
            f"ratio_lr {cfg.ratio_lr} at least 0"
        )
    if min(cfg.ratio_flow, cfg.ratio_kl, cfg.ratio_flow_discount) < 0:
        raise ConfigError(
            f"ratio_flow {cfg.ratio_flow}, ratio_kl {cfg.ratio_kl} and ratio_flow_discount {cfg.ratio_flow_discount} "
            f"must be at least 0"
        )


def weighted(base: Algorithm, cfg: Options, spec: EnvSpec, nets: Networks, rule: Rule) -> Algorithm:
    """The algorithm `base`, whose batch takes row weights from its extras, with learned ones.

    It draws from its keys what it draws without them.  Raises: ConfigError for options out of range.
    """
    check(cfg)

    def init(key: Key, start: Start) -> State:
        keys = streams(key, "ratio_sa", "ratio_s")
        obs = jnp.zeros((1, *spec.obs_shape), float_dtype())
        action = jnp.zeros((1, spec.action_dim), float_dtype())
        params = {"sa": nets.sa.init(keys.ratio_sa, obs, action), "s": nets.s.init(keys.ratio_s, obs)}
        return State(base.init(key, start), optim.start(optim.adam(cfg.ratio_lr), params))

    def sample(data: Data, key: Key) -> Transition:
        t = base.sample(data, key)
        reward = (t.reward - data.extra.shift) / data.extra.scale
        return t._replace(extras={**t.extras, "ratio_reward": reward})

    def update(state: State, t: Transition, key: Key) -> tuple[State, Metrics]:
        return update_with(state, t, lambda base_state, t: base.update(base_state, t, key), nets, cfg, rule)

    def act(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return base.act(state.base, obs, carry, key)

    def act_eval(state: State, obs: Observation, carry: PyTree, key: Key) -> ActOut:
        return base.act_eval(state.base, obs, carry, key)

    def value(state: State, obs: Observation, action: Array) -> Array:
        return base.value(state.base, obs, action)

    return base._replace(
        init=init, update=update, act=act, act_eval=act_eval, sample=sample,
        prepare=lambda dataset, start: reward_scale(dataset, cfg.ratio_reward), value=value if base.value else None,
    )  # fmt: skip
