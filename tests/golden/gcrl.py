"""`gcbc_*`, `gcivl_*`, `gciql_*`, `crl_*`, `qrl_*`, `hiql_*`, `ota_*`: losses, gradients and updates of one batch."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import algos
from algos import crl, hiql, qrl
from algos import goal_conditioned as gc
from core import optim
from core.dataset import identity_norm
from core.goals import Mixture
from core.types import EnvSpec, Observation
from tests.golden.case import Case, Uncheckable

LOSS, GRAD = 2e-5, 1e-4  # relative
STEP = 1e-5  # absolute, of parameters after updates
FLOOR = 1e-5  # of gradients: part of their array's largest entry, which float32 sums are wrong by

# official name of a network -> ours, and whether it is the slow copy
NETS: dict[str, dict[str, str]] = {
    "gcbc": {"actor": "actor"},
    "gcivl": {"value": "value", "actor": "actor"},
    "gciql": {"value": "value", "critic": "critic", "actor": "actor"},
    "crl": {
        "critic/phi": "phi",
        "critic/psi": "psi",
        "value/phi": "value_phi",
        "value/psi": "value_psi",
        "actor": "actor",
    },
    "qrl": {"value/phi": "phi", "dynamics": "model", "actor": "actor"},
    "hiql": {"goal_rep": "rep", "value": "value", "low_actor": "low", "high_actor": "high"},
    "ota": {"goal_rep": "rep", "low_value": "value", "high_value": "option", "low_actor": "low", "high_actor": "high"},
}
SCALARS = {"modules_value/alpha/value": "mix", "modules_lam/log_value": "log_lambda"}
FIELDS = {
    "observations": "obs", "next_observations": "next_obs", "actions": "action", "rewards": "reward", "masks": "mask",
    "value_goals": "goal", "actor_goals": "actor_goal", "low_actor_goals": "low_goal", "high_actor_goals": "high_goal",
    "high_actor_targets": "high_target", "high_value_goals": "option_goal",
    "high_value_option_observations": "option_end", "high_value_rewards": "option_reward",
    "high_value_masks": "option_mask",
}  # fmt: skip
POLICY = {"actor_loss": "loss", "adv": "advantage", "bc_log_prob": "log_prob", "bc_loss": "bc_loss", "mse": "mse"}
POLICY |= {"q_loss": "q_loss", "q_mean": "q", "q_abs_mean": "q_size"}
SPREAD = {f"v_{part}": part for part in ("mean", "max", "min")}
CONTRAST = {
    "contrastive_loss": "loss", "logits": "logit", "logits_pos": "own_logit", "logits_neg": "other_logit",
    "binary_accuracy": "accuracy", "categorical_accuracy": "top",
}  # fmt: skip
QUASI = {"total_loss": "loss", "value_loss": "distance_loss", "lam_loss": "lambda_loss", "lam": "lambda"}
QUASI |= {
    f"d_{a}_{part}": f"{b}_{part}"
    for a, b in (("neg", "far"), ("pos", "near"))
    for part in ("loss", "mean", "max", "min")
}
TERMS = {  # official section -> (ours, official term -> ours)
    "actor": ("actor", POLICY), "low_actor": ("low", POLICY), "high_actor": ("high", POLICY),
    "low_value": ("value", {f"low_{k}": v for k, v in {**SPREAD, "value_loss": "loss"}.items()}),
    "high_value": ("option", {f"high_{k}": v for k, v in {**SPREAD, "value_loss": "loss"}.items()}),
    "dynamics": ("model", {"dynamics_loss": "loss"}),
}  # fmt: skip


def read_config(case: Case) -> dict:
    return json.loads(str(case.read("config_json")))


def goals_of(said: dict, of: str) -> Mixture:
    parts = (said[f"{of}_p_{kind}goal"] for kind in ("cur", "traj", "random"))
    return Mixture(*parts, geometric=said[f"{of}_geom_sample"])


def config(algo: str, said: dict) -> gc.Config:
    """The options that the file's JSON string names."""
    fixed = {"gc_negative": algo not in ("crl", "qrl"), "const_std": True, "layer_norm": True, "frame_stack": None}
    for name, value in fixed.items():
        if said.get(name, value) != value:
            raise Uncheckable(f"{name} is {said[name]}, which we do not have")
    values = {
        "batch_size": said["batch_size"], "lr": said["lr"], "actor_hidden": tuple(said["actor_hidden_dims"]),
        "hidden": tuple(said["value_hidden_dims"]), "crop": said["p_aug"] or 0.0, "tau": said.get("tau"),
        "discount": said.get("low_discount", said["discount"]), "expectile": said.get("expectile"),
        "alpha": said.get("alpha"), "actor_loss": said.get("actor_loss"), "latent": said.get("latent_dim"),
        "eps": said.get("eps"), "quasimetric": said.get("quasimetric_type"), "rep_dim": said.get("rep_dim"),
        "low_alpha": said.get("low_alpha"), "high_alpha": said.get("high_alpha"),
        "high_discount": said.get("high_discount"), "subgoal_steps": said.get("subgoal_steps"),
        "abstraction": said.get("abstraction_factor"), "encoder": said["encoder"],
        "low_rep_grad": {True: "always", False: "never", None: None}[said.get("low_actor_rep_grad")],
        "value_goals": goals_of(said, "value"), "actor_goals": goals_of(said, "actor"),
    }  # fmt: skip
    Config = algos.load(algo).Config
    known = vars(Config())
    return Config(**{name: value for name, value in values.items() if name in known and value is not None})


