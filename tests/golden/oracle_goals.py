"""Goal-conditioned updates written out in float64, in files of the layout of `hiql_state.npz` and its like.

Every network is read by its official name; only the derivatives are JAX's.  Some kinds of case are here alone: awr of
CRL, of QRL by MRN and of discrete GCIQL, HIQL in pictures.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

CHANNELS, WIDTH = (4, 4), 512  # of "impala_debug"
SIDE = 12  # pixels


# --- networks, of {official name: array} ---


def mlp(p, prefix, *inputs, final=False):
    """Dense, GELU, LayerNorm where there is one; kernels [in, out] or, of several heads, [E, in, out]."""
    x = jnp.concatenate(inputs, -1)
    depth = sum(name.startswith(f"{prefix}/Dense_") and name.endswith("kernel") for name in p)
    for i in range(depth):
        x = x @ p[f"{prefix}/Dense_{i}/kernel"] + p[f"{prefix}/Dense_{i}/bias"][..., None, :]
        if i < depth - 1 or final:
            x = 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            if f"{prefix}/LayerNorm_{i}/scale" in p:
                x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = (
                    x * p[f"{prefix}/LayerNorm_{i}/scale"][..., None, :]
                    + p[f"{prefix}/LayerNorm_{i}/bias"][..., None, :]
                )
    return x


def eye(p, prefix, *pictures):
    def conv(name, x):
        kernel = p[f"{prefix}/{name}/kernel"]
        rows = [[0, 0], [1, 1], [1, 1], [0, 0]]
        around = jnp.pad(x, rows)
        high, wide = x.shape[1:3]
        shifted = [around[:, i : i + high, j : j + wide] @ kernel[i, j] for i in range(3) for j in range(3)]
        return sum(shifted) + p[f"{prefix}/{name}/bias"]

    def pool(x):
        """3 x 3, every second; even sides are padded at their ends alone, odd ones at both."""
        first = x.shape[1] % 2
        around = jnp.pad(x, [[0, 0], [first, 1], [first, 1], [0, 0]], constant_values=-jnp.inf)
        out = -(-x.shape[1] // 2)
        seen = [around[:, i : i + 2 * out - 1 : 2, j : j + 2 * out - 1 : 2] for i in range(3) for j in range(3)]
        return jnp.max(jnp.stack(seen), 0)

    x = jnp.concatenate(pictures, -1) / 255.0
    for i in range(len(CHANNELS)):
        x = pool(conv(f"stack_blocks_{i}/Conv_0", x))
        inner = conv(f"stack_blocks_{i}/Conv_1", jnp.maximum(x, 0))
        x = x + conv(f"stack_blocks_{i}/Conv_2", jnp.maximum(inner, 0))
    return mlp(p, f"{prefix}/MLP_0", jnp.maximum(x, 0).reshape(len(x), -1), final=True)


def seen(p, prefix, state):
    """A state, or a picture as the network's own encoder codes it."""
    own = f"{prefix}/gc_encoder/state_encoder"
    return eye(p, own, state) if any(name.startswith(own) for name in p) else state


def actor(p, prefix, *inputs):
    """(mean or logits, whether they are logits)"""
    x = mlp(p, f"{prefix}/actor_net", *inputs, final=True)
    head = "logit_net" if f"{prefix}/logit_net/bias" in p else "mean_net"
    return x @ p[f"{prefix}/{head}/kernel"] + p[f"{prefix}/{head}/bias"], head == "logit_net"


def unit(z):
    return z * np.sqrt(z.shape[-1]) / jnp.sqrt((z**2).sum(-1, keepdims=True))


def rep(p, s, g):
    if "modules_goal_rep/layers_1/Dense_0/bias" in p:
        return unit(mlp(p, "modules_goal_rep/layers_1", eye(p, "modules_goal_rep/layers_0", s, g)))
    return unit(mlp(p, "modules_goal_rep/layers_0", s, g))


def hvalue(p, net, s, g, reps=None):
    """f[2, B]; phi by other parameters where given."""
    return mlp(p, f"{net}/value_net", seen(p, net, s), rep(reps or p, s, g))[..., 0]


