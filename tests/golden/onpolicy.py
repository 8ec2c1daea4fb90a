"""`util_01*`: advantages and reward scaling over rollouts.  `util_02*`: schedules of learning rates and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from algos.reinflow import noise_bound
from core import optim, running
from core.returns import gae
from tests.golden.case import Case, Uncheckable

PARAMS = "params_first_cycle_warmup_max_min"
BOUND = "params_max_min_hold_ratio_n"
RTOL, ATOL = 1e-5, 1e-6
ROUNDING = (1e-10, 1e-12)  # of the statistics in float64; the file's advantages went through float32


def _rollouts(case: Case, label: str) -> None:
    """Groups `NAME{0,1}_itr{0,1,..}`: 1 scales rewards, and iterations of a name follow each other."""
    discount, lam, limit = (case.hyper(name) for name in ("gamma", "gae_lambda", "reward_clip"))
    scale = None

    def read(name: str):
        return jnp.asarray(case.read(name), float)

    def check(name: str, ours, exact: bool = True) -> None:
        case.check(f"{label} {name}", ours, name, *(ROUNDING if exact and label == "x64" else (RTOL, ATOL)))

    for group in case.groups():
        reward, value = read(f"{group}/reward_in"), read(f"{group}/values")
        case.agree("T", len(value))
        case.agree("N", value.shape[1])
        if group.endswith("_itr0"):
            scale = running.reward_scale(value.shape[1], case.hyper("rms_init_count"))
        first = read(f"{group}/firsts").astype(bool)
        if case.has(f"{group}/rms_var"):
            # the carry is cut where an episode begins, at a rollout's first step too, but not behind its last one
            over = jnp.concatenate([first[1:-1], jnp.zeros_like(first[:1])])
            scale = scale._replace(ret=jnp.where(first[0], 0.0, scale.ret))
            scale, reward = running.scale_rewards(scale, reward, over, discount, limit, ddof=1)
            for key, ours in zip(("mean", "var", "count"), scale.seen, strict=True):
                check(f"{group}/rms_{key}", ours)
            check(f"{group}/ret_carry", scale.ret)
        check(f"{group}/reward_scaled", reward)
        terminated = read(f"{group}/terminated").astype(bool)
        case.ignore(f"{group}/truncated")  # there only terminations stop the sum, on purpose
        after = jnp.concatenate([value[1:], read(f"{group}/last_value")[None]])
        reward = case.hyper("reward_scale_const") * reward
        advantage = gae(reward, value, after, terminated, jnp.zeros_like(terminated), discount, lam)
        check(f"{group}/advantages", advantage, exact=False)
        check(f"{group}/returns", advantage + value, exact=False)


def run_gae(case: Case) -> None:
    case.agree("epsilon", running.EPS)
    case.ignore("critic", "note")
    with jax.enable_x64(True):
        _rollouts(case, "x64")
    with jax.enable_x64(False):
        _rollouts(case, "float32")


def run_schedules(case: Case) -> None:
    """In float32, relative: rates are small."""
    case.ignore("note", "noise/const_schedule_itr_1000")  # the latter: dead code of ReinFlow's, nothing of ours
    for key in case.keys("lr/"):
        if key.endswith(PARAMS):
            name = key.removesuffix(f"/{PARAMS}")
            cycle, warmup, high, low = case.read(key)
            lr = optim.warmup_cosine(low, high, int(warmup), int(cycle))
            case.check(name, jax.vmap(lr)(jnp.arange(len(case.read(name)))), name, 1e-5, 0)
    for key in case.keys("noise/"):
        if key.endswith(BOUND):
            name = key.removesuffix(f"/{BOUND}")
            high, low, hold, share, number = case.read(key)
            if not np.isclose(share, 0.7):
                raise Uncheckable(f"{key}: the bound ends {share} of the way up, ours at 0.7")
            bound = jax.vmap(lambda i, args=(low, high, int(number), hold): noise_bound(i, *args))
            case.check(name, bound(jnp.arange(len(case.read(name)))), name, 1e-5, 0)
