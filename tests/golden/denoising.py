"""`bc_*`: losses, gradients and samples of flow and diffusion policies on given draws, in float32.

Gradients are compared with an absolute tolerance of 1e-5 of their array's largest entry, because sums over the batch
leave small entries of large parts.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from algos import chain_bc
from core import chain, chunk_policy, diffusion, flow
from core.chain import Regression
from core.chunk_policy import Denoising, Policy, PolicyNet
from core.config import choose
from core.dataset import identity_norm
from core.networks import Denoiser
from core.types import Array, EnvSpec, Observation, PyTree
from tests.golden.case import Case, Uncheckable, compare
from tests.golden.networks import linear, plain, residual

RTOL, ATOL = 1e-5, 1e-6
GRAD_RTOL, GRAD_ATOL = 1e-4, 1e-5  # the latter times the array's largest entry
COMBINATIONS = {"concate": "concat", "add": "add", "multiply": "multiply"}
GRIDS = {"linspace(0,1,K)": "inclusive", "linspace(0,1-1/K,K)": "left"}


def denoiser(case: Case, prefix: str) -> tuple[Denoiser, PyTree]:
    """The network whose weights lie below `prefix`, and its parameters.

    Sizes come from the arrays.  Raises: Uncheckable where the hyper-parameters say otherwise, or for a LayerNorm.
    """
    span = case.has(f"{prefix}t_emb.0.weight")
    times = ("t_emb.0", "t_emb.2") if span else ("time_embedding.1", "time_embedding.3")
    code, head = ("cond_emb.", "vel_head.") if span else ("cond_mlp.", "mlp_mean.")
    params = {f"Dense_{i}": linear(case, prefix + name) for i, name in enumerate(times)}
    cond = ()
    if case.keys(prefix + code):
        make, tree = plain(case, prefix + code)
        cond, params["MLP_0"] = make("relu", "identity").sizes, tree["params"]
    blocks = bool(case.keys(f"{prefix}{head}layers."))
    make, tree = (residual if blocks else plain)(case, prefix + head)
    hidden = make("relu", "identity").sizes[:-1]
    params["ResidualMLP_0" if blocks else f"MLP_{len(params) - 2}"] = tree["params"]
    if any("LayerNorm" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)):
        raise Uncheckable(f"{prefix}: our denoisers have no LayerNorm")
    width = len(params["Dense_1"]["bias"])
    case.agree("mlp_dims", list(hidden))
    case.agree("cond_mlp_dims", list(cond) or None)
    case.agree("residual", blocks)
    case.agree("td_emb_dim" if case.has("td_emb_dim") else "time_dim", width)
    combine = choose("combination", case.hyper("embed_combination"), COMBINATIONS) if span else "none"
    case.ignore("embed_combination")  # a network without spans has none
    net = Denoiser(hidden, case.hyper("activation").lower(), blocks, width, cond, combine)
    return net, {"params": params}


def check_gradients(case: Case, name: str, ours: PyTree, reference: PyTree) -> None:
    """Keep a row for each array of two like trees, the second from arrays of the file."""
    named = jax.tree_util.tree_leaves_with_path(reference)
    for (path, wanted), mine in zip(named, jax.tree.leaves(ours), strict=True):
        label = "/".join(str(key.key) for key in path)
        scale = float(np.abs(wanted).max())
        case.rows.append(compare(f"{name} {label}", mine, wanted, GRAD_RTOL, GRAD_ATOL * scale))


def states(case: Case) -> Array:
    """f32[B, To * Do] what the networks are told, oldest observation first."""
    obs = case.read("obs_state")
    case.agree("B", len(obs))
    case.agree("cond_steps", obs.shape[1])
    case.agree("obs_dim", obs.shape[2])
    return jnp.asarray(obs.reshape(len(obs), -1))


def policy(case: Case, net: Denoiser, family: str, **options) -> Policy:
    """Our policy with this network, for chunks of the file's shape."""
    spans = {"combine": net.combine} if family == "shortcut" else {}
    given = PolicyNet(family, net.hidden, net.activation, net.residual, net.time_dim, net.cond, **spans, **options)
    spec = EnvSpec("golden", (1,), case.hyper("action_dim"), chunk=case.hyper("horizon_steps"))
    return chunk_policy.policy(given, spec)


def _fit(case: Case, params: PyTree, state: Array, fit: Regression, given: Policy, names: dict) -> None:
    """Compare the regression, the prediction, its loss and the gradients."""
    for field, key in names.items():
        if field != "out":
            case.check(f"{key} (fit)", getattr(fit, field), key, RTOL, ATOL)
    obs = Observation(state, state[:, :0], state[:, 0] * 0, jnp.zeros(len(state), jnp.int32))
    norm = identity_norm(state.shape[1], given.shape[1])

    @jax.jit
    def outcome(params: PyTree) -> tuple[Array, Array, PyTree]:
        out = given.denoise(params, given.read(params, norm, obs), fit.x, fit.t, fit.span).out
        grads, metrics = jax.grad(chain_bc.loss, has_aux=True)(params, norm, obs, fit, given)
        return out, metrics["loss"], grads

    out, loss, grads = outcome(params)
    case.check(names["out"], out, names["out"], RTOL, ATOL)
    case.check("loss", loss, "loss", RTOL, ATOL)
    check_gradients(case, "gradient", grads["denoiser"], denoiser(case, "grad_net/")[1])


