"""`corl_cql*`: whole CQL updates, each from the state that our own previous one left."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from algos import cql
from core import optim
from core.dataset import identity_norm
from core.losses import ensemble_mse, mean, td_target
from core.networks import MLP, Net
from core.types import EnvSpec
from tests.golden.case import Case, Uncheckable
from tests.golden.networks import linear

LINE = ("multiplier", "offset")  # of the log std
REPORTED = {
    "policy_loss": "actor/loss", "alpha_loss": "alpha/loss", "average_target_q": "critic/next_value",
    "alpha_prime": "alpha_prime/alpha_prime", "alpha_prime_loss": "alpha_prime/loss",
}  # fmt: skip
CRITICS, TARGETS = ("critic_1", "critic_2"), ("target_critic_1", "target_critic_2")
# x64: rounding only.  float32: relative to the array's largest entry, because Adam divides by small gradients
TOLERANCES = {"x64": (1e-10, 1e-13), "float32": (1e-4, 1e-4)}


def _layers(case: Case, prefix: str) -> list[str]:
    """Names of the linear layers below `init.<prefix>`, in order, without the "init."."""
    found = [re.fullmatch(rf"init\.({re.escape(prefix)}\.\w+\.(\d+))\.weight", key) for key in case.keys("init.")]
    ordered = sorted((match for match in found if match), key=lambda match: int(match[2]))
    if not ordered:
        raise Uncheckable(f"no layers 'init.{prefix}.*.weight'")
    return [match[1] for match in ordered]


def _params(case: Case, prefix: str) -> dict:
    return {"params": {f"Dense_{i}": linear(case, f"init.{name}") for i, name in enumerate(_layers(case, prefix))}}


def _hidden(params: dict) -> tuple[int, ...]:
    layers = params["params"]
    return tuple(len(layers[f"Dense_{i}"]["bias"]) for i in range(len(layers) - 1))


def _config(case: Case) -> cql.Config:
    case.ignore("hp.hidden", "hp.n_hidden_q")  # the arrays decide
    for name, value in (("bc_steps", 0), ("target_update_period", 1)):
        if case.hyper(name) != value:
            raise Uncheckable(f"'{name}' is {case.hyper(name)}; our updates know {value} only")
    limits = (case.hyper(f"cql_clip_diff_{end}") for end in ("min", "max"))
    return cql.Config(
        actor_lr=case.hyper("policy_lr"),
        critic_lr=case.hyper("qf_lr"),
        discount=case.hyper("discount"),
        tau=case.hyper("soft_target_update_rate"),
        learn_alpha=case.hyper("use_automatic_entropy_tuning"),
        alpha_multiplier=case.hyper("alpha_multiplier"),
        entropy_per_action=case.hyper("target_entropy") / case.read("batch.a").shape[-1],
        backup_entropy=case.hyper("backup_entropy"),
        max_backup=case.hyper("cql_max_target_backup"),
        samples=case.hyper("cql_n_actions"),
        importance_sampling=case.hyper("cql_importance_sample"),
        temperature=case.hyper("cql_temp"),
        conservative_weight=case.hyper("cql_alpha"),
        gap_clip=tuple(x if np.isfinite(x) else None for x in limits),
        lagrange=case.hyper("cql_lagrange"),
        target_gap=case.hyper("cql_target_action_gap"),
    )


def _start(case: Case, cfg: cql.Config, spec: EnvSpec) -> tuple[cql.State, cql.Networks]:
    """The first state, and networks of the arrays' own depths: the critics' parameters are a pair, not stacked."""
    policy = _params(case, "actor")
    line = jnp.stack([jnp.asarray(case.read(f"init.actor.log_std_{name}.constant")) for name in LINE])
    critics, targets = (tuple(_params(case, name) for name in names) for names in (CRITICS, TARGETS))
    values = [MLP((*_hidden(params), 1)) for params in critics]

    def both(params, *inputs):
        return jnp.stack([value.apply(p, *inputs)[..., 0] for value, p in zip(values, params, strict=True)])

    nets = cql.networks(cql.Config(actor_hidden=_hidden(policy)), spec)._replace(critic=Net(None, both))
    actor_tx, critic_tx = cql.optimisers(cfg)
    scalars = (jnp.asarray(case.read(f"init.{name}")) for name in ("log_alpha", "log_alpha_prime"))
    return cql.State(
        optim.start(actor_tx, {"net": policy, "log_std": line}),
        optim.start(critic_tx, critics),
        targets,
        optim.start(actor_tx, next(scalars)),
        optim.start(critic_tx, next(scalars)),
        jax.tree.map(jnp.asarray, identity_norm(spec.obs_shape[0], spec.action_dim)),
    ), nets


def _batch(case: Case, step: int) -> cql.Batch:
    s, a, r, ns, d = (jnp.asarray(case.read(f"batch.{key}")[step]) for key in ("s", "a", "r", "ns", "d"))
    return cql.Batch(s, a, r[:, 0], ns, d[:, 0])


def _draws(case: Case, step: int) -> cql.Draws:
    """The file's [B, n, A] as [n, B, A]."""
    names = ("eps_new", "eps_target_next", "random_actions", "eps_cur", "eps_next")
    arrays = (jnp.asarray(case.read(f"step{step}.{name}")) for name in names)
    return cql.Draws(*(jnp.swapaxes(x, 0, 1) if x.ndim == 3 else x for x in arrays))


