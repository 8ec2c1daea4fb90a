"""`python -m benchmarks WHAT`: print a Markdown table, write it as JSON."""

from __future__ import annotations

import importlib
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from benchmarks.contenders import CORES, HERE, PeerError
from core import runtime
from core.config import ConfigError
from core.metrics import write_json


def bench(
    what: Positional[Literal["updates", "rollout", "online", "chains", "neighbors", "offline", "goals"]],
    json_out: Path | None = None,
    rounds: int = 0,
    quick: bool = False,
    peers: bool = False,
    data: str = "",
) -> None:
    """Speed and memory, all contenders in one run.

    Args:
        what: training on a dataset, simulators on the host with a policy in the loop, learning while acting,
            fine-tuning of flow and diffusion policies, nearest rows, the algorithms that learn from a dataset, or those
            that are told a goal.
        json_out: where the figures are written; default benchmarks/out/WHAT.json.
        rounds: interleaved repetitions; medians are reported. 0: 7, or 3 of chains.
        quick: a tenth of the work, to see that it runs.
        peers: beside it d3rlpy, EnvPool, SBX or PyTorch, from the environment that `make bench` builds.
        data: of offline, a Hopper dataset; default one that it plays itself.
    """
    if data and what != "offline":
        raise ConfigError(f"--data is read by offline, not by {what}: leave it out")
    runtime.configure(acting=what == "rollout")
    module = importlib.import_module(f"benchmarks.{what}")
    rows = module.measure(rounds or getattr(module, "ROUNDS", 7), quick, peers, *([data] if data else []))
    publish(rows, json_out or HERE / "out" / f"{what}.json")


def publish(rows: list[dict[str, Any]], out: Path) -> None:
    """Print the machine and the table, and write both."""
    import jax

    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}",
    }
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    print("| what | value | unit | note |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['what']} | {row['value']:.4g} | {row['unit']} | {row['note']} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"machine": machine, "rows": rows})
    print(f"\n{out}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # of Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {CORES} cores"


def main() -> int:
    try:
        tyro.cli(bench, prog="python -m benchmarks")
        return 0
    except (ConfigError, PeerError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())
