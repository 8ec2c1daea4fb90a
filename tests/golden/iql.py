"""`corl_iql_*`, `official_iql_jax*`: whole IQL updates, each from the state that our own previous one left."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos import iql
from core import optim
from core.dataset import identity_norm
from core.losses import awr_weight
from core.networks import member
from core.types import EnvSpec
from tests.golden.case import Case, Uncheckable

# float32: relative to the array's largest entry, because Adam divides by small gradients, or to a part of its step,
# because what steps have cancelled keeps their rounding
TOLERANCES = {"x64": (1e-6, 1e-9), "float32": (1e-4, 1e-4)}
Check = Callable[[str, object], None]  # (name of the file's array, ours)


class Layer(NamedTuple):
    """Names of one linear layer's arrays, without the "init." or "step0." before them."""

    kernel: str
    bias: str
    transposed: bool  # torch's weight


class Wiring(NamedTuple):
    """Where a file keeps the networks: for each its layers in order."""

    actor: list[Layer]
    critics: tuple[list[Layer], list[Layer]]
    targets: tuple[list[Layer], list[Layer]]
    value: list[Layer]
    log_std: str  # empty: the policy is deterministic


def torch_layers(case: Case, net: str) -> list[Layer]:
    return _layers(case, net, r"\.net\.(\d+)\.", "weight", "bias")


def flax_layers(case: Case, net: str) -> list[Layer]:
    return _layers(case, net, r"\.Dense_(\d+)\.", "kernel", "bias")


def _layers(case: Case, net: str, number: str, kernel: str, bias: str) -> list[Layer]:
    found = [re.fullmatch(rf"init\.({re.escape(net)}{number}){kernel}", key) for key in case.keys(f"init.{net}")]
    ordered = sorted((match for match in found if match), key=lambda match: int(match[2]))
    if not ordered:
        raise Uncheckable(f"no layers of '{net}'")
    return [Layer(match[1] + kernel, match[1] + bias, kernel == "weight") for match in ordered]


def params(case: Case, layers: list[Layer], dtype) -> dict:
    """The initial parameters, as flax has them."""

    def one(layer: Layer) -> dict:
        kernel = case.read(f"init.{layer.kernel}").astype(dtype)
        return {
            "kernel": kernel.T if layer.transposed else kernel,
            "bias": case.read(f"init.{layer.bias}").astype(dtype),
        }

    return jax.tree.map(jnp.asarray, {"params": {f"Dense_{i}": one(layer) for i, layer in enumerate(layers)}})


def hidden(case: Case, layers: list[Layer]) -> tuple[int, ...]:
    return tuple(case.read(f"init.{layer.bias}").shape[0] for layer in layers[:-1])


def networks(case: Case, wiring: Wiring, cfg: iql.Config, spec: EnvSpec) -> iql.Networks:
    """Actor, critics and value, each of its own depth and width."""

    def of(layers: list[Layer]) -> iql.Networks:
        return iql.networks(replace(cfg, hidden=hidden(case, layers)), spec)

    return iql.Networks(of(wiring.actor).actor, of(wiring.critics[0]).critic, of(wiring.value).value)


def initial(case: Case, wiring: Wiring, cfg: iql.Config, spec: EnvSpec, dtype) -> iql.State:
    def pair(nets):
        return jax.tree.map(lambda *x: jnp.stack(x), *(params(case, layers, dtype) for layers in nets))

    actor = {"mean": params(case, wiring.actor, dtype)}
    if wiring.log_std:
        actor["log_std"] = jnp.asarray(case.read(f"init.{wiring.log_std}"), dtype)
    actor_tx, critic_tx, value_tx = iql.optimisers(cfg)
    return iql.State(
        optim.start(actor_tx, actor),
        optim.start(critic_tx, pair(wiring.critics)),
        pair(wiring.targets),
        optim.start(value_tx, params(case, wiring.value, dtype)),
        jax.tree.map(jnp.asarray, identity_norm(spec.obs_shape[0], spec.action_dim)),
    )


def check_net(check: Check, t: int, layers: list[Layer], ours: dict) -> None:
    for i, layer in enumerate(layers):
        mine = ours["params"][f"Dense_{i}"]
        check(f"step{t}.{layer.kernel}", mine["kernel"].T if layer.transposed else mine["kernel"])
        check(f"step{t}.{layer.bias}", mine["bias"])


def check_state(check: Check, t: int, wiring: Wiring, state: iql.State) -> None:
    check_net(check, t, wiring.actor, state.actor.params["mean"])
    check_net(check, t, wiring.value, state.value.params)
    for e in (0, 1):
        check_net(check, t, wiring.critics[e], member(state.critic.params, e))
        check_net(check, t, wiring.targets[e], member(state.critic_target, e))
    if wiring.log_std:
        check(f"step{t}.{wiring.log_std}", state.actor.params["log_std"])


def in_both_precisions(case: Case, run: Callable[[Case, Check, type], None]) -> None:
    for label, dtype in (("x64", np.float64), ("float32", np.float32)):
        rtol, atol = TOLERANCES[label]

        def check(name: str, ours, label=label, rtol=rtol, atol=atol) -> None:
            scale = max(float(np.abs(case.read(name)).max()), 1e-4) if label == "float32" else 1.0
            case.check(f"{label} {name}", ours, name, rtol, atol * scale)

        with jax.enable_x64(label == "x64"):
            run(case, check, dtype)


def advantage(state: iql.State, value_params, batch: iql.Batch, nets: iql.Networks):
    """min_e Q'_e(s, a) - V(s), by the target critics of `state`."""
    q = nets.critic.apply(state.critic_target, batch.obs, batch.action).min(axis=0)
    return q - nets.value.apply(value_params, batch.obs)


