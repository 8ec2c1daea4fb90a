"""`util_03*`: network blocks with given weights.  `util_04*`: AdamW on given gradients.  All in float32."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from core import optim
from core.distributions import squashed_std
from core.networks import MLP, ResidualMLP, sinusoidal
from tests.golden.case import Case, Uncheckable, compare

RTOL, ATOL = 1e-5, 1e-6
ACTIVATIONS = ("relu", "mish", "tanh", "gelu", "silu", "elu", "softplus", "identity")  # those that the spec lists


def _numbers(case: Case, pattern: str) -> list[int]:
    """The numbers that a pattern with one group finds among the keys, sorted."""
    return sorted({int(match[1]) for match in (re.fullmatch(pattern, key) for key in case.keys("")) if match})


def linear(case: Case, prefix: str) -> dict:
    """A Dense layer's parameters, kernel = weight^T."""
    return {"kernel": jnp.asarray(case.read(f"{prefix}.weight").T), "bias": jnp.asarray(case.read(f"{prefix}.bias"))}


def _norm(case: Case, prefix: str) -> dict:
    return {"scale": jnp.asarray(case.read(f"{prefix}.weight")), "bias": jnp.asarray(case.read(f"{prefix}.bias"))}


def plain(case: Case, prefix: str):
    """(network by activation, its parameters) of `<prefix>.moduleList.<i>`."""
    numbers = _numbers(case, re.escape(prefix) + r"moduleList\.(\d+)\.linear_1\.weight")
    layers = [f"{prefix}moduleList.{i}" for i in numbers]
    params = {f"Dense_{i}": linear(case, f"{layer}.linear_1") for i, layer in enumerate(layers)}
    norms = [layer for layer in layers if case.has(f"{layer}.norm_1.weight")]
    params |= {f"LayerNorm_{i}": _norm(case, f"{layer}.norm_1") for i, layer in enumerate(norms)}
    sizes = tuple(len(params[f"Dense_{i}"]["bias"]) for i in range(len(layers)))
    if norms and norms != layers[:-1]:
        raise Uncheckable(f"{prefix}: LayerNorm on some hidden layers only")
    return lambda act, final: MLP(sizes, act, final, norm="before" if norms else "none"), {"params": params}


def residual(case: Case, prefix: str):
    """(network by activation, its parameters) of `<prefix>layers.<i>`."""
    first, *blocks, last = _numbers(case, re.escape(prefix) + r"layers\.(\d+)\.(?:l1\.)?weight")
    order = [f"{prefix}layers.{first}"]
    order += [f"{prefix}layers.{i}.{part}" for i in blocks for part in ("l1", "l2")] + [f"{prefix}layers.{last}"]
    params = {f"Dense_{i}": linear(case, name) for i, name in enumerate(order)}
    names = [f"{prefix}layers.{i}.{part}" for i in blocks for part in ("norm1", "norm2")]
    norms = [name for name in names if case.has(f"{name}.weight")]
    params |= {f"LayerNorm_{i}": _norm(case, name) for i, name in enumerate(norms)}
    if norms and norms != names:
        raise Uncheckable(f"{prefix}: LayerNorm in some blocks only")
    sizes = tuple(len(params[f"Dense_{i}"]["bias"]) for i in range(len(order)))
    return lambda act, final: ResidualMLP(sizes, act, final, norm=bool(norms)), {"params": params}


def _network(case: Case, group: str) -> None:
    """Compare one network's output; an activation that its name does not say is found by trying."""
    make, params = (residual if case.keys(f"{group}/layers.") else plain)(case, f"{group}/")
    x, reference = jnp.asarray(case.read(f"{group}/in")), case.read(f"{group}/out")
    said = [name for name in ACTIVATIONS if name in group.split("_")]
    tried = [(act, "identity") for act in said or ACTIVATIONS]
    tried += [(act, final) for final in ACTIVATIONS[:-1] for act in said or ACTIVATIONS]
    rows = []
    for act, final in tried:
        note = f"activation {act}" + (f", last {final}" if final != "identity" else "") + ("" if said else " (tried)")
        ours = make(act, final).apply(params, x)
        rows.append(compare(f"{group}/out", ours, reference, RTOL, ATOL, note))
        if rows[-1].ok:
            break
    case.rows.append(min(rows, key=lambda row: (not row.ok, row.error)))


def _noise_net(case: Case, group: str, low: float, high: float) -> None:
    make, params = plain(case, f"{group}/mlp_logvar.")
    raw = make("tanh", "identity").apply(params, jnp.asarray(case.read(f"{group}/in")))
    ours = {"raw_logvar": raw, "std": squashed_std(raw, low, high)}
    ours |= {"logvar_min": 2 * np.log(low), "logvar_max": 2 * np.log(high)}
    for name, value in ours.items():
        case.check(f"{group}/{name}", value, f"{group}/{name}", RTOL, ATOL)


def run_blocks(case: Case) -> None:
    for group in case.groups():
        if group.startswith("sinus"):
            for dim in _numbers(case, re.escape(group) + r"/(\d+)"):
                ours = sinusoidal(jnp.asarray(case.read(f"{group}/t")), dim)
                case.check(f"{group}/{dim}", ours, f"{group}/{dim}", RTOL, ATOL)
        elif group.startswith("noise_squash"):
            std = squashed_std(jnp.asarray(case.read(f"{group}/raw")), *case.hyper("noise_std_range"))
            case.check(f"{group}/std", std, f"{group}/std", RTOL, ATOL)
        elif case.keys(f"{group}/mlp_logvar."):
            _noise_net(case, group, *case.hyper("noise_std_range"))
        elif case.keys(f"{group}/layers.") or case.keys(f"{group}/moduleList."):
            _network(case, group)


def run_adamw(case: Case) -> None:
    for group in case.groups():
        if not (match := re.fullmatch(r"adamw_wd([\d.e+-]+)", group)):
            continue
        b1, b2 = case.hyper("betas")
        tx = optim.adam(case.hyper("lr"), b1, b2, case.hyper("eps"), weight_decay=float(match[1]))
        net = optim.start(tx, jnp.asarray(case.read(f"{group}/p0")))
        step, ours = jax.jit(lambda net, grads, tx=tx: optim.apply(tx, net, grads)), []
        for grads in case.read(f"{group}/grads"):
            net = step(net, jnp.asarray(grads))
            ours.append(net.params)
        case.check(f"{group}/params", jnp.stack(ours), f"{group}/params", RTOL, ATOL)