def places(case: Case, algo: str, pixels: bool) -> dict[str, tuple[str, ...]]:
    """Official parameter -> ("net" or "target", our network, path in its parameters)."""
    found = {}
    for key in case.keys("params/"):
        name = key.removeprefix("params/")
        if name in SCALARS:
            found[name] = ("net", SCALARS[name])
            continue
        target = name.startswith("modules_target_")
        path = name.removeprefix("modules_").removeprefix("target_")
        ours = [(official, net) for official, net in NETS[algo].items() if path.startswith(f"{official}/")]
        if len(ours) != 1:
            raise Uncheckable(f"whose parameter is '{name}'?")
        official, net = ours[0]
        rest = path.removeprefix(f"{official}/").split("/")
        found[name] = ("target" if target else "net", net, *_layer(case, key, rest, pixels))
    return found


def _layer(case: Case, key: str, rest: list[str], pixels: bool) -> tuple[str, ...]:
    eye = rest[0] == "gc_encoder" or (pixels and rest[0] == "layers_0")
    inside = (("encoder",) if eye else ("net",)) if pixels else ()
    *rest, layer, leaf = rest
    if eye and layer.startswith("Conv"):  # of a stack: before the pool, and two of its residual block
        stack = int(rest[-1].rpartition("_")[2])
        layer = f"Conv_{3 * stack + int(layer[-1])}"
    if layer in ("mean_net", "logit_net"):
        before = key.rpartition(f"/{layer}/")[0]
        layer = f"Dense_{len(case.keys(f'{before}/actor_net/Dense_')) // 2}"
    return (*inside, "params", layer, leaf)


def nested(pairs: dict[tuple[str, ...], np.ndarray]) -> dict:
    tree: dict = {}
    for path, value in pairs.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(value)
    return tree


def at(tree: dict, path: tuple[str, ...]):
    for part in path:
        tree = tree[part]
    return tree


def shifts(said: dict) -> set[str]:
    """Parameters that move all of QRL's latents alike, which no distance sees: last biases of phi.

    Their gradients are what rounding leaves of 0, and Adam makes whole steps of any such number.  With a model of the
    latents' change there are none: it sees where they are.
    """
    if said["agent_name"] != "qrl" or said["actor_loss"] != "awr":
        return set()
    phi, depth = "modules_value/phi", len(said["value_hidden_dims"])
    return {f"{phi}/Dense_{depth}/bias", f"{phi}/LayerNorm_{depth - 1}/bias"}


