"""`dw_iql_jax*`: whole updates of IQL and of the density ratio that weighs its rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from algos import dw, dw_iql, iql
from core import optim
from core.types import EnvSpec, Observation, Transition
from tests.golden.case import Case
from tests.golden.iql import (
    Check,
    check_net,
    check_update,
    count_steps,
    flax_batch,
    flax_config,
    flax_layers,
    flax_wiring,
    hidden,
    in_both_precisions,
    initial,
    networks,
    params,
)

NETS = {"sa": "discriminator.MLP_0", "s": "discriminator.MLP_1"}


def _options(case: Case) -> dw.Options:
    """As published, but for what the file says."""
    said = {"flow": "ratio_flow", "kl": "ratio_kl", "weight_temp": "ratio_temperature", "clip_ratio": "ratio_clip"}
    return dw.Options(**{field: case.hyper(name) for name, field in said.items() if case.has(f"hp.{name}")})


def _transition(batch: iql.Batch, reward) -> Transition:
    none = jnp.zeros(len(batch.reward))
    seen = (Observation(state, none[:, None], none, none) for state in (batch.obs, batch.next_obs))
    obs, next_obs = seen
    extras = {"ratio_reward": reward}
    return Transition(obs, batch.action, batch.reward, next_obs, batch.terminated, none, extras)


def _check_ratio(check: Check, t: int, ratio_params, batch: dw.Batch, metrics, nets, cfg: dw.Options) -> None:
    """What the authors' code tells of the density ratio; params: before the step."""
    f_sa, f_s = dw.raw_logits(ratio_params, batch, nets)
    clipped = dw.bounded(f_sa, cfg), dw.bounded(f_s, cfg)
    weight = dw.weights(ratio_params, batch, nets, cfg, dw_iql.logits)["weight"] / len(f_s)
    ours = {
        "weights": weight, "weight_max": weight.max(), "weight_min": weight.min(), "weight_mean": weight.mean(),
        "norm_ratio": weight.mean(), "sa_logits": f_sa, "s_logits": f_s, "sa_ratios": f_sa.mean(),
        "s_ratios": f_s.mean(), "next_s_ratios": nets.s.apply(ratio_params["s"], batch.next_obs).mean(),
        "sa_clipped_ratios": clipped[0].mean(), "s_clipped_ratios": clipped[1].mean(),
        "clipped_ratio": sum(clipped).mean(), "discriminator_reward": batch.reward.mean(),
        "discriminator_loss": metrics["ratio/loss"], "reward_loss": -metrics["ratio/reward"],
        "flow_consistency_loss": metrics["ratio/flow"], "kl_penalty_loss": metrics["ratio/kl"],
    }  # fmt: skip
    for name, value in ours.items():
        check(f"step{t}.{name}", value)


def _run(case: Case, check: Check, dtype) -> None:
    wiring, cfg, options = flax_wiring(case), flax_config(case), _options(case)
    layers = {name: flax_layers(case, net) for name, net in NETS.items()}
    ratio_nets = dw.Networks(
        *(getattr(dw.networks(hidden(case, layers[name]), cfg.weights), name) for name in ("sa", "s"))
    )
    first = flax_batch(case, 0, dtype)
    spec = EnvSpec("golden", first.obs.shape[1:], first.action.shape[-1])
    nets = networks(case, wiring, cfg, spec)
    ratio = {name: params(case, net, dtype) for name, net in layers.items()}
    state = dw.State(initial(case, wiring, cfg, spec, dtype), optim.start(optim.adam(options.ratio_lr), ratio))

    def learn(base: iql.State, t: Transition):
        weighted = iql.Batch(t.obs.state, t.action, t.reward, t.next_obs.state, t.terminated, t.extras["weight"])
        return iql.update_with(base, weighted, None, nets, cfg)

    update = jax.jit(lambda state, t: dw.update_with(state, t, learn, ratio_nets, options, dw_iql.logits))
    for t in range(count_steps(case)):
        reward = jnp.asarray(case.read(f"step{t}.batch.normalized_rewards"), dtype)
        before, batch = state, flax_batch(case, t, dtype)
        transition = _transition(batch, reward)
        state, metrics = update(before, transition)
        check_update(case, check, t, before.base, state.base, batch, metrics, nets, wiring, cfg)
        seen = dw.to_batch(before.base.norm, transition)
        _check_ratio(check, t, before.ratio.params, seen, metrics, ratio_nets, options)
        for name, net in layers.items():
            check_net(check, t, net, state.ratio.params[name])


def run(case: Case) -> None:
    in_both_precisions(case, _run)