def logged(state: cql.State, batch: cql.Batch, draws: cql.Draws, nets: cql.Networks, cfg: cql.Config) -> dict:
    """What CORL logs of an update beside what ours does, by our functions from the state before it."""
    law, next_law = (nets.actor.apply(state.actor.params, obs) for obs in (batch.obs, batch.next_obs))
    alpha = cfg.alpha_multiplier * jnp.exp(state.log_alpha.params)
    value = cql.next_value(state.critic_target, next_law, alpha, batch, draws.target, nets, cfg)
    target = td_target(batch.reward, batch.terminated, value, cfg.discount)
    q = nets.critic.apply(state.critic.params, batch.obs, batch.action)
    proposed, log_density = cql.proposals(law, next_law, draws)
    columns = cql.valued(state.critic.params, batch.obs, proposed, nets)  # f32[2, 3n, B]
    gaps = cql.conservative_gap(q, columns, log_density, cfg)
    seen = jnp.concatenate([columns, q[:, None]], axis=1)
    out = {"alpha": alpha}
    for e in range(2):
        kinds, gap = jnp.split(columns[e], 3), mean(gaps[e])
        penalty = jnp.exp(state.log_alpha_prime.params) * (gap - cfg.target_gap) if cfg.lagrange else gap
        out |= {
            f"qf{e + 1}_loss": ensemble_mse(q[e : e + 1], target), f"average_qf{e + 1}": q[e].mean(),
            f"cql_std_q{e + 1}": seen[e].std(axis=0, ddof=1).mean(), f"cql_qf{e + 1}_diff": gap,
            f"cql_min_qf{e + 1}_loss": cfg.conservative_weight * penalty, f"cql_q{e + 1}_rand": kinds[0].mean(),
            f"cql_q{e + 1}_current_actions": kinds[1].mean(), f"cql_q{e + 1}_next_actions": kinds[2].mean(),
        }  # fmt: skip
    return out


def _run(case: Case, label: str) -> None:
    steps, _, state_dim = case.read("batch.s").shape
    spec, cfg = EnvSpec("golden", (state_dim,), case.read("batch.a").shape[-1]), _config(case)
    rtol, atol = TOLERANCES[label]
    state, nets = _start(case, cfg, spec)
    update = jax.jit(lambda state, batch, draws: cql.update_with(state, batch, draws, nets, cfg))
    log = jax.jit(lambda state, batch, draws: logged(state, batch, draws, nets, cfg))

    def check(name: str, ours) -> None:
        scale = float(np.abs(case.read(name)).max()) if label == "float32" else 1.0
        case.check(f"{label} {name}", ours, name, rtol, atol * scale)

    def check_layers(step: int, net: str, params: dict) -> None:
        for i, layer in enumerate(_layers(case, net)):
            mine = params["params"][f"Dense_{i}"]
            check(f"step{step}.{layer}.weight", mine["kernel"].T)
            check(f"step{step}.{layer}.bias", mine["bias"])

    for t in range(steps):
        batch, draws = _batch(case, t), _draws(case, t)
        for name, value in log(state, batch, draws).items():
            check(f"step{t}.{name}", value)
        state, metrics = update(state, batch, draws)
        check(f"step{t}.log_pi", -metrics["actor/entropy"])
        for name, ours in REPORTED.items():  # what an option leaves out, CORL logs as 0
            check(f"step{t}.{name}", metrics.get(ours, 0.0))
        check_layers(t, "actor", state.actor.params["net"])
        for i, name in enumerate(LINE):
            check(f"step{t}.actor.log_std_{name}.constant", state.actor.params["log_std"][i])
        for names, nets_params in ((CRITICS, state.critic.params), (TARGETS, state.critic_target)):
            for name, params in zip(names, nets_params, strict=True):
                check_layers(t, name, params)
        check(f"step{t}.log_alpha", state.log_alpha.params)
        check(f"step{t}.log_alpha_prime", state.log_alpha_prime.params)


def run(case: Case) -> None:
    for label in TOLERANCES:
        with jax.enable_x64(label == "x64"):
            _run(case, label)
