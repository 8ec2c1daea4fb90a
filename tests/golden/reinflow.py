"""`reinflow_*`: noisy flow chains, their likelihood, PPO's losses and their gradients, in float32.

At its commit the official sampler of rectified flow asks for velocities at linspace(0, 1, K), the official likelihood
at k / K: each group is checked with the grid that it was made with.  Gradients are compared as in `denoising`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algos import chain_ppo, reinflow
from algos.chain_ppo import Actor, Batch, Judged, State
from core import chain, critics, running
from core.chain import Move, Step
from core.chunk_policy import Denoising, Policy
from core.config import choose
from core.critics import Network
from core.dataset import identity_norm
from core.networks import Denoiser
from core.optim import Trained
from core.types import Array, EnvSpec, Observation, PyTree
from tests.golden.case import Case, compare
from tests.golden.denoising import ATOL, RTOL, check_gradients, denoiser, policy, states
from tests.golden.networks import plain, residual

SCHEDULES = {"const": "min", "learn": "min", "learn_decay": "min", "vp": "vp", "lin": "lin"}  # noise where not learned
TABLE = "time_embedding_explore.weight"
KEY = jax.random.key(0)  # nothing draws from it: the files hold all draws


class Setting(NamedTuple):
    """What the arrays of a file are put into."""

    cfg: reinflow.Config
    given: Policy
    player: reinflow.NoisyFlow
    actor: Actor
    state: State  # without an actor's parameters
    seen: Array  # f32[B, S]
    sampler: reinflow.NoisyFlow  # with the grid that was sampled with


def observed(seen: Array) -> Observation:
    size = len(seen)
    return Observation(seen, seen[:, :0], jnp.zeros(size), jnp.zeros(size, jnp.int32))


def values(case: Case, prefix: str) -> PyTree:
    """Parameters of the critic below `prefix`."""
    make, tree = (residual if case.keys(f"{prefix}Q1.layers.") else plain)(case, f"{prefix}Q1.")
    case.agree("critic_mlp_dims", list(make("relu", "identity").sizes[:-1]))
    case.agree("critic_residual", bool(case.keys(f"{prefix}Q1.layers.")))
    return {"value": tree}


def learning(case: Case) -> dict:
    """Options of `chain_ppo.Config` that all files name alike."""
    weight = case.hyper("bc_coeff") if case.has("bc_coeff") else 0.1
    return {
        "clip": case.hyper("clip_ploss_coef"), "value_clip": case.hyper("clip_vloss_coef") or 0.0,
        "value_weight": case.hyper("vf_coef"), "entropy_weight": case.hyper("ent_coef"),
        "bc_weight": weight if case.hyper("use_bc_loss") else 0.0,
        "critic": Network(
            tuple(case.hyper("critic_mlp_dims")), case.hyper("critic_activation").lower(), case.hyper("critic_residual")
        ),
    }  # fmt: skip


def begun(critic: PyTree, frozen: PyTree, width: int, action_dim: int) -> State:
    """A state before the first update, without an actor."""
    norm = jax.tree.map(jnp.asarray, identity_norm(width, action_dim))
    return State(Trained((), ()), Trained(critic, ()), frozen, running.reward_scale(1), norm, jnp.int32(0))


def check_losses(case: Case, setting: Setting, params: PyTree, batch: Batch, others: dict, reference: PyTree) -> None:
    """`loss_out/*`, `grad_actor/*` (reference) and `grad_critic/*`, as an update takes them.

    Where the official loss is not a number, because it clips by 0 / 0, ours must be finite; the official gradients are
    then those of the loss without a clip.
    Args: others: quantities of `loss_out` beside those of our two losses.
    """
    cfg, state, actor = setting.cfg, setting.state, setting.actor
    net, unclipped = critics.of_observations(cfg.critic, setting.given), actor._replace(clip=lambda level: jnp.inf)
    undefined, batch = np.isnan(case.read("loss_out/total")), chain_ppo.shaped(batch, actor, cfg)

    @jax.jit
    def outcome(params: PyTree, critic: PyTree) -> tuple[PyTree, ...]:
        of_actor = jax.value_and_grad(chain_ppo.actor_loss, has_aux=True)
        of_critic = jax.value_and_grad(chain_ppo.critic_loss, has_aux=True)
        free = of_actor(params, state, batch, KEY, unclipped, cfg)[1] if undefined else ()
        ours, theirs = of_actor(params, state, batch, KEY, actor, cfg), of_critic(critic, state.norm, batch, net, cfg)
        return *ours, *theirs, free

    (total, metrics), grads, (value, more), value_grads, free = outcome(params, state.critic.params)
    ours = {
        "pg_loss": metrics["policy/loss"], "v_loss": value, "bc_loss": metrics.get("policy/bc", 0.0),
        "clipfrac": metrics["policy/clipped"], "approx_kl": metrics["policy/kl"], "ratio_mean": metrics["policy/ratio"],
        "value_mean": more["value/mean"], "total": total + cfg.value_weight * value, **others,
    }  # fmt: skip
    for key in case.keys("loss_out/"):
        mine = choose("quantity of the loss", key.removeprefix("loss_out/"), ours)
        if np.isnan(case.read(key)):
            finite = np.isfinite(mine)
            case.rows.append(compare(key, finite, 1, 0, 0, f"the official value is NaN; ours, {mine:.3g}, is finite"))
        elif undefined and key == "loss_out/clipfrac":
            case.rows.append(compare(key, mine <= 1, 1, 0, 0, f"official: 0, of a NaN clip; ours: {mine:.3g}"))
        else:
            case.check(key, mine, key, RTOL, ATOL)
    check_gradients(case, "gradient of the actor", free if undefined else grads, reference)
    if undefined:
        finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))
        case.rows.append(compare("gradient of the actor, clipped", finite, 1, 0, 0, "ours is finite"))
    scaled = jax.tree.map(lambda g: cfg.value_weight * g, value_grads)
    check_gradients(case, "gradient of the critic", scaled, values(case, "grad_critic/"))


def _actor(case: Case, prefix: str, cfg: reinflow.Config) -> PyTree:
    """Parameters below `prefix` as `reinflow.NoisyFlow` has them; where the noise is constant, without its network."""
    params = {"policy": {"denoiser": denoiser(case, f"{prefix}policy.")[1]}}
    if cfg.noise == "constant":
        case.ignore(*case.keys(f"{prefix}explore_noise_net."), *case.keys(f"{prefix}{TABLE}"))
        return params
    _, tree = plain(case, f"{prefix}explore_noise_net.mlp_logvar.")
    noise = {"MLP_0": tree["params"]}
    if table := [key for key in case.keys(prefix) if key.endswith(TABLE)]:
        noise["Embed_0"] = {"embedding": jnp.asarray(case.read(table[0]))}
        case.agree("time_dim_explore", noise["Embed_0"]["embedding"].shape[1])
    for name, std in (("min", cfg.std_min), ("max", cfg.std_max)):
        if case.has(key := f"{prefix}explore_noise_net.logvar_{name}"):
            case.check(key, 2 * np.log(std), key, RTOL, ATOL)
    return {**params, "noise": {"params": noise}}


def _config(case: Case, net: Denoiser, family: str) -> reinflow.Config:
    steps, learned = case.hyper("inference_steps"), case.hyper("ft_denoising_steps")
    schedule = case.hyper("noise_scheduler_type")
    fixed = choose("noise schedule", schedule, SCHEDULES)
    case.agree("act_min", -1.0)
    case.agree("act_max", 1.0)
    limit = case.hyper("denoised_clip_value")
    table, width = case.hyper("learn_explore_time_embedding"), case.hyper("time_dim_explore")
    state_only = case.hyper("use_time_independent_noise")
    return reinflow.Config(
        **learning(case),
        net=policy(case, net, family, denoised_clip=limit if case.hyper("clip_intermediate_actions") else 0.0).options,
        denoising=Denoising(steps),
        std_min=case.hyper("min_logprob_denoising_std"),
        std_max=case.hyper("max_logprob_denoising_std"),
        sampling_std=case.hyper("min_sampling_denoising_std"),
        noise="constant" if schedule == "const" or not learned else "learned",
        noise_steps=learned,
        noise_fixed=fixed,
        noise_input="state" if state_only else "step" if table else "time",
        noise_hidden=tuple(case.hyper("noise_hidden_dims") or ()),
        noise_activation=case.hyper("noise_activation").lower(),
        noise_table=width or 1,
        noise_clip=case.hyper("randn_clip_value"),
        log_prob_min=case.hyper("logprob_min"),
        log_prob_max=case.hyper("logprob_max"),
        with_start=case.hyper("account_for_initial_stochasticity"),
        per_step=case.hyper("normalize_denoising_horizon"),
        per_dimension=case.hyper("normalize_act_space_dimension"),
    )


def _sampled(case: Case, setting: Setting, params: PyTree) -> Array | None:
    """`sample_*` where there; returns what `sample_train` leaves for the update, f32[B]."""
    cfg, player = setting.cfg, setting.player

    @jax.jit
    def outcome(params: PyTree, start: Array, normals: Array) -> tuple[Array, ...]:
        step = setting.sampler.step(params, setting.seen, setting.sampler.bound(setting.state.iteration))
        chains, law = chain.sample(step, start, normals, player.floor, cfg.noise_clip, 1.0)
        law = Move(law.mean, jnp.maximum(law.std, player.floor))
        # without a clip of the means, the official evaluation moves the last one with the end that it clips
        judged = (law, law if setting.given.options.denoised_clip else law._replace(mean=chains[:, 1:]))
        each = [chain.log_density(chains[:, 1:], *law).sum(axis=(2, 3)) for law in judged]
        return chains, law, each, [reinflow.log_prob(law, chains, cfg)[0] for law in judged]

    recorded = None
    for i, group in enumerate(("sample_train", "sample_eval")):
        if not case.keys(f"{group}/"):
            continue
        start = jnp.asarray(case.read(f"{group}/x0"))
        normals = jnp.zeros((len(start), player.steps, *start.shape[1:]))
        chains, law, each, value = outcome(params, start, normals if i else jnp.asarray(case.read(f"{group}/eps")))
        ours = {
            "chain": chains, "action": chains[:, -1], "step_mean": law.mean, "step_std": law.std,
            "step_logprob_sum": each[i], "logprob": value[i],
        }  # fmt: skip
        for name, mine in ours.items():
            case.check(f"{group}/{name}", mine, f"{group}/{name}", RTOL, ATOL)
        recorded = recorded if i else jnp.clip(value[0], cfg.log_prob_min, cfg.log_prob_max)
    return recorded


def _recomputed(case: Case, setting: Setting, actors: dict[str, PyTree], chains: Array) -> dict[str, tuple]:
    """`recompute_*` by actor, where there -> (what an update makes of the chains, mean std)."""
    cfg, player, state = setting.cfg, setting.player, setting.state
    flat, level = (len(chains), player.steps, -1), jnp.zeros(len(chains), jnp.int32)

    @jax.jit
    def outcome(params: PyTree) -> tuple[dict, Judged]:
        law = chain.moves(player.step(params, setting.seen, player.bound(state.iteration)), chains)
        return {
            "step_mean": law.mean.reshape(flat), "step_std": law.std.reshape(flat), "std_mean": law.std.mean(),
            "step_logprob": chain.log_density(chains[:, 1:], *law).sum(axis=(2, 3)),
            "init_logprob": chain.log_density(chains[:, 0], 0.0, 1.0).sum(axis=(1, 2)),
            "logprob": reinflow.log_prob(law, chains, cfg)[0],
        }, setting.actor.judge(params, state, observed(setting.seen), chains, level)  # fmt: skip

    out = {}
    for name, params in actors.items():
        ours, judged = outcome(params)
        told = {**ours, "entropy_rate": judged.entropy} if case.keys(f"recompute_{name}/") else {}
        for key, mine in told.items():
            case.check(f"recompute_{name}/{key}", mine, f"recompute_{name}/{key}", RTOL, ATOL)
        out[name] = judged, ours["std_mean"]
    return out


def _w2(case: Case, setting: Setting, actors: dict[str, PyTree], net: Denoiser, family: str) -> Actor:
    """`check/w2_*`; returns the actor with the official regulariser.

    Its two roll-outs, which always clip, share a tensor of zeros that the first moves by its first step.
    """
    if case.has("bc_loss_type"):
        case.agree("bc_loss_type", "W2")
    clipping, free = (policy(case, net, family, denoised_clip=limit) for limit in (1.0, 0.0))
    steps, seen, frozen = setting.player.steps, setting.seen, setting.state.frozen
    zero = jnp.zeros((len(seen), *setting.given.shape))
    denoising, key = setting.sampler.cfg.denoising, "check/w2_z_after_first_call"
    moved = free.step(frozen, seen, denoising)(zero, jnp.int32(0)).mean
    if case.has(key):
        case.check(key, moved, key, RTOL, ATOL)
        moved = jnp.asarray(case.read(key))

    def step(params: PyTree) -> Step:
        return clipping.step(params, seen, denoising)

    def official(params: PyTree, state: State, obs: Observation, key: Array) -> Array:
        return reinflow.w2(step(params["policy"]), step(frozen), steps, moved, zero)

    # the other arrays are ends of roll-outs, or the loss between two policies, that begin at zero or at `moved`
    still = jnp.zeros((len(seen), steps, *setting.given.shape))
    distance = jax.jit(lambda params, start: reinflow.w2(step(params), step(frozen), steps, start, zero))
    end = jax.jit(lambda params, start: chain.sample(step(params), start, still, last=1.0)[0][:, -1])
    policies = {"frozen": frozen} | {name: params["policy"] for name, params in actors.items()}
    ours = {
        f"{kind} {name} from {place} (tried)": function(params, start)
        for kind, function in (("distance to the frozen of", distance), ("end of", end))
        for name, params in policies.items()
        for place, start in (("the moved", moved), ("zero", zero))
    }
    for key in case.keys("check/w2_"):
        if key != "check/w2_z_after_first_call":
            told = case.read(key)
            rows = [compare(key, x, told, RTOL, ATOL, note) for note, x in ours.items() if x.shape == told.shape]
            case.rows.append(min(rows, key=lambda row: (not row.ok, row.error)))
    return setting.actor._replace(penalty=official)


def run(case: Case) -> None:
    family = choose("kind of case", case.hyper("kind"), {"reflow": "reflow", "shortcut": "shortcut"})
    case.ignore("note", "time_dim_explore")  # the width of a table that may not be there
    net, _ = denoiser(case, "actor_behavior/policy.")
    cfg = _config(case, net, family)
    seen, size = states(case), case.hyper("action_dim")
    given, actor = reinflow.actor(cfg, EnvSpec("golden", seen.shape[1:], size, chunk=case.hyper("horizon_steps")))
    frozen = {"denoiser": denoiser(case, "actor_pretrained/")[1]}
    state = begun(values(case, "critic/"), frozen, seen.shape[1], size)
    official = replace(cfg.denoising, grid="inclusive") if family == "reflow" else cfg.denoising
    sampler = reinflow.NoisyFlow(replace(cfg, denoising=official), given)
    setting = Setting(cfg, given, reinflow.NoisyFlow(cfg, given), actor, state, seen, sampler)
    actors = {name: _actor(case, f"actor_{name}/", cfg) for name in ("behavior", "current")}

    chains = jnp.asarray(case.read("loss_in/chains"))
    recorded, judged = _sampled(case, setting, actors["behavior"]), _recomputed(case, setting, actors, chains)
    (before, _), (now, std) = judged["behavior"], judged["current"]
    if recorded is not None:
        ratio = jnp.exp(before.log_prob - recorded).mean()
        case.check("check/mean_ratio", ratio, "check/mean_ratio_recomputed_vs_sampled", RTOL, ATOL)

    if cfg.bc_weight or case.keys("check/w2_"):
        setting = setting._replace(actor=_w2(case, setting, actors, net, family))
    old = jnp.clip(case.read("loss_in/oldlogprobs"), cfg.log_prob_min, cfg.log_prob_max)
    rest = (jnp.asarray(case.read(f"loss_in/{name}")) for name in ("advantages", "returns", "oldvalues"))
    batch = Batch(observed(seen), chains, old, jnp.zeros(len(seen), jnp.int32), *rest)
    others = {"entropy_loss": -now.entropy.mean(), "noise_std_mean": std}
    for name, value in (("old", old), ("new", now.log_prob)):
        others |= {f"{name}logprob_{f}": getattr(value, f)() for f in ("min", "max")}
        others[f"{name}logprob_std"] = value.std(ddof=1)
    check_losses(case, setting, actors["current"], batch, others, _actor(case, "grad_actor/", cfg))