def run(case: Case) -> None:
    said = read_config(case)
    algo = said["agent_name"]
    module, cfg = algos.load(algo), config(algo, said)
    given = {FIELDS[key.removeprefix("batch/")]: jnp.asarray(case.read(key)) for key in case.keys("batch/")}
    shape = given["obs"].shape[1:]
    spec = EnvSpec("golden", shape, 0, shape, num_actions=0) if said["discrete"] else EnvSpec(
        "golden", shape, given["action"].shape[-1], shape
    )  # fmt: skip
    place = places(case, algo, spec.pixels)
    if said["discrete"]:
        head = next(key for key in place if key.endswith("logit_net/bias"))
        spec = spec._replace(num_actions=case.read(f"params/{head}").shape[0])
    if algo == "gcbc":
        given["goal"] = given["actor_goal"]
    parts = module.parts(cfg, spec)
    batch = parts.batch(**{name: given[name] for name in parts.batch._fields})

    held = nested({path: case.read(f"params/{name}") for name, path in place.items()})
    norm = jax.tree.map(jnp.asarray, identity_norm(1 if spec.pixels else shape[0], spec.action_dim))
    state = gc.State(optim.start(optim.adam(cfg.lr), held["net"]), held.get("target", {}), norm)

    # --- losses ---
    objective = gc.objective(parts, cfg, spec)
    differentiate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (total, metrics), grads = differentiate(state.net.params, state.net.params, state.target, batch)
    case.check("total loss", total, "out/total_loss", LOSS, 1e-6)
    check_terms(case, algo, metrics, parts, state, batch, cfg, spec)

    # --- gradients ---
    idle = shifts(said)
    slopes = {"net": grads, "target": jax.tree.map(jnp.zeros_like, state.target)}  # no loss takes a target's gradient
    for name, path in place.items():
        key, owner = f"grads/{name}", f"grads/{name}" if name not in idle else "out/update_info/grad/max"
        floor = FLOOR * float(np.abs(case.read(owner)).max()) if path[0] == "net" else 0.0
        case.check(f"gradient {name}", at(slopes, path), key, GRAD, floor)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(slopes)]
    case.check("largest gradient", max(leaf.max() for leaf in leaves), "out/update_info/grad/max", GRAD, 1e-6)
    case.check("least gradient", min(leaf.min() for leaf in leaves), "out/update_info/grad/min", GRAD, 1e-6)
    norms = sum(np.linalg.norm(leaf.astype(np.float64)) for leaf in leaves)
    case.check("sum of norms", norms, "out/update_info/grad/norm", GRAD, 1e-6)

    # --- updates ---
    update, after = jax.jit(lambda state: gc.update_with(state, batch, parts, cfg, spec)[0]), state
    for done, count in enumerate(("1_update", "2_updates"), 1):
        after = update(after)
        for name, path in place.items():
            ours = at({"net": after.net.params, "target": after.target}, path)
            bound = 2 * done * cfg.lr if name in idle else STEP
            case.check(f"after {count} {name}", ours, f"params_after_{count}/{name}", 0, bound)

    # --- acting ---
    goal = given.get("high_goal", given.get("actor_goal"))
    none = jnp.zeros(len(goal))
    acted = module.make(cfg, spec).act_eval(
        state, Observation(batch.obs, goal, none, none.astype(jnp.int32)), (), jax.random.key(0)
    )
    case.check("actions", acted.action, "out/sample_actions_temperature0", LOSS, 1e-6)


def check_terms(case: Case, algo: str, metrics, parts, state, batch, cfg, spec) -> None:
    """The logged terms and what networks say."""
    value = {"value_loss": "loss", **SPREAD}
    terms = {**TERMS, "value": ("value", CONTRAST if algo == "crl" else value), "critic": ("critic", CONTRAST)}
    if algo == "qrl":
        terms["value"] = ("value", QUASI)
    if algo == "gciql":
        terms["critic"] = (
            "critic",
            {"critic_loss": "loss", **{f"q_{x}": f"target_{x}" for x in ("mean", "max", "min")}},
        )
    for key in case.keys("out/info/"):
        section, term = key.removeprefix("out/info/").split("/")
        ours, names = terms[section]
        if term == "std":
            case.check(key, 1.0, key, LOSS, 0)
        elif algo == "crl" and term.startswith("v_"):
            part = getattr(jnp, term.removeprefix("v_"))
            case.check(key, part(jnp.exp(own_logits(section, parts, state, batch, spec))), key, LOSS, 1e-6)
        elif term in names:
            case.check(key, metrics[f"{ours}/{names[term]}"], key, LOSS, 1e-6)
    outputs = OUTPUTS[algo](parts.nets, state.net.params, state.target, batch, cfg, spec)
    for key in case.keys("out/net/"):
        name = key.removeprefix("out/net/")
        if name in outputs:
            case.check(key, outputs[name], key, LOSS, 2e-6)


