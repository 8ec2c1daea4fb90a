"""`corl_rebrac*`: whole ReBRAC updates, each from the state that our own previous one left."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from algos import rebrac
from core import optim
from core.dataset import identity_norm
from core.types import EnvSpec
from tests.golden.case import Case, Uncheckable

NETS = {
    "actor": "actor.params", "actor_target": "actor_target.params",
    "critic": "critic.params.VmapCritic_0", "critic_target": "critic_target.params.VmapCritic_0",
}  # fmt: skip
# x64: rounding only.  float32: relative to the array's largest entry, because Adam divides by small gradients
TOLERANCES = {"x64": (1e-10, 1e-13), "float32": (1e-4, 1e-4)}


def _leaves(case: Case, net: str) -> list[tuple[str, str]]:
    """(module, parameter) of a network, in the file's own names, which are flax's and ours."""
    prefix = f"init.{NETS[net]}."
    found = [re.fullmatch(r"((?:Dense|LayerNorm)_\d+)\.(\w+)", key[len(prefix) :]) for key in case.keys(prefix)]
    if not found or not all(found):
        raise Uncheckable(f"no flax layers, or other ones too, below '{prefix}'")
    return [(match[1], match[2]) for match in found]


def _params(case: Case, net: str) -> dict:
    modules: dict[str, dict] = {}
    for module, name in _leaves(case, net):
        modules.setdefault(module, {})[name] = jnp.asarray(case.read(f"init.{NETS[net]}.{module}.{name}"))
    return {"params": modules}


def _hidden(params: dict) -> tuple[int, ...]:
    layers = params["params"]
    count = sum(name.startswith("Dense") for name in layers)
    norms = len(layers) - count
    if norms not in (0, count - 1):
        raise Uncheckable(f"{norms} LayerNorms beside {count} dense layers")
    return tuple(layers[f"Dense_{i}"]["bias"].shape[-1] for i in range(count - 1))


def _place(params: dict) -> str:
    return "after" if "LayerNorm_0" in params["params"] else "none"


def _config(case: Case, params: dict[str, dict]) -> rebrac.Config:
    case.ignore("hp.hidden", "hp.n_hiddens")  # the arrays decide
    for net in ("actor", "critic"):
        case.agree(f"{net}_ln", _place(params[net]) == "after")
    case.agree("layernorm_eps", 1e-6)
    return rebrac.Config(
        actor_norm=_place(params["actor"]),
        critic_norm=_place(params["critic"]),
        actor_lr=case.hyper("lr"),
        critic_lr=case.hyper("lr"),
        discount=case.hyper("gamma"),
        tau=case.hyper("tau"),
        actor_bc=case.hyper("actor_bc_coef"),
        critic_bc=case.hyper("critic_bc_coef"),
        normalize_q=case.hyper("normalize_q"),
        policy_noise=case.hyper("policy_noise"),
        noise_clip=case.hyper("noise_clip"),
    )


def _networks(params: dict[str, dict], cfg: rebrac.Config, spec: EnvSpec) -> rebrac.Networks:
    """Actor and critics, each of its own depth and width."""
    actor, critic = (rebrac.networks(replace(cfg, hidden=_hidden(params[net])), spec) for net in ("actor", "critic"))
    return actor._replace(critic=critic.critic)


def _batch(case: Case, step: int) -> rebrac.Batch:
    names = ("states", "actions", "rewards", "next_states", "dones", "next_actions")
    arrays = [jnp.asarray(case.read(f"step{step}.batch.{name}")) for name in names]
    return rebrac.Batch(*arrays, jnp.ones(arrays[2].shape, bool))


def _run(case: Case, label: str) -> None:
    _, state_dim = case.read("step0.batch.states").shape
    spec = EnvSpec("golden", (state_dim,), case.read("step0.batch.actions").shape[-1])
    rtol, atol = TOLERANCES[label]
    params = {net: _params(case, net) for net in NETS}
    cfg = _config(case, params)
    nets = _networks(params, cfg, spec)
    actor_tx, critic_tx = rebrac.optimisers(cfg)
    state = rebrac.State(
        optim.start(actor_tx, params["actor"]), optim.start(critic_tx, params["critic"]),
        params["actor_target"], params["critic_target"],
        jax.tree.map(jnp.asarray, identity_norm(state_dim, spec.action_dim)), jnp.zeros((), jnp.int32),
    )  # fmt: skip
    update = jax.jit(lambda state, batch, noise: rebrac.update_with(state, batch, noise, nets, cfg))
    low = jax.jit(lambda state, b: nets.critic.apply(state.critic.params, b.obs, b.action).min(axis=0).mean())

    def check(name: str, ours) -> None:
        scale = float(np.abs(case.read(name)).max()) if label == "float32" else 1.0
        case.check(f"{label} {name}", ours, name, rtol, atol * scale)

    for t in range(sum(key.endswith(".batch.states") for key in case.keys("step"))):
        batch, noise = _batch(case, t), jnp.asarray(case.read(f"step{t}.noise_std_normal"))
        check(f"step{t}.q_min", low(state, batch))
        state, metrics = update(state, batch, noise)
        check(f"step{t}.critic_loss", metrics["critic/loss"])
        check(f"step{t}.actor_updated", np.isfinite(metrics["actor/loss"]))
        if case.read(f"step{t}.actor_updated"):
            check(f"step{t}.actor_loss", metrics["actor/loss"])
            check(f"step{t}.bc_mse_policy", metrics["actor/bc"])
            check(f"step{t}.action_mse", metrics["actor/bc"] / spec.action_dim)
        ours = {
            "actor": state.actor.params, "actor_target": state.actor_target,
            "critic": state.critic.params, "critic_target": state.critic_target,
        }  # fmt: skip
        for net, prefix in NETS.items():
            for module, name in _leaves(case, net):
                check(f"step{t}.{prefix}.{module}.{name}", ours[net]["params"][module][name])


def run(case: Case) -> None:
    for label in TOLERANCES:
        with jax.enable_x64(label == "x64"):
            _run(case, label)