def high(p, s, g):
    own = "modules_high_actor/gc_encoder/concat_encoder"
    inputs = (eye(p, own, s, g),) if any(name.startswith(own) for name in p) else (s, g)
    return actor(p, "modules_high_actor", *inputs)[0]


# --- losses: {section: {term: value}}, the loss first ---


def log_prob(out, logits, a):
    if logits:
        return jnp.take_along_axis(jax.nn.log_softmax(out), a[:, None], 1)[:, 0]
    return -0.5 * ((out - a) ** 2).sum(-1) - 0.5 * out.shape[-1] * np.log(2 * np.pi)


def awr(out, logits, a, adv, alpha):
    own = log_prob(out, logits, a)
    terms = {"actor_loss": -(jnp.minimum(jnp.exp(alpha * adv), 100) * own).mean(), "adv": adv.mean()}
    return {**terms, "bc_log_prob": own.mean()} | ({} if logits else {"mse": ((out - a) ** 2).mean()})


def ivl(v, now, then, r, mask, c, gamma):
    adv = r + gamma * mask * then.min(0) - now.mean(0)
    weight = jnp.where(adv >= 0, c["expectile"], 1 - c["expectile"])
    return (weight * (r + gamma * mask * then - v) ** 2).mean(1).sum()


def spread(x, of="v"):
    return {f"{of}_mean": x.mean(), f"{of}_max": x.max(), f"{of}_min": x.min()}


def gciql(p, fixed, b, c):
    s, g, ga = b["observations"], b["value_goals"], b["actor_goals"]
    a = jax.nn.one_hot(b["actions"], 4, dtype=s.dtype) if c["discrete"] else b["actions"]
    value = lambda p, s, g: mlp(p, "modules_value/value_net", s, g)[..., 0]  # noqa: E731
    critic = lambda p, net, g: mlp(p, f"{net}/value_net", s, g, a)[..., 0]  # noqa: E731
    v, slow, q = value(p, s, g), critic(fixed, "modules_target_critic", g), critic(p, "modules_critic", g)
    u = slow.min(0) - v
    y = b["rewards"] + c["discount"] * b["masks"] * value(fixed, b["next_observations"], g)
    adv = critic(fixed, "modules_critic", ga).min(0) - value(fixed, s, ga)
    weight = jax.lax.stop_gradient(jnp.where(u >= 0, c["expectile"], 1 - c["expectile"]))
    return {
        "value": {"value_loss": (weight * u**2).mean(), **spread(v)},
        "critic": {"critic_loss": ((q - y) ** 2).sum(0).mean(), **spread(y, "q")},
        "actor": awr(*actor(p, "modules_actor", s, ga), b["actions"], adv, c["alpha"]),
    }


def crl(p, fixed, b, c):
    s, a, g, ga = (b[name] for name in ("observations", "actions", "value_goals", "actor_goals"))

    def contrast(phi, psi):
        logits = jnp.einsum("...id,...jd->...ij", phi, psi) / np.sqrt(c["latent_dim"])
        return jnp.logaddexp(0, (1 - 2 * jnp.eye(len(s))) * logits).mean()

    def agree(p, net, g, *inputs):
        both = mlp(p, f"{net}/phi", *inputs), mlp(p, f"{net}/psi", g)
        return both, (both[0] * both[1]).sum(-1) / np.sqrt(c["latent_dim"])

    (phi, psi), _ = agree(p, "modules_critic", g, s, a)
    (phi_v, psi_v), _ = agree(p, "modules_value", g, s)
    adv = agree(fixed, "modules_critic", ga, s, a)[1].min(0) - agree(fixed, "modules_value", ga, s)[1]
    return {
        "critic": {"contrastive_loss": contrast(phi, psi)},
        "value": {"contrastive_loss": contrast(phi_v, psi_v)},
        "actor": awr(*actor(p, "modules_actor", s, ga), a, adv, c["alpha"]),
    }


