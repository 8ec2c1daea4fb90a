"""Which runner checks which file: by the beginning of the file's name."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden import networks, td3_bc
from tests.golden.case import Case, Uncheckable

KINDS: dict[str, Callable[[Case], None]] = {
    "corl_td3bc": td3_bc.run,
    "util_03": networks.run_blocks,
    "util_04": networks.run_adamw,
}


def runner(file_name: str) -> Callable[[Case], None]:
    """Raises: Uncheckable for a kind that is not in the table."""
    for kind, run in KINDS.items():
        if file_name.startswith(kind):
            return run
    raise Uncheckable(f"unknown kind; the name must begin with one of {', '.join(KINDS)}")
