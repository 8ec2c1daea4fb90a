"""`dppo_*`: diffusion chains with a frozen beginning, their likelihood, PPO's losses and their gradients, in float32.

Log-densities cross zero, where the last digit of a mean is worth more than 1e-6: the absolute tolerance of
`recompute_*/logprob` is 1e-6 of its largest entry.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from algos import dppo
from algos.chain_ppo import Batch, State
from core import chain, diffusion
from core.chunk_policy import Denoising
from core.config import choose
from core.networks import Denoiser
from core.types import Array, EnvSpec, Observation, PyTree
from tests.golden.case import Case, compare
from tests.golden.denoising import ATOL, RTOL, check_schedule, denoiser, policy, states
from tests.golden.reinflow import Setting, begun, check_losses, learning, observed, values


def _config(case: Case, net: Denoiser) -> dppo.Config:
    predicts = "clean" if case.has("predict_epsilon") and not case.hyper("predict_epsilon") else "noise"
    levels, ddim = case.hyper("denoising_steps"), case.hyper("use_ddim")
    options = {"levels": levels, "predicts": predicts, "denoised_clip": case.hyper("denoised_clip_value")}
    strides, eta, noise_limit = (case.hyper(name) for name in ("ddim_steps", "eta", "eps_clip_value"))
    return dppo.Config(
        **learning(case),
        net=policy(case, net, "diffusion", **options).options,
        denoising=Denoising(strides, sampler="ddim") if ddim else Denoising(),
        tuned=case.hyper("ft_denoising_steps"),
        clip_base=case.hyper("clip_ploss_coef_base"),
        clip_rate=case.hyper("clip_ploss_coef_rate"),
        denoising_discount=case.hyper("gamma_denoising"),
        sampling_std=case.hyper("min_sampling_denoising_std"),
        log_prob_std=case.hyper("min_logprob_denoising_std"),
        noise_clip=case.hyper("randn_clip_value"),
        final_clip=case.hyper("final_action_clip_value") or 0.0,
        horizon=case.hyper("reward_horizon"),
        advantage_low=case.hyper("clip_advantage_lower_quantile"),
        advantage_high=case.hyper("clip_advantage_upper_quantile"),
        normalize_advantage=case.hyper("norm_adv"),
        eta=eta if ddim and eta is not None else 1.0,
        noise_limit=(ddim and noise_limit) or 0.0,
    )


def _check_ddim(case: Case, schedule: diffusion.Schedule, count: int) -> None:
    """`schedule/ddim_*`, in the order of the chain, each as our steps use it; the file's sigmas are those of eta 0."""
    times, order, one = diffusion.ddim_times(len(schedule.beta), count), jnp.arange(count), jnp.ones((count, 1, 1))
    bar = jnp.asarray(schedule.bar)[times][:, None, None]

    def move(x: Array, x0: float) -> chain.Move:
        return diffusion.ddim(schedule, lambda x, k: x0 * one, count, 0.0, "clean", np.inf)(x, order)

    ours = {
        "t": times, "alphas": bar, "alphas_sqrt": jnp.sqrt(bar), "sqrt_one_minus_alphas": jnp.sqrt(1 - bar),
        "alphas_prev": jnp.square(move(jnp.sqrt(bar), 1.0).mean), "sigmas": move(one, 1.0).std,
    }  # fmt: skip
    for name, value in ours.items():
        case.check(f"schedule/ddim_{name}", value, f"schedule/ddim_{name}", RTOL, ATOL)


def _sampled(case: Case, setting: Setting, params: PyTree) -> None:
    """`sample_*`: the frozen beginning, which only its end shows, and the tuned part of the chain."""
    cfg, player, seen, frozen = setting.cfg, setting.player, setting.seen, setting.state.frozen
    floors = jnp.full(player.steps, cfg.sampling_std), setting.given.eval_floor(cfg.denoising)

    @jax.jit
    def outcome(params: PyTree, eta: Array, floor: Array, start: Array, normals: Array) -> Array:
        parts = player.step(frozen, seen, eta), player.tail(params, seen, eta)
        return player.sample(*parts, start, normals, floor, cfg.final_clip or jnp.inf)[0]

    for group, eta, floor in zip(("sample_train", "sample_eval"), (cfg.eta, 0.0), floors, strict=True):
        draws = (jnp.asarray(case.read(f"{group}/{name}")) for name in ("x_init", "eps_raw"))
        chains = outcome(params, eta, floor, *draws)
        case.check(f"{group}/chain", chains, f"{group}/chain", RTOL, ATOL)
        case.check(f"{group}/action", chains[:, -1], f"{group}/action", RTOL, ATOL)