def qrl(p, fixed, b, c):
    s, then, g, ga = (b[name] for name in ("observations", "next_observations", "value_goals", "actor_goals"))

    def d(p, x, y):
        x, y = (mlp(p, "modules_value/phi", z) for z in (x, y))
        half = x.shape[-1] // 2
        even = jnp.sqrt(jnp.maximum(((x - y)[:, :half] ** 2).sum(-1), 1e-12))
        return even + jnp.maximum((x - y)[:, half:].max(-1), 0)

    far, near = d(p, s, g), d(p, s, then)
    price = p["modules_lam/log_value"]
    apart, steps = (100 * jnp.logaddexp(0, 5 - far / 100)).mean(), (jnp.maximum(near - 1, 0) ** 2).mean()
    value = apart + jnp.exp(fixed["modules_lam/log_value"]) * steps
    lam = jnp.exp(price) * (c["eps"] - jax.lax.stop_gradient(steps))
    adv = d(fixed, s, ga) - d(fixed, then, ga)
    return {
        "value": {
            "total_loss": value + lam, "value_loss": value, "lam_loss": lam, "lam": jnp.exp(price),
            "d_neg_loss": apart, "d_pos_loss": steps, **spread(far, "d_neg"), **spread(near, "d_pos"),
        },
        "actor": awr(*actor(p, "modules_actor", s, ga), b["actions"], adv, c["alpha"]),
    }  # fmt: skip


def hierarchy(p, fixed, b, c, low_net="modules_value", high_net="modules_value"):
    """Both policies' losses."""
    s, then, w = (b[name] for name in ("observations", "next_observations", "low_actor_goals"))
    g, h = b["high_actor_goals"], b["high_actor_targets"]
    mean = lambda net, s, g: hvalue(fixed, net, s, g).mean(0)  # noqa: E731
    z = rep(p if c["low_actor_rep_grad"] else fixed, s, w)
    low = actor(p, "modules_low_actor", seen(p, "modules_low_actor", s), z)
    adv = mean(high_net, h, g) - mean(high_net, s, g)
    return {
        "low_actor": awr(*low, b["actions"], mean(low_net, then, w) - mean(low_net, s, w), c["low_alpha"]),
        "high_actor": awr(high(p, s, g), False, rep(fixed, s, h), adv, c["high_alpha"]),
    }


def learned(p, fixed, b, c, net, then, goal, reward, mask, gamma):
    """(loss, V) of one of the values."""
    slow = net.replace("modules_", "modules_target_")
    s, g = b["observations"], b[goal]
    v = hvalue(p, net, s, g)
    now, following = (hvalue(fixed, slow, s, g) for s in (s, b[then]))
    return ivl(v, now, following, b[reward], b[mask], c, gamma), v


STEP = ("next_observations", "value_goals", "rewards", "masks")
OPTION = ("high_value_option_observations", "high_value_goals", "high_value_rewards", "high_value_masks")


def hiql(p, fixed, b, c):
    loss, v = learned(p, fixed, b, c, "modules_value", *STEP, c["discount"])
    return {"value": {"value_loss": loss, **spread(v.mean(0))}, **hierarchy(p, fixed, b, c)}


def ota(p, fixed, b, c):
    low, _ = learned(p, fixed, b, c, "modules_low_value", *STEP, c["low_discount"])
    up, v = learned(p, fixed, b, c, "modules_high_value", *OPTION, c["high_discount"])
    return {
        "low_value": {"low_value_loss": low},
        "high_value": {"high_value_loss": up, **spread(v.mean(0), "high_v")},
        **hierarchy(p, fixed, b, c, "modules_low_value", "modules_high_value"),
    }


# --- files ---


def acted(p, b, c):
    if "high_actor_goals" in b:
        z = unit(high(p, b["observations"], b["high_actor_goals"]))
        out, logits = actor(p, "modules_low_actor", seen(p, "modules_low_actor", b["observations"]), z)
    else:
        out, logits = actor(p, "modules_actor", b["observations"], b["actor_goals"])
    return out.argmax(-1) if logits else jnp.clip(out, -1, 1)


