"""`corl_td3bc*`: whole TD3+BC updates, each from the state that our own previous one left."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from algos import td3_bc
from core import optim
from core.dataset import identity_norm
from core.types import EnvSpec
from tests.golden.case import Case, Uncheckable, compare

NETS = ("actor", "critic_1", "critic_2", "actor_target", "critic_1_target", "critic_2_target")
# x64: rounding only.  float32: relative to the array's largest entry, because Adam divides by small gradients
TOLERANCES = {"x64": (1e-10, 1e-13), "float32": (1e-4, 1e-4)}


def _layers(case: Case, prefix: str) -> list[str]:
    """Names of the linear layers below `prefix`, in order."""
    found = {re.fullmatch(re.escape(prefix) + r"\.net\.(\d+)\.weight", key) for key in case.keys(prefix)}
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        raise Uncheckable(f"no layers '{prefix}.net.*.weight'")
    return [f"{prefix}.net.{number}" for number in numbers]


def _params(case: Case, prefix: str, dtype) -> dict:
    """flax parameters from torch's layers: kernel = weight^T."""
    layers = [
        {"kernel": case.read(f"{name}.weight").T.astype(dtype), "bias": case.read(f"{name}.bias").astype(dtype)}
        for name in _layers(case, prefix)
    ]
    return {"params": {f"Dense_{i}": layer for i, layer in enumerate(layers)}}


def _hidden(case: Case, prefix: str) -> tuple[int, ...]:
    return tuple(case.read(f"{name}.bias").shape[0] for name in _layers(case, prefix)[:-1])


def _networks(case: Case, cfg: td3_bc.Config, spec: EnvSpec) -> td3_bc.Networks:
    """Actor and critics, each of its own depth and width."""
    critics = td3_bc.networks(replace(cfg, hidden=_hidden(case, "init.critic_1")), spec)
    return critics._replace(actor=td3_bc.networks(cfg, spec).actor)


def _stack(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _state(case: Case, cfg: td3_bc.Config, state_dim: int, action_dim: int, dtype) -> td3_bc.State:
    nets = {name: _params(case, f"init.{name}", dtype) for name in NETS}
    actor_tx, critic_tx = td3_bc.optimisers(cfg)
    return td3_bc.State(
        optim.start(actor_tx, jax.tree.map(jnp.asarray, nets["actor"])),
        optim.start(critic_tx, _stack(nets["critic_1"], nets["critic_2"])),
        jax.tree.map(jnp.asarray, nets["actor_target"]),
        _stack(nets["critic_1_target"], nets["critic_2_target"]),
        jax.tree.map(jnp.asarray, identity_norm(state_dim, action_dim)),
        jnp.zeros((), jnp.int32),
    )


def _config(case: Case, noise_unit: float) -> td3_bc.Config:
    case.ignore("hp.hidden")  # the arrays decide
    lr = case.hyper("lr")
    return td3_bc.Config(
        hidden=_hidden(case, "init.actor"),
        actor_lr=lr,
        critic_lr=lr,
        discount=case.hyper("discount"),
        tau=case.hyper("tau"),
        alpha=case.hyper("alpha"),
        actor_period=case.hyper("policy_freq"),
        max_action=case.hyper("max_action"),
        policy_noise=case.hyper("policy_noise") / noise_unit,
        noise_clip=case.hyper("noise_clip") / noise_unit,
    )


def _batch(case: Case, step: int, dtype) -> td3_bc.Batch:
    s, a, r, ns, d = (jnp.asarray(case.read(f"batch.{key}")[step], dtype) for key in ("s", "a", "r", "ns", "d"))
    return td3_bc.Batch(s, a, r[:, 0], ns, d[:, 0])


def _run(case: Case, label: str, dtype) -> None:
    steps, _, state_dim = case.read("batch.s").shape
    spec = EnvSpec("golden", (state_dim,), case.read("batch.a").shape[-1])
    rtol, atol = TOLERANCES[label]
    noise = jnp.asarray(case.read("noise_std_normal"), dtype)

    def check(name: str, ours) -> None:
        scale = float(np.abs(case.read(name)).max()) if label == "float32" else 1.0
        case.check(f"{label} {name}", ours, name, rtol, atol * scale)

    def targets(cfg):
        nets = _networks(case, cfg, spec)
        return jax.jit(lambda state, batch, noise: td3_bc.td3_target(state, batch, noise, nets, cfg))

    # The file's noise and clip are the trainer's arguments: absolute, unless only the reading "per unit of
    # max_action" gives the first target.
    cfg = _config(case, case.hyper("max_action"))
    state = _state(case, cfg, state_dim, spec.action_dim, dtype)
    relative, reference = _config(case, 1.0), case.read("step0.target_q")
    close = [
        compare("step0.target_q", targets(c)(state, _batch(case, 0, dtype), noise[0]), reference, 1e-4, 1e-4).ok
        for c in (cfg, relative)
    ]
    cfg = relative if close == [False, True] else cfg

    nets, target = _networks(case, cfg, spec), targets(cfg)
    update = jax.jit(lambda state, batch, noise: td3_bc.update_with(state, batch, noise, nets, cfg))
    for t in range(steps):
        batch = _batch(case, t, dtype)
        check(f"step{t}.target_q", target(state, batch, noise[t]))
        state, metrics = update(state, batch, noise[t])
        check(f"step{t}.critic_loss", metrics["critic/loss"])
        if case.has(f"step{t}.actor_loss") or (t + 1) % cfg.actor_period == 0:
            check(f"step{t}.actor_loss", metrics["actor/loss"])
        critics, critic_targets = state.critic.params, state.critic_target
        ours = {
            "actor": state.actor.params, "actor_target": state.actor_target,
            "critic_1": td3_bc.member(critics, 0), "critic_1_target": td3_bc.member(critic_targets, 0),
            "critic_2": td3_bc.member(critics, 1), "critic_2_target": td3_bc.member(critic_targets, 1),
        }  # fmt: skip
        for net in NETS:
            for i, layer in enumerate(_layers(case, f"init.{net}")):
                mine, name = ours[net]["params"][f"Dense_{i}"], layer.replace("init", f"step{t}", 1)
                check(f"{name}.weight", mine["kernel"].T)
                check(f"{name}.bias", mine["bias"])


def run(case: Case) -> None:
    with jax.enable_x64(True):
        _run(case, "x64", np.float64)
    with jax.enable_x64(False):
        _run(case, "float32", np.float32)