# --- CORL: torch's layers, the old V ---
def _corl(case: Case, check: Check, dtype) -> None:
    case.ignore("hp.hidden")  # the arrays decide
    deterministic = case.hyper("deterministic")
    wiring = Wiring(
        torch_layers(case, "actor.net"),
        (torch_layers(case, "qf.q1"), torch_layers(case, "qf.q2")),
        (torch_layers(case, "q_target.q1"), torch_layers(case, "q_target.q2")),
        torch_layers(case, "vf.v"),
        "" if deterministic else "actor.log_std",
    )
    lr = case.hyper("lr")
    cfg = iql.Config(
        policy="deterministic" if deterministic else "gaussian",
        order="corl",
        actor_lr=lr,
        critic_lr=lr,
        value_lr=lr,
        actor_steps=case.hyper("max_steps"),
        discount=case.hyper("discount"),
        tau=case.hyper("tau"),
        expectile=case.hyper("iql_tau"),
        beta=case.hyper("beta"),
        max_weight=case.hyper("exp_adv_max"),
        log_std_min=case.hyper("log_std_min"),
        log_std_max=case.hyper("log_std_max"),
    )
    steps, _, state_dim = case.read("batch.s").shape
    spec = EnvSpec("golden", (state_dim,), case.read("batch.a").shape[-1])
    nets, state = networks(case, wiring, cfg, spec), initial(case, wiring, cfg, spec, dtype)
    update = jax.jit(lambda state, batch: iql.update_with(state, batch, None, nets, cfg))
    for t in range(steps):
        s, a, r, ns, d = (jnp.asarray(case.read(f"batch.{key}")[t], dtype) for key in ("s", "a", "r", "ns", "d"))
        batch, old = iql.Batch(s, a, r[:, 0], ns, d[:, 0]), state.value.params
        check(f"step{t}.next_v_old", nets.value.apply(old, ns))
        check(f"step{t}.adv_old_v", advantage(state, old, batch, nets))
        check(f"step{t}.actor_lr_before", optim.cosine(cfg.actor_lr, cfg.actor_steps)(t))
        state, metrics = update(state, batch)
        check(f"step{t}.value_loss", metrics["value/loss"])
        check(f"step{t}.q_loss", metrics["critic/loss"])
        check(f"step{t}.actor_loss", metrics["actor/loss"])
        check_state(check, t, wiring, state)


def run_corl(case: Case) -> None:
    in_both_precisions(case, _corl)


# --- the authors' code: flax's layers, the new V ---
def flax_wiring(case: Case) -> Wiring:
    actor = [*flax_layers(case, "actor.MLP_0"), Layer("actor.Dense_0.kernel", "actor.Dense_0.bias", False)]
    critics, targets = (
        tuple(flax_layers(case, f"{net}.Critic_{e}.MLP_0") for e in (0, 1)) for net in ("critic", "target_critic")
    )
    return Wiring(actor, critics, targets, flax_layers(case, "value.MLP_0"), "actor.log_stds")


def flax_config(case: Case) -> iql.Config:
    case.ignore("hp.hidden_dims")  # the arrays decide
    return iql.Config(
        actor_steps=case.hyper("max_steps"),
        discount=case.hyper("discount"),
        tau=case.hyper("tau"),
        expectile=case.hyper("expectile"),
        beta=case.hyper("temperature"),
        max_weight=case.hyper("exp_a_clip"),
    )


def flax_batch(case: Case, t: int, dtype) -> iql.Batch:
    names = ("observations", "actions", "rewards", "next_observations", "masks")
    s, a, r, ns, going_on = (jnp.asarray(case.read(f"step{t}.batch.{name}"), dtype) for name in names)
    return iql.Batch(s, a, r, ns, 1 - going_on)


def count_steps(case: Case) -> int:
    numbers = {int(found[1]) for key in case.keys("step") if (found := re.match(r"step(\d+)\.", key))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise Uncheckable(f"steps {sorted(numbers)} do not count from 0")
    return len(numbers)


def check_update(
    case: Case, check: Check, t: int, before: iql.State, after: iql.State, batch, metrics, nets, wiring, cfg
) -> None:
    """All that the authors' code tells of one update."""
    check(f"step{t}.value_loss", metrics["value/loss"])
    check(f"step{t}.v", metrics["value/mean"])
    gain = advantage(before, after.value.params, batch, nets)
    check(f"step{t}.adv", gain)
    if case.has(f"step{t}.exp_a"):
        check(f"step{t}.exp_a", awr_weight(gain, cfg.beta, cfg.max_weight))
    check(f"step{t}.actor_loss", metrics["actor/loss"])
    check(f"step{t}.critic_loss", metrics["critic/loss"])
    q = nets.critic.apply(before.critic.params, batch.obs, batch.action).mean(axis=1)
    check(f"step{t}.q1", q[0])
    check(f"step{t}.q2", q[1])
    check_state(check, t, wiring, after)


def _official(case: Case, check: Check, dtype) -> None:
    wiring, cfg = flax_wiring(case), flax_config(case)
    first = flax_batch(case, 0, dtype)
    spec = EnvSpec("golden", first.obs.shape[1:], first.action.shape[-1])
    nets, state = networks(case, wiring, cfg, spec), initial(case, wiring, cfg, spec, dtype)
    update = jax.jit(lambda state, batch: iql.update_with(state, batch, None, nets, cfg))
    for t in range(count_steps(case)):
        case.ignore(f"step{t}.batch.normalized_rewards")  # only a density ratio reads them
        before, batch = state, flax_batch(case, t, dtype)
        state, metrics = update(before, batch)
        check_update(case, check, t, before, state, batch, metrics, nets, wiring, cfg)


def run_official(case: Case) -> None:
    in_both_precisions(case, _official)