def parameters(rng, algo, c, dim, actions, pixels):
    """Random ones of all networks and their slow copies, by name."""
    p = {}

    def dense(name, i, o, heads):
        p[f"{name}/kernel"] = rng.normal(size=(*heads, i, o)) / np.sqrt(i)
        p[f"{name}/bias"] = 0.1 * rng.normal(size=(*heads, o))

    def trunk(prefix, i, out, heads=()):
        for n, o in enumerate((*c["value_hidden_dims"], out)):
            dense(f"{prefix}/Dense_{n}", i, o, heads)
            if n < len(c["value_hidden_dims"]):
                p[f"{prefix}/LayerNorm_{n}/scale"] = 1 + 0.1 * rng.normal(size=(*heads, o))
                p[f"{prefix}/LayerNorm_{n}/bias"] = 0.1 * rng.normal(size=(*heads, o))
            i = o

    def policy(prefix, i, out, head="mean_net"):
        for n, o in enumerate(c["actor_hidden_dims"]):
            dense(f"{prefix}/actor_net/Dense_{n}", i, o, ())
            i = o
        dense(f"{prefix}/{head}", i, out, ())

    def coder(prefix, images):
        i = 3 * images
        for n, o in enumerate(CHANNELS):
            for m in range(3):
                name = f"{prefix}/stack_blocks_{n}/Conv_{m}"
                p[f"{name}/kernel"] = rng.normal(size=(3, 3, i, o)) / np.sqrt(9 * i)
                p[f"{name}/bias"] = 0.1 * rng.normal(size=o)
                i = o
        dense(f"{prefix}/MLP_0/Dense_0", i * (SIDE // 2 ** len(CHANNELS)) ** 2, WIDTH, ())

    head, two = ("logit_net" if c["discrete"] else "mean_net"), (2,)
    if algo in ("gciql", "crl", "qrl"):
        policy("modules_actor", 2 * dim, actions, head)
    if algo == "gciql":
        trunk("modules_value/value_net", 2 * dim, 1)
        for net in ("critic", "target_critic"):
            trunk(f"modules_{net}/value_net", 2 * dim + actions, 1, two)
    if algo == "crl":
        for net, i, heads in (("critic", dim + actions, two), ("value", dim, ())):
            trunk(f"modules_{net}/phi", i, c["latent_dim"], heads)
            trunk(f"modules_{net}/psi", dim, c["latent_dim"], heads)
    if algo == "qrl":
        trunk("modules_value/phi", dim, c["latent_dim"])
        p["modules_lam/log_value"] = np.asarray(0.2)
    if algo in ("hiql", "ota"):
        code = WIDTH if pixels else dim
        trunk(f"modules_goal_rep/layers_{int(pixels)}", WIDTH if pixels else 2 * dim, c["rep_dim"])
        policy("modules_high_actor", WIDTH if pixels else 2 * dim, c["rep_dim"])
        policy("modules_low_actor", code + c["rep_dim"], actions, head)
        values = [f"modules_{copy}{net}" for copy in ("", "target_") for net in (
            ("value",) if algo == "hiql" else ("low_value", "high_value"))]  # fmt: skip
        for net in values:
            trunk(f"{net}/value_net", code + c["rep_dim"], 1, two)
        if pixels:
            coder("modules_goal_rep/layers_0", 2)
            coder("modules_high_actor/gc_encoder/concat_encoder", 2)
            for net in (*values, "modules_low_actor"):
                coder(f"{net}/gc_encoder/state_encoder", 1)
    return p


def write(path: Path, algo: str, *, seed=0, rows=7, dim=4, actions=2, pixels=False, **options) -> Path:
    """Run two updates and write a case; options are the official configuration's."""
    rng = np.random.default_rng(seed)
    c = {
        "agent_name": algo, "batch_size": rows, "lr": 1e-3, "discount": 0.95, "tau": 0.01, "expectile": 0.8,
        "value_hidden_dims": [9, 8], "actor_hidden_dims": [10], "discrete": False, "const_std": True,
        "layer_norm": True, "frame_stack": None, "p_aug": 0.0, "gc_negative": algo not in ("crl", "qrl"),
        "encoder": "impala_debug" if pixels else None, "actor_loss": "awr", "alpha": 2.0, "latent_dim": 6, "eps": 0.1,
        "rep_dim": 5, "low_alpha": 2.0, "high_alpha": 4.0, "subgoal_steps": 5, "low_actor_rep_grad": False,
        "value_geom_sample": True, "actor_geom_sample": False, **options,
    }  # fmt: skip
    for of in ("value", "actor"):
        c |= {f"{of}_p_{kind}goal": share for kind, share in (("cur", 0.0), ("traj", 1.0), ("random", 0.0))}
    if algo == "qrl":
        c["quasimetric_type"] = "mrn"
    if algo == "ota":
        c = {"abstraction_factor": 3, "low_discount": c["discount"], "high_discount": c["discount"], **c}
    actions = 4 if c["discrete"] else actions
    names = ["observations", "next_observations", "value_goals"]
    kinds = {"hiql": ["low_actor_goals", "high_actor_goals", "high_actor_targets"]}
    kinds["ota"] = [*kinds["hiql"], *OPTION[:2]]
    names += kinds.get(algo, ["actor_goals"])
    if pixels:
        batch = {name: rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8) for name in names}
    else:
        batch = {name: rng.normal(size=(rows, dim)) for name in names}
    batch["actions"] = (
        rng.integers(4, size=rows, dtype=np.int32) if c["discrete"] else rng.uniform(-1, 1, (rows, actions))
    )
    for reward, mask in (STEP[2:], *([OPTION[2:]] if algo == "ota" else [])):
        batch[mask] = 1.0 - (rng.random(rows) < 0.3)
        batch[reward] = -batch[mask]
    out = {f"batch/{name}": x for name, x in batch.items()} | {"config_json": np.asarray(json.dumps(c))}
    with jax.enable_x64(True):
        batch = {name: jnp.asarray(x) for name, x in batch.items()}
        p = {k: jnp.asarray(x) for k, x in parameters(rng, algo, c, dim, actions, pixels).items()}
        losses = partial(globals()[algo], c=c)

        @jax.jit
        def slope(p):
            def total(moving):
                found = losses(moving, jax.lax.stop_gradient(p), batch)
                return sum(next(iter(terms.values())) for terms in found.values()), found

            return jax.value_and_grad(total, has_aux=True)(p)

        out |= {f"params/{k}": x for k, x in p.items()}
        out["out/sample_actions_temperature0"] = acted(p, batch, c)
        m, v = ({k: jnp.zeros_like(x) for k, x in p.items()} for _ in range(2))
        for t in (1, 2):
            (loss, found), grads = slope(p)
            if t == 1:
                out["out/total_loss"] = loss
                out |= {f"out/info/{part}/{k}": x for part, terms in found.items() for k, x in terms.items()}
                out |= {f"grads/{k}": x for k, x in grads.items()}
            new = {}
            for k, g in grads.items():
                m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
                move = (m[k] / (1 - 0.9**t)) / (jnp.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
                new[k] = p[k] - c["lr"] * move
            for k in p:
                if k.startswith("modules_target_"):
                    new[k] = c["tau"] * p[k.replace("target_", "")] + (1 - c["tau"]) * p[k]
            p = new
            out |= {f"params_after_{t}_update{'s' * (t > 1)}/{k}": x for k, x in p.items()}
        slopes = [np.asarray(out[f"grads/{k}"]) for k in grads]
    out["out/update_info/grad/max"] = max(g.max() for g in slopes)
    out["out/update_info/grad/min"] = min(g.min() for g in slopes)
    out["out/update_info/grad/norm"] = sum(np.sqrt((g**2).sum()) for g in slopes)
    out = {k: np.asarray(x) for k, x in out.items()}
    np.savez(path, **{k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in out.items()})
    return path