def _samples(case: Case, net: Denoiser, params: PyTree, state: Array, family: str) -> None:
    """Roll the flow out from the file's start, with and without the clip of the steps between."""
    said = case.hyper("sample_time_grid").split(" ")[0]
    denoising = Denoising(case.hyper("sample_steps"), choose("time grid", said, GRIDS))
    start = jnp.asarray(case.read("sample/z"))
    normals = jnp.zeros((len(start), denoising.steps, *start.shape[1:]))
    for key in case.keys("sample/action_K"):
        given = policy(case, net, family, denoised_clip=0.0 if key.endswith("noclip") else 1.0)
        step = given.step(params, state, denoising)
        chunks, _ = jax.jit(functools.partial(chain.sample, step, last=1.0))(start, normals)
        case.check(key, chunks[:, -1], key, RTOL, ATOL)


def _reflow(case: Case, net: Denoiser, params: PyTree, state: Array) -> None:
    choose("time law", case.hyper("sample_t_type"), flow.TIMES)  # the times themselves are given
    fit = flow.rectified(*(jnp.asarray(case.read(key)) for key in ("x0", "x1", "t")))
    names = {"x": "xt", "target": "v_target", "out": "v_pred"}
    _fit(case, params, state, fit, policy(case, net, "reflow"), names)
    _samples(case, net, params, state, "reflow")


def _shortcut(case: Case, net: Denoiser, params: PyTree, state: Array) -> None:
    """Given draws are put together as `algos.chain_bc.regression` does: self-consistent rows first."""
    given, delta, x1 = policy(case, net, "shortcut"), case.hyper("delta"), jnp.asarray(case.read("x1"))
    draw = {key: jnp.asarray(case.read(f"draw/{key}")) for key in ("d_base", "t_idx", "x0_sc", "t_fm", "x0_fm")}
    n, calls = len(draw["d_base"]), []
    case.agree("n_self_consistency", n)
    rows, highest = int(case.hyper("self_consistency_k") * len(x1)), case.hyper("max_denoising_steps") - 2
    if rows != n or draw["d_base"].max() > highest:
        raise Uncheckable(f"draw/d_base: not {rows} exponents up to {highest}, as the hyper-parameters say")

    def velocity(x: Array, t: Array, span: Array) -> Array:
        calls.append((x, t, span, given.denoise(params, state[:n], x, t, span).out))
        return calls[-1][-1]

    consistent = flow.self_consistent(velocity, draw["x0_sc"], x1[:n], draw["d_base"], draw["t_idx"], delta)
    (x, t, half, v1), (x2, t2, _, v2) = calls
    ours = {"x_t": x, "t": t, "d_half": half, "v1": v1, "x_t2": x2, "t2": t2, "v2": v2, "v_target": consistent.target}
    for key, value in ours.items():
        case.check(f"sc/{key}", value, f"sc/{key}", RTOL, ATOL)
    plain_rows = flow.rectified(draw["x0_fm"], x1[n:], draw["t_fm"], delta)
    fit = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), consistent, plain_rows)
    names = {"x": "x_t", "t": "t", "span": "d", "target": "v_target", "out": "v_pred"}
    _fit(case, params, state, fit, given, {field: f"batch/{key}" for field, key in names.items()})
    _samples(case, net, params, state, "shortcut")


def check_schedule(case: Case, schedule: diffusion.Schedule) -> None:
    """`schedule/*` without DDIM's: coefficients by time, each as our functions use it."""
    steps = len(schedule.beta)
    one, order = jnp.ones((steps, 1, 1)), jnp.arange(steps)[::-1]  # steps of the chain, the cleanest time first
    bar = schedule.bar[:, None, None]

    def posterior(x: float, x0: float) -> diffusion.Move:
        return diffusion.ddpm(schedule, lambda x, k: x0 * one, "clean", jnp.inf)(x * one, order)

    def noised(x: float, normal: float) -> Array:
        return diffusion.noised(schedule, x * one, jnp.arange(steps), normal * one).x

    ours = {
        "betas": schedule.beta, "alphas": 1 - schedule.beta,
        "alphas_cumprod": schedule.bar, "alphas_cumprod_prev": schedule.before,
        "sqrt_alphas_cumprod": noised(1, 0), "sqrt_one_minus_alphas_cumprod": noised(0, 1),
        "sqrt_recip_alphas_cumprod": diffusion.clean(bar, one, 0 * one, "noise", jnp.inf),
        "sqrt_recipm1_alphas_cumprod": -diffusion.clean(bar, 0 * one, one, "noise", jnp.inf),
        "ddpm_var": schedule.variance, "ddpm_logvar_clipped": 2 * jnp.log(posterior(0, 0).std),
        "ddpm_mu_coef1": posterior(0, 1).mean, "ddpm_mu_coef2": posterior(1, 0).mean,
    }  # fmt: skip
    for key, value in ours.items():
        case.check(f"schedule/{key}", value, f"schedule/{key}", RTOL, ATOL)


def _diffusion(case: Case, net: Denoiser, params: PyTree, state: Array) -> None:
    levels, predicts = case.hyper("denoising_steps"), "noise" if case.hyper("predict_epsilon") else "clean"
    schedule = diffusion.cosine(levels)
    check_schedule(case, schedule)
    draws = (jnp.asarray(case.read(key)) for key in ("x_start", "t", "eps"))
    fit = diffusion.noised(schedule, *draws, predicts)
    given = policy(case, net, "diffusion", levels=levels, predicts=predicts)
    _fit(case, params, state, fit, given, {"x": "x_noisy", "out": "pred"})


FAMILIES = {"reflow BC": _reflow, "shortcut BC": _shortcut, "ddpm BC": _diffusion}


def run(case: Case) -> None:
    check = choose("kind of case", case.hyper("kind"), FAMILIES)
    case.ignore("note")
    net, params = denoiser(case, "net/")
    check(case, net, {"denoiser": params}, states(case))
