"""`prdc_nn*`: neighbours of queries.  `prdc_*`: whole PRDC updates, each from the state that our previous one left."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from algos import prdc, td3_bc
from core import dataset, neighbors, optim
from core.networks import member
from core.types import EnvSpec
from tests.golden.case import Case, Uncheckable, compare

NETS = ("actor", "critic", "actor_target", "critic_target")
TOLERANCES = {"x64": (1e-10, 1e-13), "float32": (1e-4, 1e-4)}
FLOAT32 = 1e-5  # of what the authors' code computes in float32: normalised states, keys


def _layers(case: Case, prefix: str) -> list[str]:
    """Names of the linear layers below `prefix`, in order."""
    found = {re.fullmatch(re.escape(prefix) + r"\.l(\d+)\.weight", key) for key in case.keys(prefix)}
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        raise Uncheckable(f"no layers '{prefix}.l*.weight'")
    return [f"{prefix}.l{number}" for number in numbers]


def _members(case: Case, prefix: str) -> list[list[str]]:
    """Layers of each network: an actor's, or those of Q1 and then of Q2."""
    layers = _layers(case, prefix)
    if ".critic" not in prefix:
        return [layers]
    return [layers[: len(layers) // 2], layers[len(layers) // 2 :]]


def _params(case: Case, net: str, dtype) -> dict:
    """flax parameters from torch's layers, kernel = weight^T; critics stacked."""

    def one(layers: list[str]) -> dict:
        read = lambda name: jnp.asarray(case.read(name), dtype)  # noqa: E731
        return {
            "params": {
                f"Dense_{i}": {"kernel": read(f"{name}.weight").T, "bias": read(f"{name}.bias")}
                for i, name in enumerate(layers)
            }
        }

    trees = [one(layers) for layers in _members(case, f"init.{net}")]
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _hidden(case: Case, prefix: str) -> tuple[int, ...]:
    return tuple(len(case.read(f"{name}.bias")) for name in _members(case, prefix)[0][:-1])


def _config(case: Case) -> prdc.Config:
    case.ignore("hp.hidden", "hp.state_dim", "hp.action_dim", "hp.N", "hp.batch", "hp.steps")  # the arrays decide
    m, lr = case.hyper("max_action"), case.hyper("lr")
    return prdc.Config(
        hidden=_hidden(case, "init.actor"), actor_lr=lr, critic_lr=lr,
        discount=case.hyper("discount"), tau=case.hyper("tau"),
        alpha=case.hyper("alpha"), actor_period=case.hyper("policy_freq"), max_action=m, beta=case.hyper("beta"),
        k=case.hyper("k"), policy_noise=case.hyper("policy_noise") / m, noise_clip=case.hyper("noise_clip") / m,
    )  # fmt: skip


def _normalised(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """States and successors as the authors normalised them, checked against ours where they did."""
    state, following = case.read("norm.state"), case.read("norm.next_state")
    raw = case.read("raw.observations")
    norm = dataset.identity_norm(raw.shape[1], 1)
    if case.has("state_mean"):
        rows = np.zeros(len(raw) + 1, bool)
        episode = dataset.from_lengths(
            np.concatenate([raw, raw[-1:]]), np.zeros((len(rows), 1), np.float32), rows, rows, [len(raw)]
        )
        norm = dataset.norm(episode, "standard")
        case.check("state mean", norm.state_shift, "state_mean", FLOAT32, FLOAT32)
        case.check("state std", norm.state_scale, "state_std", FLOAT32, FLOAT32)
    case.check("normalised states", norm.state(raw), "norm.state", FLOAT32, FLOAT32)
    ours = norm.state(case.read("raw.next_observations"))
    case.check("normalised successors", ours, "norm.next_state", FLOAT32, FLOAT32)
    return state, following


def _run(case: Case, label: str, dtype) -> None:
    rtol, atol = TOLERANCES[label]

    def check(name: str, ours) -> None:
        scale = max(1.0, float(np.abs(case.read(name)).max())) if label == "float32" else 1.0
        case.check(f"{label} {name}", ours, name, rtol, atol * scale)

    def check_net(step: str, net: str, tree) -> None:
        for i, layers in enumerate(_members(case, f"init.{net.removeprefix('grad.')}")):
            mine = tree if "critic" not in net else member(tree, i)
            for j, layer in enumerate(layers):
                name = f"{step}.{net}.{layer.rpartition('.')[2]}"
                check(f"{name}.weight", mine["params"][f"Dense_{j}"]["kernel"].T)
                check(f"{name}.bias", mine["params"][f"Dense_{j}"]["bias"])

    cfg = _config(case)
    state, following = (x.astype(dtype) for x in _normalised(case))
    actions = case.read("raw.actions").astype(dtype)
    keys = np.concatenate([case.read("norm.state") * np.float32(cfg.beta), case.read("raw.actions")], axis=1)
    case.check("keys", keys, "kd.data", FLOAT32, FLOAT32)
    keys = case.read("kd.data").astype(dtype)
    index = jax.tree.map(jnp.asarray, neighbors.build(case.read("norm.state"), case.read("raw.actions")))
    spec = EnvSpec("golden", (state.shape[1],), actions.shape[1])
    critics = td3_bc.networks(replace(cfg, hidden=_hidden(case, "init.critic")), spec)
    nets, (actor_tx, critic_tx) = critics._replace(actor=td3_bc.networks(cfg, spec).actor), td3_bc.optimisers(cfg)
    params = {net: _params(case, net, dtype) for net in NETS}
    norm = jax.tree.map(jnp.asarray, dataset.identity_norm(spec.obs_shape[0], spec.action_dim))
    run = td3_bc.State(
        optim.start(actor_tx, params["actor"]), optim.start(critic_tx, params["critic"]),
        params["actor_target"], params["critic_target"], norm, jnp.zeros((), jnp.int32),
    )  # fmt: skip
    reward = dataset.training_reward(
        case.read("raw.rewards"), np.zeros(1), scale=case.hyper("scale"), shift=case.hyper("shift")
    )
    terminated = case.read("raw.terminals").astype(bool).reshape(-1)
    noises = jnp.asarray(case.read("noise_std_normal"), dtype)

    @jax.jit
    def update(run, batch, noise, rows):
        """The update, and what the file has of its insides."""
        target = td3_bc.td3_target(run, batch, noise, nets, cfg)
        seen = {
            "next_action": td3_bc.smoothed_action(run, batch, noise, nets, cfg, cfg.max_action), "target_q": target,
            "q": nets.critic.apply(run.critic.params, batch.obs, batch.action),
            "grad": jax.grad(td3_bc.critic_loss, has_aux=True)(run.critic.params, target, batch, nets)[0],
        }  # fmt: skip
        cloned = prdc.constraint(index, rows, nets, cfg)
        after, metrics = td3_bc.update_with(run, batch, noise, nets, cfg, cloned)
        acted = nets.actor.apply(run.actor.params, batch.obs)
        wanted, _ = cloned(run, batch)
        grad = jax.grad(td3_bc.actor_loss, has_aux=True)
        seen |= {
            "pi": acted, "nearest_action": wanted,
            "grad.actor": grad(run.actor.params, after.critic.params, batch, wanted, nets, cfg)[0],
        }  # fmt: skip
        return after, metrics, seen

    for t, rows in enumerate(case.read("batch_idx")):
        step, noise = f"step{t}", noises[t]
        batch = td3_bc.Batch(
            *(jnp.asarray(x[rows]) for x in (state, actions, reward.astype(dtype), following, terminated))
        )
        check(f"{step}.reward", batch.reward)
        check(f"{step}.not_done", 1 - batch.terminated.astype(dtype))
        run, metrics, seen = update(run, batch, noise, jnp.asarray(rows, jnp.int32))
        for name in ("next_action", "target_q"):
            check(f"{step}.{name}", seen[name])
        for i in (0, 1):
            check(f"{step}.q{i + 1}", seen["q"][i])
        check(f"{step}.critic_loss", metrics["critic/loss"])
        check_net(step, "grad.critic", seen["grad"])
        if (t + 1) % cfg.actor_period == 0:
            check(f"{step}.pi", seen["pi"])
            check(f"{step}.nearest_action", seen["nearest_action"])
            key = jnp.concatenate([jnp.asarray(keys[rows][:, : spec.obs_shape[0]]), seen["pi"]], axis=1)
            check(f"{step}.kd_key", key)
            found = neighbors.brute_force(jnp.asarray(keys), key, cfg.k)
            check(f"{step}.kd_dist", found.distance[:, -1])
            theirs = case.read(f"{step}.kd_idx").reshape(-1)
            equal = (keys[np.asarray(found.row[:, -1])] == keys[theirs]).all(axis=1)  # rows that are the same twice
            check(f"{step}.kd_idx", np.where(equal, theirs, found.row[:, -1]))
            check(f"{step}.lambda", metrics["actor/lambda"])
            check(f"{step}.Q_value", metrics["actor/q"])
            check(f"{step}.actor_loss", metrics["actor/loss"] - metrics["actor/bc"])
            check(f"{step}.dc_loss", metrics["actor/bc"])
            check(f"{step}.combined_loss", metrics["actor/loss"])
            check_net(step, "grad.actor", seen["grad.actor"])
        ours = run.actor.params, run.critic.params, run.actor_target, run.critic_target
        for net, tree in zip(NETS, ours, strict=True):
            check_net(step, net, tree)


def run(case: Case) -> None:
    with jax.enable_x64(True):
        _run(case, "x64", np.float64)
    with jax.enable_x64(False):
        _run(case, "float32", np.float32)


def run_nearest(case: Case) -> None:
    """Distances by the index, and by looking at all rows, whose numbers must agree too."""
    state, action = case.read("state"), case.read("action")
    row, wanted = case.read("query_idx").astype(np.int32), case.read("query_pi")
    index = jax.tree.map(jnp.asarray, neighbors.build(state, action))
    search, look = jax.jit(neighbors.nearest), jax.jit(neighbors.brute_force, static_argnums=2)
    for name in (key for key in case.keys("beta") if key.endswith(".dist")):
        beta = np.float32(name.removesuffix(".dist").removeprefix("beta"))
        distance, numbers = case.read(name), case.read(name.replace(".dist", ".idx"))
        keys = np.concatenate([beta * state, action], axis=1)
        query = np.concatenate([beta * state[row], wanted], axis=1)
        with jax.enable_x64(True):
            found = look(keys.astype(np.float64), query.astype(np.float64), distance.shape[1])
        case.check(f"{name} of all rows", found.distance, name, 1e-10, 1e-13)
        same = (keys[np.asarray(found.row)] == keys[numbers]).all(axis=-1)
        case.rows.append(compare(f"{name} rows", np.where(same, numbers, found.row), numbers, 0, 0))
        ours = search(index, row, wanted, beta)
        case.rows.append(compare(f"{name} by the index", ours.distance, distance[:, 0], 1e-5, 1e-5))