def _recomputed(case: Case, setting: Setting, actors: dict[str, PyTree], chains: Array) -> None:
    """`recompute_*` by actor."""
    cfg = setting.cfg

    @jax.jit
    def outcome(params: PyTree) -> tuple[Array, ...]:
        law = chain.moves(setting.player.tail(params, setting.seen, cfg.eta), chains)
        std = jnp.maximum(law.std, cfg.log_prob_std)
        value, _ = dppo.log_prob(law, chains[:, 1:], cfg)
        return law.mean, std, chain.log_density(chains[:, 1:], law.mean, std), value

    for name, params in actors.items():
        group = f"recompute_{name}"
        mean, std, each, value = outcome({"denoiser": params})
        case.check(f"{group}/mean", mean, f"{group}/mean", RTOL, ATOL)
        case.check(f"{group}/std", std, f"{group}/std", RTOL, ATOL)
        told = case.read(f"{group}/logprob")
        atol = ATOL * max(1.0, float(np.abs(told).max()))
        case.check(f"{group}/logprob", each, f"{group}/logprob", RTOL, atol)
        case.rows.append(compare(f"{group}/logprob, averaged", value, _averaged(told, cfg), RTOL, atol))


def _averaged(log_probs: np.ndarray, cfg: dppo.Config) -> np.ndarray:
    """l f32[...] of the densities f32[..., H, A] of a chunk's numbers."""
    kept = log_probs[..., : cfg.horizon or None, :]
    return kept.clip(cfg.log_prob_min, cfg.log_prob_max).mean(axis=(-2, -1))


def _imitation(case: Case, setting: Setting, rows: np.ndarray) -> Callable[..., Array]:
    """The regulariser on the file's draws."""
    cfg, player, seen = setting.cfg, setting.player, setting.seen[rows]
    draws = [jnp.asarray(case.read(f"bc/{name}")) for name in ("x_init", "eps_raw")]
    frozen = setting.state.frozen, seen, cfg.eta
    steps = player.step(*frozen), player.tail(*frozen)

    def penalty(params: PyTree, state: State, obs: Observation, key: Array) -> Array:
        return dppo.imitation(player, steps, player.tail(params, seen, cfg.eta), *draws, cfg.final_clip or jnp.inf)

    return penalty


def run(case: Case) -> None:
    case.agree("kind", "dppo")
    case.ignore("note")
    net, behavior = denoiser(case, "actor_behavior/")
    current, frozen = (denoiser(case, f"actor_{name}/")[1] for name in ("current", "frozen"))
    cfg, seen, size = _config(case, net), states(case), case.hyper("action_dim")
    given, actor = dppo.actor(cfg, EnvSpec("golden", seen.shape[1:], size, chunk=case.hyper("horizon_steps")))
    state = begun(values(case, "critic/"), {"denoiser": frozen}, seen.shape[1], size)
    setting = Setting(cfg, given, dppo.TunedChain(cfg, given), actor, state, seen, cfg.denoising)
    schedule = diffusion.cosine(cfg.net.levels)
    check_schedule(case, schedule)
    if case.keys("schedule/ddim_"):
        _check_ddim(case, schedule, cfg.denoising.steps)

    chains = jnp.asarray(case.read("sample_train/chain"))
    _sampled(case, setting, {"denoiser": behavior})
    _recomputed(case, setting, {"behavior": behavior, "current": current}, chains)

    rows, level = case.read("loss_in/batch_inds"), case.read("loss_in/denoising_inds")
    old = _averaged(case.read("loss_in/oldlogprobs"), cfg)[rows, level]
    rest = (jnp.asarray(case.read(f"loss_in/{name}")[rows]) for name in ("advantages", "returns", "oldvalues"))
    batch = Batch(observed(seen[rows]), chains[rows], jnp.asarray(old), jnp.asarray(level, jnp.int32), *rest)
    ours = {
        "clip_per_sample": actor.clip(batch.level),
        "discount_per_sample": dppo.shaped(jnp.ones(len(rows)), batch.level, setting.player.tuned, cfg),
    }
    for key in case.keys("loss_aux/"):
        mine = choose("quantity of the loss", key.removeprefix("loss_aux/"), ours)
        case.check(key, jnp.broadcast_to(mine, len(rows)), key, RTOL, ATOL)
    if cfg.bc_weight:
        setting = setting._replace(actor=actor._replace(penalty=_imitation(case, setting, rows)))
    # theirs calls the noise's scale an entropy
    others = {"entropy_loss": -cfg.eta, "eta_mean": cfg.eta}
    check_losses(case, setting, {"denoiser": current}, batch, others, {"denoiser": denoiser(case, "grad_actor/")[1]})
