"""Which runner checks which file: by the beginning of the file's name."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden import (
    cql,
    d4rl,
    denoising,
    dppo,
    dw,
    gcrl,
    goal_sampler,
    iql,
    networks,
    onpolicy,
    prdc,
    rebrac,
    reinflow,
    reward_norm,
    td3_bc,
    weights,
)
from tests.golden.case import Case, Uncheckable

KINDS: dict[str, Callable[[Case], None]] = {
    "bc_": denoising.run,
    "corl_cql": cql.run,
    "corl_iql": iql.run_corl,
    "corl_rebrac": rebrac.run,
    "corl_reward_norm": reward_norm.run,
    "corl_td3bc": td3_bc.run,
    "crl_": gcrl.run,
    "d4rl_flat_to_transitions": d4rl.run_transitions,
    "d4rl_ref_scores": d4rl.run_scores,
    "dppo_": dppo.run,
    "dw_iql_jax": dw.run,
    "gcbc_": gcrl.run,
    "gciql_": gcrl.run,
    "gcivl_": gcrl.run,
    "goal_sampler_": goal_sampler.run,
    "hiql_": gcrl.run,
    "official_iql_jax": iql.run_official,
    "ota_": gcrl.run,
    "prdc_nn": prdc.run_nearest,
    "prdc_": prdc.run,
    "qrl_": gcrl.run,
    "reinflow_": reinflow.run,
    "traj_weights_cql": weights.run_cql,
    "traj_weights_d3rlpy": weights.run_given,
    "traj_weights_edge": weights.run_given,
    "traj_weights_iql": weights.run_iql,
    "util_01": onpolicy.run_gae,
    "util_02": onpolicy.run_schedules,
    "util_03": networks.run_blocks,
    "util_04": networks.run_adamw,
}


def runner(file_name: str) -> Callable[[Case], None]:
    """Raises: Uncheckable for a kind that is not in the table."""
    for kind, run in KINDS.items():
        if file_name.startswith(kind):
            return run
    raise Uncheckable(f"unknown kind; the name must begin with one of {', '.join(KINDS)}")