def own_logits(section: str, parts, state, batch, spec):
    nets, params = parts.nets, state.net.params
    if section == "critic":
        phi = nets.phi.apply(params["phi"], batch.obs, gc.critic_action(spec, batch.action))
        return crl.agreement(phi, nets.psi.apply(params["psi"], batch.goal))
    phi = nets.value_phi.apply(params["value_phi"], batch.obs)
    return crl.agreement(phi, nets.value_psi.apply(params["value_psi"], batch.goal))


def _nothing(nets, params, target, batch, cfg, spec) -> dict:
    return {}


def _gcivl(nets, params, target, batch, cfg, spec) -> dict:
    return {
        "value": nets.value.apply(params["value"], batch.obs, batch.goal),
        "target_value": nets.value.apply(target["value"], batch.next_obs, batch.goal),
    }


def _gciql(nets, params, target, batch, cfg, spec) -> dict:
    inputs = batch.obs, batch.goal, gc.critic_action(spec, batch.action)
    return {
        "value": nets.value.apply(params["value"], batch.obs, batch.goal),
        "critic": nets.critic.apply(params["critic"], *inputs),
        "target_critic": nets.critic.apply(target["critic"], *inputs),
    }


def _crl(nets, params, target, batch, cfg, spec) -> dict:
    phi = nets.phi.apply(params["phi"], batch.obs, gc.critic_action(spec, batch.action))
    psi = nets.psi.apply(params["psi"], batch.goal)
    found = {"critic_phi": phi, "critic_psi": psi, "critic_v": crl.agreement(phi, psi)}
    if "value_phi" in params:
        phi = nets.value_phi.apply(params["value_phi"], batch.obs)
        psi = nets.value_psi.apply(params["value_psi"], batch.goal)
        found |= {"value_phi": phi, "value_psi": psi, "value_v": crl.agreement(phi, psi)}
    return found


def _qrl(nets, params, target, batch, cfg, spec) -> dict:
    s, g = (nets.phi.apply(params["phi"], x) for x in (batch.obs, batch.goal))
    return {"dist": qrl.apart(params, s, g, cfg), "phi_s": s, "phi_g": g, "lam": jnp.exp(params["log_lambda"])}


def _hiql(nets, params, target, batch, cfg, spec) -> dict:
    low, high = (nets.rep.apply(params["rep"], batch.obs, g) for g in (batch.low_goal, batch.high_target))
    return {
        "value": hiql.value(params["value"], params["rep"], batch.obs, batch.goal, nets),
        "target_value": hiql.value(target["value"], params["rep"], batch.next_obs, batch.goal, nets),
        "goal_rep_obs_highactortargets": high,
        "goal_rep_obs_lowactorgoals": low,
        "high_actor_mean": nets.high.apply(params["high"], batch.obs, batch.high_goal),
        "low_actor_mean_or_logits": nets.low.apply(params["low"], batch.obs, low),
    }


def _ota(nets, params, target, batch, cfg, spec) -> dict:
    found = _hiql(nets, params, target, batch, cfg, spec)
    inputs = batch.option_goal, nets
    return {
        **found, "low_value": found["value"], "target_low_value": found["target_value"],
        "high_value": hiql.value(params["option"], params["rep"], batch.obs, *inputs),
        "target_high_value": hiql.value(target["option"], params["rep"], batch.option_end, *inputs),
    }  # fmt: skip


OUTPUTS: dict[str, Callable[..., dict]] = {
    "gcbc": _nothing, "gcivl": _gcivl, "gciql": _gciql, "crl": _crl, "qrl": _qrl, "hiql": _hiql, "ota": _ota
}  # fmt: skip
