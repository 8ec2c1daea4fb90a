"""Which runner checks which file: by the beginning of the file's name."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden import d4rl, denoising, dppo, networks, onpolicy, reinflow, td3_bc
from tests.golden.case import Case, Uncheckable

KINDS: dict[str, Callable[[Case], None]] = {
    "bc_": denoising.run,
    "corl_td3bc": td3_bc.run,
    "d4rl_flat_to_transitions": d4rl.run_transitions,
    "d4rl_ref_scores": d4rl.run_scores,
    "dppo_": dppo.run,
    "reinflow_": reinflow.run,
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
